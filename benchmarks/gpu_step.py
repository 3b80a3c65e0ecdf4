#!/usr/bin/env python3
"""A training step of WPO in PyTorch and Transformers on a GPU, for comparison with bench_step at the same shape and lengths.

    gpu_step.py --config config.json [--pairs 10] [--micro 2] [--prompt 512] [--completion 512] [--samples 10] [--checkpointing 0|1] [--json]

Laid out as TRL does: a padded batch [chosen; rejected] of prompt + completion, so the prompt runs twice; logits of every position; the
targets' log-probabilities and, without gradient, log sum_v p_v^2; the weighted pair loss; autograd; clipping; AdamW. Where a user
could choose, the faster way is taken: bf16 weights and moments (wpo keeps f32 masters), scaled_dot_product_attention, fused
AdamW, reference log-probabilities known beforehand. Random weights and tokens. Medians between CUDA events after three
steps that do not count. Skips (77) without torch, Transformers or a GPU."""

import argparse
import json
import statistics
import sys

try:
    import torch
    import transformers

    from gpu_head import timed
    import torch.nn.functional as F
except ImportError as error:
    print(f"skipped: the Python package {error.name} is not installed", file=sys.stderr)
    sys.exit(77)


def pair_loss(model, ids, prompt, reference):
    """ids [2 pairs, prompt + completion], chosen first."""
    logits = model(input_ids=ids, use_cache=False).logits[:, prompt - 1:-1]
    targets = ids[:, prompt:].unsqueeze(-1)
    logp = torch.log_softmax(logits, dim=-1)
    of_target = logp.gather(-1, targets).squeeze(-1).float()
    with torch.no_grad():
        aligned = of_target - torch.logsumexp(2 * logp, dim=-1).float()
    chosen, rejected = (of_target.sum(1) - reference).chunk(2)
    weight = aligned.mean(1).view(2, -1).sum(0).exp().clamp(max=1)
    return (weight * -F.logsigmoid(0.1 * (chosen - rejected))).mean()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--micro", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--completion", type=int, default=512)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--checkpointing", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    if o.device == "cuda" and not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU", file=sys.stderr)
        return 77
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**json.load(open(o.config)))
    with torch.device(o.device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        torch.set_default_dtype(previous)
    model.train()
    if o.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0, fused=o.device == "cuda")
    micro = [min(o.micro, o.pairs - i) for i in range(0, o.pairs, o.micro)]
    batches = []
    for pairs in micro:
        ids = torch.randint(0, config.vocab_size, (2 * pairs, o.prompt + o.completion), device=o.device)
        ids[pairs:, :o.prompt] = ids[:pairs, :o.prompt]
        batches.append((ids, torch.full((2 * pairs,), -6000.0, device=o.device)))

    def step():
        losses = []
        for ids, reference in batches:
            loss = pair_loss(model, ids, o.prompt, reference) * (len(ids) / 2 / o.pairs)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return sum(losses)

    if o.device != "cuda":  # to see that it runs
        print(json.dumps({"loss": step().item()}))
        return 0
    try:
        times = timed(step, o.samples)
    except torch.cuda.OutOfMemoryError as error:
        print(f"skipped: {str(error).splitlines()[0]}", file=sys.stderr)
        return 77
    median = statistics.median(times)
    print(json.dumps({
        "what": f"training step, {o.pairs} pairs of {o.prompt} + 2 x {o.completion}, bf16 weights and moments", "torch": torch.__version__,
        "transformers": transformers.__version__, "milliseconds": round(median, 2), "p20": round(times[len(times) // 5], 2),
        "p80": round(times[len(times) * 4 // 5], 2), "micro": o.micro, "checkpointing": o.checkpointing,
        "tokens_per_second": round(o.pairs * 2 * (o.prompt + o.completion) / median * 1e3, 1),
        "packed_tokens_per_second": round(o.pairs * (o.prompt + 2 * o.completion) / median * 1e3, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
