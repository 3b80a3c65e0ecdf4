"""The float64 reference itself: against finite differences, against hand numbers, against a known check value."""

import math
import os
import tempfile

import oracle  # before NumPy, whose threads it sets

import inputs
import numpy as np
import oracle_training as training
from harness import DATA, check, finish
from oracle_training import Objective


def close(got, expected, tolerance, what):
    check(abs(got - expected) <= tolerance, f"{what}: {got!r}, expected {expected!r} to {tolerance:g}")


def test_finite_differences():
    """Directional derivatives of the loss along one random direction per tensor, and along single elements.

    Four points at -2h, -h, h, 2h have an error of h^4 f^(5) / 30 + 3 * 2^-53 |f| / 2h. At h = 1e-4 with f about 3 the
    second is 5e-12; the first was measured as 1e-11 (a fifth derivative of 3e6, from the norm of a small embedding).
    1e-10 leaves a margin, and is far below the derivatives themselves, which a check of its own holds above 1e-6."""
    step = 1e-4
    worst = 0
    cases = [(name, loss) for name in inputs.CONFIGS for loss in ("sigmoid", "sft")]
    for seed, (name, loss) in enumerate(cases):
        model = oracle.Model(inputs.CONFIGS[name])
        model.weights = inputs.random_weights(model, seed)
        groups = inputs.random_groups(model.vocabulary, 3, seed, completions=1 if loss == "sft" else 2)
        objective = Objective(loss_type=loss, beta=0.7, weight_clamp=False, label_smoothing=0.1)
        reference = None
        if loss == "sigmoid":
            reference = training.logps(inputs.perturbed(model, seed, 0.05), groups)
        base = training.Step(model, groups, reference, objective)

        def value():
            return training.Step(model, groups, reference, objective, False, base.weights).loss

        random = np.random.default_rng(seed)
        for tensor in model.names():
            weights = model.weights[tensor]
            direction = random.normal(size=weights.shape)
            element = np.zeros(weights.size)
            element[np.argmax(np.abs(base.gradients[tensor]))] = 1
            for way in (direction / np.linalg.norm(direction), element.reshape(weights.shape)):
                original, difference = weights.copy(), 0
                for steps, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                    weights[...] = original + steps * step * way
                    difference += factor * value() / (12 * step)
                weights[...] = original
                derivative = np.sum(base.gradients[tensor] * way)
                check(abs(derivative) > 1e-6, f"{name} {loss} {tensor}: derivative {derivative} proves nothing")
                close(derivative, difference, 1e-10, f"{name} {loss} {tensor}")
                worst = max(worst, abs(derivative - difference))
    print(f"finite differences: worst error {worst:.1e}")


def test_hand_numbers():
    """Values worked out by hand from the formulas of the paper, to the eight digits they were written down with."""
    chosen = oracle.Score(np.array([[2, 0, -1, .5], [0, 1, 3, -2], [.1, .2, .3, .4]]), np.array([0, 2, 1]))
    rejected = oracle.Score(np.array([[1, 1, 0, 0], [-1, 4, 0, 2.]]), np.array([2, 1]))
    for got, expected in zip([*chosen.square, *rejected.square], [-.616497, -.330405, -1.373917, -1.192743, -.278986]):
        close(got, expected, 6e-7, "log sum p^2")
    close(chosen.logp.sum(), -1.96040047, 6e-9, "logp chosen")
    close(rejected.logp.sum(), -2.15516405, 6e-9, "logp rejected")
    for weighting, expected in {"none": (1, 1), "unaligned": (.52023907, .34041765),
                                "sampled": (1.12765427, .71054890), "greedy": (.93550698, .60653066)}.items():
        for result, weight in zip((chosen, rejected), expected):
            close(math.exp(training.completion_log_weight(result, weighting)), weight, 6e-9, f"weight {weighting}")
    objective = Objective(beta=.01)
    close(training.pair_weight(objective, chosen, rejected), .80125350, 6e-9, "weight of the pair")
    loss, slope = training.pair_loss(objective, (-1.96040047 + 3) - (-2.15516405 + 2))
    close(.80125350 * loss, .55061436, 1e-8, "weighted loss")
    close(.80125350 * slope, -.00398234, 6e-9, "coefficient")
    only = Objective(weight_sides="chosen", weight_clamp=False)
    close(training.pair_weight(only, chosen, rejected), 1.12765427, 6e-9, "weight of the chosen side")
    check(training.pair_weight(Objective(weight_sides="chosen"), chosen, rejected) == 1, "the clamp")
    for smoothing, expected, slope in ((0, .59813887, -.04501660), (.1, .61813887, -.03501660)):
        got = training.pair_loss(Objective(label_smoothing=smoothing), 2.0)
        close(got[0], expected, 6e-9, "sigmoid loss")
        close(got[1], slope, 6e-9, "sigmoid coefficient")
    uniform = oracle.Score(np.zeros((1, 7)), np.array([3]))
    for got, expected in ((uniform.entropy[0], math.log(7)), (uniform.square[0], -math.log(7))):
        close(got, expected, 1e-15, "uniform distribution")


def test_optimiser():
    """One AdamW step: both moments cancel at step 1, so the update is rate * (sign(g) + decay * w)."""
    model = oracle.Model(inputs.CONFIGS["qwen2"])
    model.weights = inputs.random_weights(model, 1)
    before = model.copy().weights
    gradients = {name: np.where(value > 0, 2.0, -3.0) for name, value in before.items()}
    settings = training.Optimiser(.5, weight_decay=.25, max_grad_norm=0, adam_epsilon=0)
    training.adamw(model, gradients, {}, settings, .5, 1)
    for name, value in before.items():
        decay = .25 if value.ndim == 2 else 0
        check(np.allclose(model.weights[name], value - .5 * (np.sign(gradients[name]) + decay * value), 0, 1e-14), name)
    linear = training.Optimiser(1, "linear", warmup_steps=2)
    check([training.schedule(linear, k, 6) for k in range(6)] == [0, .5, 1, .75, .5, .25], "linear schedule")
    cosine = training.Optimiser(1, "cosine", warmup_steps=1)
    for step, expected in enumerate((0, 1, .5 + .5 * math.sqrt(.5), .5, .5 - .5 * math.sqrt(.5))):
        close(training.schedule(cosine, step, 5), expected, 1e-15, "cosine schedule")


def test_files(folder):
    """BF16 and F16 files give back the numbers that were rounded into them, F32 those it was given."""
    model = oracle.Model(inputs.CONFIGS["mistral"])
    model.weights = inputs.random_weights(model, 2)
    for dtype, bits in (("F32", 24), ("F16", 11), ("BF16", 8)):
        oracle.write_model(model, folder, dtype)
        back = oracle.read_model(folder)
        for name in model.names():
            error = np.abs(back.weights[name] - model.weights[name])
            limit = 2.0**-bits * np.maximum(np.abs(model.weights[name]), 2.0**-14)
            check(np.all(error <= limit) and (dtype == "F32") == np.all(error == 0), f"{dtype} {name}")
    groups = inputs.random_groups(65, 4, 3)
    path = os.path.join(folder, "groups.h5")
    inputs.write_groups(path, groups, 65)
    for (prompt, completions), (prompt_back, completions_back) in zip(groups, inputs.read_groups(path), strict=True):
        check(np.array_equal(prompt, prompt_back), "prompt of a groups file")
        check(all(map(np.array_equal, completions, completions_back)), "completion of a groups file")


def test_check_value(data):
    """A trained checkpoint on a sentence of the kind it was trained on: 0.18035550 nats a token."""
    from tokenizers import Tokenizer

    folder = os.path.join(data, "stories260K")
    text = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
    tokens = Tokenizer.from_file(os.path.join(folder, "tokenizer.json")).encode(text, add_special_tokens=False).ids
    result, _ = oracle.score(oracle.read_model(folder), [1], tokens)
    print(f"{result.count} tokens, {-result.logp.mean():.8f} nats a token")
    close(-result.logp.mean(), .18035550, 5.1e-9, "check value")


def main():
    test_hand_numbers()
    test_optimiser()
    with tempfile.TemporaryDirectory() as folder:
        test_files(folder)
    test_finite_differences()
    if DATA:
        test_check_value(DATA)
    else:
        print("WPO_TEST_DATA is not set: the check value of the trained checkpoint was left out")
    finish()


if __name__ == "__main__":
    main()
