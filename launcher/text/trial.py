"""The quickstart's first look at a user's own model and pairs: what to hold out, and with which settings to begin.

    python launcher/text/trial.py --model DIR --data pairs.jsonl --seed 1 --out runs/mine/data

writes train.jsonl and heldout.jsonl, a tenth of the rows, drawn by prompt so that no prompt stands in both; with
--eval FILE nothing is held out. Prints `key=value` lines: train, heldout (files), max_length, learning_rate.
"""
import argparse
import json
import os
import random
import sys

SHARE_HELD_OUT = 0.1
LONGEST = 1024
# Learning rates to begin with, by the bytes of the model's weights: small models bear, and need, much larger steps.
RATES = [(100e6, "1e-4"), (2e9, "5e-6"), (float("inf"), "1e-6")]


def stop(sentence):
    sys.exit(f"quickstart: {sentence}")


def read_config(model):
    path = os.path.join(model, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        stop(f"{path}: cannot be read ({error.strerror}); --model needs a Hugging Face model folder")
    except ValueError as error:
        stop(f"{path}: is not JSON ({error})")
    if not isinstance(config, dict):
        stop(f"{path}: is not a JSON object")
    return config


def weight_bytes(model):
    names = [name for name in os.listdir(model) if name.endswith(".safetensors")]
    if not names:
        stop(f"{model}: holds no .safetensors file; --model needs a Hugging Face model folder")
    return sum(os.path.getsize(os.path.join(model, name)) for name in names)


def prompt_of(raw, path, line):
    """What makes two rows the same question, as text."""
    try:
        row = json.loads(raw)
    except ValueError as error:
        stop(f"{path}: line {line} is not JSON ({error}); write one object a line")
    if not isinstance(row, dict) or "chosen" not in row or "rejected" not in row:
        stop(f"{path}: line {line} has no chosen and rejected; the quickstart needs preference pairs")
    if row.get("prompt") is not None:
        return json.dumps(row["prompt"])
    if isinstance(row["chosen"], list):
        return json.dumps(row["chosen"][:-1])
    return json.dumps(os.path.commonprefix([str(row["chosen"]), str(row["rejected"])]))


def read_rows(path):
    """prompt -> raw lines of its rows, in the file's order."""
    rows = {}
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, raw in enumerate(file, start=1):
                if raw.strip():
                    rows.setdefault(prompt_of(raw, path, line), []).append(raw.rstrip("\n") + "\n")
    except OSError as error:
        stop(f"{path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        stop(f"{path}: is not UTF-8 text; give JSON lines (Parquet needs --eval FILE too)")
    if not rows:
        stop(f"{path}: holds no rows")
    return rows


def hold_out(rows, seed):
    """The prompts to hold out: drawn until they have a tenth of the rows."""
    total = sum(len(lines) for lines in rows.values())
    prompts = list(rows)
    random.Random(seed).shuffle(prompts)
    held, count = set(), 0
    for prompt in prompts:
        if count >= SHARE_HELD_OUT * total or len(held) == len(prompts) - 1:
            break
        held.add(prompt)
        count += len(rows[prompt])
    return held


def split(path, seed, out):
    rows = read_rows(path)
    held = hold_out(rows, seed)
    if not held:
        stop(f"{path}: has a single prompt, so nothing can be held out; give --eval FILE")
    files = {"train": os.path.join(out, "train.jsonl"), "heldout": os.path.join(out, "heldout.jsonl")}
    try:
        os.makedirs(out, exist_ok=True)
        for name, target in files.items():
            with open(target, "w", encoding="utf-8") as file:
                for prompt, lines in rows.items():
                    if (prompt in held) == (name == "heldout"):
                        file.writelines(lines)
    except OSError as error:
        stop(f"{error.filename}: cannot be written ({error.strerror})")
    return files


def count_shared(train, heldout):
    """How many held-out rows ask what a training row asks; Parquet is not looked into."""
    if not (train.endswith(".jsonl") and heldout.endswith(".jsonl")):
        return 0
    known = read_rows(train)
    return sum(len(lines) for prompt, lines in read_rows(heldout).items() if prompt in known)


def main():
    parser = argparse.ArgumentParser(prog="trial.py", description="Looks at a model and pairs for the quickstart.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    positions = read_config(options.model).get("max_position_embeddings")
    size = weight_bytes(options.model)
    if options.eval:
        files = {"train": options.data, "heldout": options.eval}
        shared = count_shared(options.data, options.eval)
        if shared:
            print(f"quickstart: warning: {shared} rows of {options.eval} have a prompt of {options.data}; what is "
                  "measured on them is not held out", file=sys.stderr)
    else:
        files = split(options.data, options.seed, options.out)
    known = isinstance(positions, int) and positions > 1
    settings = {**files, "max_length": min(LONGEST, positions) if known else LONGEST,
                "learning_rate": next(rate for limit, rate in RATES if size < limit)}
    for key, value in settings.items():
        print(f"{key}={value}")


if __name__ == "__main__":
    main()
