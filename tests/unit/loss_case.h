/* One group with all that its objective reads, for tests of the scalar mathematics. */
#ifndef WPO_TESTS_UNIT_LOSS_CASE_H
#define WPO_TESTS_UNIT_LOSS_CASE_H

#include "kernels/objective.h"
#include "tests/check.h"

enum { CASE_MOST = 7 };

struct loss_case {
    struct objective objective;
    struct batch_facts facts;
    struct completion_sums sums[CASE_MOST], prompt;
    struct completion_data data[CASE_MOST];
    int64_t n;
    bool with_prompt;
    struct group_result result; /* out */
    struct token_coefficient c[CASE_MOST + 1];
    struct completion_view view[CASE_MOST];
};

static inline struct group_result case_run(struct loss_case *l)
{
    memset(l->c, 0x7f, sizeof l->c); /* a number that no loss gives */
    memset(l->view, 0xff, sizeof l->view);
    l->result = objective_group(&l->objective, &l->facts, l->sums, l->data,
                                l->with_prompt ? &l->prompt : NULL, l->n, l->view, l->c);
    return l->result;
}

/* All that is to be minimised. */
static inline double case_total(struct loss_case *l)
{
    struct group_result r = case_run(l);
    return l->facts.group_scale * r.loss + l->facts.token_scale * r.likelihood;
}

/* A loss without its likelihood term; scales and class weights are 1, the prompt is left out. */
static inline struct loss_case case_of(enum loss_type type, enum weighting weighting)
{
    struct loss_case l;
    memset(&l, 0, sizeof l);
    l.objective = objective_of(type, weighting);
    l.objective.rpo_alpha = 0;
    l.facts = (struct batch_facts){.group_scale = 1, .token_scale = 1, .class_weight = {1, 1}};
    l.n = 2;
    for (int i = 0; i < CASE_MOST; i++) {
        l.data[i].score = (double)NAN;
        l.sums[i].count = 1;
    }
    return l;
}

/* Completion i: |y| tokens of log-probability logp, log-ratio h, the leading ones with a share of logp. Its
 * log w is -0.2, -0.5 and so on for `sampled`. */
static inline void case_set(struct loss_case *l, int i, int64_t count, double logp, double h)
{
    l->sums[i].count = count;
    l->sums[i].logp = logp;
    l->sums[i].leading = 0.625 * logp;
    l->sums[i].square = logp + (0.2 + 0.3 * i) * (double)count;
    l->sums[i].maximum = logp + 0.1 * (double)count;
    l->data[i].reference = logp - h;
}

/* The pair of the golden values: h_w = 1.3, h_l = -0.7 on 7 and 5 tokens, log-probabilities -9.1 and -8. */
static inline struct loss_case case_pair(enum loss_type type, enum weighting weighting)
{
    struct loss_case l = case_of(type, weighting);
    case_set(&l, 0, 7, -9.1, 1.3);
    case_set(&l, 1, 5, -8, -0.7);
    return l;
}

/* The same pair with other log-ratios. */
static inline struct loss_case case_at(enum loss_type type, double chosen, double rejected)
{
    struct loss_case l = case_of(type, WEIGHTING_NONE);
    case_set(&l, 0, 7, -9.1, chosen);
    case_set(&l, 1, 5, -8, rejected);
    return l;
}

#endif
