"""The groups file: the same bytes whatever the processes and the day; format, hash, full disk, interruption."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

import fixtures
import h5py
import pyarrow
import pyarrow.parquet
from fixtures import BOS_TEMPLATE, assistant, user

from text.errors import BadInput
from text.groups_file import Groups

WORDS = ["the", "sky", " is", "blue", "straße", "\n", "hello", "?", "é😀", "three", "."]


def rows_of(seed, count):
    dice = random.Random(seed)

    def speak():
        return " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 12)))

    return [
        {"prompt": [user(f"{index} {speak()}")], "chosen": [assistant(speak())], "rejected": [assistant(speak())],
         "score_chosen": index, "score_rejected": None}
        for index in range(count)
    ]  # fmt: skip


def read(path):
    with open(path, "rb") as file:
        return file.read()


def set_up(folder, count):
    model = fixtures.write_model(
        os.path.join(folder, "model"), fixtures.fallback_tokenizer(), template=BOS_TEMPLATE
    )
    rows = rows_of(7, count)
    return model, rows, fixtures.write_rows(os.path.join(folder, "rows.jsonl"), rows)


def convert(model, data, out, *options):
    code, text, errors = fixtures.prepare(model, data, out, *options)
    assert code == 0, errors
    return text


def test_same_bytes(folder):
    model, rows, data = set_up(folder, 700)  # several chunks, the last one short
    one = os.path.join(folder, "rows.h5")
    convert(model, data, one, "--num_proc", 1, "--max_length", 40)
    reference = read(one)
    time.sleep(1.1)  # a time stamp of a second would show
    for processes in (1, 2, 5):
        convert(model, data, one, "--num_proc", processes, "--max_length", 40, "--overwrite")
        assert read(one) == reference, processes
    groups = Groups(one)
    assert groups.rows == sorted(groups.rows) and 0 < len(groups) < 700
    # A row's group does not depend on its neighbours: each is found again, in place, when converted in a small file.
    for row in random.Random(1).sample(groups.rows, 5):
        alone = os.path.join(folder, f"{row}.h5")
        convert(
            model,
            fixtures.write_rows(os.path.join(folder, "one.jsonl"), [rows[row]]),
            alone,
            "--max_length",
            40,
        )
        have, want = Groups(alone), groups.rows.index(row)
        assert have.prompts[0] == groups.prompts[want] and have.completions[0] == groups.completions[want]
        assert groups.scores[want][0] == row and groups.scores[want][1] != groups.scores[want][1]


def test_files_and_formats_agree(folder):
    model, rows, data = set_up(folder, 300)
    parquet = os.path.join(folder, "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet, row_group_size=77)
    first = fixtures.write_rows(os.path.join(folder, "first.jsonl"), rows[:131])
    second = fixtures.write_rows(os.path.join(folder, "second.jsonl"), rows[131:])
    results = []
    for source in ([data], [parquet], [first, second]):
        out = os.path.join(folder, "out.h5")
        convert(model, source, out, "--overwrite")
        groups = Groups(out)
        results.append((groups.rows, groups.prompts, groups.completions, groups.summary))
        want = hashlib.sha256(b"".join(read(path) for path in source)).hexdigest()
        assert groups.attributes["source_sha256"] == want
        assert groups.attributes["source"] == ", ".join(os.path.basename(path) for path in source)
    assert results[0] == results[1] == results[2]
    convert(model, [first, second], out, "--overwrite", "--max_samples", 150)
    assert Groups(out).rows == results[0][0][:150]


def test_format(folder):
    model, _, data = set_up(folder, 20)
    path = os.path.join(folder, "rows.h5")
    convert(model, data, path)
    raw = read(path)
    head = f"wpo-groups 1 sha256={hashlib.sha256(raw[512:]).hexdigest()} bytes={len(raw)}\n".encode()
    assert raw[:512] == head + bytes(512 - len(head))
    with h5py.File(path) as file:
        assert file.userblock_size == 512
        kinds = {"/prompt/tokens": "i4", "/prompt/offset": "i8", "/completion/tokens": "i4", "/completion/offset": "i8",
                 "/completion/score": "f4", "/group/first": "i8", "/group/row": "i8"}  # fmt: skip
        found = {}
        file.visititems(
            lambda name, item: found.update({"/" + name: item}) if isinstance(item, h5py.Dataset) else None
        )
        assert set(found) == set(kinds)
        for name, item in found.items():
            assert (
                item.dtype == kinds[name] and item.fletcher32 and item.chunks and item.compression is None
            ), name
            assert item.id.get_create_plist().get_nfilters() == 1
        attributes = dict(file.attrs)
        assert file["/group/first"][...].tolist() == list(range(0, 41, 2))
    numbers = {name for name, value in attributes.items() if not isinstance(value, bytes)}
    assert numbers == {"version", "vocabulary", "max_length"}
    assert (
        attributes["format"] == b"wpo-groups"
        and attributes["version"] == 1
        and attributes["max_length"] == 1024
    )
    assert attributes["kind"] == b"preference" and attributes["truncation"] == b"keep_start"
    assert (
        attributes["tokenizer_sha256"]
        == hashlib.sha256(read(os.path.join(model, "tokenizer.json"))).hexdigest().encode()
    )
    assert attributes["chat_template_sha256"] == hashlib.sha256(BOS_TEMPLATE.encode()).hexdigest().encode()


def test_hash_finds_every_flip(folder):
    model, _, data = set_up(folder, 20)
    path = os.path.join(folder, "rows.h5")
    convert(model, data, path)
    raw = read(path)
    places = [0, 20, 90, 511, 512, len(raw) - 1] + random.Random(3).sample(range(len(raw)), 40)
    for damaged in [raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :] for i in places] + [
        raw[:-1],
        raw + b"\0",
        raw[:100],
        b"",
    ]:
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            Groups(path)
        except BadInput:
            continue
        raise AssertionError("damage went unnoticed")


def test_full_disk(folder):
    # A limit on the size of files stands in for a full disk. It strikes in the spool, in HDF5, or in its last bytes.
    model, _, data = set_up(folder, 700)
    out = os.path.join(folder, "sized.h5")
    convert(model, data, out)
    size = os.path.getsize(out)
    place = tempfile.mkdtemp(dir=folder)
    for limit in (4096, size // 3, size // 2, size - 700, size - 1):
        words = ["--model", model, "--data", data, "--out", os.path.join(place, "out.h5"), "--num_proc", "1"]
        done = subprocess.run(
            [sys.executable, fixtures.PREPARE, *words], capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip
        assert done.returncode == 1, (limit, done)
        assert done.stderr.startswith("wpo prepare: ") and done.stderr.count("\n") == 1, done.stderr
        assert "out.h5: cannot be written" in done.stderr, done.stderr
        assert os.listdir(place) == [], limit


def start_long(folder):
    """A conversion in two workers that takes a while, on rows so long that results do not fit a pipe's buffer."""
    model, _, data = set_up(folder, 3000)
    source = read(data)
    with open(data, "wb") as file:
        file.write(source * 20)

    def start():
        place = tempfile.mkdtemp(dir=folder)
        words = ["--model", model, "--data", data, "--out", os.path.join(place, "out.h5"), "--num_proc", "2"]
        child = subprocess.Popen(
            [sys.executable, fixtures.PREPARE, *words],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        limit = time.monotonic() + 60
        while not os.listdir(place) and time.monotonic() < limit:
            time.sleep(0.02)
        return child, place

    return start


def test_interruption(folder):
    start, dice = start_long(folder), random.Random(11)
    for number in (signal.SIGINT, signal.SIGTERM) * 3:
        child, place = start()
        time.sleep(dice.uniform(0, 0.6))
        os.killpg(child.pid, number)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 130, (child.returncode, errors)
        assert errors == "wpo prepare: interrupted; nothing was written\n", errors
        assert os.listdir(place) == []


def workers_of(process):
    with open(f"/proc/{process}/task/{process}/children") as file:
        return [int(word) for word in file.read().split()]


def test_death_of_a_worker(folder):
    # Also in the middle of a message: stopped for a while, the main process lets both pipes fill.
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        return print("not run: no list of children in /proc here")
    start = start_long(folder)
    for full in (False, True):
        child, place = start()
        limit = time.monotonic() + 60
        while len(workers_of(child.pid)) < 2 and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(0.5)
        if full:
            os.kill(child.pid, signal.SIGSTOP)
            time.sleep(0.5)
        first, second = workers_of(child.pid)
        os.kill(first, signal.SIGKILL)
        os.kill(child.pid, signal.SIGCONT)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 1 and errors.count("\n") == 1, (child.returncode, errors)
        assert errors.startswith("wpo prepare: a worker process died"), errors
        assert os.listdir(place) == [] and not os.path.exists(f"/proc/{second}")
    # And without the main process, no worker stays.
    child, _ = start()
    while len(workers_of(child.pid)) < 2 and time.monotonic() < limit:
        time.sleep(0.02)
    workers = workers_of(child.pid)
    child.kill()
    child.communicate(timeout=60)
    limit = time.monotonic() + 20
    while any(alive(worker) for worker in workers) and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(alive(worker) for worker in workers)


def alive(process):
    """Runs, and is not merely waiting to be collected."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_full_standard_output(folder):
    # The groups file is written before the page, and stays.
    if not os.path.exists("/dev/full"):
        return print("not run: there is no /dev/full here")
    model, _, data = set_up(folder, 20)
    out = os.path.join(folder, "out.h5")
    words = [sys.executable, fixtures.PREPARE]
    rest = f"; {out} is complete."
    for options, want, warned in (
        (["--model", model, "--data", data, "--out", out, "--max_length", "30"], rest, 1),  # drops 14 of 20
        (["--model", model, "--data", data, "--out", out, "--overwrite", "--json"], rest, 0),
        (["--help"], ".", 0),
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(words + options, stdout=full, stderr=subprocess.PIPE, text=True)
        said = done.stderr.splitlines()
        assert done.returncode == 1, done
        sentence = "wpo prepare: standard output cannot be written (No space left on device)" + want
        assert said[-1] == sentence and ["warning" in line for line in said[:-1]] == [True] * warned, said
        assert len(Groups(out)) > 0 and [name for name in os.listdir(folder) if name.endswith(".part")] == []
    # A reader that went away is no error.
    reader, writer = os.pipe()
    os.close(reader)
    more = ["--model", model, "--data", data, "--out", out, "--overwrite"]
    done = subprocess.run(words + more, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_help(folder):
    done = subprocess.run([sys.executable, fixtures.PREPARE, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: wpo prepare" in done.stdout and "examples:" in done.stdout


if __name__ == "__main__":
    fixtures.run_tests(globals())
