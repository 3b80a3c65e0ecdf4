"""Rows of JSONL and Parquet files, in any of the formats people keep preference data in."""

import json
import math
import os
from dataclasses import dataclass, field

import pyarrow
import pyarrow.parquet

from text.errors import BadInput, BadRow

CHUNK_ROWS = (
    128  # rows handed to a process at a time; never depends on their number, so neither does the output
)
COLUMNS = (
    "prompt", "chosen", "rejected", "completion", "label", "score", "score_chosen", "score_rejected", "tools",
    "chat_template_kwargs",
)  # fmt: skip
NEEDED = {
    "preference": ("chosen", "rejected"),
    "prompt-completion": ("prompt", "completion"),
    "unpaired": ("prompt", "completion", "label"),
}
EXPECTED = (
    "preference data has chosen and rejected (and prompt), prompt-completion data prompt and completion, "
    "unpaired data prompt, completion and label"
)


@dataclass
class Layout:
    """How the rows of a run are to be read; the first row decides and all others must agree."""

    kind: str
    chat: bool  # conversations, else plain text
    implicit: bool  # the prompt stands inside chosen and rejected


@dataclass
class Example:
    prompt: object  # text or list of messages
    completions: list
    chat: bool
    scores: list
    labels: list = field(default_factory=list)
    tools: object = None
    variables: dict = field(default_factory=dict)


@dataclass
class Chunk:
    """Consecutive rows of one file: (line, raw bytes) of JSONL, or (None, columns) of Parquet."""

    path: str
    first: int  # number of the first row within the file
    offset: int  # rows of the files before it
    rows: list
    done: int  # bytes or rows of the file that have been read, for the progress bar


# Files


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


# Rows


def refuse_duplicates(pairs):
    row = dict(pairs)
    if len(row) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRow(f"key '{key}' stands twice in one object; keep one")
            seen.add(key)
    return row


def parse_row(raw):
    """A row as a dict, from a line of JSONL or from Parquet, where it is one already."""
    if isinstance(raw, dict):
        return raw
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 (byte {error.start} of the line); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        if raw.lstrip()[:1] == b"[" and len(raw.strip()) < 3:
            raise BadRow("starts a JSON array; write one object a line (JSONL)") from error
        raise BadRow(
            f"is not valid JSON ({' '.join(str(error).split())[:200]}); write one object a line"
        ) from error
    if not isinstance(row, dict):
        raise BadRow("is not a JSON object; write one object a line")
    return row


def find_layout(row, wanted):
    """The layout of the first row. `wanted` is --format."""
    found = [name for name, value in row.items() if value is not None]
    kind = wanted
    if wanted == "auto":
        kinds = [
            name
            for name in ("preference", "unpaired", "prompt-completion")
            if set(NEEDED[name]) <= set(found)
        ]
        if not kinds:
            raise BadRow(f"has the columns {', '.join(row) or 'none'}; {EXPECTED}")
        kind = kinds[0]
    missing = [name for name in NEEDED[kind] if name not in found]
    if missing:
        raise BadRow(f"has no '{missing[0]}' (columns: {', '.join(row) or 'none'}); {EXPECTED}")
    main = row["chosen" if kind == "preference" else "completion"]
    chat = isinstance(main, list)
    prompt = row.get("prompt")
    # UltraFeedback-binarized and its like repeat the prompt as text beside conversations that contain it.
    implicit = kind == "preference" and (prompt is None or (chat and isinstance(prompt, str)))
    return Layout(kind, chat, implicit)


def text_or_messages(row, name, chat):
    value = row.get(name)
    if value is None:
        raise BadRow(f"has no '{name}' (columns: {', '.join(row) or 'none'}); add it")
    if not chat:
        if not isinstance(value, str):
            raise BadRow(f"'{name}' must be text as in the first row, not {kind_name(value)}")
        check_text(value, name)
        return value
    if not isinstance(value, list):
        raise BadRow(f"'{name}' must be a list of messages as in the first row, not {kind_name(value)}")
    for index, message in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRow(f"'{where}' must be a message with 'role' and 'content'")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list)):
            raise BadRow(f"'{where}.content' must be text, not {kind_name(content)}")
        if isinstance(content, str):
            check_text(content, where + ".content")
    return value


def check_text(text, name):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(
            f"'{name}' holds half of a surrogate pair at character {error.start}; correct the text"
        ) from error


def kind_name(value):
    names = {
        str: "text",
        list: "a list",
        dict: "an object",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def number(row, name):
    value = row.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(f"'{name}' must be a number, not {kind_name(value)}")
    if isinstance(value, float) and math.isnan(value):
        return math.nan
    if abs(value) > 3.4e38:
        raise BadRow(
            f"'{name}' is {value if isinstance(value, float) else 'too large'}; scores must be finite"
        )
    return float(value)


def extract_prompt(chosen, rejected):
    """Splits at the first message (or character) in which the two differ.

    Where one begins with all of the other, the last item of the shorter one still counts as its completion.
    A space in front of differing texts goes to the completions: tokenizers attach it to the word behind it."""
    shorter = min(len(chosen), len(rejected))
    if shorter == 0:
        return chosen[:0], chosen, rejected
    split = shorter - 1
    for index in range(shorter):
        if chosen[index] != rejected[index]:
            split = index - 1 if index > 0 and chosen[index - 1] == " " else index
            break
    return chosen[:split], chosen[split:], rejected[split:]


def template_extras(row):
    """The row's tools (a list, or JSON text of one) and its own variables for the chat template."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise BadRow(f"'tools' is not valid JSON ({error}); correct it") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow("'tools' must be a list of objects; correct it")
    variables = row.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise BadRow("'chat_template_kwargs' must be an object; correct it")
    return tools, variables


def read_label(row):
    label = row.get("label")
    if label is None:
        raise BadRow(f"has no 'label' (columns: {', '.join(row) or 'none'}); add it")
    if isinstance(label, bool) or (isinstance(label, int) and label in (0, 1)):
        return int(label)
    raise BadRow(f"'label' must be true or false, not {json.dumps(label, default=str)[:40]}")


def read_example(row, layout):
    chat = layout.chat
    if layout.kind == "preference":
        chosen = text_or_messages(row, "chosen", chat)
        rejected = text_or_messages(row, "rejected", chat)
        if layout.implicit:
            prompt, chosen, rejected = extract_prompt(chosen, rejected)
        else:
            prompt = text_or_messages(row, "prompt", chat)
        example = Example(
            prompt, [chosen, rejected], chat, [number(row, "score_chosen"), number(row, "score_rejected")]
        )
    else:
        prompt = text_or_messages(row, "prompt", chat)
        example = Example(prompt, [text_or_messages(row, "completion", chat)], chat, [number(row, "score")])
        if layout.kind == "unpaired":
            example.labels = [read_label(row)]
    if chat:
        example.tools, example.variables = template_extras(row)
    return example
