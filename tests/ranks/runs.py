"""Running `wpo` from tests: prepare data, train on some ranks, read what came out."""

import json
import os
import shutil
import subprocess
import sys
import tempfile


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


try:
    import h5py
    import numpy
    import tokenizers  # noqa: F401  (for wpo prepare)
except ImportError as error:
    skip(f"{error}; ./launcher/setup makes a .venv with what is needed")

BINARY = os.environ.get("WPO_BINARY") or ""
DATA = os.environ.get("WPO_TEST_DATA") or ""
if not os.path.exists(BINARY):
    skip("WPO_BINARY names no program")
if not os.path.isdir(DATA):
    skip("WPO_TEST_DATA names no folder of real inputs")
MODEL = os.path.join(DATA, "stories260K")


class Failures:
    """Counts what did not hold; a test ends with finish()."""

    def __init__(self):
        self.checks = 0
        self.failed = 0

    def check(self, holds, text):
        self.checks += 1
        print(("ok    " if holds else "FAIL  ") + text, flush=True)
        self.failed += not holds

    def finish(self):
        print(f"{self.checks} checks, {self.failed} failed")
        sys.exit(1 if self.failed or not self.checks else 0)


class Folder:
    """A temporary folder that is gone at the end."""

    def __init__(self):
        self.path = tempfile.mkdtemp(prefix="wpo-test-")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.path, ignore_errors=True)

    def __call__(self, *names):
        return os.path.join(self.path, *names)


def command(ranks, words):
    if ranks:
        return ["mpirun", "-q", "-n", str(ranks), BINARY] + words
    return [BINARY] + words


def run(ranks, *words, code=0, environment=None):
    """Runs wpo and insists on its exit code; gives back the finished process."""
    done = subprocess.run(command(ranks, [str(w) for w in words]), capture_output=True, text=True,
                          env={**os.environ, **(environment or {})})
    if done.returncode != code:
        raise SystemExit(f"wpo {' '.join(map(str, words))} on {ranks} ranks ended with {done.returncode}, not {code}:\n"
                         f"{done.stdout}\n{done.stderr}")
    return done


def prepare(rows, out, first=0, source="alpaca_pairs/train.jsonl", longest=256):
    """The first rows of a file of pairs, as a groups file."""
    lines = open(os.path.join(DATA, source), encoding="utf-8").read().splitlines()[first:first + rows]
    with open(out + ".jsonl", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    run(0, "prepare", "--model", MODEL, "--data", out + ".jsonl", "--out", out, "--max_length", longest)
    return out


DEFAULTS = {
    "loss_type": "sigmoid", "learning_rate": 3e-4, "lr_scheduler_type": "linear", "max_steps": 5,
    "per_device_train_batch_size": 2, "global_batch_size": 12, "logging_steps": 1, "save_strategy": "no", "threads": 1,
}


def train(ranks, groups, out, code=0, environment=None, **keys):
    """Trains, and gives back the training records of metrics.jsonl in order."""
    with open(out + ".yaml", "w") as file:
        for key, value in {**DEFAULTS, "model_name_or_path": MODEL, "train_file": groups, "output_dir": out,
                           **keys}.items():
            file.write(f"{key}: {json.dumps(value)}\n")
    run(ranks, "train", out + ".yaml", code=code, environment=environment)
    return records(out)


def records(out, marker="loss"):
    with open(os.path.join(out, "metrics.jsonl")) as file:
        return [r for r in map(json.loads, file) if marker in r]


TIMING = ("time", "tokens_per_second", "packed_tokens_per_second", "step_seconds", "memory/peak_gib")


def numbers(record):
    """A record without what may differ between two equal runs."""
    return {key: value for key, value in record.items() if key not in TIMING}


def tensors(out, step):
    """All of a checkpoint's arrays, by name."""
    found = {}
    with h5py.File(os.path.join(out, f"checkpoint-{step}", "master.h5")) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def same_bits(a, b):
    return a.keys() == b.keys() and all(numpy.array_equal(a[n].view(numpy.uint32), b[n].view(numpy.uint32)) for n in a)


def relative(a, b):
    """Largest relative difference of two lists of numbers."""
    return max(abs(x - y) / max(abs(x), abs(y), 1e-30) for x, y in zip(a, b))
