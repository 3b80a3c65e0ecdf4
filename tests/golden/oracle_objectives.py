"""Every objective as plain mathematics in float64: from log-probabilities of tokens to the loss of a whole batch.

The losses are written as the papers have them, over a batch that is all there at once: means are means, sorts are
sorts, and no coefficient is derived by hand. Derivatives come out of forward differentiation: a Number carries its
value and its derivatives by the log-probability of every token of the batch. What takes no part in the gradient
(weights, KTO's z_0, BCO's delta) is computed from values alone and can be frozen, which finite differences need.

Notation: h = log pi(y|x) - log pi_ref(y|x), s = score of h under the f-divergence, |y| tokens, u what is compared."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

NAN = float("nan")

# -- numbers with derivatives -----------------------------------------------------------------------------------------


class Number:
    """A value and its derivatives (an array) by every variable."""

    __array_ufunc__ = None  # a NumPy number times a Number is a Number

    def __init__(self, value, slopes):
        self.value, self.slopes = float(value), slopes

    def through(self, value, slope):
        """f(self), of which value and derivative are given."""
        return Number(value, slope * self.slopes)

    def __add__(self, other):
        if isinstance(other, Number):
            return Number(self.value + other.value, self.slopes + other.slopes)
        return Number(self.value + other, self.slopes)

    def __mul__(self, other):
        if isinstance(other, Number):
            return Number(self.value * other.value, other.value * self.slopes + self.value * other.slopes)
        return Number(self.value * other, other * self.slopes)

    def __sub__(self, other):
        return self + -1 * other

    def __rsub__(self, other):
        return -1 * self + other

    def __neg__(self):
        return -1 * self

    def __truediv__(self, other):
        return self * (1 / other)

    __radd__, __rmul__ = __add__, __mul__


def exp(x):
    return x.through(math.exp(x.value), math.exp(x.value))


def logistic(x):
    return math.exp(min(x, 0)) / (1 + math.exp(-abs(x)))


def sigmoid(x):
    return x.through(logistic(x.value), logistic(x.value) * logistic(-x.value))


def log_sigmoid(x):
    return x.through(-np.logaddexp(0, -x.value), logistic(-x.value))


def log(x):
    return x.through(math.log(x.value), 1 / x.value)


def log_one_minus_exp(x):
    """log(1 - e^x) for x < 0."""
    return x.through(math.log(-math.expm1(x.value)), -1 / math.expm1(-x.value))


def positive_part(x):
    return x.through(max(x.value, 0), float(x.value > 0))


def square(x):
    return x * x


def mean(terms):
    return sum(terms) / len(terms)


# -- what is chosen ---------------------------------------------------------------------------------------------------


@dataclass
class Objective:
    """The keys of the run file; None stands for the default that the loss brings along."""

    loss_type: tuple = ("sigmoid",)
    loss_weights: tuple = None
    beta: float = None
    label_smoothing: float = None
    weighting: str = "none"
    weight_sides: str = "both"
    weight_clamp: bool = True
    gamma_beta_ratio: float = None
    rpo_alpha: float = None
    nll_on_prompt: bool = False
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    ld_alpha: float = 1.0
    length_alpha: float = 0.0
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    optimism_alpha: float = 0.0
    vpo_alpha: float = 0.0
    reward_margin_beta: float = 0.0
    score_type: str = "reward"
    discopop_tau: float = 0.05
    reference_free: bool = False

    def __post_init__(self):
        first = self.loss_type[0]
        defaults = {"beta": {"simpo": 2.0, "sppo": 0.001}.get(first, 0.1),
                    "label_smoothing": 1e-3 if first == "exo_pair" else 0.0,
                    "gamma_beta_ratio": 0.5 if first == "simpo" else 0.0,
                    "rpo_alpha": 1.0 if first in ("cpo", "orpo") else 0.0,
                    "loss_weights": (1.0,) * len(self.loss_type)}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)


# -- the batch --------------------------------------------------------------------------------------------------------


@dataclass
class Completion:
    """Per token: log p of the policy and of the reference, log sum_v p_v^2 and log max_v p_v of the policy."""

    logp: np.ndarray
    reference: np.ndarray
    square: np.ndarray = None
    maximum: np.ndarray = None
    score: float = NAN
    desirable: bool = True
    start: int = 0      # number of its first token's variable
    variables: int = 0  # of the whole batch

    @property
    def length(self):
        return len(self.logp)

    def sum(self, first, last):
        """Sum of log p of the tokens first .. last-1."""
        slopes = np.zeros(self.variables)
        slopes[self.start + first:self.start + last] = 1
        return Number(self.logp[first:last].sum(), slopes)

    def log_probability(self):
        return self.sum(0, self.length)

    def log_weight(self, weighting):
        """log w(x,y) of WPO's equation 2 and section 3.3: the mean over the tokens of log p(y_t) - A_t."""
        compared = {"unaligned": 0.0, "sampled": self.square, "greedy": self.maximum}[weighting]
        return float(np.mean(self.logp - compared))


@dataclass
class Group:
    """prompt: log p of the prompt's own tokens but its first. completions: chosen and rejected, or best first.
    drawn: one more completion, of the policy."""

    completions: list
    prompt: np.ndarray = field(default_factory=lambda: np.zeros(0))
    drawn: Completion = None
    start: int = 0
    variables: int = 0

    def prompt_sum(self):
        slopes = np.zeros(self.variables)
        slopes[self.start:self.start + len(self.prompt)] = 1
        return Number(self.prompt.sum(), slopes)


@dataclass
class Batch:
    """mismatched: log p of policy and reference of every prompt with each completion of the group before it; the last
    group's before the first."""

    groups: list
    mismatched: list = field(default_factory=list)

    def __post_init__(self):
        position = 0
        for group in self.groups:
            group.start = position
            position += len(group.prompt)
            for y in group.completions + ([group.drawn] if group.drawn else []):
                y.start = position
                position += y.length
        for group in self.groups:
            group.variables = position
            for y in group.completions + ([group.drawn] if group.drawn else []):
                y.variables = position
        self.variables = position

    def completions(self):
        return [y for group in self.groups for y in group.completions]

    def move(self, change):
        """Adds change [variables] to every log p of the policy."""
        for group in self.groups:
            group.prompt = group.prompt + change[group.start:group.start + len(group.prompt)]
            for y in group.completions + ([group.drawn] if group.drawn else []):
                y.logp = y.logp + change[y.start:y.start + y.length]


# -- what losses compare ----------------------------------------------------------------------------------------------


def log_ratio(o, y, shorter=None):
    """h. LD-DPO: tokens behind the length of the pair's shorter completion count ld_alpha, of both models."""
    shorter = y.length if shorter is None else shorter
    reference = y.reference[:shorter].sum() + o.ld_alpha * y.reference[shorter:].sum()
    policy = y.sum(0, shorter) + o.ld_alpha * y.sum(shorter, y.length)
    return policy if o.reference_free else policy - reference


def ratios(o, group):
    """h of every completion of a group; LD-DPO is a matter of pairs."""
    pair = len(group.completions) == 2
    shorter = min(y.length for y in group.completions) if pair else None
    return [log_ratio(o, y, shorter) for y in group.completions]


def divergence_score(o, h):
    """f'(pi / pi_ref) of f-DPO's table 1 (Wang et al.), with the constant that gives a ratio of 1 the score 0."""
    if o.f_divergence_type == "reverse_kl":
        return h
    if o.f_divergence_type == "forward_kl":
        return 1 - exp(-h)
    if o.f_divergence_type == "js_divergence":
        return math.log(2) + log_sigmoid(h)
    power = o.f_alpha_divergence_coef - 1
    return (exp(power * h) - 1) / power


def scores(o, group):
    return [divergence_score(o, h) for h in ratios(o, group)]


def log_probabilities(o, group):
    """Of the policy alone, LD-DPO's rule included."""
    return ratios(replace(o, reference_free=True), group)


def averages(o, group):
    return [logp / y.length for logp, y in zip(log_probabilities(o, group), group.completions)]


def compare(o, chosen, rejected, y_w, y_l):
    """u = beta (chosen - rejected), plus alpha (|y_w| - |y_l|) (iLR-DPO, R-DPO: a longer winner has less to gain), less
    what the rewards of the data differ by (a margin that the pair has to keep)."""
    u = o.beta * (chosen - rejected) + o.length_alpha * (y_w.length - y_l.length)
    return u - o.reward_margin_beta * (y_w.score - y_l.score) if o.reward_margin_beta else u


def pair_compare(o, group, values):
    return compare(o, *values, *group.completions)


# -- losses of a pair -------------------------------------------------------------------------------------------------


def smoothed(o, u):
    """The logistic loss where the labels are wrong with probability e: conservative DPO."""
    e = o.label_smoothing
    return -(1 - e) * log_sigmoid(u) - e * log_sigmoid(-u)


def dpo(o, group):
    return smoothed(o, pair_compare(o, group, scores(o, group)))


def robust(o, group):
    u, e = pair_compare(o, group, scores(o, group)), o.label_smoothing
    return (-(1 - e) * log_sigmoid(u) + e * log_sigmoid(-u)) / (1 - 2 * e)


def hinge(o, group):
    return positive_part(1 - pair_compare(o, group, scores(o, group)))


def ipo(o, group):
    (s_w, s_l), (y_w, y_l) = scores(o, group), group.completions
    return square(s_w / y_w.length - s_l / y_l.length - 1 / (2 * o.beta))


def ipo_sum(o, group):
    s_w, s_l = scores(o, group)
    return square(s_w - s_l - 1 / (2 * o.beta))


def exo_pair(o, group):
    """KL of the policy's preference (sigmoid(u), sigmoid(-u)) from the smoothed label (1-e, e)."""
    u, e = pair_compare(o, group, scores(o, group)), o.label_smoothing
    return sigmoid(u) * (log_sigmoid(u) - math.log(1 - e)) + sigmoid(-u) * (log_sigmoid(-u) - math.log(e))


def nca_pair(o, group):
    r_w, r_l = (o.beta * s for s in scores(o, group))
    return -log_sigmoid(r_w) - 0.5 * log_sigmoid(-r_w) - 0.5 * log_sigmoid(-r_l)


def bco_pair(o, group):
    r_w, r_l = (o.beta * s for s in scores(o, group))
    return -log_sigmoid(r_w) - log_sigmoid(-r_l)


def sppo_hard(o, group):
    s_w, s_l = scores(o, group)
    return square(s_w - 1 / (2 * o.beta)) + square(s_l + 1 / (2 * o.beta))


def sppo(o, group):
    """Half the squared distance of h from (P - 1/2) / beta, with the data's own P of either side."""
    (s_w, s_l), (y_w, y_l) = scores(o, group), group.completions
    p_w, p_l = y_w.score, y_l.score
    if o.score_type == "reward":
        p_w, p_l = logistic(y_w.score - y_l.score), logistic(y_l.score - y_w.score)
    return 0.5 * square(s_w - (p_w - 0.5) / o.beta) + 0.5 * square(s_l - (p_l - 0.5) / o.beta)


def apo_zero(o, group):
    h_w, h_l = ratios(o, group)
    return 1 - sigmoid(o.beta * h_w) + sigmoid(o.beta * h_l)


def apo_down(o, group):
    h_w, h_l = ratios(o, group)
    return sigmoid(o.beta * h_w) + 1 - sigmoid(o.beta * (h_w - h_l))


def discopop(o, group):
    """Log-ratio modulated loss: logistic where the ratio is low, exponential where it is high."""
    u = pair_compare(o, group, scores(o, group))
    m = sigmoid(u / o.discopop_tau)
    return -log_sigmoid(u) * (1 - m) + exp(-u) * m


def sigmoid_norm(o, group):
    values = [s / y.length for s, y in zip(scores(o, group), group.completions)]
    return smoothed(o, pair_compare(o, group, values))


def simpo(o, group):
    """gamma is the margin that rewards beta log p / |y| have to keep."""
    gamma = o.gamma_beta_ratio * o.beta
    return smoothed(o, pair_compare(o, group, averages(o, group)) - gamma)


def cpo(o, group):
    return smoothed(o, pair_compare(o, group, log_probabilities(o, group)))


def orpo(o, group):
    """beta times the loss of the ratio of odds, p / (1 - p) with p of the mean log-probability."""
    a_w, a_l = averages(o, group)
    odds = (a_w - a_l) - (log_one_minus_exp(a_w) - log_one_minus_exp(a_l))
    return -o.beta * log_sigmoid(odds)


PAIR_LOSSES = {"sigmoid": dpo, "robust": robust, "hinge": hinge, "ipo": ipo, "ipo_sum": ipo_sum, "exo_pair": exo_pair,
               "nca_pair": nca_pair, "bco_pair": bco_pair, "sppo_hard": sppo_hard, "sppo": sppo, "apo_zero": apo_zero,
               "apo_down": apo_down, "discopop": discopop, "sigmoid_norm": sigmoid_norm, "simpo": simpo, "cpo": cpo,
               "orpo": orpo}

# -- losses of a batch of pairs ---------------------------------------------------------------------------------------


def ascending(numbers):
    return sorted(numbers, key=lambda x: x.value if isinstance(x, Number) else x)


def aot(o, batch):
    """Paired alignment by optimal transport: margins of the policy in order against those of the reference."""
    margins, references = [], []
    for group in batch.groups:
        policy, h = log_probabilities(o, group), ratios(o, group)
        margins.append(policy[0] - policy[1])
        references.append((policy[0] - h[0] - (policy[1] - h[1])).value)
    return [smoothed(o, o.beta * (m - r)) for m, r in zip(ascending(margins), ascending(references))]


def aot_unpaired(o, batch):
    chosen, rejected = zip(*(ratios(o, group) for group in batch.groups))
    return [smoothed(o, o.beta * (w - l)) for w, l in zip(ascending(chosen), ascending(rejected))]


SORTED_LOSSES = {"aot": aot, "aot_unpaired": aot_unpaired}

# -- losses of labelled completions -----------------------------------------------------------------------------------


def class_factor(o, y):
    return o.desirable_weight if y.desirable else o.undesirable_weight


def kto(o, y, constants):
    u = o.beta * (log_ratio(o, y) - constants.kl)
    return class_factor(o, y) * (1 - sigmoid(u if y.desirable else -u))


def apo_zero_unpaired(o, y, constants):
    u = o.beta * log_ratio(o, y)
    return class_factor(o, y) * (1 - sigmoid(u) if y.desirable else sigmoid(u))


def bco(o, y, constants):
    u = o.beta * log_ratio(o, y) - constants.shift
    return -class_factor(o, y) * log_sigmoid(u if y.desirable else -u)


LABELLED_LOSSES = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired, "bco": bco}

# -- losses of rankings -----------------------------------------------------------------------------------------------


def plackett_luce(o, group, constants):
    """DPO under Plackett-Luce: -log of the probability that the completions are drawn in this order, each by its
    share of e^(beta h) among those that are left (Rafailov et al. 2023, equation 20)."""
    values = [o.beta * s for s in scores(o, group)]
    loss = sum(log(sum(exp(v - values[k].value) for v in values[k:])) + values[k].value - values[k]
               for k in range(len(values)))
    return product_weight(o, constants.log_weights[id(group)]) * loss


def all_pairs(o, group, constants):
    """Mean over the pairs of different score, each with the product of its own two weights."""
    ys, values, logs, losses = group.completions, scores(o, group), constants.log_weights[id(group)], []
    for i in range(len(ys)):
        for j in range(i + 1, len(ys)):
            if ys[i].score == ys[j].score:
                continue
            u = compare(o, values[i], values[j], ys[i], ys[j])
            losses.append(pair_weight(o, logs[i], logs[j]) * smoothed(o, u))
    return mean(losses) if losses else 0 * values[0]


RANKED_LOSSES = {"plackett_luce": plackett_luce, "all_pairs": all_pairs}

# -- the batch's loss -------------------------------------------------------------------------------------------------


@dataclass
class Constants:
    """What no gradient flows through. log_weights: of every completion, by id of the group."""

    log_weights: dict
    kl: float
    shift: float


def constants_of(o, batch):
    weighted = o.weighting != "none"
    logs = {id(group): [y.log_weight(o.weighting) if weighted else 0.0 for y in group.completions]
            for group in batch.groups}
    kl = 0.0
    if o.loss_type[0] == "kto":
        kl = max(0.0, float(np.mean([p - (0 if o.reference_free else r) for p, r in batch.mismatched])))
    rewards = [o.beta * log_ratio(o, y).value for y in batch.completions()] if o.loss_type[0] == "bco" else [0]
    return Constants(logs, kl, float(np.mean(rewards)))


def product_weight(o, logs):
    return math.exp(min(sum(logs), 0) if o.weight_clamp else sum(logs))


def pair_weight(o, log_w, log_l):
    return product_weight(o, {"both": [log_w, log_l], "chosen": [log_w], "rejected": [log_l]}[o.weight_sides])


def labelled_loss(o, batch, constants):
    """Unweighted the mean over all completions. Weighted the sum over the two classes of the class's weighted mean, so
    that the weights of each class sum to one (WPO, section 4.2)."""
    loss = LABELLED_LOSSES[o.loss_type[0]]
    if o.weighting == "none":
        return mean([loss(o, y, constants) for y in batch.completions()])
    total = 0
    for desirable in (True, False):
        members = [(math.exp(log_weight), y) for group in batch.groups
                   for log_weight, y in zip(constants.log_weights[id(group)], group.completions)
                   if y.desirable == desirable]
        weights = sum(w for w, _ in members)
        total = total + sum(w / weights * loss(o, y, constants) for w, y in members)
    return total


def likelihood_loss(o, batch):
    """Mean over tokens of -log p of the chosen completions, and of their prompts if asked."""
    sums, tokens = [], 0
    for group in batch.groups:
        sums.append(group.completions[0].log_probability())
        tokens += group.completions[0].length
        if o.nll_on_prompt:
            sums.append(group.prompt_sum())
            tokens += len(group.prompt)
    return -sum(sums) / tokens


def term(o, name, batch, constants):
    if name in PAIR_LOSSES:
        return mean([pair_weight(o, *constants.log_weights[id(group)]) * PAIR_LOSSES[name](o, group)
                     for group in batch.groups])
    if name in SORTED_LOSSES:
        return mean(SORTED_LOSSES[name](o, batch))
    if name in RANKED_LOSSES:
        return mean([RANKED_LOSSES[name](o, group, constants) for group in batch.groups])
    if name in LABELLED_LOSSES:
        return labelled_loss(o, batch, constants)
    return likelihood_loss(o, batch)


def loss(o, batch, constants=None):
    """The loss of the batch, a Number: its slopes are by the log p of every token, prompt and completions of the first
    group, then of the next."""
    constants = constants or constants_of(o, batch)
    total = Number(0, np.zeros(batch.variables))
    for name, factor in zip(o.loss_type, o.loss_weights):
        total = total + factor * term(o, name, batch, constants)
    if o.rpo_alpha:
        total = total + o.rpo_alpha * likelihood_loss(o, batch)
    if o.vpo_alpha:
        total = total - o.vpo_alpha * o.beta * mean([ratios(o, group)[0] for group in batch.groups])
    if o.optimism_alpha:
        total = total + o.optimism_alpha * o.beta * mean([log_ratio(o, group.drawn) for group in batch.groups])
    return total


def metrics(o, batch):
    """What is reported of rewards: beta h whatever the divergence, the normalisation or the weight; without a reference
    beta times what is compared. The best completion against the last one; of labels each class by itself."""
    if o.loss_type[0] in ("simpo", "orpo"):
        rewards = [[o.beta * a.value for a in averages(o, group)] for group in batch.groups]
    elif o.loss_type[0] == "cpo":
        rewards = [[o.beta * logp.value for logp in log_probabilities(o, group)] for group in batch.groups]
    elif set(o.loss_type) == {"sft"}:
        return {}
    else:
        rewards = [[o.beta * h.value for h in ratios(o, group)] for group in batch.groups]
    if o.loss_type[0] in LABELLED_LOSSES:
        labelled = [(reward, y.desirable) for row, group in zip(rewards, batch.groups)
                    for reward, y in zip(row, group.completions)]
        sides = [[reward for reward, desirable in labelled if desirable == side] for side in (True, False)]
        values = {f"rewards/{name}": float(np.mean(side))
                  for name, side in zip(("chosen", "rejected"), sides) if side}
        if all(sides):
            values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
        constants = constants_of(o, batch)
        more = {"kto": {"kl": constants.kl}, "bco": {"rewards/shift": constants.shift}}
        return {**values, **more.get(o.loss_type[0], {})}
    chosen, rejected = np.array([row[0] for row in rewards]), np.array([row[-1] for row in rewards])
    return {"rewards/chosen": float(np.mean(chosen)), "rewards/rejected": float(np.mean(rejected)),
            "rewards/margins": float(np.mean(chosen - rejected)),
            "rewards/accuracies": float(np.mean(chosen > rejected))}
