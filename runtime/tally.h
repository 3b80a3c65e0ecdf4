/* Sums of what happened to groups, from which all metrics are ratios: over ranks and over steps numerators
 * and denominators are added, never means. Names and definitions are TRL's where TRL has the metric. */
#ifndef WPO_RUNTIME_TALLY_H
#define WPO_RUNTIME_TALLY_H

#include "kernels/objective.h"
#include "runtime/comm.h"
#include "runtime/groups.h"
#include "runtime/report.h"

/* A side is that of the chosen completions (of a pair the first, of a ranked group the best, with labels the
 * desirable ones) or of the rejected ones (the second, the last, the undesirable ones). */
enum tally_side {
    SIDE_COUNT,
    SIDE_REWARD,
    SIDE_LOGP,
    SIDE_LOGITS,
    SIDE_LENGTH, /* tokens scored */
    SIDE_HITS,
    SIDE_SUMS
};

enum tally_sum {
    TALLY_GROUPS,
    TALLY_COMPLETIONS,
    TALLY_LOSS,
    TALLY_LIKELIHOOD,
    TALLY_LIKELIHOOD_TOKENS,
    TALLY_ACCURATE,
    TALLY_RANKED, /* groups whose chosen completion has the higher mean log-probability */
    TALLY_ENTROPY,
    TALLY_LENGTH, /* tokens of all completions */
    TALLY_WEIGHT,
    TALLY_WEIGHT_SQUARE,
    TALLY_CLAMPED,
    TALLY_TOKENS, /* prompt and completion of every completion, as TRL counts */
    TALLY_PACKED, /* tokens that went through the model: prompts once */
    TALLY_KL,     /* of steps */
    TALLY_SHIFT,
    TALLY_STEPS,
    TALLY_CHOSEN, /* SIDE_SUMS each */
    TALLY_REJECTED = TALLY_CHOSEN + SIDE_SUMS,
    TALLY_SUMS = TALLY_REJECTED + SIDE_SUMS
};

struct tally {
    double sum[TALLY_SUMS];
    double weight_min, weight_max;
};

void tally_clear(struct tally *tally);

/* One group: sums and data of its `count` completions, the objective's result, and its prompt's length. */
void tally_group(struct tally *tally, const struct objective *objective, const struct completion_sums *sums,
                 const struct completion_data *data, int64_t count, const struct group_result *result,
                 int64_t prompt_tokens);

/* Every group of a file as one batch with these facts, from the sums [S] and data [S] of its completions.
 * adjusted [S]: what the objective compares with, see statistics_batch. prompts [G]: sums of the prompts' own
 * tokens with nll_on_prompt, else NULL. known: whether there are reference log-probabilities; where the
 * objective needs them and there are none its loss is NaN. Clears first. */
void tally_groups(struct tally *tally, const struct objective *objective, const struct batch_facts *facts,
                  const struct groups *groups, const struct completion_sums *sums,
                  const struct completion_sums *prompts, const struct completion_data *data,
                  const struct completion_data *adjusted, bool known);

/* Collective: over ranks. */
void tally_reduce(struct tally *tally, struct comm *comm);
/* A step's own figures, which all ranks hold alike: after tally_reduce. */
void tally_facts(struct tally *tally, const struct batch_facts *facts);
void tally_add(struct tally *tally, const struct tally *more);

double tally_loss(const struct tally *tally, const struct objective *objective);
/* Mean reward of a side; 0 where it has no completion. side: TALLY_CHOSEN or TALLY_REJECTED. */
double tally_reward(const struct tally *tally, int side);
/* Whether two completions of a group are compared: pairs and ranked groups. */
bool tally_compares(const struct objective *objective);

enum { TALLY_METRICS = 28 };
/* Metrics of the objective into list[TALLY_METRICS]; returns how many. Names begin with "eval_" if asked.
 * Reward metrics are left out where rewards need a reference and has_reference is false. */
int64_t tally_metrics(const struct tally *tally, const struct objective *objective, bool has_reference,
                      bool eval, struct metric *list);

#endif
