"""bench_ops runs to its end on the emulated device, with small sizes, and its JSON has what tests/gpu.sh reads: every operation of
the table, finite times, bytes or FLOPs, a roofline. The figures themselves mean nothing there."""

import json
import math
import os
import subprocess
import sys
import tempfile

PROGRAM = os.path.join(os.environ.get("WPO_BUILD") or "", "tests", "emulated_bench_ops")
OPERATIONS = ("copy", "product", "rmsnorm", "rmsnorm_grad", "bias", "bias_grad", "gather_rows", "scatter_rows", "rope", "swiglu",
              "swiglu_grad", "head_statistics", "head_gradient", "head_sums", "head, bare products", "head, whole", "attention, causal, D=128",
              "attention_grad, causal, D=128", "attention, shared prefix, D=64", "adamw, f32 moments", "adamw, bf16 moments", "sum_squares",
              "sum_rows", "zero")


def faults(result):
    found = []
    rows = result["rows"]
    for name in OPERATIONS:
        if not any(row["name"].startswith(name) for row in rows):
            found.append(f"no row of {name}")
    for row in rows:
        for key in ("milliseconds", "p20", "p80", "figure", "roofline_milliseconds", "share"):
            if not (math.isfinite(row[key]) and row[key] >= 0):
                found.append(f"{row['name']}: {key} is {row[key]}")
        if not row["p20"] <= row["milliseconds"] <= row["p80"]:
            found.append(f"{row['name']}: the median is not between the quantiles")
        if not (row["bytes"] > 0 or row["flops"] > 0) or not row["milliseconds"] > 0:
            found.append(f"{row['name']}: neither bytes nor FLOPs, or no time")
        if row["unit"] != ("TFLOP/s" if row["flops"] > 0 else "GB/s"):
            found.append(f"{row['name']}: {row['unit']}")
    if not result["head_over_products"] > 0 or not result["copy_gigabytes_per_second"] > 0:
        found.append("the yardsticks are missing")
    return found


if not os.path.exists(PROGRAM):
    print("skipped: this build has no emulated_bench_ops")
    sys.exit(77)
with tempfile.TemporaryDirectory() as folder:
    out = os.path.join(folder, "ops.json")
    subprocess.run([PROGRAM, "--small", "--samples", "3", "--out", out], check=True, stderr=subprocess.DEVNULL, timeout=600)
    with open(out, encoding="utf-8") as file:
        result = json.load(file)
failures = faults(result)
broken = json.loads(json.dumps(result))
broken["rows"][3]["figure"] = math.nan
del broken["rows"][-1], broken["rows"][0]
if len(faults(broken)) < 3:
    failures.append("the check itself finds no planted fault")
for failure in failures:
    print("FAIL ", failure)
print(f"{len(result['rows'])} rows, {len(failures)} failures")
sys.exit(1 if failures else 0)
