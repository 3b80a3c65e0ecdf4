"""The program on the CUDA backend: the same numbers as on the CPU in float32, near them in bfloat16, the same bits twice.

Runs on a GPU where one is (WPO_GPU_BINARY names the program), and else on the emulation of tests/cuda_on_cpu, which runs
the same kernels thread by thread and is slow: fewer and shorter pairs, and fewer steps (WPO_STEPS: as many as one likes).
"""

import math
import os

import runs
from runs import Failures, Folder, numbers, prepare, relative, run, same_bits, skip, tensors, train

GPU = os.environ.get("WPO_GPU_BINARY") or ""
EMULATED = os.environ.get("WPO_EMULATED") or ""
CPU = runs.BINARY
CUDA = GPU or EMULATED
if not os.path.exists(CUDA):
    skip("neither WPO_GPU_BINARY nor WPO_EMULATED names a program")
SHORT = bool(os.environ.get("WPO_SHORT"))  # under sanitizers: once through everything, on two ranks
STEPS = int(os.environ.get("WPO_STEPS") or (50 if GPU else 2 if SHORT else 4))
PAIRS, LONGEST, BATCH = (24, 256, 12) if GPU else (3, 48, 3) if SHORT else (6, 72, 3)
ONE = {"per_device_train_batch_size": 2, "global_batch_size": BATCH, "max_steps": STEPS, "learning_rate": 1e-5,
       "device": "cuda"}

# float32: the sums of the two backends run in other orders, which is what another number of ranks does as well
# (test_training.py): 2e-5 of the loss over 5 steps, at a rate 30 times this one. AdamW carries differences on, linearly.
FLOAT = 2e-5 * max(1, STEPS / 5)

# bfloat16: a product rounds its result once, relatively by at most 2^-8, 2^-8 / sqrt(3) as a rule. Six products a layer, L = 5
# layers and their errors independent: sqrt(30) * 2^-8 / sqrt(3) = 1.2 % of a logit, 0.06 nats for logits of about 5. A
# completion's weight is the exponential of a mean of such errors, at most 3 of them (docs/numerics.md): 18 %. A pair has two
# completions, independent: sqrt(2) times that, and the loss is proportional to the pair's weight.
BFLOAT = 0.25


def on(binary, ranks, groups, out, **keys):
    runs.BINARY = binary
    try:
        return train(ranks, groups, out, **keys)
    finally:
        runs.BINARY = CPU


def distance(a, b):
    """Largest difference of two curves, relative to the loss or to its mean over the steps, whichever is larger: the relative
    error of a small loss is the absolute one of its margin, which the bound on the weight says nothing of."""
    mean = sum(a) / len(a)
    return max(abs(x - y) / max(x, y, mean) for x, y in zip(a, b))


def losses(records):
    return [r["loss"] for r in records]


def same(failures, folder, a, b, first, second, text):
    failures.check(list(map(numbers, first)) == list(map(numbers, second)), f"{text}: every number is equal")
    failures.check(same_bits(tensors(folder(a), STEPS), tensors(folder(b), STEPS)),
                   f"{text}: parameters and moments are equal bit for bit")


def test_float(failures, folder, groups):
    cpu = on(CPU, 1, groups, folder("cpu"), **{**ONE, "device": "cpu"})
    cuda = on(CUDA, 1, groups, folder("float"), dtype="float32", **ONE)
    far = relative(losses(cpu), losses(cuda))
    failures.check(far < FLOAT, f"float32: {STEPS} steps, loss as on the CPU, relative {far:.1e} of {FLOAT:.0e}")
    failures.check(cuda[0]["rewards/margins"] == 0, "float32: the margin at step 0 is exactly 0")
    if SHORT:
        return cpu, cuda
    again = on(CUDA, 1, groups, folder("float-again"), dtype="float32", **ONE)
    same(failures, folder, "float", "float-again", cuda, again, "float32, two runs")
    return cpu, cuda


def test_bfloat(failures, folder, groups, cpu):
    first = on(CUDA, 1, groups, folder("bfloat"), save_strategy="steps", save_steps=STEPS // 2, **ONE)
    far = distance(losses(cpu), losses(first))
    mean = abs(sum(losses(first)) / sum(losses(cpu)) - 1)
    failures.check(far < BFLOAT, f"bfloat16: {STEPS} steps, loss near the CPU's float32, relative {far:.1e} of {BFLOAT}, "
                   f"mean over the steps {mean:.1e}")
    failures.check(far > FLOAT, "bfloat16: it is not float32 in disguise")
    failures.check(first[0]["rewards/margins"] == 0, "bfloat16: the margin at step 0 is exactly 0")
    wanted = first[0]["weights/mean"] * math.log(2)
    failures.check(abs(first[0]["loss"] - wanted) <= 1e-12 * wanted, "bfloat16: the loss at step 0 is log 2 mean(w)")
    failures.check(first[-1]["loss"] != first[0]["loss"], "bfloat16: something is learned")
    if SHORT:
        return
    recomputed = on(CUDA, 1, groups, folder("recomputed"), gradient_checkpointing=True, **ONE)
    same(failures, folder, "bfloat", "recomputed", first, recomputed, "bfloat16, gradient_checkpointing")
    runs.shutil.copytree(folder("bfloat"), folder("resumed"))
    runs.shutil.rmtree(folder("resumed", f"checkpoint-{STEPS}"))
    resumed = on(CUDA, 1, groups, folder("resumed"), resume_from_checkpoint="auto", **ONE)
    same(failures, folder, "bfloat", "resumed", first, resumed, f"bfloat16, {STEPS} = {STEPS // 2} + {STEPS - STEPS // 2} steps")


def test_ranks(failures, folder, groups, one):
    if GPU:
        print("skipped: more than one rank needs more than one GPU")
        return
    devices = {"CUDA_ON_CPU_DEVICES": "4"}
    two = on(CUDA, 2, groups, folder("float-2"), dtype="float32", environment=devices, **ONE)
    far = relative(losses(one), losses(two))
    failures.check(far < FLOAT, f"float32: 2 ranks, loss as on one, relative {far:.1e}")
    if SHORT:
        return
    keys = {**ONE, "environment": devices}
    two = on(CUDA, 2, groups, folder("two"), **keys)
    three = on(CUDA, 3, groups, folder("three"), **keys)
    # A group's numbers do not depend on its neighbours, so step 0 is the same to the order of a mean of 3; gradients are
    # summed in f32 and the masters are f32: ranks differ by roundings of those, and now and then by the bf16 of a weight.
    failures.check(relative(losses(two)[:1], losses(three)[:1]) < 1e-14, "bfloat16: step 0 on 2 ranks and on 3")
    failures.check(relative(losses(two), losses(three)) < BFLOAT / 20, "bfloat16: 3 ranks, loss as on 2")
    plain = on(CUDA, 2, groups, folder("plain"), zero_stage=0, **keys)
    same(failures, folder, "two", "plain", two, plain, "bfloat16, 2 ranks, zero_stage 0")
    ordered = on(CUDA, 2, groups, folder("ordered"), gradient_reduction="ordered", **keys)
    failures.check(relative(losses(two), losses(ordered)) < BFLOAT / 20, "bfloat16: 2 ranks, ordered reduction")
    halves = on(CUDA, 2, groups, folder("halves"), gradient_dtype="bfloat16", moment_dtype="bfloat16", **keys)
    failures.check(relative(losses(two), losses(halves)) < BFLOAT, "bfloat16 gradients and moments, 2 ranks")


def test_devices(failures, folder, groups):
    """Every rank is told of device 0 and sees another one there, as tasks of Slurm do; and two that see the same one."""
    if GPU:
        return
    with open(folder("devices.yaml"), "w", encoding="utf-8") as file:
        for key, value in {**runs.DEFAULTS, **ONE, "model_name_or_path": runs.MODEL, "train_file": groups,
                           "output_dir": folder("devices"), "max_steps": 1, "overwrite_output_dir": True}.items():
            file.write(f"{key}: {runs.json.dumps(value)}\n")
    for second, code in ((1, 0), (0, 1)):
        words = ["mpirun", "-q"]
        for first in (0, second):
            words += ["-n", "1", "-x", "CUDA_VISIBLE_DEVICES=0", "-x", f"CUDA_ON_CPU_FIRST={first}",
                      CUDA, "train", folder("devices.yaml"), ":"]
        done = runs.subprocess.run(words[:-1], capture_output=True, text=True)
        failures.check(done.returncode == code and ("2 ranks" in done.stderr and "1 GPU:" in done.stderr) == bool(code),
                       f"ranks that see devices 0 and {second} as 0: exit code {done.returncode}: {done.stderr[-160:].strip()}")


def sentence(failures, folder, groups, name, words, environment, ranks=1, **keys):
    with open(folder(name + ".yaml"), "w", encoding="utf-8") as file:
        for key, value in {**runs.DEFAULTS, **ONE, "model_name_or_path": runs.MODEL, "train_file": groups,
                           "output_dir": folder(name), **keys}.items():
            file.write(f"{key}: {value}\n")
    runs.BINARY = CUDA
    done = run(ranks, "train", folder(name + ".yaml"), code=1, environment=environment)
    runs.BINARY = CPU
    lines = [line for line in done.stderr.splitlines() if line.startswith("wpo")]
    told = all(word in done.stderr for word in words)
    failures.check(told and len(lines) == 1, f"{name}: one sentence: {done.stderr.strip()[-200:]}")


def test_bad(failures, folder, groups):
    if GPU:
        sentence(failures, folder, groups, "crowded", ["2 ranks", "GPU", "device: cpu"], {"CUDA_VISIBLE_DEVICES": "0"}, ranks=2)
        sentence(failures, folder, groups, "hidden", ["device: cuda", "device: cpu"], {"CUDA_VISIBLE_DEVICES": "-1"})
        return
    sentence(failures, folder, groups, "no-device", ["device: cuda", "device: cpu"], {"CUDA_ON_CPU_DEVICES": "0"})
    sentence(failures, folder, groups, "crowded", ["3 ranks", "2 GPUs", "device: cpu"], {"CUDA_ON_CPU_DEVICES": "2"}, ranks=3)
    # The last transfer of a resumed run's parameters (a bucket each for embedding, 5 layers, norm) fails, and nothing comes after.
    runs.shutil.copytree(folder("float-2"), folder("unwatched"))
    sentence(failures, folder, groups, "unwatched", ["NCCL reports", "parameter exchange"],
             {"CUDA_ON_CPU_DEVICES": "2", "CUDA_ON_CPU_NCCL_FAIL": "7"}, ranks=2, resume_from_checkpoint="auto", dtype="float32")
    sentence(failures, folder, groups, "no-memory", ["MiB", "per_device_train_batch_size"],
             {"CUDA_ON_CPU_MEMORY": str(66 << 20)}, per_device_train_batch_size=6)


with Folder() as folder:
    failures = Failures()
    groups = prepare(PAIRS, folder("groups.h5"), longest=LONGEST)
    cpu, one = test_float(failures, folder, groups)
    test_bfloat(failures, folder, groups, cpu)
    test_ranks(failures, folder, groups, one)
    test_devices(failures, folder, groups)
    test_bad(failures, folder, groups)
    failures.finish()
