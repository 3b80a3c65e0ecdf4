"""Bad input, end to end: one sentence on standard error that names the file and what is wrong in it, exit code 1 (2 for
usage), on one rank and on two, and nothing under a final name."""

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ranks"))
from runs import MODEL, Failures, Folder, command, prepare, train  # noqa: E402


def read_tensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), bytearray(data[8 + size:])


def write_tensors(path, header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + bytes(body))


def model_with(folder, name, change):
    """A copy of the test model whose header, body or config a function changes in place."""
    out = folder(name)
    shutil.copytree(MODEL, out)
    os.chmod(out, 0o700)
    for file in os.listdir(out):
        os.chmod(os.path.join(out, file), 0o600)
    path = os.path.join(out, "model.safetensors")
    header, body = read_tensors(path)
    config = json.load(open(os.path.join(out, "config.json")))
    result = change(header, body, config)
    write_tensors(path, result if isinstance(result, bytes) else header, body)
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file)
    return out


NAME = "model.layers.2.mlp.up_proj.weight"
LAST = "model.norm.weight"  # its bytes stand last


def models():
    """What is changed, and words that the sentence must have."""
    def offsets(h, b, c): h[NAME]["data_offsets"][1] = 1 << 62
    def overflow(h, b, c): h[NAME]["shape"] = [1 << 40, 1 << 40]
    def dtype(h, b, c): h[NAME]["dtype"] = "I64"
    def shape(h, b, c): h[NAME]["shape"] = h[NAME]["shape"][::-1]
    def missing(h, b, c): h["other"] = h.pop(NAME)
    def lost(h, b, c): del b[h.pop(LAST)["data_offsets"][0]:]
    def twice(h, b, c): return json.dumps(h)[:-1].encode() + b', "lm_head": 1, "lm_head": 2}'
    def cut(h, b, c): del b[-1:]

    def nan(h, b, c):
        first = h[NAME]["data_offsets"][0]
        b[first:first + 4] = numpy.float32("nan").tobytes()

    def architecture(h, b, c): c.update(model_type="gpt2", architectures=["GPT2LMHeadModel"])
    def rope(h, b, c): c["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0}
    def activation(h, b, c): c["hidden_act"] = "gelu"
    def positions(h, b, c): c["max_position_embeddings"] = 64
    def vocabulary(h, b, c): c["vocab_size"] = 300
    return [
        (offsets, ["model.safetensors", NAME]), (overflow, ["model.safetensors", NAME]),
        (dtype, [NAME, "I64"]), (shape, [NAME]), (missing, ["tensor other"]), (lost, [LAST]), (twice, ["model.safetensors", "lm_head"]),
        (cut, ["model.safetensors"]), (nan, [NAME, "nan"]), (architecture, ["config.json", "gpt2"]), (rope, ["yarn"]),
        (activation, ["gelu"]), (positions, ["max_position_embeddings"]), (vocabulary, ["vocab"]),
    ]


def expect(failures, name, ranks, words, parts, code=1, absent=None):
    """Runs a command that must fail, and judges how."""
    done = subprocess.run(command(ranks, [str(w) for w in words]), capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL)
    # A run that resumes tells first which keys have changed.
    lines = [n for n in done.stderr.splitlines() if n.strip() and not n.startswith("changed since the run began")]
    good = (done.returncode == code and len(lines) == 1 and lines[0].startswith("wpo ")
            and all(p.lower() in lines[0].lower() for p in parts))
    if good and absent:
        good = not os.path.exists(absent)
    failures.check(good, f"{name}, {ranks} ranks: {lines[0] if lines else 'no word'}")
    if not good:
        print(f"   exit {done.returncode}, wanted {code} and {parts}\n   stderr: {done.stderr}\n   {absent}")


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return path


def train_words(folder, groups, **keys):
    run_file = write(folder("run.yaml"), "beta: 0.1\n")
    words = ["train", run_file]  # the command line has the rest
    for key, value in {"model_name_or_path": MODEL, "train_file": groups, "output_dir": folder("never"), "max_steps": 1,
                       **keys}.items():
        words += ["--" + key, str(value)]
    return words


def test_models(failures, folder, groups):
    for change, parts in models():
        model = model_with(folder, change.__name__, change)
        for ranks in (1, 2):
            expect(failures, "model: " + change.__name__, ranks, ["eval", "--model", model, "--data", groups], parts)


def test_runs(failures, folder, groups):
    for ranks in (1, 2):
        bad = write(folder("bad.yaml"), "beta: 0.1\nbeta: 0.2\n")
        expect(failures, "key twice", ranks, ["train", bad], ["bad.yaml", "beta"], 2)
        bad = write(folder("bad.yaml"), "learning_rat: 1e-6\n")
        expect(failures, "misspelt key", ranks, ["train", bad], ["learning_rat", "learning_rate"], 2)
        expect(failures, "no third completion", ranks,
               train_words(folder, groups, optimism_alpha=0.1), ["pairs.h5", "optimism_alpha"])
        expect(failures, "losses that do not go together", ranks, train_words(folder, groups, loss_type="sigmoid,kto"),
               ["run.yaml", "loss_type lists kto", "trained alone"], 2)
        bad = write(folder("bad.yaml"), "loss_type: [sigmoid, [sft]]\n")
        expect(failures, "a list within a list", ranks, ["train", bad], ["bad.yaml:1", "loss_type"], 2)
        expect(failures, "no data file", ranks, train_words(folder, folder("no.h5")), ["no.h5"])
        expect(failures, "NaN in a run file", ranks, train_words(folder, groups, beta="nan"), ["beta"], 2)
    few = prepare(2, folder("few.h5"), longest=128)
    expect(failures, "more ranks than pairs", 3, train_words(folder, few, output_dir=folder("few")), ["3 ranks"])
    expect(failures, "batch smaller than the ranks", 3,
           train_words(folder, groups, global_batch_size=2, output_dir=folder("small")), ["global batch of 2"])


def damage(out, name):
    """Flips one bit of a shard."""
    path = os.path.join(out, name, "shard-00001-of-00002.h5")
    data = bytearray(open(path, "rb").read())
    data[len(data) // 2] ^= 4
    with open(path, "wb") as file:
        file.write(data)


def test_resume(failures, folder, groups):
    out = folder("run")
    train(2, groups, out, max_steps=2, save_strategy="steps", save_steps=1)
    again = {"output_dir": out, "resume_from_checkpoint": "auto", "global_batch_size": 12, "max_steps": 3}
    expect(failures, "other seed", 2, train_words(folder, groups, seed=7, **again), ["seed"])
    other = prepare(30, folder("other.h5"), longest=128)
    expect(failures, "other data", 2, train_words(folder, other, **again), ["other data"])
    expect(failures, "other batch", 2, train_words(folder, groups, **{**again, "global_batch_size": 4}), ["global batch"])
    expect(failures, "a run is there", 2, train_words(folder, groups, output_dir=out), [out])
    older = train_words(folder, groups, **{**again, "resume_from_checkpoint": os.path.join(out, "checkpoint-1")})
    done = subprocess.run(command(2, older), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    last = done.stderr.splitlines()[-1]
    failures.check(done.returncode == 1 and "checkpoint-2" in last and "move it away" in last,
                   "an older checkpoint by name: refused before the work, not after it")
    damage(out, "checkpoint-2")
    done = subprocess.run(command(2, train_words(folder, groups, save_steps=1, **again)), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    there = sorted(n for n in os.listdir(out) if n.startswith("checkpoint-"))
    failures.check(done.returncode == 0 and there == ["checkpoint-1", "checkpoint-2", "checkpoint-2.damaged",
                                                      "checkpoint-3"],
                   f"the newest checkpoint damaged: the older one is used, and the run reaches its end ({there})")
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3"):
        damage(out, name)
    done = subprocess.run(command(2, train_words(folder, groups, **again)), capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    failures.check(done.returncode == 1 and "checkpoint-3" in done.stderr and "checkpoint-1" in done.stderr,
                   "every checkpoint damaged: named, and never started anew")


def test_full_disk(failures, folder, groups):
    """Room for the run's small files, not for a checkpoint of 3 MiB."""
    out = folder("small-disk")
    os.mkdir(out)
    words = " ".join(train_words(folder, groups, output_dir=out + "/run", max_steps=3, save_steps=1))
    program = " ".join(command(2, []))
    script = f"mount -t tmpfs -o size=1200k none {out} && {program} {words}; code=$?; ls {out}/run >&2; exit $code"
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    if "unshare" in done.stderr or "permission denied" in done.stderr.lower():
        print("skipped: a full disk needs the right to mount")
        return
    failures.check(done.returncode == 1 and "step 3" in done.stdout + done.stderr and "space" in done.stderr.lower(),
                   "full disk: training goes on, and the end is an error")
    failures.check("checkpoint-" not in done.stderr.splitlines()[-1] and ".part" not in done.stderr.split("run.yaml")[-1],
                   "full disk: nothing half-written is left")
    if failures.failed:
        print(done.stdout, done.stderr)


with Folder() as folder:
    failures = Failures()
    groups = prepare(40, folder("pairs.h5"), longest=128)
    test_models(failures, folder, groups)
    test_runs(failures, folder, groups)
    failures.check(not os.path.exists(folder("never")) or not any(n.startswith("checkpoint") for n in os.listdir(
        folder("never"))), "no run that failed left a checkpoint")
    test_resume(failures, folder, groups)
    test_full_disk(failures, folder, groups)
    failures.finish()
