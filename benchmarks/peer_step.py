#!/usr/bin/env python3
"""The training step of a PyTorch trainer, for comparison: WPO over DPO's sigmoid loss, the way TRL lays it out.

    peer_step.py --model DIR --data groups.h5 --pairs 1 --steps 10 --warmup 2 --threads 2 --json

It reads the model folder and the groups file that `wpo` reads, so weights, pairs and loss are the same. A step takes
the next --pairs pairs in file order, builds the padded batch [all chosen; all rejected] of prompt + completion, runs
the model in float32, takes log-probabilities and log sum_v p_v^2 from the logits, and does autograd, gradient clipping
and AdamW. Log-probabilities of the reference are computed before the first step and cached, as `wpo` does.

Three heads: `full` makes the logits of every position (TRL before its fused head); `completion` makes only the rows
that predict a completion token, which is faster than TRL on a CPU; `trl` calls the loss of the installed TRL's own
DPOTrainer. None does the logging that TRL does besides, except `trl`, which cannot leave it out. Choices that a user
may differ in are set for speed: no gradient checkpointing, fused AdamW and scaled_dot_product_attention where torch
has them. The model is Transformers' where that is installed, else the plain Llama of peer_model.py.
"""

import argparse
import json
import math
import os
import resource
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
try:
    import h5py
    import numpy
    import torch
    import torch.nn.functional as F

    from peer_model import HubModel, load_model
except ImportError as error:
    print(f"skipped: the Python package {error.name} is not installed", file=sys.stderr)
    sys.exit(77)

IGNORED = -100


# -- data ------------------------------------------------------------------------------------------------------------

def read_pairs(path):
    """[(prompt, chosen, rejected)], lists of token ids, in file order."""
    with h5py.File(path, "r") as file:
        prompt, prompt_offset = file["prompt/tokens"][:], file["prompt/offset"][:]
        completion, completion_offset = file["completion/tokens"][:], file["completion/offset"][:]
        first = file["group/first"][:]
    pairs = []
    for group in range(len(first) - 1):
        if first[group + 1] - first[group] != 2:
            sys.exit(f"{path}: group {group} has {first[group + 1] - first[group]} completions; this step needs pairs")
        sides = [completion[completion_offset[s]:completion_offset[s + 1]].tolist()
                 for s in (first[group], first[group] + 1)]
        pairs.append((prompt[prompt_offset[group]:prompt_offset[group + 1]].tolist(), *sides))
    return pairs


def collate(pairs):
    """The padded batch, chosen rows first. labels hold IGNORED on the prompt and on padding."""
    rows = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    length = max(len(p) + len(c) for p, c in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for i, (prompt, completion) in enumerate(rows):
        n = len(prompt) + len(completion)
        ids[i, :n] = torch.tensor(prompt + completion)
        mask[i, :n] = 1
        labels[i, len(prompt):n] = ids[i, len(prompt):n]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# -- loss ------------------------------------------------------------------------------------------------------------

def completion_sums(model, batch, head):
    """Per row of the batch: sum_t log p(y_t), with gradient; mean_t (log p(y_t) - log sum_v p_v^2), without."""
    hidden, labels = model.hidden(batch)[:, :-1], batch["labels"][:, 1:]
    mask = labels != IGNORED
    if head == "completion":
        hidden, targets = hidden[mask], labels[mask]
    else:
        targets = labels.clamp(min=0)
    logp = torch.log_softmax(F.linear(hidden, model.head_weight()), dim=-1)
    target_logp = logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():  # every log p is <= 0 and the largest is >= -log V, so no maximum need be subtracted
        aligned = target_logp - (2 * logp).exp_().sum(-1).log()
    if head == "completion":
        target_logp = torch.zeros(mask.shape).masked_scatter(mask, target_logp)
        aligned = torch.zeros(mask.shape).masked_scatter(mask, aligned)
    return (target_logp * mask).sum(1), (aligned * mask).sum(1) / mask.sum(1)


def pair_loss(model, batch, reference, options):
    """The mean weighted loss of the batch, and what is worth printing."""
    logp, log_weight = completion_sums(model, batch, options.head)
    chosen, rejected = logp.chunk(2)
    reference_chosen, reference_rejected = reference.chunk(2)
    weight = log_weight.view(2, -1).sum(0).exp()
    if options.clamp:
        weight = weight.clamp(max=1)
    margin = options.beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    loss = (-F.logsigmoid(margin) * weight).mean()
    return loss, {"weights": weight.tolist(), "logps": logp.detach().tolist()}


class OwnLoss:
    def __init__(self, model, options):
        self.model, self.options = model, options

    def __call__(self, pairs, reference):
        return pair_loss(self.model, collate(pairs), reference, self.options)


class TrlLoss:
    """The installed TRL's own loss, over the same pairs: its trainer, its collator, its fused head."""

    def __init__(self, model, options):
        import tempfile

        import datasets
        import tokenizers
        import transformers
        import trl

        if options.clamp:
            sys.exit("peer_step.py: TRL does not clamp weights; leave --clamp out with --head trl")
        if not isinstance(model, HubModel):
            sys.exit("peer_step.py: --head trl needs a Transformers model; leave --plain out")
        self.folder = tempfile.TemporaryDirectory()
        datasets.disable_caching()
        vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>",
                                                         eos_token="<pad>")

        class Tokenised(trl.DPOTrainer):
            def _prepare_dataset(self, dataset, *_):
                return dataset  # token ids already, from the groups file

        arguments = trl.DPOConfig(output_dir=self.folder.name, use_weighting=True, beta=options.beta, bf16=False,
                                  use_cpu=True, gradient_checkpointing=False, max_length=None, report_to="none",
                                  precompute_ref_log_probs=True, disable_tqdm=True)
        # The trainer wants a data set: one row that no step uses. The steps bring their pairs themselves.
        rows = datasets.Dataset.from_list([{"prompt_ids": [0], "chosen_ids": [0], "rejected_ids": [0]}])
        self.trainer = Tokenised(model=model.inner, args=arguments, train_dataset=rows, processing_class=tokenizer)

    def __call__(self, pairs, reference):
        half = len(pairs)
        examples = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r, "ref_chosen_logps": reference[i].item(),
                     "ref_rejected_logps": reference[half + i].item()} for i, (p, c, r) in enumerate(pairs)]
        return self.trainer.compute_loss(self.trainer.model, self.trainer.data_collator(examples)), {}


# -- measuring -------------------------------------------------------------------------------------------------------

def spread(values):
    low, middle, high = numpy.percentile(values, (20, 50, 80)) if values else (math.nan,) * 3
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def sgemm_rate(rows, columns, depth):
    """GFLOP/s of torch's own product at a shape of this model, best of five."""
    a, b = torch.randn(rows, depth), torch.randn(columns, depth)
    best = math.inf
    for _ in range(6):
        start = time.perf_counter()
        F.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * columns * depth / best


def peak_bytes():
    """The most memory the process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step_flops(folder, pairs, head):
    """Multiplications and additions of the products of one pair, padded, forward and backward, on average. Attention
    makes its scores again in backward: two products forward, five backward, over what the causal mask leaves."""
    with open(os.path.join(folder, "config.json")) as file:
        c = json.load(file)
    width, hidden, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    size = c.get("head_dim") or width // heads
    keys = c.get("num_key_value_heads", heads)
    layer = 2 * width * heads * size + 2 * width * keys * size + 3 * width * hidden
    total = 0
    for prompt, chosen, rejected in pairs:
        length = len(prompt) + max(len(chosen), len(rejected))
        rows = len(chosen) + len(rejected) if head == "completion" else 2 * (length - 1)
        products = 3 if head != "trl" else 4  # TRL's fused head makes the logits again in backward
        total += 3 * 2 * 2 * length * c["num_hidden_layers"] * layer
        total += products * 2 * rows * width * c["vocab_size"]
        total += (2 + 5) * 2 * c["num_hidden_layers"] * length * (length + 1) // 2 * 2 * heads * size
    return total / len(pairs)


def load_reference(model, pairs, options):
    """[2 * pairs]: chosen, then rejected, of every pair of the file that a step will use."""
    if options.reference and options.reference.endswith(".json"):
        with open(options.reference) as file:
            given = json.load(file)
        return torch.tensor([given["chosen"][:len(pairs)], given["rejected"][:len(pairs)]]).float()
    if options.reference:
        model = load_model(options.reference, options)
    with torch.no_grad():
        sums = [completion_sums(model, collate([pair]), "completion")[0] for pair in pairs]
    return torch.stack(sums, dim=1)


def make_optimizer(parameters, options):
    settings = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    try:
        return torch.optim.AdamW(parameters, fused=True, **settings), True
    except (TypeError, RuntimeError):  # torch before 2.4 has no fused AdamW on a CPU
        return torch.optim.AdamW(parameters, **settings), False


def import_packages(options):
    """All that will be imported, before memory is measured. Without Transformers the plain model is used."""
    try:
        if not options.plain:
            from transformers import AutoModelForCausalLM  # noqa: F401
        if options.head == "trl":
            from trl import DPOTrainer  # noqa: F401
    except ImportError as error:
        if options.head == "trl":
            print(f"skipped: the Python package {error.name} is not installed", file=sys.stderr)
            sys.exit(77)
        options.plain = True


def run(options):
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    pairs = read_pairs(options.data)
    steps = options.warmup + options.steps
    pairs = pairs[:min(len(pairs), steps * options.pairs)]
    model = load_model(options.model, options)
    reference = load_reference(model, pairs, options)
    loss_of = TrlLoss(model, options) if options.head == "trl" else OwnLoss(model, options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, fused = make_optimizer(parameters, options)
    model.train()

    losses, norms, seconds, phases, details, tokens, busy = [], [], [], [], {}, [], []
    for step in range(steps):
        chosen = [(step * options.pairs + i) % len(pairs) for i in range(options.pairs)]
        start, cpu = time.perf_counter(), time.process_time()
        loss, extra = loss_of([pairs[i] for i in chosen], reference[:, chosen].reshape(-1))
        forward = time.perf_counter()
        loss.backward()
        backward = time.perf_counter()
        norm = torch.nn.utils.clip_grad_norm_(parameters, options.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end = time.perf_counter()
        losses.append(loss.item())
        norms.append(float(norm))
        for name, values in extra.items():
            details.setdefault(name, []).append(values)
        if step >= options.warmup:
            seconds.append(end - start)
            busy.append((time.process_time() - cpu) / (end - start) / options.threads)
            phases.append((forward - start, backward - forward, end - backward))
            tokens.append(([len(pairs[i][0]) for i in chosen],
                           [len(pairs[i][1]) + len(pairs[i][2]) for i in chosen]))
    return model, pairs, fused, losses, norms, seconds, phases, details, tokens, busy


def summarise(options):
    import_packages(options)
    packages = peak_bytes()
    model, pairs, fused, losses, norms, seconds, phases, details, tokens, busy = run(options)
    peak = peak_bytes()  # before the product below is timed
    width, vocabulary = model.head_weight().shape[1], model.head_weight().shape[0]
    step = spread(seconds)
    packed = sum(sum(p) + sum(c) for p, c in tokens) / len(tokens)
    sequences = sum(2 * sum(p) + sum(c) for p, c in tokens) / len(tokens)
    flops = step_flops(options.model, pairs, options.head) * options.pairs
    rate = sgemm_rate(512, vocabulary, width)
    versions = {"torch": torch.__version__}
    for name in ("transformers", "trl"):
        if name in sys.modules:
            versions[name] = sys.modules[name].__version__
    weights = [w for values in details.get("weights", []) for w in values]
    return {
        "name": "peer_step", "versions": versions, "model": type(model).__name__, "head": options.head,
        "attention": options.attention, "threads": options.threads, "fused_adamw": fused,
        "capability": torch.backends.cpu.get_cpu_capability() if hasattr(torch.backends, "cpu") else "unknown",
        "pairs_per_step": options.pairs, "steps": options.steps, "warmup": options.warmup,
        "step_seconds": step,
        "forward_seconds": spread([p[0] for p in phases]), "backward_seconds": spread([p[1] for p in phases]),
        "optimizer_seconds": spread([p[2] for p in phases]),
        "tokens": sequences,  # of a step, without padding: a prompt counts with each of its completions
        "packed_tokens": packed,  # the same, each prompt counted once
        "tokens_per_second": sequences / step["median"], "pairs_per_second": options.pairs / step["median"],
        "flops": flops, "gflops_per_second": 1e-9 * flops / step["median"], "sgemm_gflops_per_second": rate,
        "busy": spread(busy)["median"],  # CPU time of wall time and threads; well below 1, the machine was shared
        "share_of_sgemm": 1e-9 * flops / step["median"] / rate,
        "loss_first": losses[0], "losses": losses, "grad_norms": norms,
        "weights_mean": sum(weights) / len(weights) if weights else None,
        "logps_first": details["logps"][0] if "logps" in details else None,
        "peak_rss_bytes": peak,
        "packages_rss_bytes": packages,  # of Python and the imported packages, before anything was loaded
    }


def main():
    parser = argparse.ArgumentParser(description="Time a PyTorch training step of WPO, laid out as TRL does it.")
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help="groups file with preference pairs")
    parser.add_argument("--reference", help="model folder, or .json with lists chosen and rejected (--model)")
    parser.add_argument("--head", choices=("full", "completion", "trl"), default="full")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--plain", action="store_true", help="use the plain Llama even if Transformers is here")
    parser.add_argument("--pairs", type=int, default=1, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, trained but not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--clamp", action="store_true", help="the pair's weight is at most 1 (TRL: no such clamp)")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a few lines")
    options = parser.parse_args()
    if min(options.pairs, options.threads) < 1 or options.steps < 1 or options.warmup < 0:
        parser.error("--pairs, --threads and --steps must be at least 1, --warmup at least 0")

    result = summarise(options)
    if options.json:
        print(json.dumps(result))
        return
    step = result["step_seconds"]
    print(f"torch {result['versions']['torch']}, head {options.head}, {options.threads} threads: "
          f"step {step['median']:.3f} s (p20 {step['p20']:.3f}, p80 {step['p80']:.3f}), "
          f"{result['tokens_per_second']:.0f} tokens/s, {result['gflops_per_second']:.0f} GFLOP/s of "
          f"{result['sgemm_gflops_per_second']:.0f}, peak {result['peak_rss_bytes'] / 2**20:.0f} MiB, "
          f"first loss {result['loss_first']:.7g}")


if __name__ == "__main__":
    main()
