"""The rules of the tree, so that the drawing in the documentation cannot become false: an include never points up, and
each library has one door."""

import os
import re
import subprocess
import sys

ROOT = os.environ.get("WPO_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
FLOORS = {"kernels": 0, "runtime": 1, "launcher": 2}
DOORS = {  # a header: the only files that may include it
    "mpi.h": {"runtime/comm.c", "tests/cuda_on_cpu/nccl_on_mpi.c"},
    "nccl.h": {"runtime/nccl.c"},
    "hdf5.h": {"runtime/hdf.c"},
    "dnnl.h": {"kernels/cpu/gemm.c", "benchmarks/step.c"},  # the benchmark measures the library itself
    "cublasLt.h": {"kernels/cuda/gemm.cu"},
    "jansson.h": {"runtime/json.c"},
    "yaml.h": {"launcher/keyfile.c"},
    "openssl/": {"runtime/hash.c"},
}
WORDS = {"SLURM_": {"runtime/comm.c"}}

failures = []


def sources():
    for folder in ("kernels", "runtime", "launcher", "benchmarks", "tests"):
        for path, _, names in os.walk(os.path.join(ROOT, folder)):
            for name in names:
                if name.endswith((".c", ".h", ".cu", ".cuh")):
                    yield os.path.relpath(os.path.join(path, name), ROOT)


def check(holds, text):
    if not holds:
        failures.append(text)


def check_includes(path, text):
    floor = FLOORS.get(path.split("/")[0])
    for header in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', text, re.M):
        other = FLOORS.get(header.split("/")[0])
        if floor is not None and other is not None:
            check(other <= floor, f"{path} includes {header}, which is on a floor above it")
        for door, files in DOORS.items():
            known = header == door or (door.endswith("/") and header.startswith(door))
            check(not known or path in files, f"{path} includes {header}; only {', '.join(sorted(files))} may")


def check_length(path, text):
    if path.split("/")[0] in FLOORS:
        check(text.count("\n") <= 520, f"{path} has {text.count(chr(10))} lines; a file has one job and at most 520 lines")


def check_layout():
    known = {"kernels", "runtime", "launcher", "cluster", "tests", "benchmarks", "docs", ".ci"}
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    for name in done.stdout.splitlines():
        top = name.split("/")[0]
        check("/" not in name or top in known, f"{top}/ is a new top-level folder; it needs a decision record")


count = 0
for source in sources():
    count += 1
    content = open(os.path.join(ROOT, source), encoding="utf-8").read()
    check_includes(source, content)
    check_length(source, content)
    for word, files in WORDS.items():
        check(word not in content or source in files, f"{source} mentions {word}*; only {', '.join(files)} may")
check_layout()

# The check itself must be able to fail.
seen = len(failures)
check_includes("kernels/planted.c", '#include "runtime/model.h"\n#include <mpi.h>\n')
planted = len(failures) - seen
del failures[seen:]

for failure in failures:
    print("FAIL ", failure)
print(f"{count} files, {len(failures)} broken rules, {planted} of 2 planted ones found")
sys.exit(0 if not failures and planted == 2 and count > 50 else 1)
