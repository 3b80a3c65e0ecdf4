"""The golden cases: what TRL is asked for (trainer, options) and the run-file keys that ask the program for the same.

A case: name, world, trainer (DPO, CPO, ORPO, KTO, BCO), options of the trainer, data (pairs, unpaired), keys,
losses."""

PAIRWISE = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
            "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # by TRL 1.16; its sigmoid ignores label_smoothing
COUPLED = ("aot", "aot_unpaired")
UNWEIGHTED = COUPLED + ("sft",)  # TRL refuses the first two, and fails on the third


def dpo(name, losses, world="tiny", weighted=False, swapped=False, **options):
    """options under TRL's names, which are the program's too."""
    losses = [losses] if isinstance(losses, str) else losses
    options = {"beta": 0.1, **options}
    keys = {**options, "loss_type": ",".join(losses), "weighting": "sampled" if weighted else "none"}
    if weighted:
        keys["weight_clamp"] = False
    if "loss_weights" in keys:
        keys["loss_weights"] = ",".join(map(str, keys["loss_weights"]))
    return {"name": name, "world": world, "trainer": "DPO", "data": "pairs", "keys": keys, "losses": losses,
            "swapped": swapped, "options": {**options, "loss_type": losses, "use_weighting": weighted}}


def cpo(name, loss, alpha, world="tiny", beta=0.1, gamma=None, smoothing=0.0):
    """TRL's CPO compares log-probabilities; ipo and simpo their means."""
    keys = {"loss_type": {"sigmoid": "cpo"}.get(loss, loss), "weighting": "none", "beta": beta, "rpo_alpha": alpha}
    options = {"loss_type": loss, "beta": beta, "cpo_alpha": float(alpha), "label_smoothing": smoothing}
    if loss in ("hinge", "ipo"):
        keys["reference_free"] = True
    if smoothing:
        keys["label_smoothing"] = smoothing
    if gamma is not None:
        options["simpo_gamma"], keys["gamma_beta_ratio"] = gamma, gamma / beta
    return {"name": name, "world": world, "trainer": "CPO", "data": "pairs", "keys": keys, "losses": [loss],
            "options": options}


def orpo(name, beta, world="tiny"):
    return {"name": name, "world": world, "trainer": "ORPO", "data": "pairs", "losses": ["orpo"],
            "keys": {"loss_type": "orpo", "weighting": "none", "beta": beta, "nll_on_prompt": True, "rpo_alpha": 1},
            "options": {"beta": beta}}


def unpaired(name, trainer, loss, world="tiny", swapped=False, **options):
    """max_length is no key of a step: it is an attribute of the groups file."""
    options = {"beta": 0.1, **options}
    keys = {key: value for key, value in options.items() if key != "max_length"}
    return {"name": name, "world": world, "trainer": trainer, "data": "unpaired", "swapped": swapped, "losses": [loss],
            "keys": {**keys, "loss_type": loss, "weighting": "none"},
            "options": {**options, "loss_type": loss} if trainer == "KTO" else options}


def smoothing(loss):
    return {"label_smoothing": 0.1} if loss in SMOOTHED else {}


def every_pairwise(world):
    prefix = "" if world == "tiny" else f"{world}-"
    for loss in PAIRWISE:
        yield dpo(f"{prefix}{loss}", loss, world, **smoothing(loss))
        if loss not in UNWEIGHTED:
            yield dpo(f"{prefix}{loss}-weighted", loss, world, weighted=True, **smoothing(loss))


def dpo_variants():
    yield dpo("sigmoid-weighted-wpo-beta", "sigmoid", weighted=True, beta=0.01)
    yield dpo("sigmoid-swapped-weighted", "sigmoid", weighted=True, swapped=True)
    for loss, beta in (("hinge", 2.0), ("ipo", 0.5), ("sppo_hard", 0.5), ("bco_pair", 2.0), ("apo_zero", 2.0),
                       ("apo_down", 2.0), ("nca_pair", 2.0), ("sigmoid_norm", 5.0), ("discopop", 0.5)):
        yield dpo(f"{loss}-beta", loss, beta=beta)
    yield dpo("exo_pair-default", "exo_pair", label_smoothing=1e-3)
    yield dpo("robust-plain", "robust")
    yield dpo("aot-plain", "aot")
    yield dpo("aot_unpaired-plain", "aot_unpaired")
    yield dpo("discopop-tau", "discopop", beta=0.05, discopop_tau=0.2)
    for kind in ("forward_kl", "js_divergence"):
        for loss in ("sigmoid", "hinge", "robust"):
            yield dpo(f"{loss}-{kind}", loss, f_divergence_type=kind, **smoothing(loss))
    for coefficient in (0.5, 2.0):
        yield dpo(f"sigmoid-alpha_divergence-{coefficient}", "sigmoid", f_divergence_type="alpha_divergence",
                  f_alpha_divergence_coef=coefficient)
    for loss in ("ipo", "sigmoid_norm"):
        for kind in ("forward_kl", "js_divergence", "alpha_divergence"):
            yield dpo(f"{loss}-{kind}", loss, f_divergence_type=kind)
    for kind in ("exo_pair", "discopop"):
        yield dpo(f"{kind}-js_divergence", kind, f_divergence_type="js_divergence", **smoothing(kind))
    yield dpo("sigmoid-js_divergence-weighted", "sigmoid", weighted=True, f_divergence_type="js_divergence")
    for loss in ("sigmoid", "ipo", "apo_zero", "hinge", "sigmoid_norm", "aot"):
        yield dpo(f"{loss}-ld_alpha", loss, ld_alpha=0.5, **smoothing(loss))
    yield dpo("sigmoid-ld_alpha-0", "sigmoid", ld_alpha=0.0)
    yield dpo("sigmoid-ld_alpha-weighted", "sigmoid", weighted=True, ld_alpha=0.3)
    yield dpo("mpo", ["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    yield dpo("rpo", ["sigmoid", "sft"], loss_weights=[1.0, 0.005])
    yield dpo("sigmoid-sft-ld_alpha", ["sigmoid", "sft"], loss_weights=[1.0, 1.0], ld_alpha=0.5)
    yield dpo("hinge-ipo", ["hinge", "ipo"], loss_weights=[0.5, 2.0])
    yield dpo("sigmoid-nca_pair-apo_down-weighted", ["sigmoid", "nca_pair", "apo_down"], weighted=True,
              loss_weights=[1.0, 0.25, 3.0])


def reference_free(world):
    prefix = "" if world == "tiny" else f"{world}-"
    for alpha in (0, 1):
        for loss in ("sigmoid", "hinge", "ipo"):
            yield cpo(f"{prefix}cpo-{loss}-alpha{alpha}", loss, alpha, world)
        yield cpo(f"{prefix}simpo-alpha{alpha}", "simpo", alpha, world, beta=2.0, gamma=1.0)
    yield orpo(f"{prefix}orpo", 0.1, world)


def unpaired_cases(world):
    prefix = "" if world == "tiny" else f"{world}-"
    yield unpaired(f"{prefix}kto", "KTO", "kto", world)
    yield unpaired(f"{prefix}kto-swapped", "KTO", "kto", world, swapped=True)
    yield unpaired(f"{prefix}kto-desirable", "KTO", "kto", world, desirable_weight=1.33, undesirable_weight=0.5)
    yield unpaired(f"{prefix}apo_zero_unpaired", "KTO", "apo_zero_unpaired", world)


def current():
    """Of TRL 1.16."""
    yield from every_pairwise("tiny")
    yield from dpo_variants()
    yield from reference_free("tiny")
    yield cpo("cpo-sigmoid-smoothing", "sigmoid", 0, smoothing=0.1)
    yield cpo("cpo-sigmoid-smoothing-alpha", "sigmoid", 0.3, smoothing=0.2)
    yield cpo("simpo-gemma", "simpo", 0, beta=10.0, gamma=5.0)
    yield cpo("simpo-smoothing", "simpo", 0, beta=2.5, gamma=1.375, smoothing=0.1)
    yield orpo("orpo-beta", 1.0)
    yield from unpaired_cases("tiny")
    yield unpaired("kto-beta", "KTO", "kto", swapped=True, beta=0.5, desirable_weight=1.0, undesirable_weight=2.0)
    yield unpaired("kto-cut", "KTO", "kto", swapped=True, max_length=15)  # one mismatched completion goes beyond
    yield unpaired("apo_zero_unpaired-desirable", "KTO", "apo_zero_unpaired", beta=0.3, desirable_weight=1.5)
    yield from every_pairwise("stories")
    yield dpo("stories-mpo", ["sigmoid", "bco_pair", "sft"], "stories", loss_weights=[0.8, 0.2, 1.0])
    yield dpo("stories-sigmoid-ld_alpha", "sigmoid", "stories", ld_alpha=0.5)
    yield dpo("stories-sigmoid-js_divergence", "sigmoid", "stories", f_divergence_type="js_divergence")
    yield from reference_free("stories")
    yield from unpaired_cases("stories")


def older_dpo(name, loss, world="tiny", **options):
    case = dpo(name, loss, world, **options)
    case["options"].pop("use_weighting")
    if options.get("reference_free"):
        case["keys"]["reference_free"] = True
    return case


def older():
    """Of TRL 0.24: what 1.16 has no more."""
    for world in ("tiny", "stories"):
        prefix = "" if world == "tiny" else f"{world}-"
        yield older_dpo(f"{prefix}sigmoid-smoothing", "sigmoid", world, label_smoothing=0.1)
        yield older_dpo(f"{prefix}sigmoid-rpo_alpha", "sigmoid", world, rpo_alpha=0.5)
        yield unpaired(f"{prefix}bco", "BCO", "bco", world)
    yield older_dpo("hinge-rpo_alpha", "hinge", rpo_alpha=1.0)
    yield older_dpo("sigmoid-smoothing-rpo_alpha", "sigmoid", label_smoothing=0.3, rpo_alpha=0.2)
    yield older_dpo("sigmoid-reference_free", "sigmoid", reference_free=True)
    yield older_dpo("ipo-older", "ipo")
    yield unpaired("bco-beta", "BCO", "bco", beta=0.5)
    yield unpaired("bco-swapped", "BCO", "bco", swapped=True)
