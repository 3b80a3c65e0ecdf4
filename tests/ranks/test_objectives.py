"""Every objective trains on real pairs at two ranks, gives the same numbers whatever ranks and micro-batches, and goes on
after a stop where its state outlives a step."""

import json
import math
import os
import re
import shutil

from runs import Failures, Folder, MODEL, numbers, prepare, records, relative, run, same_bits, tensors, train

SHORT = bool(os.environ.get("WPO_SHORT"))
ROUNDING = 2e-5  # see test_training.py; the losses here are of the same size or larger, and so are their errors
ROWS = 24
LABELLED = ("kto", "apo_zero_unpaired", "bco")
RANKED = ("plackett_luce", "all_pairs")
COUPLED = ("kto", "bco", "aot", "aot_unpaired")
# Steps 3 to 5 are under one reference: the end of an epoch of two steps and the whole next one, where groups come again, on
# another rank as a rule.
FOLLOWS = {"sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.6, "max_steps": 7}
# Losses that are squares of log-ratios move far at the rate that suits the others. DiscoPOP's is not monotone: from a margin
# of 0 it falls towards smaller margins at first, and rises again behind a long step.
SLOW = {"ipo_sum": 1e-5, "sppo_hard": 1e-5, "sppo": 1e-6, "discopop": 3e-5}


def all_losses():
    """The names as the program itself lists them."""
    table = run(0, "train", "--help-keys").stdout
    row = next(line for line in table.splitlines() if line.startswith("| `loss_type` |"))
    return [name for name in re.findall(r"`([a-z_]+)`", row.split("|")[2])]


def make_data(folder):
    """The same real pairs as pairs, as labelled completions, as ranked groups of three and with a sampled completion."""
    prepare(ROWS + 1, folder("pairs.h5"))
    rows = [json.loads(line) for line in open(folder("pairs.h5.jsonl"))]
    unpaired, ranked, sampled = [], [], []
    for row, other in zip(rows, rows[1:]):
        for side in ("chosen", "rejected"):
            unpaired.append({"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"})
        ranked.append({"prompt": row["prompt"], "completions": [row["rejected"], other["rejected"], row["chosen"]],
                       "scores": [0.2, 0.2 if len(ranked) % 2 else 0.1, 0.9]})
        sampled.append({**row, "sampled": other["chosen"]})
    for name, lines in (("unpaired", unpaired), ("ranked", ranked), ("sampled", sampled)):
        with open(folder(f"{name}.jsonl"), "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        run(0, "prepare", "--model", MODEL, "--data", folder(f"{name}.jsonl"), "--out", folder(f"{name}.h5"),
            "--max_length", 256)


def file_of(folder, name):
    kind = "unpaired" if name in LABELLED else "ranked" if name in RANKED else "pairs"
    return folder(f"{kind}.h5")


def keys_of(name):
    rate = SLOW.get(name, 3e-4)
    return {"loss_type": name, "learning_rate": rate, "max_grad_norm": 1}


def test_all(failures, folder, names):
    """Two epochs each; the chosen side has gained on the rejected one at their end."""
    for name in names:
        out = folder(f"all-{name}")
        done = train(2, file_of(folder, name), out, **keys_of(name), max_steps=-1, num_train_epochs=2)
        finite = all(math.isfinite(value) for record in done for value in record.values() if isinstance(value, float))
        last = done[-1]
        if name in ("sft", "orpo", "apo_down"):  # which lift both sides by their likelihood, or push both down
            gained = last["loss"] < done[0]["loss"]
        elif name == "discopop":
            gained = done[1]["loss"] < done[0]["loss"]
        else:
            gained = last["rewards/margins"] > done[0]["rewards/margins"]
        failures.check(finite and gained and len(done) >= 4,
                       f"{name}: two epochs on two ranks, {len(done)} steps, loss {done[0]['loss']:.5g} -> "
                       f"{last['loss']:.5g}")


def test_pairs_as_labels(failures, folder):
    done = train(2, folder("pairs.h5"), folder("kto-pairs"), loss_type="kto", max_steps=4)
    failures.check(done[0]["loss"] == 0.5 and done[0]["kl"] == 0 and done[-1]["rewards/margins"] > 0,
                   "kto takes pairs: the chosen completion is desirable, the other is not")


def test_independence(failures, folder):
    """Means, sorting, the KL estimate and normalised weights are those of the global batch."""
    cases = [(name, {}) for name in COUPLED]
    cases += [("kto", {"weighting": "sampled"}), ("sigmoid", {"rpo_alpha": 0.5, "weighting": "sampled"}),
              ("orpo", {"nll_on_prompt": True}), ("plackett_luce", {"weighting": "greedy"}),
              ("sigmoid", FOLLOWS), ("sigmoid", {"ld_alpha": 0.5, "weighting": "none", "length_alpha": 0.01})]
    for name, more in cases[-4:] if SHORT else cases:
        label = " ".join([name, *more])
        groups = file_of(folder, name)
        keys = {**keys_of(name), "max_steps": 4, **more}
        one = train(1, groups, folder(f"one-{label}"), per_device_train_batch_size=4, **keys)
        for ranks, micro in ((2, 1), (3, 5)):
            other = train(ranks, groups, folder(f"{ranks}-{label}"), per_device_train_batch_size=micro, **keys)
            worst = max(relative([a[key] for a in one], [b[key] for b in other]) for key in ("loss", "kl", "rewards/shift")
                        if key in one[0])
            norms = relative([a["grad_norm"] for a in one], [b["grad_norm"] for b in other])
            failures.check(worst < 10 * ROUNDING and norms < 50 * ROUNDING,
                           f"{label}: {ranks} ranks in micro-batches of {micro} as one rank in fours, {worst:.1e}")


def test_resume(failures, folder):
    """The running mean of rewards and a reference that follows the policy are part of a checkpoint."""
    often = {**FOLLOWS, "ref_model_sync_steps": 2, "max_steps": 6}
    evaluated = {"eval_file": folder("pairs.h5"), "eval_strategy": "steps", "eval_steps": 3}
    for label, name, more in (("bco", "bco", {}), ("kto", "kto", {}), ("sync", "sigmoid", {**often, **evaluated}),
                              ("sync kto", "kto", often), ("sync far", "sigmoid", {**FOLLOWS, "save_steps": 5})):
        groups = file_of(folder, name)
        keys = {**keys_of(name), "max_steps": 6, "save_strategy": "steps", "save_steps": 3, **more}
        last = keys["max_steps"]
        parts = f"{last} steps = {keys['save_steps']} + {last - keys['save_steps']}"
        straight = train(2, groups, folder(f"straight-{label}"), **keys)
        copy = folder(f"resumed-{label}")
        shutil.copytree(folder(f"straight-{label}"), copy)
        shutil.rmtree(os.path.join(copy, f"checkpoint-{last}"))
        if label == "sync":
            fixed = {key: value for key, value in keys.items() if "ref_model" not in key}
            train(2, groups, copy, code=1, resume_from_checkpoint="auto", **fixed)
        resumed = train(2, groups, copy, resume_from_checkpoint="auto", **keys)
        failures.check(list(map(numbers, resumed)) == list(map(numbers, straight)) and len(resumed) == last,
                       f"{label}: {parts}, every number is equal")
        held = tensors(copy, last)
        failures.check(same_bits(held, tensors(folder(f"straight-{label}"), last)),
                       f"{label}: {parts}, parameters, moments and reference are equal bit for bit")
        if "sync" in label:
            failures.check(any(key.startswith("reference/") for key in held), f"{label}: the reference is in the checkpoint")
    moved = records(folder("straight-sync"))
    fixed = train(2, folder("pairs.h5"), folder("fixed"), loss_type="sigmoid", max_steps=6)
    failures.check(moved[1]["loss"] == fixed[1]["loss"] and moved[2]["loss"] != fixed[2]["loss"],
                   "a reference that follows: as a fixed one until the first time, and not after")


def test_whole_step(failures, folder):
    """With alpha 1 every step the reference is the policy: all margins are 0 and the loss stays log 2."""
    done = train(2, folder("pairs.h5"), folder("copy"), loss_type="sigmoid", weighting="none", max_steps=3,
                 sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)
    failures.check(all(abs(record["loss"] - math.log(2)) < 1e-12 for record in done),
                   "a reference that is the policy: the loss is log 2 at every step")
    out = folder("mixed")
    train(2, folder("pairs.h5"), out, loss_type="sigmoid", max_steps=2, sync_ref_model=True, ref_model_sync_steps=1,
          ref_model_mixup_alpha=0.25, save_strategy="steps", save_steps=1)
    old, new = tensors(out, 1), tensors(out, 2)
    names = [key.removeprefix("reference/") for key in new if key.startswith("reference/")]
    moved = sum(abs(new["reference/" + n] - old["reference/" + n]).sum() for n in names)
    # Three roundings of 2^-24 of numbers no larger than the larger of both.
    mixed = all((abs(0.75 * old["reference/" + n] + 0.25 * new["parameter/" + n] - new["reference/" + n])
                 <= 2**-22 * (abs(old["reference/" + n]) + abs(new["parameter/" + n]))).all() for n in names)
    failures.check(names and moved > 0 and mixed, "a reference that follows: three quarters itself, a quarter the policy")


def test_evaluation(failures, folder):
    """Before the first step, evaluation on the training file says what a first step over the whole file says."""
    for name, more in (("orpo", {"nll_on_prompt": True}), ("kto", {"weighting": "sampled"}), ("aot_unpaired", {})):
        groups, out = file_of(folder, name), folder(f"evaluated-{name}")
        first = train(2, groups, out, eval_file=groups, loss_type=name, max_steps=1, global_batch_size=2 * ROWS + 1,
                      **more)[0]
        before = records(out, "eval_loss")[0]
        both = [key for key in first if f"eval_{key}" in before]
        worst = max(both, key=lambda key: relative([first[key]], [before[f"eval_{key}"]]))
        error = relative([first[worst]], [before[f"eval_{worst}"]])
        failures.check(error < ROUNDING and "loss" in both, f"{name}: evaluation as training, {worst} {error:.1e}")


def test_min_margin(failures, folder):
    """Half of the pairs are dropped where half of the scores are near."""
    rows = [json.loads(line) for line in open(folder("pairs.h5.jsonl"))]
    for index, row in enumerate(rows):
        row["score_chosen"], row["score_rejected"] = 0.9, 0.8 if index % 2 else 0.1
    with open(folder("near.jsonl"), "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with open(folder("far.jsonl"), "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[::2])
    for name in ("near", "far"):
        run(0, "prepare", "--model", MODEL, "--data", folder(f"{name}.jsonl"), "--out", folder(f"{name}.h5"),
            "--max_length", 256)
    keys = {"loss_type": "sigmoid", "max_steps": 3, "reward_margin_beta": 1.0}
    near = train(2, folder("near.h5"), folder("filtered"), min_margin=0.5, **keys)
    far = train(2, folder("far.h5"), folder("chosen-by-hand"), **keys)
    failures.check([a["loss"] for a in near] == [b["loss"] for b in far],
                   "min_margin trains on what is left as if the rest had never been there")


with Folder() as folder:
    failures = Failures()
    make_data(folder)
    names = all_losses()
    failures.check(len(names) >= 25 and "sigmoid" in names, f"the program names its {len(names)} losses")
    test_all(failures, folder, ("kto", "aot", "plackett_luce") if SHORT else names)
    test_pairs_as_labels(failures, folder)
    test_independence(failures, folder)
    if not SHORT:
        test_resume(failures, folder)
        test_whole_step(failures, folder)
        test_evaluation(failures, folder)
        test_min_margin(failures, folder)
    failures.finish()
