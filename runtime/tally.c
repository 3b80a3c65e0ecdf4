#include "runtime/tally.h"

void tally_clear(struct tally *tally)
{
    *tally = (struct tally){.weight_min = INFINITY, .weight_max = -INFINITY};
}

bool tally_compares(const struct objective *objective)
{
    enum group_shape shape = objective_shape(objective);
    return shape == GROUP_PAIR || shape == GROUP_RANKED;
}

/* The side of completion i of a group, or -1. */
static int side_of(enum group_shape shape, const struct completion_data *data, int64_t i, int64_t count)
{
    switch (shape) {
    case GROUP_LABELLED:
        return data[i].desirable ? TALLY_CHOSEN : TALLY_REJECTED;
    case GROUP_PAIR:
        return i == 0 ? TALLY_CHOSEN : i == 1 ? TALLY_REJECTED : -1;
    case GROUP_RANKED:
        return i == 0 ? TALLY_CHOSEN : i == count - 1 ? TALLY_REJECTED : -1;
    case GROUP_CHOSEN:
        break;
    }
    return i == 0 ? TALLY_CHOSEN : -1;
}

static double tally_completion(struct tally *tally, const struct objective *objective,
                               const struct completion_sums *sums, const struct completion_data *data,
                               int side)
{
    double *sum = tally->sum + side, reward = objective_reward(objective, sums, data);
    sum[SIDE_COUNT] += 1;
    sum[SIDE_REWARD] += reward;
    sum[SIDE_LOGP] += objective_logp(objective, sums);
    sum[SIDE_LOGITS] += sums->logits;
    sum[SIDE_LENGTH] += (double)sums->count;
    sum[SIDE_HITS] += sums->hits;
    return reward;
}

void tally_group(struct tally *tally, const struct objective *objective, const struct completion_sums *sums,
                 const struct completion_data *data, int64_t count, const struct group_result *result,
                 int64_t prompt_tokens)
{
    enum group_shape shape = objective_shape(objective);
    double *sum = tally->sum, reward[2] = {0, 0};
    int64_t last = shape == GROUP_RANKED ? count - 1 : 1;
    sum[TALLY_GROUPS] += 1;
    sum[TALLY_LOSS] += result->loss;
    sum[TALLY_LIKELIHOOD] += result->likelihood;
    sum[TALLY_LIKELIHOOD_TOKENS] +=
        (double)(sums[0].count + (objective->nll_on_prompt ? prompt_tokens - 1 : 0));
    sum[TALLY_PACKED] += (double)prompt_tokens;
    for (int64_t i = 0; i < count; i++) {
        int side = side_of(shape, data, i, count);
        if (side >= 0)
            reward[side == TALLY_REJECTED] = tally_completion(tally, objective, &sums[i], &data[i], side);
        sum[TALLY_COMPLETIONS] += 1;
        sum[TALLY_ENTROPY] += sums[i].entropy;
        sum[TALLY_LENGTH] += (double)sums[i].count;
        sum[TALLY_TOKENS] += (double)(prompt_tokens + sums[i].count);
        sum[TALLY_PACKED] += (double)(sums[i].count - 1);
    }
    if (tally_compares(objective)) {
        sum[TALLY_ACCURATE] += reward[0] > reward[1];
        sum[TALLY_RANKED] +=
            sums[0].logp / (double)sums[0].count > sums[last].logp / (double)sums[last].count;
    }
    sum[TALLY_WEIGHT] += result->weight;
    sum[TALLY_WEIGHT_SQUARE] += result->weight * result->weight;
    sum[TALLY_CLAMPED] += result->clamped;
    tally->weight_min = fmin(tally->weight_min, result->weight);
    tally->weight_max = fmax(tally->weight_max, result->weight);
}

void tally_groups(struct tally *tally, const struct objective *objective, const struct batch_facts *facts,
                  const struct groups *groups, const struct completion_sums *sums,
                  const struct completion_sums *prompts, const struct completion_data *data,
                  const struct completion_data *adjusted, bool known)
{
    tally_clear(tally);
    for (int64_t g = 0; g < groups->group_count; g++) {
        struct completion_view view[LARGEST_GROUP];
        struct token_coefficient coefficient[LARGEST_GROUP + 1];
        int64_t first = groups->first[g], count = groups->first[g + 1] - first;
        struct group_result result = objective_group(objective, facts, sums + first, adjusted + first,
                                                     prompts ? prompts + g : NULL, count, view, coefficient);
        if (!known && objective_uses_reference(objective)) result.loss = NAN;
        tally_group(tally, objective, sums + first, data + first, count, &result,
                    groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
    }
    tally_facts(tally, facts);
}

void tally_reduce(struct tally *tally, struct comm *comm)
{
    comm_sum(comm, tally->sum, TALLY_SUMS);
    comm_minimum(comm, &tally->weight_min, 1);
    comm_maximum(comm, &tally->weight_max, 1);
}

void tally_facts(struct tally *tally, const struct batch_facts *facts)
{
    tally->sum[TALLY_KL] += facts->kl;
    tally->sum[TALLY_SHIFT] += facts->shift;
    tally->sum[TALLY_STEPS] += 1;
}

void tally_add(struct tally *tally, const struct tally *more)
{
    for (int i = 0; i < TALLY_SUMS; i++)
        tally->sum[i] += more->sum[i];
    tally->weight_min = fmin(tally->weight_min, more->weight_min);
    tally->weight_max = fmax(tally->weight_max, more->weight_max);
}

double tally_loss(const struct tally *tally, const struct objective *objective)
{
    const double *sum = tally->sum;
    enum group_shape shape = objective_shape(objective);
    double loss = 0;
    if (shape != GROUP_CHOSEN)
        loss = sum[TALLY_LOSS] / sum[shape == GROUP_LABELLED ? TALLY_COMPLETIONS : TALLY_GROUPS];
    if (objective_likelihood(objective) != 0) loss += sum[TALLY_LIKELIHOOD] / sum[TALLY_LIKELIHOOD_TOKENS];
    return loss;
}

double tally_reward(const struct tally *tally, int side)
{
    const double *sum = tally->sum + side;
    return sum[SIDE_COUNT] > 0 ? sum[SIDE_REWARD] / sum[SIDE_COUNT] : 0;
}

/* -- metrics ---------------------------------------------------------------------------------- */

/* Names are stored with their prefix; without it they begin five characters later. */
#define NAME(name) ("eval_" name) + (eval ? 0 : 5)

static int64_t side_metrics(const double *sum, bool rejected, bool eval, struct metric *list)
{
    if (sum[SIDE_COUNT] == 0) return 0;
    list[0] = (struct metric){rejected ? NAME("logps/rejected") : NAME("logps/chosen"),
                              sum[SIDE_LOGP] / sum[SIDE_COUNT]};
    list[1] = (struct metric){rejected ? NAME("logits/rejected") : NAME("logits/chosen"),
                              sum[SIDE_LOGITS] / sum[SIDE_LENGTH]};
    list[2] = (struct metric){rejected ? NAME("lengths/rejected") : NAME("lengths/chosen"),
                              sum[SIDE_LENGTH] / sum[SIDE_COUNT]};
    return 3;
}

static int64_t weight_metrics(const struct tally *tally, bool eval, struct metric *list)
{
    const double *sum = tally->sum;
    double groups = sum[TALLY_GROUPS];
    list[0] = (struct metric){NAME("weights/mean"), sum[TALLY_WEIGHT] / groups};
    list[1] = (struct metric){NAME("weights/min"), tally->weight_min};
    list[2] = (struct metric){NAME("weights/max"), tally->weight_max};
    list[3] = (struct metric){NAME("weights/clamped"), sum[TALLY_CLAMPED] / groups};
    list[4] = (struct metric){NAME("weights/effective_pairs"),
                              sum[TALLY_WEIGHT] * sum[TALLY_WEIGHT] / sum[TALLY_WEIGHT_SQUARE]};
    return 5;
}

static int64_t reward_metrics(const struct tally *tally, bool compares, bool eval, struct metric *list)
{
    double chosen = tally_reward(tally, TALLY_CHOSEN), rejected = tally_reward(tally, TALLY_REJECTED);
    int64_t n = 0;
    if (tally->sum[TALLY_CHOSEN + SIDE_COUNT] > 0)
        list[n++] = (struct metric){NAME("rewards/chosen"), chosen};
    if (tally->sum[TALLY_REJECTED + SIDE_COUNT] > 0)
        list[n++] = (struct metric){NAME("rewards/rejected"), rejected};
    if (compares)
        list[n++] = (struct metric){NAME("rewards/accuracies"),
                                    tally->sum[TALLY_ACCURATE] / tally->sum[TALLY_GROUPS]};
    if (n >= 2) list[n++] = (struct metric){NAME("rewards/margins"), chosen - rejected};
    return n;
}

int64_t tally_metrics(const struct tally *tally, const struct objective *objective, bool has_reference,
                      bool eval, struct metric *list)
{
    const double *sum = tally->sum, *chosen = sum + TALLY_CHOSEN, *rejected = sum + TALLY_REJECTED;
    double factor = objective_likelihood(objective);
    struct loss_kind kind = objective_kind(objective);
    bool compares = tally_compares(objective);
    int64_t n = 0;
    list[n++] = (struct metric){NAME("loss"), tally_loss(tally, objective)};
    list[n++] = (struct metric){NAME("entropy"), sum[TALLY_ENTROPY] / sum[TALLY_LENGTH]};
    if (chosen[SIDE_COUNT] > 0)
        list[n++] = (struct metric){NAME("mean_token_accuracy"), chosen[SIDE_HITS] / chosen[SIDE_LENGTH]};
    if (factor != 0 && kind.shape != GROUP_CHOSEN)
        list[n++] =
            (struct metric){NAME("nll_loss"), sum[TALLY_LIKELIHOOD] / factor / sum[TALLY_LIKELIHOOD_TOKENS]};
    n += side_metrics(chosen, false, eval, list + n);
    if (kind.shape == GROUP_CHOSEN) return n;
    n += side_metrics(rejected, true, eval, list + n);
    if (compares)
        list[n++] = (struct metric){NAME("logps/accuracies"), sum[TALLY_RANKED] / sum[TALLY_GROUPS]};
    n += weight_metrics(tally, eval, list + n);
    if (!has_reference && objective_uses_reference(objective)) return n;
    n += reward_metrics(tally, compares, eval, list + n);
    if (kind.statistic == STATISTIC_KL)
        list[n++] = (struct metric){NAME("kl"), sum[TALLY_KL] / sum[TALLY_STEPS]};
    if (kind.statistic == STATISTIC_REWARD)
        list[n++] = (struct metric){NAME("rewards/shift"), sum[TALLY_SHIFT] / sum[TALLY_STEPS]};
    return n;
}
