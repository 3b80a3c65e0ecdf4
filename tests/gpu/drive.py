"""The stages of tests/gpu.sh. Python's own library only. The result is written anew after every stage, so that whatever ends the
run leaves what was known by then."""

import argparse
import datetime
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.path.join(ROOT, "build", "gpu")
DATA = os.environ.get("WPO_TEST_DATA") or os.path.join(ROOT, "..", "shared", "data")
# What touches the device: operations, whole model, training beside the CPU, resume. The compiler's table and the emulation
# need no device and have run elsewhere.
ON_DEVICE = ("(ops|model|bfloat|packing|objective|cuda|nonfinite)", "(compiler_table|on_cpu|emulat|text\\.|golden\\.)")
WITHOUT = ("(ops|model|bfloat|packing|objective|cuda|compiler_table|on_cpu|emulat)", "(text\\.|golden\\.)")

SHAPES = {
    "llama-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "head_dim": 64, "intermediate_size": 8192, "tie_word_embeddings": True},
    "llama-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "head_dim": 128, "intermediate_size": 14336, "tie_word_embeddings": False},
}
COMMON = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192,
          "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
          "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = {"512 + 2 x 512": ("512", "512", 10), "like UltraFeedback": ("32:256", "64:640", 16)}


def find_tool(name, *folders):
    places = [shutil.which(name)] + [os.path.join(folder, name) for folder in folders if folder]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


CUDA = [os.path.join(os.environ.get(name, ""), "bin") for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda/bin"]
NVCC = find_tool("nvcc", *CUDA)
SANITIZER = find_tool("compute-sanitizer", *CUDA, "/usr/local/cuda/compute-sanitizer")


class Run:
    def __init__(self, options):
        self.options = options
        self.end = time.monotonic() + 60 * options.minutes - 5
        self.logs = os.path.join(BUILD, "logs")
        os.makedirs(self.logs, exist_ok=True)
        self.result = {"what": "tests/gpu.sh" + (" --without-gpu" if options.without_gpu else ""),
                       "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                       "summary": {}, "device": {}, "versions": {}, "stages": {}, "tests": [], "figures": {}, "steps": [], "peers": []}

    def write(self):
        counts = {}
        for outcome in [s["outcome"] for s in self.result["stages"].values()] + [t["outcome"] for t in self.result["tests"]]:
            counts[outcome] = counts.get(outcome, 0) + 1
        self.result["summary"] = counts
        path = self.options.out or self.place()
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump(self.result, file, indent=1)
            file.write("\n")
        os.replace(path + ".part", path)
        return path

    def place(self):
        name = re.sub(r"[^a-z0-9]+", "-", self.result["device"].get("name", "none").lower()).strip("-")
        if self.options.without_gpu:
            return os.path.join(BUILD, "without-gpu.json")
        folder = os.environ.get("OUT") or os.path.join(ROOT, "benchmarks", "results")
        return os.path.join(folder, f"gpu-{name}.json")

    def command(self, name, command, limit, environment=None):
        """Its exit code (None: it ran out of time) and output, which also goes to a log."""
        limit = min(limit, self.end - time.monotonic())
        if limit < 5:
            return None, "no time was left"
        with open(os.path.join(self.logs, re.sub(r"\W+", "-", name) + ".log"), "w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=log,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
            log.seek(0)
            return code, log.read()

    def stage(self, name, command, limit, environment=None):
        """Runs it as a stage of its own; its output where it passed, else None."""
        start = time.monotonic()
        code, text = self.command(name, command, limit, environment)
        outcome = {0: "passed", 77: "skipped", None: "timed out"}.get(code, "failed")
        entry = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
        if outcome != "passed":
            lines = text.strip().splitlines()
            telling = [line for line in lines if re.match(r"(wpo|skipped|FAIL|rank \d+)\b", line)]
            entry["note"] = f"exit code {code}: " + " | ".join(telling[:4] or lines[-6:])[:800]
        self.note(name, entry)
        return text if code == 0 else None

    def note(self, name, entry):
        self.result["stages"][name] = entry
        print(f"{entry['outcome']:9} {entry.get('seconds', 0):7.1f} s  {name}" + (f": {entry['note']}" if "note" in entry else ""),
              flush=True)
        self.write()


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=ROOT).stdout.strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None


def describe(run):
    smi = find_tool("nvidia-smi")
    fields = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm", "clocks.max.memory")
    line = first_line([smi, "--query-gpu=" + ",".join(fields), "--format=csv,noheader", "-i", "0"]) if smi else None
    if line and len(line.split(", ")) == len(fields):
        run.result["device"] = dict(zip(fields, line.split(", ")))
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout if NVCC else ""
    release = re.search(r"V([0-9.]+)", version)
    commit = first_line(["git", "rev-parse", "HEAD"])
    changed = commit and subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode != 0
    run.result["commit"] = (commit + (" and changes" if changed else "")) if commit else "unknown"
    run.result["versions"] = {
        "nvcc": release.group(1) if release else None, "gcc": first_line(["gcc", "--version"]),
        "cmake": first_line(["cmake", "--version"]), "python": sys.version.split()[0],
        "compute-sanitizer": first_line([SANITIZER, "--version"]) if SANITIZER else None,
        "bundle": os.environ.get("WPO_BUNDLE_ROOT"), "glibc": first_line(["getconf", "GNU_LIBC_VERSION"]),
    }


def borrow_from_python(run):
    """Machines for PyTorch have NCCL, and sometimes cuBLASLt, only inside Python's packages. What the toolkit lacks is linked from
    there into a folder that CMake and the compiler are shown."""
    if not NVCC:
        return []
    toolkit = os.path.dirname(os.path.dirname(os.path.realpath(NVCC)))
    headers = [os.path.join(toolkit, "include"), "/usr/include", os.path.join(os.environ.get("NCCL_HOME", ""), "include")]
    headers += glob.glob(os.path.join(toolkit, "targets", "*", "include"))
    folder, found = os.path.join(BUILD, "borrowed"), []
    for header, library, names in (("nccl.h", "libnccl.so", "nccl*"), ("cublasLt.h", "libcublasLt.so", "cublas*.h")):
        if any(os.path.exists(os.path.join(place, header)) for place in headers):
            continue
        for site in sys.path:
            for include in glob.glob(os.path.join(site, "nvidia", "*", "include", header)):
                base = os.path.dirname(os.path.dirname(include))
                versions = sorted(glob.glob(os.path.join(base, "lib", library + "*")))
                if not versions or header in found:
                    continue
                for kind, paths in (("include", glob.glob(os.path.join(base, "include", names))), ("lib", versions)):
                    os.makedirs(os.path.join(folder, kind), exist_ok=True)
                    for path in paths:
                        relink(path, os.path.join(folder, kind, os.path.basename(path)))
                relink(versions[-1], os.path.join(folder, "lib", library))
                found.append(header)
    if found:
        os.environ["NCCL_HOME"] = folder
        os.environ["CMAKE_PREFIX_PATH"] = folder + ":" + os.environ.get("CMAKE_PREFIX_PATH", "")
        os.environ["CPATH"] = os.path.join(folder, "include") + (":" + os.environ["CPATH"] if os.environ.get("CPATH") else "")
        run.note("from Python's packages", {"outcome": "passed", "note": ", ".join(found)})
    return found


def relink(target, path):
    if os.path.lexists(path):
        os.remove(path)
    os.symlink(target, path)


def build(run):
    borrow_from_python(run)
    configure = ["cmake", "-S", ROOT, "-B", BUILD, "-DCMAKE_BUILD_TYPE=Release", f"-DWPO_TEST_DATA={DATA}"]
    if find_tool("ninja") and not os.path.exists(os.path.join(BUILD, "CMakeCache.txt")):
        configure += ["-G", "Ninja"]
    if NVCC:
        configure += [f"-DCMAKE_CUDA_COMPILER={NVCC}", "-DWPO_CUDA=ON"]
    capability = run.result["device"].get("compute_cap")
    if capability and not run.options.without_gpu:  # only for the device at hand
        number = int(capability.replace(".", ""))
        configure += [f"-DCMAKE_CUDA_ARCHITECTURES={number}{'a' if number >= 90 else ''}-real"]
    if run.stage("configure", configure, 60) is None:
        return False
    limit = 3600 if run.options.without_gpu else 270
    return run.stage("build", ["cmake", "--build", BUILD, "-j", str(os.cpu_count() or 2)], limit) is not None


def from_bundle(run):
    """What the program loads comes from the bundle, but for the C library and the compiler's."""
    root = os.environ.get("WPO_BUNDLE_ROOT")
    if not root:
        return
    text = subprocess.run(["ldd", os.path.join(BUILD, "wpo")], capture_output=True, text=True).stdout
    outside = r"^\s*(linux-vdso|/lib|ld-linux|lib(c|m|dl|pthread|rt|resolv|stdc\+\+|gcc_s|gomp|cuda|cudart|cublas|cublasLt|nccl)\.)"
    other = [line.strip() for line in text.splitlines() if root not in line and not re.match(outside, line)]
    inside = sum(root in line for line in text.splitlines())
    outcome = "passed" if inside > 5 and not other else "failed"
    run.note("libraries of the bundle", {"outcome": outcome, "note": f"{inside} from the bundle, others: {other or 'none'}"})


def tests(run, patterns, limit, environment):
    junit = os.path.join(BUILD, "junit.xml")
    if os.path.exists(junit):
        os.remove(junit)
    jobs = "2" if run.options.without_gpu else str(min(4, os.cpu_count() or 1))
    command = ["ctest", "--test-dir", BUILD, "-R", patterns[0], "-E", patterns[1], "--timeout", str(limit // 2), "-j", jobs,
               "--output-junit", junit, "--output-on-failure", "--no-tests=error"]
    run.stage("tests", command, limit, environment)
    if not os.path.exists(junit):
        return
    for case in xml.etree.ElementTree.parse(junit).getroot().iter("testcase"):
        status = case.get("status")
        outcome = {"run": "passed", "fail": "failed"}.get(status, "skipped")
        entry = {"name": case.get("name"), "outcome": outcome, "seconds": round(float(case.get("time") or 0), 2)}
        out = (case.findtext("system-out") or "").strip().splitlines()
        if outcome != "passed" and out:
            entry["note"] = " | ".join(out[-4:])[-600:]
        elif out:
            entry["says"] = out[-1][-160:]
        run.result["tests"].append(entry)
    run.write()


def sanitize(run):
    if not SANITIZER:
        run.note("compute-sanitizer", {"outcome": "skipped", "note": "compute-sanitizer is not there"})
        return
    for tool, test in (("memcheck", "ops_layers"), ("memcheck", "ops_attention"), ("racecheck", "ops_attention"), ("memcheck", "ops_head")):
        program = os.path.join(BUILD, "tests", f"test_unit_{test}")
        if os.path.exists(program):
            run.stage(f"compute-sanitizer {tool} {test}", [SANITIZER, "--tool", tool, "--error-exitcode", "86", program], 40,
                      {"WPO_TEST_BACKEND": "cuda"})


def figures(run):
    out = os.path.join(BUILD, "ops.json")
    program = find_tool("bench_ops", BUILD)
    if not program:
        run.note("figures of the operations", {"outcome": "failed", "note": "bench_ops was not built"})
        return
    if run.stage("figures of the operations", [program, "--out", out], 110) is not None:
        with open(out, encoding="utf-8") as file:
            run.result["figures"] = json.load(file)
        below = [row["name"] for row in run.result["figures"]["rows"] if row["share"] < row["target"]]
        run.result["figures"]["below_target"] = below
        run.write()


def steps(run, scratch, shape, lengths):
    prompt, completion, pairs = LENGTHS[lengths]
    memory = int(re.sub(r"\D", "", run.result["device"].get("memory.total", "")) or 0)
    if shape == "llama-8b" and memory < 130000:  # MiB; docs/gpu.md, Memory
        run.note(f"step, {shape}, {lengths}", {"outcome": "skipped", "note": f"its 122 GB do not fit {memory} MiB"})
        return
    folder, data = os.path.join(scratch, shape), os.path.join(scratch, re.sub(r"\W+", "-", lengths) + ".h5")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({**COMMON, **SHAPES[shape]}, file)
    name = f"step, {shape}, {lengths}"
    if not os.path.exists(data):
        code, text = run.command("pairs", [sys.executable, "benchmarks/make_pairs.py", "--vocabulary", "128256", "--pairs", str(4 * pairs),
                                           "--prompt", prompt, "--chosen", completion, "--rejected", completion, "--out", data], 30)
        if code != 0:
            run.note(name, {"outcome": "skipped", "note": "no pairs: " + text.strip()[-200:]})
            return
    command = [os.path.join(BUILD, "bench_step"), "--model", folder, "--data", data, "--pairs", str(pairs), "--steps", "20", "--warmup", "3",
               "--device", "cuda", "--dtype", "bfloat16", "--gradient_dtype", "bfloat16", "--random", "1", "--logits_megabytes", "2048"]
    if shape == "llama-8b":
        command += ["--moment_dtype", "bfloat16"]  # 8 billion f32 moments and activations do not fit one device
    text = run.stage(name, command, 75)
    if text is None:
        return
    try:
        step = json.loads(text[text.index("{"):])
    except ValueError:
        run.note(name, {"outcome": "failed", "note": "no JSON was printed: " + text[-200:]})
        return
    rate = step.get("gflop_per_second", 0) * 1e9
    product = run.result["figures"].get("product_teraflops")
    step.update(shape=shape, lengths=lengths, share_of_measured_product=product and round(rate / product / 1e12, 4),
                mfu_of_989_teraflops=round(rate / 989e12, 4))
    run.result["steps"].append(step)
    run.write()


def peer_step(run, scratch):
    """The 1B step in PyTorch, beside ours of the same lengths."""
    config = os.path.join(scratch, "llama-1b", "config.json")
    lengths = "512 + 2 x 512"
    ours = [step for step in run.result["steps"] if step["shape"] == "llama-1b" and step["lengths"] == lengths]
    text = run.stage("step, llama-1b, in PyTorch", [sys.executable, "benchmarks/gpu_step.py", "--config", config, "--micro", "2", "--json"], 60)
    if text:
        peer = json.loads(text[text.index('{"what"'):])
        if ours:
            peer["times_as_fast"] = round(ours[0]["packed_tokens_per_second"] / peer["packed_tokens_per_second"], 2)
        run.result["peers"].append(peer)
        run.write()


def peers(run):
    text = run.stage("the head in PyTorch", [sys.executable, "benchmarks/gpu_head.py", "--json"], 90)
    if text:
        peer = json.loads(text[text.index("{"):])
        ours = [row for row in run.result["figures"].get("rows", []) if row["name"] == "head, whole"]
        if ours:
            peer["wpo_milliseconds"] = ours[0]["milliseconds"]
            peer["times_as_fast"] = {row["name"]: round(row["milliseconds"] / ours[0]["milliseconds"], 2) for row in peer["rows"]}
        run.result["peers"].append(peer)
        run.write()


def with_gpu(run):
    if not run.result["device"]:
        run.note("device", {"outcome": "failed", "note": "nvidia-smi names no device; --without-gpu runs what needs none"})
        return
    if not build(run):
        return
    from_bundle(run)
    os.environ["WPO_GPU_BINARY"] = os.path.join(BUILD, "wpo")
    if not os.path.exists(os.path.join(ROOT, ".venv", "bin", "python")):
        os.environ.setdefault("WPO_PYTHON", sys.executable)  # for `wpo prepare`
    tests(run, ON_DEVICE, 150, {"WPO_TEST_BACKEND": "cuda"})
    figures(run)
    sanitize(run)
    with tempfile.TemporaryDirectory() as scratch:
        for shape in SHAPES:
            for lengths in LENGTHS:
                steps(run, scratch, shape, lengths)
        peers(run)
        peer_step(run, scratch)


def without_gpu(run):
    run.note("device", {"outcome": "skipped", "note": "asked for without a GPU: no test runs on a device and no figure is measured"})
    if not build(run):
        return
    from_bundle(run)
    program = find_tool("bench_ops", BUILD)
    if program and not run.result["device"]:  # the program itself must say so, and not crash
        code, text = run.command("no device", [program], 30)
        run.note("bench_ops without a device", {"outcome": "passed" if code == 77 else "failed", "note": text.strip()[-200:]})
    tests(run, WITHOUT, 2400, {})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--without-gpu", action="store_true")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--out")
    options = parser.parse_args()
    options.minutes = options.minutes or (60 if options.without_gpu else 10)
    run = Run(options)
    describe(run)
    try:
        (without_gpu if options.without_gpu else with_gpu)(run)
    except Exception as error:  # the result must be written, with what broke
        run.note("driver", {"outcome": "failed", "note": f"{type(error).__name__}: {error}"})
    path = run.write()
    print(f"{os.path.relpath(path, ROOT)}: {run.result['summary']}")
    return 1 if run.result["summary"].get("failed") or run.result["summary"].get("timed out") else 0


if __name__ == "__main__":
    sys.exit(main())
