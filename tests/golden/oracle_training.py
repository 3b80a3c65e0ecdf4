"""Objective, optimiser and training of the float64 reference; the model is in oracle.py.

A group is (prompt, [completion, ...]); of a pair the chosen completion comes first."""

import math
from dataclasses import dataclass, replace

import numpy as np

from oracle import score, score_reverse


@dataclass
class Objective:
    loss_type: str = "sigmoid"
    beta: float = 0.1
    weighting: str = "sampled"
    weight_sides: str = "both"
    weight_clamp: bool = True
    label_smoothing: float = 0.0


WEIGHTINGS = ("none", "unaligned", "sampled", "greedy")


def completion_log_weight(result, weighting):
    """log w(x,y) = mean over the tokens of log p(y_t) less what the alignment compares it with."""
    if weighting == "none":
        return 0.0
    compared = {"unaligned": 0.0, "sampled": result.square, "greedy": result.maximum}[weighting]
    return float(np.mean(result.logp - compared))


def pair_weight(objective, chosen, rejected):
    """w(x, y_w) w(x, y_l), at most 1 when clamped. No gradient flows through it."""
    if objective.weighting == "none":
        return 1.0
    weight = 1.0
    if objective.weight_sides in ("both", "chosen"):
        weight *= math.exp(completion_log_weight(chosen, objective.weighting))
    if objective.weight_sides in ("both", "rejected"):
        weight *= math.exp(completion_log_weight(rejected, objective.weighting))
    return min(weight, 1.0) if objective.weight_clamp else weight


def pair_loss(objective, margin):
    """-(1-e) log sigmoid(u) - e log sigmoid(-u) with u = beta margin, and its derivative by the margin."""
    u, e = objective.beta * margin, objective.label_smoothing
    loss = (1 - e) * np.logaddexp(0, -u) + e * np.logaddexp(0, u)
    return float(loss), objective.beta * (e / (1 + math.exp(-u)) - (1 - e) / (1 + math.exp(u)))


def logps(model, groups):
    """[[sum log p of each completion] of each group]."""
    return [[float(score(model, prompt, y)[0].logp.sum()) for y in completions] for prompt, completions in groups]


class Step:
    """Loss of a batch of groups (mean over pairs; for sft over all tokens), its gradient, and the scores behind it.

    frozen: weights of the pairs to use instead of the model's own; finite differences need them, as the weights take
    no part in the gradient."""

    def __init__(self, model, groups, reference, objective, with_gradients=True, frozen=None):
        self.scores, self.weights, self.margins, self.losses = [], [], [], []
        self.objective, self.reference = objective, reference
        self.gradients = model.zeros() if with_gradients else None
        tokens = sum(len(y) for _, completions in groups for y in completions)
        for index, (prompt, completions) in enumerate(groups):
            scored = [score(model, prompt, y) for y in completions]
            results = [result for result, _ in scored]
            if objective.loss_type == "sft":
                (result,) = results
                weight, margin, share = 1.0, math.nan, 1 / tokens
                loss, coefficients = -float(result.logp.sum()), [-1.0]
            else:
                chosen, rejected = results
                weight = pair_weight(objective, chosen, rejected) if frozen is None else frozen[index]
                margin = (chosen.logp.sum() - reference[index][0]) - (rejected.logp.sum() - reference[index][1])
                loss, slope = pair_loss(objective, margin)
                coefficients, share = [slope, -slope], 1 / len(groups)
            self.scores.append(results)
            self.weights.append(weight)
            self.margins.append(float(margin))
            self.losses.append(weight * loss)
            if with_gradients:
                for (result, tape), coefficient in zip(scored, coefficients):
                    score_reverse(model, result, tape, weight * coefficient * share, self.gradients)
        self.loss = sum(self.losses) / (tokens if objective.loss_type == "sft" else len(groups))

    def metrics(self):
        """What training reports of a batch of pairs, under TRL's names."""
        flat = [result for results in self.scores for result in results]
        values = {"loss": self.loss, "entropy": token_mean(flat, "entropy")}
        if self.objective.loss_type == "sft":
            return {**values, "mean_token_accuracy": token_mean(flat, "hits")}
        weights, rewards, means = np.array(self.weights), {}, {}
        values["mean_token_accuracy"] = token_mean([results[0] for results in self.scores], "hits")
        for side, name in enumerate(("chosen", "rejected")):
            results = [results[side] for results in self.scores]
            sums = np.array([result.logp.sum() for result in results])
            rewards[name] = self.objective.beta * (sums - np.array([pair[side] for pair in self.reference]))
            values[f"logps/{name}"] = sums.mean()
            values[f"logits/{name}"] = token_mean(results, "logits")
            values[f"lengths/{name}"] = np.mean([result.count for result in results])
            values[f"rewards/{name}"] = rewards[name].mean()
            means[name] = np.array([result.logp.mean() for result in results])
        values["logps/accuracies"] = np.mean(means["chosen"] > means["rejected"])
        values["rewards/accuracies"] = np.mean(rewards["chosen"] > rewards["rejected"])
        values["rewards/margins"] = np.mean(rewards["chosen"] - rewards["rejected"])
        values["weights/mean"], values["weights/min"] = weights.mean(), weights.min()
        values["weights/max"] = weights.max()
        free = replace(self.objective, weight_clamp=False)
        above = [pair_weight(free, *results) > 1 for results in self.scores]
        values["weights/clamped"] = np.mean(above) if self.objective.weight_clamp else 0
        values["weights/effective_pairs"] = weights.sum() ** 2 / np.sum(weights**2)
        return {name: float(value) for name, value in values.items()}


def token_mean(results, field):
    return sum(getattr(result, field).sum() for result in results) / sum(result.count for result in results)


# -- optimiser --------------------------------------------------------------------------------------------------------


@dataclass
class Optimiser:
    learning_rate: float
    lr_scheduler_type: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0


def schedule(optimiser, step, total):
    """Factor of the learning rate at optimiser step `step` = 0, 1, ..., total - 1, as in Transformers."""
    warmup = optimiser.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    if optimiser.lr_scheduler_type == "constant":
        return 1.0
    if optimiser.lr_scheduler_type == "linear":
        return max(0.0, (total - step) / max(1, total - warmup))
    if optimiser.lr_scheduler_type == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))
    raise ValueError(optimiser.lr_scheduler_type)


def decays(name):
    return not name.endswith(".bias") and not name.endswith("norm.weight")


def global_norm(gradients):
    return math.sqrt(sum(float(np.sum(g * g)) for g in gradients.values()))


def adamw(model, gradients, moments, optimiser, rate, step):
    """One update in place; step is 1 at the first. Clipping by the global norm, then AdamW with decoupled decay."""
    norm = global_norm(gradients)
    scale = min(1.0, optimiser.max_grad_norm / (norm + 1e-6)) if optimiser.max_grad_norm > 0 else 1.0
    first, second = optimiser.adam_beta1, optimiser.adam_beta2
    for name, gradient in gradients.items():
        g = gradient * scale
        m, v = moments.setdefault(name, (np.zeros_like(g), np.zeros_like(g)))
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        moments[name] = (m, v)
        w = model.weights[name]
        if decays(name):
            w -= rate * optimiser.weight_decay * w
        w -= rate * (m / (1 - first**step)) / (np.sqrt(v / (1 - second**step)) + optimiser.adam_epsilon)
    return norm


def train(model, groups, objective, optimiser, order, reference=None, disturb=None):
    """Trains a copy of the model: step k sees the groups order[k]. Returns the copy and one dict of metrics per step.

    reference: log-probabilities as from logps(); None: those of the starting model. disturb(gradients): called on the
    gradients of every step before they are used; the tests measure with it how far an error in them carries."""
    model = model.copy()
    if reference is None and objective.loss_type != "sft":
        reference = logps(model, groups)
    moments, history = {}, []
    for index, batch in enumerate(order):
        chosen = None if reference is None else [reference[g] for g in batch]
        step = Step(model, [groups[g] for g in batch], chosen, objective)
        if disturb:
            disturb(step.gradients)
        rate = optimiser.learning_rate * schedule(optimiser, index, len(order))
        norm = adamw(model, step.gradients, moments, optimiser, rate, index + 1)
        history.append({**step.metrics(), "grad_norm": norm, "learning_rate": rate})
    return model, history
