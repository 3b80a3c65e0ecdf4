/* Every coefficient of every loss against the derivative of that loss, with every weighting and every
 * modifier that it takes, the weights held fixed. What losses do at extremes and beside each other:
 * test_losses_limits.c. */
#include "tests/unit/loss_case.h"

/* -- derivatives ------------------------------------------------------------------------------ */

/* Which tokens of which completion move; completion n is the prompt. */
struct nudge {
    int64_t completion;
    bool leading;
};

/* Moves log-probabilities by x, and what weights compare them with by as much: log w stays what it is. */
static double nudged_total(const struct loss_case *l, struct nudge nudge, double x)
{
    struct loss_case moved = *l;
    if (nudge.completion == l->n) {
        moved.prompt.logp += x;
        return case_total(&moved);
    }
    struct completion_sums *sums = &moved.sums[nudge.completion];
    sums->logp += x;
    if (nudge.leading) sums->leading += x;
    sums->square += x;
    return case_total(&moved);
}

/* By the five-point rule: error step^4 f''''' / 30. */
static double derivative(const struct loss_case *l, struct nudge nudge, double step)
{
    double far = nudged_total(l, nudge, 2 * step) - nudged_total(l, nudge, -2 * step);
    double near = nudged_total(l, nudge, step) - nudged_total(l, nudge, -step);
    return (8 * near - far) / (12 * step);
}

/* How steep what a loss bends along is, d u / d log p, at most: u is beta v (discopop: beta v / tau), v a
 * score of a log-ratio, by its length; of orpo the log odds, 1 / (1 - e^v). Squares do not bend. */
static double steepness(const struct loss_case *l, enum loss_type type)
{
    const struct objective *o = &l->objective;
    unsigned traits = loss_kind(type).traits;
    double steepest = 0;
    for (int64_t i = 0; i < l->n; i++) {
        double length = traits & TRAIT_MEAN ? (double)l->sums[i].count : 1, slope = 1;
        if (traits & TRAIT_DIVERGENCE)
            divergence_score(o, objective_ratio(o, &l->sums[i], &l->data[i]), &slope);
        if (type == LOSS_ORPO) slope = -1 / expm1(l->sums[i].logp / length) / o->beta;
        steepest = fmax(steepest, slope / length);
    }
    steepest *= o->beta;
    return fmax(1, type == LOSS_DISCOPOP ? steepest / o->discopop_tau : steepest);
}

/* With k the steepness and step = 1e-3 / k, the rule is off by 1e-12 k times a fifth derivative by u over 30,
 * which is below 30 weights here; and rounding moves every term that the total is made of by 2e-16, 3e-13 k
 * of it in the derivative. The terms: the total, the weight, the log-ratios as far as they count (c), and
 * what log w is made of. */
static double tolerance(const struct loss_case *l, double total, double steep)
{
    double terms = fabs(total), largest = 0, factor = 0;
    for (int64_t i = 0; i < l->n; i++) {
        const struct completion_sums *s = &l->sums[i];
        double size = fabs(s->logp) + fabs(l->data[i].reference) + fabs(s->square);
        terms += fabs(l->c[i].leading) * size;
        largest = fmax(largest, size / (double)s->count);
    }
    if (l->objective.weighting != WEIGHTING_NONE) terms += fabs(total) * largest;
    for (int64_t k = 0; k < l->objective.term_count; k++)
        factor += l->objective.terms[k].weight;
    return 1e-12 * steep *
           (terms + 30 * factor * fmax(1, l->result.weight) * fmax(l->facts.class_weight[0], 1));
}

struct tally {
    long all, sharp; /* derivatives; those that differ from their own 101 % and from 0 */
};

/* derivatives: of the loss, as it is written down, what the coefficient is; aot_unpaired has half a loss in
 * each of two groups. */
static void check_gradient(const struct loss_case *from, enum loss_type type, struct tally *tally)
{
    struct loss_case l = *from;
    double total = case_total(&l), steep = steepness(&l, type), bound = tolerance(&l, total, steep);
    CHECK(isfinite(total));
    for (int64_t i = 0; i < l.n + (l.with_prompt ? 1 : 0); i++)
        for (int part = 0; part < 2; part++) {
            double c = part ? l.c[i].trailing : l.c[i].leading;
            double slope = derivative(&l, (struct nudge){i, part == 0}, 1e-3 / steep);
            if (type == LOSS_AOT_UNPAIRED) slope *= 2;
            if (!(fabs(c - slope) <= bound))
                fprintf(stderr, "%s: completion %lld of %lld, part %d, h %g %g, logp %g %g\n",
                        loss_kind(type).name, (long long)i, (long long)l.n, part,
                        l.sums[0].logp - l.data[0].reference, l.sums[1].logp - l.data[1].reference,
                        l.sums[0].logp, l.sums[1].logp);
            CHECK_NEAR(c, slope, bound);
            tally->all++;
            tally->sharp += fabs(c) > 100 * bound;
        }
}

/* -- modifiers -------------------------------------------------------------------------------- */

enum modifier {
    PLAIN,
    SMOOTHING,
    STEEP, /* another beta */
    LEADING,
    LENGTH,
    MARGIN_OF_SCORES,
    TARGET_MARGIN,
    WEIGHT_OF_TERM,
    FORWARD_KL,
    JENSEN_SHANNON,
    ALPHA_BELOW,
    ALPHA_ABOVE,
    NO_REFERENCE,
    PESSIMISM,
    OPTIMISM,
    LIKELIHOOD, /* of the prompt, too */
    MODIFIERS
};

/* False where the loss does not take it. */
static bool modify(struct loss_case *l, enum loss_type type, enum modifier modifier)
{
    struct objective *o = &l->objective;
    unsigned traits = loss_kind(type).traits;
    bool pair = loss_kind(type).shape == GROUP_PAIR, half = type == LOSS_AOT_UNPAIRED;
    switch (modifier) {
    case SMOOTHING:
        o->label_smoothing = 0.2;
        return traits & TRAIT_SMOOTHING;
    case STEEP:
        o->beta *= 3;
        return true;
    case LEADING:
        o->ld_alpha = 0.3;
        return true;
    case LENGTH:
        o->length_alpha = 0.07;
        return traits & TRAIT_MARGIN;
    case MARGIN_OF_SCORES:
        o->reward_margin_beta = 0.4;
        return traits & TRAIT_MARGIN;
    case TARGET_MARGIN:
        o->gamma_beta_ratio = 0.9;
        return traits & TRAIT_MARGIN;
    case WEIGHT_OF_TERM:
        o->terms[0].weight = 0.35;
        return !half;
    case FORWARD_KL:
    case JENSEN_SHANNON:
        o->f_divergence_type = modifier == FORWARD_KL ? DIVERGENCE_FORWARD_KL : DIVERGENCE_JS;
        return traits & TRAIT_DIVERGENCE;
    case ALPHA_BELOW:
    case ALPHA_ABOVE:
        o->f_divergence_type = DIVERGENCE_ALPHA;
        o->f_alpha_divergence_coef = modifier == ALPHA_BELOW ? 0.4 : 1.7;
        return traits & TRAIT_DIVERGENCE;
    case NO_REFERENCE:
        o->reference_free = true;
        return traits & TRAIT_REFERENCE;
    case PESSIMISM:
        o->vpo_alpha = 0.6;
        return pair && !half;
    case OPTIMISM:
        o->optimism_alpha = 0.45;
        l->n = 3;
        case_set(l, 2, 4, -6, 0.8);
        return pair && !half;
    case LIKELIHOOD:
        o->rpo_alpha = 0.8;
        o->nll_on_prompt = l->with_prompt = true;
        l->facts.token_scale = 0.05;
        l->prompt = (struct completion_sums){.logp = -21, .leading = -21, .square = -9, .count = 4};
        return loss_kind(type).shape != GROUP_LABELLED && !half;
    case PLAIN:
    case MODIFIERS:
        break;
    }
    return true;
}

/* `none`, and `sampled` on both sides and on one; two of three for losses that take no weight. */
static bool weigh(struct loss_case *l, enum loss_type type, int how)
{
    l->objective.weighting = how ? WEIGHTING_SAMPLED : WEIGHTING_NONE;
    l->objective.weight_sides = how > 1 ? WEIGHT_REJECTED : WEIGHT_BOTH;
    return how == 0 || !(loss_kind(type).traits & TRAIT_UNWEIGHTED);
}

/* -- pairs ------------------------------------------------------------------------------------ */

/* No h makes u of hinge exactly 1. The largest last: exponentials of a divergence are steep beyond 1e8 there.
 */
static const double ratios[] = {0, 0.45, -3.1, 2.6, 60, -60, 1e4, -1e4};
static const double means[] = {-0.4, -1e-3, -3.1, -60, -1e4, -2e-6, -1e-9};
static const int64_t lengths[3][2] = {{7, 5}, {1, 1}, {1, 9}};

/* The k-th of many pairs; false after the last. */
static bool pick_pair(struct loss_case *l, enum loss_type type, int k)
{
    bool bends = l->objective.f_divergence_type != DIVERGENCE_REVERSE_KL;
    bool reference = (loss_kind(type).traits & TRAIT_REFERENCE) && !l->objective.reference_free;
    int most = !reference ? 7 : bends ? 4 : 8, length = k / (most * most), i = k / most % most, j = k % most;
    if (length == 3) return false;
    for (int s = 0; s < 2; s++) {
        int64_t count = lengths[length][s];
        double place = s ? means[j % 7] : means[i % 7];
        if (!reference && bends) place = fmax(place, -3.1); /* h is the log-probability */
        if (reference)
            case_set(l, s, count, s ? -8 : -9.1, s ? ratios[j] : ratios[i]);
        else
            case_set(l, s, count, bends ? place : place * (double)count, 0);
    }
    return true;
}

static void pairs(enum loss_type type)
{
    struct tally whole = {0};
    for (enum modifier modifier = 0; modifier < MODIFIERS; modifier++)
        for (int how = 0; how < 3; how++) {
            struct tally tally = {0};
            struct loss_case l = case_of(type, WEIGHTING_NONE);
            l.facts.group_scale = 0.2;
            l.data[0].score = 1.3, l.data[1].score = 0.2;
            if (!weigh(&l, type, how) || !modify(&l, type, modifier)) continue;
            for (int k = 0; pick_pair(&l, type, k); k++)
                check_gradient(&l, type, &tally);
            CHECK(tally.sharp > tally.all / 16);
            whole.all += tally.all, whole.sharp += tally.sharp;
        }
    printf("%s: %ld derivatives, %ld sharp\n", loss_kind(type).name, whole.all, whole.sharp);
}

/* SPPO on given probabilities, and a list of losses in which each has its part. */
static void more_pairs(void)
{
    struct tally tally = {0};
    struct loss_case l = case_of(LOSS_SPPO, WEIGHTING_SAMPLED);
    l.objective.score_type = SCORE_PROBABILITY;
    l.data[0].score = 0.9, l.data[1].score = 0.3;
    for (int k = 0; pick_pair(&l, LOSS_SPPO, k); k++)
        check_gradient(&l, LOSS_SPPO, &tally);

    static const struct loss_term terms[] = {
        {LOSS_SIGMOID, 0.8}, {LOSS_SFT, 1.5}, {LOSS_BCO_PAIR, 0.2}, {LOSS_SIGMOID_NORM, 0.6}};
    for (int how = 0; how < 3; how++) {
        l = case_of(LOSS_SIGMOID, WEIGHTING_NONE);
        weigh(&l, LOSS_SIGMOID, how);
        memcpy(l.objective.terms, terms, sizeof terms);
        l.objective.term_count = 4;
        l.objective.ld_alpha = 0.7;
        l.facts.token_scale = 0.04;
        l.with_prompt = how == 1;
        l.prompt = (struct completion_sums){.logp = -21, .count = 4};
        for (int k = 0; pick_pair(&l, LOSS_SIGMOID, k); k++)
            check_gradient(&l, LOSS_SIGMOID, &tally);
    }
    CHECK(tally.sharp > tally.all / 2);
}

/* -- labelled completions and ranked groups --------------------------------------------------- */

static void labelled(enum loss_type type)
{
    struct tally tally = {0};
    for (enum modifier modifier = 0; modifier < MODIFIERS; modifier++)
        for (int how = 0; how < 2; how++)
            for (int k = 0; k < 512; k++) {
                struct loss_case l = case_of(type, WEIGHTING_NONE);
                l.n = 1 + k % 5;
                l.facts =
                    (struct batch_facts){.group_scale = 0.1, .token_scale = 1, .kl = 0.3, .shift = -0.2};
                l.facts.class_weight[0] = how ? 0.6 : 1, l.facts.class_weight[1] = how ? 2.2 : 1;
                l.objective.desirable_weight = 1.3, l.objective.undesirable_weight = 0.7;
                if (!weigh(&l, type, how) || !modify(&l, type, modifier)) break;
                for (int i = 0, at = k; i < l.n; i++, at = at / 8 + 3) {
                    case_set(&l, i, 1 + 3 * i, -5 - i, ratios[at % 8]);
                    l.data[i].desirable = (k + i) % 3 != 0;
                }
                check_gradient(&l, type, &tally);
            }
    CHECK(tally.sharp > tally.all / 8);
    printf("%s: %ld derivatives, %ld sharp\n", loss_kind(type).name, tally.all, tally.sharp);
}

/* Scores: all different, with ties, none, all the same. */
static double score_of(int kind, int i)
{
    return kind == 0 ? 3 - 0.5 * i : kind == 1 ? 2 - i / 2 : kind == 2 ? (double)NAN : 1;
}

static void ranked(enum loss_type type)
{
    struct tally tally = {0};
    for (enum modifier modifier = 0; modifier < MODIFIERS; modifier++)
        for (int how = 0; how < 3; how++)
            for (int k = 0; k < 600; k++) {
                struct loss_case l = case_of(type, WEIGHTING_NONE);
                int scores = k / 6 % 4;
                l.n = 2 + k % 6;
                l.facts.group_scale = 0.2;
                if (!weigh(&l, type, how) || !modify(&l, type, modifier)) break;
                if (modifier == MARGIN_OF_SCORES && scores == 2) continue;
                bool bends = l.objective.f_divergence_type != DIVERGENCE_REVERSE_KL;
                unsigned long long state = (unsigned long long)k;
                for (int i = 0; i < l.n; i++) {
                    int at = (int)((check_uniform(&state) + 1) / 2 * (bends ? 4 : 8));
                    case_set(&l, i, 1 + 2 * i, l.objective.reference_free ? -2 - i : -5 - i, ratios[at]);
                    l.data[i].score = score_of(scores, i);
                }
                check_gradient(&l, type, &tally);
            }
    CHECK(tally.sharp > tally.all / 4);
    printf("%s: %ld derivatives, %ld sharp\n", loss_kind(type).name, tally.all, tally.sharp);
}

/* -- the check can fail ----------------------------------------------------------------------- */

/* Had the weight a gradient, it would show: the same derivative with nothing moved but log p. */
static void through_the_weight(void)
{
    struct loss_case l = case_pair(LOSS_SIGMOID, WEIGHTING_SAMPLED), up = l, down = l;
    up.sums[0].logp += 1e-4, down.sums[0].logp -= 1e-4;
    double through = (case_total(&up) - case_total(&down)) / 2e-4;
    case_run(&l);
    CHECK(fabs(l.c[0].leading - through) > 0.01);
}

int main(void)
{
    for (enum loss_type type = 0; type < LOSS_COUNT; type++)
        switch (loss_kind(type).shape) {
        case GROUP_PAIR:
        case GROUP_CHOSEN:
            pairs(type);
            break;
        case GROUP_LABELLED:
            labelled(type);
            break;
        case GROUP_RANKED:
            ranked(type);
            break;
        }
    more_pairs();
    through_the_weight();
    return check_result();
}
