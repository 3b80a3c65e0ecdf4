"""Does WPO do what its paper says (arXiv 2406.11827)? Measured on the small world, under the true reward.

    python benchmarks/paper/experiment.py            all of it; docs/paper.md says what comes out and why
    python benchmarks/paper/experiment.py --short    one seed, few pairs, no conclusion: does it run?
    python benchmarks/paper/experiment.py --report   tables and plot again, from the stored results

Each seed has its own world, base model and pairs; every method starts from the same model and reads the same
pairs in the same order, and its answers are drawn with the same random numbers. A run that is finished is
kept in --out and not repeated. The whole form rewrites benchmarks/results/paper.json, docs/paper.svg and the
tables in docs/paper.md.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # read when NumPy is imported: two runs side by side, each on one core
if os.geteuid() == 0:
    os.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "launcher", "text"))

import numpy as np  # noqa: E402
import summary  # noqa: E402
import world  # noqa: E402
import writers  # noqa: E402
from policy import Policy  # noqa: E402

WEIGHTINGS = {"DPO": "none", "WPO unaligned": "unaligned", "WPO greedy": "greedy", "WPO sampled": "sampled"}
LONGEST = 40  # tokens of a sampled answer; the longest that a writer writes has 27
WHOLE = {
    "seeds": [1, 2, 3, 4, 5],
    "pairs": 1024,
    "base": 16000,
    "base_epochs": 2,
    "prompts": 500,
    "samples": 2,
    "epochs": 2,
    "many_epochs": 4,
    "batch": 32,
    "learning_rate": 4e-4,
    "beta": 1.0,
    "base_learning_rate": 2e-3,
}
SHORT = WHOLE | {"seeds": [1], "pairs": 128, "base": 6000, "prompts": 100, "many_epochs": 2}
DIAL = [
    ("own", 0.0),
    ("strange", 0.25),
    ("strange", 0.5),
    ("strange", 0.75),
    ("strange", 1.0),
    ("misleading", 0.5),
    ("misleading", 1.0),
    ("near", 1.0),
]
RATES = [0.5, 2.0]  # times the learning rate, for DPO and WPO sampled
RATES_DIAL = [("own", 0.0), ("strange", 0.5), ("near", 1.0)]
SCALED_DIAL = [("strange", 0.5), ("strange", 1.0)]
MANY_DIAL = [("near", 1.0)]
OWN_DIAL = [("strange", 0.5)]
SHORT_DIAL = [("own", 0.0), ("strange", 0.5)]


def plan(short):
    """The runs of one seed: (writer, share, method, factor of the learning rate, kind of run). What matters
    most comes first, so that an experiment that is cut short has whole rows."""
    two, others = ("DPO", "WPO sampled"), ("WPO greedy", "WPO unaligned")
    if short:
        return [(*point, method, 1.0, "run") for point in SHORT_DIAL for method in two + others]
    runs = [(*point, method, 1.0, "run") for point in DIAL for method in two]
    runs += [(*point, "DPO", "weight", "run") for point in SCALED_DIAL]
    runs += [("strange", 1.0, "WPO sampled", "weight", "run")]
    runs += [(*point, "DPO", 1.0, "own half") for point in OWN_DIAL]
    runs += [(*point, method, rate, "run") for point in RATES_DIAL for rate in RATES for method in two]
    runs += [(*point, method, 1.0, "many epochs") for point in MANY_DIAL for method in two]
    return runs + [(*point, method, 1.0, "run") for method in others for point in DIAL]


class Place:
    """Paths, the settings, and the wpo binary of an experiment."""

    def __init__(self, options):
        self.wpo, self.out = os.path.abspath(options.wpo), os.path.abspath(options.out)
        self.setting = SHORT if options.short else WHOLE
        if options.seeds:
            self.setting = self.setting | {"seeds": options.seeds}

    def path(self, seed, *parts):
        return os.path.join(self.out, f"seed-{seed}", *parts)

    def call(self, *words):
        done = subprocess.run(
            [self.wpo, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise RuntimeError(f"wpo {' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def train(self, seed, model, data, out, keys):
        os.makedirs(os.path.dirname(out), exist_ok=True)
        keys = {
            "model_name_or_path": model,
            "train_file": data,
            "output_dir": out,
            "overwrite_output_dir": "true",
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "global_batch_size": self.setting["batch"],
            "per_device_train_batch_size": self.setting["batch"],
            "logging_steps": 1000,
            "save_strategy": "epoch",
            "seed": seed,
            "threads": 1,
            "device": "cpu",
        } | keys
        with open(out + ".yaml", "w", encoding="utf-8") as file:
            file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
        self.call("train", out + ".yaml")


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


# What every method of a seed shares: the base model, the pairs, and how far they are from the model


def own_pairs(seed, policy, prompts, tries=3):
    """Row index -> a pair of two samples of the policy; without prompts whose pairs were all too near."""
    luck = np.random.default_rng([seed, 1]).random((len(prompts) * tries * 2, LONGEST))
    texts = [
        policy.decode(tokens)
        for tokens in policy.sample([p for p in prompts for _ in range(tries * 2)], luck)
    ]
    found = {}
    for index, prompt in enumerate(prompts):
        mine = texts[index * tries * 2 : (index + 1) * tries * 2]
        rows = filter(None, (writers.label(prompt, mine[2 * i : 2 * i + 2]) for i in range(tries)))
        first = next(rows, None)
        if first:
            found[index] = first
    return found


def distance(place, model, data, out):
    """How likely the model is to write these pairs: log p per token, each weighting's mean weight and
    effective share of the pairs, and how much of the pairs, and of the weight, compares manners alone, both
    answers having all items right."""
    place.call("eval", "--model", model, "--data", data, "--threads", 1, "--json", "--per_completion", out)
    rows, pairs = read_rows(data.removesuffix(".h5") + ".jsonl"), summary.pair_up(read_rows(out))
    measured = {}
    for side, name in enumerate(("chosen", "rejected")):
        each = [pair[side]["logp"] / pair[side]["tokens"] for pair in pairs.values()]
        measured[name] = float(np.mean(each))
    manners = np.array([writers.same_items(rows[index]) for index in pairs])
    measured["manners"] = float(manners.mean())
    for weighting in ("unaligned", "greedy", "sampled"):
        each = [a["weights"][weighting] * b["weights"][weighting] for a, b in pairs.values()]
        weights = np.minimum(1.0, each)
        measured[weighting] = float(weights.mean())
        measured[weighting + " effective"] = float(weights.sum() ** 2 / (weights**2).sum() / len(weights))
        measured[weighting + " manners"] = float(weights[manners].sum() / weights.sum())
    return measured


def check_sampler(place, seed, policy, model):
    """The sampler's log-probabilities against `wpo eval`: sums of up to 40 terms, each off by some 1e-6."""
    rows, out = read_rows(place.path(seed, "heldout.jsonl")), place.path(seed, "heldout-scores.jsonl")
    place.call(
        "eval",
        "--model",
        model,
        "--data",
        place.path(seed, "heldout.h5"),
        "--threads",
        1,
        "--json",
        "--per_completion",
        out,
    )
    records = read_rows(out)
    worst = 0.0
    for side, name in enumerate(("chosen", "rejected")):
        mine = policy.score([row["prompt"] for row in rows], [row[name] for row in rows])
        worst = max(
            [worst]
            + [
                abs(mine[record["row"]] - record["logp"])
                for record in records
                if record["completion"] == side
            ]
        )
    if worst > 1e-4:
        raise RuntimeError(f"the sampler's log-probabilities differ from wpo's by {worst:g}")
    return worst


def prepare_seed(job):
    place, seed = job
    done = place.path(seed, "seed.json")
    if os.path.exists(done):
        return read_rows(done)[0]
    setting, spare = place.setting, place.setting["pairs"] // 16 + 32
    counts = {"base": setting["base"], "pairs": setting["pairs"] + spare, "heldout": setting["prompts"]}
    world.write_world(seed, counts, place.path(seed))
    start, base = place.path(seed, "start"), place.path(seed, "base")
    for folder in (start, base):
        shutil.rmtree(folder, ignore_errors=True)

    def to_groups(name):
        target = place.path(seed, name + ".h5")
        if os.path.exists(target):
            os.remove(target)
        place.call(
            "prepare",
            "--model",
            start,
            "--data",
            place.path(seed, name + ".jsonl"),
            "--max_length",
            256,
            "--out",
            target,
        )
        return target

    place.call("init", "--config", place.path(seed, "model"), "--seed", seed, "--out", start)
    to_groups("heldout")
    place.train(
        seed,
        start,
        to_groups("base"),
        place.path(seed, "base-run"),
        {
            "loss_type": "sft",
            "learning_rate": setting["base_learning_rate"],
            "num_train_epochs": setting["base_epochs"],
        },
    )
    place.call("export", "--run", place.path(seed, "base-run"), "--out", base)
    policy = Policy(base)
    worst = check_sampler(place, seed, policy, base)

    near = read_rows(place.path(seed, "pairs.jsonl"))
    prompts = [row["prompt"] for row in near]
    own = own_pairs(seed, policy, prompts)
    kept = sorted(own)[: setting["pairs"]]
    if len(kept) < setting["pairs"]:
        raise RuntimeError(f"only {len(kept)} prompts of {len(prompts)} gave a pair of own samples")
    rng = random.Random(f"foreign {seed}")
    pairs = {"own": [own[index] for index in kept], "near": [near[index] for index in kept]}
    for name, write in writers.WRITERS.items():
        pairs[name] = [writers.foreign_pair(rng, prompts[index], write) for index in kept]
    coin = [
        rng.random() for _ in kept
    ]  # one for all: a larger share keeps the foreign pairs of a smaller one
    distances = {}
    for writer, share in DIAL:
        name = f"{writer}-{share:g}"
        write_rows(
            place.path(seed, name + ".jsonl"),
            [pairs[writer if toss < share else "own"][row] for row, toss in enumerate(coin)],
        )
        distances[name] = distance(place, base, to_groups(name), place.path(seed, name + "-scores.jsonl"))
    for writer, share in OWN_DIAL:
        name = f"{writer}-{share:g}-own half"
        write_rows(
            place.path(seed, name + ".jsonl"),
            [pairs["own"][row] for row, toss in enumerate(coin) if toss >= share],
        )
        to_groups(name)
    found = {"seed": seed, "sampler_error": worst, "distance": distances, "base": measure(place, seed, base)}
    write_rows(done + ".part", [found])
    os.replace(done + ".part", done)
    return found


# A run: train, export, let it answer


def measure(place, seed, model):
    """What the model's answers to the held-out prompts are worth, drawn at temperature 1."""
    prompts = [row["prompt"] for row in read_rows(place.path(seed, "heldout.jsonl"))]
    prompts = [prompt for prompt in prompts for _ in range(place.setting["samples"])]
    policy = Policy(model)
    luck = np.random.default_rng([seed, 2]).random((len(prompts), LONGEST))
    drawn = policy.sample(prompts, luck)
    parts = [writers.parts_of(prompt, policy.decode(tokens)) for prompt, tokens in zip(prompts, drawn)]
    means = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
    return means | {"tokens": float(np.mean([len(tokens) for tokens in drawn]))}


def stem_of(place, seed, run):
    writer, share, method, rate, kind = run
    return place.path(seed, "runs", f"{writer}-{share:g}-{method}-{rate}-{kind}".replace(" ", "_"))


def one_run(job):
    place, seed, (writer, share, method, rate, kind) = job
    out, setting = stem_of(*job), place.setting
    result = out + ".json"
    if os.path.exists(result):
        return read_rows(result)
    base, many = place.path(seed, "base"), kind == "many epochs"
    data = place.path(seed, f"{writer}-{share:g}{'-own half' if kind == 'own half' else ''}.h5")
    weight = read_rows(place.path(seed, "seed.json"))[0]["distance"][f"{writer}-{share:g}"]["sampled"]
    factor = weight if rate == "weight" else rate
    epochs = setting["many_epochs"] if many else setting["epochs"]
    steps = setting["pairs"] * epochs // setting["batch"]  # of half the pairs too
    place.train(
        seed,
        base,
        data,
        out,
        {
            "loss_type": "sigmoid",
            "weighting": WEIGHTINGS[method],
            "beta": setting["beta"],
            "max_steps": steps,
            "learning_rate": setting["learning_rate"] * factor,
            "save_total_limit": 0 if many else 1,
        },
    )
    records = []
    for epoch in range(1 if many else epochs, epochs + 1):
        model = f"{out}-epoch-{epoch}"
        shutil.rmtree(model, ignore_errors=True)
        place.call("export", "--run", out, "--out", model, "--step", steps * epoch // epochs)
        records.append(
            {
                "seed": seed,
                "writer": writer,
                "share": share,
                "method": method,
                "rate": rate,
                "factor": factor,
                "kind": kind,
                "epoch": epoch,
                **measure(place, seed, model),
            }
        )
        shutil.rmtree(model)
    shutil.rmtree(out)
    write_rows(result + ".part", records)
    os.replace(result + ".part", result)
    return records


def experiment(place, short, jobs, collect):
    os.makedirs(place.out, exist_ok=True)
    seeds, runs = [], []
    todo = [(place, seed, run) for run in plan(short) for seed in place.setting["seeds"]]
    if collect:
        todo = [job for job in todo if os.path.exists(stem_of(*job) + ".json")]
    pool = ProcessPoolExecutor(jobs)
    try:
        for found in pool.map(prepare_seed, [(place, seed) for seed in place.setting["seeds"]]):
            seeds.append(found)
            print(
                f"seed {found['seed']}: the base model has reward {found['base']['reward']:.3f}", flush=True
            )
        for count, records in enumerate(pool.map(one_run, todo), 1):
            runs += records
            last = records[-1]
            print(
                f"{count}/{len(todo)}  seed {last['seed']}  {last['writer']} {last['share']:g}  "
                f"{last['method']}  "
                f"rate x {last['factor']:.3g}  {last['kind']}  reward {last['reward']:.3f}",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure, the runs that have not begun are dropped
    return {"setting": place.setting, "seeds": seeds, "runs": runs}


def main():
    parser = argparse.ArgumentParser(prog="experiment.py", description="DPO and WPO under a known reward.")
    parser.add_argument("--wpo", default=os.path.join(ROOT, "build", "release", "wpo"), help="the program")
    parser.add_argument("--out", help="work folder [runs/paper, runs/paper-short]")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one core each")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the setting")
    parser.add_argument(
        "--short", action="store_true", help="one seed, few pairs; result, plot and tables go to --out"
    )
    parser.add_argument(
        "--report", action="store_true", help="tables and plot from benchmarks/results/paper.json"
    )
    parser.add_argument("--collect", action="store_true", help="only the runs that are finished in --out")
    options = parser.parse_args()
    options.out = options.out or os.path.join(ROOT, "runs", "paper-short" if options.short else "paper")
    results = os.path.join(ROOT, "benchmarks", "results", "paper.json")
    if options.report:
        with open(results, encoding="utf-8") as file:
            return summary.write(json.load(file), os.path.join(ROOT, "docs"), "paper")
    if not os.access(options.wpo, os.X_OK):
        sys.exit(f"experiment.py: {options.wpo} is not a program; build wpo, or name it with --wpo")
    place = Place(options)
    try:
        found = experiment(place, options.short, options.jobs, options.collect)
    except RuntimeError as error:
        sys.exit(f"experiment.py: {error}")
    summary.save(found, os.path.join(place.out, "paper.json") if options.short else results)
    return summary.write(found, place.out if options.short else os.path.join(ROOT, "docs"), "paper")


if __name__ == "__main__":
    sys.exit(main())
