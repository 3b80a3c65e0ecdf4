#include "runtime/step.h"

#include "kernels/require.h"

#include <math.h>
#include <stdlib.h>

enum record_field {
    RECORD_LOSS,
    RECORD_WEIGHT,
    RECORD_LOGP_CHOSEN,
    RECORD_LOGP_REJECTED,
    RECORD_LENGTH_CHOSEN,
    RECORD_LENGTH_REJECTED,
    RECORD_FIELDS
};

void trainer_limits(struct batch_limits *limits, const struct groups *groups, int64_t batch)
{
    struct batch_limits whole = batch_measure(groups, batch, limits->prompts);
    limits->step_groups = whole.groups;
    limits->step_completions = whole.completions;
}

void trainer_open(struct trainer *trainer, bool log_pairs)
{
    struct batch_limits limits = trainer->engine->head.limits;
    const struct groups *groups = &trainer->dataset->groups;
    trainer->sums = allocate(limits.step_completions, sizeof *trainer->sums);
    trainer->results = allocate(limits.step_groups, sizeof *trainer->results);
    trainer->batch_data = allocate(limits.completions, sizeof *trainer->batch_data);
    if (log_pairs) trainer->records = allocate(groups->group_count * RECORD_FIELDS, sizeof(double));
    if (!statistics_wanted(&trainer->engine->settings->objective)) return;
    trainer->batch_sums = allocate(groups->completion_count, sizeof *trainer->batch_sums);
    trainer->step_data = allocate(groups->completion_count, sizeof *trainer->step_data);
}

void trainer_close(struct trainer *trainer)
{
    free(trainer->sums);
    free(trainer->results);
    free(trainer->batch_data);
    free(trainer->batch_sums);
    free(trainer->step_data);
    free(trainer->records);
    share_free(&trainer->share);
}

/* -- before the step -------------------------------------------------------------------------- */

/* What holds for the global batch. Where the objective couples its groups, that is known only from a forward
 * pass over all of them, and the completions' data may change with it. */
static struct batch_facts gather_facts(struct trainer *trainer, struct members members,
                                       struct reward_mean *after)
{
    struct engine *e = trainer->engine;
    struct dataset *dataset = trainer->dataset;
    const struct objective *objective = &e->settings->objective;
    struct batch_facts facts = statistics_scales(objective, &dataset->groups, members);
    *after = trainer->running;
    if (!statistics_wanted(objective)) return facts;
    if (dataset->mismatched.group_count) {
        engine_score_members(e, &dataset->mismatched, members.group, members.count, trainer->micro,
                             trainer->batch_sums);
        statistics_kl(&facts, objective, dataset, members, trainer->batch_sums);
    }
    if (statistics_of_batch(objective))
        engine_score_members(e, &dataset->groups, members.group, members.count, trainer->micro,
                             trainer->batch_sums);
    statistics_batch(&facts, objective, dataset, members, trainer->batch_sums, &trainer->running, after,
                     trainer->step_data);
    return facts;
}

/* Of the packed batch's completions; a prompt has none. */
static const struct completion_data *gather_data(struct trainer *trainer)
{
    const struct batch *batch = &trainer->engine->batch;
    const struct completion_data *data = trainer->step_data ? trainer->step_data : trainer->dataset->data;
    for (int64_t s = 0; s < batch->completions; s++)
        trainer->batch_data[s] =
            batch->completion[s] < 0 ? (struct completion_data){0} : data[batch->completion[s]];
    return trainer->batch_data;
}

/* -- what happened ---------------------------------------------------------------------------- */

static void keep_record(struct trainer *trainer, int64_t g, const struct completion_sums *sums,
                        const struct group_result *result)
{
    double *record = trainer->records + g * RECORD_FIELDS;
    record[RECORD_LOSS] = result->loss;
    record[RECORD_WEIGHT] = result->weight;
    record[RECORD_LOGP_CHOSEN] = sums[0].logp;
    record[RECORD_LENGTH_CHOSEN] = (double)sums[0].count;
    record[RECORD_LOGP_REJECTED] = sums[1].logp;
    record[RECORD_LENGTH_REJECTED] = (double)sums[1].count;
}

/* Adds a group's sums, data and result to the tally. */
static enum status tally_one(struct trainer *trainer, int64_t g, const struct completion_sums *sums,
                             const struct group_result *group, struct step_result *result)
{
    const struct groups *groups = &trainer->dataset->groups;
    const struct objective *objective = &trainer->engine->settings->objective;
    const struct completion_data *data = trainer->dataset->data + groups->first[g];
    int64_t count = groups->first[g + 1] - groups->first[g];
    tally_group(&result->tally, objective, sums, data, count, group,
                groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
    for (int64_t s = 0; objective_uses_reference(objective) && s < count; s++)
        result->drift = fmax(result->drift, fabs(objective_ratio(objective, &sums[s], &data[s])) /
                                                (1 + fabs(data[s].reference)));
    if (trainer->records) keep_record(trainer, g, sums, group);
    if (isfinite(group->loss) && isfinite(group->likelihood)) return STATUS_OK;
    return fail("%s: the loss of row %lld is not finite (log-probability %g of %lld tokens)", groups->path,
                (long long)groups->row[g], sums[0].logp, (long long)sums[0].count);
}

/* All groups of this rank's share, in the order in which they were trained on. */
static enum status tally_share(struct trainer *trainer, struct step_result *result)
{
    enum status status = STATUS_OK;
    const struct groups *groups = &trainer->dataset->groups;
    const struct completion_sums *sums = trainer->sums;
    const struct group_result *group = trainer->results;
    bool prompts = trainer->engine->batch.limits.prompts;
    head_take(&trainer->engine->head, trainer->sums, trainer->results);
    for (int64_t m = 0; m < share_micro_batches(&trainer->share); m++) {
        int64_t count;
        const int64_t *members = share_micro_batch(&trainer->share, m, &count);
        for (int64_t i = 0; i < count; i++) {
            enum status mine = tally_one(trainer, members[i], sums, group++, result);
            if (status == STATUS_OK) status = mine;
            sums += groups->first[members[i] + 1] - groups->first[members[i]] + (prompts ? 1 : 0);
        }
    }
    return status;
}

/* The norm is the same on all ranks; the tensor is known to those that own it, and only they fail at first.
 */
static enum status check_gradient(const struct trainer *trainer, double norm)
{
    if (isfinite(norm)) return STATUS_OK;
    const char *tensor = optimiser_not_finite(trainer->optimiser);
    TRY(comm_agree(
        trainer->engine->comm,
        tensor ? fail("the gradient of %s is not finite; lower learning_rate, or look for broken rows with "
                      "log_pairs: true",
                      tensor)
               : STATUS_OK));
    return fail("the norm of the gradient is not finite; lower learning_rate");
}

/* Clears the records of the groups that other ranks will fill. */
static void clear_records(struct trainer *trainer, const int64_t *members, int64_t count)
{
    for (int64_t i = 0; trainer->records && i < count; i++)
        for (int f = 0; f < RECORD_FIELDS; f++)
            trainer->records[members[i] * RECORD_FIELDS + f] = 0;
}

static void merge_records(struct trainer *trainer, const int64_t *members, int64_t count)
{
    if (!trainer->records) return;
    double *values = allocate(count * RECORD_FIELDS, sizeof *values);
    for (int64_t i = 0; i < count * RECORD_FIELDS; i++)
        values[i] = trainer->records[members[i / RECORD_FIELDS] * RECORD_FIELDS + i % RECORD_FIELDS];
    comm_merge(trainer->engine->comm, values, count * RECORD_FIELDS);
    for (int64_t i = 0; i < count * RECORD_FIELDS; i++)
        trainer->records[members[i / RECORD_FIELDS] * RECORD_FIELDS + i % RECORD_FIELDS] = values[i];
    free(values);
}

void trainer_report_pairs(const struct trainer *trainer, int64_t step, const struct report *report)
{
    int64_t count;
    const struct groups *groups = &trainer->dataset->groups;
    const struct objective *objective = &trainer->engine->settings->objective;
    const int64_t *members = order_step(&trainer->dataset->order, step, &count);
    bool known = objective_uses_reference(objective);
    for (int64_t i = 0; trainer->records && report->pair && i < count; i++) {
        int64_t g = members[i], chosen = groups->first[g];
        const double *record = trainer->records + g * RECORD_FIELDS;
        const struct completion_data *data = trainer->dataset->data + chosen;
        struct pair_record pair = {
            .step = step + 1,
            .row = groups->row[g],
            .loss = record[RECORD_LOSS],
            .weight = record[RECORD_WEIGHT],
            .logp_chosen = record[RECORD_LOGP_CHOSEN],
            .logp_rejected = record[RECORD_LOGP_REJECTED],
            .reference_chosen = known ? data[0].reference : NAN,
            .reference_rejected = known ? data[1].reference : NAN,
            .length_chosen = (int64_t)record[RECORD_LENGTH_CHOSEN],
            .length_rejected = (int64_t)record[RECORD_LENGTH_REJECTED],
        };
        pair.margin = objective->beta * (pair.logp_chosen - pair.reference_chosen - pair.logp_rejected +
                                         pair.reference_rejected);
        report->pair(report->context, &pair);
    }
}

/* -- the step --------------------------------------------------------------------------------- */

/* Forward, objective and backward of one micro-batch, into the gradients. */
static void train_micro_batch(struct trainer *trainer, int64_t m, const struct batch_facts *facts,
                              struct bucket_listener listener)
{
    struct engine *e = trainer->engine;
    int64_t count;
    const int64_t *members = share_micro_batch(&trainer->share, m, &count);
    batch_pack(&e->batch, &trainer->dataset->groups, members, count);

    struct tensor stream = model_forward(&e->model, &e->batch);
    head_train(&e->head, &e->batch, stream, &e->settings->objective, facts, gather_data(trainer));
    if (listener.ready) listener.ready(listener.context, e->params.bucket_count - 1);
    model_backward(&e->model, &e->batch, listener);
}

/* A rank whose share of a small last batch is empty still takes part in every reduction. */
static void announce_all(const struct engine *e, struct bucket_listener listener)
{
    for (int64_t b = e->params.bucket_count - 1; b >= 0; b--)
        listener.ready(listener.context, b);
}

static struct adamw update_of(const struct settings *settings, int64_t step, double rate)
{
    return (struct adamw){.rate = rate,
                          .beta_first = settings->adam_beta1,
                          .beta_second = settings->adam_beta2,
                          .epsilon = settings->adam_epsilon,
                          .weight_decay = settings->weight_decay,
                          .max_norm = settings->max_grad_norm,
                          .step = step + 1};
}

/* What the device did, once it is done: the tally of this rank, and whether the update was taken. */
static enum status finish_step(struct trainer *trainer, struct step_result *result)
{
    struct engine *e = trainer->engine;
    exchange_wait(e->exchange);
    result->gradient_norm = optimiser_norm(trainer->optimiser);
    enum status status = comm_agree(e->comm, tally_share(trainer, result));
    if (status == STATUS_OK) status = check_gradient(trainer, result->gradient_norm);
    result->skipped = status != STATUS_OK && e->settings->on_nonfinite == NONFINITE_SKIP;
    return result->skipped ? STATUS_OK : status;
}

enum status train_step(struct trainer *trainer, int64_t step, struct step_result *result)
{
    struct engine *e = trainer->engine;
    struct optimiser *optimiser = trainer->optimiser;
    int64_t count;
    const int64_t *members = order_step(&trainer->dataset->order, step, &count);
    share_of_step(&trainer->share, &trainer->dataset->groups, members, count, e->comm->rank, e->comm->size,
                  trainer->micro);
    int64_t micro_batches = share_micro_batches(&trainer->share);
    struct reward_mean running;
    struct batch_facts facts = gather_facts(trainer, (struct members){members, count}, &running);

    *result =
        (struct step_result){.learning_rate = learning_rate_at(e->settings, step, trainer->total_steps)};
    tally_clear(&result->tally);
    clear_records(trainer, members, count);
    head_begin(&e->head);
    struct bucket_listener listener = optimiser_listener(optimiser), nobody = {0};
    e->ops->zero(e->device, e->model.gradients, (size_t)e->params.total * dtype_bytes(e->precision.gradient));
    for (int64_t m = 0; m < micro_batches; m++)
        train_micro_batch(trainer, m, &facts, m + 1 < micro_batches ? nobody : listener);
    if (!micro_batches) announce_all(e, listener);
    optimiser_reduce(optimiser);
    struct adamw update = update_of(e->settings, step, result->learning_rate);
    optimiser_update(optimiser, &update);

    TRY(finish_step(trainer, result));
    if (!result->skipped) trainer->running = running;
    tally_reduce(&result->tally, e->comm);
    tally_facts(&result->tally, &facts);
    comm_maximum(e->comm, &result->drift, 1);
    merge_records(trainer, members, count);
    return STATUS_OK;
}
