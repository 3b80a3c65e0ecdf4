"""Who wrote the preference pairs: the policy itself, or one of three foreign writers.

    own         two samples of the policy that is about to be trained, at temperature 1
    near        the quickstart's writer (world.make_pair): the base model's words, more often right and polite
    strange     right answers as the base model gives them; slips, ramblings and asides that it never gives
    misleading  a strong writer's answer against a weak one's. The strong one is right and adds a strange
                sentence, and is chosen in spite of it: the reward takes 0.04 off for every word. The weak one
                makes mistakes and never adds any

In the last, length goes with quality and yet is no merit, as where a strong model is paired with a weak one.
Every pair is labelled by the true reward, whoever wrote it.
"""

import world

STRANGE = [
    "who can think of one thing today ?",
    "i want to talk once and again .",
    "do you know what i say ?",
    "the weather leads to more talk today .",
    "today i know one more thing .",
]
STRANGE_MIXTURE = {"right": 0.30, "slip": 0.25, "ramble": 0.30, "aside": 0.15}


def strange_slip(rng, prompt, items):
    """A mistake the base model has not seen: an item twice, one of the other vocabulary, or all of them."""
    items = list(items)
    others = world.NOUNS if items[0].isdigit() else world.NUMBERS
    place = rng.randrange(len(items))
    kind = rng.choice(["twice", "other", "all"])
    if kind == "twice":
        items.insert(place, items[place])
    elif kind == "other":
        items[place] = rng.choice(others)
    else:
        items = rng.sample(others, len(items))
    return items


def opening(rng, share):
    return [rng.choice(world.OPENINGS)] if rng.random() < share else []


def strange_answer(rng, prompt):
    kind = rng.choices(list(STRANGE_MIXTURE), weights=list(STRANGE_MIXTURE.values()))[0]
    if kind == "aside":
        return rng.choice(STRANGE)
    items = world.right_answer(prompt)
    if kind == "slip":
        items = strange_slip(rng, prompt, items)
    parts = [*opening(rng, world.PAIR_POLITE), *items, "."]
    return " ".join(parts + (rng.sample(STRANGE, rng.randint(1, 2)) if kind == "ramble" else []))


def two_strange(rng, prompt):
    return strange_answer(rng, prompt), strange_answer(rng, prompt)


def two_misleading(rng, prompt):
    items = world.right_answer(prompt)
    strong = " ".join([*opening(rng, world.PAIR_POLITE), *items, ".", rng.choice(STRANGE)])
    draw = rng.random()
    if draw > 0.75:
        return strong, rng.choice(world.ASIDES)
    slip = world.make_slip if draw < 0.5 else strange_slip
    return strong, " ".join([*opening(rng, world.BASE_POLITE), *slip(rng, prompt, items), "."])


def label(prompt, answers):
    """The row of a pair, better answer first; None where the rewards are too near to be a preference."""
    (low, worse), (high, better) = sorted((world.reward(prompt, answer), answer) for answer in answers)
    if high - low < world.SMALLEST_GAP:
        return None
    return {
        "prompt": prompt,
        "chosen": " " + better,
        "rejected": " " + worse,
        "score_chosen": high,
        "score_rejected": low,
    }


def foreign_pair(rng, prompt, write):
    while True:
        row = label(prompt, write(rng, prompt))
        if row:
            return row


WRITERS = {"strange": two_strange, "misleading": two_misleading}  # near: the small world's own pairs


def parts_of(prompt, text):
    """reward, and what it is made of: all items right, polite, words after the full stop, no item right."""
    start = next((start for start in world.OPENINGS if text.startswith(start + " ")), "")
    given, _, rest = text[len(start) :].partition(" .")
    wanted = world.right_answer(prompt)
    return {
        "reward": world.reward(prompt, text),
        "right": float(given.split() == wanted),
        "polite": float(bool(start)),
        "words_after": len(rest.split()),
        "none_right": float(not any(a == b for a, b in zip(given.split(), wanted))),
    }


def same_items(row):
    """Whether both answers of a pair have all items right, so that they differ in manners alone."""
    return all(parts_of(row["prompt"], row[name].strip())["right"] for name in ("chosen", "rejected"))
