/* Which groups form step k, and who takes which: pure functions of (data, seed, step), so that resuming is
 * setting a counter and any number of ranks sees the same global batches. */
#ifndef WPO_RUNTIME_ORDER_H
#define WPO_RUNTIME_ORDER_H

#include "runtime/groups.h"

/* Every epoch visits each group once, in an order drawn from (seed, epoch); the last batch of an epoch is
 * smaller when the count does not divide. */
struct order {
    const struct groups *groups;
    int64_t batch; /* groups per step, over all ranks */
    uint64_t seed;
    bool shuffle;
    int64_t epoch;        /* whose permutation is held; -1: none yet */
    int64_t *permutation; /* [G] */
};

void order_open(struct order *order, const struct groups *groups, int64_t batch, uint64_t seed, bool shuffle);
void order_close(struct order *order);

int64_t order_steps_per_epoch(const struct order *order);

/* The groups of step `step` (from 0): *count of them, valid until the next call. */
const int64_t *order_step(struct order *order, int64_t step, int64_t *count);

/* One rank's part of a step, cut into micro-batches. */
struct share {
    int64_t *groups; /* [group_count], in the order of the step */
    int64_t group_count;
    int64_t micro; /* groups per micro-batch; the last one may be smaller */
    int64_t capacity;
};

/* Balances by packed tokens: the longest group first, each to the rank that has least so far. */
void share_of_step(struct share *share, const struct groups *groups, const int64_t *members, int64_t count,
                   int rank, int size, int64_t micro);
int64_t share_micro_batches(const struct share *share);
/* Groups of micro-batch m. */
const int64_t *share_micro_batch(const struct share *share, int64_t m, int64_t *count);
void share_free(struct share *share);

/* Tokens that group g takes in a packed batch: its prompt once, and every completion but its last token,
 * which predicts nothing. */
int64_t group_packed_tokens(const struct groups *groups, int64_t g);
/* Tokens of its completions, each of which is scored. */
int64_t group_scored_tokens(const struct groups *groups, int64_t g);

#endif
