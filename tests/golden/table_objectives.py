"""The table of docs/objectives.md: every method with the largest relative errors of its loss and its gradient against
an oracle, out of what the test runs left in the build folder. It stands between two markers:

    <!-- table:begin -->  ...  <!-- table:end -->

    table_objectives.py BUILD_FOLDER docs/objectives.md           writes the table
    table_objectives.py --check BUILD_FOLDER docs/objectives.md   says whether it still holds

An error stands as the next larger digit. It may differ between machines, so the check demands the same rows and
bounds, every error under its bound, and none above three times what the table says, or above three times 1e-7."""

import json
import math
import os
import sys

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
FILES = ("objectives-trl.json", "objectives-oracle.json")
TITLES = ("Method", "Oracle", "Loss error", "Gradient error", "Bound")
SPREAD, TINY = 3, 1e-7  # below TINY errors are those of the last digits, which the order of sums decides


class Problem(Exception):
    pass


def rounded_up(error):
    """1.23e-6 as 2e-6; what is below the rounding of the numbers compared, 2^-53, as 0."""
    if error < 2**-53:
        return "0"
    exponent = math.floor(math.log10(error))
    digit = math.ceil(error / 10.0**exponent - 1e-9)
    return f"{1 if digit == 10 else digit}e{exponent + (digit == 10):d}"


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
            raise Problem(f"{path}: is not there; run the tests of golden/ first") from error
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
        lines.append(format_row([f"`{method}`", oracle, *map(rounded_up, errors), rounded_up(bound)]))
    return "".join(lines)


def parse_table(text):
    """{(method, oracle): (loss error, gradient error, bound)} of a table as text."""
    table = {}
    for line in text.strip().splitlines()[2:]:
        method, oracle, loss, gradient, bound = (cell.strip() for cell in line.strip().strip("|").split("|"))
        table[method, oracle] = (float(loss), float(gradient), float(bound))
    return table


def split_document(path):
    with open(path) as file:
        text = file.read()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Problem(f"{path}: wants {BEGIN} once, and {END} once behind it")
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    return head + BEGIN + "\n", table, END + tail


def compare_tables(stands, measured):
    """What is wrong with the table that stands, as sentences."""
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
                if error > SPREAD * max(said, TINY):
                    yield f"{what}: an error of {error:g}, the table says {said:g}"


def main(words):
    check = words[:1] == ["--check"]
    if len(words) != 2 + check:
        raise Problem(__doc__)
    folder, path = words[-2:]
    table = format_table(read_rows(folder))
    head, stands, tail = split_document(path)
    if check:
        wrong = list(compare_tables(parse_table(stands), parse_table(table)))
        print("\n".join(wrong) or f"{path}: the table holds")
        return 1 if wrong else 0
    with open(path, "w") as file:
        file.write(head + table + tail)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as error:
        sys.exit(str(error))
