"""The models of peer_step.py: Transformers' where it is installed, else a plain Llama in torch. Both have
hidden(batch), the states after the last norm, and head_weight()."""

import json
import math
import os
import sys

import torch
import torch.nn.functional as F


def read_safetensors(folder):
    """All tensors of a folder as float32, without the safetensors package."""
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, name), "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            start = file.tell()
            for key, entry in header.items():
                if key == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                file.seek(start + begin)
                values = torch.frombuffer(bytearray(file.read(end - begin)), dtype=types[entry["dtype"]])
                tensors[key] = values.reshape(entry["shape"]).float()
    return tensors


class PlainLlama(torch.nn.Module):
    """Llama without Transformers: hidden states of a right-padded batch, causal, no RoPE scaling."""

    def __init__(self, folder, attention):
        super().__init__()
        with open(os.path.join(folder, "config.json")) as file:
            c = json.load(file)
        if c["model_type"] != "llama" or (c.get("rope_scaling") or c.get("rope_parameters", {})).get(
                "rope_type", "default") != "default":
            sys.exit(f"{folder}: without Transformers only Llama models with plain RoPE can be run")
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.groups = self.heads // c.get("num_key_value_heads", self.heads)
        self.size = c.get("head_dim") or c["hidden_size"] // self.heads
        self.epsilon = c["rms_norm_eps"]
        self.theta = (c.get("rope_parameters") or {}).get("rope_theta") or c.get("rope_theta", 10000.0)
        self.fused = attention == "sdpa" and hasattr(F, "scaled_dot_product_attention")
        self.names = {}
        for key, value in read_safetensors(folder).items():
            self.names[key] = key.replace(".", "_")
            self.register_parameter(self.names[key], torch.nn.Parameter(value))
        self.head_name = "model.embed_tokens.weight" if c.get("tie_word_embeddings") else "lm_head.weight"

    def weight(self, key):
        return getattr(self, self.names[key])

    def head_weight(self):
        return self.weight(self.head_name)

    def norm(self, x, key):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight(key)

    def rotate(self, x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)

    def attend(self, q, k, v):
        k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        future = torch.full(scores.shape[-2:], -math.inf).triu(1)
        return torch.softmax(scores + future, dim=-1) @ v

    def hidden(self, batch):
        x = F.embedding(batch["input_ids"], self.weight("model.embed_tokens.weight"))
        rows, length, _ = x.shape
        frequency = self.theta ** (-torch.arange(0, self.size, 2).float() / self.size)
        angle = torch.outer(torch.arange(length).float(), frequency)
        cos, sin = angle.cos(), angle.sin()
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."

            def project(y, name):
                return F.linear(y, self.weight(f"{prefix}{name}.weight"))

            y = self.norm(x, prefix + "input_layernorm.weight")
            q, k, v = (project(y, f"self_attn.{name}_proj").view(rows, length, -1, self.size).transpose(1, 2)
                       for name in "qkv")
            y = self.attend(self.rotate(q, cos, sin), self.rotate(k, cos, sin), v)
            x = x + project(y.transpose(1, 2).reshape(rows, length, -1), "self_attn.o_proj")
            y = self.norm(x, prefix + "post_attention_layernorm.weight")
            x = x + project(F.silu(project(y, "mlp.gate_proj")) * project(y, "mlp.up_proj"), "mlp.down_proj")
        return self.norm(x, "model.norm.weight")


class HubModel(torch.nn.Module):
    """The same two functions over a Transformers model."""

    def __init__(self, folder, attention):
        super().__init__()
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.inner = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)

    def head_weight(self):
        return self.inner.get_output_embeddings().weight

    def hidden(self, batch):
        return self.inner.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                                     use_cache=False).last_hidden_state


def load_model(folder, options):
    return (PlainLlama if options.plain else HubModel)(folder, options.attention)
