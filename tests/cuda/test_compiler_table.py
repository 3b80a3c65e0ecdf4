"""What the compiler says of every kernel, held to the kept table benchmarks/results/kernels-registers.json.

Compiles kernels/cuda/*.cu for sm_80, sm_90a and sm_100a (no GPU is needed) and reads ptxas's report. It fails when
  * a kernel spills registers or has a stack frame (a local array that is indexed by a value known only at run time),
  * a kernel uses more registers or more static shared memory than the table says, is not in the table, or is gone.
Each failure is one line, for instance `attention.cu: forward<128> sm_90a: registers 168 -> 176`.

    test_compiler_table.py            compare
    test_compiler_table.py --accept   write the table anew; spills and stack frames fail all the same

Registers depend on the compiler: under another release of the toolkit than the table's, only spills and stack frames
are judged. Dynamic shared memory is asked for at the launch and stands in no report. Reports are kept in
<build>/compiler-table/, by a hash of sources, flags and compiler, so that a second run compiles nothing. Without nvcc: skipped."""

import concurrent.futures
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.abspath(os.environ.get("WPO_SOURCE") or os.path.join(os.path.dirname(__file__), "..", ".."))
BUILD = os.environ.get("WPO_BUILD") or os.path.join(ROOT, "build")
TABLE = os.path.join(ROOT, "benchmarks", "results", "kernels-registers.json")
ARCHITECTURES = ("80", "90a", "100a")
FLAGS = ["-std=c++17", "-O3"]

# Kernels whose time does not matter, so that a stack frame in them is no failure: {pattern of the name: why}.
COLD = {
    r"objective": "one thread a group, with the scalar double mathematics of every loss behind a switch",
    r"cuda_norm|\bnorm_kernel": "one thread a step",
}


def find_nvcc():
    places = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    places += [os.path.join(os.environ.get(name, ""), "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH")]
    places += ["/usr/local/cuda/bin/nvcc"]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def output_of(command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def release_of(nvcc):
    return re.search(r"release ([0-9.]+)", output_of([nvcc, "--version"])).group(1)


def demangle(names):
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if not tool:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, (readable(line) for line in done.stdout.splitlines())))


def readable(name):
    """`void forward<(int)128, bfloat>(float*, ...)` becomes `forward<128, bfloat>`."""
    name = re.sub(r"\((?:int|bool|unsigned int|unsigned|long|char|short)\)", "", name)
    name = name.replace("(anonymous namespace)::", "")
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    depth, start = 0, 0  # the type of the result stands before the last space outside of <>
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == " " and depth == 0:
            start = i + 1
    return name[start:]


# -- the report of ptxas ---------------------------------------------------------------------------------------------


def parse(report):
    """{mangled name: {architecture: {registers, shared, stack, spill}}} of what `nvcc -Xptxas -v` prints."""
    result, entry, name, architecture = {}, None, None, None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            entry, architecture = found.groups()
        elif found := re.search(r"Function properties for '?([^\s']+)'?", line):
            name = found.group(1)
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            of = result.setdefault(name, {}).setdefault(architecture, {})
            of.update(stack=stack, spill=stores + loads)
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            of = result.setdefault(entry, {}).setdefault(architecture, {})
            of.update(registers=int(found.group(1)), shared=int(shared.group(1)) if shared else 0)
    return result


def compile_report(nvcc, source, flags, architectures, folder):
    """What ptxas says of the kernels of a source, from the kept reports where it is there."""
    digest = hashlib.sha256(json.dumps([output_of([nvcc, "--version"]), flags, architectures]).encode())
    headers = glob.glob(os.path.join(ROOT, "kernels", "*.h")) + glob.glob(os.path.join(ROOT, "kernels", "cuda", "*.cuh"))
    for path in sorted(headers) + [source]:
        with open(path, "rb") as file:
            digest.update(hashlib.sha256(file.read()).digest())
    kept = os.path.join(folder, f"{os.path.basename(source)}-{digest.hexdigest()[:20]}.txt")
    if os.path.exists(kept):
        with open(kept, encoding="utf-8") as file:
            return parse(file.read())
    command = [nvcc, *flags, "-I", ROOT, "-Xptxas", "-v", "-fatbin", source]
    for architecture in architectures:
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(command + ["-o", os.path.join(scratch, "out")], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{os.path.relpath(source, ROOT)} does not compile:\n{done.stdout}{done.stderr}")
    os.makedirs(folder, exist_ok=True)
    with open(kept + f".{os.getpid()}", "w", encoding="utf-8") as file:
        file.write(done.stdout + done.stderr)
    os.replace(kept + f".{os.getpid()}", kept)
    return parse(done.stdout + done.stderr)


def measure(nvcc, sources, flags, architectures, folder):
    """{"file.cu: kernel<...>": {"sm_90a": {...}}}"""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda source: compile_report(nvcc, source, flags, architectures, folder), sources))
    names = demangle([name for report in reports for name in report])
    return {
        f"{os.path.basename(source)}: {names[mangled]}": by_architecture
        for source, report in zip(sources, reports)
        for mangled, by_architecture in report.items()
    }


# -- judgement -------------------------------------------------------------------------------------------------------


def frames_and_spills(kernels):
    lines = []
    for name, by_architecture in kernels.items():
        if any(re.search(pattern, name.split(": ", 1)[1]) for pattern in COLD):
            continue
        for architecture, of in by_architecture.items():
            if of.get("spill"):
                lines.append(f"{name} {architecture}: spills {of['spill']} bytes; fewer live values, or a larger launch bound")
            elif of.get("stack"):
                lines.append(f"{name} {architecture}: stack frame of {of['stack']} bytes; a local array is indexed at run time")
    return lines


def compare(kept, kernels):
    """Lines that fail, and lines that are good news."""
    worse, better = [], []
    for name, by_architecture in kernels.items():
        fresh = {a: of["registers"] for a, of in by_architecture.items() if "registers" in of and a not in kept.get(name, {})}
        if fresh:
            worse.append(f"{name} {' '.join(fresh)}: not in the table ({', '.join(map(str, fresh.values()))} registers)")
        for architecture, of in by_architecture.items():
            before = kept.get(name, {}).get(architecture)
            if before is None or "registers" not in of:
                continue
            for what in ("registers", "shared"):
                line = f"{name} {architecture}: {what} {before[what]} -> {of[what]}"
                if of[what] != before[what]:
                    (worse if of[what] > before[what] else better).append(line)
    for name, by_architecture in kept.items():
        for architecture in by_architecture:
            if architecture not in kernels.get(name, {}):
                worse.append(f"{name} {architecture}: in the table, but no longer in the sources")
    return worse, better


def write_table(path, release, kernels):
    lines = []
    for name in sorted(kernels):
        row = {
            architecture: {"registers": of["registers"], "shared": of["shared"]}
            for architecture, of in sorted(kernels[name].items(), key=lambda item: int(re.sub(r"\D", "", item[0])))
            if "registers" in of
        }
        if row:
            lines.append(f"  {json.dumps(name)}: {json.dumps(row)}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            '{\n "what": "registers a thread and static bytes of shared memory a block, as ptxas reports them",\n'
            f' "toolkit": {json.dumps(release)},\n "flags": {json.dumps(" ".join(FLAGS))},\n "kernels": {{\n'
            + ",\n".join(lines)
            + "\n }\n}\n"
        )


# -- the check must be able to fail ------------------------------------------------------------------------------------

PLANTED = """
__global__ void __launch_bounds__(1024, 2) spills(const float *x, float *y)
{
    float kept[96];
#pragma unroll
    for (int i = 0; i < 96; i++)
        kept[i] = x[threadIdx.x + 1024 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 96; i++)
        y[threadIdx.x + 1024 * i] = kept[i] * kept[95 - i];
}
template <int COUNT> __global__ void frames(const int *index, float *y)
{
    float local[COUNT];
    for (int i = 0; i < COUNT; i++)
        local[index[i] % COUNT] = (float)i;
    y[threadIdx.x] = local[index[threadIdx.x] % COUNT];
}
template __global__ void frames<64>(const int *, float *);
__global__ void innocent(float *y)
{
    y[threadIdx.x] += 1;
}
"""


def self_test(nvcc, architectures):
    """Lines that say which planted fault was not found."""
    lost = []
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "planted.cu")
        with open(source, "w", encoding="utf-8") as file:
            file.write(PLANTED)
        kernels = measure(nvcc, [source], FLAGS, architectures, folder)
        again = measure(nvcc, [source], FLAGS, architectures, folder)
        table = os.path.join(folder, "table.json")
        write_table(table, "1.0", kernels)
        with open(table, encoding="utf-8") as file:
            kept = json.load(file)["kernels"]
    if kernels != again:
        lost.append("a kept report reads differently from a fresh one")
    found = "\n".join(frames_and_spills(kernels))
    for architecture in architectures:
        if f"planted.cu: spills sm_{architecture}: spills" not in found:
            lost.append(f"the planted spill on sm_{architecture}")
        if f"planted.cu: frames<64> sm_{architecture}: stack frame of" not in found:
            lost.append(f"the planted stack frame on sm_{architecture}")
    if "innocent" in found:
        lost.append("that an innocent kernel is innocent")
    if compare(kept, kernels) != ([], []):
        lost.append("that a table equals the kernels it was written from")
    one = f"sm_{architectures[0]}"
    name = "planted.cu: innocent"
    registers = kernels[name][one]["registers"]
    kept[name][one]["registers"] -= 1
    kept["planted.cu: gone"] = {one: {"registers": 8, "shared": 0}}
    kernels["planted.cu: new"] = {one: {"registers": 8, "shared": 0, "stack": 0, "spill": 0}}
    worse, _ = compare(kept, kernels)
    for line in (
        f"{name} {one}: registers {registers - 1} -> {registers}",
        f"planted.cu: new {one}: not in the table (8 registers)",
        f"planted.cu: gone {one}: in the table, but no longer in the sources",
    ):
        if line not in worse:
            lost.append(f"'{line}'")
    return lost


def main():
    nvcc = find_nvcc()
    if not nvcc:
        print("skipped: there is no nvcc, neither on PATH nor in /usr/local/cuda")
        return 77
    release = release_of(nvcc)
    known = output_of([nvcc, "--list-gpu-code"]).split()
    architectures = [name for name in ARCHITECTURES if f"sm_{name.rstrip('a')}" in known]
    for name in ARCHITECTURES:
        if name not in architectures:
            print(f"note: nvcc {release} does not know sm_{name}")
    sources = sorted(glob.glob(os.path.join(ROOT, "kernels", "cuda", "*.cu")))
    kernels = measure(nvcc, sources, FLAGS, architectures, os.path.join(BUILD, "compiler-table"))
    failures = frames_and_spills(kernels)
    failures += [f"the test itself does not find {line}" for line in self_test(nvcc, architectures)]

    if "--accept" in sys.argv[1:]:
        write_table(TABLE, release, kernels)
        print(f"written: {os.path.relpath(TABLE, ROOT)}")
    elif not os.path.exists(TABLE):
        failures.append(f"{os.path.relpath(TABLE, ROOT)} is missing; make it with --accept")
    else:
        with open(TABLE, encoding="utf-8") as file:
            kept = json.load(file)
        if kept["toolkit"] != release:
            print(f"note: the table was made with nvcc {kept['toolkit']}, this is {release}: registers are not compared")
        else:
            here = {name: {a: v for a, v in row.items() if a[3:] in architectures} for name, row in kept["kernels"].items()}
            worse, better = compare(here, kernels)
            for line in better:
                print("better:", line)
            if worse:
                failures += worse
                failures.append(f"where this is meant: {os.path.relpath(__file__, ROOT)} --accept")
    for line in failures:
        print("FAIL ", line)
    count = sum("registers" in of for row in kernels.values() for of in row.values())
    print(f"{len(sources)} files, {count} kernels over {len(architectures)} architectures, {len(failures)} failures")
    return 1 if failures or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
