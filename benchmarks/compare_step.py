"""The training step beside PyTorch's, in one run: same weights, same pairs, same loss, in turn.

    .venv/bin/python benchmarks/compare_step.py [--rounds 3] [--threads 2] [--peer PYTHON] [--out results.json]

Makes a randomly initialised Llama of 135 million parameters and pairs of 256 + 2 x 256 tokens in a temporary folder, then
alternates bench_step with benchmarks/peer_step.py (where PyTorch is found) and writes medians and ratios as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "release")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "initializer_range": 0.04, "torch_dtype": "float32",
}


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def last_json(words):
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode == 77:
        return None
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout[done.stdout.index("{"):])


def ours(options, folder):
    return last_json([os.path.join(BUILD, "bench_step"), "--model", folder + "/model", "--data", folder + "/pairs.h5",
                      "--steps", str(options.steps), "--warmup", "1", "--threads", str(options.threads)])


def peer(options, folder, head):
    words = [options.peer, os.path.join(HERE, "peer_step.py"), "--model", folder + "/model", "--data",
             folder + "/pairs.h5", "--pairs", "1", "--steps", str(options.peer_steps), "--warmup", "1", "--threads",
             str(options.threads), "--head", head, "--json"]
    return last_json(words + ([] if head == "trl" else ["--clamp"]))


def make_inputs(folder):
    os.makedirs(folder + "/config")
    with open(folder + "/config/config.json", "w") as file:
        json.dump(CONFIG, file)
    subprocess.run([os.path.join(BUILD, "wpo"), "init", "--config", folder + "/config/config.json", "--seed", "1", "--out",
                    folder + "/model"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, os.path.join(HERE, "make_pairs.py"), "--vocabulary", "49152", "--pairs", "8",
                    "--prompt", "256", "--chosen", "256", "--rejected", "256", "--seed", "1", "--out",
                    folder + "/pairs.h5"], check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of ours in each round")
    parser.add_argument("--peer-steps", type=int, default=2, help="timed steps of the peer in each round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peer", default=os.environ.get("WPO_PEER_PYTHON", sys.executable),
                        help="a Python with torch and transformers (trl for its own head)")
    parser.add_argument("--heads", default="full,completion,trl", help="which heads of the peer to try")
    parser.add_argument("--out", help="where the JSON goes; standard output otherwise")
    options = parser.parse_args()

    runs = {"wpo": []}
    with tempfile.TemporaryDirectory(prefix="wpo-bench-") as folder:
        make_inputs(folder)
        for number in range(options.rounds):
            runs["wpo"].append(ours(options, folder))
            for head in options.heads.split(","):
                result = peer(options, folder, head)
                if result is None:
                    print(f"peer with head {head}: skipped, not installed in {options.peer}", file=sys.stderr)
                    continue
                runs.setdefault("peer_" + head, []).append(result)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)

    seconds = {name: [r["step_seconds"]["median"] for r in list_] for name, list_ in runs.items()}
    result = {
        "what": "training step, Llama 135M shape, one pair of 256 + 2 x 256 tokens, f32",
        "processor": processor(), "threads": options.threads, "rounds": options.rounds,
        "step_seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "times_as_fast": {name: statistics.median(b / a for a, b in zip(seconds["wpo"], s))
                          for name, s in seconds.items() if name != "wpo"},
        "last_round": {name: list_[-1] for name, list_ in runs.items()},
    }
    text = json.dumps(result, indent=1)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
