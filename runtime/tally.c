#include "runtime/tally.h"

void tally_clear(struct tally *tally)
{
    *tally = (struct tally){.weight_min = INFINITY, .weight_max = -INFINITY};
}

static void tally_pair(struct tally *tally, const struct objective *objective,
                       const struct completion_sums *sums, const double *reference,
                       const struct group_result *result, int64_t prompt_tokens)
{
    double chosen = reference ? objective->beta * (sums[0].logp - reference[0]) : 0;
    double rejected = reference ? objective->beta * (sums[1].logp - reference[1]) : 0;
    tally->sum[TALLY_REWARD_CHOSEN] += chosen;
    tally->sum[TALLY_REWARD_REJECTED] += rejected;
    tally->sum[TALLY_ACCURATE] += chosen > rejected;
    tally->sum[TALLY_RANKED] += sums[0].logp / (double)sums[0].count > sums[1].logp / (double)sums[1].count;
    tally->sum[TALLY_LOGP_REJECTED] += sums[1].logp;
    tally->sum[TALLY_LOGITS_REJECTED] += sums[1].logits;
    tally->sum[TALLY_LENGTH_REJECTED] += (double)sums[1].count;
    tally->sum[TALLY_ENTROPY] += sums[1].entropy;
    tally->sum[TALLY_TOKENS] += (double)(prompt_tokens + sums[1].count);
    tally->sum[TALLY_PACKED] += (double)(sums[1].count - 1);
    tally->sum[TALLY_WEIGHT] += result->weight;
    tally->sum[TALLY_WEIGHT_SQUARE] += result->weight * result->weight;
    tally->sum[TALLY_CLAMPED] += result->clamped;
    tally->weight_min = fmin(tally->weight_min, result->weight);
    tally->weight_max = fmax(tally->weight_max, result->weight);
}

void tally_group(struct tally *tally, const struct objective *objective, const struct completion_sums *sums,
                 const double *reference, const struct group_result *result, int64_t prompt_tokens)
{
    tally->sum[TALLY_GROUPS] += 1;
    tally->sum[TALLY_LOSS] += result->loss;
    tally->sum[TALLY_LOGP_CHOSEN] += sums[0].logp;
    tally->sum[TALLY_LOGITS_CHOSEN] += sums[0].logits;
    tally->sum[TALLY_LENGTH_CHOSEN] += (double)sums[0].count;
    tally->sum[TALLY_ENTROPY] += sums[0].entropy;
    tally->sum[TALLY_HITS] += sums[0].hits;
    tally->sum[TALLY_TOKENS] += (double)(prompt_tokens + sums[0].count);
    tally->sum[TALLY_PACKED] += (double)(prompt_tokens + sums[0].count - 1);
    if (objective_group_size(objective->loss_type) == 2)
        tally_pair(tally, objective, sums, reference, result, prompt_tokens);
}

void tally_groups(struct tally *tally, const struct objective *objective, const struct groups *groups,
                  const struct completion_sums *sums, const double *reference)
{
    tally_clear(tally);
    for (int64_t g = 0; g < groups->group_count; g++) {
        int64_t first = groups->first[g];
        double coefficient[2] = {0}, zeros[2] = {0};
        const double *known = reference ? reference + first : NULL;
        struct group_result result =
            objective_group(objective, sums + first, known ? known : zeros, coefficient);
        if (!known && objective_uses_reference(objective->loss_type)) result.loss = NAN;
        tally_group(tally, objective, sums + first, known, &result,
                    groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
    }
}

void tally_reduce(struct tally *tally, struct comm *comm)
{
    comm_sum(comm, tally->sum, TALLY_SUMS);
    comm_minimum(comm, &tally->weight_min, 1);
    comm_maximum(comm, &tally->weight_max, 1);
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
    bool by_token = objective->loss_type == LOSS_SFT;
    return tally->sum[TALLY_LOSS] / tally->sum[by_token ? TALLY_LENGTH_CHOSEN : TALLY_GROUPS];
}

/* Names are stored with their prefix; without it they begin five characters later. */
#define NAME(name) ("eval_" name) + (eval ? 0 : 5)

int64_t tally_metrics(const struct tally *tally, const struct objective *objective, bool has_reference,
                      bool eval, struct metric *list)
{
    const double *sum = tally->sum;
    double groups = sum[TALLY_GROUPS], chosen = sum[TALLY_LENGTH_CHOSEN],
           rejected = sum[TALLY_LENGTH_REJECTED];
    int64_t n = 0;
    list[n++] = (struct metric){NAME("loss"), tally_loss(tally, objective)};
    list[n++] = (struct metric){NAME("entropy"), sum[TALLY_ENTROPY] / (chosen + rejected)};
    list[n++] = (struct metric){NAME("mean_token_accuracy"), sum[TALLY_HITS] / chosen};
    list[n++] = (struct metric){NAME("logps/chosen"), sum[TALLY_LOGP_CHOSEN] / groups};
    list[n++] = (struct metric){NAME("logits/chosen"), sum[TALLY_LOGITS_CHOSEN] / chosen};
    list[n++] = (struct metric){NAME("lengths/chosen"), chosen / groups};
    if (objective_group_size(objective->loss_type) < 2) return n;
    list[n++] = (struct metric){NAME("logps/rejected"), sum[TALLY_LOGP_REJECTED] / groups};
    list[n++] = (struct metric){NAME("logps/accuracies"), sum[TALLY_RANKED] / groups};
    list[n++] = (struct metric){NAME("logits/rejected"), sum[TALLY_LOGITS_REJECTED] / rejected};
    list[n++] = (struct metric){NAME("lengths/rejected"), rejected / groups};
    list[n++] = (struct metric){NAME("weights/mean"), sum[TALLY_WEIGHT] / groups};
    list[n++] = (struct metric){NAME("weights/min"), tally->weight_min};
    list[n++] = (struct metric){NAME("weights/max"), tally->weight_max};
    list[n++] = (struct metric){NAME("weights/clamped"), sum[TALLY_CLAMPED] / groups};
    list[n++] = (struct metric){NAME("weights/effective_pairs"),
                                sum[TALLY_WEIGHT] * sum[TALLY_WEIGHT] / sum[TALLY_WEIGHT_SQUARE]};
    if (!has_reference) return n;
    list[n++] = (struct metric){NAME("rewards/chosen"), sum[TALLY_REWARD_CHOSEN] / groups};
    list[n++] = (struct metric){NAME("rewards/rejected"), sum[TALLY_REWARD_REJECTED] / groups};
    list[n++] = (struct metric){NAME("rewards/accuracies"), sum[TALLY_ACCURATE] / groups};
    list[n++] = (struct metric){NAME("rewards/margins"),
                                (sum[TALLY_REWARD_CHOSEN] - sum[TALLY_REWARD_REJECTED]) / groups};
    return n;
}
