"""Folders that the program writes load in Transformers without a warning, with the same tensors and the same numbers;
and folders that Transformers writes are read by the program.

Skipped where torch and Transformers are absent. WPO_PEER_PYTHON may name an interpreter that has them."""

import importlib.util
import json
import logging
import math
import os
import shutil
import tempfile
import warnings

from harness import BINARY, check, find_packages, finish, run, skip

BASE = {"hidden_act": "silu", "hidden_size": 42, "intermediate_size": 37, "num_hidden_layers": 3,
        "num_attention_heads": 7, "vocab_size": 65, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float64"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "llama3": {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1,
               "head_dim": 10, "rope_theta": 500.0, "rope_scaling": LLAMA3, "attention_bias": False,
               "mlp_bias": False, "tie_word_embeddings": True},
    "linear": {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
               "rope_scaling": {"type": "linear", "factor": 2.5}},
    "mistral": {**BASE, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "num_key_value_heads": 1,
                "head_dim": 10, "sliding_window": 5},
    "qwen2": {**BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 7,
              "rope_theta": 1e6, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 3},
    "qwen2-tied": {**BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1,
                   "tie_word_embeddings": True},
}
# Qwen2-tied leaves sliding_window to its default, which is in use nowhere.


def write(folder, name, value):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, name)
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
    return path


class Records(logging.Handler):
    """Keeps what a library would have told its user."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.sentences = []

    def emit(self, record):
        self.sentences.append(record.getMessage())


def load(folder, what, **options):
    """The model as Transformers reads it; anything missing, left over, or said aloud is a failure."""
    records = Records()
    transformers.logging.get_logger("transformers").addHandler(records)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    transformers.logging.get_logger("transformers").removeHandler(records)
    for key, value in report.items():
        check(not value, f"{what}: Transformers reports {key}: {value}")
    check(not records.sentences, f"{what}: Transformers warns: {records.sentences}")
    told = [str(warning.message) for warning in caught if "wpo" in str(warning.message) or "rope" in str(warning.message)]
    check(not told, f"{what}: Python warns: {told}")
    return model.eval()


def stored(folder):
    """All tensors of the folder's files, read by the safetensors library."""
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            part = safetensors.torch.load_file(os.path.join(folder, name))
            check(not tensors.keys() & part.keys(), f"{folder}: {name} repeats tensors")
            tensors.update(part)
    return tensors


def check_tensors(model, folder, exact, dtype, what):
    """What Transformers holds is what stands in the files, which is the float32 model rounded to nearest."""
    tensors, state = stored(folder), model.state_dict()
    check(tensors.keys() == exact.keys(), f"{what}: {sorted(tensors.keys() ^ exact.keys())} differ from the float32 model")
    check(state.keys() - tensors.keys() <= {"lm_head.weight"}, f"{what}: {sorted(state.keys() - tensors.keys())} not stored")
    for name, tensor in tensors.items():
        check(tensor.dtype == dtype and state[name].dtype == dtype, f"{what}: {name} is {tensor.dtype}, {state[name].dtype}")
        check(torch.equal(tensor, exact[name].to(dtype)), f"{what}: {name} is not the float32 tensor rounded")
        check(torch.equal(tensor, state[name]), f"{what}: {name} is another tensor in Transformers")
    if model.config.tie_word_embeddings:
        check("lm_head.weight" not in tensors, f"{what}: a tied head is stored")
        check(torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"]), f"{what}: the head is not tied")


def check_initial(exact, config, what):
    """Norms are ones, biases zeros, and matrices have the configuration's spread: for n normal values the standard
    deviation is off by sigma / sqrt(2 n), of which five are allowed (the values are fixed: no chance)."""
    for name, tensor in exact.items():
        if name.endswith("norm.weight"):
            check(bool((tensor == 1).all()), f"{what}: {name} is not all ones")
        elif name.endswith("bias"):
            check(bool((tensor == 0).all()), f"{what}: {name} is not all zeros")
        else:
            error = abs(float(tensor.double().pow(2).mean().sqrt()) / config["initializer_range"] - 1)
            check(error < 5 / math.sqrt(2 * tensor.numel()), f"{what}: the spread of {name} is off by {error:.3f}")


def test_written(folder):
    """init -> Transformers, for each family, dtype and division into files."""
    shapes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    for name, config in CONFIGS.items():
        source = os.path.join(folder, name)
        path = write(source, "config.json", config)
        exact = None
        for dtype, torch_dtype in shapes.items():
            for size in ("5GB", "15KB"):
                what = f"{name} {dtype} {size}"
                out = os.path.join(folder, f"{name}-{dtype}-{size}")
                run(BINARY, "init", "--config", path, "--seed", 7, "--out", out, "--dtype", dtype,
                    "--max_shard_size", size)
                files = [file for file in os.listdir(out) if file.endswith(".safetensors")]
                check(len(files) == 1 if size == "5GB" else len(files) > 2, f"{what}: {files}")
                exact = exact or stored(out)
                model = load(out, what, dtype="auto")
                check_tensors(model, out, exact, torch_dtype, what)
                with open(os.path.join(out, "config.json")) as file:
                    expected = {**config, "torch_dtype": dtype}
                    got = json.load(file)
                    check(got == expected and list(got) == list(expected), f"{what}: config.json is {got}")
                said = run(BINARY, "init", "--config", path, "--out", out + "-again", "--seed", 7)
                count = int(said.split(" with ")[1].split()[0])
                check(count == sum(p.numel() for p in model.parameters()), f"{what}: counts {count} parameters")
                shutil.rmtree(out + "-again")
        check_initial(exact, config, name)


def test_read(folder):
    """Transformers -> the program: its own config.json and files describe the same model, tensor by tensor."""
    for name in CONFIGS:
        original = os.path.join(folder, f"{name}-float32-5GB")
        saved = os.path.join(folder, f"{name}-saved")
        load(original, name, dtype="auto").save_pretrained(saved, max_shard_size="15KB")
        again = os.path.join(folder, f"{name}-again")
        run(BINARY, "init", "--config", saved, "--seed", 7, "--out", again)
        first, second = stored(original), stored(again)
        check(first.keys() == second.keys(), f"{name}: other tensors after Transformers wrote config.json")
        check(all(torch.equal(first[key], second[key]) for key in first.keys() & second.keys()), f"{name}: other values")
        load(again, f"{name} again", dtype="auto")
        page = run(BINARY, "inspect", saved)
        check(CONFIGS[name]["model_type"] in page, f"{name}: inspect says {page}")


def log_probabilities(model, groups):
    """Summed log-probability of every completion, from Transformers in float64, each sequence alone."""
    model = model.double()
    sums = []
    for prompt, completions in groups:
        for completion in completions:
            tokens = torch.tensor([list(map(int, prompt)) + list(map(int, completion))])
            with torch.no_grad():
                table = torch.log_softmax(model(tokens).logits[0], -1)
            at = range(len(prompt), tokens.shape[1])
            sums.append(sum(float(table[i - 1, tokens[0, i]]) for i in at))
    return sums


def disturbed(folder, out):
    """A model whose norms are not ones and whose biases are not zeros, written by Transformers. Returns its folder."""
    model = load(folder, folder, dtype="auto")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(out, max_shard_size="15KB")
    return out


def plain(folder):
    """The same weights without rotary scaling, window and biases; None for a model that has none of them."""
    config = transformers.AutoConfig.from_pretrained(folder)
    rope = config.rope_parameters
    if rope["rope_type"] == "default" and config.model_type == "llama":
        return None
    config.rope_parameters = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    config.sliding_window = None
    model = load(folder, folder, dtype="auto", config=config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    return model


def test_numbers(folder):
    """`wpo eval` gives Transformers' log-probabilities: rotary types, window, biases, grouped heads. The tolerance is that
    of test_chain.py (1e-4 relative plus 2.4e-5 nats a token), plus 1e-6 nats a token for Transformers' rotary
    frequencies, which are float32 even in a float64 model. Each of those features moves some of the numbers by more
    than ten tolerances, so that leaving it out would show."""
    if importlib.util.find_spec("h5py") is None:
        print("not checked against wpo eval: h5py is absent")
        return
    import inputs

    groups = inputs.random_groups(BASE["vocab_size"], 9, 11)
    path = os.path.join(folder, "groups.h5")
    inputs.write_groups(path, groups, BASE["vocab_size"])
    lengths = [len(completion) for _, completions in groups for completion in completions]
    worst = 0
    for name in CONFIGS:
        source = disturbed(os.path.join(folder, f"{name}-float32-5GB"), os.path.join(folder, f"{name}-disturbed"))
        records = os.path.join(folder, f"{name}.jsonl")
        run(BINARY, "eval", "--model", source, "--data", path, "--device", "cpu", "--per-completion", records)
        with open(records) as file:
            got = [json.loads(line)["logp"] for line in file]
        expected = log_probabilities(load(source, name, dtype="auto", attn_implementation="eager"), groups)
        check(len(got) == len(expected), f"{name}: {len(got)} records, {len(expected)} completions")
        tolerances = [1e-4 * abs(wanted) + 2.5e-5 * length for wanted, length in zip(expected, lengths)]
        for value, wanted, tolerance in zip(got, expected, tolerances):
            worst = max(worst, abs(value - wanted) / tolerance)
            check(abs(value - wanted) <= tolerance, f"{name}: log p is {value!r}, Transformers says {wanted!r}")
        without = plain(source)
        if without:
            others = log_probabilities(without, groups)
            moved = max(abs(other - wanted) / tolerance for other, wanted, tolerance in zip(others, expected, tolerances))
            check(moved > 10, f"{name}: its features move log p by no more than {moved:.2g} tolerances")
    print(f"log-probabilities: at most {worst:.2g} of the tolerance")


def main():
    global torch, transformers, safetensors
    find_packages("torch", "transformers", "safetensors", "numpy")
    if not os.path.exists(BINARY):
        skip("WPO_BINARY names no program")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import safetensors.torch
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        test_written(folder)
        test_read(folder)
        test_numbers(folder)
    finish()


if __name__ == "__main__":
    main()
