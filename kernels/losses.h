/* Every objective as a small function from what it compares to its loss and derivatives, written once and
 * compiled by C and by CUDA.
 *
 * A loss sees the completions of one group as views: a value v_i (which one, its row in LOSSES says), and it
 * returns the loss and writes d loss / d v_i. What turns token sums into values, weights the loss and adds
 * up several losses is in kernels/objective.h; formulas, sources and defaults for readers are in
 * docs/objectives.md.
 *
 * A new objective is: one function here, one row in LOSSES (kernels/loss_table.h), one line in
 * docs/objectives.md, one golden case.
 */
#ifndef WPO_KERNELS_LOSSES_H
#define WPO_KERNELS_LOSSES_H

#include "kernels/loss_table.h"

/* -- scalars ---------------------------------------------------------------------------------- */

OBJECTIVE_FUNCTION double log_sigmoid(double x)
{
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

OBJECTIVE_FUNCTION double sigmoid(double x)
{
    double e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

/* sigmoid'(x), which has no cancellation for large |x|. */
OBJECTIVE_FUNCTION double sigmoid_slope(double x)
{
    double e = exp(-fabs(x));
    return e / ((1 + e) * (1 + e));
}

/* log w of several completions to their weight, at most 1 if clamped, and never more than e^60. */
OBJECTIVE_FUNCTION double weight_of(double log_weight, bool clamp)
{
    double most = clamp ? 0 : 60;
    return exp(log_weight > most ? most : log_weight);
}

OBJECTIVE_FUNCTION double pair_log_weight(enum weight_sides sides, double chosen, double rejected)
{
    return (sides == WEIGHT_REJECTED ? 0 : chosen) + (sides == WEIGHT_CHOSEN ? 0 : rejected);
}

/* -- pairs ------------------------------------------------------------------------------------ */

/* u = beta (v_w - v_l - gamma/beta) + length_alpha (|y_w| - |y_l|) - reward_margin_beta (s_w - s_l).
 * Target margin: SimPO (Meng et al. 2024, eq. 6); length: iLR-DPO (Liu et al. 2024), R-DPO (Park et al. 2024,
 * eq. 9); scores: DPO with an offset (Amini et al. 2024). */
OBJECTIVE_FUNCTION double pair_margin(const struct objective *o, const struct completion_view *w,
                                      const struct completion_view *l)
{
    double u = o->beta * (w->value - l->value - o->gamma_beta_ratio);
    if (o->length_alpha != 0) u += o->length_alpha * (w->length - l->length);
    if (o->reward_margin_beta != 0) u -= o->reward_margin_beta * (w->score - l->score);
    return u;
}

/* d loss / d u to both values of a pair. */
OBJECTIVE_FUNCTION void pair_derivative(const struct objective *o, struct completion_view *y, double du)
{
    y[0].derivative = o->beta * du;
    y[1].derivative = -o->beta * du;
}

/* -(1-e) log sigmoid(u) - e log sigmoid(-u): DPO (Rafailov et al. 2023, eq. 7), conservative with e > 0
 * (Mitchell 2023). Also SimPO, CPO, sigmoid_norm and AOT, on other values. du (out). */
OBJECTIVE_FUNCTION double logistic(const struct objective *o, double u, double *du)
{
    double e = o->label_smoothing;
    *du = e * sigmoid(u) - (1 - e) * sigmoid(-u);
    return -(1 - e) * log_sigmoid(u) - e * log_sigmoid(-u);
}

OBJECTIVE_FUNCTION double loss_sigmoid(const struct objective *o, const struct batch_facts *b,
                                       struct completion_view *y, int64_t n)
{
    double du, loss = logistic(o, pair_margin(o, &y[0], &y[1]), &du);
    (void)b, (void)n;
    pair_derivative(o, y, du);
    return loss;
}

/* [-(1-e) log sigmoid(u) + e log sigmoid(-u)] / (1-2e): Robust DPO (Chowdhury et al. 2024, eq. 9). */
OBJECTIVE_FUNCTION double loss_robust(const struct objective *o, const struct batch_facts *b,
                                      struct completion_view *y, int64_t n)
{
    double e = o->label_smoothing, u = pair_margin(o, &y[0], &y[1]);
    (void)b, (void)n;
    pair_derivative(o, y, -((1 - e) * sigmoid(-u) + e * sigmoid(u)) / (1 - 2 * e));
    return (-(1 - e) * log_sigmoid(u) + e * log_sigmoid(-u)) / (1 - 2 * e);
}

/* max(0, 1-u): SLiC-HF (Zhao et al. 2023), on log-ratios as in RSO (Liu et al. 2024). */
OBJECTIVE_FUNCTION double loss_hinge(const struct objective *o, const struct batch_facts *b,
                                     struct completion_view *y, int64_t n)
{
    double u = pair_margin(o, &y[0], &y[1]);
    (void)b, (void)n;
    pair_derivative(o, y, u >= 1 ? 0 : -1);
    return u >= 1 ? 0 : 1 - u; /* NaN stays NaN */
}

/* (v_w - v_l - 1/(2 beta))^2: IPO (Azar et al. 2024, eq. 17); values are means over tokens as in TRL for
 * `ipo`, sums as in the paper for `ipo_sum`. */
OBJECTIVE_FUNCTION double loss_ipo(const struct objective *o, const struct batch_facts *b,
                                   struct completion_view *y, int64_t n)
{
    double d = y[0].value - y[1].value - 1 / (2 * o->beta);
    (void)b, (void)n;
    y[0].derivative = 2 * d;
    y[1].derivative = -2 * d;
    return d * d;
}

/* KL of (sigmoid(u), sigmoid(-u)) from (1-e, e), e > 0: EXO (Ji et al. 2024, eq. 16). */
OBJECTIVE_FUNCTION double loss_exo_pair(const struct objective *o, const struct batch_facts *b,
                                        struct completion_view *y, int64_t n)
{
    double e = o->label_smoothing, u = pair_margin(o, &y[0], &y[1]);
    (void)b, (void)n;
    pair_derivative(o, y, sigmoid_slope(u) * (u - (log1p(-e) - log(e))));
    return sigmoid(u) * (log_sigmoid(u) - log1p(-e)) + sigmoid(-u) * (log_sigmoid(-u) - log(e));
}

/* -log sigmoid(a) - 1/2 log sigmoid(-a) - 1/2 log sigmoid(-b), a = beta v_w, b = beta v_l: NCA for pairs
 * (Chen et al. 2024). */
OBJECTIVE_FUNCTION double loss_nca_pair(const struct objective *o, const struct batch_facts *f,
                                        struct completion_view *y, int64_t n)
{
    double a = o->beta * y[0].value, b = o->beta * y[1].value;
    (void)f, (void)n;
    y[0].derivative = o->beta * (0.5 * sigmoid(a) - sigmoid(-a));
    y[1].derivative = o->beta * 0.5 * sigmoid(b);
    return -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b);
}

/* -log sigmoid(a) - log sigmoid(-b): BCO on pairs without a shift (Jung et al. 2024), as in TRL. */
OBJECTIVE_FUNCTION double loss_bco_pair(const struct objective *o, const struct batch_facts *f,
                                        struct completion_view *y, int64_t n)
{
    double a = o->beta * y[0].value, b = o->beta * y[1].value;
    (void)f, (void)n;
    y[0].derivative = -o->beta * sigmoid(-a);
    y[1].derivative = o->beta * sigmoid(b);
    return -log_sigmoid(a) - log_sigmoid(-b);
}

/* (v_w - 1/(2 beta))^2 + (v_l + 1/(2 beta))^2: SPPO with certain preferences as TRL has it, twice the
 * authors' loss. */
OBJECTIVE_FUNCTION double loss_sppo_hard(const struct objective *o, const struct batch_facts *b,
                                         struct completion_view *y, int64_t n)
{
    double half = 1 / (2 * o->beta), w = y[0].value - half, l = y[1].value + half;
    (void)b, (void)n;
    y[0].derivative = 2 * w;
    y[1].derivative = 2 * l;
    return w * w + l * l;
}

/* 1/2 (v_w - (P_w - 1/2)/beta)^2 + 1/2 (v_l - (P_l - 1/2)/beta)^2: SPPO (Wu et al. 2024, algorithm 1). */
OBJECTIVE_FUNCTION double loss_sppo(const struct objective *o, const struct batch_facts *b,
                                    struct completion_view *y, int64_t n)
{
    bool known = o->score_type == SCORE_PROBABILITY;
    double loss = 0;
    (void)b, (void)n;
    for (int i = 0; i < 2; i++) {
        double probability = known ? y[i].score : sigmoid(y[i].score - y[1 - i].score);
        double d = y[i].value - (probability - 0.5) / o->beta;
        y[i].derivative = d;
        loss += 0.5 * d * d;
    }
    return loss;
}

/* Each side against the other side's completion of the same rank (Melnyk et al. 2024, unpaired): the
 * partner's log-ratio is in the reference already (runtime/statistics.h), so v is a difference of two. Every
 * difference stands in two groups, once on each side: half a loss each, but each side's whole derivative. */
OBJECTIVE_FUNCTION double loss_aot_unpaired(const struct objective *o, const struct batch_facts *b,
                                            struct completion_view *y, int64_t n)
{
    double dw, dl, loss = logistic(o, o->beta * y[0].value, &dw) + logistic(o, -o->beta * y[1].value, &dl);
    (void)b, (void)n;
    y[0].derivative = o->beta * dw;
    y[1].derivative = -o->beta * dl;
    return 0.5 * loss;
}

/* (1 - sigmoid(a)) + sigmoid(b): APO-zero (D'Oosterlinck et al. 2024). */
OBJECTIVE_FUNCTION double loss_apo_zero(const struct objective *o, const struct batch_facts *f,
                                        struct completion_view *y, int64_t n)
{
    double a = o->beta * y[0].value, b = o->beta * y[1].value;
    (void)f, (void)n;
    y[0].derivative = -o->beta * sigmoid_slope(a);
    y[1].derivative = o->beta * sigmoid_slope(b);
    return sigmoid(-a) + sigmoid(b);
}

/* sigmoid(a) + (1 - sigmoid(a - b)): APO-down (D'Oosterlinck et al. 2024). */
OBJECTIVE_FUNCTION double loss_apo_down(const struct objective *o, const struct batch_facts *f,
                                        struct completion_view *y, int64_t n)
{
    double a = o->beta * y[0].value, b = o->beta * y[1].value;
    (void)f, (void)n;
    y[0].derivative = o->beta * (sigmoid_slope(a) - sigmoid_slope(a - b));
    y[1].derivative = o->beta * sigmoid_slope(a - b);
    return sigmoid(a) + sigmoid(b - a);
}

/* -log sigmoid(u) (1-m) + e^-u m, m = sigmoid(u/tau): DiscoPOP's log-ratio modulated loss (Lu et al. 2024).
 * e^-u m is one exponential, which does not grow for u -> -inf where tau <= 1. */
OBJECTIVE_FUNCTION double loss_discopop(const struct objective *o, const struct batch_facts *b,
                                        struct completion_view *y, int64_t n)
{
    double tau = o->discopop_tau, u = pair_margin(o, &y[0], &y[1]);
    double m = sigmoid(u / tau), rest = sigmoid(-u / tau), decay = exp(log_sigmoid(u / tau) - u);
    (void)b, (void)n;
    pair_derivative(o, y, -sigmoid(-u) * rest - decay + (rest * decay + m * rest * log_sigmoid(u)) / tau);
    return -log_sigmoid(u) * rest + decay;
}

/* -beta log sigmoid(log odds_w - log odds_l), log odds = v - log(1 - e^v) of the mean token probability:
 * ORPO (Hong et al. 2024, eq. 7); its likelihood term is rpo_alpha, 1 by default. */
OBJECTIVE_FUNCTION double loss_orpo(const struct objective *o, const struct batch_facts *b,
                                    struct completion_view *y, int64_t n)
{
    double x = 0, dx;
    (void)b, (void)n;
    for (int i = 0; i < 2; i++) { /* from -1e-6 on a straight line */
        double v = y[i].value > -1e-6 ? -1e-6 : y[i].value, rest = -expm1(v);
        double odds = v - (v < -0.6931471805599453 ? log1p(-exp(v)) : log(rest)) + (y[i].value - v) / rest;
        y[i].derivative = 1 / rest;
        x += i ? -odds : odds;
    }
    dx = -o->beta * sigmoid(-x);
    y[0].derivative *= dx;
    y[1].derivative *= -dx;
    return -o->beta * log_sigmoid(x);
}

/* sft: the likelihood term stands apart, because its mean is over tokens. */
OBJECTIVE_FUNCTION double loss_nothing(const struct objective *o, const struct batch_facts *b,
                                       struct completion_view *y, int64_t n)
{
    (void)o, (void)b, (void)n;
    y[0].derivative = 0;
    return 0;
}

/* -- labelled completions, one at a time ------------------------------------------------------ */

/* lambda (1 - sigmoid(+-(beta (v - z_0)))): KTO (Ethayarajh et al. 2024, eq. 8); APO-zero on unpaired data
 * with z_0 = 0. */
OBJECTIVE_FUNCTION double loss_kto(const struct objective *o, const struct batch_facts *b,
                                   struct completion_view *y, int64_t n)
{
    double sign = y->desirable ? 1 : -1, x = sign * o->beta * (y->value - b->kl);
    double lambda = y->desirable ? o->desirable_weight : o->undesirable_weight;
    (void)n;
    y->derivative = -sign * lambda * o->beta * sigmoid_slope(x);
    return lambda * sigmoid(-x);
}

/* -lambda log sigmoid(+-(beta v - delta)): BCO (Jung et al. 2024). */
OBJECTIVE_FUNCTION double loss_bco(const struct objective *o, const struct batch_facts *b,
                                   struct completion_view *y, int64_t n)
{
    double sign = y->desirable ? 1 : -1, x = sign * (o->beta * y->value - b->shift);
    double lambda = y->desirable ? o->desirable_weight : o->undesirable_weight;
    (void)n;
    y->derivative = -sign * lambda * o->beta * sigmoid(-x);
    return -lambda * log_sigmoid(x);
}

/* -- ranked groups ---------------------------------------------------------------------------- */

/* -sum_k log( e^(u_k) / sum_{j>=k} e^(u_j) ), u = beta v, the best first: DPO under the Plackett-Luce model
 * (Rafailov et al. 2023, eq. 20). d / d u_i = -1 + sum_{k<=i} e^(u_i - lse_k), but the last choice is none.
 * Of k = i: -1 + e^(u_i - lse_i) = -sigmoid(lse_{i+1} - u_i), which has no cancellation. */
OBJECTIVE_FUNCTION double loss_plackett_luce(const struct objective *o, const struct batch_facts *b,
                                             struct completion_view *y, int64_t n)
{
    double loss = 0, lse = o->beta * y[n - 1].value;
    (void)b;
    y[n - 1].derivative = 0;
    for (int64_t k = n - 2; k >= 0; k--) { /* scratch: lse_k = log sum_{j>=k} e^(u_j) */
        double u = o->beta * y[k].value, margin = u - lse;
        loss -= log_sigmoid(margin);
        y[k].derivative = -o->beta * sigmoid(-margin);
        lse = (margin > 0 ? u : lse) + log1p(exp(-fabs(margin)));
        y[k].scratch = lse;
    }
    for (int64_t i = 1; i < n; i++)
        for (int64_t k = 0; k < i; k++)
            y[i].derivative += o->beta * exp(o->beta * y[i].value - y[k].scratch);
    return loss;
}

/* The mean of DPO's loss over all pairs of a group whose scores differ, each with its own weight. Without
 * scores the order is the ranking. */
OBJECTIVE_FUNCTION double loss_all_pairs(const struct objective *o, const struct batch_facts *b,
                                         struct completion_view *y, int64_t n)
{
    double loss = 0, pairs = 0;
    (void)b;
    for (int64_t i = 0; i < n; i++)
        y[i].derivative = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++) {
            if (y[i].score == y[j].score) continue;
            double du, one = logistic(o, pair_margin(o, &y[i], &y[j]), &du), weight = 1;
            if (o->weighting != WEIGHTING_NONE)
                weight =
                    weight_of(pair_log_weight(o->weight_sides, y[i].weight, y[j].weight), o->weight_clamp);
            loss += weight * one;
            y[i].derivative += weight * o->beta * du;
            y[j].derivative -= weight * o->beta * du;
            pairs++;
        }
    for (int64_t i = 0; i < n && pairs > 0; i++)
        y[i].derivative /= pairs;
    return pairs > 0 ? loss / pairs : 0;
}

/* -- dispatch --------------------------------------------------------------------------------- */

OBJECTIVE_FUNCTION double loss_value(enum loss_type type, const struct objective *o,
                                     const struct batch_facts *b, struct completion_view *y, int64_t n)
{
    switch (type) {
#define X(id, name, function, shape, statistic, beta, traits)                                                \
    case LOSS_##id:                                                                                          \
        return function(o, b, y, n);
        LOSSES(X)
#undef X
    case LOSS_COUNT:
        break;
    }
    return NAN;
}

#endif
