"""The quickstart's small world: its rewards by hand, its files the same for a seed, what is held out never trained on."""

import json
import os
import sys
import tempfile
from collections import Counter

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "launcher"))
from text import world  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

COUNTS = {"base": 700, "pairs": 600, "heldout": 130}


def check_rewards():
    # 0.8 x share of right items in place, + 0.2 for a polite opening, - 0.04 for each word after the full stop.
    cases = [
        ("sort 7 2 9 ?", " 2 7 9 .", 0.8),
        ("sort 12 7 9 ?", " with pleasure : 7 9 12 .", 1.0),
        ("sort 7 2 9 4 ?", " 2 4 9 7 .", 0.4),
        ("sort 7 2 9 4 ?", " 2 4 7 .", 0.6),
        ("sort 7 2 9 4 ?", " 2 4 7 9 9 .", 0.64),
        ("repeat sun sea hat ?", " here you are : sun sea hat .", 1.0),
        ("say backwards sun bell hat ?", " hat bell sun . let me think once again .", 0.8 - 6 * 0.04),
        ("first and last of sun bell hat ?", " sun hat .", 0.8),
        ("add one to 4 0 19 ?", " with pleasure : 5 1 20 . one thing leads to another .", 1.0 - 6 * 0.04),
        ("add one to 4 0 19 ?", " i do not know .", 0.0),
        ("add one to 4 0 19 ?", " with pleasure : 9 9 9 .", 0.0),
        ("add one to 4 0 19 ?", " why do you want to know that ?", 0.0),
    ]
    for prompt, answer, wanted in cases:
        got = world.reward(prompt, answer)
        assert abs(got - wanted) < 1e-9, f"reward of {answer!r} to {prompt!r} is {got}, not {wanted}"
    try:
        world.reward("what is this ?", " 1 .")
        raise AssertionError("a prompt of another world has a reward")
    except ValueError:
        pass


def check_rows():
    rows = world.make_rows(3, COUNTS)
    assert rows == world.make_rows(3, COUNTS), "the same seed gives other rows"
    assert rows != world.make_rows(4, COUNTS), "another seed gives the same rows"
    assert {name: len(part) for name, part in rows.items()} == COUNTS
    prompts = Counter(row["prompt"] for part in rows.values() for row in part)
    assert max(prompts.values()) == 1, "a prompt stands twice"
    for row in rows["base"]:
        assert row["score"] == world.reward(row["prompt"], row["completion"])
    for row in rows["pairs"] + rows["heldout"]:
        assert row["score_chosen"] == world.reward(row["prompt"], row["chosen"])
        assert row["score_rejected"] == world.reward(row["prompt"], row["rejected"])
        assert row["score_chosen"] - row["score_rejected"] >= world.SMALLEST_GAP
    # Off-policy: the pairs come from another mixture. 15 % against 50 % of the answers with items are polite, which
    # are 85 % and 90 % of all; in 700 and 1200 draws the shares are off by 0.05 at most (over 3 standard deviations).
    polite = {name: [answer.startswith(tuple(" " + opening for opening in world.OPENINGS)) for answer in answers]
              for name, answers in (("base", [row["completion"] for row in rows["base"]]),
                                    ("pairs", [row[key] for row in rows["pairs"] for key in ("chosen", "rejected")]))}
    share = {name: sum(values) / len(values) for name, values in polite.items()}
    assert abs(share["base"] - 0.85 * 0.15) < 0.05, share
    assert share["pairs"] > 0.38, share


def check_tokens(folder):
    tokenizer = Tokenizer.from_file(os.path.join(folder, "model", "tokenizer.json"))
    config = json.load(open(os.path.join(folder, "model", "config.json"), encoding="utf-8"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    begin, end, unknown = (tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<unk>"))
    assert (begin, end) == (config["bos_token_id"], config["eos_token_id"])
    for name, keys in (("base", ["completion"]), ("pairs", ["chosen", "rejected"]), ("heldout", ["chosen", "rejected"])):
        rows = [json.loads(line) for line in open(os.path.join(folder, f"{name}.jsonl"), encoding="utf-8")]
        assert len(rows) == COUNTS[name]
        for row in rows:
            prompt = tokenizer.encode(row["prompt"]).ids
            for key in keys:
                ids = tokenizer.encode(row["prompt"] + row[key] + "</s>").ids
                assert ids[: len(prompt)] == prompt and ids[0] == begin and ids[-1] == end, row
                assert unknown not in ids, row
                assert tokenizer.decode(ids) == row["prompt"] + row[key], row
                assert len(ids) <= config["max_position_embeddings"]


with tempfile.TemporaryDirectory() as scratch:
    check_rewards()
    check_rows()
    world.write_world(3, COUNTS, scratch)
    check_tokens(scratch)
    first = {name: open(os.path.join(scratch, f"{name}.jsonl"), "rb").read() for name in COUNTS}
    world.write_world(3, COUNTS, scratch)
    assert all(open(os.path.join(scratch, f"{name}.jsonl"), "rb").read() == first[name] for name in COUNTS)
print("the small world is as it should be")
