/* What couples the groups of a global batch: means that a loss is measured against, partners of the same
 * rank, sums of weights. Pure functions of the sums of all completions of the batch, which every rank holds
 * alike: the results do not depend on the number of ranks, and no gradient flows through them. */
#ifndef WPO_RUNTIME_STATISTICS_H
#define WPO_RUNTIME_STATISTICS_H

#include "runtime/dataset.h"

/* The running mean of rewards (BCO), part of a run's state. */
struct reward_mean {
    int64_t steps;
    double mean;
};

/* The groups of one global batch. */
struct members {
    const int64_t *group; /* [count] */
    int64_t count;
};

/* The parts that lengths decide: 1 / groups or labelled completions, 1 / tokens of the likelihood term. */
struct batch_facts statistics_scales(const struct objective *objective, const struct groups *groups,
                                     struct members members);

/* Whether anything is to be known of a global batch before its step: from a forward pass over its groups
 * (_of_batch), or over the mismatched ones. */
bool statistics_wanted(const struct objective *objective);
bool statistics_of_batch(const struct objective *objective);

/* Fills facts->kl: max(0, mean of log pi - log pi_ref over the mismatched completions), NaN where that is not
 * finite; KTO (Ethayarajh et al. 2024, section 4.1). sums [S] of dataset->mismatched. */
void statistics_kl(struct batch_facts *facts, const struct objective *objective,
                   const struct dataset *dataset, struct members members, const struct completion_sums *sums);

/* Fills facts->shift and facts->class_weight, and data (out, [S of the file]) of the members: that of the
 * dataset, but where margins or log-ratios are sorted its references carry each completion's partner. sums
 * [S]. running: as it was before this batch; *after (out) with it. */
void statistics_batch(struct batch_facts *facts, const struct objective *objective,
                      const struct dataset *dataset, struct members members,
                      const struct completion_sums *sums, const struct reward_mean *running,
                      struct reward_mean *after, struct completion_data *data);

#endif
