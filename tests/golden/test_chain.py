"""The program against the float64 reference: log-probabilities, weights, loss, metrics, gradients, training steps.

The program packs, shares prefixes, works in chunks and in f32; the reference takes every sequence alone in float64.
The tolerances, with u = 2^-24 (docs/numerics.md, section 3, derives them; required are 1e-4 for log-probabilities
and 1e-3 for gradients):

TOKEN   1e-5 nats. A logit comes out of up to 5 layers of 6 products. A product over k <= 172 terms of random sign is
        off by u sqrt(k / 6) = 5 u, thirty of them in a row by sqrt(30) as much: 30 u = 1.8e-6 of a logit of up to 5.
LOGP    the same, relative or per token, should all of a completion's errors have one sign: 1e-5 (|L| + |y|).
WEIGHT  3e-5 of log w, absolute, which is relative of w: a mean over tokens of log p (TOKEN) less log sum p^2 (twice).
LOSS    1e-4 of the largest pair's loss: twice WEIGHT, and beta times the margin's error, which is 4 sums of up to 400
        tokens whose errors do not all have one sign: 0.5 * sqrt(1600) * 1.8e-6 = 4e-5.
GRADIENT  1e-4, relative in norm per tensor: the coefficient's error, which is that of the loss, and some 30 u besides.

Counts and accuracies are exact."""

import json
import math
import os
import tempfile

from harness import BINARY, DATA, TOOL, check, finish, run, skip

TOKEN, LOGP, WEIGHT, LOSS, GRADIENT = 1e-5, 1e-5, 3e-5, 1e-4, 1e-4

PAIRS = 12  # rows of the real data

worst = {}


def within(kind, error, tolerance, what):
    """Keeps the largest share of its tolerance that any error of a kind takes up."""
    share = float(error) / tolerance
    if not share <= worst.get(kind, (-1,))[0]:
        worst[kind] = (share, float(error), what)
    check(share <= 1, f"{what}: {kind} is off by {error:.3g}, more than {tolerance:.3g}")


def options(objective):
    names = ("loss_type", "beta", "weighting", "weight_sides", "weight_clamp", "label_smoothing")
    words = []
    for name in names:
        value = getattr(objective, name)
        words += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return words


# -- one model, one file of groups -------------------------------------------------------------------------------------


class Case:
    """A model folder, a reference folder and a groups file, with the reference's own view of them."""

    def __init__(self, name, model, other, groups_path):
        self.name, self.model_folder, self.other_folder, self.groups_path = name, model, other, groups_path
        self.model = oracle.read_model(model)
        self.groups = inputs.read_groups(groups_path)
        self.reference = training.logps(oracle.read_model(other), self.groups) if other else None

    def words(self):
        return ["--reference", self.other_folder] if self.other_folder else []

    def evaluate(self, folder, objective, *more):
        """`wpo eval`: its metrics, and its records of the completions."""
        path = os.path.join(folder, "completions.jsonl")
        if os.path.exists(path):
            os.remove(path)
        output = run(BINARY, "eval", "--model", self.model_folder, "--data", self.groups_path, *self.words(),
                     "--per-completion", path, "--json", *options(objective), *more)
        with open(path) as file:
            return json.loads(output), [json.loads(line) for line in file]

    def check_eval(self, folder, objective, *more):
        metrics, records = self.evaluate(folder, objective, *more)
        step = training.Step(self.model, self.groups, self.reference, objective, with_gradients=False)
        scores = [(group, side, result) for group, results in enumerate(step.scores)
                  for side, result in enumerate(results)]
        check(len(records) == len(scores), f"{self.name}: {len(records)} records for {len(scores)} completions")
        for record, (group, side, result) in zip(records, scores):
            self.check_record(record, group, side, result, f"{self.name} group {group} completion {side}")
        self.check_metrics(metrics, step)
        return metrics

    def check_record(self, record, group, side, result, what):
        total = result.logp.sum()
        check(record["tokens"] == result.count, f"{what}: {record['tokens']} tokens, not {result.count}")
        within("logp", abs(record["logp"] - total), LOGP * (abs(total) + result.count), what)
        if not self.reference:
            check(record["reference"] is None, f"{what}: a reference of {record['reference']} from nowhere")
        else:
            expected = self.reference[group][side]
            within("reference", abs(record["reference"] - expected), LOGP * (abs(expected) + result.count), what)
        for weighting in training.WEIGHTINGS:
            log_weight = training.completion_log_weight(result, weighting)
            within(f"weight {weighting}", abs(math.log(record["weights"][weighting]) - log_weight), WEIGHT, what)

    def check_metrics(self, metrics, step):
        for name, expected in step.metrics().items():
            if name not in metrics:
                check(False, f"{self.name}: eval says nothing of {name}")
                continue
            within(f"metric {name}", abs(metrics[name] - expected), self.metric_tolerance(name, expected, step),
                   f"{self.name} {step.objective}")

    def metric_tolerance(self, name, expected, step):
        kind = name.split("/")[0]
        if name.split("/")[-1] in ("mean_token_accuracy", "accuracies", "clamped") or kind == "lengths":
            return 1e-12
        if name == "loss":
            return LOSS * max(abs(loss) for loss in step.losses)
        results = [result for results in step.scores for result in results]
        sums = max(LOGP * (abs(result.logp.sum()) + result.count) for result in results)
        return {"rewards": 4 * step.objective.beta * sums, "logps": sums, "weights": 4 * WEIGHT * abs(expected),
                "entropy": TOKEN, "logits": TOKEN}[kind]

    def check_gradients(self, folder, objective, *more):
        path = os.path.join(folder, "gradients.bin")
        output = run(TOOL, self.model_folder, self.groups_path, self.other_folder or self.model_folder, path,
                     *[{"true": 1, "false": 0}.get(word, word) for word in options(objective)], *more)
        got = oracle.unflatten(self.model, np.fromfile(path, "<f4"))
        step = training.Step(self.model, self.groups, self.reference, objective)
        for name, expected in step.gradients.items():
            error = np.linalg.norm(got[name] - expected) / np.linalg.norm(expected)
            within("gradient", error, GRADIENT, f"{self.name} {objective} {name}")
        said, norm = json.loads(output), training.global_norm(step.gradients)
        within("norm of the gradient", abs(said["grad_norm"] / norm - 1), GRADIENT, f"{self.name} {objective}")
        within("loss of training", abs(said["loss"] - step.loss), self.metric_tolerance("loss", step.loss, step),
               f"{self.name} {objective}")


# -- the trained checkpoint on real pairs ------------------------------------------------------------------------------


def real_case(folder):
    source = os.path.join(DATA, "stories260K")
    rows = os.path.join(folder, "rows.jsonl")
    with open(os.path.join(DATA, "alpaca_pairs", "train.jsonl")) as file, open(rows, "w") as out:
        out.writelines(file.readlines()[:PAIRS])
    groups_path = os.path.join(folder, "real.h5")
    run(BINARY, "prepare", "--model", source, "--data", rows, "--out", groups_path, "--max_length", 512)
    other = os.path.join(folder, "real-reference")
    oracle.write_model(inputs.perturbed(oracle.read_model(source), 5, 0.02), other)
    case = Case("real pairs", source, other, groups_path)
    check(len(case.groups) == PAIRS, f"prepare kept {len(case.groups)} of {PAIRS} pairs")
    return case


# -- random models of every family -------------------------------------------------------------------------------------


def random_case(name, folder, seed, completions=2):
    """Seven groups; those of one pair are greedy on both sides, so that the clamp has something to hold."""
    model = oracle.Model(inputs.CONFIGS[name])
    model.weights = inputs.random_weights(model, seed)
    paths = [os.path.join(folder, f"{name}-{part}") for part in ("model", "reference")]
    oracle.write_model(model, paths[0], "BF16" if name in ("llama", "qwen2") else "F32")
    oracle.write_model(inputs.perturbed(model, seed, 0.02), paths[1], "F16" if name == "mistral" else "F32")
    stored = oracle.read_model(paths[0])
    groups = inputs.random_groups(model.vocabulary, 7, seed, completions)
    prompt = groups[3][0]
    groups[3] = (prompt, [oracle.greedy(stored, prompt, 7 - 3 * side) for side in range(completions)])
    groups_path = os.path.join(folder, f"{name}-{completions}.h5")
    inputs.write_groups(groups_path, groups, model.vocabulary,
                        "preference" if completions == 2 else "prompt-completion")
    return Case(name, paths[0], paths[1] if completions == 2 else None, groups_path)


def objectives():
    """Every weighting, side, clamp and smoothing at least once."""
    for weighting in training.WEIGHTINGS:
        yield training.Objective(beta=0.5, weighting=weighting)
    yield training.Objective(beta=0.1, weight_clamp=False)
    yield training.Objective(beta=0.1, weight_sides="chosen", label_smoothing=0.1)
    yield training.Objective(beta=0.1, weight_sides="rejected", weight_clamp=False, label_smoothing=0.25)


def check_initialised(name, folder):
    """`wpo init`: a checkpoint of several files that the reference reads, with the config's spread in its matrices."""
    config, out = os.path.join(folder, f"{name}.json"), os.path.join(folder, f"{name}-init")
    with open(config, "w") as file:
        json.dump(inputs.CONFIGS[name], file)
    run(BINARY, "init", "--config", config, "--seed", 3, "--out", out, "--max_shard_size", "9KB")
    model = oracle.read_model(out)
    for tensor, values in model.weights.items():
        if values.ndim == 1:
            expected = 0 if tensor.endswith(".bias") else 1
            check(np.all(values == expected), f"init {name}: {tensor} is not {expected}")
            continue
        # The mean of n normal numbers has a deviation of s / sqrt(n), their root mean square one of s / sqrt(2 n).
        spread, root = model.config["initializer_range"], math.sqrt(values.size)
        check(abs(values.mean()) < 5 * spread / root, f"init {name}: mean of {tensor}")
        check(abs(np.sqrt(np.mean(values**2)) - spread) < 5 * spread / root, f"init {name}: spread of {tensor}")
    groups_path = os.path.join(folder, f"{name}-init.h5")
    inputs.write_groups(groups_path, inputs.random_groups(model.vocabulary, 5, 11), model.vocabulary)
    case = Case(f"{name} from init", out, out, groups_path)
    metrics = case.check_eval(folder, training.Objective())
    # The model is its own reference. Both sides sum the same doubles, so only the mean's and the product's roundings.
    check(metrics["rewards/margins"] == 0, f"{case.name}: a margin of {metrics['rewards/margins']} to itself")
    within("loss at margin 0", abs(metrics["loss"] / (metrics["weights/mean"] * math.log(2)) - 1), 1e-15 * 8, case.name)


# -- training ----------------------------------------------------------------------------------------------------------


def check_training(case, folder, objective, optimiser, steps, ranks, **more):
    """Steps over the whole data set, so that the order of the data does not matter.

    AdamW turns an error of the gradient into one of the update by an amount that depends on the gradients themselves,
    so it is measured: the reference trains once more with every gradient disturbed by noise of GRADIENT relative norm
    per tensor. Four times that distance is the tolerance, as the noise is one draw; storing parameters in f32 adds u of
    their size at every step."""
    groups = len(case.groups)
    order = [list(range(groups))] * steps
    expected, history = training.train(case.model, case.groups, objective, optimiser, order, case.reference)
    noise = np.random.default_rng(1)

    def disturb(gradients):
        for values in gradients.values():
            direction = noise.normal(size=values.shape)
            values += GRADIENT * np.linalg.norm(values) / np.linalg.norm(direction) * direction

    other, _ = training.train(case.model, case.groups, objective, optimiser, order, case.reference, disturb)
    out = os.path.join(folder, f"run-{case.name}-{objective.loss_type}")
    settings = {"model_name_or_path": case.model_folder, "train_file": case.groups_path, "output_dir": out,
                "max_steps": steps, "global_batch_size": groups, "logging_steps": 1, "save_strategy": "steps",
                "save_steps": steps, "seed": 1, **vars(objective), **vars(optimiser), **more}
    if case.other_folder:
        settings["ref_model_name_or_path"] = case.other_folder
    path = out + ".yaml"
    with open(path, "w") as file:
        file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    run(BINARY, "train", path, ranks=ranks)
    run(BINARY, "export", "--run", out, "--out", out + "-export", "--dtype", "float32")
    got = oracle.read_model(out + "-export")
    for name, start in case.model.weights.items():
        update = np.linalg.norm(expected.weights[name] - start)
        allowed = 4 * np.linalg.norm(other.weights[name] - expected.weights[name])
        allowed += steps * 2.0**-24 * np.linalg.norm(start)
        check(update > 20 * allowed, f"{case.name}: the update of {name} is too small to show an error")
        within("update", np.linalg.norm(got.weights[name] - expected.weights[name]) / update, allowed / update,
               f"{case.name} {objective.loss_type} {name}")
    check_history(case, out, history)


def check_history(case, out, history):
    with open(os.path.join(out, "metrics.jsonl")) as file:
        lines = [line for line in map(json.loads, file) if "loss" in line]
    check(len(lines) == len(history), f"{case.name}: {len(lines)} lines of metrics for {len(history)} steps")
    for line, expected in zip(lines, history):
        what = f"{case.name} step {line.get('step')}"
        within("loss of a step", abs(line["loss"] - expected["loss"]), LOSS * expected["loss"], what)
        within("norm of a step", abs(line["grad_norm"] / expected["grad_norm"] - 1), GRADIENT, what)
        within("rate of a step", abs(line["learning_rate"] - expected["learning_rate"]), 1e-15, what)


def check_family(name, seed, folder):
    check_initialised(name, folder)
    pairs, singles = random_case(name, folder, seed), random_case(name, folder, seed, completions=1)
    for index, objective in enumerate(objectives()):
        # Neither the batch nor what is kept of it may show in the numbers.
        batch = (1, 3, 8)[index % 3]
        pairs.check_eval(folder, objective, "--per_device_eval_batch_size", batch)
        pairs.check_gradients(folder, objective, "--micro", batch, "--recompute", index % 2)
    likelihood = training.Objective(loss_type="sft", weighting="none")
    singles.check_eval(folder, likelihood)
    singles.check_gradients(folder, likelihood, "--micro", 2)
    if name in ("mistral", "qwen2"):
        check_training(pairs, folder, training.Objective(beta=0.5, label_smoothing=0.1),
                       training.Optimiser(1e-2, "linear", 0, 0.1, 0.9, 0.99, 1e-3, 0.05), 3, ranks=1,
                       per_device_train_batch_size=3)
        check_training(singles, folder, likelihood,
                       training.Optimiser(1e-2, "cosine", 1, 0.1, 0.8, 0.95, 1e-3, 0.5), 4, ranks=2,
                       per_device_train_batch_size=2, gradient_checkpointing=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(inputs.CONFIGS):
            check_family(name, seed, folder)
        if DATA:
            case = real_case(folder)
            for objective in (training.Objective(), training.Objective(weighting="greedy", weight_clamp=False),
                              training.Objective(weighting="none", beta=0.5)):
                case.check_eval(folder, objective)
                case.check_gradients(folder, objective, "--micro", 5, "--logits_megabytes", 1)
    for kind, (share, error, what) in sorted(worst.items()):
        print(f"{kind:32s} worst error {error:9.2e}, {100 * share:6.2f} % of its tolerance: {what}")
    finish(None if DATA else "WPO_TEST_DATA is not set: random models passed, the trained checkpoint was left out")


if __name__ == "__main__":
    if not os.path.exists(BINARY):
        skip("WPO_BINARY is not set or not there")
    try:
        import oracle  # before NumPy, whose threads it sets

        import inputs
        import numpy as np
        import oracle_training as training
    except ImportError as error:
        skip(f"{error}; launcher/setup makes an environment that has it")
    main()
