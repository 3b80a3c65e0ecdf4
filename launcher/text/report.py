"""The quickstart's result: a table of held-out pairs before and after training, and a plot of the run.

    python launcher/text/report.py --before before --after after --metrics run/metrics.jsonl --data heldout.jsonl \\
        --out report --title "WPO on the small world" --need_ranking 0.2

reads what `wpo eval --json` and `--per-completion` wrote (before.json, before.jsonl, after.json, after.jsonl), prints
the table, and writes it to report.txt with the numbers in report.json and the plot in report.svg. Exit code 3 when the
model did not learn: with --need_ranking X, when the ranking accuracy rose by less than X; without it, when the reward
accuracy is not above one half or the mean margin not above zero.
"""
import argparse
import json
import math
import os
import sys
from html import escape

NOT_LEARNED = 3


class Unreadable(Exception):
    pass


def read_lines(path):
    try:
        with open(path, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.strip()]
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise Unreadable(f"{path}: is not JSON ({error})") from error


# The numbers


def pair_up(records):
    """Source row -> (record of the chosen completion, record of the rejected one)."""
    rows = {}
    for record in records:
        rows.setdefault(record["row"], {})[record["completion"]] = record
    return {row: (pair[0], pair[1]) for row, pair in rows.items() if 0 in pair and 1 in pair}


def per_token(record):
    return record["logp"] / record["tokens"]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def scores_of(path, pairs):
    """Row -> (score of chosen, score of rejected); None unless every pair has both."""
    rows = read_lines(path) if path and path.endswith(".jsonl") else []
    names = ("score_chosen", "score_rejected")
    found = {row: tuple(rows[row].get(name) for name in names) for row in pairs if row < len(rows)}
    whole = len(found) == len(pairs) and all(isinstance(value, (int, float)) for two in found.values() for value in two)
    return found if whole else None


def measure(summary, records, scores):
    pairs = pair_up(records)
    if not pairs:
        raise Unreadable("the evaluation holds no pairs")
    first = {row: per_token(chosen) > per_token(rejected) for row, (chosen, rejected) in pairs.items()}
    numbers = {
        "ranking": mean(first.values()),
        "ranking_summed": mean(chosen["logp"] > rejected["logp"] for chosen, rejected in pairs.values()),
        "reward_accuracy": summary.get("rewards/accuracies", math.nan),
        "margin": summary.get("rewards/margins", math.nan),
        "weight": summary.get("weights/mean", math.nan),
        "chosen": mean(per_token(chosen) for chosen, _ in pairs.values()),
        "rejected": mean(per_token(rejected) for _, rejected in pairs.values()),
    }
    if scores:
        numbers["reward_first"] = mean(scores[row][0 if first[row] else 1] for row in pairs)
        numbers["reward_best"] = mean(max(scores[row]) for row in pairs)
    return numbers


def read_side(stem, data):
    summary = read_lines(stem + ".json")
    records = read_lines(stem + ".jsonl")
    return measure(summary[0] if summary else {}, records, scores_of(data, pair_up(records))), len(pair_up(records))


def judge(before, after, count, need_ranking):
    """(learned, sentence)"""
    if need_ranking is not None:
        rise = after["ranking"] - before["ranking"]
        return rise >= need_ranking, (
            f"ranking accuracy on held-out pairs went from {percent(before['ranking'])} to "
            f"{percent(after['ranking'])}; a rise of {100 * need_ranking:.0f} points was asked for")
    accuracy = after["reward_accuracy"]
    error = math.sqrt(0.25 / count)  # of an accuracy of one half on so many pairs
    sentence = (f"reward accuracy on held-out pairs is {percent(accuracy)} (chance: 50.0 % +- {100 * error:.1f}) and the "
                f"mean margin {after['margin']:+.4f}")
    learned = accuracy > 0.5 and after["margin"] > 0
    if learned and accuracy < 0.5 + 2 * error:
        sentence += "; more held-out pairs are needed to be sure"
    return learned, sentence


# The table


def percent(value):
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def number(value):
    return "-" if math.isnan(value) else f"{value:.4f}" if abs(value) < 0.01 and value else f"{value:.3f}"


def table(before, after, count):
    rows = [
        ("better answer ranked first, by log p per token", percent, "ranking"),
        ("better answer ranked first, by summed log p", percent, "ranking_summed"),
        ("reward accuracy against the base model", percent, "reward_accuracy"),
        ("reward margin, mean", number, "margin"),
        ("weight of a pair, mean", number, "weight"),
        ("log p per token of the better answer", number, "chosen"),
        ("log p per token of the worse answer", number, "rejected"),
    ]
    title = f"{count} held-out pairs"
    lines = [f"{title:<48}{'before':>10}{'after':>10}", "-" * 68]
    for words, show, key in rows:
        base = math.nan if key == "reward_accuracy" else before[key]  # against itself every margin is 0
        lines.append(f"{words:<48}{show(base):>10}{show(after[key]):>10}")
    if "reward_first" in after:
        words = f"reward of the answer ranked first (best: {after['reward_best']:.3f})"
        lines.append(f"{words:<48}{number(before['reward_first']):>10}{number(after['reward_first']):>10}")
    return lines


# The plot

PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 380, 190, 64, 104, 84, 78
TRAIN, EVAL, INK, FAINT = "#8fb8de", "#c8501e", "#222222", "#d9d9d9"
PANELS = [  # title, key, whether it is a share of one
    ("Loss", "loss", False),
    ("Reward margin", "rewards/margins", False),
    ("Reward accuracy", "rewards/accuracies", True),
    ("Mean weight of a pair", "weights/mean", True),
]


def series(records, key):
    """(step, value) of a metric. Where every margin is exactly 0, as before the first step, accuracies mean nothing."""
    margin = key.replace("accuracies", "margins")
    return [(record["step"], record[key]) for record in records
            if isinstance(record.get(key), (int, float)) and math.isfinite(record[key])
            and (key == margin or record.get(margin) != 0)]


def nice_step(span, wanted):
    """The 1, 2 or 5 times a power of ten that cuts span into about `wanted` parts."""
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def ticks(low, high, wanted):
    step = nice_step(high - low, wanted)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(index * step, f"{index * step:.{digits}f}" if index else "0")
            for index in range(first, last + 1)]


def limits(values, share):
    if share:
        return 0.0, 1.0
    low, high = min(min(values), 0.0), max(max(values), 0.0)
    if low == high:
        return 0.0, 1.0
    pad = 0.06 * (high - low)
    return (low - pad if low < 0 else 0.0), (high + pad if high > 0 else 0.0)


def text(x, y, words, size=12, anchor="start", colour=INK, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}">{escape(words)}</text>')


def line(x1, y1, x2, y2, colour=FAINT, width=1):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}"/>')


def draw_curve(points, colour, width, dots):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
             f'stroke-linejoin="round"/>']
    if dots:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return parts


def draw_panel(left, top, title, train, held, share, last_step):
    low, high = limits([value for _, value in train + held], share)

    def place(step, value):
        return (left + PANEL_WIDTH * step / last_step, top + PANEL_HEIGHT * (high - value) / (high - low))

    parts = [text(left, top - 12, title, 14, weight="bold")]
    if held:
        ends = f"{number(held[0][1])} to {number(held[-1][1])}"
        parts.append(text(left + PANEL_WIDTH, top - 12, ends, 12, "end", EVAL))
    for value, label in ticks(low, high, 5):
        y = place(0, value)[1]
        parts += [line(left, y, left + PANEL_WIDTH, y), text(left - 8, y + 4, label, 11, "end")]
    for step, label in ticks(0, last_step, 6):
        x = place(step, low)[0]
        parts += [line(x, top + PANEL_HEIGHT, x, top + PANEL_HEIGHT + 4, INK),
                  text(x, top + PANEL_HEIGHT + 18, label, 11, "middle")]
    parts += [line(left, top, left, top + PANEL_HEIGHT, INK), text(left + PANEL_WIDTH / 2, top + PANEL_HEIGHT + 36,
                                                                  "optimiser step", 11, "middle")]
    base = place(0, min(max(0.0, low), high))[1]
    parts.append(line(left, base, left + PANEL_WIDTH, base, INK))
    if train:
        parts += draw_curve([place(*point) for point in train], TRAIN, 2, False)
    if held:
        parts += draw_curve([place(*point) for point in held], EVAL, 2, True)
    return parts


def draw(records, title, subtitle):
    """The whole SVG: four panels over the optimiser steps, training in blue, held-out pairs in orange."""
    last_step = max([record["step"] for record in records] + [1])
    width, height = LEFT + 2 * PANEL_WIDTH + GAP_X + 24, TOP + 2 * PANEL_HEIGHT + GAP_Y + 56
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
             f'height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
             f"<title>{escape(title)}</title>", f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
             text(LEFT, 30, title, 18, weight="bold"), text(LEFT, 52, subtitle, 13)]
    x = width - 24 - 250
    parts += [line(x, 26, x + 26, 26, TRAIN, 3), text(x + 34, 30, "training batches"),
              line(x + 142, 26, x + 168, 26, EVAL, 3), f'<circle cx="{x + 155}" cy="26" r="3" fill="{EVAL}"/>',
              text(x + 176, 30, "held-out pairs")]
    for index, (name, key, share) in enumerate(PANELS):
        left = LEFT + (index % 2) * (PANEL_WIDTH + GAP_X)
        top = TOP + (index // 2) * (PANEL_HEIGHT + GAP_Y)
        train, held = series(records, key), series(records, "eval_" + key)
        if train or held:
            parts += draw_panel(left, top, name, train, held, share, last_step)
    return "\n".join(parts + ["</svg>", ""])


def write(path, content):
    part = f"{path}.part"
    with open(part, "w", encoding="utf-8") as file:
        file.write(content)
    os.replace(part, path)


def finite(numbers):
    return {key: None if math.isnan(value) else value for key, value in numbers.items()}


def main():
    parser = argparse.ArgumentParser(prog="report.py", description="The table and the plot of a quickstart run.")
    parser.add_argument("--before", required=True, help="stem of BEFORE.json and BEFORE.jsonl, of the base model")
    parser.add_argument("--after", required=True, help="the same of the trained model")
    parser.add_argument("--metrics", required=True, help="metrics.jsonl of the run")
    parser.add_argument("--data", help="the held-out rows as text, for their known scores")
    parser.add_argument("--out", required=True, help="stem of the files to write")
    parser.add_argument("--title", default="Weighted Preference Optimization")
    parser.add_argument("--need_ranking", type=float, help="by how much ranking accuracy must have risen")
    options = parser.parse_args()
    try:
        before, count = read_side(options.before, options.data)
        after, _ = read_side(options.after, options.data)
        records = [record for record in read_lines(options.metrics) if isinstance(record.get("step"), int)]
    except (Unreadable, KeyError, ZeroDivisionError) as error:
        sys.exit(f"report.py: {error}")
    learned, sentence = judge(before, after, count, options.need_ranking)
    lines = table(before, after, count)
    subtitle = (f"better answer ranked first on {count} held-out pairs: {percent(before['ranking'])} before, "
                f"{percent(after['ranking'])} after")
    start = {"step": 0, "eval_rewards/margins": before["margin"], "eval_weights/mean": before["weight"]}
    if not any(record["step"] == 0 for record in records):
        records.insert(0, start)
    verdict = f"{'Learned' if learned else 'Did NOT learn'}: {sentence}."
    try:
        write(options.out + ".svg", draw(records, options.title, subtitle))
        write(options.out + ".txt", "\n".join(lines + ["", verdict, ""]))
        write(options.out + ".json", json.dumps({"pairs": count, "before": finite(before), "after": finite(after),
                                                 "learned": learned}, indent=2) + "\n")
    except OSError as error:
        sys.exit(f"report.py: cannot write {error.filename}: {error.strerror}")
    print("\n".join(lines + ["", verdict]))
    return 0 if learned else NOT_LEARNED


if __name__ == "__main__":
    sys.exit(main())
