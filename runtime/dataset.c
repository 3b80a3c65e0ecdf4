#include "runtime/dataset.h"

#include "kernels/require.h"
#include "runtime/batch.h"
#include "runtime/selection.h"

#include <math.h>
#include <stdlib.h>

/* Scores and sides; of pairs the first completion is the desirable one. */
static void fill_data(struct dataset *dataset)
{
    const struct groups *groups = &dataset->groups;
    dataset->data = allocate(groups->completion_count, sizeof *dataset->data);
    for (int64_t g = 0; g < groups->group_count; g++)
        for (int64_t s = groups->first[g]; s < groups->first[g + 1]; s++)
            dataset->data[s] = (struct completion_data){
                .score = groups->score ? (double)groups->score[s] : NAN,
                .desirable = groups->label ? groups->label[s] : s == groups->first[g]};
}

enum status dataset_open(struct dataset *dataset, const char *path, const struct settings *settings,
                         const struct comm *comm)
{
    *dataset = (struct dataset){0};
    TRY(groups_open(&dataset->groups, path));
    TRY(selection_take(&dataset->groups, settings, &dataset->dropped));
    if (objective_kind(&settings->objective).statistic == STATISTIC_KL)
        TRY(selection_mismatch(&dataset->mismatched, &dataset->groups));
    fill_data(dataset);
    if (dataset->groups.group_count < comm->size)
        return fail("%s: %lld groups%s are fewer than the %d ranks; start fewer ranks", path,
                    (long long)dataset->groups.group_count,
                    dataset->dropped ? ", which is what min_margin leaves," : "", comm->size);
    return STATUS_OK;
}

void dataset_plan(struct dataset *dataset, int64_t batch, uint64_t seed, bool shuffle)
{
    order_open(&dataset->order, &dataset->groups, batch, seed, shuffle);
    if (dataset->mismatched.group_count)
        order_open(&dataset->mismatched_order, &dataset->mismatched, batch, seed, shuffle);
}

void dataset_close(struct dataset *dataset)
{
    order_close(&dataset->order);
    order_close(&dataset->mismatched_order);
    groups_close(&dataset->groups);
    groups_close(&dataset->mismatched);
    free(dataset->data);
    free(dataset->mismatched_reference);
    *dataset = (struct dataset){0};
}

struct batch_limits dataset_measure(const struct dataset *dataset, const struct settings *settings,
                                    int64_t micro)
{
    bool prompts = settings->objective.nll_on_prompt;
    struct batch_limits limits = batch_measure(&dataset->groups, micro, prompts);
    if (!dataset->mismatched.group_count) return limits;
    return batch_limits_union(limits, batch_measure(&dataset->mismatched, micro, prompts));
}
