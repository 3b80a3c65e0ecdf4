"""What the tests of this folder share: checks that are counted, visible skips, another interpreter, other programs."""

import importlib.util
import os
import subprocess
import sys

DATA, BINARY, BUILD = (os.environ.get(name, "") for name in ("WPO_TEST_DATA", "WPO_BINARY", "WPO_BUILD"))
TOOL = os.path.join(BUILD, "tests", "tool_gradients")

failures = []


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


def check(condition, message):
    if not condition:
        failures.append(message)
        print("FAILED:", message)


def finish(missing=None):
    """Ends the test: with the failures; or, where all that ran passed, as skipped for what could not run."""
    if failures:
        sys.exit(f"{len(failures)} checks failed")
    if missing:
        skip(missing)
    sys.exit(0)


def find_packages(*names):
    """Goes on in WPO_PEER_PYTHON if this interpreter lacks the packages; skips if none has them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return
    other = os.environ.get("WPO_PEER_PYTHON")
    if not other or os.environ.get("WPO_PEER_TRIED"):
        skip(f"{sys.executable} lacks {', '.join(missing)}; WPO_PEER_PYTHON may name an interpreter that has them")
    os.environ["WPO_PEER_TRIED"] = "1"
    os.execv(other, [other, os.path.abspath(sys.argv[0])])


def errors_file(name):
    """Where a test leaves the errors that it measured, for table_objectives.py; what an earlier run left is removed."""
    path = os.path.join(BUILD, f"objectives-{name}.json")
    if os.path.exists(path):
        os.remove(path)
    return path


def run(*words, ranks=0, folder=None):
    """What a program prints; ends the test when it fails. ranks > 0: under mpirun."""
    launched = (["mpirun", "-n", str(ranks)] if ranks else []) + [str(word) for word in words]
    done = subprocess.run(launched, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-4000:])
        sys.exit(f"{' '.join(launched)}: exit code {done.returncode}")
    return done.stdout


def run_alone(*words, session):
    """Exit code, standard output and the end of all output of a program on small inputs: threads would wait for each
    other, and MPI needs no helper process of its own; but several without one must not share a session folder."""
    os.makedirs(session, exist_ok=True)
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_MCA_ess_singleton_isolated": "1",
             "OMPI_MCA_orte_tmpdir_base": session}
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          env=alone)
    return done.returncode, done.stdout, (done.stderr + done.stdout)[-600:]
