#include "runtime/statistics.h"

#include "kernels/require.h"

#include <math.h>
#include <stdlib.h>

bool statistics_of_batch(const struct objective *objective)
{
    struct loss_kind kind = objective_kind(objective);
    bool classes = kind.shape == GROUP_LABELLED && objective_is_weighted(objective);
    return classes || (kind.statistic != STATISTIC_NONE && kind.statistic != STATISTIC_KL);
}

bool statistics_wanted(const struct objective *objective)
{
    return statistics_of_batch(objective) || objective_kind(objective).statistic == STATISTIC_KL;
}

struct batch_facts statistics_scales(const struct objective *objective, const struct groups *groups,
                                     struct members members)
{
    int64_t completions = 0, tokens = 0;
    for (int64_t i = 0; i < members.count; i++) {
        int64_t g = members.group[i], chosen = groups->first[g];
        completions += groups->first[g + 1] - chosen;
        tokens += groups->completion_offset[chosen + 1] - groups->completion_offset[chosen];
        if (objective->nll_on_prompt) tokens += groups->prompt_offset[g + 1] - groups->prompt_offset[g] - 1;
    }
    bool labelled = objective_shape(objective) == GROUP_LABELLED;
    return (struct batch_facts){.group_scale = 1 / (double)(labelled ? completions : members.count),
                                .token_scale = 1 / (double)tokens,
                                .class_weight = {1, 1}};
}

void statistics_kl(struct batch_facts *facts, const struct objective *objective,
                   const struct dataset *dataset, struct members members, const struct completion_sums *sums)
{
    const struct groups *groups = &dataset->mismatched;
    double sum = 0, count = 0;
    for (int64_t i = 0; i < members.count; i++)
        for (int64_t s = groups->first[members.group[i]]; s < groups->first[members.group[i] + 1]; s++) {
            struct completion_data data = {.reference = dataset->mismatched_reference[s]};
            sum += objective_ratio(objective, &sums[s], &data);
            count++;
        }
    double mean = sum / count;
    facts->kl = isfinite(mean) ? fmax(0, mean) : NAN; /* not 0, with which the step would be taken */
}

/* Weights of a class sum to one: class_weight makes the mean over all completions the sum of the classes'
 * weighted means (WPO, section 4.2). */
static void fill_classes(struct batch_facts *facts, const struct objective *objective,
                         const struct dataset *dataset, struct members members,
                         const struct completion_sums *sums)
{
    double sum[2] = {0, 0};
    for (int64_t i = 0; i < members.count; i++)
        for (int64_t s = dataset->groups.first[members.group[i]];
             s < dataset->groups.first[members.group[i] + 1]; s++)
            sum[dataset->data[s].desirable ? 1 : 0] +=
                weight_of(completion_log_weight(&sums[s], objective->weighting), false);
    for (int c = 0; c < 2; c++)
        facts->class_weight[c] = sum[c] > 0 ? 1 / (sum[c] * facts->group_scale) : 1;
}

static double mean_reward(const struct objective *objective, const struct dataset *dataset,
                          struct members members, const struct completion_sums *sums)
{
    double sum = 0, count = 0;
    for (int64_t i = 0; i < members.count; i++)
        for (int64_t s = dataset->groups.first[members.group[i]];
             s < dataset->groups.first[members.group[i] + 1]; s++) {
            sum += objective_reward(objective, &sums[s], &dataset->data[s]);
            count++;
        }
    return sum / count;
}

/* -- sorting ---------------------------------------------------------------------------------- */

struct ranked {
    double value;
    int64_t place;
};

/* Ties in order of place, so that the result is one; what is no number comes last. */
static int ascending(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (isnan(x->value) != isnan(y->value)) return isnan(x->value) ? 1 : -1;
    if (isnan(x->value)) return (x->place > y->place) - (x->place < y->place);
    if (x->value != y->value) return x->value < y->value ? -1 : 1;
    return (x->place > y->place) - (x->place < y->place);
}

static void sort(struct ranked *list, int64_t count)
{
    qsort(list, (size_t)count, sizeof *list, ascending);
}

/* AOT (Melnyk et al. 2024): the k-th smallest margin of the policy is measured against the k-th smallest
 * margin of the reference, unpaired the k-th smallest log-ratio of the chosen side against that of the
 * rejected side. The partner takes the reference's place in data. */
static void pair_by_rank(struct completion_data *data, const struct objective *objective,
                         const struct dataset *dataset, struct members members,
                         const struct completion_sums *sums, bool ratios)
{
    struct ranked *first = allocate(members.count, sizeof *first),
                  *second = allocate(members.count, sizeof *second);
    bool referenced = objective_uses_reference(objective);
    for (int64_t i = 0; i < members.count; i++) {
        int64_t w = dataset->groups.first[members.group[i]], l = w + 1;
        double policy[2] = {objective_logp(objective, &sums[w]), objective_logp(objective, &sums[l])};
        double known[2] = {referenced ? dataset->data[w].reference : 0,
                           referenced ? dataset->data[l].reference : 0};
        first[i] = (struct ranked){ratios ? policy[0] - known[0] : policy[0] - policy[1], i};
        second[i] = (struct ranked){ratios ? policy[1] - known[1] : known[0] - known[1], i};
    }
    sort(first, members.count);
    sort(second, members.count);
    for (int64_t k = 0; k < members.count; k++) {
        int64_t w = dataset->groups.first[members.group[first[k].place]];
        int64_t l = dataset->groups.first[members.group[second[k].place]] + 1;
        if (ratios) {
            data[w].reference = dataset->data[w].reference + second[k].value;
            data[l].reference = dataset->data[l].reference + first[k].value;
        } else {
            data[w].reference = second[k].value;
            data[w + 1].reference = 0;
        }
    }
    free(first);
    free(second);
}

/* -- the door --------------------------------------------------------------------------------- */

void statistics_batch(struct batch_facts *facts, const struct objective *objective,
                      const struct dataset *dataset, struct members members,
                      const struct completion_sums *sums, const struct reward_mean *running,
                      struct reward_mean *after, struct completion_data *data)
{
    struct loss_kind kind = objective_kind(objective);
    *after = *running;
    for (int64_t i = 0; i < members.count; i++)
        for (int64_t s = dataset->groups.first[members.group[i]];
             s < dataset->groups.first[members.group[i] + 1]; s++)
            data[s] = dataset->data[s];
    if (kind.shape == GROUP_LABELLED && objective_is_weighted(objective))
        fill_classes(facts, objective, dataset, members, sums);
    switch (kind.statistic) {
    case STATISTIC_REWARD:
        after->steps++;
        after->mean += (mean_reward(objective, dataset, members, sums) - after->mean) / (double)after->steps;
        facts->shift = after->mean;
        break;
    case STATISTIC_SORT:
    case STATISTIC_SORT_RATIOS:
        pair_by_rank(data, objective, dataset, members, sums, kind.statistic == STATISTIC_SORT_RATIOS);
        break;
    case STATISTIC_KL:
    case STATISTIC_NONE:
        break;
    }
}
