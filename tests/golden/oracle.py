"""The model in plain mathematics: an independent reference in float64, for the tests.

Every sequence stands alone (prompt + completion; no packing, no shared prefix, no chunks), every array is float64,
every sum is NumPy's own, and the reverse pass is written out by hand below its forward. Nothing here is shared with
the program, so where both agree, both are right. Slow and small by intent: a few thousand tokens of a toy model.

A model is its config.json as a dict and its tensors under Hugging Face's names. Shapes: n tokens, C width, H query
heads, K key heads, D head size, F hidden, V vocabulary."""

import json
import math
import os
import struct

# Small products on a busy machine: threads that wait for each other make NumPy ten times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402

# -- files ------------------------------------------------------------------------------------------------------------


def bits_to_float64(raw, dtype):
    """Stored numbers, widened: every F32, BF16 and F16 value is a float64 value, so this is exact."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float64)


def float64_to_bits(values, dtype):
    """The nearest stored numbers (ties to even), as bytes."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def read_safetensors(path):
    """{name: array}: eight bytes of header length, a JSON header, then the data that its offsets point into."""
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = bits_to_float64(data[begin:end], entry["dtype"]).reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors, dtype="F32"):
    header, blobs, position = {"__metadata__": {"format": "pt"}}, [], 0
    for name, values in tensors.items():
        blobs.append(float64_to_bits(values, dtype))
        header[name] = {"dtype": dtype, "shape": list(values.shape),
                        "data_offsets": [position, position + len(blobs[-1])]}
        position += len(blobs[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


# -- the model --------------------------------------------------------------------------------------------------------


class Model:
    """config: config.json as a dict; weights: {name: float64 array}."""

    def __init__(self, config, weights=None):
        self.config = config
        self.family = config["model_type"]
        if self.family not in ("llama", "mistral", "qwen2"):
            raise ValueError(f"model_type {self.family}")
        self.width = config["hidden_size"]
        self.layers = config["num_hidden_layers"]
        self.heads = config["num_attention_heads"]
        self.key_heads = config.get("num_key_value_heads") or self.heads
        self.head_size = config.get("head_dim") or self.width // self.heads
        self.hidden = config["intermediate_size"]
        self.vocabulary = config["vocab_size"]
        self.epsilon = config.get("rms_norm_eps", 1e-6)
        self.tied = config.get("tie_word_embeddings", False)
        self.biased = self.family == "qwen2"
        self.window = window_of(config)
        self.weights = weights

    def names(self):
        """Every parameter, in the order in which the program keeps them."""
        names = ["model.embed_tokens.weight"]
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            names += [prefix + "input_layernorm.weight"]
            names += [prefix + f"self_attn.{which}_proj.weight" for which in "qkvo"]
            names += [prefix + "post_attention_layernorm.weight"]
            names += [prefix + f"mlp.{which}_proj.weight" for which in ("gate", "up", "down")]
            if self.biased:
                names += [prefix + f"self_attn.{which}_proj.bias" for which in "qkv"]
        return names + ["model.norm.weight"] + ([] if self.tied else ["lm_head.weight"])

    def shape(self, name):
        query, key = self.heads * self.head_size, self.key_heads * self.head_size
        part = name.split(".")[-2]
        if name.endswith(".bias"):
            return ({"q_proj": query, "k_proj": key, "v_proj": key}[part],)
        return {"embed_tokens": (self.vocabulary, self.width), "lm_head": (self.vocabulary, self.width),
                "q_proj": (query, self.width), "k_proj": (key, self.width), "v_proj": (key, self.width),
                "o_proj": (self.width, query), "gate_proj": (self.hidden, self.width),
                "up_proj": (self.hidden, self.width), "down_proj": (self.width, self.hidden)}.get(part, (self.width,))

    def head(self):
        return "model.embed_tokens.weight" if self.tied else "lm_head.weight"

    def layer(self, index):
        """The tensors of one layer under short names: norm, q, k, v, o, mlp_norm, gate, up, down."""
        prefix = f"model.layers.{index}."
        return {"norm": prefix + "input_layernorm.weight", "mlp_norm": prefix + "post_attention_layernorm.weight",
                **{which: prefix + f"self_attn.{which}_proj.weight" for which in "qkvo"},
                **{which: prefix + f"mlp.{which}_proj.weight" for which in ("gate", "up", "down")}}

    def copy(self):
        return Model(self.config, {name: value.copy() for name, value in self.weights.items()})

    def zeros(self):
        return {name: np.zeros(self.shape(name)) for name in self.names()}


def window_of(config):
    """Number of positions that a query sees, itself included; None without a sliding window."""
    if config["model_type"] == "mistral":
        return config.get("sliding_window", 4096)
    if config["model_type"] == "qwen2" and config.get("use_sliding_window", False):
        if config.get("max_window_layers", 28) != 0:
            raise ValueError("layers with and without a window")
        return config.get("sliding_window", 4096)
    return None


def read_model(folder):
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    index = os.path.join(folder, "model.safetensors.index.json")
    tensors = {}
    if os.path.exists(index):
        with open(index) as file:
            shards = sorted(set(json.load(file)["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        tensors.update(read_safetensors(os.path.join(folder, shard)))
    model = Model(config)
    if model.tied:
        tensors.pop("lm_head.weight", None)
    if set(tensors) != set(model.names()):
        raise ValueError(f"{folder}: {set(tensors) ^ set(model.names())}")
    for name in model.names():
        if tensors[name].shape != model.shape(name):
            raise ValueError(f"{folder}: {name} is {tensors[name].shape}, not {model.shape(name)}")
    model.weights = {name: tensors[name] for name in model.names()}
    return model


def write_model(model, folder, dtype="F32"):
    """config.json and model.safetensors; the folder may hold tokenizer files already."""
    os.makedirs(folder, exist_ok=True)
    config = dict(model.config)
    config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[dtype]
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    write_safetensors(os.path.join(folder, "model.safetensors"), model.weights, dtype)


def flatten(model, tensors):
    return np.concatenate([tensors[name].ravel() for name in model.names()])


def unflatten(model, flat):
    tensors, position = {}, 0
    for name in model.names():
        count = math.prod(model.shape(name))
        tensors[name] = np.asarray(flat[position:position + count], dtype=np.float64).reshape(model.shape(name))
        position += count
    if position != len(flat):
        raise ValueError(f"{len(flat)} numbers for {position} parameters")
    return tensors


# -- layers, each with its reverse ------------------------------------------------------------------------------------


def rms_norm(x, weight, epsilon):
    scale = 1 / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + epsilon)
    return x * scale * weight, scale


def rms_norm_reverse(dy, x, weight, scale):
    """y = x s w, s = (mean x^2 + e)^(-1/2), ds/dx = -s^3 x / C."""
    g = dy * weight
    return scale * g - x * scale**3 * np.mean(g * x, axis=1, keepdims=True), np.sum(dy * x * scale, axis=0)


def rope_frequencies(model):
    """Radians per position of each pair: theta^(-2i/D), then the scaling of the config."""
    config = model.config
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    frequency = theta ** (-np.arange(0, model.head_size, 2) / model.head_size)
    if kind == "default":
        return frequency
    if kind == "linear":
        return frequency / rope["factor"]
    if kind != "llama3":
        raise ValueError(f"rope_type {kind}")
    # Turns over the original context: few turns (long waves) are slowed by `factor`, many turns are kept.
    turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * (kept + (1 - kept) / rope["factor"])


def rotate(x, angle):
    """x [n, heads, D]: dimension i and i + D/2 turn together by angle [n, D/2]."""
    cosine, sine = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    a, b = np.split(x, 2, axis=2)
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=2)


def attend(model, q, k, v):
    """q [n, H, D], k, v [n, K, D] after the rotation; returns [n, H, D] and what the reverse needs."""
    n, group = len(q), model.heads // model.key_heads
    position = np.arange(n)
    seen = position[None, :] <= position[:, None]
    if model.window:
        seen &= position[None, :] > position[:, None] - model.window
    q, k, v = (by_head(x) for x in (q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)))
    score = q @ k.transpose(0, 2, 1) / math.sqrt(model.head_size)
    score = np.where(seen, score, -np.inf)
    p = np.exp(score - score.max(axis=2, keepdims=True))
    p /= p.sum(axis=2, keepdims=True)
    return by_head(p @ v), (p, q, k, v)


def attend_reverse(model, d_out, saved):
    p, q, k, v = saved
    d_out = by_head(d_out)
    dp = d_out @ v.transpose(0, 2, 1)
    d_score = p * (dp - np.sum(p * dp, axis=2, keepdims=True)) / math.sqrt(model.head_size)
    fold = (len(dp[0]), model.key_heads, model.heads // model.key_heads, model.head_size)
    dk, dv = by_head(d_score.transpose(0, 2, 1) @ q), by_head(p.transpose(0, 2, 1) @ d_out)
    return by_head(d_score @ k), dk.reshape(fold).sum(axis=2), dv.reshape(fold).sum(axis=2)


def by_head(x):
    """[n, heads, D] to [heads, n, D], and back."""
    return x.transpose(1, 0, 2)


def logistic(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


# -- the whole model --------------------------------------------------------------------------------------------------


def forward(model, tokens):
    """Final hidden states [n, C] (after the last norm) of one sequence that starts at position 0, and a tape."""
    w, n = model.weights, len(tokens)
    angle = np.arange(n)[:, None] * rope_frequencies(model)[None, :]
    x = w["model.embed_tokens.weight"][tokens]
    tape = {"tokens": np.asarray(tokens), "angle": angle, "layers": []}
    for index in range(model.layers):
        name = model.layer(index)
        y, scale = rms_norm(x, w[name["norm"]], model.epsilon)
        q, k, v = ((y @ w[name[which]].T + (w[name[which].replace(".weight", ".bias")] if model.biased else 0))
                   .reshape(n, -1, model.head_size) for which in "qkv")
        attended, saved = attend(model, rotate(q, angle), rotate(k, angle), v)
        attended = attended.reshape(n, -1)
        middle = x + attended @ w[name["o"]].T
        z, mlp_scale = rms_norm(middle, w[name["mlp_norm"]], model.epsilon)
        gate, up = z @ w[name["gate"]].T, z @ w[name["up"]].T
        product = gate * logistic(gate) * up
        tape["layers"].append((x, scale, y, saved, attended, middle, mlp_scale, z, gate, up, product))
        x = middle + product @ w[name["down"]].T
    y, scale = rms_norm(x, w["model.norm.weight"], model.epsilon)
    tape["last"] = (x, scale)
    return y, tape


def reverse(model, tape, dy, gradients):
    """Adds to gradients what dy [n, C], the gradient of the final hidden states, gives to every parameter."""
    w, n = model.weights, len(dy)
    x, scale = tape["last"]
    dx, d_weight = rms_norm_reverse(dy, x, w["model.norm.weight"], scale)
    gradients["model.norm.weight"] += d_weight
    for index in reversed(range(model.layers)):
        name = model.layer(index)
        x, scale, y, saved, attended, middle, mlp_scale, z, gate, up, product = tape["layers"][index]
        gradients[name["down"]] += dx.T @ product
        d_product = dx @ w[name["down"]]
        s = logistic(gate)
        d_gate, d_up = d_product * up * s * (1 + gate * (1 - s)), d_product * gate * s
        gradients[name["gate"]] += d_gate.T @ z
        gradients[name["up"]] += d_up.T @ z
        d_middle, d_weight = rms_norm_reverse(d_gate @ w[name["gate"]] + d_up @ w[name["up"]], middle,
                                              w[name["mlp_norm"]], mlp_scale)
        gradients[name["mlp_norm"]] += d_weight
        dx = dx + d_middle
        gradients[name["o"]] += dx.T @ attended
        dq, dk, dv = attend_reverse(model, (dx @ w[name["o"]]).reshape(n, -1, model.head_size), saved)
        d_heads = {"q": rotate(dq, -tape["angle"]), "k": rotate(dk, -tape["angle"]), "v": dv}
        d_norm = 0
        for which, d_head in d_heads.items():
            d_head = d_head.reshape(n, -1)
            gradients[name[which]] += d_head.T @ y
            if model.biased:
                gradients[name[which].replace(".weight", ".bias")] += d_head.sum(axis=0)
            d_norm = d_norm + d_head @ w[name[which]]
        d_input, d_weight = rms_norm_reverse(d_norm, x, w[name["norm"]], scale)
        gradients[name["norm"]] += d_weight
        dx = dx + d_input
    np.add.at(gradients["model.embed_tokens.weight"], tape["tokens"], dx)


# -- scoring ----------------------------------------------------------------------------------------------------------


class Score:
    """What one completion's tokens say; per-token arrays, nats."""

    def __init__(self, logits, targets):
        logp = logits - logits.max(axis=1, keepdims=True)
        logp -= np.log(np.exp(logp).sum(axis=1, keepdims=True))
        rows = np.arange(len(targets))
        self.count = len(targets)
        self.p = np.exp(logp)
        self.targets = np.asarray(targets)
        self.logp = logp[rows, targets]                       # log p(y_t)
        self.square = np.log(np.sum(self.p**2, axis=1))       # log sum_v p_v^2
        self.maximum = logp.max(axis=1)                       # log max_v p_v
        self.entropy = -np.sum(self.p * logp, axis=1)
        self.logits = logits.mean(axis=1)
        self.hits = logp[rows, targets] == self.maximum

    def d_logits(self, coefficient):
        """Gradient of sum_t coefficient_t log p(y_t)."""
        d = -self.p * np.broadcast_to(coefficient, self.count)[:, None]
        d[np.arange(self.count), self.targets] += coefficient
        return d


def score(model, prompt, completion):
    """Scores the completion after the prompt; returns the Score and a tape for score_reverse."""
    tokens = np.concatenate([prompt, completion]).astype(np.int64)
    hidden, tape = forward(model, tokens)
    tape["scored"] = hidden[len(prompt) - 1:-1]
    result = Score(tape["scored"] @ model.weights[model.head()].T, tokens[len(prompt):])
    return result, tape


def score_reverse(model, result, tape, coefficient, gradients):
    """Adds the gradient of sum_t coefficient_t log p(y_t)."""
    d_logits = result.d_logits(coefficient)
    gradients[model.head()] += d_logits.T @ tape["scored"]
    dy = np.zeros((len(tape["tokens"]), model.width))
    dy[len(dy) - 1 - result.count:-1] = d_logits @ model.weights[model.head()]
    reverse(model, tape, dy, gradients)


def greedy(model, prompt, count):
    """The most likely tokens one after the other: a completion with a weight above one."""
    tokens = list(prompt)
    for _ in range(count):
        hidden, _ = forward(model, np.array(tokens))
        tokens.append(int(np.argmax(hidden[-1] @ model.weights[model.head()].T)))
    return np.array(tokens[len(prompt):])
