"""Storage that fails, and kills in the middle of a save. strace makes the n-th system call of each kind that a save
consists of fail, or ends the process there, for every n that occurs. Whatever happens: the older checkpoint loads, the new
one is whole or not there, a failed save leaves nothing behind, and the next save works. Then the master file is read by
h5py, and `wpo inspect` tells good folders from damaged ones."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

import h5py
import numpy as np

BUILD = os.environ.get("WPO_BUILD", "")
WPO = os.environ.get("WPO_BINARY", "")
PROGRAM = os.path.join(BUILD, "tests", "test_ranks_checkpoint")
ENV = {**os.environ, "OMPI_MCA_ess_singleton_isolated": "1"}

# Calls of our own: what MPI does before the save is told apart by the path.
KILLED = ("mkdir", "write", "fsync", "renameat2", "unlinkat")
FAILED = (("mkdir", "ENOSPC"), ("mkdir", "EROFS"), ("write", "ENOSPC"), ("write", "EIO"), ("write", "EDQUOT"), ("fsync", "EIO"), ("renameat2", "EIO"))

failures = 0
trials = 0


def check(condition, what):
    global failures
    if not condition:
        failures += 1
        print(f"FAIL {what}")


def program(*words, prefix=()):
    return subprocess.run([*prefix, PROGRAM, *map(str, words)], capture_output=True, text=True, env=ENV, timeout=120)


def loaded(run):
    result = program("load", run)
    return int(result.stdout.split()[-1]) if result.returncode == 0 else f"exit {result.returncode}: {result.stderr}"


def traced(run, step, call, action, n):
    """One save with one fault; paths restrict it to the run folder. Returns the result and whether the fault came."""
    log = run + ".strace"
    part = os.path.join(run, f"checkpoint-{step}.part")
    paths = [run, part, part[:-5]] + [os.path.join(part, name) for name in ("shard-00000-of-00001.h5", "master.h5", "manifest.json")]
    prefix = ["strace", "-qq", "-f", "-o", log, "-e", f"trace={call}", "-e", f"inject={call}:{action}:when={n}"]
    for path in paths:
        prefix += ["-P", path]
    result = program("save", run, step, prefix=prefix)
    text = open(log).read()
    os.unlink(log)
    return result, "(INJECTED)" in text or "killed by SIGKILL" in text


def sweep(run, call, action, kill):
    """Returns the number of places where the fault struck."""
    global trials
    for n in range(1, 40):
        if call == "unlinkat":  # a save removes what an earlier one left
            stale = os.path.join(run, "checkpoint-2.part")
            os.mkdir(stale)
            for name in ("shard-00000-of-00001.h5", "master.h5"):
                open(os.path.join(stale, name), "w").close()
        result, struck = traced(run, 2, call, action, n)
        if not struck:
            check(result.returncode == 0, f"{call} {action} {n}: no fault, but {result.stderr}")
            shutil.rmtree(os.path.join(run, "checkpoint-2"), ignore_errors=True)
            return n - 1
        trials += 1
        name = f"{call} {action} at {n}"
        step = loaded(run)
        committed = os.path.exists(os.path.join(run, "checkpoint-2"))
        check(step == (2 if committed else 1), f"{name}: step {step} is loaded")
        if not kill:
            # The fsync of the run folder comes after the rename: the save says no, and what stands there is whole.
            check(result.returncode == 1, f"{name}: exit {result.returncode}")
            check(result.stderr.count("\n") == 1 and run in result.stderr, f"{name}: {result.stderr!r}")
            check(not glob.glob(os.path.join(run, "*.part")), f"{name}: a .part folder is left")
        shutil.rmtree(os.path.join(run, "checkpoint-2"), ignore_errors=True)
        if kill:  # the leftovers do not stand in the way of the next save
            again = program("save", run, 2)
            check(again.returncode == 0 and loaded(run) == 2, f"{name}: the next save fails: {again.stderr}")
            check(not glob.glob(os.path.join(run, "*.part")), f"{name}: a .part folder is left by the next save")
            shutil.rmtree(os.path.join(run, "checkpoint-2"))
    check(False, f"{call} {action}: no end")
    return 0


def faults(run):
    if not shutil.which("strace") or subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode:
        print("skipped: the fault sweep needs strace")
        return
    for call in KILLED:
        places = sweep(run, call, "signal=KILL", True)
        print(f"killed in {call}: {places} places")
        # Shard, master, manifest, their folder, the run folder: a dropped fsync shows here.
        check(places == {"write": 3, "fsync": 5}.get(call, places or 1), f"{call}: {places} places")
    for call, error in FAILED:
        places = sweep(run, call, f"error={error}", False)
        print(f"{call} fails with {error}: {places} places")
        check(places > 0, f"{call}: no place was hit")


SHAPES = {"embed.weight": (7, 13), "norm.weight": (5,), "up.weight": (3, 65), "head.weight": (6, 1)}


def views(run):
    """The master's tensors are the shards' pieces, in their places."""
    folder = os.path.join(run, "checkpoint-1")
    with h5py.File(os.path.join(folder, "master.h5")) as file:
        for kind in ("parameter", "moment", "variance"):
            check(set(file[kind]) == set(SHAPES), f"master has {list(file[kind])}")
            for name, shape in SHAPES.items():
                tensor = file[f"{kind}/{name}"]
                check(tensor.shape == shape and tensor.is_virtual, f"{name} has shape {tensor.shape}")
                whole = np.full(int(np.prod(shape)), np.nan, "f4")
                for path in sorted(glob.glob(os.path.join(folder, "shard-*.h5"))):
                    with h5py.File(path) as shard:
                        for key, piece in shard.get(kind, {}).items():
                            if key.rsplit(":", 1)[0] != name:
                                continue
                            offset = int(piece.attrs["offset"])
                            check(piece.fletcher32 and tuple(piece.attrs["shape"]) == shape, f"{key} in {path}")
                            whole[offset : offset + len(piece)] = piece[:]
                check(np.array_equal(whole.reshape(shape).view("u4"), tensor[:].view("u4")), f"{kind} {name} differs")


def split_views(folder):
    """The same for a checkpoint of three ranks, whose borders fall inside rows."""
    run = os.path.join(folder, "three")
    os.mkdir(run)
    result = program("save", run, 1, prefix=("mpirun", "-n", "3"))
    if result.returncode:
        check(False, f"save on three ranks: {result.stderr}")
        return
    views(run)
    shards = len(glob.glob(os.path.join(run, "checkpoint-1", "shard-*")))
    check(shards == 3, f"{shards} shards")
    check(program("load", run, prefix=("mpirun", "-n", "2")).stdout.count("step 1") == 2, "load on two ranks")


def inspect(path, *options):
    return subprocess.run([WPO, "inspect", path, *options], capture_output=True, text=True, timeout=60)


def inspections(run):
    if not WPO or not os.path.exists(WPO):
        print("skipped: WPO_BINARY is not built")
        return
    program("save", run, 2)
    folder = os.path.join(run, "checkpoint-2")
    result = inspect(folder, "--json")
    page = json.loads(result.stdout) if result.returncode == 0 else {}
    check(page.get("verified") is True and page.get("step") == 2 and page.get("world") == 1, f"inspect: {result.stderr}")
    check({t["name"]: tuple(t["shape"]) for t in page.get("tensors", [])} == SHAPES, f"inspect: tensors {page.get('tensors')}")
    result = inspect(run)
    check(result.returncode == 0 and result.stdout.count("verified: step") == 2, f"inspect run: {result.stdout}{result.stderr}")
    master = os.path.join(folder, "master.h5")
    data = bytearray(open(master, "rb").read())
    data[len(data) // 2] ^= 1
    open(master, "wb").write(data)
    result = inspect(folder)
    check(result.returncode == 1 and not result.stdout and "master.h5" in result.stderr and result.stderr.count("\n") == 1, f"inspect damaged: {result}")
    result = inspect(run, "--json")
    page = json.loads(result.stdout)
    check(result.returncode == 1 and [c["verified"] for c in page["checkpoints"]] == [True, False], f"inspect run: {result}")
    check(re.search("1 of 2 checkpoints do not verify", result.stderr), f"inspect run: {result.stderr}")
    os.rename(os.path.join(folder, "manifest.json"), os.path.join(folder, "manifest"))
    check(inspect(folder).returncode == 1, "inspect without a manifest")


def main():
    if not os.path.exists(PROGRAM):
        print("skipped: test_ranks_checkpoint is not built")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(os.path.realpath(folder), "run")
        os.mkdir(run)
        first = program("save", run, 1)
        check(first.returncode == 0 and loaded(run) == 1, f"the first save: {first.stderr}")
        views(run)
        split_views(folder)
        faults(run)
        check(loaded(run) == 1, "the first checkpoint after all faults")
        inspections(run)
    print(f"{trials} faults, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
