"""The quickstart's report against numbers worked out by hand, and its way of holding out rows of a user's file."""

import json
import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TEXT = os.path.join(ROOT, "launcher", "text")
sys.path.insert(0, os.path.join(ROOT, "launcher"))
from text import report  # noqa: E402


def write(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def run(script, *words):
    return subprocess.run([sys.executable, os.path.join(TEXT, script), *words], capture_output=True, text=True)


def record(row, completion, tokens, logp):
    return {"row": row, "completion": completion, "tokens": tokens, "logp": logp}


# Four pairs, in no order. Per token before: -1 > -2 right, -2 < -1 wrong, -3 < -2.5 wrong, -1 = -1 wrong: 1/4. Summed:
# -4 > -6 right, -4 < -1 wrong, -3 > -5 right, -2 > -3 right: 3/4.
BEFORE = [record(4, 0, 4, -4.0), record(4, 1, 3, -6.0), record(0, 1, 1, -1.0), record(0, 0, 2, -4.0),
          record(2, 0, 1, -3.0), record(2, 1, 2, -5.0), record(1, 0, 2, -2.0), record(1, 1, 3, -3.0)]
# After: -1 > -3, -2 > -5, -3 < -2.5, -1 > -2: 3/4 per token; summed -4 > -9, -4 > -5, -3 > -5, -2 > -6: all.
AFTER = [record(4, 0, 4, -4.0), record(4, 1, 3, -9.0), record(0, 1, 1, -5.0), record(0, 0, 2, -4.0),
         record(2, 0, 1, -3.0), record(2, 1, 2, -5.0), record(1, 0, 2, -2.0), record(1, 1, 3, -6.0)]
SCORES = [(0.9, 0.1), (0.8, 0.3), (0.7, 0.2), (9.0, 0.0), (0.6, 0.5)]  # of rows 0 to 4; row 3 was not kept
METRICS = [{"step": 5, "loss": 0.6, "rewards/margins": 0.1, "rewards/accuracies": 0.5, "weights/mean": 0.9},
           {"step": 10, "eval_loss": 0.5, "eval_rewards/margins": -0.2, "eval_rewards/accuracies": 0.75,
            "eval_weights/mean": 0.8},
           {"step": 10, "loss": 0.4, "rewards/margins": 0.3, "rewards/accuracies": 0.9, "weights/mean": 0.7}]


def report_on(folder, accuracy, margin, *words):
    stem = os.path.join(folder, "")
    write(stem + "before.jsonl", BEFORE)
    write(stem + "after.jsonl", AFTER)
    write(stem + "before.json", [{"rewards/accuracies": 0.0, "rewards/margins": 0.0, "weights/mean": 0.75}])
    write(stem + "after.json", [{"rewards/accuracies": accuracy, "rewards/margins": margin, "weights/mean": 0.5}])
    write(stem + "heldout.jsonl", [{"score_chosen": a, "score_rejected": b} for a, b in SCORES])
    write(stem + "metrics.jsonl", METRICS)
    return run("report.py", "--before", stem + "before", "--after", stem + "after", "--metrics", stem + "metrics.jsonl",
               "--data", stem + "heldout.jsonl", "--out", stem + "report", "--title", "a <b> & c", *words)


def check_report(folder):
    done = report_on(folder, 0.75, 1.5, "--need_ranking", "0.5")
    assert done.returncode == 0, done.stderr
    numbers = json.load(open(os.path.join(folder, "report.json"), encoding="utf-8"))
    wanted = {
        "before": {"ranking": 0.25, "ranking_summed": 0.75, "margin": 0.0, "weight": 0.75, "chosen": -7 / 4,
                   "rejected": -6.5 / 4, "reward_first": (0.6 + 0.1 + 0.2 + 0.3) / 4},
        "after": {"ranking": 0.75, "ranking_summed": 1.0, "reward_accuracy": 0.75, "margin": 1.5, "weight": 0.5,
                  "reward_first": (0.6 + 0.9 + 0.2 + 0.8) / 4, "reward_best": 3.0 / 4},
    }
    # (row 4 is ranked right before: 0.6; rows 0, 2 and 1 wrong: 0.1, 0.2, 0.3)
    for side, values in wanted.items():
        for key, value in values.items():
            assert math.isclose(numbers[side][key], value, abs_tol=1e-12), (side, key, numbers[side][key], value)
    assert numbers["pairs"] == 4 and numbers["learned"] is True
    shown = " ".join(done.stdout.split())
    assert "log p per token 25.0 % 75.0 %" in shown and "summed log p 75.0 % 100.0 %" in shown, done.stdout
    assert "base model - 75.0 %" in shown and "(best: 0.750) 0.300 0.625" in shown, done.stdout
    assert "Learned: ranking accuracy" in done.stdout
    assert open(os.path.join(folder, "report.txt"), encoding="utf-8").read() == done.stdout

    assert report_on(folder, 0.75, 1.5, "--need_ranking", "0.51").returncode == report.NOT_LEARNED
    assert json.load(open(os.path.join(folder, "report.json"), encoding="utf-8"))["learned"] is False
    # Without a wanted rise: above chance, and a margin above 0.
    done = report_on(folder, 0.75, 1.5)
    assert done.returncode == 0 and "more held-out pairs are needed" in done.stdout  # 0.75 = 1/2 + 1 standard error
    assert report_on(folder, 0.5, 1.5).returncode == report.NOT_LEARNED
    done = report_on(folder, 0.75, -0.1)
    assert done.returncode == report.NOT_LEARNED and "Did NOT learn" in done.stdout
    os.unlink(os.path.join(folder, "metrics.jsonl"))
    done = run("report.py", "--before", folder + "/before", "--after", folder + "/after", "--metrics",
               folder + "/metrics.jsonl", "--out", folder + "/report")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "metrics.jsonl: cannot be read" in done.stderr


def check_plot():
    tree = xml.fromstring(report.draw(METRICS, "a <b> & c", "one & two"))
    space = "{http://www.w3.org/2000/svg}"
    width, height = float(tree.get("width")), float(tree.get("height"))
    words = [element.text for element in tree.iter(space + "text")]
    for name in ("a <b> & c", "one & two", "Loss", "Reward margin", "Reward accuracy", "Mean weight of a pair"):
        assert name in words, (name, words)
    curves = list(tree.iter(space + "polyline"))
    assert len(curves) == 8  # training and held-out in each of four panels
    for curve in curves:
        for point in curve.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 < x < width and 0 < y < height, point
    # Loss 0.6 at step 5 and 0.4 at step 10; the axis runs from 0 to 0.6 + 6 %, so 0.4 lies 0.2/0.636 of it lower.
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in curves[0].get("points").split())
    assert abs((x2 - x1) - report.PANEL_WIDTH / 2) < 0.11 and abs((y2 - y1) - report.PANEL_HEIGHT * 0.2 / 0.636) < 0.11
    # Before the first step no reward has a sign: that is no accuracy of 0.
    start = {"step": 0, "rewards/margins": 0.0, "rewards/accuracies": 0.0}
    assert report.series([start] + METRICS, "rewards/accuracies") == [(5, 0.5), (10, 0.9)]
    assert [label for _, label in report.ticks(0, 250, 6)] == ["0", "50", "100", "150", "200", "250"]
    assert [label for _, label in report.ticks(-0.21, 0.28, 5)] == ["-0.2", "-0.1", "0", "0.1", "0.2"]
    assert [label for _, label in report.ticks(-0.07, 0.12, 4)] == ["-0.05", "0", "0.05", "0.10"]
    for records in ([], [{"step": 0}], [{"step": 3, "loss": 0.0}], [{"step": 3, "loss": 1e-9, "eval_loss": -1e12}]):
        xml.fromstring(report.draw(records, "t", "s"))


def trial(folder, *words):
    model = os.path.join(folder, "model")
    os.makedirs(model, exist_ok=True)
    with open(os.path.join(model, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"max_position_embeddings": 77}, file)
    open(os.path.join(model, "model.safetensors"), "wb").write(b"x" * 100)
    return run("trial.py", "--model", model, "--out", os.path.join(folder, "split"), *words)


def check_trial(folder):
    data = os.path.join(folder, "pairs.jsonl")
    # 40 prompts of 1 to 4 rows each, a text prompt, messages, or none.
    rows = []
    for index in range(40):
        ask = [{"role": "user", "content": f"q{index}"}]
        kinds = [
            {"prompt": f"q{index}", "chosen": "y", "rejected": "n"},
            {"prompt": ask, "chosen": [{"role": "assistant", "content": "y"}], "rejected": []},
            {"chosen": ask + [{"role": "assistant", "content": "y"}], "rejected": ask},
        ]
        rows += [kinds[index % 3] | {"copy": copy} for copy in range(1 + index % 4)]
    write(data, rows)
    done = trial(folder, "--data", data, "--seed", "5")
    assert done.returncode == 0, done.stderr
    settings = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert settings["max_length"] == "77" and settings["learning_rate"] == "1e-4", settings
    lines = {name: open(settings[name], encoding="utf-8").read().splitlines() for name in ("train", "heldout")}
    assert sorted(lines["train"] + lines["heldout"]) == sorted(json.dumps(row) for row in rows)
    asked = {name: {json.dumps(json.loads(line).get("prompt") or json.loads(line)["chosen"][0]) for line in part}
             for name, part in lines.items()}
    assert not asked["train"] & asked["heldout"], "a prompt stands on both sides"
    assert 10 <= len(lines["heldout"]) <= 13  # a tenth of 100 rows, up to the last prompt's other rows
    again = trial(folder, "--data", data, "--seed", "5")
    assert open(settings["heldout"], encoding="utf-8").read().splitlines() == lines["heldout"] and again.returncode == 0
    trial(folder, "--data", data, "--seed", "6")
    assert open(settings["heldout"], encoding="utf-8").read().splitlines() != lines["heldout"]
    done = trial(folder, "--data", data, "--eval", data)
    assert done.returncode == 0 and "100 rows" in done.stderr and "not held out" in done.stderr, done.stderr

    for content, words in (("", "holds no rows"), ("{\n", "line 1 is not JSON"), ("[1]\n", "no chosen and rejected"),
                           ('{"prompt": "a", "completion": "b"}\n', "no chosen and rejected"),
                           ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 3, "single prompt")):
        open(data, "w", encoding="utf-8").write(content)
        done = trial(folder, "--data", data)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)
    open(data, "wb").write(b"PAR1\xff\xfe\x00")
    done = trial(folder, "--data", data)
    assert done.returncode == 1 and "not UTF-8" in done.stderr, done.stderr


with tempfile.TemporaryDirectory() as scratch:
    check_report(scratch)
    check_plot()
with tempfile.TemporaryDirectory() as scratch:
    check_trial(scratch)
print("report and trial are as they should be")
