"""The files that rows come in: JSONL and Parquet, alone or in folders."""

import math
import os
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet

from text.errors import BadInput
from text.rows import COLUMNS, EXPECTED

CHUNK_ROWS = (
    128  # rows handed to a process at a time; never depends on their number, so neither does the output
)


@dataclass
class Chunk:
    """Consecutive rows of one file: (line, raw bytes) of JSONL, or (None, columns) of Parquet."""

    path: str
    first: int  # number of the first row within the file
    offset: int  # rows of the files before it
    rows: list
    done: int  # bytes or rows of the file that have been read, for the progress bar


def list_files(paths, split):
    """The files of --data; a folder stands for its Parquet or JSONL files of one split."""
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += files_of_split(path, split)
        elif not os.path.exists(path):
            raise BadInput(f"{path}: there is no such file; check --data.")
        elif split is not None:
            raise BadInput(
                f"{path}: --split picks files out of a folder, and this is a file; leave --split out."
            )
        else:
            files.append(path)
    return files


def files_of_split(folder, split):
    found = []
    for place in (folder, os.path.join(folder, "data")):
        if os.path.isdir(place):
            names = sorted(name for name in os.listdir(place) if name.endswith((".parquet", ".jsonl")))
            found += [(name, os.path.join(place, name)) for name in names]
    splits = sorted({name.rsplit(".", 1)[0].split("-")[0] for name, _ in found})
    if not found:
        raise BadInput(f"{folder}: holds no .parquet or .jsonl file; check --data.")
    if split is None:
        if len(splits) > 1:
            raise BadInput(f"{folder}: holds several splits ({', '.join(splits)}); choose one with --split.")
        return [path for _, path in found]
    chosen = [path for name, path in found if name.startswith((split + "-", split + "."))]
    if not chosen:
        raise BadInput(
            f"{folder}: no file's name starts with '{split}' (found: {', '.join(splits)}); check --split."
        )
    return chosen


def is_parquet(path):
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    if not head:
        raise BadInput(f"{path}: the file is empty; check --data.")
    if head[:2] == b"\x1f\x8b" or head == b"(\xb5/\xfd":
        raise BadInput(f"{path}: is compressed; unpack it first.")
    return head == b"PAR1" or path.endswith(".parquet")


def open_parquet(path):
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: is not a readable Parquet file ({reason}); fetch it again.") from error


def size_of(path):
    """The file's size in the unit of Chunk.done."""
    return open_parquet(path).metadata.num_rows if is_parquet(path) else os.path.getsize(path)


def chunks_of(path, offset, limit=None):
    """Yields the Chunks of a file, at most `limit` rows."""
    read = parquet_chunks if is_parquet(path) else jsonl_chunks
    return read(path, offset, math.inf if limit is None else limit)


def jsonl_chunks(path, offset, limit):
    rows, first, done = [], 0, 0
    try:
        with open(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                done += len(raw)
                if line == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if not raw.strip():
                    continue
                if first + len(rows) >= limit:
                    break
                rows.append((line, raw))
                if len(rows) == CHUNK_ROWS:
                    yield Chunk(path, first, offset, rows, done)
                    first, rows = first + len(rows), []
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file.") from error
    if rows:
        yield Chunk(path, first, offset, rows, done)


def parquet_chunks(path, offset, limit):
    file = open_parquet(path)
    columns = [name for name in file.schema_arrow.names if name in COLUMNS]
    if not columns:
        raise BadInput(f"{path}: has the columns {', '.join(file.schema_arrow.names)}; {EXPECTED}.")
    first = 0
    try:
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=columns):
            rows = [(None, row) for row in batch.to_pylist()]
            rows = rows[: int(min(len(rows), limit - first))]
            if not rows:
                return
            yield Chunk(path, first, offset, rows, first + len(rows))
            first += len(rows)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: cannot be read after row {first} ({reason}); fetch it again.") from error
