"""Training gives the same numbers whatever the ranks, the micro-batches, the memory mode, or a stop in between."""

import math
import os
import shutil

from runs import Failures, Folder, numbers, prepare, records, relative, same_bits, tensors, train

# One step's loss is a mean over 12 pairs of float32 log-probabilities of up to 250 tokens: each has a relative rounding
# error of some 1e-6, and beta * margin inherits it. Another number of ranks adds the same gradients in another order
# (relative error 2^-24 times a few), and 5 steps at this rate move the loss by about 1 %. 2e-5 covers both with room;
# a wrong scale, a lost rank or a lost micro-batch is wrong by 10 % and more.
ROUNDING = 2e-5


def losses(run):
    return [r["loss"] for r in run]


def norms(run):
    return [r["grad_norm"] for r in run]


def same_curve(a, b):
    return relative(losses(a), losses(b)) < ROUNDING and relative(norms(a), norms(b)) < 50 * ROUNDING


SHORT = bool(os.environ.get("WPO_SHORT"))  # under sanitizers: the same code paths, fewer of them


def test_ranks(failures, folder, groups):
    runs = {r: train(r, groups, folder(f"ranks-{r}")) for r in ((1, 2) if SHORT else (1, 2, 3, 4))}
    for r, run in runs.items():
        first = run[0]
        failures.check(first["rewards/margins"] == 0, f"{r} ranks: the margin at step 0 is exactly 0")
        wanted = first["weights/mean"] * math.log(2)
        failures.check(abs(first["loss"] - wanted) <= 4e-16 * 12 * wanted,
                       f"{r} ranks: the loss at step 0 is log 2 times the mean weight ({first['loss']:.8g})")
        failures.check(run[-1]["loss"] != first["loss"], f"{r} ranks: something is learned")
        failures.check(same_curve(runs[1], run),
                       f"{r} ranks: loss as on one, relative {relative(losses(runs[1]), losses(run)):.1e}, "
                       f"norm {relative(norms(runs[1]), norms(run)):.1e}")
    again = train(2, groups, folder("again"), save_strategy="no")
    failures.check(list(map(numbers, again)) == list(map(numbers, runs[2])), "two runs on 2 ranks: every number is equal")
    failures.check(same_bits(tensors(folder("again"), 5), tensors(folder("ranks-2"), 5)),
                   "two runs on 2 ranks: parameters and moments are equal bit for bit")


def test_modes(failures, folder, groups):
    base = train(2, groups, folder("base"))
    small = train(2, groups, folder("small"), per_device_train_batch_size=1)
    failures.check(same_curve(base, small), f"micro-batches of 1: {relative(losses(base), losses(small)):.1e}")
    derived = train(2, groups, folder("derived"), global_batch_size=0, per_device_train_batch_size=3,
                    gradient_accumulation_steps=2)
    failures.check(same_curve(base, derived), "3 pairs a device, 2 accumulation steps, 2 ranks: the same batch of 12")
    whole = train(2, groups, folder("whole"), global_batch_size=0, per_device_train_batch_size=6)
    failures.check(same_curve(base, whole), "6 pairs a device and no accumulation: the same batch of 12")
    for name, keys in {"gradient_checkpointing": {"gradient_checkpointing": True}, "zero_stage 0": {"zero_stage": 0},
                       "two threads": {"threads": 2}}.items():
        other = train(2, groups, folder(name.replace(" ", "-")), **keys)
        failures.check(list(map(numbers, other)) == list(map(numbers, base)), f"{name}: every number is equal")
        failures.check(same_bits(tensors(folder(name.replace(" ", "-")), 5), tensors(folder("base"), 5)),
                       f"{name}: parameters and moments are equal bit for bit")
    # 1 MiB holds 512 rows of logits; the longest pair of the batch has more, so it is cut and computed twice.
    chunks = train(2, groups, folder("chunks"), logits_megabytes=1)
    failures.check(same_curve(base, chunks), f"small logits chunks: {relative(losses(base), losses(chunks)):.1e}")


def keep_until(source, step, copy):
    """Makes `copy` of a run as if it had stopped after a step: later checkpoints are gone."""
    shutil.copytree(source, copy)
    for name in os.listdir(copy):
        if name.startswith("checkpoint-") and int(name.split("-")[1]) > step:
            shutil.rmtree(os.path.join(copy, name))
    return copy


def test_resume(failures, folder, groups):
    keys = {"max_steps": 20, "save_strategy": "steps", "save_steps": 10}
    straight = train(4, groups, folder("straight"), **keys)
    copy = keep_until(folder("straight"), 10, folder("four"))
    resumed = train(4, groups, copy, resume_from_checkpoint="auto", **keys)
    failures.check(list(map(numbers, resumed)) == list(map(numbers, straight)) and len(resumed) == 20,
                   "20 steps = 10 steps, stop, resume, 10 steps: every number is equal")
    failures.check(same_bits(tensors(copy, 20), tensors(folder("straight"), 20)),
                   "20 steps = 10 + 10: parameters and moments are equal bit for bit")
    two = train(2, groups, keep_until(folder("straight"), 10, folder("two")), resume_from_checkpoint="auto", **keys)
    failures.check(len(two) == 20 and same_curve(straight, two),
                   f"saved on 4 ranks, resumed on 2: {relative(losses(straight), losses(two)):.1e}")


def test_overfit(failures, folder):
    groups = prepare(8, folder("eight.h5"), longest=512)
    run = train(2, groups, folder("overfit"), global_batch_size=8, max_steps=60, learning_rate=2e-3,
                weighting="none", per_device_train_batch_size=4)
    failures.check(run[-1]["rewards/accuracies"] == 1.0 and run[-1]["rewards/margins"] > 1,
                   f"8 real pairs: accuracy {run[-1]['rewards/accuracies']}, margin {run[-1]['rewards/margins']:.2f}")


with Folder() as folder:
    failures = Failures()
    groups = prepare(40, folder("pairs.h5"))
    test_ranks(failures, folder, groups)
    test_modes(failures, folder, groups)
    if not SHORT:
        test_resume(failures, folder, groups)
        test_overfit(failures, folder)
    failures.finish()
