"""Small worlds for the golden tests: models of odd shapes, synthetic groups, and the groups file written by hand."""

import hashlib
import json

import h5py
import numpy as np

BASE = {"hidden_act": "silu", "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 65, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False, "torch_dtype": "float32"}

# head_size 6 is not width / heads; rope with few original positions, so that long, blended and short waves all occur.
CONFIGS = {
    "llama": {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 6,
              "rope_theta": 500.0, "attention_bias": False, "mlp_bias": False,
              "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64}},
    "llama-linear": {**BASE, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2,
                     "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.5},
                     "tie_word_embeddings": True},
    "mistral": {**BASE, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "head_dim": 10,
                "num_key_value_heads": 2, "rope_theta": 10000.0, "sliding_window": 5},
    "qwen2": {**BASE, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rope_theta": 1000000.0,
              "rms_norm_eps": 1e-6, "use_sliding_window": False, "max_window_layers": 2, "sliding_window": None,
              "tie_word_embeddings": True},
}


def random_weights(model, seed):
    """Normal matrices of the config's spread; norms around one and biases around zero, so that none is trivial. The
    last norm is smaller: flatter distributions, so that no pair's weight drowns those of the others."""
    random = np.random.default_rng(seed)
    weights = {}
    for name in model.names():
        values = random.normal(0, model.config["initializer_range"], model.shape(name))
        values = values + 1 if name.endswith("norm.weight") else values
        values = values * 0.3 if name == "model.norm.weight" else values
        weights[name] = values.astype(np.float32).astype(np.float64)
    return weights


def perturbed(model, seed, relative):
    """A copy whose tensors are moved by `relative` of their own root mean square, rounded to float32."""
    random = np.random.default_rng(seed)
    other = model.copy()
    for name, values in other.weights.items():
        noise = random.normal(0, relative * np.sqrt(np.mean(values**2)), values.shape)
        other.weights[name] = (values + noise).astype(np.float32).astype(np.float64)
    return other


def random_groups(vocabulary, count, seed, completions=2):
    """Groups of prompts of 1 to 13 tokens and completions of 1 to 11 tokens; the first group has the shortest."""
    random = np.random.default_rng(seed)
    groups = []
    for index in range(count):
        lengths = [1] * (completions + 1) if index == 0 else random.integers(1, [14] + [12] * completions)
        tokens = [random.integers(0, vocabulary, length) for length in lengths]
        groups.append((tokens[0], tokens[1:]))
    return groups


def write_groups(path, groups, vocabulary, kind="preference", scores=None, labels=None, form=None,
                 max_length=None):
    """The groups file, format version 1: an HDF5 file behind 512 bytes that say its hash and size. scores, labels: of
    all completions, in the order of the file; form: pair, ranked or sampled; max_length: as it is, unless given."""
    def offsets(parts):
        return np.cumsum([0] + [len(part) for part in parts]).astype("<i8")

    prompts = [prompt for prompt, _ in groups]
    completions = [y for _, ys in groups for y in ys]
    datasets = {"prompt/tokens": np.concatenate(prompts).astype("<i4"), "prompt/offset": offsets(prompts),
                "completion/tokens": np.concatenate(completions).astype("<i4"),
                "completion/offset": offsets(completions), "group/first": offsets([ys for _, ys in groups]),
                "group/row": np.arange(len(groups), dtype="<i8")}
    if scores is not None:
        datasets["completion/score"] = np.array(scores, dtype="<f4")
    if labels is not None:
        datasets["completion/label"] = np.array(labels, dtype="i1")
    longest = max(len(prompt) + len(y) for prompt, ys in groups for y in ys)
    attributes = {"format": b"wpo-groups", "version": 1, "kind": kind.encode(), "vocabulary": vocabulary,
                  "max_length": max_length or longest, "truncation": b"keep_start", "tokenizer_sha256": b"0" * 64,
                  "chat_template_sha256": b"0" * 64, "source": b"synthetic", "source_sha256": b"0" * 64,
                  "summary": json.dumps({}).encode()}
    if form:
        attributes["form"] = form.encode()
    with h5py.File(path, "w", userblock_size=512, libver=("v110", "v110")) as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, chunks=values.shape, fletcher32=True)
        for name, value in attributes.items():
            file.attrs[name] = np.int64(value) if isinstance(value, int) else np.bytes_(value)
    with open(path, "r+b") as file:
        content = file.read()
        line = f"wpo-groups 1 sha256={hashlib.sha256(content[512:]).hexdigest()} bytes={len(content)}\n"
        file.seek(0)
        file.write(line.encode().ljust(512, b"\0"))


def read_groups(path):
    with h5py.File(path, "r") as file:
        prompts = np.split(file["prompt/tokens"][:], file["prompt/offset"][1:-1])
        completions = np.split(file["completion/tokens"][:], file["completion/offset"][1:-1])
        first = file["group/first"][:]
    return [(prompts[g], completions[first[g]:first[g + 1]]) for g in range(len(prompts))]
