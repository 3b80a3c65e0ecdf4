"""What the runs of experiment.py say: means over seeds with 95 % confidence intervals, tables and the plot.

An interval is Student's t over the seeds. A difference of two methods is taken seed by seed (same world, same
base model, same pairs, same random numbers), and the interval is that of the differences.
"""

import json
import math
import os
import re

from report import INK, line, pair_up, text, ticks, write as write_file

__all__ = ["pair_up", "save", "write"]
T = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # 97.5 %, n seeds
METHODS = ["DPO", "WPO unaligned", "WPO greedy", "WPO sampled"]
COLOURS = {"DPO": "#222222", "WPO unaligned": "#8a6fb8", "WPO greedy": "#2f8f5b", "WPO sampled": "#c8501e"}
PANELS = [
    ("strange", "Strange pairs"),
    ("misleading", "Misleading pairs"),
    ("near", "Near pairs"),
]
WIDTH, HEIGHT, LEFT, TOP, GAP_X, GAP_Y = 380, 190, 64, 104, 84, 82


def spread(values):
    """(mean, half width of the interval); the width is nan for one seed."""
    values = list(values)
    count, mean = len(values), sum(values) / max(1, len(values))
    if count < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, T.get(count, 1.96) * deviation / math.sqrt(count)


class Found:
    def __init__(self, found):
        self.setting, self.seeds = found["setting"], found["seeds"]
        self.runs = {}
        for run in found["runs"]:
            key = (run["writer"], run["share"], run["method"], run["rate"], run["kind"], run["epoch"])
            self.runs.setdefault(key, {})[run["seed"]] = run
        self.points = list(dict.fromkeys((run["writer"], run["share"]) for run in found["runs"]))

    def values(self, point, method, rate=1.0, kind="run", epoch=None, key="reward"):
        """Seed -> value of a run; empty unless every seed has it, so that all cells are of the same seeds."""
        runs = self.runs.get((*point, method, rate, kind, epoch or self.setting["epochs"]), {})
        return {seed: run[key] for seed, run in runs.items()} if len(runs) == len(self.seeds) else {}

    def base(self, key="reward"):
        return {seed["seed"]: seed["base"][key] for seed in self.seeds}

    def distance(self, point, key):
        return sum(seed["distance"][name_of(point)][key] for seed in self.seeds) / len(self.seeds)


def name_of(point):
    return f"{point[0]}-{point[1]:g}"


def words_of(point):
    return "own" if point[1] == 0 else f"{point[0]}, {100 * point[1]:.0f} %"


def show(values, signed=False):
    values = list(values)
    if not values:
        return "-"
    mean, half = spread(values)
    return f"{mean:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def minus(first, second):
    return [first[seed] - second[seed] for seed in first if seed in second]


def bold_if_sure(differences):
    mean, half = spread(differences)
    words = show(differences, True)
    return f"**{words}**" if abs(mean) > half else words


def markdown(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + [
        "| " + " | ".join(row) + " |" for row in rows
    ]


def table_distance(found):
    likely = ("chosen", "rejected", "unaligned", "greedy", "sampled")
    shares = ("sampled effective", "manners", "sampled manners")
    rows = [
        [words_of(point)]
        + [f"{found.distance(point, key):.2f}" for key in likely]
        + [f"{100 * found.distance(point, key):.0f} %" for key in shares]
        for point in found.points
    ]
    head = ["pairs", "log p per token: chosen", "rejected", "weight: unaligned", "greedy", "sampled"]
    return markdown(head + ["effective", "manners: pairs", "weight"], rows)


def table_reward(found):
    rows = [
        [words_of(point)] + [show(found.values(point, method).values()) for method in METHODS]
        for point in found.points
    ]
    return markdown(["pairs"] + METHODS, rows)


def table_difference(found):
    rows = []
    for point in found.points:
        plain = found.values(point, "DPO")
        rows.append(
            [words_of(point)]
            + [bold_if_sure(minus(found.values(point, method), plain)) for method in METHODS[1:]]
        )
    return markdown(["pairs"] + [method + " - DPO" for method in METHODS[1:]], rows)


def table_order(found):
    steps = (("WPO sampled", "WPO greedy"), ("WPO greedy", "WPO unaligned"), ("WPO sampled", "WPO unaligned"))
    each = {
        point: [minus(found.values(point, a), found.values(point, b)) for a, b in steps]
        for point in found.points
    }
    rows = [[words_of(point)] + [bold_if_sure(step) for step in each[point]] for point in found.points]
    mixtures = [each[point] for point in found.points if 0 < point[1] < 1 and all(each[point])]
    if mixtures:
        means = [[sum(seed) / len(mixtures) for seed in zip(*step)] for step in zip(*mixtures)]
        rows.append(["mean of the mixtures"] + [bold_if_sure(step) for step in means])
    return markdown(["pairs"] + [f"{a[4:]} - {b[4:]}" for a, b in steps], rows)


def rates_of(found, point, method):
    return sorted(
        key[3] for key in found.runs if key[:3] == (*point, method) and key[4] == "run" and key[3] != "weight"
    )


def table_rates(found):
    rows = []
    rates = max((rates_of(found, point, "DPO") for point in found.points), key=len)
    for point in found.points:
        if rates_of(found, point, "DPO") != rates or len(rates) < 2:
            continue
        best = {}
        for method in ("DPO", "WPO sampled"):
            values = [found.values(point, method, rate) for rate in rates]
            best[method] = max(values, key=lambda value: spread(value.values())[0])
            rows.append([words_of(point), method] + [show(value.values()) for value in values] + [""])
        rows[-1][-1] = bold_if_sure(minus(best["WPO sampled"], best["DPO"]))
    return markdown(
        ["pairs", "method"] + [f"rate x {rate:g}" for rate in rates] + ["best WPO - best DPO"], rows
    )


def table_controls(found):
    rows = []
    for point in found.points:
        sampled, plain = found.values(point, "WPO sampled"), found.values(point, "DPO")
        for words, values in (
            ("DPO, rate x mean weight", found.values(point, "DPO", "weight")),
            ("WPO sampled, rate x mean weight", found.values(point, "WPO sampled", "weight")),
            ("DPO, foreign pairs left out", found.values(point, "DPO", kind="own half")),
        ):
            if values:
                less = [bold_if_sure(minus(values, plain)), bold_if_sure(minus(values, sampled))]
                rows.append([words_of(point), words, show(values.values())] + less)
    return markdown(["pairs", "control", "reward", "control - DPO", "control - WPO sampled"], rows)


def table_parts(found):
    keys = ("right", "polite", "words_after", "none_right")
    rows = [["base model", ""] + [f"{spread(found.base(key).values())[0]:.2f}" for key in keys]]
    for point in found.points:
        for method in ("DPO", "WPO sampled"):
            if not found.values(point, method):
                continue
            rows.append(
                [words_of(point), method]
                + [f"{spread(list(found.values(point, method, key=key).values()))[0]:.2f}" for key in keys]
            )
    return markdown(
        ["pairs", "method", "all items right", "polite", "words after the full stop", "no item right"], rows
    )


def many_point(found):
    return next((key[:2] for key in found.runs if key[4] == "many epochs"), None)


def table_epochs(found):
    point, rows = many_point(found), []
    if not point:
        return []
    for epoch in range(1, found.setting["many_epochs"] + 1):
        plain = found.values(point, "DPO", kind="many epochs", epoch=epoch)
        sampled = found.values(point, "WPO sampled", kind="many epochs", epoch=epoch)
        rows.append(
            [str(epoch), show(plain.values()), show(sampled.values()), bold_if_sure(minus(sampled, plain))]
        )
    return markdown([f"epoch ({words_of(point)})", "DPO", "WPO sampled", "WPO sampled - DPO"], rows)


TABLES = {
    "distance": table_distance,
    "reward": table_reward,
    "difference": table_difference,
    "order": table_order,
    "rates": table_rates,
    "controls": table_controls,
    "parts": table_parts,
    "epochs": table_epochs,
}


# The plot


def curve(points, colour, place, offset):
    """points: (x, mean, half width). A line through the means, a whisker for each interval."""
    at = [(place(x, mean)[0] + offset, place(x, mean)[1]) for x, mean, _ in points]
    parts = [
        f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}" fill="none" stroke="{colour}" '
        f'stroke-width="2"/>'
    ]
    for (x, y), (value, mean, half) in zip(at, points):
        if not math.isnan(half):
            parts.append(line(x, place(value, mean - half)[1], x, place(value, mean + half)[1], colour, 1.5))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>')
    return parts


def panel(left, top, title, axis, marks, curves, level, low, high):
    """level: where the dashed line is, of the base model or of no difference."""
    first, last = marks[0][0], marks[-1][0]

    def place(x, y):
        right = left + 14 + (WIDTH - 28) * (x - first) / (last - first)
        return right, top + HEIGHT * (high - y) / (high - low)

    parts = [text(left, top - 12, title, 14, weight="bold")]
    for value, label in ticks(low, high, 6):
        y = place(first, value)[1]
        parts += [line(left, y, left + WIDTH, y), text(left - 8, y + 4, label, 11, "end")]
    for value, label in marks:
        x = place(value, low)[0]
        parts += [line(x, top + HEIGHT, x, top + HEIGHT + 4, INK)]
        parts += [text(x, top + HEIGHT + 18, label, 11, "middle")]
    parts += [
        line(left, top, left, top + HEIGHT, INK),
        line(left, top + HEIGHT, left + WIDTH, top + HEIGHT, INK),
    ]
    parts += [text(left + WIDTH / 2, top + HEIGHT + 36, axis, 11, "middle")]
    parts += [dashes(left, left + WIDTH, place(first, level)[1])]
    for index, (method, points) in enumerate(curves):
        parts += curve(points, COLOURS[method], place, 4 * (index - (len(curves) - 1) / 2))
    return parts


def dashes(x1, x2, y):
    return f'<path d="M{x1:.1f} {y:.1f}H{x2:.1f}" stroke="{INK}" stroke-dasharray="5 4"/>'


def rows_of(found):
    """(title, name of the axis, marks, method -> x -> values of the seeds) of each row of panels."""
    rows = []
    for writer, title in PANELS:
        points = [point for point in found.points if point[0] in (writer, "own")]
        if len(points) > 1:
            values = {method: {p[1]: found.values(p, method) for p in points} for method in METHODS}
            marks = [(share, f"{100 * share:.0f} %") for _, share in points]
            rows.append((title, "share of foreign pairs", marks, values))
    point = many_point(found)
    if point:
        marks = [(epoch, str(epoch)) for epoch in range(1, found.setting["many_epochs"] + 1)]
        values = {
            method: {x: found.values(point, method, kind="many epochs", epoch=x) for x, _ in marks}
            for method in ("DPO", "WPO sampled")
        }
        rows.append((f"{words_of(point).capitalize()}, more epochs", "epoch", marks, values))
    return rows


def limits(curves, level):
    ends = [level]
    for _, points in curves:
        for _, mean, half in points:
            ends += [mean - half, mean + half] if half == half else [mean]
    return math.floor(20 * min(ends) - 0.2) / 20, math.ceil(20 * max(ends) + 0.2) / 20


def draw(found):
    """Left the rewards, right the differences to DPO; a row for each foreign writer, one for the epochs."""
    base = spread(found.base().values())[0]
    sides = ([], [])
    for title, axis, marks, values in rows_of(found):
        for side, level in enumerate((base, 0.0)):
            curves = []
            for method, at in values.items():
                shown = {
                    x: list(v.values()) if not side else minus(v, values["DPO"][x]) for x, v in at.items()
                }
                if not (side and method == "DPO"):
                    curves.append((method, [(x, *spread(v)) for x, v in shown.items() if v]))
            words = (f"{title}: reward", f"{title}: reward less DPO's")[side]
            sides[side].append((words, axis, marks, curves, level))
    width, height = LEFT + 2 * WIDTH + GAP_X + 24, TOP + len(sides[0]) * (HEIGHT + GAP_Y) - 30
    title = "True reward of the trained model's answers"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{title}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(LEFT, 30, title, 18, weight="bold"),
        text(LEFT + WIDTH + GAP_X, 30, f"means of {len(found.seeds)} seeds, 95 % confidence intervals", 13),
    ]
    x = LEFT
    for method in METHODS:
        parts += [line(x, 52, x + 26, 52, COLOURS[method], 3), text(x + 34, 56, method)]
        x += 56 + 7 * len(method)
    parts += [dashes(x, x + 26, 52), text(x + 34, 56, "base model (left), no difference (right)")]
    for side, panels in enumerate(sides):
        every = [limits(curves, level) for _, _, _, curves, level in panels]
        low, high = min(ends[0] for ends in every), max(ends[1] for ends in every)
        for row, (words, axis, marks, curves, level) in enumerate(panels):
            left, top = LEFT + side * (WIDTH + GAP_X), TOP + row * (HEIGHT + GAP_Y)
            parts += panel(left, top, words, axis, marks, curves, level, low, high)
    return "\n".join(parts + ["</svg>", ""])


# Files


def tidy(value):
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: tidy(part) for key, part in value.items()}
    return value


def save(found, path):
    """One line a seed and a run, so that a difference can be read."""

    def block(name):
        return f'"{name}": [\n' + ",\n".join(json.dumps(tidy(entry)) for entry in found[name]) + "\n]"

    write_file(path, f'{{"setting": {json.dumps(found["setting"])},\n{block("seeds")},\n{block("runs")}}}\n')


def write(found, folder, stem):
    """The plot, and each table between its marks in the page, which is made where there is none."""
    page, found = os.path.join(folder, stem + ".md"), Found(found)
    content = "".join(f"<!-- table {name} -->\n<!-- end -->\n\n" for name in TABLES)
    if os.path.exists(page):
        with open(page, encoding="utf-8") as file:
            content = file.read()
    for name, make in TABLES.items():
        block = f"<!-- table {name} -->\n" + "\n".join(make(found)) + "\n<!-- end -->"
        content = re.sub(
            rf"<!-- table {name} -->\n.*?<!-- end -->", lambda _, block=block: block, content, flags=re.S
        )
        print(f"\n{name}\n" + "\n".join(make(found)))
    write_file(page, content)
    write_file(os.path.join(folder, stem + ".svg"), draw(found))
    return 0
