"""Makes the golden files of this folder with TRL itself: its trainers' own losses, metrics and gradients.

    python3 -m venv current && current/bin/pip install trl==1.16.0 transformers==5.23.0 torch==2.15.0
    python3 -m venv older && older/bin/pip install trl==0.24.0 transformers==4.57.1 torch==2.15.0
    WPO_TEST_DATA=... current/bin/python make.py && WPO_TEST_DATA=... older/bin/python make.py

The first writes inputs.json and cases-trl-1.16.json; the second writes cases-trl-0.24.json: what the newer one no
longer has. Every case is one batch of all rows, in float32 on the CPU with one thread. TRL tokenises for itself: its
rows are texts of words t0 t1 t2 ..., and a tokenizer gives each word its number.

Nothing of the real rows is written but their row numbers and a checksum of their token ids."""

import json
import logging
import math
import os
import shutil
import sys
import tempfile
import textwrap
import warnings

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1", TRL_EXPERIMENTAL_SILENCE="1",
                  CUDA_VISIBLE_DEVICES="", HF_DATASETS_CACHE=tempfile.mkdtemp())
warnings.simplefilter("ignore")
import datasets  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402

import cases  # noqa: E402
import world as inputs_of  # noqa: E402
from world import HERE, inputs, oracle  # noqa: E402

DATA = os.environ.get("WPO_TEST_DATA", "")
CURRENT = trl.__version__.startswith("1.16.")
SLICE = 5

WORLDS = {
    "tiny": {"config": "llama", "reference_seed": 11, "policy_seed": 12, "policy_distance": 0.5, "pairs_seed": 13,
             "unpaired": [[0, 0], [1, 1], [2, 1], [3, 0], [4, 0], [5, 1], [6, 0]]},
    "stories": {"checkpoint": "stories260K", "policy_seed": 22, "policy_distance": 0.03,
                "rows": {"file": "alpaca_pairs/train.jsonl", "numbers": [62, 3, 75, 72, 88]},
                "unpaired": [[0, 0], [0, 1], [1, 1], [2, 0], [3, 1], [3, 0], [4, 0]]},
}


# -- inputs -----------------------------------------------------------------------------------------------------------


def random_pairs(vocabulary, seed):
    """Seven pairs of odd lengths; token 0 does not occur, as TRL 0.24 does not count it in its likelihood term."""
    random = np.random.default_rng(seed)
    lengths = [(1, 1, 2), (3, 5, 5), (13, 11, 2), (2, 1, 9), (7, 4, 7), (5, 9, 3), (9, 3, 6)]
    return [[[1] + random.integers(3, vocabulary, prompt - 1).tolist(),
             [random.integers(3, vocabulary, count - 1).tolist() + [2] for count in counts]]
            for prompt, *counts in lengths]


def real_pairs(checkpoint, file, numbers):
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(DATA, checkpoint))
    with open(os.path.join(DATA, file), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]

    def ids(messages, **options):
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    pairs = []
    for row in (rows[number] for number in numbers):
        prompt = ids(row["prompt"], add_generation_prompt=True)
        both = [ids(row["prompt"] + row[side]) for side in ("chosen", "rejected")]
        assert all(whole[:len(prompt)] == prompt for whole in both)
        pairs.append([prompt, [whole[len(prompt):] for whole in both]])
    return pairs


class World:
    """Models as folders that Transformers reads, and rows as texts."""

    def __init__(self, name, folder):
        self.name, self.description = name, dict(WORLDS[name])
        self.policy, self.reference = inputs_of.models(self.description, DATA)
        if "rows" in self.description:
            self.pairs = real_pairs(self.description["checkpoint"], **self.description["rows"])
            self.description["rows_sha256"] = inputs_of.tokens_checksum(self.pairs)
        else:
            self.pairs = random_pairs(self.policy.vocabulary, self.description.pop("pairs_seed"))
            self.description["pairs"] = self.pairs
        self.description.update(policy_sha256=inputs_of.checksum(self.policy),
                                reference_sha256=inputs_of.checksum(self.reference), names=self.policy.names(),
                                slices=self.slices())
        self.folders = []
        for which, model in (("policy", self.policy), ("reference", self.reference)):
            self.folders.append(os.path.join(folder, name, which))
            oracle.write_model(model, self.folders[-1])
        self.tokenizer = word_tokenizer(self.policy.vocabulary)

    def slices(self):
        """Where the stored values of the gradient are: the embedding's row of the token that every prompt begins with,
        and the first values of others."""
        return [["model.embed_tokens.weight", self.policy.width], ["model.layers.0.self_attn.k_proj.weight", 0],
                ["model.layers.1.mlp.down_proj.weight", 7], ["model.norm.weight", 0]]

    def load(self, swapped):
        order = reversed(self.folders) if swapped else self.folders
        return [transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                                  attn_implementation="eager") for folder in order]

    def rows(self, kind):
        """Texts. The blank between prompt and completion belongs to the completion."""
        if kind == "unpaired":
            groups, labels = inputs_of.unpaired(self.description, self.pairs)
            return [{"prompt": words(prompt), "completion": " " + words(completions[0]), "label": bool(label)}
                    for (prompt, completions), label in zip(groups, labels)]
        return [{"prompt": words(prompt), "chosen": " " + words(chosen), "rejected": " " + words(rejected)}
                for prompt, (chosen, rejected) in self.pairs]


def words(tokens):
    return " ".join(f"t{token}" for token in tokens)


def word_tokenizer(vocabulary):
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="t1", eos_token="t2", pad_token="t0",
                                                split_special_tokens=True)


# -- trainers ---------------------------------------------------------------------------------------------------------


def trainer_class(name):
    if name in ("CPO", "ORPO") and CURRENT:
        from trl.experimental import cpo, orpo
        module = {"CPO": cpo, "ORPO": orpo}[name]
    else:
        module = trl
    return getattr(module, f"{name}Trainer"), getattr(module, f"{name}Config")


def make_trainer(case, world, folder):
    Trainer, Config = trainer_class(case["trainer"])
    policy, reference = world.load(case.get("swapped", False))
    rows = world.rows(case["data"])
    options = dict(case["options"])
    if case["trainer"] in ("KTO", "BCO"):
        options["per_device_train_batch_size"] = len(rows)  # the rotation is over a batch
    if case["trainer"] == "DPO" and not CURRENT:
        Trainer = with_token_ids(Trainer)
    arguments = Config(output_dir=os.path.join(folder, "out"), bf16=False, use_cpu=True, gradient_checkpointing=False,
                       report_to="none", disable_tqdm=True, **{"max_length": 512, **options})
    models = {"model": policy} if case["trainer"] in ("CPO", "ORPO") else {"model": policy, "ref_model": reference}
    return Trainer(**models, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
                   processing_class=world.tokenizer)


def with_token_ids(Trainer):
    """TRL 0.24 puts an end of sequence behind every completion, also where there is one already."""

    class WithTokenIds(Trainer):
        def _prepare_dataset(self, dataset, tokenizer, *rest):
            return datasets.Dataset.from_list([
                {f"{side}_input_ids": tokenizer(row[side], add_special_tokens=False)["input_ids"]
                 for side in ("prompt", "chosen", "rejected")} for row in dataset])

    return WithTokenIds


def record_pairs(trainer, into):
    """Keeps what the trainer's own function says of each pair, where it has one."""
    for name in ("cpo_loss", "odds_ratio_loss", "bco_loss", "dpo_loss"):
        if hasattr(trainer, name):
            function = getattr(trainer, name)

            def recorded(*arguments, function=function, sign=-1 if name == "odds_ratio_loss" else 1, **options):
                result = function(*arguments, **options)
                into.append((sign * result[0]).detach().tolist())
                return result

            setattr(trainer, name, recorded)


def metrics_of(trainer):
    """What the trainer would log of this batch. Left out: logits of the trainers that average them over prompts and
    padding too, and counts of tokens seen."""
    if hasattr(trainer, "_stored_metrics"):
        values = {name: items[-1] for name, items in trainer._stored_metrics["train"].items()}
    else:
        values = {name: items[-1] for name, items in trainer._metrics["train"].items()}
    for name in [name for name in values if name.endswith("_sum")]:  # BCO: sums and counts
        whole = name[:-len("_sum")]
        values[whole] = values.pop(name) / values["count/" + whole.split("/")[1].split("_")[0]]
    partial = trainer.__class__.__name__ in ("CPOTrainer", "ORPOTrainer", "BCOTrainer")
    return {name: float(value) for name, value in sorted(values.items())
            if not name.startswith("count/") and name != "num_tokens" and not (partial and name.startswith("logits/"))}


def run(case, world, folder):
    trainer = make_trainer(case, world, folder)
    items = list(trainer.train_dataset)
    check_tokens(case, world, trainer.data_collator(items))
    trainer.model.train()  # no model here has dropout
    pairs = []
    record_pairs(trainer, pairs)
    loss, patched = loss_with_gradients(trainer, items)
    metrics = metrics_of(trainer)
    gradients = {name: parameter.grad.double().numpy().ravel()
                 for name, parameter in trainer.model.named_parameters()}
    per_pair = pairs[0] if len(pairs) == 1 else None
    if case["trainer"] == "BCO":  # the desirable ones come first; here they stand in the order of the rows
        order = sorted(range(len(items)), key=lambda index: not items[index]["label"])
        per_pair = [loss for _, loss in sorted(zip(order, per_pair))]
    if case["trainer"] == "DPO" and CURRENT and not set(case["losses"]) & {"sft", "aot", "aot_unpaired"}:
        with torch.no_grad():
            per_pair = [trainer.compute_loss(trainer.model, trainer.data_collator([item])).item() for item in items]
    norms = [math.sqrt(float(gradients[name] @ gradients[name])) for name in world.description["names"]]
    result = {"loss": loss.item(), "per_pair": per_pair, "metrics": metrics,
              "grad_norm": math.sqrt(sum(norm * norm for norm in norms)), "norms": norms,
              "slices": [gradients[name][start:start + SLICE].tolist() for name, start in world.description["slices"]]}
    kept = {name: case[name] for name in ("name", "world", "trainer", "data", "keys")}
    marks = {name: True for name, holds in (("swapped", case.get("swapped")), ("out_of_place", patched)) if holds}
    marks.update({"max_length": case["options"]["max_length"]} if "max_length" in case["options"] else {})
    return {**kept, **marks, **rounded(result)}


class OutOfPlace(torch.overrides.TorchFunctionMode):
    """a *= b becomes a = a * b for vectors with an entry per pair."""

    def __init__(self, pairs):
        super().__init__()
        self.shape = (pairs,)

    def __torch_function__(self, function, types, arguments=(), options=None):
        if getattr(function, "__name__", "") == "mul_" and all(one.shape == self.shape for one in arguments):
            function = torch.mul
        return function(*arguments, **(options or {}))


def loss_with_gradients(trainer, items):
    """TRL 1.16 multiplies the weights into the losses in place, and PyTorch refuses the gradient of those whose last
    operation keeps its result (README.md). For these, and only these, the product is taken out of place."""
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(items))
    trainer.model.zero_grad()
    try:
        loss.backward()
        return loss, False
    except RuntimeError as error:
        assert "inplace" in str(error), error
    trainer.model.zero_grad()
    with OutOfPlace(len(items)):
        again = trainer.compute_loss(trainer.model, trainer.data_collator(items))
    again.backward()
    assert again.item() == loss.item(), (again.item(), loss.item())
    return again, True


def check_tokens(case, world, batch):
    """TRL's batch has the token ids that the program will be given."""
    if case["data"] == "unpaired":
        groups, _ = inputs_of.unpaired(world.description, world.pairs)
        ids, mask = (("input_ids", "attention_mask") if "input_ids" in batch else
                     ("completion_input_ids", "completion_attention_mask"))
        expected = [prompt + completions[0] for prompt, completions in groups]
    elif "input_ids" in batch:
        ids, mask = "input_ids", "attention_mask"
        expected = [prompt + completions[side] for side in (0, 1) for prompt, completions in world.pairs]
    else:
        ids, mask = "chosen_input_ids", "chosen_attention_mask"
        inside = case["trainer"] != "DPO"  # of CPO and ORPO the prompt is part of it
        expected = [(prompt if inside else []) + completions[0] for prompt, completions in world.pairs]
    got = [row[kept.bool()].tolist() for row, kept in zip(batch[ids], batch[mask])]
    assert got == expected, (case["name"], got, expected)


# -- files ------------------------------------------------------------------------------------------------------------


def rounded(value):
    """Nine significant digits, which is every float32."""
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def write_json(name, value, parts):
    """parts: the names of the entries that are written item by item, each wrapped; no string holds a blank."""
    lines = []
    for key, item in value.items():
        if key not in parts:
            lines.append(f"{json.dumps(key)}: {wrapped(item)}")
        elif isinstance(item, dict):
            inner = ",\n".join(f"{json.dumps(one)}: {wrapped(item[one])}" for one in item)
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: [\n" + ",\n".join(map(wrapped, item)) + "\n]")
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        file.write("{" + ",\n".join(lines) + "}\n")


def wrapped(value):
    return textwrap.fill(json.dumps(value), 108, break_long_words=False, break_on_hyphens=False)


def completion_logps(world):
    """[policy, reference] of the pairs' completions, nats: TRL's own sums are these, so they tell whether the
    weights were made again right."""
    result = []
    for model in world.load(False):
        rows = []
        for prompt, completions in world.pairs:
            rows.append([])
            for completion in completions:
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1].double()
                logps = torch.log_softmax(logits, 1).gather(1, torch.tensor(completion)[:, None])
                rows[-1].append(logps.sum().item())
        result.append(rows)
    return rounded(result)


def main():
    assert CURRENT or trl.__version__.startswith("0.24."), trl.__version__
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    datasets.disable_caching()
    datasets.disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp()
    worlds = {name: World(name, folder) for name in WORLDS}
    if CURRENT:
        for one in worlds.values():
            one.description["logps"] = completion_logps(one)
        write_json("inputs.json", {"slice": SLICE, "worlds": {name: w.description for name, w in worlds.items()}},
                   ("worlds",))
    results = []
    for case in cases.current() if CURRENT else cases.older():
        results.append(run(case, worlds[case["world"]], folder))
        print(case["name"], results[-1]["loss"], flush=True)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    write_json(f"cases-trl-{'.'.join(trl.__version__.split('.')[:2])}.json", {"versions": versions, "cases": results},
               ("cases",))
    shutil.rmtree(folder)
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


main()
