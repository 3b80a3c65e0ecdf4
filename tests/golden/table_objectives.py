"""The table of docs/objectives.md: every method with the largest relative errors of its loss and its gradient against
an oracle, out of what the test runs left in the build folder. It stands between two markers:

    <!-- table:begin -->  ...  <!-- table:end -->

    table_objectives.py BUILD_FOLDER docs/objectives.md           writes the table
    table_objectives.py --check BUILD_FOLDER docs/objectives.md   says whether it still holds

Errors differ in their last digits between machines, so one stands as a power of ten that it is below by a factor of two
or more, but not above its bound. The check demands the same rows and bounds, and that every error is below what stands.
It is skipped where a test left nothing, for want of Python packages or of the real inputs."""

import json
import math
import os
import sys

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
FILES = ("objectives-trl.json", "objectives-oracle.json")
TITLES = ("Method", "Oracle", "Loss error", "Gradient error", "Bound")
SPREAD, TINY = 2, -6  # errors of 1e-6 are those of the last digits in f32, which the order of sums decides


class Problem(Exception):
    pass


class Missing(Problem):
    pass


def short(number):
    return f"{number:.0e}".replace("e-0", "e-")


def power_above(error):
    """1.23e-5 as 1e-4."""
    return 10.0 ** max(TINY, math.ceil(math.log10(max(SPREAD * error, 10.0**TINY)) - 1e-9))


def read_rows(folder):
    """(method, oracle, loss error, gradient error, bound), sorted. A file holds the bounds of losses and gradients and
    a list of methods, each with its oracle, or with the trainers that it was compared with."""
    rows = []
    for name in FILES:
        path = os.path.join(folder, name)
        try:
            with open(path) as file:
                content = json.load(file)
        except FileNotFoundError as error:
            raise Missing(f"{path}: is not there; run the tests of golden/ first, with all that they need") from error
        if not content["methods"]:
            raise Problem(f"{path}: holds no method; its test did not run to its end")
        for entry in content["methods"]:
            oracle = entry.get("oracle") or ", ".join(entry["trainers"])
            for kind in ("loss", "gradient"):
                if not entry[kind] <= content["bounds"][kind]:
                    raise Problem(f"{entry['method']} against {oracle}: an error of {entry[kind]:.3g} of the {kind}, "
                                  f"above the bound of {content['bounds'][kind]:g}")
            bound = max(content["bounds"]["loss"], content["bounds"]["gradient"])
            rows.append((entry["method"], oracle, entry["loss"], entry["gradient"], bound))
    return sorted(rows)


def format_row(cells):
    return "| " + " | ".join(cells) + " |\n"


def format_table(rows):
    lines = [format_row(TITLES), "|---|---|---|---|---|\n"]
    for method, oracle, *errors, bound in rows:
        cells = [f"< {short(min(power_above(error), bound))}" for error in errors]
        lines.append(format_row([f"`{method}`", oracle, *cells, short(bound)]))
    return "".join(lines)


def parse_table(text):
    """{(method, oracle): (loss error, gradient error, bound)} of a table as text."""
    table = {}
    for line in text.strip().splitlines()[2:]:
        method, oracle, loss, gradient, bound = (cell.strip() for cell in line.strip().strip("|").split("|"))
        table[method.strip("`"), oracle] = (*(float(error.strip("< ")) for error in (loss, gradient)), float(bound))
    return table


def split_document(path):
    with open(path) as file:
        text = file.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Problem(f"{path}: wants {BEGIN} once, and {END} once behind it")
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    return head + BEGIN + "\n", table, END + tail


def compare(stands, rows):
    """What is wrong with the table that stands, as sentences."""
    measured = {(method, oracle): numbers for method, oracle, *numbers in rows}
    for key in sorted(set(stands) | set(measured)):
        what = f"{key[0]} against {key[1]}"
        if key not in measured:
            yield f"{what}: is in the table, and no test measured it"
        elif key not in stands:
            yield f"{what}: is measured, and not in the table"
        elif stands[key][2] != measured[key][2]:
            yield f"{what}: the bound is {measured[key][2]:g}, the table says {stands[key][2]:g}"
        else:
            for said, error in zip(stands[key][:2], measured[key][:2]):
                if not error < said:
                    yield f"{what}: an error of {error:.3g}, the table says less than {said:g}"


def main(words):
    check = words[:1] == ["--check"]
    if len(words) != 2 + check:
        raise Problem(__doc__)
    folder, path = words[-2:]
    rows = read_rows(folder)
    head, stands, tail = split_document(path)
    if check:
        wrong = list(compare(parse_table(stands), rows))
        print("\n".join(wrong) or f"{path}: all {len(rows)} rows of the table hold")
        return 1 if wrong else 0
    with open(path, "w") as file:
        file.write(head + format_table(rows) + tail)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Missing as error:
        print("skipped:", error)
        sys.exit(77)
    except Problem as error:
        sys.exit(str(error))
