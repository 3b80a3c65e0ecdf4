"""Rows of every format become the ids worked out here by hand (a = 3 ... h = 10, see fixtures.LETTERS)."""

import json
import math
import os

import fixtures
import pyarrow
import pyarrow.parquet
from fixtures import LETTERS_TEMPLATE, assistant, ids_of, letters_tokenizer, user

from text.groups_file import Groups

S, E = 1, 2  # <s>, </s>


def convert(folder, rows, *options, merges=(), bos=True, template=LETTERS_TEMPLATE, **settings):
    model = fixtures.write_model(
        os.path.join(folder, "model"), letters_tokenizer(merges, bos), template=template, **settings
    )
    data = fixtures.write_rows(os.path.join(folder, "rows.jsonl"), rows)
    out = os.path.join(folder, "rows.h5")
    code, text, errors = fixtures.prepare(model, data, out, "--overwrite", *options)
    assert code == 0, errors
    groups = Groups(out)
    groups.text, groups.errors = text, errors
    return groups


def same(have, want):
    assert have == want, f"{have} instead of {want}"


def test_text_preference(folder):
    groups = convert(folder, [{"prompt": "ab?", "chosen": "cd", "rejected": "e</s>", "other": 1}])
    same(groups.attributes["kind"], "preference")
    same(groups.prompts, [[S, 3, 4, 13]])
    same(groups.completions, [[[5, 6, E], [7, E]]])
    same((groups.rows, groups.scores, groups.labels), ([0], None, None))


def test_conversation_preference(folder):
    rows = [{"prompt": [user("b?")], "chosen": [assistant("cd")], "rejected": [assistant("e")]}]
    groups = convert(folder, rows)
    same(groups.prompts, [[S, 15, 12, 4, 13, 3, 12]])  # <s>U:b?a:
    same(groups.completions, [[[5, 6, E], [7, E]]])


def test_conversation_without_bos_in_the_template(folder):
    # Special tokens come from the template alone, although this tokenizer puts <s> in front of texts.
    rows = [{"prompt": [user("b?")], "chosen": [assistant("cd")], "rejected": [assistant("e")]}]
    groups = convert(folder, rows, template=LETTERS_TEMPLATE.replace("{{ bos_token }}", ""))
    same(groups.prompts, [ids_of("U:b?a:")])


def test_implicit_prompt_in_conversations(folder):
    head = [user("a"), assistant("b"), user("c")]
    rows = [{"chosen": head + [assistant("d")], "rejected": head + [assistant("e")]}]
    groups = convert(folder, rows)
    same(groups.prompts, [[S, *ids_of("U:aa:b"), E, *ids_of("U:ca:")]])
    same(groups.completions, [[[6, E], [7, E]]])


def test_implicit_prompt_in_texts(folder):
    rows = [
        {"chosen": "ab cd", "rejected": "ab ef"},  # the space goes to the completions
        {"chosen": "abc", "rejected": "abd"},
        {
            "chosen": "ab",
            "rejected": "abcd",
        },  # one begins with the other: its last character is its completion
        {"chosen": "ab", "rejected": "cd"},  # nothing in common: the prompt is <s> alone
    ]
    groups = convert(folder, rows)
    same(groups.prompts, [[S, 3, 4], [S, 3, 4], [S, 3], [S]])
    same(groups.completions, [
        [[11, 5, 6, E], [11, 7, 8, E]], [[5, E], [6, E]], [[4, E], [4, 5, 6, E]], [[3, 4, E], [5, 6, E]],
    ])  # fmt: skip


def ultrafeedback_row():
    return {
        "prompt": "b?", "prompt_id": "0", "score_chosen": 8.5, "score_rejected": 4.0,
        "chosen": [user("b?"), assistant("cd")], "rejected": [user("b?"), assistant("e")],
        "messages": [user("b?"), assistant("cd")],
    }  # fmt: skip


def test_ultrafeedback_folder_of_parquet(folder):
    place = os.path.join(folder, "ultrafeedback", "data")
    os.makedirs(place)
    for split, count in (
        ("train_prefs-00000-of-00002", 2),
        ("train_prefs-00001-of-00002", 1),
        ("test_prefs-00000-of-00001", 5),
    ):
        table = pyarrow.Table.from_pylist([ultrafeedback_row()] * count)
        pyarrow.parquet.write_table(table, os.path.join(place, split + ".parquet"))
    model = fixtures.write_model(
        os.path.join(folder, "model"), letters_tokenizer(), template=LETTERS_TEMPLATE
    )
    out = os.path.join(folder, "out.h5")
    code, _, errors = fixtures.prepare(model, os.path.dirname(place), out, "--split", "train_prefs")
    assert code == 0, errors
    groups = Groups(out)
    same(groups.rows, [0, 1, 2])
    same(groups.prompts, [[S, 15, 12, 4, 13, 3, 12]] * 3)
    same(groups.completions, [[[5, 6, E], [7, E]]] * 3)
    same(groups.scores, [[8.5, 4.0]] * 3)
    same(
        groups.attributes["source"], "train_prefs-00000-of-00002.parquet, train_prefs-00001-of-00002.parquet"
    )
    code, _, errors = fixtures.prepare(model, os.path.dirname(place), out, "--overwrite")
    assert code == 1 and "test_prefs, train_prefs" in errors and "--split" in errors, errors
    code, _, errors = fixtures.prepare(model, os.path.dirname(place), out, "--overwrite", "--split", "train")
    assert code == 1 and "'train'" in errors, errors  # a split's whole name, not its beginning


def test_prompt_completion(folder):
    groups = convert(
        folder, [{"prompt": "ab", "completion": "c", "score": 2}, {"prompt": "a", "completion": "d"}]
    )
    same(groups.attributes["kind"], "prompt-completion")
    same((groups.prompts, groups.completions), ([[S, 3, 4], [S, 3]], [[[5, E]], [[6, E]]]))
    same(groups.scores[0], [2.0])
    assert math.isnan(groups.scores[1][0])


def test_unpaired(folder):
    rows = [
        {"prompt": "ab", "completion": "c", "label": True},
        {"prompt": "a", "completion": "d", "label": False},
    ]
    groups = convert(folder, rows)
    same((groups.attributes["kind"], groups.labels), ("unpaired", [[1], [0]]))
    groups = convert(folder, rows, "--format", "prompt-completion")
    same((groups.attributes["kind"], groups.labels), ("prompt-completion", None))


def test_merge_over_the_boundary(folder):
    # "ab" + "cd" holds the token "bc" (16): the completion begins where the joint ids leave the prompt's own.
    rows = [
        {"prompt": "ab", "chosen": "cd", "rejected": "e"},
        {"prompt": "a", "chosen": "c", "rejected": "d"},
    ]
    groups = convert(folder, rows, merges=[("b", "c")])
    same(groups.prompts, [[S, 3], [S, 3]])
    same(groups.completions, [[[16, 6, E], [4, 7, E]], [[5, E], [6, E]]])
    same(groups.summary["boundary_mismatches"], 1)
    same(groups.summary["boundary_examples"], [{"row": 0, "tokens": [4], "pieces": ["b"]}])
    assert "row 0: the prompt loses 'b' (4)" in groups.text, groups.text


def test_merge_repair_of_the_authors(folder):
    rows = [
        {"prompt": "ab", "chosen": "cd", "rejected": "e"},
        {"prompt": "ab", "chosen": "cd", "rejected": "c"},
    ]
    groups = convert(folder, rows, "--truncation", "authors", "--max-prompt-length", 8, merges=[("b", "c")])
    same(groups.prompts, [[S, 3], [S, 3]])
    same(groups.completions, [[[16, 6, E], [4, 7, E]], [[16, 6, E], [16, E]]])
    # Row 0: alone, the rejected one would keep "b" in its prompt. Row 1: both lose it.
    same((groups.summary["boundary_mismatches"], groups.summary["differs_from_separate_sequences"]), (2, 1))


def test_bos_and_eos_of_the_authors(folder):
    rows = [
        {"prompt": "<s>a", "chosen": "b</s>", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c</s>."},
    ]
    groups = convert(folder, rows, "--truncation", "authors", bos=False)
    same(groups.prompts, [[S, 3], [S, 3]])
    same(groups.completions, [[[4, E], [5, E]], [[4, E], [5, E, 14, E]]])


PAIR = {"prompt": "abcd", "chosen": "ef", "rejected": "e"}  # 5 + 3 and 5 + 2 tokens


def test_keep_start(folder):
    groups = convert(folder, [PAIR], "--max_length", 7)
    same((groups.prompts, groups.completions), ([[S, 3, 4, 5, 6]], [[[7, 8], [7, E]]]))
    same((groups.summary["truncated_rows"], groups.summary["truncated_completions"]), (1, 1))
    groups = convert(folder, [PAIR], "--max_length", 6)
    same(groups.completions, [[[7], [7]]])
    same(groups.summary["identical_completions"], 1)
    assert "chosen equals rejected    1" in groups.text


def test_keep_end(folder):
    groups = convert(folder, [PAIR], "--max_length", 6, "--truncation", "keep_end")
    same((groups.prompts, groups.completions), ([[4, 5, 6]], [[[7, 8, E], [7, E]]]))
    same(groups.summary["differs_from_separate_sequences"], 1)


def test_authors(folder):
    options = ("--truncation", "authors", "--max_length", 6, "--max_prompt_length")
    groups = convert(folder, [PAIR], *options, 3)
    same((groups.prompts, groups.completions), ([[4, 5, 6]], [[[7, 8, E], [7, E]]]))
    groups = convert(folder, [PAIR], *options, 4)
    same((groups.prompts, groups.completions), ([[3, 4, 5, 6]], [[[7, 8], [7, E]]]))
    # A short prompt stays, and both completions are cut to max_length - max_prompt_length all the same.
    groups = convert(folder, [{"prompt": "a", "chosen": "bcdefg", "rejected": "b"}], *options, 4)
    same((groups.prompts, groups.completions), ([[S, 3]], [[[4, 5], [4, E]]]))


def test_drop_reasons(folder):
    rows = [PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    groups = convert(folder, rows, "--max_length", 5)
    same((groups.rows, groups.summary["dropped_because"]), ([1], {"prompt too long": 1}))
    rows = [{"prompt": "", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    groups = convert(folder, rows, bos=False)
    same((groups.rows, groups.summary["dropped_because"]), ([1], {"empty prompt": 1}))
    good = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
    groups = convert(folder, [good, {**good, "rejected": []}, {**good, "prompt": []}, good])
    same(
        (groups.rows, groups.summary["dropped_because"]), ([0, 3], {"empty prompt": 1, "empty completion": 1})
    )
    silent = "{{ bos_token }}{% for m in messages if m.role == 'user' or m.content != '' %}{{ m.content }}{% endfor %}"
    groups = convert(folder, [good, {**good, "chosen": [assistant("")]}], template=silent)
    same((groups.rows, groups.summary["dropped_because"]), ([0], {"empty completion": 1}))
    rows = [
        {"prompt": "a", "chosen": "bcdefgh", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    groups = convert(folder, rows, "--max_length", 6, "--truncation", "keep_end")
    same((groups.rows, groups.summary["dropped_because"]), ([1], {"completion too long": 1}))
    rows = [PAIR, PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    groups = convert(folder, rows, "--max_length", 5)
    assert "warning: 2 of 3 rows were dropped (prompt too long 2)" in groups.errors, groups.errors


def test_audit_counts(folder):
    rows = [
        {"prompt": "<s>a", "chosen": "b", "rejected": "b"},  # two <s>, equal completions
        {"prompt": "ab", "chosen": "cd", "rejected": "e"},
    ]
    summary = convert(folder, rows, "--max_length", 16).summary
    same(
        (summary["double_bos"], summary["identical_completions"], summary["completions_without_eos"]),
        (1, 1, 0),
    )
    same((summary["prompt_tokens"], summary["completion_tokens"]), (3 + 3, 2 + 2 + 3 + 2))
    same((summary["mean_prompt_length"], summary["mean_completion_length"]), (3.0, 2.25))
    same(summary["prefix_sharing_gain"], round((5 + 5 + 6 + 5) / 15, 3))
    same(summary["total_lengths"], {"min": 5, "median": 5, "p95": 6, "max": 6})
    same([bin["count"] for bin in summary["histogram"]], [0, 0, 0, 0, 3, 1])
    rows = [{"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}]
    summary = convert(folder, rows, template="{% for m in messages %}{{ m.content }}{% endfor %}").summary
    same(summary["completions_without_eos"], 2)


def test_json_is_the_summary(folder):
    groups = convert(folder, [PAIR], "--json")
    printed = json.loads(groups.text)
    same({key: value for key, value in printed.items() if key not in ("out", "bytes")}, groups.summary)
    same(printed["bytes"], os.path.getsize(printed["out"]))


def test_truncation_and_padding_in_tokenizer_json(folder):
    model = os.path.join(folder, "model")
    tokenizer = letters_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=20)
    fixtures.write_model(model, tokenizer)
    data = fixtures.write_rows(os.path.join(folder, "rows.jsonl"), [PAIR])
    code, _, errors = fixtures.prepare(model, data, os.path.join(folder, "out.h5"))
    assert code == 0, errors
    same(Groups(os.path.join(folder, "out.h5")).prompts, [[S, 3, 4, 5, 6]])


def test_template_features(folder):
    # Block trimming, loop control, tojson without escapes, raise_exception unused, variables of the row, named templates.
    template = (
        "{% if style %}\n    {{- style }}\n{%- endif %}\n"
        "{% for m in messages %}\n    {% if m.role == 'system' %}{% continue %}{% endif %}\n{{ m.content | trim }}{% endfor %}"
    )
    rows = [{"prompt": [{"role": "system", "content": "h"}, user(" a ")], "chosen": [assistant("b")],
             "rejected": [{"role": "assistant", "content": "c", "tool_calls": None}], "chat_template_kwargs": {"style": "g"}}]  # fmt: skip
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    groups = convert(folder, rows, template=named)
    same((groups.prompts, groups.completions), ([ids_of("ga")], [[[4], [5]]]))


if __name__ == "__main__":
    fixtures.run_tests(globals())
