/* The table of objectives, and what a run says of its objective. Compiled by C and by CUDA.
 *
 * Each row of LOSSES names a function in kernels/losses.h and declares what it needs; the launcher's choices
 * and checks, the batching and the dispatch on host and device all follow from the row.
 */
#ifndef WPO_KERNELS_LOSS_TABLE_H
#define WPO_KERNELS_LOSS_TABLE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define OBJECTIVE_FUNCTION static inline __host__ __device__
#else
#define OBJECTIVE_FUNCTION static inline
#endif

/* -- the table -------------------------------------------------------------------------------- */

/* What a group must be. */
enum group_shape {
    GROUP_PAIR,     /* two completions, the chosen one first */
    GROUP_CHOSEN,   /* any; only the first completion counts */
    GROUP_LABELLED, /* any; each completion is desirable or not */
    GROUP_RANKED,   /* two or more, the best first */
};

/* What couples the groups of a global batch: it is known from a forward pass over all of them, which comes
 * before the step's own (runtime/statistics.h). */
enum statistic {
    STATISTIC_NONE,
    STATISTIC_KL,          /* how far the policy is from the reference on mismatched completions */
    STATISTIC_REWARD,      /* running mean of rewards */
    STATISTIC_SORT,        /* margins in order */
    STATISTIC_SORT_RATIOS, /* log-ratios of each side in order */
};

enum loss_trait {
    TRAIT_REFERENCE = 1,    /* values are log-ratios h = log pi - log pi_ref, else log-probabilities */
    TRAIT_MEAN = 2,         /* values are divided by the completion's length */
    TRAIT_DIVERGENCE = 4,   /* f_divergence_type applies */
    TRAIT_MARGIN = 8,       /* compares u = beta (v_w - v_l): length_alpha, reward_margin_beta apply */
    TRAIT_SMOOTHING = 16,   /* label_smoothing applies */
    TRAIT_SCORES = 32,      /* needs the data's scores */
    TRAIT_WEIGHTED = 64,    /* puts the weights on its own terms */
    TRAIT_UNWEIGHTED = 128, /* takes no weighting */
};

/* id, name, function, shape, statistic, default beta, traits */
#define LOSSES(X)                                                                                            \
    X(SIGMOID, "sigmoid", loss_sigmoid, GROUP_PAIR, STATISTIC_NONE, 0.1,                                     \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN | TRAIT_SMOOTHING)                                   \
    X(ROBUST, "robust", loss_robust, GROUP_PAIR, STATISTIC_NONE, 0.1,                                        \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN | TRAIT_SMOOTHING)                                   \
    X(HINGE, "hinge", loss_hinge, GROUP_PAIR, STATISTIC_NONE, 0.1,                                           \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN)                                                     \
    X(IPO, "ipo", loss_ipo, GROUP_PAIR, STATISTIC_NONE, 0.1,                                                 \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MEAN)                                                       \
    X(IPO_SUM, "ipo_sum", loss_ipo, GROUP_PAIR, STATISTIC_NONE, 0.1, TRAIT_REFERENCE | TRAIT_DIVERGENCE)     \
    X(EXO_PAIR, "exo_pair", loss_exo_pair, GROUP_PAIR, STATISTIC_NONE, 0.1,                                  \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN | TRAIT_SMOOTHING)                                   \
    X(NCA_PAIR, "nca_pair", loss_nca_pair, GROUP_PAIR, STATISTIC_NONE, 0.1,                                  \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE)                                                                    \
    X(BCO_PAIR, "bco_pair", loss_bco_pair, GROUP_PAIR, STATISTIC_NONE, 0.1,                                  \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE)                                                                    \
    X(SPPO_HARD, "sppo_hard", loss_sppo_hard, GROUP_PAIR, STATISTIC_NONE, 0.1,                               \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE)                                                                    \
    X(SPPO, "sppo", loss_sppo, GROUP_PAIR, STATISTIC_NONE, 0.001,                                            \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_SCORES)                                                     \
    X(AOT, "aot", loss_sigmoid, GROUP_PAIR, STATISTIC_SORT, 0.1,                                             \
      TRAIT_REFERENCE | TRAIT_SMOOTHING | TRAIT_UNWEIGHTED)                                                  \
    X(AOT_UNPAIRED, "aot_unpaired", loss_aot_unpaired, GROUP_PAIR, STATISTIC_SORT_RATIOS, 0.1,               \
      TRAIT_REFERENCE | TRAIT_SMOOTHING | TRAIT_UNWEIGHTED)                                                  \
    X(APO_ZERO, "apo_zero", loss_apo_zero, GROUP_PAIR, STATISTIC_NONE, 0.1, TRAIT_REFERENCE)                 \
    X(APO_DOWN, "apo_down", loss_apo_down, GROUP_PAIR, STATISTIC_NONE, 0.1, TRAIT_REFERENCE)                 \
    X(DISCOPOP, "discopop", loss_discopop, GROUP_PAIR, STATISTIC_NONE, 0.1,                                  \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN)                                                     \
    X(SIGMOID_NORM, "sigmoid_norm", loss_sigmoid, GROUP_PAIR, STATISTIC_NONE, 0.1,                           \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MEAN | TRAIT_MARGIN | TRAIT_SMOOTHING)                      \
    X(SIMPO, "simpo", loss_sigmoid, GROUP_PAIR, STATISTIC_NONE, 2,                                           \
      TRAIT_MEAN | TRAIT_MARGIN | TRAIT_SMOOTHING)                                                           \
    X(CPO, "cpo", loss_sigmoid, GROUP_PAIR, STATISTIC_NONE, 0.1, TRAIT_MARGIN | TRAIT_SMOOTHING)             \
    X(ORPO, "orpo", loss_orpo, GROUP_PAIR, STATISTIC_NONE, 0.1, TRAIT_MEAN)                                  \
    X(SFT, "sft", loss_nothing, GROUP_CHOSEN, STATISTIC_NONE, 0.1, TRAIT_UNWEIGHTED)                         \
    X(KTO, "kto", loss_kto, GROUP_LABELLED, STATISTIC_KL, 0.1, TRAIT_REFERENCE)                              \
    X(APO_ZERO_UNPAIRED, "apo_zero_unpaired", loss_kto, GROUP_LABELLED, STATISTIC_NONE, 0.1,                 \
      TRAIT_REFERENCE)                                                                                       \
    X(BCO, "bco", loss_bco, GROUP_LABELLED, STATISTIC_REWARD, 0.1, TRAIT_REFERENCE)                          \
    X(PLACKETT_LUCE, "plackett_luce", loss_plackett_luce, GROUP_RANKED, STATISTIC_NONE, 0.1,                 \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE)                                                                    \
    X(ALL_PAIRS, "all_pairs", loss_all_pairs, GROUP_RANKED, STATISTIC_NONE, 0.1,                             \
      TRAIT_REFERENCE | TRAIT_DIVERGENCE | TRAIT_MARGIN | TRAIT_SMOOTHING | TRAIT_WEIGHTED)

enum loss_type {
#define X(id, name, function, shape, statistic, beta, traits) LOSS_##id,
    LOSSES(X)
#undef X
        LOSS_COUNT
};

struct loss_kind {
    const char *name;
    enum group_shape shape;
    enum statistic statistic;
    double beta;     /* the default */
    unsigned traits; /* enum loss_trait, added up */
};

OBJECTIVE_FUNCTION struct loss_kind loss_kind(enum loss_type type)
{
    struct loss_kind kind = {"", GROUP_PAIR, STATISTIC_NONE, 0, 0};
    switch (type) {
#define X(id, name, function, shape, statistic, beta, traits)                                                \
    case LOSS_##id: {                                                                                        \
        struct loss_kind of = {name, shape, statistic, beta, traits};                                        \
        return of;                                                                                           \
    }
        LOSSES(X)
#undef X
    case LOSS_COUNT:
        break;
    }
    return kind;
}

/* -- what is chosen --------------------------------------------------------------------------- */

enum weighting { WEIGHTING_NONE, WEIGHTING_UNALIGNED, WEIGHTING_SAMPLED, WEIGHTING_GREEDY, WEIGHTING_COUNT };

OBJECTIVE_FUNCTION const char *weighting_name(enum weighting weighting)
{
    switch (weighting) {
    case WEIGHTING_UNALIGNED:
        return "unaligned";
    case WEIGHTING_SAMPLED:
        return "sampled";
    case WEIGHTING_GREEDY:
        return "greedy";
    case WEIGHTING_NONE:
    case WEIGHTING_COUNT:
        break;
    }
    return "none";
}

enum weight_sides { WEIGHT_BOTH, WEIGHT_CHOSEN, WEIGHT_REJECTED };
enum divergence { DIVERGENCE_REVERSE_KL, DIVERGENCE_FORWARD_KL, DIVERGENCE_JS, DIVERGENCE_ALPHA };
enum score_type {
    SCORE_REWARD,      /* of a reward model: P(y beats y') = sigmoid(s - s') */
    SCORE_PROBABILITY, /* that the completion beats one of the policy */
};

enum { LOSS_TERMS = 4, LARGEST_GROUP = 64 /* completions */ };

struct loss_term {
    enum loss_type type;
    double weight;
};

/* The settings of an objective, under the names of the run file. objective_of() in kernels/objective.h gives
 * the defaults. */
struct objective {
    struct loss_term terms[LOSS_TERMS]; /* loss_type, loss_weights; all of one shape, sft besides pairs */
    int64_t term_count;
    enum weighting weighting;
    enum weight_sides weight_sides;
    bool weight_clamp;   /* a product of weights is at most 1, as in the authors' code */
    bool reference_free; /* the reference's log-probabilities count as 0 */
    bool nll_on_prompt;  /* the likelihood of the chosen completion includes the prompt's tokens */
    enum divergence f_divergence_type;
    enum score_type score_type;
    double beta;
    double label_smoothing; /* 0 <= label_smoothing < 1/2 */
    double gamma_beta_ratio, discopop_tau, f_alpha_divergence_coef;
    double desirable_weight, undesirable_weight;
    double rpo_alpha, ld_alpha, length_alpha, optimism_alpha, vpo_alpha, reward_margin_beta;
};

/* One completion as a loss sees it. */
struct completion_view {
    double value, slope; /* what is compared, and d value / d log-probability */
    double derivative;   /* (out) d loss / d value */
    double length;       /* |y|, tokens */
    double score;        /* NaN where the data has none */
    double weight;       /* log w(x, y) */
    double scratch;
    bool desirable;
};

/* What holds for a whole global batch: the same on every rank. */
struct batch_facts {
    double group_scale; /* 1 / groups, or 1 / completions where they are labelled */
    double token_scale; /* 1 / tokens of the likelihood term */
    double kl;          /* STATISTIC_KL: z_0 >= 0, nats */
    double shift;       /* STATISTIC_REWARD: delta */
    /* Undesirable, desirable: makes the weights of a class sum to one over the batch; else 1. */
    double class_weight[2];
};

#endif
