"""A small Llama in NumPy: samples answers from a Hugging Face folder, and scores given ones on the same path.

Rows of any prompt length go through the model one position at a time: at a position inside its prompt a row
is fed the prompt's token, after it the token that it drew. So there is no padding and no mask, only a cache
of keys and values. `wpo eval` is the oracle: the log-probability of every held-out completion must agree
(experiment.py checks it).
"""

import json
import os

import numpy as np

BEGIN, END = 1, 2


def read_safetensors(path):
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        body = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: {name} is {entry['dtype']}; export the model with --dtype float32")
        first, last = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[first:last], np.float32).reshape(entry["shape"])
    return tensors


class Policy:
    def __init__(self, folder):
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as file:
            self.index = json.load(file)["model"]["vocab"]
        self.words = list(self.index)
        tensors = read_safetensors(os.path.join(folder, "model.safetensors"))
        self.heads = config["num_attention_heads"]
        self.size = config["hidden_size"] // self.heads
        self.epsilon = np.float32(config["rms_norm_eps"])
        if config["num_key_value_heads"] != self.heads or not config["tie_word_embeddings"]:
            raise ValueError(f"{folder}: this reads the small world's model alone")
        self.embedding = tensors["model.embed_tokens.weight"]
        self.norm = tensors["model.norm.weight"]
        self.layers = []
        for index in range(config["num_hidden_layers"]):

            def get(name, index=index):
                return tensors[f"model.layers.{index}.{name}.weight"]

            qkv = np.concatenate([get(f"self_attn.{name}_proj") for name in "qkv"])
            mlp = np.concatenate([get("mlp.gate_proj"), get("mlp.up_proj")])
            self.layers.append(
                (
                    get("input_layernorm"),
                    qkv.T.copy(),
                    get("self_attn.o_proj").T.copy(),
                    get("post_attention_layernorm"),
                    mlp.T.copy(),
                    get("mlp.down_proj").T.copy(),
                )
            )
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.frequency = theta ** (-np.arange(0, self.size, 2) / self.size)

    def encode(self, prompt):
        return [BEGIN] + [self.index[word] for word in prompt.split()]

    def decode(self, tokens):
        return " ".join(self.words[token] for token in tokens if token != END)

    def rms(self, x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + self.epsilon) * scale

    def turn(self, x, position):
        angle = np.concatenate([position * self.frequency] * 2)
        half = self.size // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
        return x * np.cos(angle).astype(np.float32) + turned * np.sin(angle).astype(np.float32)

    def step(self, tokens, position, cache):
        """Log-probabilities [rows, vocabulary] of what follows. cache holds keys and values of each layer,
        [rows, heads, positions, size], and is added to at this position."""
        x = self.embedding[tokens]
        rows = len(tokens)
        for (norm, qkv, out, norm_mlp, gate_up, down), (keys, values) in zip(self.layers, cache):
            q, k, v = (self.rms(x, norm) @ qkv).reshape(rows, 3, self.heads, self.size).transpose(1, 0, 2, 3)
            keys[:, :, position] = self.turn(k, position)
            values[:, :, position] = v
            q = self.turn(q, position) / np.float32(np.sqrt(self.size))
            score = np.matmul(keys[:, :, : position + 1], q[..., None])[..., 0]
            score = np.exp(score - score.max(-1, keepdims=True))
            score /= score.sum(-1, keepdims=True)
            mixed = np.matmul(score[:, :, None], values[:, :, : position + 1])[:, :, 0]
            x = x + mixed.reshape(rows, -1) @ out
            gate, up = np.split(self.rms(x, norm_mlp) @ gate_up, 2, -1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ down
        z = self.rms(x, self.norm) @ self.embedding.T
        z -= z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    def new_cache(self, rows, length):
        shape = (rows, self.heads, length, self.size)
        return [[np.zeros(shape, np.float32), np.zeros(shape, np.float32)] for _ in self.layers]

    def walk(self, prompts, choose, longest):
        """Completions, as token lists, of token-id prompts. choose(rows, counts, logp) gives the next token
        of each row whose prompt is over, counts being how many its completion has."""
        order = np.array([len(prompt) for prompt in prompts])
        length = int(order.max()) + longest
        fed = np.full((len(prompts), int(order.max())), END)
        for row, prompt in enumerate(prompts):
            fed[row, : len(prompt)] = prompt
        done = [[] for _ in prompts]
        live = np.arange(len(prompts))
        cache = self.new_cache(len(prompts), length)
        tokens = fed[:, 0]
        for position in range(length):
            logp = self.step(tokens, position, cache)
            tokens = fed[live, position + 1] if position + 1 < fed.shape[1] else np.full(len(live), END)
            open_ = order[live] <= position + 1
            if open_.any():
                rows = live[open_]
                chosen = choose(rows, position + 1 - order[rows], logp[open_])
                tokens[open_] = chosen
                for row, token in zip(rows, chosen):
                    done[row].append(int(token))
                keep = ~open_ | ((tokens != END) & (position + 1 - order[live] < longest - 1))
                if not keep.any():
                    break
                live, tokens = live[keep], tokens[keep]
                if not keep.all():
                    cache = [[part[keep] for part in pair] for pair in cache]
        return done

    def sample(self, prompts, uniforms, batch=512):
        """A completion of each prompt at temperature 1, drawn by the row's own numbers [rows, longest] from
        0 to 1, so that two models with the same numbers are compared on the same luck. Returns token lists;
        an answer that was cut lacks </s>."""
        done = []
        encoded = [self.encode(prompt) for prompt in prompts]
        for first in range(0, len(prompts), batch):
            luck = uniforms[first : first + batch]

            def choose(rows, counts, logp, luck=luck):
                ladder = np.cumsum(np.exp(logp, dtype=np.float64), -1)
                drawn = luck[rows, counts] * ladder[:, -1]
                return (ladder <= drawn[:, None]).sum(-1).clip(max=logp.shape[1] - 1)

            done += self.walk(encoded[first : first + batch], choose, luck.shape[1])
        return done

    def score(self, prompts, completions):
        """Summed log-probability of each completion, its </s> counted, on the path that samples."""
        given = [[self.index[word] for word in text.split()] + [END] for text in completions]
        total = np.zeros(len(given))

        def choose(rows, counts, logp):
            tokens = np.array([given[row][count] for row, count in zip(rows, counts)])
            total[rows] += logp[np.arange(len(rows)), tokens]
            return tokens

        self.walk([self.encode(prompt) for prompt in prompts], choose, max(len(tokens) for tokens in given))
        return total
