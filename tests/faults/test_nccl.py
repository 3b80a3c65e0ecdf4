"""Faults of the library between GPUs, on the emulated device: an error that it reports, and a collective that never ends,
end the run in time with a sentence that says in what, and leave nothing."""

import os
import re
import subprocess
import sys
import time

BUILD = os.environ.get("WPO_BUILD") or ""
VICTIM = os.path.join(BUILD, "tests", "emulated_test_ranks_exchange")
if not os.path.exists(VICTIM):
    print("skipped: WPO_BUILD names no build folder with tests/emulated_test_ranks_exchange")
    sys.exit(77)

RANKS = 3
WAIT = 10  # seconds, in test_exchange.c
checks = failed = 0


def check(holds, text):
    global checks, failed
    checks += 1
    failed += not holds
    print(("ok    " if holds else "FAIL  ") + text, flush=True)


def run(**environment):
    """The victim's exit code, its sentences, and how long it took. mpirun waits for all ranks, so that none is left."""
    begun = time.monotonic()
    done = subprocess.run(["mpirun", "-q", "-n", str(RANKS), VICTIM], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL,
                          env={**os.environ, "WPO_TEST_BACKEND": "cuda", "CUDA_ON_CPU_DEVICES": str(RANKS),
                               "OMPI_MCA_mpi_yield_when_idle": "1", **environment})
    sentences = [line for line in done.stderr.splitlines() if line.startswith("wpo: ")]
    return done.returncode, sentences, time.monotonic() - begun


def error(number):
    code, sentences, seconds = run(CUDA_ON_CPU_NCCL_FAIL=str(number))
    check(code == 1 and seconds < WAIT, f"error in collective {number}: exit code {code} is 1, after {seconds:.1f} s")
    pattern = (r"^wpo: rank 2 on \S+: NCCL reports: remote process exited or there was a network error .* "
               r"in (gradient reduction|parameter exchange|gathering of norms) or just before it \(collective (\d+) of ")
    match = re.search(pattern, sentences[0]) if len(sentences) == 1 else None
    check(match is not None, f"error in collective {number}: one sentence says so: {sentences}")
    if match:
        # Seen when the next collective is queued, or at the end of the step if that comes first.
        check(number <= int(match.group(2)) <= number + 1, f"error in collective {number}: noticed at {match.group(2)}")


def hang(number):
    code, sentences, seconds = run(CUDA_ON_CPU_NCCL_HANG=str(number))
    check(code == 1 and WAIT <= seconds < 2 * WAIT,
          f"hang in collective {number}: exit code {code} is 1, after {seconds:.1f} s")
    pattern = r"^wpo: .*( stuck \(last seen in: |in the same collective for 1\d s without an end: )gradient reduction"
    check(len(sentences) == 1 and re.search(pattern, sentences[0]) is not None,
          f"hang in collective {number}: one sentence says so: {sentences}")


code, sentences, _ = run()
check(code == 0 and not sentences, f"without a fault all is well: {code}: {sentences}")
for n in (1, 3, 7, 8, 60, 333):
    error(n)
hang(2)
print(f"{checks} checks, {failed} failed")
sys.exit(1 if failed else 0)
