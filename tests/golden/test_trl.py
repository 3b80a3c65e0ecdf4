"""TRL itself as the oracle: its DPOTrainer with use_weighting=True, on the same weights and the same pairs.

A. benchmarks/peer_step.py, the step we are compared with, has TRL's loss, log-probabilities and gradients.
B. `wpo prepare` makes TRL's token ids of real pairs, and `wpo eval` its log-probabilities, rewards, weights and loss.

Skipped where torch, Transformers and TRL are absent. WPO_PEER_PYTHON may name an interpreter that has them.

Both sides compute in float32, and order their sums differently. With u = 2^-24, a logit |z| < 20 that went through
L = 5 layers of width C <= 64 is off by about sqrt(L C) u |z| < 2.2e-5, and so are log p and log sum_v p_v^2; each side
of the comparison has its own error. Hence, per token, TOKEN = 5e-5 nats, and

  a completion's log-probability   n TOKEN
  log w(x,y)                       3 TOKEN (log p once, the log of the sum of squares counts double)
  a reward                         beta n TOKEN, and as much again for the reference
  a pair's loss                    relative 6 TOKEN from the weight, absolute weight * beta * 4 n TOKEN from the margin
"""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import types
import warnings

from harness import BINARY, DATA, check, find_packages, finish, run

TOKEN = 5e-5
BETA = 0.1
ROWS = 7
TEXTS, CUT = 61, 130  # rows of plain text, and a max_length that some of them exceed

SOURCE = os.environ.get("WPO_SOURCE", os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))


def near(got, expected, tolerance, what):
    check(abs(got - expected) <= tolerance, f"{what}: {got!r}, not {expected!r}, off by more than {tolerance:.3g}")


# -- TRL -------------------------------------------------------------------------------------------------------------


def read_model(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    model.eval()
    return model


def dpo_trainer(folder, policy, reference, rows, tokenizer, prepared=False, max_length=512):
    """TRL's trainer with the two models. prepared: the rows are token ids already."""

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *rest):
            return dataset if prepared else super()._prepare_dataset(dataset, *rest)

    arguments = trl.DPOConfig(output_dir=os.path.join(folder, "trl"), use_weighting=True, beta=BETA, bf16=False,
                              use_cpu=True, gradient_checkpointing=False, max_length=max_length, report_to="none",
                              disable_tqdm=True)
    return Trainer(model=policy, ref_model=reference, args=arguments, train_dataset=datasets.Dataset.from_list(rows),
                   processing_class=tokenizer)


class Expected:
    """What TRL says of all rows of a trainer, as one batch."""

    def __init__(self, trainer, gradients=False):
        self.rows = list(trainer.train_dataset)
        batch = trainer.data_collator(self.rows)
        trainer._metrics["eval"].clear()
        trainer.model.eval()
        with torch.enable_grad() if gradients else torch.no_grad():
            loss = trainer.compute_loss(trainer.model, dict(batch))
        self.loss = loss.item()
        self.gradients = {}
        if gradients:
            loss.backward()
            self.gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
            trainer.model.zero_grad()
        self.metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
        self.logps, self.log_weights = self.sides(trainer.model, batch)
        self.reference, _ = self.sides(trainer.ref_model, batch)

    def sides(self, model, batch):
        """Per completion, chosen rows first, from the per-token outputs of TRL's head: sums of log p, and log w."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        with torch.no_grad():
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels,
                            fused_lm_head=True)
        logps = outputs.log_probs.double().sum(1)
        if outputs.log_sum_sq_probs is None:
            return logps.tolist(), None
        count = batch["completion_mask"][:, 1:].sum(1)
        return logps.tolist(), ((logps - outputs.log_sum_sq_probs.double().sum(1)) / count).tolist()

    def lengths(self, side):
        return [len(row[f"{side}_ids"]) for row in self.rows]

    def weights(self):
        half = len(self.rows)
        return [math.exp(self.log_weights[i] + self.log_weights[half + i]) for i in range(half)]

    def loss_tolerance(self):
        """Of the mean over pairs: for each, the two terms of the note above."""
        total = 0
        for i, weight in enumerate(self.weights()):
            half = len(self.rows)
            margin = BETA * ((self.logps[i] - self.reference[i]) - (self.logps[half + i] - self.reference[half + i]))
            longest = max(self.lengths("chosen")[i], self.lengths("rejected")[i])
            total += weight * (6 * TOKEN * math.log1p(math.exp(-margin)) + BETA * 4 * longest * TOKEN)
        return total / len(self.rows)


# -- A. the step we are compared with ----------------------------------------------------------------------------------


def write_random_model(folder, seed):
    """A Llama of odd shape; matrices wide enough that its distributions are far from uniform."""
    config = transformers.LlamaConfig(vocab_size=67, hidden_size=24, intermediate_size=37, num_hidden_layers=3,
                                      num_attention_heads=6, num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-5,
                                      initializer_range=0.25, tie_word_embeddings=False, max_position_embeddings=64)
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def padding_tokenizer():
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def peer_options(**changes):
    values = {"head": "full", "attention": "sdpa", "plain": False, "beta": BETA, "clamp": False, "reference": None}
    return types.SimpleNamespace(**{**values, **changes})


def check_peer(folder):
    model, other, groups = (os.path.join(folder, name) for name in ("model", "other", "pairs.h5"))
    write_random_model(model, 1)
    write_random_model(other, 2)
    command = [sys.executable, os.path.join(SOURCE, "benchmarks", "make_pairs.py"), "--vocabulary", "67",
               "--pairs", "5", "--prompt", "1:13", "--chosen", "1:11", "--rejected", "2:17", "--seed", "3",
               "--out", groups]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    pairs = peer.read_pairs(groups)
    check(len({len(p) + len(c) for p, c, _ in pairs}) > 1, "the lengths of the pairs do not differ")
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in pairs]
    trainer = dpo_trainer(folder, read_model(model), read_model(other), rows, padding_tokenizer(), prepared=True)
    expected = Expected(trainer, gradients=True)
    near(expected.metrics["logps/chosen"], sum(expected.logps[:5]) / 5, 1e-3, "the test's own reading of TRL's outputs")

    for changes in ({}, {"head": "completion"}, {"plain": True}, {"plain": True, "attention": "eager"},
                    {"head": "trl"}):
        check_peer_variant(expected, model, other, pairs, changes)
    # The comparison has teeth: another beta is another loss, by more than the tolerance.
    different = peer_loss(model, other, pairs, peer_options(beta=2 * BETA))[0].item()
    check(abs(different - expected.loss) > expected.loss_tolerance(), "beta makes no difference to the loss")


def peer_loss(model, other, pairs, options):
    loaded = peer.load_model(model, options)
    options.reference = other
    reference = peer.load_reference(loaded, pairs, options)
    loss_of = peer.TrlLoss(loaded, options) if options.head == "trl" else peer.OwnLoss(loaded, options)
    loss, details = loss_of(pairs, reference.reshape(-1))
    return loss, details, reference, loaded


def check_peer_variant(expected, model, other, pairs, changes):
    what = f"peer step {changes or 'as it stands'}"
    loss, details, reference, loaded = peer_loss(model, other, pairs, peer_options(**changes))
    near(loss.item(), expected.loss, expected.loss_tolerance(), f"{what}: loss")
    lengths = expected.lengths("chosen") + expected.lengths("rejected")
    for i, count in enumerate(lengths):
        near(reference.reshape(-1)[i].item(), expected.reference[i], count * TOKEN, f"{what}: reference {i}")
    if details:
        for i, count in enumerate(lengths):
            near(details["logps"][i], expected.logps[i], count * TOKEN, f"{what}: log-probability {i}")
        for i, weight in enumerate(expected.weights()):
            near(details["weights"][i], weight, 6 * TOKEN * weight, f"{what}: weight {i}")
    loss.backward()
    # A gradient is off by the relative error of its coefficient, weight and margin, and by that of the reverse pass.
    tolerance = 6 * TOKEN + BETA * 4 * max(lengths) * TOKEN + 1e-5
    for name, parameter in loaded.named_parameters():
        name = name.removeprefix("inner.")
        name = {key.replace(".", "_"): key for key in expected.gradients}.get(name, name)
        error = (parameter.grad - expected.gradients[name]).norm() / expected.gradients[name].norm()
        check(error <= tolerance, f"{what}: gradient of {name} is off by {error:.3g}, more than {tolerance:.3g}")


# -- B. the program --------------------------------------------------------------------------------------------------


def write_rows(path):
    """The shortest of the first hundred real pairs: they fit the model's 512 positions."""
    with open(os.path.join(DATA, "alpaca_pairs", "train.jsonl")) as file:
        lines = sorted(file.readlines()[:100], key=len)[:ROWS]
    with open(path, "w") as file:
        file.writelines(lines)
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in map(json.loads, lines)]


def write_moved(source, folder):
    """The model with every tensor moved by 2 % of its root mean square: a policy that is not its reference."""
    shutil.copytree(source, folder)
    os.chmod(folder, 0o755)
    path = os.path.join(folder, "model.safetensors")
    tensors = safetensors.torch.load_file(path)
    generator = torch.Generator().manual_seed(5)
    for value in tensors.values():
        value += 0.02 * value.pow(2).mean().sqrt() * torch.randn(value.shape, generator=generator)
    os.remove(path)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def check_program(folder):
    policy, rows_path, groups, records_path = (
        os.path.join(folder, name) for name in ("policy", "rows.jsonl", "groups.h5", "completions.jsonl"))
    reference = os.path.join(DATA, "stories260K")
    write_moved(reference, policy)
    rows = write_rows(rows_path)
    run(BINARY, "prepare", "--model", policy, "--data", rows_path, "--out", groups, "--max_length", 512)
    output = run("mpirun", "-q", "-n", 1, BINARY, "eval", "--model", policy, "--data", groups, "--reference", reference,
                 "--json", "--per-completion", records_path, "--weight_clamp", "false", "--beta", BETA)
    tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
    trainer = dpo_trainer(folder, read_model(policy), read_model(reference), rows, tokenizer)
    expected = Expected(trainer)
    check_tokens(peer.read_pairs(groups), expected.rows)
    with open(records_path) as file:
        check_records([json.loads(line) for line in file], expected)
    check_metrics(json.loads(output), expected)


def check_tokens(pairs, rows):
    check(len(pairs) == len(rows) == ROWS, f"{len(pairs)} pairs prepared, TRL has {len(rows)}, of {ROWS} rows")
    for i, (pair, row) in enumerate(zip(pairs, rows)):
        for got, side in zip(pair, ("prompt", "chosen", "rejected")):
            check(got == row[f"{side}_ids"], f"row {i}: the token ids of its {side} are not TRL's")


def check_cut_tokens(folder):
    """Plain text, and rows too long for max_length: TRL drops a pair whose prompt fills it, and cuts completions."""
    model, rows_path, groups = (os.path.join(folder, name) for name in ("policy", "text.jsonl", "text.h5"))
    with open(os.path.join(DATA, "llmbar.jsonl")) as file:
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in map(json.loads, file)][:TEXTS]
    with open(rows_path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    run(BINARY, "prepare", "--model", model, "--data", rows_path, "--out", groups, "--max_length", CUT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    trainer = dpo_trainer(folder, read_model(model), read_model(model), rows, tokenizer, max_length=CUT)
    expected = list(trainer.train_dataset)
    pairs = peer.read_pairs(groups)
    lengths = [len(row["prompt_ids"]) + len(row[side]) for row in expected for side in ("chosen_ids", "rejected_ids")]
    check(len(expected) < TEXTS and max(lengths) > CUT > min(lengths), "the rows do not try every case")
    check(len(pairs) == len(expected), f"{len(pairs)} pairs prepared of {TEXTS} texts, TRL keeps {len(expected)}")
    for i, (pair, row) in enumerate(zip(pairs, expected)):
        batch = trainer.data_collator([row])
        for side in range(2):
            kept = batch["attention_mask"][side].bool()
            ids, scored = batch["input_ids"][side][kept], batch["completion_mask"][side][kept].bool()
            check(pair[0] == ids[~scored].tolist() and pair[1 + side] == ids[scored].tolist(),
                  f"text {i} completion {side}: the token ids are not TRL's")


def check_records(records, expected):
    """One record per completion, in the order of the groups file: chosen, rejected, chosen, ..."""
    lengths = [expected.lengths("chosen"), expected.lengths("rejected")]
    check(len(records) == 2 * len(expected.rows), f"{len(records)} records of completions")
    for index, record in enumerate(records):
        group, side = divmod(index, 2)
        row = side * len(expected.rows) + group
        count, what = lengths[side][group], f"completion {index}"
        check(record["tokens"] == count, f"{what}: {record['tokens']} tokens, not {count}")
        near(record["logp"], expected.logps[row], count * TOKEN, f"{what}: log-probability")
        near(record["reference"], expected.reference[row], count * TOKEN, f"{what}: reference")
        near(math.log(record["weights"]["sampled"]), expected.log_weights[row], 3 * TOKEN, f"{what}: log weight")


def check_metrics(metrics, expected):
    longest = max(expected.lengths("chosen") + expected.lengths("rejected"))
    tolerances = {"rewards/chosen": 2 * BETA * longest * TOKEN, "rewards/rejected": 2 * BETA * longest * TOKEN,
                  "rewards/margins": 4 * BETA * longest * TOKEN, "rewards/accuracies": 1e-12,
                  "logps/chosen": longest * TOKEN, "logps/rejected": longest * TOKEN,
                  # an entropy is a mean over p of values of size |z|: no larger an error than a logit's own
                  "entropy": 2 * TOKEN, "logits/chosen": TOKEN, "logits/rejected": TOKEN, "mean_token_accuracy": 1e-6}
    required = {name for name in tolerances if name.startswith(("rewards/", "logps/"))}
    for name, tolerance in tolerances.items():
        check(name in metrics or name not in required, f"eval says nothing of {name}")
        if name in metrics:
            # TRL averages in float32: 1e-6 of a value
            near(metrics[name], expected.metrics[name], tolerance + 1e-6 * abs(expected.metrics[name]), name)
    near(metrics["loss"], expected.loss, expected.loss_tolerance(), "loss")
    weights = expected.weights()
    near(metrics["weights/mean"], sum(weights) / len(weights), 6 * TOKEN * max(weights), "weights/mean")
    check(expected.loss_tolerance() < 0.02 * expected.loss, "the loss has drowned in its own tolerance")


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_peer(folder)
        missing = "WPO_BINARY" if not os.path.exists(BINARY) else "WPO_TEST_DATA" if not os.path.isdir(DATA) else None
        if not missing:
            check_program(folder)
            check_cut_tokens(folder)
    print(f"TRL {trl.__version__}: the peer step" + ("" if missing else f", and the program on {ROWS} real pairs"))
    finish(missing and f"the program was not compared with TRL: {missing} is not set, or names nothing that exists")


find_packages("torch", "transformers", "trl", "h5py", "safetensors")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
warnings.simplefilter("ignore", FutureWarning)  # of TRL about Transformers
import datasets  # noqa: E402
import safetensors.torch  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402

sys.path.insert(0, os.path.join(SOURCE, "benchmarks"))
import peer_step as peer  # noqa: E402

datasets.disable_caching()
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()
logging.getLogger("trl").setLevel(logging.ERROR)
torch.set_num_threads(1)  # the models are small
main()
