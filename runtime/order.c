#include "runtime/order.h"

#include "kernels/require.h"
#include "runtime/random.h"

#include <stdlib.h>
#include <string.h>

void order_open(struct order *order, const struct groups *groups, int64_t batch, uint64_t seed, bool shuffle)
{
    REQUIRE(batch > 0, "a step needs at least one group");
    *order = (struct order){.groups = groups, .batch = batch, .seed = seed, .shuffle = shuffle, .epoch = -1};
    order->permutation = allocate(groups->group_count, sizeof(int64_t));
}

void order_close(struct order *order)
{
    free(order->permutation);
    *order = (struct order){0};
}

int64_t order_steps_per_epoch(const struct order *order)
{
    return (order->groups->group_count + order->batch - 1) / order->batch;
}

static void draw_epoch(struct order *order, int64_t epoch)
{
    int64_t count = order->groups->group_count;
    for (int64_t i = 0; i < count; i++)
        order->permutation[i] = i;
    for (int64_t i = count - 1; order->shuffle && i > 0; i--) {
        int64_t j = (int64_t)random_below(order->seed, (uint64_t)epoch, (uint64_t)i, (uint64_t)i + 1);
        int64_t held = order->permutation[i];
        order->permutation[i] = order->permutation[j];
        order->permutation[j] = held;
    }
    order->epoch = epoch;
}

const int64_t *order_step(struct order *order, int64_t step, int64_t *count)
{
    int64_t per_epoch = order_steps_per_epoch(order), epoch = step / per_epoch,
            first = step % per_epoch * order->batch;
    if (order->epoch != epoch) draw_epoch(order, epoch);
    int64_t left = order->groups->group_count - first;
    *count = left < order->batch ? left : order->batch;
    return order->permutation + first;
}

/* -- shares ----------------------------------------------------------------------------------- */

int64_t group_scored_tokens(const struct groups *groups, int64_t g)
{
    return groups->completion_offset[groups->first[g + 1]] - groups->completion_offset[groups->first[g]];
}

int64_t group_packed_tokens(const struct groups *groups, int64_t g)
{
    int64_t prompt = groups->prompt_offset[g + 1] - groups->prompt_offset[g];
    return prompt + group_scored_tokens(groups, g) - (groups->first[g + 1] - groups->first[g]);
}

struct cost {
    int64_t tokens, place; /* place: index in the step */
    int owner;
};

static int dearest_first(const void *a, const void *b)
{
    const struct cost *x = a, *y = b;
    if (x->tokens != y->tokens) return x->tokens < y->tokens ? 1 : -1;
    return (x->place > y->place) - (x->place < y->place);
}

static int by_place(const void *a, const void *b)
{
    const struct cost *x = a, *y = b;
    return (x->place > y->place) - (x->place < y->place);
}

void share_of_step(struct share *share, const struct groups *groups, const int64_t *members, int64_t count,
                   int rank, int size, int64_t micro)
{
    struct cost *costs = allocate(count, sizeof *costs);
    int64_t *load = allocate(size, sizeof *load);
    for (int64_t i = 0; i < count; i++)
        costs[i] = (struct cost){.tokens = group_packed_tokens(groups, members[i]), .place = i};
    qsort(costs, (size_t)count, sizeof *costs, dearest_first);
    for (int64_t i = 0; i < count; i++) {
        int lightest = 0;
        for (int r = 1; r < size; r++)
            if (load[r] < load[lightest]) lightest = r;
        costs[i].owner = lightest;
        load[lightest] += costs[i].tokens;
    }
    qsort(costs, (size_t)count, sizeof *costs, by_place);
    if (share->capacity < count) {
        free(share->groups);
        share->groups = allocate(count, sizeof *share->groups);
        share->capacity = count;
    }
    share->micro = micro;
    share->group_count = 0;
    for (int64_t i = 0; i < count; i++)
        if (costs[i].owner == rank) share->groups[share->group_count++] = members[i];
    free(load);
    free(costs);
}

int64_t share_micro_batches(const struct share *share)
{
    return (share->group_count + share->micro - 1) / share->micro;
}

const int64_t *share_micro_batch(const struct share *share, int64_t m, int64_t *count)
{
    int64_t first = m * share->micro, left = share->group_count - first;
    *count = left < share->micro ? left : share->micro;
    return share->groups + first;
}

void share_free(struct share *share)
{
    free(share->groups);
    *share = (struct share){0};
}
