/* The scalar mathematics of every objective, written once and compiled by C and by CUDA.
 *
 * Per completion the head hands over three sums over its tokens: log p(y_t), log sum_v p_v^2 and log max_v
 * p_v. From these come the weight w(x,y) = exp(mean_t a_t) of WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2
 * and section 3.3), the loss of a group, and one coefficient c = d loss / d logp per completion. No gradient
 * flows through the weight.
 *
 * A new objective is: a name in enum loss_type, a case in objective_group(), a row in the closed-form tests.
 */
#ifndef WPO_KERNELS_OBJECTIVE_H
#define WPO_KERNELS_OBJECTIVE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define OBJECTIVE_FUNCTION static inline __host__ __device__
#else
#define OBJECTIVE_FUNCTION static inline
#endif

enum loss_type {
    LOSS_SIGMOID, /* DPO's logistic loss with label smoothing: groups of two, chosen first */
    LOSS_SFT,     /* negative log-likelihood of the completion's tokens: groups of one */
};

enum weighting { WEIGHTING_NONE, WEIGHTING_UNALIGNED, WEIGHTING_SAMPLED, WEIGHTING_GREEDY, WEIGHTING_COUNT };

enum weight_sides { WEIGHT_BOTH, WEIGHT_CHOSEN, WEIGHT_REJECTED };

struct objective {
    enum loss_type loss_type;
    enum weighting weighting;
    enum weight_sides weight_sides;
    bool weight_clamp; /* the product of the weights is at most 1, as in the authors' code */
    double beta;
    double label_smoothing; /* 0 <= label_smoothing < 1/2 */
};

/* What the head knows of one completion after its forward pass. Sums run over the completion's tokens, in
 * order. */
struct completion_sums {
    double logp;    /* sum_t log p(y_t)               nats */
    double square;  /* sum_t log sum_v p_v^2          nats */
    double maximum; /* sum_t log max_v p_v            nats */
    double entropy; /* sum_t -sum_v p_v log p_v       nats */
    double logits;  /* sum_t mean_v z_v */
    double hits;    /* tokens that are the most likely one */
    int64_t count;  /* |y| >= 1 */
};

/* What the objective says of one group. coefficient[s] multiplies (onehot - softmax) of every token of
 * completion s. */
struct group_result {
    double loss;       /* weighted; for LOSS_SFT the sum over tokens */
    double weight;     /* 1 where no weighting applies */
    double log_weight; /* before the clamp */
    bool clamped;
};

OBJECTIVE_FUNCTION double log_sigmoid(double x)
{
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

OBJECTIVE_FUNCTION double sigmoid(double x)
{
    double e = exp(-fabs(x));
    return (x >= 0 ? 1 : e) / (1 + e);
}

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

/* log of the pair's weight before the clamp. */
OBJECTIVE_FUNCTION double pair_log_weight(const struct objective *objective,
                                          const struct completion_sums *chosen,
                                          const struct completion_sums *rejected)
{
    double sum = 0;
    if (objective->weight_sides != WEIGHT_REJECTED)
        sum += completion_log_weight(chosen, objective->weighting);
    if (objective->weight_sides != WEIGHT_CHOSEN)
        sum += completion_log_weight(rejected, objective->weighting);
    return sum;
}

/* loss = -(1-e) log sigmoid(u) - e log sigmoid(-u), u = beta (h_w - h_l), h = logp - reference;
 * d loss / d logp_w = beta (sigmoid(u) - (1-e)) = -d loss / d logp_l. */
OBJECTIVE_FUNCTION double loss_sigmoid(double beta, double smoothing, double margin,
                                       double *coefficient_chosen)
{
    double u = beta * margin;
    *coefficient_chosen = beta * (sigmoid(u) - (1 - smoothing));
    return -(1 - smoothing) * log_sigmoid(u) - smoothing * log_sigmoid(-u);
}

/* How many completions a group must have. */
OBJECTIVE_FUNCTION int64_t objective_group_size(enum loss_type loss_type)
{
    return loss_type == LOSS_SFT ? 1 : 2;
}

OBJECTIVE_FUNCTION bool objective_uses_reference(enum loss_type loss_type)
{
    return loss_type != LOSS_SFT;
}

/* sums, reference (nats) and coefficient hold objective_group_size() entries, the chosen completion first. */
OBJECTIVE_FUNCTION struct group_result objective_group(const struct objective *objective,
                                                       const struct completion_sums *sums,
                                                       const double *reference, double *coefficient)
{
    struct group_result result = {0, 1, 0, false};
    for (int64_t i = 0; i < objective_group_size(objective->loss_type); i++)
        coefficient[i] = 0;
    switch (objective->loss_type) {
    case LOSS_SFT:
        result.loss = -sums[0].logp;
        coefficient[0] = fabs(result.loss) < HUGE_VAL ? -1 : NAN;
        return result;
    case LOSS_SIGMOID:
        result.loss =
            loss_sigmoid(objective->beta, objective->label_smoothing,
                         (sums[0].logp - reference[0]) - (sums[1].logp - reference[1]), &coefficient[0]);
        coefficient[1] = -coefficient[0];
        break;
    }
    if (objective->weighting != WEIGHTING_NONE) {
        result.log_weight = pair_log_weight(objective, &sums[0], &sums[1]);
        result.clamped = objective->weight_clamp && result.log_weight > 0;
        result.weight = result.clamped ? 1 : exp(result.log_weight > 60 ? 60 : result.log_weight);
    }
    result.loss *= result.weight;
    coefficient[0] *= result.weight;
    coefficient[1] *= result.weight;
    /* A loss that is not finite must not leave a gradient that is: the step would be taken. */
    if (!(fabs(result.loss) < HUGE_VAL)) coefficient[0] = coefficient[1] = NAN;
    return result;
}

#endif
