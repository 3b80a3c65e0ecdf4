/* Sums of what happened to groups, from which all metrics are ratios: over ranks and over steps numerators
 * and denominators are added, never means. Names and definitions are TRL's where TRL has the metric. */
#ifndef WPO_RUNTIME_TALLY_H
#define WPO_RUNTIME_TALLY_H

#include "kernels/objective.h"
#include "runtime/comm.h"
#include "runtime/groups.h"
#include "runtime/report.h"

enum tally_sum {
    TALLY_GROUPS,
    TALLY_LOSS,
    TALLY_REWARD_CHOSEN,
    TALLY_REWARD_REJECTED,
    TALLY_ACCURATE,
    TALLY_RANKED, /* pairs whose chosen completion has the higher mean log-probability */
    TALLY_LOGP_CHOSEN,
    TALLY_LOGP_REJECTED,
    TALLY_LOGITS_CHOSEN,
    TALLY_LOGITS_REJECTED,
    TALLY_LENGTH_CHOSEN, /* tokens scored */
    TALLY_LENGTH_REJECTED,
    TALLY_ENTROPY,
    TALLY_HITS, /* chosen side */
    TALLY_WEIGHT,
    TALLY_WEIGHT_SQUARE,
    TALLY_CLAMPED,
    TALLY_TOKENS, /* prompt and completion of every completion, as TRL counts */
    TALLY_PACKED, /* tokens that went through the model: prompts once */
    TALLY_SUMS
};

struct tally {
    double sum[TALLY_SUMS];
    double weight_min, weight_max;
};

void tally_clear(struct tally *tally);

/* One group: sums and reference of its completions, the objective's result, and its prompt's length. */
void tally_group(struct tally *tally, const struct objective *objective, const struct completion_sums *sums,
                 const double *reference, const struct group_result *result, int64_t prompt_tokens);

/* Every group of a file, from the sums [S] of its completions; reference [S] or NULL. Clears first. */
void tally_groups(struct tally *tally, const struct objective *objective, const struct groups *groups,
                  const struct completion_sums *sums, const double *reference);

/* Collective: over ranks. */
void tally_reduce(struct tally *tally, struct comm *comm);
void tally_add(struct tally *tally, const struct tally *more);

double tally_loss(const struct tally *tally, const struct objective *objective);

enum { TALLY_METRICS = 24 };
/* Metrics of the objective into list[TALLY_METRICS]; returns how many. Names begin with "eval_" if asked.
 * Reward metrics are left out without a reference. */
int64_t tally_metrics(const struct tally *tally, const struct objective *objective, bool has_reference,
                      bool eval, struct metric *list);

#endif
