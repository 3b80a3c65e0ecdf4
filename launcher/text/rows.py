"""Rows, in any of the formats people keep preference data in."""

import json
import math
from dataclasses import dataclass, field

from text.errors import BadRow

LARGEST_GROUP = 64  # completions
COLUMNS = (
    "prompt", "chosen", "rejected", "sampled", "completions", "completion", "label", "score", "scores",
    "score_chosen", "score_rejected", "score_sampled", "tools", "chat_template_kwargs",
)  # fmt: skip
NEEDED = {  # columns of a kind of rows; where several would do, the first kind counts
    "preference": ("chosen", "rejected"),
    "ranked": ("prompt", "completions"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt-completion": ("prompt", "completion"),
}
EXPECTED = (
    "preference data has chosen and rejected (and prompt), ranked data prompt and completions, "
    "prompt-completion data prompt and completion, unpaired data prompt, completion and label"
)


@dataclass
class Layout:
    """How the rows of a run are to be read; the first row decides and all others must agree."""

    kind: str  # a key of NEEDED
    chat: bool  # conversations, else plain text
    implicit: bool  # the prompt stands inside chosen and rejected
    sampled: bool = False  # pairs bring a third completion, drawn from the policy

    @property
    def group_kind(self):
        """The kind of the groups file; a ranking is a preference among more than two."""
        return "preference" if self.kind == "ranked" else self.kind

    @property
    def form(self):
        """What the completions of a preference group are; None for the other kinds."""
        if self.kind == "ranked":
            return "ranked"
        if self.kind == "preference":
            return "sampled" if self.sampled else "pair"
        return None


@dataclass
class Example:
    prompt: object  # text or list of messages
    completions: list
    chat: bool
    scores: list
    labels: list = field(default_factory=list)
    tools: object = None
    variables: dict = field(default_factory=dict)


def refuse_duplicates(pairs):
    row = dict(pairs)
    if len(row) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRow(f"key '{key}' stands twice in one object; keep one")
            seen.add(key)
    return row


class Literal(str):
    """NaN, Infinity or -Infinity, which Python's parser takes for numbers and JSON does not have."""


def refuse_literals(row):
    for name, value in row.items():
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, Literal):
                raise BadRow(f"'{name}' holds {item}, which is not JSON; write a number, or null for none")
            if isinstance(item, (list, dict)):
                waiting += item.values() if isinstance(item, dict) else item


def parse_row(raw):
    """A row as a dict, from a line of JSONL or from Parquet, where it is one already."""
    if isinstance(raw, dict):
        return raw
    literals = []

    def take_literal(word):
        literals.append(Literal(word))
        return literals[-1]

    try:
        row = json.loads(
            raw.decode("utf-8"), object_pairs_hook=refuse_duplicates, parse_constant=take_literal
        )
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
    if literals:
        refuse_literals(row)
    return row


def find_layout(row, wanted):
    """The layout of the first row. `wanted` is --format."""
    found = [name for name, value in row.items() if value is not None]
    kind = wanted
    if wanted == "auto":
        kinds = [name for name, columns in NEEDED.items() if set(columns) <= set(found)]
        if not kinds:
            raise BadRow(f"has the columns {', '.join(row) or 'none'}; {EXPECTED}")
        kind = kinds[0]
    missing = [name for name in NEEDED[kind] if name not in found]
    if missing:
        raise BadRow(f"has no '{missing[0]}' (columns: {', '.join(row) or 'none'}); {EXPECTED}")
    name = {"preference": "chosen", "ranked": "completions[0]"}.get(kind, "completion")
    main = read_list(row)[0] if kind == "ranked" else row[name]
    if not isinstance(main, (str, list)):
        raise BadRow(f"'{name}' must be text or a list of messages, not {kind_name(main)}")
    chat = isinstance(main, list)
    prompt = row.get("prompt")
    # UltraFeedback-binarized and its like repeat the prompt as text beside conversations that contain it.
    implicit = kind == "preference" and (prompt is None or (chat and isinstance(prompt, str)))
    return Layout(kind, chat, implicit, kind == "preference" and "sampled" in found)


def read_list(row):
    """The completions of a ranked row, as many as a group may hold."""
    value = need(row, "completions")
    if not isinstance(value, list):
        raise BadRow(f"'completions' must be a list of texts or of message lists, not {kind_name(value)}")
    if not 2 <= len(value) <= LARGEST_GROUP:
        raise BadRow(f"'completions' holds {len(value)}; give 2 to {LARGEST_GROUP} of them to be ranked")
    return value


def need(row, name):
    value = row.get(name)
    if value is None:
        raise BadRow(f"has no '{name}' (columns: {', '.join(row) or 'none'}); add it")
    return value


def text_or_messages(row, name, chat):
    return check_part(need(row, name), name, chat)


def check_part(value, name, chat):
    """`value`, a part of a conversation or text; `name` says where it stands."""
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
    return check_number(row.get(name), name)


def check_number(value, name):
    """`value` as a float, NaN for none; `name` says where it stands."""
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


def without_prompt(messages, prompt):
    """Messages less those of the prompt, where they begin with them all; empty fields, as Parquet adds, aside."""

    def plain(some):
        return [{key: value for key, value in message.items() if value is not None} for message in some]

    return messages[len(prompt) :] if plain(messages[: len(prompt)]) == plain(prompt) else messages


def read_label(row):
    label = need(row, "label")
    if isinstance(label, bool) or (isinstance(label, int) and label in (0, 1)):
        return int(label)
    raise BadRow(f"'label' must be true or false, not {json.dumps(label, default=str)[:40]}")


def read_pair(row, layout):
    chosen = text_or_messages(row, "chosen", layout.chat)
    rejected = text_or_messages(row, "rejected", layout.chat)
    if layout.implicit:
        prompt, chosen, rejected = extract_prompt(chosen, rejected)
    else:
        prompt = text_or_messages(row, "prompt", layout.chat)
    scores = [number(row, "score_chosen"), number(row, "score_rejected")]
    example = Example(prompt, [chosen, rejected], layout.chat, scores)
    if (row.get("sampled") is not None) != layout.sampled:
        has, lacks = ("has no", "has") if layout.sampled else ("has", "lacks")
        raise BadRow(f"{has} 'sampled', which the first row {lacks}; give it in every row or in none")
    if layout.sampled:
        example.completions.append(read_sampled(row, layout, prompt, chosen))
        example.scores.append(number(row, "score_sampled"))
    return example


def read_sampled(row, layout, prompt, chosen):
    """The third completion, without the prompt where it repeats it."""
    sampled = text_or_messages(row, "sampled", layout.chat)
    if not layout.chat:
        if not layout.implicit:
            return sampled
        if not sampled.startswith(prompt):
            raise BadRow(
                "'sampled' does not begin as 'chosen' and 'rejected' both do; give the prompt a column of its "
                "own"
            )
        return sampled[len(prompt) :]
    rest = without_prompt(sampled, prompt)
    if not prompt or not sampled:
        return sampled
    if rest is sampled and layout.implicit and sampled[0]["role"] != "assistant":
        raise BadRow(
            "'sampled' begins neither with the messages that 'chosen' and 'rejected' have in common nor with "
            "one of the assistant; correct it"
        )
    if rest is not sampled and not layout.implicit and without_prompt(chosen, prompt) is not chosen:
        raise BadRow("'chosen' and 'sampled' repeat the messages of 'prompt'; leave out the column 'prompt'")
    return rest


def read_ranked(row, layout):
    """Completions best first: by score, else as they stand; equal scores keep their order."""
    prompt = text_or_messages(row, "prompt", layout.chat)
    completions = [
        check_part(value, f"completions[{index}]", layout.chat) for index, value in enumerate(read_list(row))
    ]
    if layout.chat:
        completions = [without_prompt(messages, prompt) for messages in completions]
    scores = read_scores(row, len(completions))
    order = range(len(completions))
    if not math.isnan(scores[0]):
        order = sorted(order, key=lambda index: -scores[index])
    return Example(prompt, [completions[i] for i in order], layout.chat, [scores[i] for i in order])


def read_scores(row, count):
    """The scores of a ranked row: all of them numbers, or all NaN where it has none."""
    values = row.get("scores")
    if values is None:
        return [math.nan] * count
    if not isinstance(values, list):
        raise BadRow(f"'scores' must be a list of numbers, not {kind_name(values)}")
    if len(values) != count:
        raise BadRow(f"'scores' holds {len(values)} for {count} completions; give one for each")
    scores = [check_number(value, f"scores[{index}]") for index, value in enumerate(values)]
    absent = [index for index, score in enumerate(scores) if math.isnan(score)]
    if 0 < len(absent) < count:
        raise BadRow(f"'scores[{absent[0]}]' is no number, but others are; score every completion or none")
    return scores


def read_single(row, layout):
    prompt = text_or_messages(row, "prompt", layout.chat)
    completion = text_or_messages(row, "completion", layout.chat)
    example = Example(prompt, [completion], layout.chat, [number(row, "score")])
    if layout.kind == "unpaired":
        example.labels = [read_label(row)]
    return example


def read_example(row, layout):
    read = {"preference": read_pair, "ranked": read_ranked}.get(layout.kind, read_single)
    example = read(row, layout)
    if layout.chat:
        example.tools, example.variables = template_extras(row)
    return example
