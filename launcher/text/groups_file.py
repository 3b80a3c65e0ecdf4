"""Groups files (version 1): written by `wpo prepare`, read back by tests; docs/formats.md has the format."""

import hashlib
import json
import os
import re
import signal
import tempfile

import h5py
import numpy

from text.errors import BadInput

USER_BLOCK = 512
CHUNK = 65536  # elements of a dataset's chunk at most
BLOCK = 1 << 20  # bytes read at a time
VERSION = 1

DATASETS = {
    "/prompt/tokens": "<i4",
    "/prompt/offset": "<i8",
    "/completion/tokens": "<i4",
    "/completion/offset": "<i8",
    "/completion/score": "<f4",
    "/completion/label": "<i1",
    "/group/first": "<i8",
    "/group/row": "<i8",
}


def hash_rest(file):
    file.seek(USER_BLOCK)
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


class Spool:
    """Arrays that grow outside memory, in unnamed files beside the output, until their sizes are known."""

    def __init__(self, folder):
        self.files = {name: tempfile.TemporaryFile(dir=folder) for name in DATASETS}
        self.counts = dict.fromkeys(DATASETS, 0)
        for name in ("/prompt/offset", "/completion/offset", "/group/first"):
            self.append(name, [0])
        self.ends = {"/prompt/offset": 0, "/completion/offset": 0, "/group/first": 0}

    def append(self, name, values):
        array = numpy.asarray(values, DATASETS[name])
        self.files[name].write(array.tobytes())
        self.counts[name] += len(array)

    def append_lengths(self, name, lengths):
        """Appends offsets, given the lengths of what they delimit."""
        ends = self.ends[name] + numpy.cumsum(numpy.asarray(lengths, numpy.int64))
        if len(ends):
            self.append(name, ends)
            self.ends[name] = int(ends[-1])

    def append_part(self, part):
        self.append("/prompt/tokens", part["prompt_tokens"])
        self.append_lengths("/prompt/offset", part["prompt_lengths"])
        self.append("/completion/tokens", part["completion_tokens"])
        self.append_lengths("/completion/offset", part["completion_lengths"])
        self.append_lengths("/group/first", part["group_sizes"])
        self.append("/group/row", part["rows"])
        self.append("/completion/score", part["scores"])
        self.append("/completion/label", part["labels"])

    def blocks(self, name):
        """Yields (start, array) over everything appended."""
        file, kind = self.files[name], numpy.dtype(DATASETS[name])
        file.flush()
        file.seek(0)
        start = 0
        while raw := file.read(CHUNK * 16 * kind.itemsize):
            array = numpy.frombuffer(raw, kind)
            yield start, array
            start += len(array)

    def has_scores(self):
        return any(not numpy.isnan(array).all() for _, array in self.blocks("/completion/score"))

    def close(self):
        for file in self.files.values():
            file.close()


def write_hdf(path, spool, names, attributes):
    # Pinned to the file format of HDF5 1.10, which clusters still run; a newer library would write its own.
    with h5py.File(path, "w", libver=("v110", "v110"), userblock_size=USER_BLOCK) as file:
        for name, value in attributes.items():
            if isinstance(value, int):
                file.attrs.create(name, numpy.int64(value))
            else:
                raw = value.encode("utf-8")
                file.attrs.create(name, numpy.array(raw, dtype=f"S{max(len(raw), 1)}"))
        for name in names:
            count = spool.counts[name]
            data = file.create_dataset(
                name,
                (count,),
                DATASETS[name],
                chunks=(max(1, min(count, CHUNK)),),
                fletcher32=True,
                track_times=False,
            )
            for start, array in spool.blocks(name):
                data[start : start + len(array)] = array


def run_apart(work):
    """Runs `work()` in a child process: after a failed write (a full disk) the HDF5 library crashes where it
    closes the file, and it must not take this program's message with it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        except OSError as error:
            os.write(writer, (os.strerror(error.errno) if error.errno else "HDF5 failed").encode())
        finally:
            os._exit(code)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            reason = pipe.read().decode() or "the HDF5 library failed, most likely for want of space"
        _, status = os.waitpid(child, 0)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if status != 0:
        raise OSError(reason)


def write_groups(path, spool, attributes):
    """Writes the file at `path`, a temporary name: HDF5 behind a user block that carries its SHA-256."""
    names = [name for name in DATASETS if name not in ("/completion/score", "/completion/label")]
    if spool.has_scores():
        names.append("/completion/score")
    if spool.counts["/completion/label"]:
        names.append("/completion/label")
    for file in spool.files.values():
        file.flush()
    run_apart(lambda: write_hdf(path, spool, names, attributes))
    with open(path, "r+b") as file:
        digest = hash_rest(file)
        size = file.seek(0, os.SEEK_END)
        head = f"wpo-groups {VERSION} sha256={digest} bytes={size}\n".encode("ascii")
        file.seek(0)
        file.write(head.ljust(USER_BLOCK, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    return size


def check_head(path):
    """Verifies size and SHA-256 before the HDF5 library sees the file."""
    with open(path, "rb") as file:
        head = file.read(USER_BLOCK)
        match = re.fullmatch(rb"wpo-groups (\d+) sha256=([0-9a-f]{64}) bytes=(\d+)\n\0*", head)
        if len(head) != USER_BLOCK or match is None:
            raise BadInput(f"{path}: is not a groups file; make one with `wpo prepare`.")
        if int(match[1]) != VERSION:
            raise BadInput(
                f"{path}: is version {int(match[1])} of the format, not {VERSION}; prepare it again."
            )
        if os.path.getsize(path) != int(match[3]):
            raise BadInput(
                f"{path}: has {os.path.getsize(path)} bytes instead of {int(match[3])}; prepare it again."
            )
        if hash_rest(file) != match[2].decode("ascii"):
            raise BadInput(f"{path}: its content does not match its SHA-256; prepare it again.")


class Groups:
    """A groups file in memory: `attributes`, `summary`; per group prompt, completions, scores, labels."""

    def __init__(self, path):
        check_head(path)
        with h5py.File(path, "r") as file:
            self.attributes = {
                name: value.decode("utf-8") if isinstance(value, bytes) else int(value)
                for name, value in file.attrs.items()
            }
            data = {name: file[name][...] if name in file else None for name in DATASETS}
        self.summary = json.loads(self.attributes["summary"])
        self.rows = data["/group/row"].tolist()
        self.prompts = split(data["/prompt/tokens"], data["/prompt/offset"])
        first = data["/group/first"]
        self.completions = cut(split(data["/completion/tokens"], data["/completion/offset"]), first)
        self.scores = cut(data["/completion/score"], first)
        self.labels = cut(data["/completion/label"], first)

    def __len__(self):
        return len(self.rows)


def split(tokens, offset):
    if offset[0] != 0 or offset[-1] != len(tokens) or (numpy.diff(offset) <= 0).any():
        raise BadInput("the offsets of a groups file do not fit its tokens; prepare it again.")
    return [tokens[a:b].tolist() for a, b in zip(offset, offset[1:])]


def cut(values, first):
    return None if values is None else [list(values[a:b]) for a, b in zip(first, first[1:])]
