#!/usr/bin/env python3
"""The head of WPO in PyTorch on a GPU, for comparison with bench_ops' row `head, whole`: from hidden states to loss and gradients.

    gpu_head.py [--tokens 16384] [--width 4096] [--vocabulary 128256] [--samples 20] [--json]

The way TRL does it where no fused head is used: logits of all rows at once, the targets' log-probabilities, a second
log-softmax without gradient for log sum_v p_v^2, the weighted pair loss, autograd. Three variants: logits kept in bf16, logits
raised to f32, and f32 under torch.compile. Hidden states and weights are bf16, drawn at random, the same for all. Medians between
CUDA events after three passes that do not count, peak memory, and the share of three bare products at the rate that torch's own
8192 x 8192 x 8192 product reaches here. Skips (77) without torch or a GPU."""

import argparse
import json
import statistics
import sys

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("skipped: PyTorch is not installed", file=sys.stderr)
    sys.exit(77)

GROUP = 1024  # scored tokens of a pair: two completions of 512


def timed(call, samples):
    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))


def loss_of(x, w, target, reference, raised):
    logits = F.linear(x, w)
    if raised:
        logits = logits.float()
    logp = torch.log_softmax(logits, dim=-1).gather(-1, target.unsqueeze(-1)).squeeze(-1).float()
    with torch.no_grad():
        aligned = logp - torch.logsumexp(2 * torch.log_softmax(logits, dim=-1), dim=-1).float()
    each = logp.view(-1, 2, GROUP // 2).sum(-1)
    weight = aligned.view(-1, 2, GROUP // 2).mean(-1).sum(-1).exp().clamp(max=1)
    margin = (each[:, 0] - each[:, 1]) - (reference[:, 0] - reference[:, 1])
    return (weight * -F.logsigmoid(0.1 * margin)).mean()


def measure(name, loss, x, w, rest, samples, flops):
    def step():
        x.grad = w.grad = None
        loss(x, w, *rest).backward()

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        times = timed(step, samples)
        value = loss(x, w, *rest).item()
    except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
        x.grad = w.grad = None
        return {"name": name, "failed": str(error).splitlines()[0][:200]}
    median = statistics.median(times)
    return {"name": name, "milliseconds": round(median, 3), "p20": round(times[len(times) // 5], 3), "p80": round(times[len(times) * 4 // 5], 3),
            "teraflops": round(flops / median / 1e9, 1), "loss": value, "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU", file=sys.stderr)
        return 77
    if o.tokens % GROUP:
        parser.error(f"--tokens must be a multiple of {GROUP}")
    torch.manual_seed(1)
    side = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = 2 * 8192**3 / statistics.median(timed(lambda: side @ side, o.samples)) / 1e9
    del side
    x = torch.randn(o.tokens, o.width, device="cuda").bfloat16().requires_grad_()
    w = (0.03 * torch.randn(o.vocabulary, o.width, device="cuda")).bfloat16().requires_grad_()
    target = torch.randint(0, o.vocabulary, (o.tokens,), device="cuda")
    reference = torch.full((o.tokens // GROUP, 2), -6000.0, device="cuda")
    flops = 6 * o.tokens * o.width * o.vocabulary
    rows = [measure("bf16 logits", loss_of, x, w, (target, reference, False), o.samples, flops),
            measure("f32 logits", loss_of, x, w, (target, reference, True), o.samples, flops)]
    compiled = torch.compile(loss_of)
    rows.append(measure("f32 logits, compiled", compiled, x, w, (target, reference, True), o.samples, flops))
    result = {"what": f"head and loss, {o.tokens} x {o.width} x {o.vocabulary}, bf16", "torch": torch.__version__,
              "device": torch.cuda.get_device_name(), "product_teraflops": round(product, 1),
              "three_products_milliseconds": round(flops / product / 1e9, 3), "rows": [row for row in rows if "milliseconds" in row],
              "failed": [row for row in rows if "failed" in row]}
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
