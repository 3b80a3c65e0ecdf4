"""Small tokenizers, models and rows for the tests of launcher/text, and a way to run `wpo prepare`."""

import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PREPARE = os.path.join(ROOT, "launcher", "text", "prepare.py")
sys.path.insert(0, os.path.join(ROOT, "launcher"))
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "the sky is blue and the sea is deep", "a user asks: what is the colour of the sky?", "hello there, hello world",
    "one two three four five six seven", "assistant: it is blue.\n", "system prompt\n\nbe kind", "  indented text  here",
    "straße café naïve", "the end of the theme, then these three", "No.\nYes.\n",
]  # fmt: skip

BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}\n"
    "    {% if loop.index0 > 40 %}{% break %}{% endif %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# The generation prompt opens a thought that the finished conversation does not have.
THOUGHT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] <think>{% endif %}"
)


def byte_tokens():
    return [f"<0x{byte:02X}>" for byte in range(256)]


def fallback_tokenizer(size=400, normalizer="prepend", bos=True):
    """A SentencePiece-like BPE with byte fallback, trained here on CORPUS."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens()], show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab=model["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if normalizer == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return tokenizer


def bytelevel_tokenizer(size=420, bos=None):
    """A GPT-like byte-level BPE, trained here on CORPUS. `bos` names a token put in front of every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def letters_tokenizer(merges=(), bos=True):
    """Ids that can be worked out by hand: 0 <unk>, 1 <s>, 2 </s>, 3.. the characters of LETTERS, then the merges."""
    pieces = ["<unk>", "<s>", "</s>", *LETTERS]
    pieces += [a + b for a, b in merges]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)}, merges=list(merges), unk_token="<unk>"
        )
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


LETTERS = "abcdefgh :?.U"  # a = 3, b = 4, ... h = 10, space = 11, : = 12, ? = 13, . = 14, U = 15


def ids_of(text):
    return [3 + LETTERS.index(letter) for letter in text]


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


def write_model(folder, tokenizer, model_type="llama", vocabulary=None, template=None, **settings):
    """A model folder without weights."""
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    size = tokenizer.get_vocab_size() if vocabulary is None else vocabulary
    write_json(
        os.path.join(folder, "config.json"),
        {"model_type": model_type, "vocab_size": size, "max_position_embeddings": 4096, "hidden_size": 8,
         "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8},
    )  # fmt: skip
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    values.update(settings)
    if template is not None:
        values["chat_template"] = template
    write_json(
        os.path.join(folder, "tokenizer_config.json"), {k: v for k, v in values.items() if v is not None}
    )
    return folder


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    return path


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def prepare(model, data, out, *options):
    """Runs `wpo prepare`; returns (exit code, standard output, standard error)."""
    data = [data] if isinstance(data, str) else data
    words = ["--model", model, "--data", *data, "--out", out, *map(str, options)]
    done = subprocess.run([sys.executable, PREPARE, *words], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


LETTERS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'U:' if m['role'] == 'user' else 'a:' }}{{ m['content'] }}"
    "{{ '' if m['role'] == 'user' else eos_token }}{% endfor %}{{ 'a:' if add_generation_prompt else '' }}"
)


def run_tests(names):
    """Runs every test_* function of a module's globals(), each in a folder of its own."""
    import tempfile

    tests = {name: test for name, test in names.items() if name.startswith("test_")}
    assert tests
    for name, test in tests.items():
        with tempfile.TemporaryDirectory() as folder:
            test(folder)
        print(f"ok: {name}")
