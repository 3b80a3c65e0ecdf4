"""The life of a run: asked to stop it saves, ends with 75 and goes on; what it exports scores the same and loads again;
real pairs are learned from."""

import json
import os
import signal
import subprocess
import time

from runs import MODEL, Failures, Folder, command, prepare, records, run, train

SHORT = bool(os.environ.get("WPO_SHORT"))


def start(ranks, groups, out, **keys):
    """Begins training without waiting for its end."""
    words = []
    for key, value in {"model_name_or_path": MODEL, "train_file": groups, "output_dir": out, "learning_rate": 3e-4,
                       "max_steps": 400, "per_device_train_batch_size": 2, "global_batch_size": 12, "threads": 1,
                       "logging_steps": 1, "save_strategy": "no", "log_pairs": True, **keys}.items():
        words += ["--" + key, str(value)]
    with open(out + ".yaml", "w") as file:
        file.write("beta: 0.1\n")
    return subprocess.Popen(command(ranks, ["train", out + ".yaml"] + words), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not (os.path.exists(path) and os.path.getsize(path)) and time.monotonic() < deadline:
        time.sleep(0.02)


def stop_and_go_on(failures, folder, groups, number, delay):
    """A signal at some moment of a run on two ranks; then the rest of it."""
    out = folder(f"stop-{number}-{delay}")
    job = start(2, groups, out)
    wait_for(os.path.join(out, "metrics.jsonl"))
    time.sleep(delay)
    job.send_signal(number)
    errors = job.communicate(timeout=120)[1]
    name = signal.Signals(number).name
    failures.check(job.returncode == 75, f"{name} after {delay} s: exit code {job.returncode} is 75")
    failures.check("resume_from_checkpoint: auto" in errors, f"{name} after {delay} s: the message says how to go on")
    steps = [int(n.split("-")[1]) for n in os.listdir(out) if n.startswith("checkpoint-")]
    failures.check(len(steps) == 1, f"{name} after {delay} s: step {steps} is saved")
    return out, steps[0] if steps else 0


def test_signals(failures, folder):
    groups = prepare(40, folder("pairs.h5"), longest=128)
    out, step = stop_and_go_on(failures, folder, groups, signal.SIGUSR1, 0.3)
    more = {"max_steps": step + 3, "lr_scheduler_type": "constant", "resume_from_checkpoint": "auto"}
    job = start(2, groups, out, **more)
    job.communicate(timeout=120)
    steps = [r["step"] for r in records(out)]
    failures.check(job.returncode == 0 and steps == list(range(1, step + 4)), "the run goes on: every step stands once")
    for number, delay in [(signal.SIGUSR2, 0.05)] if SHORT else [(signal.SIGUSR2, d) for d in (0.05, 0.11, 0.17, 0.23)]:
        stop_and_go_on(failures, folder, groups, number, delay)


def test_pairs_log(failures, folder):
    out = folder("pairs-log")
    groups = prepare(12, folder("twelve.h5"), longest=512)
    job = start(2, groups, out, max_steps=2)
    job.communicate(timeout=120)
    with open(os.path.join(out, "pairs.jsonl")) as file:
        pairs = [json.loads(line) for line in file]
    loss = records(out)[1]["loss"]
    mean = sum(p["loss"] for p in pairs if p["step"] == 2) / 12
    failures.check(sorted(p["row"] for p in pairs if p["step"] == 2) == list(range(12)), "pairs.jsonl: every row, each step")
    failures.check(abs(mean - loss) <= 1e-14 * abs(loss), "pairs.jsonl: the mean of its losses is the step's loss")


def evaluate(model, reference, data, ranks=2):
    return json.loads(run(ranks, "eval", "--model", model, "--reference", reference, "--data", data, "--json").stdout)


def test_export(failures, folder):
    """Three epochs on real pairs, accuracy before and after, and the way out and back."""
    epochs = 1 if SHORT else 3
    groups = prepare(24 if SHORT else 1116, folder("train.h5"), longest=512)
    test = prepare(54, folder("test.h5"), source="alpaca_pairs/test.jsonl", longest=512)
    before = evaluate(MODEL, MODEL, test)
    run_out = folder("run")
    train(2, groups, run_out, max_steps=-1, num_train_epochs=epochs, learning_rate=3e-4, warmup_ratio=0.1,
          lr_scheduler_type="cosine", global_batch_size=16, per_device_train_batch_size=4, eval_file=test,
          eval_strategy="epoch")
    run(0, "export", "--run", run_out, "--out", folder("out"))
    after = evaluate(folder("out"), MODEL, test)
    last = records(run_out, "eval_loss")[-1]
    print(f"accuracy on 54 held-out pairs: {before['rewards/accuracies']:.4f} before, "
          f"{after['rewards/accuracies']:.4f} after; margin {after['rewards/margins']:.3f}")
    # The same parameters in the same micro-batches of the same number of ranks, but for the size of the micro-batch.
    keys = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "weights/mean")
    worst = max(abs(after[k] - last["eval_" + k]) / abs(after[k]) for k in keys)
    failures.check(worst < 1e-5, f"the exported folder scores as the run did, relative {worst:.1e}")
    failures.check(before["rewards/margins"] == 0, "before: the margin is exactly 0")
    if not SHORT:
        failures.check(after["rewards/accuracies"] > 0.6, "after: most held-out pairs are told apart")
    run(0, "export", "--run", run_out, "--out", folder("sharded"), "--dtype", "bfloat16", "--max_shard_size", "200KB")
    failures.check(os.path.exists(folder("sharded", "model.safetensors.index.json")), "a small shard size makes shards")
    rounded = evaluate(folder("sharded"), MODEL, test)
    # bf16 keeps 8 bits: logps of some hundred nats move by up to a few parts in a thousand.
    difference = abs(rounded["logps/chosen"] - after["logps/chosen"]) / abs(after["logps/chosen"])
    failures.check(0 < difference < 1e-2, f"rounded to bf16 it scores nearly the same, relative {difference:.1e}")
    back = folder("back")
    train(1, groups, back, model_name_or_path=folder("out"), max_steps=1)
    failures.check(records(back)[0]["rewards/margins"] == 0, "the exported folder trains again")
    test_refused(failures, folder, run_out, groups)


def test_refused(failures, folder, out, groups):
    """A resume that is refused leaves the run as it was: another reference, with its cached log-probabilities gone."""
    before = open(os.path.join(out, "run.yaml"), "rb").read()
    os.remove(os.path.join(out, "reference.h5"))
    job = start(2, groups, out, resume_from_checkpoint="auto", ref_model_name_or_path=folder("out"), global_batch_size=16)
    errors = job.communicate(timeout=120)[1]
    failures.check(job.returncode == 1 and "another reference model" in errors, f"another reference is refused: {errors[-200:]}")
    failures.check(open(os.path.join(out, "run.yaml"), "rb").read() == before, "and run.yaml is what it was")


with Folder() as folder:
    failures = Failures()
    test_signals(failures, folder)
    test_pairs_log(failures, folder)
    test_export(failures, folder)
    failures.finish()
