"""An objective that needs what the data lacks says so before the first step: one sentence with the key and the file, exit
code 1 on one rank and on two, and no record of metrics."""

import concurrent.futures
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "ranks"))
from runs import DEFAULTS, MODEL, Failures, Folder, command, run  # noqa: E402

PROMPT = [{"role": "user", "content": "Tell a story"}]


def say(text):
    return [{"role": "assistant", "content": text}]


def rows(kind, count=6):
    for index in range(count):
        row = {"prompt": PROMPT}
        if kind == "single":
            yield {**row, "completion": say(f"once {index}")}
        elif kind == "labelled":
            yield {**row, "completion": say(f"once {index}"), "label": index % 2 == 0}
        elif kind == "ranked":
            yield {**row, "completions": [say("once upon"), say(f"a {index}"), say("cat")], "scores": [3, 2, 1]}
        else:
            row |= {"chosen": say(f"once {index}"), "rejected": say(f"a cat {index}")}
            if kind == "sampled":
                row |= {"sampled": say("and then")}
            elif kind != "pairs":
                row |= {"score_chosen": 7.0, "score_rejected": 2.0}
            if kind == "gap" and index == 3:
                row["score_rejected"] = None
            yield row


KINDS = ("single", "labelled", "ranked", "pairs", "scored", "gap", "sampled")

# kind of data, keys, words that the sentence must have
CASES = (
    ("single", {"loss_type": "sigmoid"}, ("row 0", "1 completion", "loss_type sigmoid", "sft")),
    ("ranked", {"loss_type": "sigmoid"}, ("row 0", "3 completions", "all_pairs")),
    ("ranked", {"loss_type": ["ipo", "sft"]}, ("3 completions", "ipo, sft")),
    ("pairs", {"loss_type": "sigmoid", "optimism_alpha": 0.001}, ("2 completions", "optimism_alpha", "sampled")),
    ("ranked", {"loss_type": "sigmoid", "optimism_alpha": 0.001}, ("optimism_alpha", "rankings", "sampled")),
    ("sampled", {"loss_type": "all_pairs"}, ("all_pairs", "sampled", "completions and scores")),
    ("sampled", {"loss_type": "kto"}, ("kto", "desirable", "without the column sampled")),
    ("sampled", {"loss_type": "sigmoid"}, ("3 completions", "optimism_alpha")),
    ("single", {"loss_type": "plackett_luce"}, ("1 completion", "plackett_luce", "completions and scores")),
    ("labelled", {"loss_type": "sft"}, ("row 1", "undesirable", "sft", "kto")),
    ("single", {"loss_type": "kto"}, ("kto", "no labels", "column label")),
    ("pairs", {"loss_type": "sppo"}, ("sppo needs scores", "has none")),
    ("gap", {"loss_type": "sppo"}, ("sppo needs scores", "row 3 lacks one")),
    ("scored", {"loss_type": "sppo", "score_type": "probability"}, ("score_type is probability", "row 0", "is 7")),
    ("pairs", {"loss_type": "sigmoid", "reward_margin_beta": 0.5}, ("reward_margin_beta needs scores",)),
    ("pairs", {"loss_type": "sigmoid", "min_margin": 0.5}, ("min_margin needs scores",)),
    ("scored", {"loss_type": "sigmoid", "min_margin": 6.0}, ("min_margin 6", "leaves out all 6 pairs")),
)


def refused(folder, number, ranks):
    """Whether it holds, and what was said."""
    kind, keys, words = CASES[number]
    out = folder(f"run-{number}-{ranks}")
    given = {**DEFAULTS, "global_batch_size": 4, "model_name_or_path": MODEL, "train_file": folder(f"{kind}.h5"),
             "output_dir": out, **keys}
    with open(out + ".yaml", "w") as file:
        file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in given.items())
    done = subprocess.run(command(ranks, ["train", out + ".yaml"]), capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("wpo")]
    holds = (done.returncode == 1 and len(said) == 1 and f"{kind}.h5" in said[0]
             and all(word in said[0] for word in words) and os.path.getsize(os.path.join(out, "metrics.jsonl")) == 0)
    return holds, f"{ranks or 1} ranks, {kind} data, {keys}: {done.returncode} {' / '.join(said)[-300:]}"


with Folder() as folder:
    failures = Failures()
    for kind in KINDS:
        with open(folder(f"{kind}.jsonl"), "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(kind))
        run(0, "prepare", "--model", MODEL, "--data", folder(f"{kind}.jsonl"), "--out", folder(f"{kind}.h5"))
    runs = [(number, ranks) for number in range(len(CASES)) for ranks in (0, 2)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:  # they wait for MPI to start, most of the time
        for result in pool.map(lambda run: refused(folder, *run), runs):
            failures.check(*result)
    failures.finish()
