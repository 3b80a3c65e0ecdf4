"""Ids against TRL's own code, where TRL and Transformers are importable (skipped, visibly, elsewhere)."""

import json
import logging
import os
import random
import sys
import tempfile
from types import SimpleNamespace

import fixtures
from fixtures import assistant, user

try:
    import datasets
    import transformers
    import trl
    from trl.data_utils import maybe_extract_prompt
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

from text.groups_file import Groups

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
logging.disable(logging.WARNING)
WORDS = [
    "the",
    "sky",
    " is",
    "blue",
    "straße",
    "\n",
    "  ",
    "hello",
    "?",
    "é😀",
    "</s>",
    "<s>",
    "three",
    "",
    "\t",
    ".",
    "1984",
]
compared = 0


def speak(random, least=0):
    return "".join(random.choice(["", " "]) + random.choice(WORDS) for _ in range(random.randint(least, 14)))


def preference_rows(seed, count, chat):
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        if chat:
            prompt = [user(speak(dice, 1))]
            if dice.random() < 0.3:
                prompt = [{"role": "system", "content": speak(dice, 1)}] + prompt
            if dice.random() < 0.3:
                prompt += [assistant(speak(dice, 1)), user(speak(dice, 1))]
            rows.append(
                {
                    "prompt": prompt,
                    "chosen": [assistant(speak(dice, 1))],
                    "rejected": [assistant(speak(dice, 1))],
                }
            )
        else:
            rows.append({"prompt": speak(dice, 1), "chosen": speak(dice), "rejected": speak(dice)})
    return rows


def trainer(tokenizer, **values):
    return SimpleNamespace(_tokenizer=tokenizer, chat_template=None, completion_only_loss=True, **values)


def arguments(max_length, truncation):
    return SimpleNamespace(
        dataset_num_proc=None, max_length=max_length, truncation_mode=truncation, dataset_text_field="text",
        assistant_only_loss=False, per_device_train_batch_size=2, desirable_weight=1.0, undesirable_weight=1.0,
        shuffle_dataset=False,
    )  # fmt: skip


def sequences(input_ids, attention_mask, mask):
    """[(prompt ids, completion ids)] of a collated batch."""
    result = []
    for ids, seen, wanted in zip(input_ids.tolist(), attention_mask.tolist(), mask.tolist()):
        ids = ids[: sum(seen)]
        split = len(ids) - sum(wanted)
        result.append((ids[:split], ids[split:]))
    return result


def with_index(rows):
    return datasets.Dataset.from_list([{**row, "index": i} for i, row in enumerate(rows)])


def dpo(rows, tokenizer, max_length, truncation):
    dataset = with_index(rows)
    if "prompt" in rows[0] and isinstance(rows[0]["prompt"], str) and isinstance(rows[0]["chosen"], list):
        # DPOTrainer itself stops at a text prompt beside conversations; this is TRL's function for such data.
        dataset = datasets.Dataset.from_list(
            [{**maybe_extract_prompt(row), "index": i} for i, row in enumerate(rows)]
        )
    args = arguments(max_length, truncation)
    ready = DPOTrainer._prepare_dataset(trainer(tokenizer), dataset, tokenizer, args, "train")
    collate = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode=truncation)
    result = {}
    for row in ready:
        batch = collate([row])
        result[row["index"]] = sequences(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
        )
    return result


def sft(rows, tokenizer, max_length, truncation):
    args = arguments(max_length, truncation)
    ready = SFTTrainer._prepare_dataset(
        trainer(tokenizer), with_index(rows), tokenizer, args, False, None, "train"
    )
    result = {}
    for row in ready:
        split = sum(label == -100 for label in row["labels"])
        result[row["index"]] = [(row["input_ids"][:split], row["input_ids"][split:])]
    return result


def kto(rows, tokenizer, max_length, truncation):
    args = arguments(max_length, truncation)
    fake = trainer(tokenizer, calculate_KL=False, desirable_weight=1.0, undesirable_weight=1.0)
    ready = KTOTrainer._prepare_dataset(fake, with_index(rows), tokenizer, args, "train")
    collate = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=max_length)
    result = {}
    for row in ready:
        batch = collate([row])
        result[row["index"]] = sequences(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
        )
    return result


def compare(name, model, rows, theirs, max_length, truncation="keep_start"):
    """Every group we keep equals TRL's row; every row we drop is one that TRL drops or that has an empty part."""
    global compared
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    expected = theirs(rows, tokenizer, max_length, truncation)
    with tempfile.TemporaryDirectory() as folder:
        data = fixtures.write_rows(os.path.join(folder, "rows.jsonl"), rows)
        out = os.path.join(folder, "rows.h5")
        code, _, errors = fixtures.prepare(
            model, data, out, "--max_length", max_length, "--truncation", truncation
        )
        assert code == 0, (name, errors)
        groups = Groups(out)
    shared = 0
    for row, prompt, completions in zip(groups.rows, groups.prompts, groups.completions):
        want = expected.pop(row)
        have = [(prompt, ids) for ids in completions]
        if truncation == "keep_end" and have != want:
            # Separate sequences lose different ends of the prompt; the group keeps what both keep.
            assert [ids for _, ids in want] == completions, (name, row)
            assert all(whole[len(whole) - len(prompt) :] == prompt for whole, _ in want), (name, row)
            assert min(len(whole) for whole, _ in want) == len(prompt), (name, row)
            shared += 1
            continue
        assert have == want, (name, row, rows[row], have, want)
        compared += len(have)
    for row, want in expected.items():
        assert any(not prompt or not ids for prompt, ids in want), (name, row, "dropped by us alone", want)
    assert shared == 0 or shared == groups.summary["differs_from_separate_sequences"]
    print(f"ok: {name}: {len(groups)} of {len(rows)} groups, {groups.summary['boundary_mismatches']} mismatches, "
          f"{len(expected)} empty, {shared} shared")  # fmt: skip


def compare_many(name, model, rows, max_length):
    """Groups of three, which TRL has not: each prompt with one completion equals TRL's sequence for that completion
    alone. Where it begins is the group's matter: at the earliest place of the three."""
    global compared
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    parts = ("chosen", "rejected", "sampled")
    rows = [{**row, "sampled": rows[index - 1]["chosen"]} for index, row in enumerate(rows)]
    ranked = [
        {"prompt": row["prompt"], "completions": [row[part] for part in parts], "scores": [2, 1, 3]} for row in rows
    ]  # best first: sampled, chosen, rejected
    alone = [{"prompt": row["prompt"], "completion": row[part]} for row in rows for part in parts]
    expected = sft(alone, tokenizer, max_length, "keep_start")
    for form, data, order in (("sampled", rows, (0, 1, 2)), ("ranked", ranked, (2, 0, 1))):
        with tempfile.TemporaryDirectory() as folder:
            path = fixtures.write_rows(os.path.join(folder, "rows.jsonl"), data)
            out = os.path.join(folder, "rows.h5")
            code, _, errors = fixtures.prepare(model, path, out, "--max_length", max_length)
            assert code == 0, (name, errors)
            groups = Groups(out)
        assert groups.attributes["form"] == form and len(groups) > len(rows) // 3, (name, form, len(groups))
        for row, prompt, completions in zip(groups.rows, groups.prompts, groups.completions):
            for place, ids in zip(order, completions, strict=True):
                if 3 * row + place in expected:  # TRL drops what has no room of its own, not of the group's
                    (want,) = expected[3 * row + place]
                    assert prompt + ids == want[0] + want[1] and len(prompt) <= len(want[0]), (name, form, row, place)
                    compared += 1
        for row in set(range(len(rows))) - set(groups.rows):
            wants = [want for place in order for want in expected.get(3 * row + place, [])]
            assert len(wants) < 3 or any(not prompt or not ids for prompt, ids in wants), (name, form, row)
        print(f"ok: {name} {form}: {len(groups)} of {len(rows)} groups of three")


FAMILIES = [  # shape of tokenizer.json, model_type, tokenizer_class, legacy
    ("prepend", "llama", "PreTrainedTokenizerFast", None), ("prepend", "llama", "LlamaTokenizer", True),
    ("prepend", "llama", "LlamaTokenizerFast", False), ("metaspace", "llama", "LlamaTokenizer", True),
    ("metaspace", "llama", None, None), ("prepend", "mistral", "LlamaTokenizer", True),
    ("metaspace", "mistral", "LlamaTokenizerFast", False),
]  # fmt: skip
LEVELS = [  # model_type, tokenizer_class, BOS in front of texts
    ("llama", "PreTrainedTokenizerFast", "<|begin|>"), ("llama", "LlamaTokenizer", "<|begin|>"),
    ("qwen2", "Qwen2Tokenizer", None), ("qwen2", "PreTrainedTokenizerFast", None), ("llama", "Qwen2Tokenizer", None),
]  # fmt: skip
# Tokens that tokenizer.json lacks or has with other flags, in the places where Transformers looks for them.
ADDED = {
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True, "rstrip": True}, "400": {"content": "hello", "lstrip": True, "special": False},
    },
    "extra_special_tokens": ["three"], "think_token": "blue",
}  # fmt: skip
MAPPED = {
    "bos_token": {"content": "<s>", "lstrip": True},
    "additional_special_tokens": ["blue"],
    "eos_token": "hello",
}


def synthetic(folder):
    """{name: model folder} over the ways in which Transformers 5 can load a tokenizer."""
    models, templates = {}, [fixtures.BOS_TEMPLATE, fixtures.THOUGHT_TEMPLATE]
    shapes = {shape: fixtures.fallback_tokenizer(normalizer=shape) for shape in ("prepend", "metaspace")}

    def place(name):
        models[name] = os.path.join(folder, str(len(models)))
        return models[name]

    for number, (shape, family, declared, legacy) in enumerate(FAMILIES):
        path = place(f"{shape} {family} {declared} {legacy}")
        settings = {"template": templates[number % 2], "tokenizer_class": declared, "legacy": legacy}
        fixtures.write_model(path, shapes[shape], family, **settings)
    for declared in ("PreTrainedTokenizerFast", "LlamaTokenizer"):
        settings = {"template": templates[0], "tokenizer_class": declared, "vocabulary": 500}
        fixtures.write_model(place(f"added tokens {declared}"), shapes["prepend"], **settings, **ADDED)
        path = fixtures.write_model(place(f"token map {declared}"), shapes["metaspace"], **settings)
        fixtures.write_json(os.path.join(path, "special_tokens_map.json"), MAPPED)
    names = {"bos_token": "<|begin|>", "eos_token": "<|im_end|>", "unk_token": None}
    for family, declared, bos in LEVELS:
        path, tokenizer = place(f"bytelevel {family} {declared}"), fixtures.bytelevel_tokenizer(bos=bos)
        path = fixtures.write_model(path, tokenizer, family, tokenizer_class=declared, **names)
        with open(os.path.join(path, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(fixtures.CHATML_TEMPLATE)
    return models


def variants(rows):
    """The same preference rows as prompt-completion, unpaired, and with the prompt inside."""
    completion = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    unpaired = [{**row, "label": i % 3 != 0} for i, row in enumerate(completion)]
    implicit = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in rows]
    return completion, unpaired, implicit


def check_synthetic(folder):
    for seed, (name, model) in enumerate(synthetic(folder).items()):
        for chat in (False, True):
            label = f"{name} {'chat' if chat else 'text'}"
            rows = preference_rows(seed, 40, chat)
            completion, unpaired, implicit = variants(rows)
            compare(label, model, rows, dpo, 40)
            if seed % 3 == 0:
                compare(label + " keep_end", model, rows, dpo, 40, "keep_end")
                compare(label + " sft", model, completion, sft, 40)
                compare(label + " sft keep_end", model, completion, sft, 40, "keep_end")
                compare(label + " kto", model, unpaired, kto, 40)
                compare_many(label, model, rows, 48)
            if not chat:
                # TRL takes the last character for the prompt where two texts differ from the start; we do not.
                alike = [row for row in implicit if row["chosen"][:1] == row["rejected"][:1] != ""]
                compare(label + " implicit", model, alike, dpo, 40)
            elif seed % 3 == 1:
                compare(label + " implicit", model, implicit, dpo, 40)
                ultra = [
                    {"prompt": "text", "prompt_id": "x", "messages": row["chosen"], **row} for row in implicit
                ]
                compare(label + " ultrafeedback", model, ultra, dpo, 40)
                tools = json.dumps([{"name": "<f>", "description": "é"}])
                compare(label + " tools", model, [{**row, "tools": tools} for row in rows], dpo, 200)


def check_real(data):
    model = os.path.join(data, "stories260K")
    for file, max_length in (
        ("alpaca_pairs/train.jsonl", 512),
        ("alpaca_pairs/long.jsonl", 512),
        ("llmbar.jsonl", 256),
    ):
        with open(os.path.join(data, file), encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
        compare(f"{file} dpo", model, rows, dpo, max_length)
        compare(f"{file} dpo keep_end", model, rows, dpo, max_length, "keep_end")
        completion, unpaired, implicit = variants(rows)
        compare(f"{file} sft", model, completion, sft, max_length)
        compare_many(file, model, rows, max_length)
        compare(f"{file} kto", model, unpaired, kto, max_length)
        if isinstance(rows[0]["prompt"], list):
            compare(f"{file} implicit", model, implicit, dpo, max_length)


with tempfile.TemporaryDirectory() as folder:
    check_synthetic(folder)
data = os.environ.get("WPO_TEST_DATA")
if data:
    check_real(data)
print(f"{compared} sequences equal those of TRL {trl.__version__} on Transformers {transformers.__version__}")
