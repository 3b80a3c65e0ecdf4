#!/usr/bin/env python3
"""Writes a groups file of synthetic preference pairs: random token ids, lengths as asked.

    make_pairs.py --vocabulary 49152 --pairs 8 --prompt 256 --chosen 256 --rejected 256 --out pairs.h5

A length is a number or a range LOW:HIGH, drawn anew for every pair. The same options give the same token ids. The
file says in its attributes that no text and no tokenizer stand behind it.
"""

import argparse
import hashlib
import json
import os
import sys

try:
    import h5py
    import numpy
except ImportError as error:
    sys.exit(f"make_pairs.py needs the Python package {error.name}: run it with the project's .venv/bin/python")

USER_BLOCK = 512
CHUNK = 16384


def parse_length(text):
    low, _, high = text.partition(":")
    low, high = int(low), int(high or low)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"'{text}' is not a length >= 1 or a range LOW:HIGH")
    return low, high


def offsets(lengths):
    return numpy.concatenate(([0], numpy.cumsum(lengths))).astype("int64")


def write_groups(path, datasets, attributes):
    """Writes under a temporary name, seals the user block with the hash of what follows it, then renames."""
    part = f"{path}.part"
    with h5py.File(part, "w", libver=("v110", "v110"), userblock_size=USER_BLOCK) as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, chunks=(min(CHUNK, len(values)),), fletcher32=True)
        for name, value in attributes.items():
            file.attrs[name] = numpy.bytes_(value) if isinstance(value, str) else numpy.int64(value)
    with open(part, "r+b") as file:
        file.seek(USER_BLOCK)
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        seal = f"wpo-groups 1 sha256={digest.hexdigest()} bytes={file.tell()}\n".encode("ascii")
        file.seek(0)
        file.write(seal.ljust(USER_BLOCK, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def main():
    parser = argparse.ArgumentParser(description="Write a groups file of synthetic preference pairs.")
    parser.add_argument("--vocabulary", type=int, required=True, help="token ids are below this")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompt", type=parse_length, default=(256, 256), help="tokens, or LOW:HIGH (256)")
    parser.add_argument("--chosen", type=parse_length, default=(256, 256), help="tokens, or LOW:HIGH (256)")
    parser.add_argument("--rejected", type=parse_length, default=(256, 256), help="tokens, or LOW:HIGH (256)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    if options.vocabulary < 2 or options.pairs < 1:
        parser.error("--vocabulary must be at least 2 and --pairs at least 1")

    random = numpy.random.default_rng(options.seed)

    def draw(length_range, count):
        return random.integers(length_range[0], length_range[1] + 1, count)

    pairs = options.pairs
    prompts = draw(options.prompt, pairs)
    completions = numpy.stack((draw(options.chosen, pairs), draw(options.rejected, pairs)), axis=1)
    longest = int((prompts + completions.max(axis=1)).max())
    datasets = {
        "prompt/tokens": random.integers(0, options.vocabulary, int(prompts.sum())).astype("int32"),
        "prompt/offset": offsets(prompts),
        "completion/tokens": random.integers(0, options.vocabulary, int(completions.sum())).astype("int32"),
        "completion/offset": offsets(completions.ravel()),
        "group/first": numpy.arange(0, 2 * pairs + 1, 2, dtype="int64"),
        "group/row": numpy.arange(pairs, dtype="int64"),
    }
    attributes = {
        "format": "wpo-groups", "version": 1, "kind": "preference", "vocabulary": options.vocabulary,
        "max_length": longest, "truncation": "keep_start", "tokenizer_sha256": "none",
        "chat_template_sha256": "none", "source": f"synthetic, seed {options.seed}", "source_sha256": "none",
        "summary": json.dumps({"pairs": pairs, "prompt_tokens": int(prompts.sum()),
                               "completion_tokens": int(completions.sum())}),
    }
    write_groups(options.out, datasets, attributes)
    print(f"{options.out}: {pairs} pairs, {int(prompts.sum() + completions.sum())} tokens, longest sequence {longest}")


if __name__ == "__main__":
    main()
