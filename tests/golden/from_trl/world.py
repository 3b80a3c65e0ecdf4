"""The inputs of the golden cases, made again from inputs.json: models, groups and labels. NumPy only."""

import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
import inputs  # noqa: E402
import oracle  # noqa: E402


def read_description():
    with open(os.path.join(HERE, "inputs.json"), encoding="utf-8") as file:
        return json.load(file)


def checksum(model):
    """SHA-256 of the weights as float32, tensors in the order of the program's parameter table."""
    return hashlib.sha256(oracle.flatten(model, model.weights).astype("<f4").tobytes()).hexdigest()


def tokens_checksum(pairs):
    return hashlib.sha256(json.dumps([[list(map(int, part)) for part in (prompt, *completions)]
                                      for prompt, completions in pairs]).encode()).hexdigest()


def models(world, data=None):
    """(policy, reference) of one world of inputs.json; data: the folder of real test inputs."""
    if "checkpoint" in world:
        reference = oracle.read_model(os.path.join(data, world["checkpoint"]))
    else:
        reference = oracle.Model(inputs.CONFIGS[world["config"]])
        reference.weights = inputs.random_weights(reference, world["reference_seed"])
    return inputs.perturbed(reference, world["policy_seed"], world["policy_distance"]), reference


def unpaired(world, pairs):
    """Labelled completions of the pairs: groups of one completion, and their labels (side 0 is desirable)."""
    groups = [(pairs[pair][0], [pairs[pair][1][side]]) for pair, side in world["unpaired"]]
    return groups, [1 - side for _, side in world["unpaired"]]


def synthetic_pairs(world):
    """Prompts begin with token 1 and completions end with token 2, as BOS and EOS do."""
    return [(prompt, completions) for prompt, completions in world["pairs"]]
