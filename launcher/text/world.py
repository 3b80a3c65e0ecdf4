"""The quickstart's small world: tasks on short lists, answers of every quality, and a reward that is known exactly.

A prompt asks for one of five things to be done to a list ("sort 7 2 9 ?"). An answer is right, has a slip, rambles on
after the right answer, or talks about something else; it may open politely. reward() reads prompt and answer as text
and gives a number from 0 to 1, so every preference in the files below follows from one function.

    python launcher/text/world.py --seed 1 --out runs/world

writes, always the same for the same seed:

    model/          config.json of a small Llama and a word-level tokenizer, for `wpo init`
    base.jsonl      prompt and completion, for supervised training: the base model learns all kinds of answer
    pairs.jsonl     prompt, chosen, rejected with scores: drawn from another mixture than base.jsonl, so off-policy
    heldout.jsonl   more such pairs, on prompts that stand in neither of the other files
"""
import argparse
import json
import os
import random
import sys

NOUNS = ("apple bell boat bread cat cloud corn door drum egg field fish goat hat hill key lamp leaf moon nest owl "
         "rain ring rope sand ship stone sun tree wolf").split()
NUMBERS = [str(number) for number in range(21)]
TASKS = {  # how it is asked, what it is asked about, what the right answer is
    "repeat": ("repeat", NOUNS, lambda items: items),
    "reverse": ("say backwards", NOUNS, lambda items: items[::-1]),
    "ends": ("first and last of", NOUNS, lambda items: [items[0], items[-1]]),
    "sort": ("sort", NUMBERS[1:], lambda items: sorted(items, key=int)),
    "next": ("add one to", NUMBERS[:-1], lambda items: [str(int(item) + 1) for item in items]),
}
SHORTEST, LONGEST = 3, 5  # items of a list

OPENINGS = ["with pleasure :", "here you are :"]
FILLERS = ["and there is more to say .", "but who can tell for sure .", "let me think once again .",
           "one thing leads to another ."]
ASIDES = ["i do not know .", "the weather is very fine today .", "why do you want to know that ?",
          "that is not what i want to talk about ."]

# Shares of the kinds of answer. The base model sees mostly poor ones and hardly any politeness; whoever made the
# preference pairs was better, and polite: to the base model these pairs are off-policy.
BASE_MIXTURE = {"right": 0.30, "slip": 0.20, "ramble": 0.35, "aside": 0.15}
PAIR_MIXTURE = {"right": 0.45, "slip": 0.25, "ramble": 0.20, "aside": 0.10}
BASE_POLITE, PAIR_POLITE = 0.15, 0.5
SMALLEST_GAP = 0.15  # between the rewards of a pair: nearer ones are not a preference

SPECIAL = ["<unk>", "<s>", "</s>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "initializer_range": 0.04,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32",
}


def read_prompt(prompt):
    """The task's name and the list's items, from the text of a prompt."""
    for name, (words, _, _) in TASKS.items():
        if prompt.startswith(words + " ") and prompt.endswith(" ?"):
            return name, prompt[len(words):-1].split()
    raise ValueError(f"not a prompt of the small world: {prompt!r}")


def right_answer(prompt):
    name, items = read_prompt(prompt)
    return TASKS[name][2](items)


def reward(prompt, answer):
    """0.8 for the share of items that are right and in their place, 0.2 for a polite opening of an answer with at least
    one right item, less 0.04 for every word after the answer's full stop; never below 0."""
    wanted = right_answer(prompt)
    text = answer.strip()
    opening = next((opening for opening in OPENINGS if text.startswith(opening + " ")), "")
    given, _, rest = text[len(opening):].partition(" .")
    given = given.split()
    share = sum(a == b for a, b in zip(given, wanted)) / max(len(given), len(wanted))
    polite = 0.2 if opening and share > 0 else 0.0
    return round(max(0.0, 0.8 * share + polite - 0.04 * len(rest.split())), 4)


def make_prompt(rng):
    words, things, _ = TASKS[rng.choice(list(TASKS))]
    return f"{words} {' '.join(rng.sample(things, rng.randint(SHORTEST, LONGEST)))} ?"


def make_slip(rng, prompt, items):
    """The items with one mistake: two neighbours exchanged, one replaced, or one left out."""
    items = list(items)
    place = rng.randrange(len(items) - 1)
    kind = rng.choice(["exchange", "replace", "drop"])
    if kind == "exchange":
        items[place], items[place + 1] = items[place + 1], items[place]
    elif kind == "replace":
        things = TASKS[read_prompt(prompt)[0]][1]
        items[place] = rng.choice([thing for thing in things if thing not in items])
    else:
        del items[place]
    return items


def make_answer(rng, prompt, mixture, polite):
    kind = rng.choices(list(mixture), weights=list(mixture.values()))[0]
    if kind == "aside":
        return " " + rng.choice(ASIDES)
    items = right_answer(prompt)
    if kind == "slip":
        items = make_slip(rng, prompt, items)
    parts = [rng.choice(OPENINGS)] if rng.random() < polite else []
    parts += [*items, "."]
    if kind == "ramble":
        parts += rng.sample(FILLERS, rng.randint(1, 2))
    return " " + " ".join(parts)


def make_base(rng, prompt):
    answer = make_answer(rng, prompt, BASE_MIXTURE, BASE_POLITE)
    return {"prompt": prompt, "completion": answer, "score": reward(prompt, answer)}


def make_pair(rng, prompt):
    while True:
        answers = [make_answer(rng, prompt, PAIR_MIXTURE, PAIR_POLITE) for _ in range(2)]
        scored = sorted(((reward(prompt, answer), answer) for answer in answers), reverse=True)
        if scored[0][0] - scored[1][0] >= SMALLEST_GAP:
            break
    return {"prompt": prompt, "chosen": scored[0][1], "rejected": scored[1][1],
            "score_chosen": scored[0][0], "score_rejected": scored[1][0]}


def make_rows(seed, counts):
    """base, pairs and heldout rows. No prompt is used twice, so what is held out was never trained on."""
    rng = random.Random(seed)
    prompts = {}
    while len(prompts) < sum(counts.values()):
        prompts[make_prompt(rng)] = None
    prompts = iter(list(prompts))
    makers = {"base": make_base, "pairs": make_pair, "heldout": make_pair}
    return {name: [makers[name](rng, next(prompts)) for _ in range(count)] for name, count in counts.items()}


def vocabulary():
    texts = [words for words, _, _ in TASKS.values()] + OPENINGS + FILLERS + ASIDES + NOUNS + NUMBERS + ["? ."]
    return SPECIAL + sorted({word for text in texts for word in text.split()})


def tokenizer_files(words):
    """tokenizer.json and tokenizer_config.json of a tokenizer whose tokens are the words between spaces."""
    added = [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, token in enumerate(SPECIAL)]
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "TemplateProcessing", "single": [begin, first], "pair": [begin, first, second],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: index for index, word in enumerate(words)},
                  "unk_token": "<unk>"},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
                "eos_token": "</s>", "pad_token": "</s>", "model_max_length": CONFIG["max_position_embeddings"],
                "clean_up_tokenization_spaces": False}
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_world(seed, counts, out):
    model = os.path.join(out, "model")
    os.makedirs(model, exist_ok=True)
    words = vocabulary()
    for name, value in tokenizer_files(words).items():
        write_json(os.path.join(model, name), value)
    write_json(os.path.join(model, "config.json"), CONFIG | {"vocab_size": len(words)})
    for name, rows in make_rows(seed, counts).items():
        with open(os.path.join(out, f"{name}.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main():
    parser = argparse.ArgumentParser(prog="world.py", description="Writes the quickstart's small world.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--base", type=int, default=16000, help="rows for supervised training")
    parser.add_argument("--pairs", type=int, default=4000, help="preference pairs for training")
    parser.add_argument("--heldout", type=int, default=500, help="preference pairs held out")
    options = parser.parse_args()
    counts = {"base": options.base, "pairs": options.pairs, "heldout": options.heldout}
    if min(counts.values()) < 1 or sum(counts.values()) > 100000:
        parser.error("--base, --pairs and --heldout must be at least 1, and 100000 together at most")
    try:
        write_world(options.seed, counts, options.out)
    except OSError as error:
        sys.exit(f"world.py: cannot write {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
