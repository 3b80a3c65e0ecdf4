"""Ranked rows and pairs with a sampled third completion become groups, by the ids worked out here by hand."""

import math
import os
import random

import fixtures
import pyarrow
import pyarrow.parquet
from fixtures import LETTERS_TEMPLATE, assistant, letters_tokenizer, user
from test_formats import E, S, convert, same

from text.groups_file import Groups
from text.rows import LARGEST_GROUP

PAIR = {"prompt": "ab", "chosen": "c", "rejected": "d"}


def nan_as_none(scores):
    return [[None if math.isnan(score) else score for score in group] for group in scores]


def test_order_of_scores(folder):
    rows = [
        {"prompt": "ab", "completions": ["c", "d", "e"], "scores": [1, 3.5, -2]},
        {"prompt": "a", "completions": ["c", "d", "e", "f"], "scores": [0, 1, 0, 1]},  # ties: in file order
        {"prompt": "b", "completions": ["h", "g"]},  # the list's order
        {"prompt": "c", "completions": ["c", "d"], "scores": [None, None]},
        {"prompt": "d", "completions": ["c", "d", "e"], "scores": [0.0, -0.0, 5]},
    ]
    groups = convert(folder, rows)
    same((groups.attributes["kind"], groups.attributes["form"]), ("preference", "ranked"))
    same(groups.prompts, [[S, 3, 4], [S, 3], [S, 4], [S, 5], [S, 6]])
    same(groups.completions, [
        [[6, E], [5, E], [7, E]], [[6, E], [8, E], [5, E], [7, E]], [[10, E], [9, E]], [[5, E], [6, E]],
        [[7, E], [5, E], [6, E]],
    ])  # fmt: skip
    same(nan_as_none(groups.scores), [[3.5, 1, -2], [1, 1, 0, 0], [None, None], [None, None], [5, 0, 0]])
    same((groups.rows, groups.labels), ([0, 1, 2, 3, 4], None))
    same(groups.summary["group_sizes"], {"2": 2, "3": 2, "4": 1})
    same((groups.summary["tied_scores"], groups.summary["identical_completions"]), (2, 0))
    assert "5 groups of kind preference (ranked, 2 to 4 in a group), 14 compl" in groups.text, groups.text
    assert "two scores are equal      2 (40.0 %), kept" in groups.text, groups.text


def test_no_scores_at_all(folder):
    groups = convert(folder, [{"prompt": "a", "completions": ["b", "c", "d"]}])
    same((groups.completions, groups.scores), ([[[4, E], [5, E], [6, E]]], None))


def test_sort_against_insertion(folder):
    # Groups up to the largest, against an insertion sort: many ties, so an unstable sort would show.
    dice, letters = random.Random(5), "abcdefgh"
    rows = []
    for size in (2, 3, 7, 33, LARGEST_GROUP):
        answers = ["".join(dice.choices(letters, k=5)) for _ in range(size)]
        rows.append({"prompt": "a", "completions": answers, "scores": [dice.randint(-2, 2) for _ in answers]})
    groups = convert(folder, rows)
    for row, completions, scores in zip(rows, groups.completions, groups.scores):
        placed = []
        for score, answer in zip(row["scores"], row["completions"]):
            place = len(placed)
            while place > 0 and placed[place - 1][0] < score:
                place -= 1
            placed.insert(place, (score, [*fixtures.ids_of(answer), E]))
        same(list(zip(scores, completions)), placed)


def test_conversations(folder):
    ask = [user("b?")]
    rows = [
        {"prompt": ask, "completions": [[assistant(x)] for x in "cde"], "scores": [1, 2, 3]},
        # One that repeats the prompt's messages means what follows them.
        {"prompt": ask, "completions": [[assistant("c")], ask + [assistant("d")]]},
        {"prompt": ask, "completions": [[assistant("c"), user("a"), assistant("d")], [assistant("e")]]},
    ]  # fmt: skip
    groups = convert(folder, rows)
    prompt = [S, 15, 12, 4, 13, 3, 12]  # <s>U:b?a:
    same(groups.prompts, [prompt] * 3)
    same(groups.completions, [
        [[7, E], [6, E], [5, E]], [[5, E], [6, E]], [[5, E, 15, 12, 3, 3, 12, 6, E], [7, E]],
    ])  # fmt: skip


def test_two_ranked_are_a_pair(folder):
    # A ranking of two and a preference pair give the same tokens, whatever the truncation.
    answers = [("cd", "e"), ("cdefgh", "ef"), ("e", "cdefgh"), ("c", "c")]
    pairs = [{"prompt": "abcab", "chosen": a, "rejected": b} for a, b in answers]
    ranked = [{"prompt": "abcab", "completions": [b, a], "scores": [1, 2]} for a, b in answers]
    for options in ((), ("--max_length", 9), ("--max_length", 8, "--truncation", "keep_end"),
                    ("--max_length", 8, "--truncation", "authors", "--max_prompt_length", 3)):  # fmt: skip
        one = convert(folder, pairs, *options, merges=[("b", "c")])
        two = convert(folder, ranked, *options, merges=[("b", "c")])
        same((two.prompts, two.completions, two.rows), (one.prompts, one.completions, one.rows))
        drop = {"form", "tied_scores", "group_sizes"}
        same(*[{k: v for k, v in groups.summary.items() if k not in drop} for groups in (two, one)])


def test_merge_over_the_boundary(folder):
    # One completion of three merges with the prompt's last token (16 is "bc"): the prompt is what all share.
    groups = convert(folder, [{"prompt": "ab", "completions": ["e", "f", "cd"]}], merges=[("b", "c")])
    same((groups.prompts, groups.completions), ([[S, 3]], [[[4, 7, E], [4, 8, E], [16, 6, E]]]))
    same(groups.summary["boundary_mismatches"], 1)


RANKING = {"prompt": "abcd", "completions": ["e", "ef", "efg"]}  # 5 tokens + 2, 3, 4


def test_truncation(folder):
    groups = convert(folder, [RANKING], "--max_length", 7)
    same((groups.prompts, groups.completions), ([[S, 3, 4, 5, 6]], [[[7, E], [7, 8], [7, 8]]]))
    summary = groups.summary
    same((summary["truncated_rows"], summary["truncated_completions"]), (1, 2))
    same(summary["identical_completions"], 1)  # the last two, once cut
    assert "two completions are equal 1 (100.0 %), kept" in groups.text, groups.text
    groups = convert(folder, [RANKING], "--max_length", 7, "--truncation", "keep_end")
    same((groups.prompts, groups.completions), ([[4, 5, 6]], [[[7, E], [7, 8, E], [7, 8, 9, E]]]))
    same(groups.summary["differs_from_separate_sequences"], 1)
    assert "one prompt for all        1 (100.0 %): cut where completions alone" in groups.text, groups.text
    options = ("--max_length", 6, "--truncation", "authors", "--max_prompt_length", 4)
    groups = convert(folder, [RANKING], *options)
    same((groups.prompts, groups.completions), ([[3, 4, 5, 6]], [[[7, E], [7, 8], [7, 8]]]))


def test_dropped_rows(folder):
    # As for pairs: a prompt that fills max_length, one completion that is empty, one that leaves no prompt.
    short = {"prompt": "a", "completions": ["b", "c"]}
    groups = convert(folder, [RANKING, short], "--max_length", 5)
    same((groups.rows, groups.summary["dropped_because"]), ([1], {"prompt too long": 1}))
    same(groups.summary["group_sizes"], {"2": 1})
    long = {"prompt": "a", "completions": ["b", "c", "bcdefgh"]}
    groups = convert(folder, [long, short], "--max_length", 6, "--truncation", "keep_end")
    same((groups.rows, groups.summary["dropped_because"]), ([1], {"completion too long": 1}))
    good = {"prompt": [user("a")], "completions": [[assistant("b")], [assistant("c")]]}
    rows = [{**good, "completions": [*good["completions"], []]}, {**good, "prompt": []}, good,
            {**good, "completions": [*good["completions"], [user("a")]]}]  # fmt: skip
    groups = convert(folder, rows)
    same((groups.rows, groups.summary["dropped_because"]), ([2], {"empty prompt": 1, "empty completion": 2}))


def test_kinds_of_rows(folder):
    # chosen and rejected go before completions, unless --format says otherwise.
    row = {**PAIR, "completions": ["e", "f", "g"]}
    same(convert(folder, [row]).completions, [[[5, E], [6, E]]])
    groups = convert(folder, [row], "--format", "ranked")
    same((groups.completions, groups.attributes["form"]), ([[[7, E], [8, E], [9, E]]], "ranked"))
    same(convert(folder, [PAIR]).attributes["form"], "pair")
    assert "form" not in convert(folder, [{"prompt": "a", "completion": "b"}]).attributes


def test_parquet(folder):
    model = fixtures.write_model(os.path.join(folder, "m"), letters_tokenizer(), template=LETTERS_TEMPLATE)
    ask = [user("b?")]
    # A message that has a field which others lack gives all of them that field, empty.
    noted = [{"role": "user", "content": "b?", "name": None}, {**assistant("d"), "name": "h"}]
    tables = (
        ([{"prompt": "ab", "completions": ["c", "d", "e"], "scores": [1.0, 2.0, 3.0]},
          {"prompt": "ab", "completions": ["c", "d"], "scores": None}],
         [[[7, E], [6, E], [5, E]], [[5, E], [6, E]]]),
        ([{"prompt": ask, "completions": [[assistant("c")], noted]}], [[[5, E], [6, E]]]),
        ([{"prompt": ask, "chosen": [assistant("c")], "rejected": [assistant("e")], "sampled": noted}],
         [[[5, E], [7, E], [6, E]]]),
    )  # fmt: skip
    path, out = os.path.join(folder, "rows.parquet"), os.path.join(folder, "out.h5")
    for rows, want in tables:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        code, _, errors = fixtures.prepare(model, path, out, "--overwrite")
        assert code == 0, errors
        same(Groups(out).completions, want)


def test_sampled_text(folder):
    rows = [{**PAIR, "sampled": "e", "score_chosen": 2, "score_rejected": 1},
            {**PAIR, "sampled": "c", "score_sampled": 7, "completions": 3}]  # fmt: skip
    groups = convert(folder, rows)
    same((groups.attributes["kind"], groups.attributes["form"]), ("preference", "sampled"))
    same(groups.completions, [[[5, E], [6, E], [7, E]], [[5, E], [6, E], [5, E]]])
    same(nan_as_none(groups.scores), [[2, 1, None], [None, None, 7]])  # never sorted
    same(groups.summary["identical_completions"], 0)  # the policy may well draw the chosen one
    assert "2 groups of kind preference (chosen, rejected, sampled), 6 compl" in groups.text, groups.text
    assert "tied_scores" not in groups.summary and "group_sizes" not in groups.summary
    same(convert(folder, [{**PAIR, "sampled": "e"}]).scores, None)
    same(convert(folder, [{**PAIR, "rejected": "c", "sampled": "e"}]).summary["identical_completions"], 1)


def test_sampled_with_the_prompt_inside(folder):
    rows = [
        {"chosen": "ab cd", "rejected": "ab ef", "sampled": "ab gh"},
        {"chosen": "ab cd", "rejected": "ab ef", "sampled": "ab"},  # nothing of its own but the end
        {"chosen": "cd", "rejected": "ef", "sampled": "gh"},  # nothing in common
    ]
    groups = convert(folder, rows)
    same(groups.prompts, [[S, 3, 4], [S, 3, 4], [S]])
    same(groups.completions, [
        [[11, 5, 6, E], [11, 7, 8, E], [11, 9, 10, E]], [[11, 5, 6, E], [11, 7, 8, E], [E]],
        [[5, 6, E], [7, 8, E], [9, 10, E]],
    ])  # fmt: skip


def test_sampled_conversations(folder):
    head = [user("a"), assistant("b"), user("c")]
    inside = {"chosen": head + [assistant("d")], "rejected": head + [assistant("e")]}
    apart = {"prompt": head, "chosen": [assistant("d")], "rejected": [assistant("e")]}
    want = [[[6, E], [7, E], [8, E]]] * 2
    for row in (inside, apart, {"prompt": "as text", **inside}):
        rows = [{**row, "sampled": sampled} for sampled in ([assistant("f")], head + [assistant("f")])]
        groups = convert(folder, rows)
        same(groups.prompts, [[S, *fixtures.ids_of("U:aa:b"), E, *fixtures.ids_of("U:ca:")]] * 2)
        same(groups.completions, want)
    rows = [{**apart, "sampled": sampled} for sampled in (head, [], [assistant("f")])]
    groups = convert(folder, rows)
    same((groups.rows, groups.summary["dropped_because"]), ([2], {"empty completion": 2}))


def test_probabilities_pass_unchanged(folder):
    groups = convert(folder, [{**PAIR, "score_chosen": 0.75, "score_rejected": 0.0}])
    same(groups.scores, [[0.75, 0.0]])


if __name__ == "__main__":
    fixtures.run_tests(globals())
