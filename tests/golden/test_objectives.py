"""Every objective and every modifier: the program against the float64 derivation of oracle_objectives.py.

First the derivation against itself: the published values of the losses and their slopes, and finite differences of
every case. Then the program, which packs, shares prefixes and works in f32: loss, gradient of every parameter and
metrics of one global batch. Small odd worlds: pairs with scores, pairs with a completion of the policy, rankings of 2
to 5 with ties and without scores, completions with labels.

BOUND  1e-4, relative. Of the loss to |loss| + 0.1 sum_t |c_t|, with c_t = d loss / d log p(y_t): a token's log p may
       be off by 1e-5 nats (TOKEN in test_chain.py), and a loss can be 0. Of the gradient, per tensor, to |g| + 0.02
       sum_s |g_s| over completions s, whose gradients may cancel: each is good to 30 roundings, 1.8e-6 (as there).
A case is worth something only where its keys matter: without any one of them loss or gradient has to move by more
than MOVES, a hundred bounds."""

import concurrent.futures
import itertools
import json
import math
import os
import tempfile
from dataclasses import fields

from harness import TOOL, check, errors_file, failures, finish, run_alone, skip

BOUND, MOVES, TOKEN = 1e-4, 1e-2, 1e-5
FLOOR_LOSS, FLOOR_GRADIENT = 0.1, 0.02
LONGEST = 8  # tokens of a completion
METRICS = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/shift", "kl"}

worst = {}


# -- published values --------------------------------------------------------------------------------------------------

# Of h_w = 1.3, h_l = -0.7, |y_w| = 7, |y_l| = 5, beta 0.1: loss, d loss / d L_w, d loss / d L_l.
GOLDEN = [
    ("sigmoid", {}, 0.59813887, -0.04501660, 0.04501660),
    ("sigmoid", {"label_smoothing": 0.1}, 0.61813887, -0.03501660, 0.03501660),
    ("robust", {"label_smoothing": 0.1}, 0.57313887, -0.05751660, 0.05751660),
    ("hinge", {}, 0.8, -0.1, 0.1),
    ("ipo", {}, 21.84894694, -1.33551020, 1.86971429),
    ("exo_pair", {"label_smoothing": 0.1}, 0.40630425, -0.04943462, 0.04943462),
    ("nca_pair", {}, 1.33976707, -0.02013185, 0.02412536),
    ("bco_pair", {}, 1.28901775, -0.04675457, 0.04825071),
    ("sppo_hard", {}, 32.18, -7.4, 8.6),
    ("apo_zero", {}, 0.95005284, -0.02489467, 0.02496940),
    ("apo_down", {}, 0.98262031, 0.00014301, 0.02475166),
    ("discopop", {}, 0.81476314, -0.07341767, 0.07341767),
    ("sigmoid_norm", {}, 0.67699407, -0.00702654, 0.00983716),
    ("sigmoid", {"length_alpha": 0.05}, 0.55435524, -0.04255575, 0.04255575),
    # SPPO with P = (1, 0) is half of sppo_hard.
    ("sppo", {"beta": 0.1, "score_type": "probability"}, 16.09, -3.7, 4.3),
]
# The same of L = (-9.1, -8) without a reference.
GOLDEN_FREE = [
    ("simpo", {"gamma_beta_ratio": 0.25}, 0.64439666, -0.13572023, 0.19000833),
    ("cpo", {"rpo_alpha": 0.0}, 0.74965892, -0.05274723, 0.05274723),
    ("orpo", {"rpo_alpha": 0.0}, 0.05159641, -0.00791542, 0.01010083),
]
# Of h = 1.3 and -0.7 and z_0 = 0.2: loss and its slope.
GOLDEN_KTO = [(True, 1.3, 0.47252770, -0.02492453), (False, -0.7, 0.47751518, 0.02494944)]
# Policy equal to the reference, beta 0.1.
GOLDEN_START = {"sigmoid": math.log(2), "hinge": 1, "ipo": 25, "sppo_hard": 50, "nca_pair": 2 * math.log(2),
                "bco_pair": 2 * math.log(2), "apo_zero": 1, "apo_down": 1, "robust": math.log(2)}


def flat_completion(total, length, reference=0.0, **more):
    """Every token alike, as far as the sums go."""
    return objectives.Completion(np.full(length, total / length), np.full(length, reference / length), **more)


def flat_pair(totals, references=(0.0, 0.0)):
    ys = [flat_completion(*y, score=score) for *y, score in zip(totals, (7, 5), references, (1.0, 0.0))]
    return objectives.Batch([objectives.Group(ys)])


def close(got, expected, what):
    """Published to 8 decimals."""
    check(abs(got - expected) < 6e-9 * max(1, abs(expected)), f"{what}: {got:.10g}, published is {expected:.10g}")


def check_golden_pair(batch, name, keys, *expected):
    result = objectives.loss(objectives.Objective((name,), **keys), batch)
    chosen, rejected = batch.groups[0].completions
    for got, value in zip((result.value, result.slopes[chosen.start], result.slopes[rejected.start]), expected):
        close(got, value, f"{name} {keys}")


def check_golden():
    for case in GOLDEN:
        check_golden_pair(flat_pair((1.3 - 2, -0.7 - 3), (-2.0, -3.0)), *case)
    for case in GOLDEN_FREE:
        check_golden_pair(flat_pair((-9.1, -8.0)), *case)
    for name, value in GOLDEN_START.items():
        result = objectives.loss(objectives.Objective((name,)), flat_pair((-9.1, -8.0), (-9.1, -8.0)))
        close(result.value, value, f"{name} of a policy equal to its reference")
    for desirable, h, value, slope in GOLDEN_KTO:
        y = flat_completion(h, 7, desirable=desirable)
        batch = objectives.Batch([objectives.Group([y])], [(0.2, 0.0)])
        result = objectives.loss(objectives.Objective(("kto",)), batch)
        close(result.value, value, "kto")
        close(result.slopes[0], slope, "kto")
    check_golden_weights()
    check_closed_forms()


def check_golden_weights():
    logits = ([[2, 0, -1, .5], [0, 1, 3, -2], [.1, .2, .3, .4]], [[1, 1, 0, 0], [-1, 4, 0, 2]])
    ys = []
    for side, targets, reference in zip(logits, ([0, 2, 1], [2, 1]), (-3, -2)):
        s = oracle.Score(np.array(side, dtype=np.float64), np.array(targets))
        ys.append(objectives.Completion(s.logp, np.full(s.count, reference / s.count), s.square, s.maximum))
    for weighting, pair in {"unaligned": (.52023907, .34041765), "sampled": (1.12765427, .71054890),
                            "greedy": (.93550698, .60653066)}.items():
        for y, weight in zip(ys, pair):
            close(math.exp(y.log_weight(weighting)), weight, f"weight {weighting}")
    result = objectives.loss(objectives.Objective(beta=0.01, weighting="sampled"),
                             objectives.Batch([objectives.Group(ys)]))
    close(result.value, 0.55061436, "WPO")
    close(result.slopes[0], -0.00398234, "WPO")


def check_closed_forms():
    """What has no published value but a simpler equal."""
    pair = flat_pair((1.3, -0.7))
    plain = objectives.loss(objectives.Objective(), pair)
    for name in ("plackett_luce", "all_pairs", "aot", "aot_unpaired"):
        result = objectives.loss(objectives.Objective((name,)), pair)
        check(abs(result.value - plain.value) < 1e-14, f"{name} of one pair is not DPO")
        check(np.abs(result.slopes - plain.slopes).max() < 1e-14, f"{name} of one pair does not slope as DPO")
    # Three completions in all six orders: the probabilities of Plackett-Luce add up to 1.
    values, total = (1.3, -0.7, 4.0), 0.0
    for order in itertools.permutations(values):
        batch = objectives.Batch([objectives.Group([flat_completion(h, 3) for h in order])])
        total += math.exp(-objectives.loss(objectives.Objective(("plackett_luce",), beta=0.5), batch).value)
    check(abs(total - 1) < 1e-14, f"the probabilities of the orders add up to {total}")


# -- worlds ------------------------------------------------------------------------------------------------------------


class World:
    """A model, a reference, a groups file, and what the models say of its tokens."""

    def __init__(self, name, folder, sizes, kind, form=None, scores=None, labels=None, seed=4):
        self.name, self.path, self.form = name, os.path.join(folder, name + ".h5"), form
        self.groups = random_groups(models[0], sizes, seed)
        more = {"scores": scores, "labels": labels}
        inputs.write_groups(self.path, self.groups, models[0].vocabulary, kind, form=form,
                            **{key: np.array(sum(rows, [])) for key, rows in more.items() if rows})
        self.scored = [[oracle.score(models[0], prompt, y) for y in ys] for prompt, ys in self.groups]
        self.prompts = [oracle.score(models[0], prompt[:1], prompt[1:]) if len(prompt) > 1 else None
                        for prompt, _ in self.groups]
        self.cut = False  # whether any mismatched completion is
        self.batch = self.make_batch(scores, labels)
        self.bases = {}

    def make_batch(self, scores, labels):
        groups, mismatched = [], []
        max_length = max(len(prompt) + len(y) for prompt, ys in self.groups for y in ys)
        for g, (prompt, tokens) in enumerate(self.groups):
            ys = []
            for i, (y, (own, _)) in enumerate(zip(tokens, self.scored[g])):
                reference = oracle.score(models[1], prompt, y)[0].logp
                ys.append(objectives.Completion(own.logp, reference, own.square, own.maximum,
                                                scores[g][i] if scores else math.nan,
                                                bool(labels[g][i]) if labels else i == 0))
            own = self.prompts[g][0].logp if self.prompts[g] else np.zeros(0)
            groups.append(objectives.Group(ys[:2], own, ys[2]) if self.form == "sampled"
                          else objectives.Group(ys, own))
            for y in self.groups[g - 1][1]:
                self.cut |= len(prompt) + len(y) > max_length
                y = y[:max_length - len(prompt)]  # as every completion of the file is
                mismatched.append([oracle.score(model, prompt, y)[0].logp.sum() for model in models])
        return objectives.Batch(groups, mismatched)

    def gradients(self, slopes):
        """Of every parameter, from the slopes by every token's log p; and sum_s |g_s| per tensor."""
        total, sizes, position = models[0].zeros(), dict.fromkeys(models[0].names(), 0.0), 0
        for prompt, scored in zip(self.prompts, self.scored):
            for result, tape in ([prompt] if prompt else []) + scored:
                part = slopes[position:position + result.count]
                position += result.count
                if not part.any():
                    continue
                one = models[0].zeros()
                oracle.score_reverse(models[0], result, tape, part, one)
                for name, values in one.items():
                    total[name] += values
                    sizes[name] += np.linalg.norm(values)
        return total, sizes

    def base(self, o):
        """The loss of an objective, once."""
        key = str(o)
        if key not in self.bases:
            self.bases[key] = objectives.loss(o, self.batch)
        return self.bases[key]


def random_groups(model, sizes, seed):
    """Prompts of 1 to 9 tokens, completions of 1 to 8; the completions of one group are greedy, so that the clamp has
    something to hold."""
    random = np.random.default_rng(seed)
    groups = []
    for index, size in enumerate(sizes):
        prompt = random.integers(0, model.vocabulary, 1 if index == 0 else random.integers(2, 10))
        lengths = random.integers(1, LONGEST + 1, size)
        tokens = [random.integers(0, model.vocabulary, length) for length in lengths]
        if index == 2:
            tokens = [oracle.greedy(model, prompt, length) for length in 1 + np.arange(size)[::-1]]
        groups.append((prompt, tokens))
    return groups


def make_worlds(folder):
    """Scores are multiples of 1/16, exact in the file's float32, and between 0 and 1: probabilities, if so asked."""
    nan = math.nan
    pairs = [[1.0, .25], [.75, .5], [.875, .0], [.5, .4375], [.9375, .375], [.625, .125], [.5625, .1875]]
    ranked = [[.75, .25], [1.0, .5, .5, .125], [.875, .75, .25], [.5, .5], [.9375, .625, .625, .625, .0]]
    labels = [[1], [0, 1], [1], [0], [1, 0, 0], [1], [0]]
    return {world.name: world for world in (
        World("pairs", folder, [2] * 7, "preference", "pair", pairs),
        World("drawn", folder, [3] * 5, "preference", "sampled", [row + [nan] for row in pairs[:5]]),
        World("ranked", folder, [len(row) for row in ranked], "preference", "ranked", ranked),
        World("unscored", folder, [len(row) for row in ranked], "preference", "ranked"),
        World("labelled", folder, [len(row) for row in labels], "unpaired", labels=labels, seed=10),
        World("desirable", folder, [1] * 5, "unpaired", labels=[[1]] * 5, seed=6),
        World("singles", folder, [1] * 6, "prompt-completion"))}


# -- cases -------------------------------------------------------------------------------------------------------------

# Keys that every loss stands with at least once, by the groups it works on. beta 0.5 bends the losses more.
SMOOTH = {"label_smoothing": 0.2}
LONG = {"length_alpha": 0.15}
REWARD = {"reward_margin_beta": 0.75}
DIVERGENCES = [{"f_divergence_type": "forward_kl"}, {"f_divergence_type": "js_divergence"},
               {"f_divergence_type": "alpha_divergence"},
               {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.75}]
SCORED = ("sigmoid", "robust", "hinge", "ipo", "ipo_sum", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "sppo",
          "discopop", "sigmoid_norm")  # f_divergence_type applies
COMPARING = ("sigmoid", "robust", "hinge", "exo_pair", "discopop", "sigmoid_norm", "simpo", "cpo")  # u = beta ...
SMOOTHING = ("sigmoid", "robust", "exo_pair", "sigmoid_norm", "simpo", "cpo", "aot", "aot_unpaired")


def pair_cases():
    """World, losses, keys."""
    for name in objectives.PAIR_LOSSES:
        yield "pairs", (name,), {}
        yield "pairs", (name,), {"weighting": "sampled"}
        likelihood = 100.0 if name == "sppo" else 0.75  # of the same size as the loss
        yield "pairs", (name,), {"beta": 0.5, "weighting": "greedy", **({"rpo_alpha": 0.0} if name == "cpo" else {})}
        yield "pairs", (name,), {"rpo_alpha": likelihood, "weighting": "sampled"}
    for index, name in enumerate(SCORED):
        yield "pairs", (name,), {"beta": 0.5, **DIVERGENCES[index % len(DIVERGENCES)]}
        yield "pairs", (name,), {"beta": 0.5, "ld_alpha": 0.25, **([{}, {"weighting": "unaligned"}][index % 2])}
        yield "pairs", (name,), {"beta": 0.5, "reference_free": True}
    for index, name in enumerate(COMPARING):
        free = {"rpo_alpha": 0.0} if name == "cpo" else {}
        yield "pairs", (name,), {"beta": 0.5, **(LONG if index % 2 else REWARD), **free}
        yield "pairs", (name,), {"beta": 0.5, **(REWARD if index % 2 else LONG), "weighting": "greedy", **free}
    for name in ("apo_zero", "apo_down", "aot", "aot_unpaired", "simpo", "cpo", "orpo"):
        yield "pairs", (name,), {"beta": 0.5, "ld_alpha": 0.25, **({"rpo_alpha": 0.0} if name == "cpo" else {})}
    for name in ("apo_zero", "apo_down", "aot"):
        yield "pairs", (name,), {"beta": 0.5, "reference_free": True}
    for name in SMOOTHING:
        yield "pairs", (name,), {"beta": 0.5, **SMOOTH}
    for name in objectives.SORTED_LOSSES:
        yield "pairs", (name,), {}
        yield "pairs", (name,), {"rpo_alpha": 0.5}


def modifier_cases():
    for keys in DIVERGENCES:
        yield "pairs", ("sigmoid",), {"beta": 0.5, **keys, "weighting": "sampled"}
        yield "pairs", ("nca_pair",), {"beta": 0.5, **keys}
    for weighting in ("unaligned", "sampled", "greedy"):
        yield "pairs", ("sigmoid",), {"beta": 0.5, "weighting": weighting}
        for loss_type, world in (("kto", "labelled"), ("plackett_luce", "ranked"), ("all_pairs", "ranked")):
            yield world, (loss_type,), {"beta": 0.5, "weighting": weighting}
    for sides, loss_type in itertools.product(("chosen", "rejected"), ("sigmoid", "ipo", "simpo")):
        yield "pairs", (loss_type,), {"weighting": "sampled", "weight_sides": sides}
    yield "pairs", ("sigmoid",), {"weighting": "sampled", "weight_clamp": False}
    yield "pairs", ("orpo",), {"weighting": "sampled", "weight_clamp": False, "rpo_alpha": 0.0}
    yield "pairs", ("simpo",), {"gamma_beta_ratio": 1.25, "beta": 2.5, "weighting": "sampled"}
    yield "pairs", ("discopop",), {"discopop_tau": 0.4, "beta": 0.5}
    yield "pairs", ("sppo",), {"score_type": "probability"}
    yield "pairs", ("sppo",), {"score_type": "probability", "beta": 0.1, "weighting": "sampled"}
    for name in ("sigmoid", "orpo", "cpo"):
        yield "pairs", (name,), {"rpo_alpha": 0.5, "nll_on_prompt": True}
    yield "pairs", ("sigmoid",), {"vpo_alpha": 0.3}
    yield "pairs", ("sigmoid",), {"vpo_alpha": 0.3, "beta": 0.5, "weighting": "sampled", "ld_alpha": 0.5}
    yield "drawn", ("sigmoid",), {"optimism_alpha": 0.3}
    yield "drawn", ("sigmoid",), {"optimism_alpha": 0.3, "beta": 0.5, "weighting": "sampled"}
    yield "drawn", ("sigmoid",), {"optimism_alpha": 0.5, "ld_alpha": 0.5}
    yield "drawn", ("nca_pair",), {"optimism_alpha": 1.5, "rpo_alpha": 0.05}
    # Several losses: MPO's, iterative RPO's, and the mean of two.
    yield "pairs", ("sigmoid", "bco_pair", "sft"), {"loss_weights": (0.8, 0.2, 1.0)}
    yield "pairs", ("sigmoid", "bco_pair", "sft"), {"loss_weights": (0.8, 0.2, 1.0), "weighting": "sampled"}
    yield "pairs", ("sft", "sigmoid"), {"loss_weights": (0.5, 1.0), "rpo_alpha": 0.25}
    yield "pairs", ("simpo", "orpo"), {"beta": 0.5, "gamma_beta_ratio": 0.8, "rpo_alpha": 0.1}
    yield "pairs", ("hinge", "nca_pair"), {"loss_weights": (0.5, 0.5), "beta": 0.5, "weighting": "greedy"}


def other_cases():
    """Likelihood, labels, rankings."""
    yield "pairs", ("sft",), {}
    yield "singles", ("sft",), {}
    yield "singles", ("sft",), {"nll_on_prompt": True}
    for name in objectives.LABELLED_LOSSES:
        for world in ("labelled", "pairs", "desirable"):
            yield world, (name,), {}
            yield world, (name,), {"beta": 0.5, "weighting": "sampled"}
        yield "labelled", (name,), {"beta": 0.5, "weighting": "greedy"}
        yield "labelled", (name,), {"desirable_weight": 1.5, "undesirable_weight": 0.75}
        yield "labelled", (name,), {"desirable_weight": 1.5, "undesirable_weight": 0.75, "weighting": "sampled"}
    yield "labelled", ("apo_zero_unpaired",), {"beta": 0.5, "reference_free": True}
    for name in objectives.RANKED_LOSSES:
        for world in ("ranked", "pairs", "unscored"):
            yield world, (name,), {}
            yield world, (name,), {"beta": 0.5, "weighting": "sampled"}
        yield "ranked", (name,), {"beta": 0.5, "weighting": "sampled", "weight_clamp": False}
        yield "ranked", (name,), {"beta": 0.5, "rpo_alpha": 0.5, "weighting": "greedy"}
        yield "ranked", (name,), {"reference_free": True}
        for keys in DIVERGENCES:
            yield "ranked", (name,), {"beta": 0.5, **keys}
    for keys in (SMOOTH, LONG, REWARD, {"weighting": "sampled", "weight_sides": "chosen"},
                 {"weighting": "sampled", "weight_sides": "rejected"}):
        yield "ranked", ("all_pairs",), {"beta": 0.5, **keys}


# What no batch can carry at once, and has to be refused rather than trained as something else; and a word of why.
REFUSED = [
    ("pairs", ("aot", "sigmoid"), {}, "alone"),
    ("pairs", ("sigmoid", "aot_unpaired"), {}, "alone"),
    ("labelled", ("kto", "bco"), {}, "alone"),
    ("pairs", ("sigmoid", "simpo"), {}, "reference"),
    ("pairs", ("simpo", "cpo"), {"gamma_beta_ratio": 0.5, "rpo_alpha": 0.5}, "gamma_beta_ratio"),
    ("pairs", ("aot_unpaired",), {"reference_free": True}, "reference_free"),
    ("labelled", ("kto",), {"reference_free": True}, "reference_free"),
    ("drawn", ("plackett_luce",), {}, "sampled"),
    ("unscored", ("all_pairs",), {"reward_margin_beta": 0.5}, "scores"),
]


# -- the derivation against finite differences, and each key against its absence --------------------------------------


def check_differences(world, o, what):
    """Along random directions, weights and batch statistics held fixed. Central differences of step e are off by e^2
    times a third derivative and by 2^-53 |loss| / e."""
    random, step = np.random.default_rng(2), 1e-5
    constants, result = objectives.constants_of(o, world.batch), world.base(o)
    for _ in range(2):
        direction, values = random.normal(size=world.batch.variables), []
        for sign in (1, -1):
            world.batch.move(sign * step * direction)
            values.append(objectives.loss(o, world.batch, constants).value)
            world.batch.move(-sign * step * direction)
        slope, size = result.slopes @ direction, np.linalg.norm(result.slopes)
        allowed = 1e-6 * size + 2.0**-50 * abs(result.value) / step
        error = abs((values[0] - values[1]) / (2 * step) - slope)
        check(error <= allowed, f"{what}: a slope of {slope:.6g} is off by {error:.3g}")


def check_matters(world, loss_type, keys, what):
    """Each key that is given moves the loss or its slopes."""
    full = world.base(objectives.Objective(loss_type, **keys))
    for key in keys:
        needed = {"f_divergence_type": "f_", "weighting": "weight"}.get(key, key)  # keys that say nothing without it
        without = {name: value for name, value in keys.items() if not name.startswith(needed)}
        other = world.base(objectives.Objective(loss_type, **without))
        moved = max(np.linalg.norm(full.slopes - other.slopes) / np.linalg.norm(full.slopes),
                    abs(full.value - other.value) / abs(full.value))
        check(moved > MOVES, f"{what}: {key} moves loss and slopes by {moved:.2g} only")


# -- the program ------------------------------------------------------------------------------------------------------


def option(value):
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run_program(world, loss_type, keys, folder, index):
    """What it prints and the gradient that it writes, or its error."""
    out = os.path.join(folder, f"gradients-{index}.bin")
    batch = (1, 3, 8)[index % 3]  # neither it nor what is kept of it may show in the numbers
    words = [TOOL, os.path.join(folder, "model"), world.path, os.path.join(folder, "reference"), out,
             "--loss_type", ",".join(loss_type), "--micro", str(batch)]
    for key, value in {"weighting": "none", **keys}.items():
        words += ["--" + key, option(value)]
    code, printed, message = run_alone(*words, session=os.path.join(folder, f"mpi-{index}"))
    if code != 0:
        return f"{' '.join(words)}: exit code {code}: {message.strip()}", None
    gradients = oracle.unflatten(models[0], np.fromfile(out, "<f4"))
    os.remove(out)
    return json.loads(printed), gradients


def methods_of(loss_type, keys):
    """The rows of the table that a case belongs to."""
    yield from loss_type
    if "weighting" in keys:
        shape = {"kto": "labelled", "bco": "labelled", "apo_zero_unpaired": "labelled", "plackett_luce": "ranked",
                 "all_pairs": "ranked"}.get(loss_type[0], "pairs")
        yield f"weighting {keys['weighting']}, {shape}"
    for key, value in keys.items():
        if key == "f_divergence_type":
            yield f"{key} {value}"
        elif key not in ("beta", "weighting", "f_alpha_divergence_coef"):
            yield key


def note(loss_type, keys, kind, error, what):
    check(error <= BOUND, f"{what}: {kind} is off by {error:.3g}, relative")
    for method in methods_of(loss_type, keys):
        row = worst.setdefault(method, {"cases": 0, "loss": 0.0, "gradient": 0.0})
        row[kind] = max(row[kind], float(error))
        row["cases"] += kind == "loss"


def check_program(world, loss_type, keys, said, got, what):
    if got is None:
        check(False, said)
        return
    o = objectives.Objective(loss_type, **keys)
    result = world.base(o)
    expected, sizes = world.gradients(result.slopes)
    scale = abs(result.value) + FLOOR_LOSS * np.abs(result.slopes).sum()
    note(loss_type, keys, "loss", abs(said["loss"] - result.value) / scale, what)
    for name, values in expected.items():
        error = np.linalg.norm(got[name] - values) / (np.linalg.norm(values) + FLOOR_GRADIENT * sizes[name])
        note(loss_type, keys, "gradient", error, f"{what} {name}")
    norm = math.sqrt(sum(np.sum(values**2) for values in expected.values()))
    note(loss_type, keys, "gradient", abs(said["grad_norm"] / norm - 1), f"{what} norm")
    for name, value in objectives.metrics(o, world.batch).items():
        if name in said:
            seen.add(name)
            # Counts are exact; the log p of up to LONGEST tokens of two models may be off by TOKEN each.
            factor = {"rewards/accuracies": 0.0, "kl": 1.0}.get(name, o.beta)
            check(abs(said[name] - value) <= 1e-15 + factor * 2 * LONGEST * TOKEN,
                  f"{what}: {name} is {said[name]}, not {value}")


def main():
    check_golden()
    with tempfile.TemporaryDirectory() as folder:
        for model, name in zip(models, ("model", "reference")):
            oracle.write_model(model, os.path.join(folder, name))
        worlds = make_worlds(folder)
        below, above = (np.mean(np.diff(worlds[name].batch.mismatched)) for name in ("labelled", "desirable"))
        check(below < 0 < above, "no world with z_0 = 0 beside one above")
        check(worlds["labelled"].cut, "no mismatched completion is cut")
        cases = list(itertools.chain(pair_cases(), modifier_cases(), other_cases()))
        titles = [f"{'+'.join(loss_type)} of {name} {keys}" for name, loss_type, keys in cases]
        for (name, loss_type, keys), what in zip(cases, titles):
            check_differences(worlds[name], objectives.Objective(loss_type, **keys), what)
            check_matters(worlds[name], loss_type, keys, what)
        if PROGRAM:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                runs = pool.map(lambda index: run_program(worlds[cases[index][0]], *cases[index][1:], folder, index),
                                range(len(cases)))
                for (name, loss_type, keys), what, run in zip(cases, titles, runs):
                    check_program(worlds[name], loss_type, keys, *run, what)
            for index, (name, loss_type, keys, word) in enumerate(REFUSED):
                said, got = run_program(worlds[name], loss_type, keys, folder, len(cases) + index)
                check(got is None and word in said, f"{loss_type} of {name} {keys} is not refused: {said}")
    untried = set(ALL_KEYS) - {key for _, _, keys in cases for key in keys}
    check(not untried, f"no case has {untried}")
    print(f"{len(cases)} cases, {len(failures)} failures")
    if not PROGRAM:
        finish("WPO_BUILD holds no tool_gradients: the derivation passed its own checks alone")
    check(seen == METRICS, f"the program says nothing of {METRICS - seen}")
    for method, row in sorted(worst.items()):
        print(f"{method:36}{row['cases']:5} cases  loss {row['loss']:8.1e}  gradient {row['gradient']:8.1e}")
    rows = [{"method": method, "oracle": "float64 derivation", **row} for method, row in sorted(worst.items())]
    with open(errors_file("oracle"), "w") as file:
        json.dump({"bounds": {"loss": BOUND, "gradient": BOUND}, "methods": rows}, file, indent=1)
    finish()


if __name__ == "__main__":
    PROGRAM = os.path.exists(TOOL)
    errors_file("oracle")
    try:
        import oracle  # before NumPy, whose threads it sets

        import inputs
        import numpy as np
        import oracle_objectives as objectives
    except ImportError as error:
        skip(f"{error}; launcher/setup makes an environment that has it")
    ALL_KEYS = {entry.name for entry in fields(objectives.Objective)} - {"loss_type"}
    start = oracle.Model(inputs.CONFIGS["llama"])
    start.weights = inputs.random_weights(start, 1)
    models = [start, inputs.perturbed(start, 1, 0.3)]
    seen = set()
    main()
