"""Bad input ends in one sentence that names the place, exit code 1 (2 for usage) and no file left behind."""

import json
import os
import subprocess
import sys
import tempfile

import fixtures
import pyarrow
import pyarrow.parquet
from fixtures import LETTERS_TEMPLATE, assistant, letters_tokenizer, user

GOOD = {"prompt": "ab", "chosen": "c", "rejected": "d"}
CHAT = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}
RANKED = {"prompt": "ab", "completions": ["c", "d", "e"], "scores": [1, 2.5, -3]}
RANKED_CHAT = {"prompt": [user("a")], "completions": [[assistant("b")], [assistant("c")]]}


def model_in(folder, **settings):
    path = tempfile.mkdtemp(dir=folder)
    return fixtures.write_model(path, letters_tokenizer(), **{"template": LETTERS_TEMPLATE, **settings})


def expect(
    folder, words, *options, rows=None, raw=None, data=None, model=None, name="rows.jsonl", code=1, out=None
):
    """Runs on `rows`, on a file of `raw` bytes or on the path `data`; the sentence must hold all of `words`."""
    if data is None:
        data = os.path.join(tempfile.mkdtemp(dir=folder), name)
        if rows is not None:
            raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
        with open(data, "wb") as file:
            file.write(raw)
    place = tempfile.mkdtemp(dir=folder)
    target = out or os.path.join(place, "out.h5")
    status, text, errors = fixtures.prepare(
        model or model_in(folder), data, target, "--num_proc", 1, *options
    )
    assert status == code, (words, status, text, errors)
    lines = errors.strip().split("\n")
    assert len(lines) == 1, errors
    assert lines[-1].startswith("wpo prepare: ") and text == "", (text, errors)
    assert "Traceback" not in errors and "internal error" not in errors, errors
    for word in words:
        assert word in lines[-1], (word, lines[-1])
    assert os.listdir(place) == [], os.listdir(place)
    return lines[-1]


def test_json(folder):
    good = json.dumps(GOOD).encode() + b"\n"
    expect(folder, ["rows.jsonl", "row 1 (line 2)", "not valid JSON"], raw=good + b'{"prompt": "a", \n')
    expect(folder, ["row 1 (line 3)", "not valid JSON"], raw=good + b"\n" + b"nonsense\n")
    expect(
        folder,
        ["row 1 (line 2)", "'prompt'", "twice"],
        raw=good + b'{"prompt": "a", "prompt": "b", "chosen": "c"}\n',
    )
    inner = b'{"prompt": [{"role": "user", "role": "user"}], "chosen": [], "rejected": []}\n'
    expect(folder, ["row 0 (line 1)", "'role'", "twice"], raw=inner)
    expect(
        folder,
        ["row 1 (line 2)", "not UTF-8", "byte 12"],
        raw=good + b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n',
    )
    expect(folder, ["row 0 (line 1)", "not a JSON object"], raw=b"[1, 2]\n")
    expect(folder, ["row 0 (line 1)", "JSON array", "one object a line"], raw=b"[\n" + good + b"]\n")
    expect(folder, ["row 0 (line 1)", "not valid JSON"], raw=b"[" * 100000 + b"\n")
    expect(
        folder,
        ["row 1 (line 2)", "'chosen'", "surrogate"],
        raw=good + b'{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}\n',
    )
    expect(folder, ["rows.jsonl", "empty"], raw=b"")
    expect(folder, ["rows.jsonl", "no rows"], raw=b"\n\n")
    expect(folder, ["compressed"], raw=b"\x1f\x8b\x08\x00abc")


def test_columns(folder):
    expect(
        folder,
        ["row 0", "instruction, output", "chosen and rejected"],
        rows=[{"instruction": "a", "output": "b"}],
    )
    expect(
        folder,
        ["row 1 (line 2)", "'rejected'", "prompt, chosen"],
        rows=[GOOD, {"prompt": "a", "chosen": "b"}],
    )
    expect(folder, ["row 1", "'prompt'"], rows=[GOOD, {**GOOD, "prompt": None}])
    expect(folder, ["row 1", "'chosen' must be text", "a number"], rows=[GOOD, {**GOOD, "chosen": 3}])
    expect(
        folder,
        ["row 1", "'rejected' must be text", "a list"],
        rows=[GOOD, {**GOOD, "rejected": [assistant("b")]}],
    )
    expect(folder, ["row 1", "'chosen' must be a list of messages"], rows=[CHAT, {**CHAT, "chosen": "b"}])
    expect(folder, ["row 0", "'chosen[0]'", "role"], rows=[{**CHAT, "chosen": [{"content": "b"}]}])
    expect(folder, ["row 0", "'chosen[0].content'", "a number"], rows=[{**CHAT, "chosen": [assistant(3)]}])
    expect(folder, ["row 0", "'score_chosen' must be a number", "text"], rows=[{**GOOD, "score_chosen": "9"}])
    expect(
        folder,
        ["row 0", "'score_rejected'", "finite"],
        raw=b'{"prompt":"a","chosen":"b","rejected":"c","score_rejected":1e39}\n',
    )
    expect(
        folder,
        ["row 0", "'label' must be true or false", "3"],
        rows=[{"prompt": "a", "completion": "b", "label": 3}],
    )
    expect(folder, ["row 0", "'label'"], "--format", "unpaired", rows=[{"prompt": "a", "completion": "b"}])
    expect(folder, ["row 0", "'completion'"], "--format", "prompt-completion", rows=[GOOD])
    expect(folder, ["row 0", "'tools'", "JSON"], rows=[{**CHAT, "tools": "{"}])
    expect(folder, ["row 0", "'chat_template_kwargs'"], rows=[{**CHAT, "chat_template_kwargs": 3}])


def test_literals(folder):
    # What Python's parser takes for numbers, wherever it stands, and numbers that are no float32.
    for value, word in (("NaN", "NaN"), ("Infinity", "Infinity"), ("-Infinity", "-Infinity")):
        raw = '{"prompt":"a","chosen":"b","rejected":"c","score_chosen":%s}' % value
        line = json.dumps(GOOD) + "\n" + raw
        said = expect(folder, ["row 1 (line 2)", f"'score_chosen' holds {word},", "not JSON"], raw=line.encode())
        assert said.endswith("write a number, or null for none."), said
    raw = b'{"prompt":"a","completions":["b","c"],"scores":[1, NaN]}'
    expect(folder, ["row 0 (line 1)", "'scores' holds NaN"], raw=raw)
    expect(folder, ["'extra' holds NaN"], raw=b'{"prompt":"a","chosen":"b","rejected":"c","extra":[{"x":[NaN]}]}')
    for value in ("1e999", "-1e39", "4" * 60):
        raw = '{"prompt":"a","completions":["b","c"],"scores":[1, %s]}' % value
        expect(folder, ["row 0", "'scores[1]'", "finite"], raw=raw.encode())


def test_ranked(folder):
    wrong = (
        ({"completions": "cd"}, ["'completions' must be a list", "text"]),
        ({"completions": []}, ["'completions' holds 0;", "2 to 64"]),
        ({"completions": ["c"], "scores": [1]}, ["'completions' holds 1;", "2 to 64"]),
        ({"completions": ["c"] * 65, "scores": None}, ["'completions' holds 65;", "2 to 64"]),
        ({"completions": ["c", [assistant("d")], "e"]}, ["'completions[1]' must be text", "a list"]),
        ({"completions": ["c", None, "e"]}, ["'completions[1]' must be text", "nothing"]),
        ({"completions": None}, ["no 'completions'"]),
        ({"prompt": None}, ["no 'prompt'"]),
        ({"prompt": [user("a")]}, ["'prompt' must be text"]),
        ({"scores": [1, 2]}, ["'scores' holds 2 for 3 completions"]),
        ({"scores": []}, ["'scores' holds 0 for 3 completions"]),
        ({"scores": [1, None, 2]}, ["'scores[1]' is no number", "every completion or none"]),
        ({"scores": [None, None, 2]}, ["'scores[0]' is no number"]),
        ({"scores": [1, "2", 3]}, ["'scores[1]' must be a number", "text"]),
        ({"scores": [1, True, 3]}, ["'scores[1]' must be a number", "a boolean"]),
        ({"scores": 3}, ["'scores' must be a list of numbers", "a number"]),
    )
    for change, words in wrong:
        expect(folder, ["row 1 (line 2)", *words], rows=[RANKED, {**RANKED, **change}])
    expect(folder, ["row 0", "'completions[0]' must be text or a list of messages", "an object"],
           rows=[{"prompt": "a", "completions": [{"response": "b"}, {"response": "c"}]}])  # fmt: skip
    expect(folder, ["row 0", "'prompt' must be a list of messages"], rows=[{**RANKED_CHAT, "prompt": "a"}])
    broken = {**RANKED_CHAT, "completions": [[assistant("b")], [{"role": "assistant", "content": 3}]]}
    expect(folder, ["row 1", "'completions[1][0].content' must be text"], rows=[RANKED_CHAT, broken])
    expect(folder, ["row 0", "'completions'", "ranked data"], "--format", "ranked", rows=[GOOD])
    expect(folder, ["row 0", "'chosen'"], "--format", "preference", rows=[RANKED])
    # Parquet has NaN.
    path = os.path.join(folder, "ranked.parquet")
    rows = [RANKED, {**RANKED, "scores": [1.0, 2.0, float("nan")]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    expect(folder, ["ranked.parquet: row 1", "'scores[2]' is no number"], data=path)


def test_sampled(folder):
    text, chat = {**GOOD, "sampled": "e"}, {**CHAT, "sampled": [assistant("d")]}
    for changed, words in (
        ({**text, "sampled": None}, ["has no 'sampled', which the first row has"]),
        (GOOD, ["has no 'sampled', which the first row has"]),
        ({**text, "sampled": 3}, ["'sampled' must be text", "a number"]),
        ({**text, "score_sampled": "x"}, ["'score_sampled' must be a number"]),
    ):
        expect(folder, ["row 1 (line 2)", *words], rows=[text, changed])
    expect(folder, ["row 1 (line 2)", "has 'sampled', which the first row lacks"], rows=[GOOD, text])
    expect(folder, ["row 1", "'sampled' must be a list of messages"], rows=[chat, {**chat, "sampled": "e"}])
    # With the prompt inside: no guess what of `sampled` is the answer.
    head = {"chosen": "ab cd", "rejected": "ab ef"}
    expect(folder, ["row 0", "'sampled' does not begin", "'chosen' and 'rejected'", "a column of its own"],
           rows=[{**head, "sampled": "gh"}])  # fmt: skip
    start = [user("a"), assistant("b"), user("c")]
    inside = {"chosen": start + [assistant("d")], "rejected": start + [assistant("e")]}
    other = [user("a"), assistant("h"), user("c"), assistant("f")]
    expect(folder, ["row 0", "'sampled' begins neither"], rows=[{**inside, "sampled": other}])
    whole = {key: [user("a"), assistant("b")] for key in ("chosen", "rejected", "sampled")}
    expect(folder, ["row 0", "'chosen' and 'sampled' repeat"], rows=[{"prompt": [user("a")], **whole}])


def test_template(folder):
    refuse = model_in(folder, template="{{ raise_exception('roles must alternate') }}")
    expect(folder, ["row 0 (line 1)", "refuses", "roles must alternate"], rows=[CHAT], model=refuse)
    broken = model_in(folder, template="{% for m in messages %}")
    expect(folder, [broken, "does not compile"], rows=[CHAT], model=broken)
    hostile = model_in(folder, template="{{ ''.__class__.__mro__[1].__subclasses__() }}")
    expect(folder, ["row 0", "refuses", "unsafe"], rows=[CHAT], model=hostile)
    none = model_in(folder, template=None)
    expect(folder, [none, "no chat template"], rows=[CHAT], model=none)
    other = model_in(folder, template=[{"name": "rag", "template": "x"}])
    expect(folder, ["'default'", "rag"], rows=[CHAT], model=other)


def test_model(folder):
    expect(folder, ["/nowhere", "not a folder"], rows=[GOOD], model="/nowhere")
    for name, content, words in (
        ("config.json", "{}", ["config.json", "vocab_size"]), ("config.json", "{", ["config.json", "not valid JSON"]),
        ("tokenizer.json", "{}", ["tokenizer.json", "cannot be loaded"]),
        ("tokenizer.json", None, ["tokenizer.json", "missing"]), ("config.json", None, ["config.json", "cannot be read"]),
        ("tokenizer_config.json", '{"chat_template": 3}', ["chat_template"]),
        ("tokenizer_config.json", "[]", ["tokenizer_config.json", "object"]),
        ("tokenizer_config.json", "{}", ["no eos_token"]),
        ("tokenizer_config.json", '{"eos_token": "</s>", "added_tokens_decoder": {"x": {}}}', ["cannot be loaded"]),
    ):  # fmt: skip
        model = model_in(folder)
        path = os.path.join(model, name)
        os.unlink(path)
        if content is not None:
            with open(path, "w") as file:
                file.write(content)
        expect(folder, words, rows=[GOOD], model=model)


def test_vocabulary(folder):
    model = model_in(folder, vocabulary=12)  # up to the space
    expect(
        folder,
        ["row 1 (line 2)", "token 13", "'?'", "vocab_size 12"],
        rows=[GOOD, {**GOOD, "rejected": "a?"}],
        model=model,
    )


def test_nothing_left(folder):
    expect(folder, ["no row of 1", "prompt too long 1"], "--max_length", 2, rows=[GOOD])


def test_paths(folder):
    expect(folder, ["/nowhere.jsonl", "no such file"], data="/nowhere.jsonl")
    expect(folder, ["holds no .parquet"], data=tempfile.mkdtemp(dir=folder))
    expect(folder, ["--split", "folder"], "--split", "train", rows=[GOOD])
    expect(folder, ["/nowhere", "does not exist"], rows=[GOOD], out="/nowhere/out.h5")
    expect(folder, ["is a folder"], rows=[GOOD], out=folder)
    present = os.path.join(folder, "present.h5")
    with open(present, "w") as file:
        file.write("keep me")
    expect(folder, ["present.h5", "exists", "--overwrite"], rows=[GOOD], out=present)
    expect(folder, ["not valid JSON"], "--overwrite", raw=b"{\n", out=present)
    with open(present) as file:
        assert file.read() == "keep me"
    data = fixtures.write_rows(os.path.join(folder, "both.jsonl"), [GOOD])
    expect(folder, ["also --data"], "--overwrite", data=data, out=data)
    if os.path.exists("/dev/full") and os.path.isdir("/proc/self"):
        expect(folder, ["/proc/self/out.h5", "cannot be written"], rows=[GOOD], out="/proc/self/out.h5")


def test_parquet(folder):
    path = os.path.join(folder, "rows.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 1000), path)
    with open(path, "rb") as file:
        raw = file.read()
    expect(folder, ["cut.parquet", "not a readable Parquet file"], raw=raw[:-20], name="cut.parquet")
    middle = bytearray(raw)
    middle[4:40] = bytes(36)
    expect(folder, ["torn.parquet", "read"], raw=bytes(middle), name="torn.parquet")
    expect(folder, ["empty.parquet", "empty"], raw=b"", name="empty.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}]), path)
    expect(folder, ["rows.parquet", "columns text", "chosen and rejected"], data=path)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]).slice(0, 0), path)
    expect(folder, ["rows.parquet", "no rows"], data=path)


def test_error_of_the_first_bad_row(folder):
    # Whatever the number of processes, the first bad row is the one that is named.
    rows = [GOOD] * 700
    rows[300] = rows[650] = {**GOOD, "chosen": 1}
    for processes in (1, 4):
        expect(folder, ["row 300 (line 301)"], "--num_proc", processes, rows=rows)


def test_usage(folder):
    for options, words in (
        (["--max_length", "0"], ["positive"]), (["--max_length", "1"], ["at least 2"]), (["--max_length", "x"], ["integer"]),
        (["--max_prompt_length", "5"], ["--truncation authors"]), (["--nonsense"], ["--nonsense"]),
        (["--truncation", "authors", "--max-length", "512"], ["no room"]), (["--truncation", "left"], ["keep_start"]),
        (["--max_len", "100"], ["unknown option --max_len (did you mean --max_length?)"]),
        (["--nonsense", "3"], ["unknown option --nonsense;"]), (["--format", "pairs"], ["--format", "ranked", "unpaired"]),
        (["--json", "stray"], ["'stray' belongs to no option"]), (["--split"], ["--split", "one argument"]),
        (["--max_length", "x\ny"], ["integer"]),
    ):  # fmt: skip
        said = expect(folder, words, *options, rows=[GOOD], code=2)
        assert said.endswith("; `wpo prepare --help` shows the options."), said
    done = subprocess.run([sys.executable, fixtures.PREPARE], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stdout == "", done
    assert done.stderr.startswith("wpo prepare: ") and "--model, --data, --out" in done.stderr, done.stderr


if __name__ == "__main__":
    fixtures.run_tests(globals())
