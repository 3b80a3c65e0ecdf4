/* From what the head knows of a group's completions to the loss and one coefficient per completion. Compiled
 * by C and by CUDA; the losses themselves are in kernels/losses.h.
 *
 *   sums over tokens -> log-ratios -> values -> losses, weighted -> d loss / d log p(y_t)
 *
 * The weight of a completion is w(x,y) = exp(mean_t a_t) of WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2
 * and section 3.3); no gradient flows through it.
 */
#ifndef WPO_KERNELS_OBJECTIVE_H
#define WPO_KERNELS_OBJECTIVE_H

#include "kernels/losses.h"

#include <string.h>

/* What the head knows of one completion after its forward pass. Sums run over the completion's tokens, in
 * order. */
struct completion_sums {
    double logp;    /* sum_t log p(y_t)               nats */
    double square;  /* sum_t log sum_v p_v^2          nats */
    double maximum; /* sum_t log max_v p_v            nats */
    double entropy; /* sum_t -sum_v p_v log p_v       nats */
    double logits;  /* sum_t mean_v z_v */
    double hits;    /* tokens that are the most likely one */
    double leading; /* logp of the first tokens, as many as the pair's shorter completion has */
    int64_t count;  /* |y| >= 1; 0 for a prompt of one token */
};

/* What the data says of one completion. */
struct completion_data {
    double reference; /* log-probability, nats, as objective_logp() counts; unused without a reference */
    double score;     /* NaN where the data has none */
    int64_t desirable;
};

/* d loss / d log p of a completion's tokens: of its first ones, as many as the pair's shorter completion has,
 * and of those behind them. It multiplies (onehot - softmax) of each. */
struct token_coefficient {
    double leading, trailing;
};

struct group_result {
    double loss;       /* weighted; to be divided by the groups or labelled completions of the batch */
    double likelihood; /* of the chosen completion, negative; to be divided by tokens */
    double weight;     /* 1 where no weighting applies; of several, the mean */
    double log_weight; /* before the clamp */
    bool clamped;
};

/* -- what an objective is --------------------------------------------------------------------- */

/* One loss with the defaults of every key. */
OBJECTIVE_FUNCTION struct objective objective_of(enum loss_type type, enum weighting weighting)
{
    struct objective o;
    memset(&o, 0, sizeof o);
    o.terms[0].type = type;
    o.terms[0].weight = 1;
    o.term_count = 1;
    o.weighting = weighting;
    o.weight_clamp = true;
    o.beta = loss_kind(type).beta;
    o.label_smoothing = type == LOSS_EXO_PAIR ? 1e-3 : 0;
    o.gamma_beta_ratio = type == LOSS_SIMPO ? 0.5 : 0;
    o.rpo_alpha = type == LOSS_CPO || type == LOSS_ORPO ? 1 : 0;
    o.discopop_tau = 0.05;
    o.f_alpha_divergence_coef = 0.5;
    o.desirable_weight = o.undesirable_weight = o.ld_alpha = 1;
    return o;
}

/* The kind of its first loss that is no likelihood; all others have its shape. */
OBJECTIVE_FUNCTION struct loss_kind objective_kind(const struct objective *objective)
{
    for (int64_t i = 0; i < objective->term_count; i++)
        if (objective->terms[i].type != LOSS_SFT) return loss_kind(objective->terms[i].type);
    return loss_kind(LOSS_SFT);
}

OBJECTIVE_FUNCTION enum group_shape objective_shape(const struct objective *objective)
{
    return objective_kind(objective).shape;
}

/* Whether the reference's log-probabilities are needed. */
OBJECTIVE_FUNCTION bool objective_uses_reference(const struct objective *objective)
{
    return !objective->reference_free && (objective_kind(objective).traits & TRAIT_REFERENCE);
}

OBJECTIVE_FUNCTION bool objective_is_weighted(const struct objective *objective)
{
    return objective->weighting != WEIGHTING_NONE;
}

/* Factor of the likelihood term. */
OBJECTIVE_FUNCTION double objective_likelihood(const struct objective *objective)
{
    double factor = objective->rpo_alpha;
    for (int64_t i = 0; i < objective->term_count; i++)
        if (objective->terms[i].type == LOSS_SFT) factor += objective->terms[i].weight;
    return factor;
}

/* Completions that a group must have, at least and at most. */
OBJECTIVE_FUNCTION void objective_group_size(const struct objective *objective, int64_t *least, int64_t *most)
{
    enum group_shape shape = objective_shape(objective);
    *least = shape == GROUP_PAIR || shape == GROUP_RANKED ? 2 : 1;
    *most = shape == GROUP_PAIR ? 2 : LARGEST_GROUP;
    if (objective->optimism_alpha != 0) *least = *most = 3; /* the third is drawn from the policy */
}

/* -- from sums to values ---------------------------------------------------------------------- */

/* log w(x,y) = (1/|y|) sum_t a_t, with a_t = 0, logp_t, logp_t - log sum p^2 or logp_t - log max p. */
OBJECTIVE_FUNCTION double completion_log_weight(const struct completion_sums *sums, enum weighting weighting)
{
    double count = (double)sums->count;
    switch (weighting) {
    case WEIGHTING_UNALIGNED:
        return sums->logp / count;
    case WEIGHTING_SAMPLED:
        return (sums->logp - sums->square) / count;
    case WEIGHTING_GREEDY:
        return (sums->logp - sums->maximum) / count;
    case WEIGHTING_NONE:
    case WEIGHTING_COUNT:
        break;
    }
    return 0;
}

/* log pi(y|x); with ld_alpha the tokens behind the pair's shorter length count less: LD-DPO (Liu et al. 2024,
 * arXiv 2409.06411, eq. 10). */
OBJECTIVE_FUNCTION double objective_logp(const struct objective *objective,
                                         const struct completion_sums *sums)
{
    if (objective->ld_alpha == 1) return sums->logp; /* no rounding by way of the parts */
    return sums->leading + objective->ld_alpha * (sums->logp - sums->leading);
}

/* h = log pi - log pi_ref, or log pi where there is no reference. */
OBJECTIVE_FUNCTION double objective_ratio(const struct objective *objective,
                                          const struct completion_sums *sums,
                                          const struct completion_data *data)
{
    return objective_logp(objective, sums) - (objective_uses_reference(objective) ? data->reference : 0);
}

/* What is logged as a completion's reward: beta h as in TRL, whatever the divergence, the normalisation and
 * the weight; without a reference beta times what is compared. */
OBJECTIVE_FUNCTION double objective_reward(const struct objective *objective,
                                           const struct completion_sums *sums,
                                           const struct completion_data *data)
{
    unsigned traits = objective_kind(objective).traits;
    bool mean = (traits & TRAIT_MEAN) && !(traits & TRAIT_REFERENCE);
    return objective->beta * objective_ratio(objective, sums, data) / (mean ? (double)sums->count : 1);
}

/* The score of a log-ratio h under an f-divergence (Wang et al. 2024, f-DPO, table 1), and its slope (out).
 * Constants are such that a ratio of one scores 0, as in TRL. Exponentials go on as straight lines behind
 * e^20, so that no gradient vanishes or overflows. */
OBJECTIVE_FUNCTION double divergence_score(const struct objective *objective, double h, double *slope)
{
    const double most = 20;
    double alpha = objective->f_alpha_divergence_coef - 1, x, e;
    switch (objective->f_divergence_type) {
    case DIVERGENCE_FORWARD_KL:
        x = -h;
        e = exp(x > most ? most : x); /* NaN stays NaN */
        *slope = e;
        return x > most ? 1 - e * (1 + x - most) : -expm1(x);
    case DIVERGENCE_JS:
        *slope = sigmoid(-h);
        return 0.6931471805599453 + log_sigmoid(h);
    case DIVERGENCE_ALPHA:
        if (alpha == 0) break; /* the limit is the reverse KL divergence */
        x = alpha * h;
        e = exp(x > most ? most : x);
        *slope = e;
        return (x > most ? e * (1 + x - most) - 1 : expm1(x)) / alpha;
    case DIVERGENCE_REVERSE_KL:
        break;
    }
    *slope = 1;
    return h;
}

/* What a loss of these traits compares. */
OBJECTIVE_FUNCTION void view_value(struct completion_view *view, const struct objective *objective,
                                   unsigned traits, const struct completion_sums *sums,
                                   const struct completion_data *data)
{
    view->value = objective_ratio(objective, sums, data);
    view->slope = 1;
    if (traits & TRAIT_DIVERGENCE) view->value = divergence_score(objective, view->value, &view->slope);
    if (!(traits & TRAIT_MEAN)) return;
    view->value /= view->length;
    view->slope /= view->length;
}

/* -- the group -------------------------------------------------------------------------------- */

/* Adds factor * d / d log pi(y|x) to the tokens' coefficients. */
OBJECTIVE_FUNCTION void coefficient_add(struct token_coefficient *coefficient,
                                        const struct objective *objective, double factor)
{
    coefficient->leading += factor;
    coefficient->trailing += factor * objective->ld_alpha;
}

/* One of the weights whose mean the metrics show. */
OBJECTIVE_FUNCTION void note_weight(struct group_result *result, double log_weight, bool clamp, double share)
{
    result->log_weight += share * log_weight;
    result->weight += share * weight_of(log_weight, clamp);
    if (clamp && log_weight > 0) result->clamped = true;
}

/* The weight that multiplies the losses of the whole group: of a pair w_w w_l, of a ranked group the product
 * of all; labelled completions have their own. The metrics show that of the first loss, which may weigh its
 * own pairs. */
OBJECTIVE_FUNCTION double weigh_group(struct group_result *result, const struct objective *objective,
                                      const struct completion_view *view, int64_t n)
{
    const bool clamp = objective->weight_clamp;
    const enum weight_sides sides = objective->weight_sides;
    struct loss_kind kind = objective_kind(objective);
    double all = 0, count = (double)n;
    result->weight = 0;
    if (kind.shape == GROUP_LABELLED) {
        for (int64_t i = 0; i < n; i++)
            note_weight(result, view[i].weight, false, 1 / count);
        return 1;
    }
    for (int64_t i = 0; i < n; i++)
        all += view[i].weight;
    if (kind.shape == GROUP_PAIR) all = pair_log_weight(sides, view[0].weight, view[1].weight);
    if (!(kind.traits & TRAIT_WEIGHTED)) note_weight(result, all, clamp, 1);
    for (int64_t i = 0; i < n && (kind.traits & TRAIT_WEIGHTED); i++)
        for (int64_t j = i + 1; j < n; j++)
            note_weight(result, pair_log_weight(sides, view[i].weight, view[j].weight), clamp,
                        2 / (count * (count - 1)));
    return weight_of(all, clamp);
}

/* The losses of a group, added up: of what is compared all at once, of labelled completions one at a time,
 * each with its own weight, which is normalised within its class over the batch (WPO, section 4.2: the
 * weights of a class sum to one). */
OBJECTIVE_FUNCTION double group_losses(const struct objective *objective, const struct batch_facts *facts,
                                       const struct completion_sums *sums, const struct completion_data *data,
                                       int64_t n, double weight, struct completion_view *view,
                                       struct token_coefficient *coefficient)
{
    bool labelled = objective_shape(objective) == GROUP_LABELLED;
    int64_t size = labelled ? 1 : n;
    double loss = 0;
    for (int64_t at = 0; at < n; at += size)
        for (int64_t k = 0; k < objective->term_count; k++) {
            enum loss_type type = objective->terms[k].type;
            unsigned traits = loss_kind(type).traits;
            double factor = objective->terms[k].weight;
            if (type == LOSS_SFT) continue;
            if (labelled)
                factor *= weight_of(view[at].weight, false) * facts->class_weight[view[at].desirable ? 1 : 0];
            else if (!(traits & TRAIT_WEIGHTED))
                factor *= weight;
            for (int64_t i = at; i < at + size; i++)
                view_value(&view[i], objective, traits, &sums[i], &data[i]);
            loss += factor * loss_value(type, objective, facts, view + at, size);
            for (int64_t i = at; i < at + size; i++)
                coefficient_add(&coefficient[i], objective,
                                factor * facts->group_scale * view[i].derivative * view[i].slope);
        }
    return loss;
}

/* What is constant in h: adds factor * h of one completion. */
OBJECTIVE_FUNCTION double ratio_term(const struct objective *objective, const struct batch_facts *facts,
                                     double factor, const struct completion_sums *sums,
                                     const struct completion_data *data,
                                     struct token_coefficient *coefficient)
{
    coefficient_add(coefficient, objective, factor * facts->group_scale);
    return factor * objective_ratio(objective, sums, data);
}

/* The likelihood of the chosen completion: its mean is over tokens, and no weight or length rule applies. */
OBJECTIVE_FUNCTION void likelihood_term(struct group_result *result, const struct objective *objective,
                                        const struct batch_facts *facts, const struct completion_sums *sums,
                                        const struct completion_sums *prompt, int64_t n,
                                        struct token_coefficient *coefficient)
{
    double factor = objective_likelihood(objective), c = -factor * facts->token_scale;
    if (factor == 0) return;
    result->likelihood = -factor * (sums[0].logp + (prompt ? prompt->logp : 0));
    coefficient[0].leading += c;
    coefficient[0].trailing += c;
    if (prompt) coefficient[n].leading = coefficient[n].trailing = c;
}

/* sums, data [n]: the group's completions, the chosen or best one first. prompt: sums of the prompt's own
 * tokens with nll_on_prompt, else NULL. view [n] is scratch. coefficient (out) [n], and one more with prompt:
 * already divided by what means are over. */
OBJECTIVE_FUNCTION struct group_result
objective_group(const struct objective *objective, const struct batch_facts *facts,
                const struct completion_sums *sums, const struct completion_data *data,
                const struct completion_sums *prompt, int64_t n, struct completion_view *view,
                struct token_coefficient *coefficient)
{
    struct group_result result = {0, 0, 1, 0, false};
    enum group_shape shape = objective_shape(objective);
    int64_t compared = shape == GROUP_PAIR ? 2 : n, all = n + (prompt ? 1 : 0);
    bool known = true;
    for (int64_t i = 0; i < all; i++)
        coefficient[i].leading = coefficient[i].trailing = 0;
    for (int64_t i = 0; i < n; i++) {
        view[i].length = (double)sums[i].count;
        view[i].score = data[i].score;
        view[i].desirable = data[i].desirable != 0;
        view[i].weight = completion_log_weight(&sums[i], objective->weighting);
        double sum = fabs(objective_ratio(objective, &sums[i], &data[i])) + fabs(view[i].weight);
        if (!(sum < HUGE_VAL)) known = false;
    }

    if (shape != GROUP_CHOSEN) {
        double weight =
            objective_is_weighted(objective) ? weigh_group(&result, objective, view, compared) : 1;
        result.loss = group_losses(objective, facts, sums, data, compared, weight, view, coefficient);
    }
    /* VPO (Cen et al. 2024), offline with the chosen data as calibration: - alpha beta h_w. */
    if (objective->vpo_alpha != 0)
        result.loss += ratio_term(objective, facts, -objective->vpo_alpha * objective->beta, &sums[0],
                                  &data[0], &coefficient[0]);
    /* SELM (Zhang et al. 2024): + alpha beta h of a completion drawn from the policy. */
    if (objective->optimism_alpha != 0 && n > 2)
        result.loss += ratio_term(objective, facts, objective->optimism_alpha * objective->beta, &sums[2],
                                  &data[2], &coefficient[2]);
    likelihood_term(&result, objective, facts, sums, prompt, n, coefficient);

    /* A loss that is not finite must not leave a gradient that is: the step would be taken. Nor may a number
     * that is none be lost where a loss is flat. */
    if (!known) result.loss = NAN;
    if (!(fabs(result.loss) < HUGE_VAL && fabs(result.likelihood) < HUGE_VAL))
        for (int64_t i = 0; i < all; i++)
            coefficient[i].leading = coefficient[i].trailing = NAN;
    return result;
}

#endif
