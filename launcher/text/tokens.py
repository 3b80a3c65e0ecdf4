"""From an example to token ids, by the rules of TRL 1.16 or of the WPO authors' runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from text.errors import BadInput

# Reasons for which a row is dropped, as the audit names them.
EMPTY_PROMPT = "empty prompt"
LONG_PROMPT = "prompt too long"
EMPTY_COMPLETION = "empty completion"
LONG_COMPLETION = "completion too long"
REASONS = (LONG_PROMPT, EMPTY_PROMPT, EMPTY_COMPLETION, LONG_COMPLETION)


@dataclass
class Rules:
    truncation: str  # "keep_start", "keep_end", "authors"
    max_length: int
    max_prompt_length: int = 0  # of "authors" alone


@dataclass
class Group:
    """A row's ids. `reason` is set where the row is dropped."""

    prompt: list
    completions: list
    reason: str | None = None
    lost: list = field(
        default_factory=list
    )  # the end of the prompt's own ids that the joint ids do not contain
    truncated: int = 0  # completions whose sequence was cut
    moved: bool = False  # sharing one prompt forced a choice that separate sequences would not make
    no_eos: int = 0  # completions without the end-of-sequence token before truncation
    double_bos: bool = False


def common_prefix(ids, other):
    if ids == other[: len(ids)]:
        return len(ids)
    length = 0
    while length < len(other) and ids[length] == other[length]:
        length += 1
    return length


def render(model, example):
    """Prompt text, and the text of the prompt with each completion."""
    arguments = (example.tools, example.variables)
    prompt = model.template.render(example.prompt, True, *arguments)
    joints = [
        model.template.render(example.prompt + answer, False, *arguments) for answer in example.completions
    ]
    return prompt, joints


def joint_ids(model, example):
    """The rule of TRL 1.16: prompt and completion are tokenised together, and the completion begins where the
    joint ids leave those of the prompt alone."""
    if example.chat:
        prompt, joints = render(model, example)
    else:
        if model.eos_token is None:
            raise BadInput(
                f"{model.folder}: the tokenizer has no eos_token, with which text completions end; name one in "
                "tokenizer_config.json."
            )
        prompt = example.prompt
        ends = [
            answer if answer.endswith(model.eos_token) else answer + model.eos_token
            for answer in example.completions
        ]
        joints = [prompt + answer for answer in ends]
    special = not example.chat
    alone = model.encode(prompt, special)
    together = [model.encode(joint, special) for joint in joints]
    start = min(common_prefix(alone, ids) for ids in together)
    return Group(alone[:start], [ids[start:] for ids in together], lost=alone[start:])


def authors_ids(model, example):
    """The rule of TRL 0.9.6, on which the WPO authors ran: no special tokens but BOS in front and EOS behind,
    each unless it is there; if the prompt's last token merges with the completion, it goes there."""
    if example.chat:
        prompt, joints = render(model, example)
        shared = min(common_prefix(prompt, joint) for joint in joints)
        prompt = prompt[:shared]
    else:
        prompt, joints = example.prompt, [example.prompt + answer for answer in example.completions]
    alone = model.encode(prompt, False)
    together = [model.encode(joint, False) for joint in joints]
    starts = [len(alone) if ids[: len(alone)] == alone else max(len(alone) - 1, 0) for ids in together]
    start = min(min(starts), min(common_prefix(together[0][: min(starts)], ids) for ids in together))
    group = Group(together[0][:start], [ids[start:] for ids in together], lost=alone[start:])
    group.moved = start != max(starts)
    if model.bos_id is not None and group.prompt[:1] != [model.bos_id]:
        group.prompt = [model.bos_id] + group.prompt
    if model.eos_id is not None:
        group.completions = [
            ids if ids[-1:] == [model.eos_id] else ids + [model.eos_id] for ids in group.completions
        ]
    return group


def cut_start(group, rules):
    room = rules.max_length - len(group.prompt)
    if room <= 0:
        group.reason = LONG_PROMPT
        return
    group.truncated = sum(len(ids) > room for ids in group.completions)
    group.completions = [ids[:room] for ids in group.completions]


def cut_end(group, rules):
    """Keeps the last max_length tokens. The longest completion says how much of the one prompt stays."""
    lengths = [len(group.prompt) + len(ids) for ids in group.completions]
    excess = max(lengths) - rules.max_length
    if excess <= 0:
        return
    if excess >= len(group.prompt):
        group.reason = LONG_COMPLETION
        return
    group.truncated = sum(length > rules.max_length for length in lengths)
    group.moved = len(set(lengths)) > 1
    group.prompt = group.prompt[excess:]


def cut_authors(group, rules):
    longest = max(len(ids) for ids in group.completions)
    if len(group.prompt) + longest <= rules.max_length:
        return
    before = [len(group.prompt), *(len(ids) for ids in group.completions)]
    group.prompt = group.prompt[-rules.max_prompt_length :]
    if len(group.prompt) + longest > rules.max_length:
        room = rules.max_length - rules.max_prompt_length
        group.completions = [ids[:room] for ids in group.completions]
    short_prompt = len(group.prompt) < before[0]
    group.truncated = sum(short_prompt or len(ids) < old for ids, old in zip(group.completions, before[1:]))


CUTS = {"keep_start": cut_start, "keep_end": cut_end, "authors": cut_authors}


def make_group(model, example, rules):
    """Tokenises and truncates one example. Raises BadRow where the chat template refuses it."""
    if example.chat and not example.prompt:
        return Group([], [], reason=EMPTY_PROMPT)
    if example.chat and not all(example.completions):
        return Group([], [], reason=EMPTY_COMPLETION)
    group = authors_ids(model, example) if rules.truncation == "authors" else joint_ids(model, example)
    group.double_bos = model.bos_id is not None and group.prompt[:2] == [model.bos_id] * 2
    group.no_eos = 0 if model.eos_id is None else sum(model.eos_id not in ids for ids in group.completions)
    if not group.prompt:
        group.reason = EMPTY_PROMPT
    elif not all(group.completions):
        group.reason = EMPTY_COMPLETION
    if group.reason is None:
        CUTS[rules.truncation](group, rules)
    return group
