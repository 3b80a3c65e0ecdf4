"""The watchdog: a rank that is stopped, or does not come, ends the run in time with one sentence that names it, and
nothing is left behind; slow ranks, short stops and strangers do not disturb a healthy run."""

import concurrent.futures
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

BUILD = os.environ.get("WPO_BUILD") or ""
TOOL = os.path.join(BUILD, "tests", "tool_watch")
if not os.path.exists(TOOL):
    print("skipped: WPO_BUILD names no build folder with tests/tool_watch")
    sys.exit(77)

SECONDS = 2.0  # the watchdog's limit; a faulty run must end within twice that
REPETITIONS = 20
ENVIRONMENT = {**os.environ, "OMPI_MCA_mpi_yield_when_idle": "1"}
HOST = socket.gethostname()

checks = failed = 0


def check(holds, text):
    global checks, failed
    checks += 1
    failed += not holds
    if not holds:
        print("FAIL ", text, flush=True)


class Job:
    """tool_watch on some ranks; knows their processes."""

    def __init__(self, ranks, life, *mode, seconds=SECONDS, pids=True, **environment):
        self.ranks = ranks
        words = ["mpirun", "-q", "-n", str(ranks), TOOL, str(seconds), str(life)] + [str(m) for m in mode]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        stdin=subprocess.DEVNULL, env={**ENVIRONMENT, **environment})
        self.pids = [int(self.process.stdout.readline().split()[2]) for _ in range(ranks)] if pids else []

    def send(self, rank, number):
        os.kill(self.pids[rank], number)
        return time.monotonic()

    def end(self, timeout=30):
        """Its exit code, what it said on stderr, and when it ended."""
        errors = self.process.communicate(timeout=timeout)[1]
        return self.process.returncode, errors.strip(), time.monotonic()

    def alive(self):
        """Processes of the job that still run or are stopped; one that only waits to be buried is dead."""
        left = []
        for pid in self.pids:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    state = file.read().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state not in "ZX":
                left.append(pid)
        return left


def check_end(name, job, begun, pattern, limit=2 * SECONDS):
    """The job ends in time, with 1 and with one sentence, and leaves nothing."""
    code, errors, ended = job.end()
    check(code == 1, f"{name}: exit code {code} is 1")
    check(ended - begun <= limit, f"{name}: ended after {ended - begun:.2f} s, at most {limit} s")
    sentences = [line for line in errors.splitlines() if line.startswith("wpo: ")]
    check(len(sentences) == 1, f"{name}: one sentence, not {len(sentences)}: {errors}")
    check(re.search(pattern, errors) is not None, f"{name}: {pattern!r} is in {errors!r}")
    deadline = time.monotonic() + 1
    while job.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    check(not job.alive(), f"{name}: processes {job.alive()} are left")
    return ended - begun


def stop_one(number):
    """A stopped rank, each in turn, at a moment that chance chooses: after its first report, which takes 0.25 s."""
    ranks = 3 + number % 2
    rank = number // 2 % ranks
    job = Job(ranks, 60, "run")
    time.sleep(random.Random(number).uniform(0.3, 1))
    begun = job.send(rank, signal.SIGSTOP)
    return check_end(f"stop {number} (rank {rank} of {ranks})", job, begun,
                     rf"^wpo: rank {rank} on {HOST} has not answered for [2-3] s \(last seen (in|after): minimum of metrics")


def stay_away(number):
    """A rank that lives and does not come; it leaves at its 20th sum."""
    ranks = 3 + number % 2
    rank = number // 2 % ranks
    job = Job(ranks, 60, "away", rank)
    begun = time.monotonic()
    return check_end(f"away {number} (rank {rank} of {ranks})", job, begun,
                     rf"^wpo: rank {rank} on {HOST} is stuck \(last seen after: minimum of metrics, number \d+\): "
                     rf".* waited for [2-3] s in: minimum of metrics, number \d+;", limit=2 * SECONDS + 0.5)


def stop_two_hubs():
    """Ranks 0 and 1 are those that judge; without them another must."""
    job = Job(4, 60, "run")
    job.send(1, signal.SIGSTOP)
    begun = job.send(0, signal.SIGSTOP)
    check_end("two judges stopped", job, begun, rf"^wpo: rank 0 on {HOST} has not answered for 3 s")


def hang_together():
    job = Job(3, 60, "hang")
    begun = time.monotonic()
    check_end("all hang", job, begun, r"^wpo: all 3 ranks have been in the same collective for 2 s .*: a test of patience",
              limit=2 * SECONDS + 0.5)


# -- what must not end a run ----------------------------------------------------------------------


def check_healthy(name, job):
    code, errors, _ = job.end()
    check(code == 0 and errors == "", f"{name}: undisturbed, not {code}: {errors}")


def slow_rank():
    check_healthy("slow rank 1", Job(3, 5, "slow", 1))


def slow_judge():
    check_healthy("slow rank 0", Job(3, 5, "slow", 0))


def short_stop():
    job = Job(3, 4, "run")
    for rank in (1, 0):
        job.send(rank, signal.SIGSTOP)
        time.sleep(0.6 * SECONDS)
        job.send(rank, signal.SIGCONT)
        time.sleep(0.3)
    check_healthy("short stops", job)


def suspended():
    """The whole job is stopped for longer than the limit, as batch systems do, and goes on."""
    job = Job(3, 6, "run")
    time.sleep(0.5)
    for rank in range(3):
        job.send(rank, signal.SIGSTOP)
    time.sleep(1.7 * SECONDS)
    for rank in (1, 2, 0):
        job.send(rank, signal.SIGCONT)
    check_healthy("suspended job", job)


def without():
    """With a limit of 0 there is no watchdog: a stop that it would not survive changes nothing."""
    job = Job(3, 1, "run", seconds=0)
    job.send(2, signal.SIGSTOP)
    time.sleep(1.5)
    job.send(2, signal.SIGCONT)
    check_healthy("no watchdog", job)


# -- the network ----------------------------------------------------------------------------------


def listeners(pids):
    """Ports on which these processes listen: (address, port)."""
    inodes = set()
    for pid in pids:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                match = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
                inodes |= {match.group(1)} if match else set()
        except OSError:
            pass
    found = []
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in inodes:
            address, port = words[1].split(":")
            found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def strangers():
    """While ranks gather, others knock: with nonsense, with a wrong token, in silence. Nobody of them is let in, and
    afterwards the door is closed."""
    job = Job(3, 3, "run", pids=False, TOOL_LATE="2")
    doors, deadline = [], time.monotonic() + 10
    while len(doors) < 2 and time.monotonic() < deadline:
        doors = listeners(children(job.process.pid))
        of_launcher = listeners([job.process.pid])  # which a rank still holds while it starts
        doors = [door for door in doors if door not in of_launcher]
        time.sleep(0.02)
    check(len(doors) == 2 and all(address == "127.0.0.1" for address, _ in doors),
          f"two ranks listen, on the loopback alone: {doors}")
    knocks = []
    for address, port in doors:
        for words in (b"GET / HTTP/1.0\r\n\r\n" * 3, bytes(16) + (2).to_bytes(4, "little"), b""):
            knock = socket.create_connection((address, port), timeout=5)
            knock.sendall(words)
            knocks.append(knock)
    job.pids = [int(job.process.stdout.readline().split()[2]) for _ in range(3)]
    for knock in knocks:
        try:
            answer = knock.recv(1)
        except ConnectionResetError:
            answer = b""
        check(answer == b"", f"a stranger is turned away, not told {answer!r}")
        knock.close()
    check(not listeners(job.pids), f"nobody listens any more: {listeners(job.pids)}")
    check_healthy("strangers", job)


def interfaces():
    check_healthy("WPO_INTERFACE=lo", Job(3, 0.3, "run", TOOL_APART="1", WPO_INTERFACE="lo"))
    code, errors, _ = Job(3, 0.3, "run", pids=False, TOOL_APART="1", WPO_INTERFACE="nope0").end()
    check(code == 1 and "WPO_INTERFACE names nope0, and this host has no such network interface" in errors,
          f"an interface that is not there: {code}: {errors}")


with concurrent.futures.ThreadPoolExecutor(2) as pool:
    stops = list(pool.map(stop_one, range(REPETITIONS)))
    aways = list(pool.map(stay_away, range(8)))
print(f"stopped: the run ended after {min(stops):.2f} to {max(stops):.2f} s; away: {min(aways):.2f} to {max(aways):.2f} s")
for test in (stop_two_hubs, hang_together, slow_rank, slow_judge, short_stop, suspended, without, strangers, interfaces):
    test()
print(f"{checks} checks, {failed} failed")
sys.exit(1 if failed or not checks else 0)
