"""The run files of launcher/recipes/: each says what its source says, by a table written by hand; names its paper and
how its data is made; stands in docs/recipes.md; is read by the program as it is, which then misses nothing but the
data; and takes a step on data of the kind it asks for."""

import concurrent.futures
import json
import math
import os
import re
import shlex
import subprocess
import sys

import fixtures
from fixtures import LETTERS, letters_tokenizer, prepare

RECIPES = os.path.join(fixtures.ROOT, "launcher", "recipes")
LIST = os.path.join(fixtures.ROOT, "docs", "recipes.md")
OBJECTIVES = os.path.join(fixtures.ROOT, "docs", "objectives.md")
BINARY = os.environ.get("WPO_BINARY") or os.path.join(fixtures.ROOT, "build", "release", "wpo")
LONGEST_LINE = 110
PAIRS, LABELLED, SAMPLED = "pairs", "labelled", "sampled"

# name: paper, loss_type, learning_rate, beta, global_batch_size, num_train_epochs, further keys.
TABLE = {
    "wpo-mistral-base": ("2406.11827", "sigmoid", 5e-7, 0.01, 128, 1, {"weighting": "sampled", "warmup_ratio": 0.1}),
    "wpo-llama-3-instruct": ("2406.11827", "sigmoid", 1e-6, 0.01, 128, 2, {"weighting": "sampled"}),
    "wpo-gemma-2-it": ("2406.11827", "sigmoid", 1e-6, 0.01, 128, 2, {"weighting": "sampled", "seed": 1}),
    "wpo-ipo": ("2406.11827", "ipo", 5e-7, 0.01, 128, 1, {"weighting": "sampled"}),
    "wpo-simpo": ("2406.11827", "simpo", 3e-7, 2, 128, 1, {"weighting": "sampled", "gamma_beta_ratio": 0.8}),
    "wpo-kto": ("2406.11827", "kto", 5e-7, 0.01, 128, 1, {"weighting": "sampled"}),
    "dpo": ("2305.18290", "sigmoid", 1e-6, 0.1, 64, 1, {"warmup_steps": 150}),
    "zephyr-sft": ("2310.16944", "sft", 2e-5, None, 128, 1, {"lr_scheduler_type": "cosine"}),
    "zephyr-dpo": ("2310.16944", "sigmoid", 5e-7, 0.01, 128, 1, {"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}),
    "simpo-mistral-base": ("2405.14734", "simpo", 3e-7, 2, 128, 1, {"gamma_beta_ratio": 0.8}),
    "simpo-mistral-instruct": ("2405.14734", "simpo", 5e-7, 2.5, 128, 1, {"gamma_beta_ratio": 0.1}),
    "simpo-llama-3-base": ("2405.14734", "simpo", 6e-7, 2, 128, 1, {"gamma_beta_ratio": 0.5}),
    "simpo-llama-3-instruct": ("2405.14734", "simpo", 1e-6, 2.5, 128, 1, {"gamma_beta_ratio": 0.55}),
    "simpo-llama-3-instruct-v0.2": ("2405.14734", "simpo", 1e-6, 10, 128, 1, {"gamma_beta_ratio": 0.3}),
    "simpo-gemma-2-it": ("2405.14734", "simpo", 8e-7, 10, 128, 1, {"gamma_beta_ratio": 0.5}),
    "sppo-mistral": ("2405.00675", "sppo", 5e-7, 0.001, 64, 1, {"score_type": "probability", "warmup_ratio": 0.1}),
    "sppo-llama-3": ("2405.00675", "sppo", 5e-7, 0.001, 64, 1, {"lr_scheduler_type": "linear"}),
    "sppo-gemma-2": ("2405.00675", "sppo", 5e-7, 0.001, 64, 1, {"per_device_train_batch_size": 4}),
    "dice-zephyr": ("2406.09760", "sigmoid", 5e-7, 0.1, 32, None, {"max_steps": 300, "lr_scheduler_type": "constant"}),
    "dice-llama-3-base": ("2406.09760", "sigmoid", 5e-7, 0.1, 32, None, {"max_steps": 300}),
    "sdpo": ("2403.19270", "sigmoid", 5e-7, 0.01, 128, 1, {}),
    "selm-zephyr": ("2405.19332", "sigmoid", 5e-7, 0.01, 256, 1, {"optimism_alpha": 0.001}),
    "selm-llama-3": ("2405.19332", "sigmoid", 5e-7, 0.01, 128, 1, {"optimism_alpha": 0.0001}),
    "selm-phi-3": ("2405.19332", "sigmoid", 5e-7, 0.01, 128, 1, {"optimism_alpha": 0.001}),
    "ilr-dpo": ("2406.11817", "sigmoid", None, None, None, None, {}),
    "rlhf-workflow": ("2405.07863", "sigmoid", 5e-7, 0.1, 128, 2, {"lr_scheduler_type": "cosine"}),
    "dno-prct": ("2404.03715", "sigmoid", 5e-5, 0.1, 64, 1, {"min_margin": 1}),
    "tr-dpo": ("2404.09656", "sigmoid", 1e-6, 0.05, None, 1,
               {"sync_ref_model": "true", "ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}),
    "ipo": ("2310.12036", "ipo", 5e-7, 0.01, 128, 1, {}),
    "slic": ("2305.10425", "hinge", 1e-4, None, 512, None, {}),
    "rso": ("2309.06657", "hinge", None, 0.05, None, None, {}),
    "exo": ("2402.00856", "exo_pair", 1e-6, 0.1, 64, None, {"label_smoothing": 1e-3}),
    "nca": ("2402.05369", "nca_pair", 5e-6, 0.01, 32, None, {}),
    "robust-dpo": ("2403.00409", "robust", 1e-3, 0.1, 16, None, {"label_smoothing": 0.1}),
    "bco-pair": ("2404.04656", "bco_pair", 5e-7, 0.01, 128, None, {}),
    "bco": ("2404.04656", "bco", 5e-7, 0.01, 128, None, {}),
    "kto": ("2402.01306", "kto", 1e-6, 0.1, None, None, {"desirable_weight": 1, "undesirable_weight": 1}),
    "rpo": ("2405.16436", "sigmoid,sft", 5e-7, 0.01, None, 1, {"loss_weights": "1,0.005"}),
    "iterative-rpo": ("2404.19733", "sigmoid,sft", None, None, None, None, {"loss_weights": "1,1"}),
    "aot": ("2406.05882", "aot", None, 0.01, None, None, {}),
    "aot-unpaired": ("2406.05882", "aot_unpaired", None, 0.01, None, None, {}),
    "discopop": ("2406.08414", "discopop", 5e-7, 0.05, 64, None, {"discopop_tau": 0.05}),
    "apo-zero": ("2408.06266", "apo_zero", 2e-7, 0.1, 64, None, {}),
    "apo-down": ("2408.06266", "apo_down", 2e-7, 0.1, 64, None, {}),
    "ld-dpo": ("2409.06411", "sigmoid", None, None, None, None, {"ld_alpha": 0.5}),
    "mpo": ("2411.10442", "sigmoid,bco_pair,sft", 5e-6, None, None, None, {"loss_weights": "0.8,0.2,1"}),
    "f-dpo": ("2309.16240", "sigmoid", None, 0.1, None, None, {"f_divergence_type": "js_divergence"}),
    "odpo": ("2402.10571", "sigmoid", 5e-7, 0.5, 16, 1, {"reward_margin_beta": 1, "warmup_steps": 150}),
    "tulu-3": ("2411.15124", "sigmoid_norm", 5e-7, 5, 128, 1, {"warmup_ratio": 0.1}),
    "orpo": ("2403.07691", "orpo", 5e-6, 0.1, None, 5, {"warmup_steps": 200, "nll_on_prompt": "true"}),
    "cpo": ("2401.08417", "cpo", 1e-4, 0.1, None, 1, {"rpo_alpha": 1, "warmup_ratio": 0.01}),
}
COLUMNS = ("loss_type", "learning_rate", "beta", "global_batch_size", "num_train_epochs")  # None: no source says


def expected(name):
    """The keys that a source states; weighting is none unless the method is WPO."""
    *columns, more = TABLE[name][1:]
    stated = {key: value for key, value in zip(COLUMNS, columns) if value is not None}
    return {"weighting": "none", **stated, **more}


def text_of(name):
    with open(os.path.join(RECIPES, name + ".yaml"), encoding="utf-8") as file:
        return file.read()


def keys_of(text):
    """`key: value` lines; a list as its items with commas between."""
    keys = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, value = line.partition(":")
            value = value.split(" #")[0].strip()
            keys[key] = ",".join(part.strip().strip("\"'") for part in value.strip("[]").split(","))
    return keys


def same(got, wanted):
    """Words as they are, numbers as numbers, lists by their items."""
    parts = zip(str(got).split(","), str(wanted).split(","), strict=True)
    try:
        return all(float(a) == float(b) for a, b in parts)
    except ValueError:
        return str(got) == str(wanted)


def commands(text):
    """The `wpo prepare` lines of a head, each as its words."""
    comments = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
    for line in comments.replace("\\\n", " ").splitlines():
        if line.strip().startswith("wpo prepare "):
            yield shlex.split(line)[2:]


def wpo(*words, cwd=None):
    return subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"})


# -- what the files say ------------------------------------------------------------------------------------------------


def test_table_is_whole(folder):
    names = {name[:-5] for name in os.listdir(RECIPES) if name.endswith(".yaml")}
    assert names == set(TABLE), names ^ set(TABLE)


def test_heads(folder):
    for name, (paper, *_) in TABLE.items():
        text = text_of(name)
        head = text[:re.search(r"^[a-z_]+:", text, re.M).start()]
        assert f"arXiv {paper}" in head.split("\n#\n")[0], f"{name}: its first paragraph names no arXiv {paper}"
        for part in ("# Published", "# Data"):
            assert part in head, f"{name}: no paragraph that begins {part!r}"
        assert all(len(line) <= LONGEST_LINE for line in text.splitlines()), f"{name}: a line is too long"
        assert not any(line.startswith("#") for line in text[len(head):].splitlines()), f"{name}: comments below"


def test_weighting_is_said(folder):
    """Where the default would be WPO's weighting, the file says which one it wants."""
    for name in TABLE:
        keys = keys_of(text_of(name))
        assert keys["loss_type"] != "sigmoid" or "weighting" in keys, f"{name}: weighting is not said"


def test_data(folder):
    """The head's command writes the file that the recipe trains on, for the model that it trains; and the options of
    the command are such as `wpo prepare` has."""
    seen = set()
    for name in TABLE:
        keys, found = keys_of(text_of(name)), list(commands(text_of(name)))
        assert len(found) == 1, f"{name}: {len(found)} commands"
        options = dict(zip(found[0][::2], found[0][1::2]))
        assert options["--out"] == keys["train_file"], name
        assert options["--model"] == keys["model_name_or_path"], name
        assert keys["output_dir"] == f"runs/{name}", name
        form = tuple(sorted(item for item in options.items() if item[0] not in ("--out", "--model", "--data")))
        if form not in seen:
            seen.add(form)
            done = subprocess.run([sys.executable, fixtures.PREPARE, *found[0]], capture_output=True, text=True,
                                  cwd=folder)
            assert done.returncode == 1 and options["--data"] in done.stderr, (name, done.stderr)


def test_list(folder):
    with open(LIST, encoding="utf-8") as file:
        listed = re.findall(r"`([a-z0-9.-]+)\.yaml`", file.read())
    assert set(listed) == set(TABLE), set(listed) ^ set(TABLE)
    rows = [name for name in listed if listed.count(name) > 1]
    assert not rows, f"listed twice: {rows}"


def test_every_loss_is_described(folder):
    """docs/objectives.md has each loss of the program once at a glance, in its order, with whether it takes a reference
    and weights and with its beta, and a heading that the link there leads to."""
    with open(OBJECTIVES, encoding="utf-8") as file:
        text = file.read()
    rows = re.findall(r"^\| \[`([a-z_]+)`\]\(#([a-z_-]+)\) \|[^|]*\|[^|]*\| (yes|no) \| ([0-9.]*) *\| (yes|no)\b", text,
                      re.M)
    headings = {re.sub(r"[`,]", "", line).replace(" ", "-"): line for line in re.findall(r"^### (.*)$", text, re.M)}
    for name, link, *_ in rows:
        assert f"`{name}`" in headings.get(link, ""), f"{name}: there is no heading #{link}"
    _, _, table = wpo("train", "--help-keys").stdout.partition("| loss | groups | reference |")
    known = []
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        name, _, reference, beta, *_, weighting, _, _ = (cell.strip(" `") for cell in line.split("|")[1:-1])
        known.append((name, reference or "no", beta, weighting or "no"))
    assert len(known) > 20, "wpo train --help-keys has no table of losses"
    described = [(name, *columns) for name, _, *columns in rows]
    assert described == known, set(described) ^ set(known)


# -- what the program makes of them ------------------------------------------------------------------------------------


def for_all(check):
    """Four at a time: a run spends most of its time waiting for MPI to start."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(check, TABLE))


def test_only_the_data_is_missing(folder):
    """First without a model, then with what looks like one."""

    def refusal(name):
        done = wpo("train", os.path.join(RECIPES, name + ".yaml"), cwd=folder)
        assert done.returncode == 1, (name, done.stderr)
        return done.stderr

    def check(name):
        assert f"train_file: {keys_of(text_of(name))['train_file']} cannot be read" in refusal(name), refusal(name)

    model = keys_of(text_of("wpo-mistral-base"))["model_name_or_path"]
    assert f"model_name_or_path: {model} is no folder" in refusal("wpo-mistral-base")
    for model in {keys_of(text_of(name))["model_name_or_path"] for name in TABLE}:
        os.makedirs(os.path.join(folder, model))
        fixtures.write_json(os.path.join(folder, model, "config.json"), {})
    for_all(check)
    assert not os.path.exists(os.path.join(folder, "runs")), "a run folder was made for data that is not there"


def make_model(folder):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 8,
              "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 3 + len(LETTERS)}
    blank = os.path.join(folder, "blank")
    fixtures.write_model(blank, letters_tokenizer())
    fixtures.write_json(os.path.join(blank, "config.json"), config)
    done = wpo("init", "--config", blank, "--out", os.path.join(folder, "model"))
    assert done.returncode == 0, done.stderr
    return os.path.join(folder, "model")


def make_data(folder, model):
    """Six rows of each kind. Scores serve as rewards with a margin of 1 and as probabilities."""
    pairs = [{"prompt": letter + "?", "chosen": "abc"[:1 + i % 3], "rejected": "hg", "score_chosen": 1,
              "score_rejected": 0} for i, letter in enumerate("abcdef")]
    rows = {PAIRS: pairs, SAMPLED: [{**row, "sampled": "fe."} for row in pairs],
            LABELLED: [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
                       for i, row in enumerate(pairs)]}
    files = {}
    for kind, lines in rows.items():
        files[kind] = os.path.join(folder, kind + ".h5")
        data = fixtures.write_rows(os.path.join(folder, kind + ".jsonl"), lines)
        code, _, errors = prepare(model, data, files[kind], "--max_length", 64, "--num_proc", 1)
        assert code == 0, errors
    return files


def test_one_step(folder):
    """Each recipe as it is, but for where its files are and how long it trains. The run folder's own run.yaml has
    every key as the program understood it."""
    model = make_model(folder)
    files = make_data(folder, model)

    def check(name):
        keys = keys_of(text_of(name))
        kind = SAMPLED if "optimism_alpha" in keys else LABELLED if keys["loss_type"] in ("kto", "bco") else PAIRS
        out = os.path.join(folder, "runs", name)
        done = wpo("train", os.path.join(RECIPES, name + ".yaml"), "--model_name_or_path", model, "--train_file",
                   files[kind], "--output_dir", out, "--max_steps", 1, "--save_strategy", "no", "--threads", 1,
                   "--device", "cpu")
        assert done.returncode == 0, (name, done.stderr)
        with open(os.path.join(out, "metrics.jsonl")) as file:
            losses = [record["loss"] for record in map(json.loads, file) if "loss" in record]
        assert len(losses) == 1 and math.isfinite(losses[0]) and losses[0] != 0, (name, losses)
        with open(os.path.join(out, "run.yaml")) as file:
            got = {**keys_of(file.read()), **({"max_steps": keys["max_steps"]} if "max_steps" in keys else {})}
        for key, value in expected(name).items():
            assert key in got and same(got[key], value), f"{name}: {key} is {got.get(key)}, its source says {value}"
        beyond = set(keys) - set(got)
        assert not beyond - {"cpo_alpha"}, f"{name}: {beyond} are not in run.yaml"

    for_all(check)


if __name__ == "__main__":
    if not os.path.exists(BINARY):
        print(f"skipped: there is no program at {BINARY}")
        sys.exit(77)
    fixtures.run_tests(globals())
