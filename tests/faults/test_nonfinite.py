"""A loss or gradient that is not finite: no parameter changes, and the run ends or passes over the step, by key."""

import json
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "ranks"))
from runs import DEFAULTS, MODEL, Failures, Folder, prepare, records, run, same_bits, tensors  # noqa: E402


def weights_times(source, out, name, factor):
    """A copy of a model folder with one float32 tensor multiplied."""
    shutil.copytree(source, out)
    path = os.path.join(out, "model.safetensors")
    blob = bytearray(open(path, "rb").read())
    size = struct.unpack("<Q", blob[:8])[0]
    entry = json.loads(blob[8:8 + size])[name]
    assert entry["dtype"] == "F32"
    begin, end = (8 + size + offset for offset in entry["data_offsets"])
    count = (end - begin) // 4
    values = struct.unpack(f"<{count}f", blob[begin:end])
    blob[begin:end] = struct.pack(f"<{count}f", *(v * factor for v in values))
    open(path, "wb").write(blob)
    return out


def start(ranks, folder, name, groups, code, **keys):
    with open(folder(name + ".yaml"), "w", encoding="utf-8") as file:
        for key, value in {**DEFAULTS, "train_file": groups, "output_dir": folder(name), "global_batch_size": 4,
                           **keys}.items():
            file.write(f"{key}: {json.dumps(value)}\n")
    return run(ranks, "train", folder(name + ".yaml"), code=code)


with Folder() as folder:
    failures = Failures()
    groups = prepare(8, folder("groups.h5"), longest=96)
    # One matrix is so large that its products overflow, and every logit is NaN. sft needs no reference.
    broken = weights_times(MODEL, folder("broken"), "model.layers.4.mlp.down_proj.weight", 1e38)
    for ranks in (1, 2):
        done = start(ranks, folder, f"stop-{ranks}", groups, 1, model_name_or_path=broken, max_steps=3)
        lines = [line for line in done.stderr.splitlines() if "not finite" in line]
        failures.check(len(lines) == 1 and "step 1 was not taken" in lines[0] and "row" in lines[0],
                       f"stop on {ranks} ranks: one sentence that names step and row: {lines}")
        failures.check(not any(n.startswith("checkpoint-") for n in os.listdir(folder(f"stop-{ranks}"))),
                       "stop: nothing is saved over it")
    done = start(1, folder, "skip", groups, 1, model_name_or_path=broken, max_steps=30, on_nonfinite="skip")
    failures.check(done.stderr.count("was skipped") == 10 and "10 steps in a row" in done.stderr,
                   "skip: ten steps in a row are too many, and each is told")
    # Two steps are skipped at the end of a run: what was saved is what the run began with.
    done = start(2, folder, "kept", groups, 0, model_name_or_path=broken, max_steps=2, on_nonfinite="skip")
    start(1, folder, "zero", groups, 0, model_name_or_path=broken, max_steps=1, on_nonfinite="skip")
    failures.check(same_bits(tensors(folder("kept"), 2), tensors(folder("zero"), 1)),
                   "skip: parameters and moments are what they were")
    failures.check(records(folder("kept")) == [], "skip: no record of metrics is made of nothing")
    # Where a pass over the batch comes first, what it says is no number either, and no state of the run takes it in.
    for loss in ("kto", "bco", "aot", "aot_unpaired"):
        start(2, folder, loss, groups, 0, model_name_or_path=broken, ref_model_name_or_path=MODEL, loss_type=loss,
              max_steps=2, on_nonfinite="skip")
        with open(os.path.join(folder(loss), "checkpoint-2", "manifest.json"), encoding="utf-8") as file:
            kept = "reward_mean" not in json.load(file)
        failures.check(kept and same_bits(tensors(folder(loss), 2), tensors(folder("zero"), 1)),
                       f"skip with {loss}: parameters, moments and running mean are what they were")
    # Nothing is made up of it, and it is told.
    done = run(0, "eval", "--model", broken, "--data", groups, "--json")
    failures.check("log-probabilities of" in done.stderr and "are not finite, first in row" in done.stderr
                   and not any(name.startswith(("logps/chosen", "weights/m")) for name in json.loads(done.stdout)),
                   f"eval: a warning, and no figures: {done.stderr.strip()} {done.stdout.strip()}")
    failures.finish()
