"""The program against TRL itself, by the files in trl/: loss, metrics and gradient of every objective TRL has.

Both compute in float32. The tolerances:

BOUND     1e-4, relative: of a loss, of the gradient's norm and of each parameter's. A log-probability of up to n = 200
          tokens and |L| = 1000 nats is off by 1e-5 |L| at most, and by some 1e-4 as a rule; of two of them a margin is
          made, of which beta times the error, 1e-5 to 5e-5, is that of a coefficient. TRL's own errors were measured
          as 9e-6 of a loss and 1e-5 of a parameter's norm (trl/README.md).
FLOOR     1e-3 of the gradient's norm: a parameter's norm below it is a sum that cancels, compared absolutely.
ELEMENT   3e-4 of the larger of a value and its tensor's root mean square: three standard deviations of elements whose
          tensor is off by BOUND.
LOGP      1e-5 (|L| + n) of a log-probability, test_chain.py's; twice of a log-ratio; beta times that of a reward.
MEAN      2e-5 (1 + |x|) of a mean logit, an entropy, a likelihood: means over tokens, each off by test_chain's TOKEN.

Accuracies are counts of exact comparisons: 1e-6.

Writes WPO_BUILD/objectives-trl.json, where all cases were tried: per method the largest relative error of loss and
gradient, for the table of docs/objectives.md."""

import concurrent.futures
import json
import math
import os
import sys
import tempfile

from harness import BINARY, DATA, TOOL, check, errors_file, finish, run, run_alone, skip

BOUND, FLOOR, ELEMENT, LOGP, MEAN = 1e-4, 1e-3, 3e-4, 1e-5, 2e-5
PER_PAIR = {"ipo-weighted", "simpo-alpha0"}  # each pair in a file of its own
# The program's metric of that name is another thing than TRL's: by trainer and TRL's version (trl/README.md).
OTHER = {("CPO", "1.16", "ipo"): ("logps/", "rewards/"), ("CPO", "1.16", "simpo"): ("logps/",),
         ("ORPO", "1.16", "orpo"): ("logps/",), ("DPO", "1.16", "sft"): ("entropy",),
         ("DPO", "0.24", "ipo"): ("logps/", "rewards/")}

REQUIRED = ("kl", "delta", "nll_loss", "entropy", "mean_token_accuracy", "logps/chosen", "logits/rejected",
            "rewards/accuracies", "rewards/margins")
NAMES = {"delta": "rewards/shift"}  # the program's, where they differ

table = {}


# -- inputs -----------------------------------------------------------------------------------------------------------


class Prepared:
    """A world's models and groups as files."""

    def __init__(self, name, description, folder):
        self.description, self.folder = description, os.path.join(folder, name)
        models = world.models(description, DATA)
        for model, which in zip(models, ("policy", "reference")):
            check(world.checksum(model) == description[f"{which}_sha256"],
                  f"{name}: the {which} is not the model that TRL had; does NumPy draw other numbers?")
            oracle.write_model(model, os.path.join(self.folder, which))
        self.policy = models[0]
        self.pairs = description["pairs"] if "pairs" in description else self.real_pairs()
        if "rows" in description:
            check(world.tokens_checksum(self.pairs) == description["rows_sha256"],
                  f"{name}: `wpo prepare` makes other token ids of the real pairs than TRL had")
        self.check_logps(models)
        singles, labels = world.unpaired(description, self.pairs)
        self.counts = {"pairs": self.pairs, "unpaired": singles}
        length = self.policy.config["max_position_embeddings"]
        self.write("pairs", self.pairs, max_length=length)
        self.write("unpaired", singles, kind="unpaired", labels=labels, max_length=length)
        self.write("unpaired-cut", singles, kind="unpaired", labels=labels)

    def path(self, name):
        return os.path.join(self.folder, f"{name}.h5")

    def groups(self, case):
        """TRL cuts KTO's mismatched completions at max_length, which is one of the groups file."""
        return self.path(case["data"] + ("-cut" if "max_length" in case else ""))

    def write(self, name, groups, **options):
        inputs.write_groups(self.path(name), groups, self.policy.vocabulary, **options)

    def real_pairs(self):
        wanted, prepared = self.description["rows"], self.path("prepared")
        rows = os.path.join(self.folder, "rows.jsonl")
        with open(os.path.join(DATA, wanted["file"]), encoding="utf-8") as file:
            lines = file.readlines()
        with open(rows, "w", encoding="utf-8") as file:
            file.writelines(lines[number] for number in wanted["numbers"])
        run(BINARY, "prepare", "--model", os.path.join(DATA, self.description["checkpoint"]), "--data", rows, "--out",
            prepared, "--max_length", 512)
        return inputs.read_groups(prepared)

    def check_logps(self, models):
        """TRL's log-probabilities from the float64 model: the inputs were made again right, whatever the program."""
        for model, which, expected in zip(models, ("policy", "reference"), self.description["logps"]):
            for group, sums in enumerate(training.logps(model, self.pairs)):
                for side, total in enumerate(sums):
                    error = abs(total - expected[group][side])
                    bound = LOGP * (abs(total) + len(self.pairs[group][1][side]))
                    check(error <= bound,
                          f"{which} group {group} completion {side}: log-probability off by {error:.3g}")

    def command(self, case, groups, out, **changes):
        folders = [os.path.join(self.folder, which) for which in ("policy", "reference")]
        policy, reference = reversed(folders) if case.get("swapped") else folders
        keys = {**case["keys"], **changes}
        words = [word for key, value in keys.items() for word in (f"--{key}", said(value))]
        return run_alone(TOOL, policy, groups, reference, out, *words, session=out + "-mpi")


def said(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


# -- one case ---------------------------------------------------------------------------------------------------------


def relative(got, expected, floor=0.0):
    return abs(got - expected) / max(abs(expected), floor, 1e-300)


def gradient_errors(case, prepared, flat):
    """(error of the norms, error of the elements, in units of ELEMENT's scale)."""
    gradient = oracle.unflatten(prepared.policy, flat)
    norm = float(np.linalg.norm(flat.astype(np.float64)))
    worst = relative(norm, case["grad_norm"])
    names = prepared.description["names"]
    for name, expected in zip(names, case["norms"]):
        worst = max(worst, relative(float(np.linalg.norm(gradient[name])), expected, FLOOR * case["grad_norm"]))
    element = 0.0
    for (name, start), expected in zip(prepared.description["slices"], case["slices"]):
        root_mean_square = case["norms"][names.index(name)] / math.sqrt(gradient[name].size)
        for got, value in zip(gradient[name].ravel()[start:], expected):
            element = max(element, relative(got, value, root_mean_square))
    return worst, element


def metric_tolerance(case, prepared, name, value):
    beta, groups = case["keys"]["beta"], prepared.counts[case["data"]]
    tokens = max(len(y) for _, completions in groups for y in completions)
    largest = max(abs(total) for model in prepared.description["logps"] for pair in model for total in pair)
    logp = LOGP * (largest + tokens)
    if name.startswith("rewards/") and name != "rewards/accuracies" or name == "delta":
        return 2 * beta * logp + 1e-6 * abs(value)
    return {"rewards/accuracies": 1e-6, "mean_token_accuracy": 1e-6, "logps/chosen": logp, "logps/rejected": logp,
            "kl": 2 * logp, "log_odds_chosen": 4 * MEAN * (1 + abs(value))}.get(name, MEAN * (1 + abs(value)))


def check_metrics(case, prepared, printed):
    """Returns the names that were compared."""
    version = ".".join(case["trl"].split(".")[:2])
    left_out = OTHER.get((case["trainer"], version, case["keys"]["loss_type"]), ())
    if case["keys"].get("reference_free") and case["trainer"] == "DPO":
        left_out = ("rewards/",)
    compared = []
    for name, value in case["metrics"].items():
        got = printed.get(NAMES.get(name, name))
        if got is None or name.startswith(left_out):
            continue
        compared.append(name)
        error, bound = abs(got - value), metric_tolerance(case, prepared, name, value)
        check(error <= bound, f"{case['name']}: {name} is {got:.9g}, TRL's {value:.9g}, bound {bound:.2g}")
    return compared


def run_case(case, prepared):
    """(exit code, what it prints, what went wrong, gradient)."""
    out = os.path.join(prepared.folder, f"gradient-{case['trl']}-{case['name']}.bin")
    code, output, message = prepared.command(case, prepared.groups(case), out)
    flat = None if code else np.fromfile(out, "<f4")
    if not code:
        os.remove(out)
    return code, output, message, flat


def check_case(case, prepared, code, output, message, flat):
    if code:
        check(False, f"{case['name']}: tool_gradients failed: {message}")
        return
    printed = json.loads(output)
    loss = relative(printed["loss"], case["loss"])
    gradient, element = gradient_errors(case, prepared, flat)
    check(loss <= BOUND, f"{case['name']}: loss is {printed['loss']:.9g}, TRL's {case['loss']:.9g}")
    check(gradient <= BOUND, f"{case['name']}: a norm of the gradient is off by {gradient:.3g}")
    check(element <= ELEMENT, f"{case['name']}: an element of the gradient is off by {element:.3g}")
    check(abs(printed["grad_norm"] - np.linalg.norm(flat.astype(np.float64))) <= 1e-5 * printed["grad_norm"],
          f"{case['name']}: the norm printed is not that of the gradient written")
    compared = check_metrics(case, prepared, printed)
    method = case["keys"]["loss_type"]
    entry = table.setdefault(method, {"method": method, "trainers": set(), "cases": 0, "weighted": 0, "loss": 0.0,
                                      "gradient": 0.0, "element": 0.0, "metrics": set()})
    entry["cases"] += 1
    entry["weighted"] += case["keys"]["weighting"] != "none"
    entry["trainers"].add(f"{case['trainer']} of TRL {case['trl']}")
    entry["metrics"] |= set(compared)
    for name, value in (("loss", loss), ("gradient", gradient), ("element", element)):
        entry[name] = max(entry[name], value)


def check_pairs(case, prepared):
    """Every pair in a file of its own has TRL's loss of that pair."""
    for index, expected in enumerate(case["per_pair"]):
        prepared.write("single", [prepared.pairs[index]])
        out = os.path.join(prepared.folder, "one.bin")
        code, output, message = prepared.command(case, prepared.path("single"), out)
        error = relative(json.loads(output)["loss"], expected) if code == 0 else math.inf
        check(error <= BOUND, f"{case['name']}: the loss of pair {index} is off by {error:.3g}: {message}")


def check_teeth(case, prepared):
    """Another beta is another loss and another gradient, by more than the bounds: what is compared can differ."""
    out = os.path.join(prepared.folder, "other.bin")
    code, output, message = prepared.command(case, prepared.path(case["data"]), out,
                                             beta=case["keys"]["beta"] * 1.01)
    if code:
        check(False, f"{case['name']} with another beta: {message}")
        return
    gradient, element = gradient_errors(case, prepared, np.fromfile(out, "<f4"))
    check(relative(json.loads(output)["loss"], case["loss"]) > BOUND and gradient > BOUND and element > ELEMENT,
          f"{case['name']}: a beta that is off by a hundredth goes unnoticed")


# -- all --------------------------------------------------------------------------------------------------------------


def read_cases():
    cases = []
    for name in sorted(os.listdir(world.HERE)):
        if name.startswith("cases-trl-") and name.endswith(".json"):
            with open(os.path.join(world.HERE, name), encoding="utf-8") as file:
                content = json.load(file)
            cases += [{**case, "trl": content["versions"]["trl"]} for case in content["cases"]]
    check(len({(case["trl"], case["name"]) for case in cases}) == len(cases) > 100, "cases are missing, or named twice")
    return cases


def check_files(cases):
    """The files agree with themselves: norms with the whole norm, losses of pairs with the loss."""
    for case in cases:
        norm = math.sqrt(sum(value * value for value in case["norms"]))
        check(relative(norm, case["grad_norm"]) < 1e-6, f"{case['name']}: the norms do not add up")
        likelihood = case["keys"].get("rpo_alpha", 0) or "sft" in case["keys"]["loss_type"]
        if case["per_pair"] and not likelihood:
            mean = sum(case["per_pair"]) / len(case["per_pair"])
            check(relative(mean, case["loss"]) < 1e-5, f"{case['name']}: the pairs' losses do not add up")


def report():
    rows = [{**entry, "trainers": sorted(entry["trainers"]), "metrics": sorted(entry["metrics"])}
            for _, entry in sorted(table.items())]
    print(f"bounds: {BOUND:g} of loss and gradient, {ELEMENT:g} of elements")
    print(f"{'method':38}{'cases':>6}{'weighted':>9}{'loss':>9}{'gradient':>10}{'element':>9}")
    for row in rows:
        print(f"{row['method']:38}{row['cases']:6}{row['weighted']:9}{row['loss']:9.1e}{row['gradient']:10.1e}"
              f"{row['element']:9.1e}")
    return {"bounds": {"loss": BOUND, "gradient": BOUND, "element": ELEMENT}, "methods": rows}


def main():
    cases, description = read_cases(), world.read_description()
    check_files(cases)
    missing = [] if os.path.isdir(DATA) else ["WPO_TEST_DATA"]
    missing += [] if os.path.exists(BINARY) else ["WPO_BINARY"]
    with tempfile.TemporaryDirectory() as folder:
        for name, one in description["worlds"].items():
            if "rows" in one and missing:
                continue
            prepared, own = Prepared(name, one, folder), [case for case in cases if case["world"] == name]
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                for case, done in zip(own, pool.map(lambda case: run_case(case, prepared), own)):
                    check_case(case, prepared, *done)
            for case in own:
                if case["name"] in PER_PAIR:
                    check_pairs(case, prepared)
            check_teeth(next(case for case in own if case["keys"]["loss_type"] == "sigmoid"), prepared)
    content = report()
    check(set(REQUIRED) <= {name for entry in table.values() for name in entry["metrics"]},
          f"not every metric of {REQUIRED} was compared")
    print(f"{len(cases)} cases")
    if not missing:
        with open(errors, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
    finish(missing and f"the real pairs were not tried: {', '.join(missing)} is not set, or names nothing that exists")


if __name__ == "__main__":
    if not os.path.exists(TOOL):
        skip("WPO_BUILD holds no tests/tool_gradients")
    errors = errors_file("trl")
    try:
        import numpy as np

        sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "from_trl"))
        import world  # tests/golden/from_trl
        from world import inputs, oracle  # tests/golden

        import oracle_training as training
    except ModuleNotFoundError as error:
        skip(f"{error}; launcher/setup makes an environment that has it")
    main()
