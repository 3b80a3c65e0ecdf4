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
    struct batch_limits whole = batch_measure(groups, batch);
    limits->step_groups = whole.groups;
    limits->step_completions = whole.completions;
}

void trainer_open(struct trainer *trainer, bool log_pairs)
{
    struct batch_limits limits = trainer->engine->head.limits;
    trainer->sums = allocate(limits.step_completions, sizeof *trainer->sums);
    trainer->results = allocate(limits.step_groups, sizeof *trainer->results);
    trainer->batch_reference = allocate(limits.completions, sizeof *trainer->batch_reference);
    if (log_pairs) trainer->records = allocate(trainer->groups->group_count * RECORD_FIELDS, sizeof(double));
}

void trainer_close(struct trainer *trainer)
{
    free(trainer->sums);
    free(trainer->results);
    free(trainer->batch_reference);
    free(trainer->records);
    share_free(&trainer->share);
}

/* Means are over the global batch: over its groups, or over its scored tokens where the loss is one of
 * tokens. */
static double loss_scale(const struct trainer *trainer, const int64_t *members, int64_t count)
{
    if (trainer->engine->settings->objective.loss_type != LOSS_SFT) return 1 / (double)count;
    int64_t tokens = 0;
    for (int64_t i = 0; i < count; i++)
        tokens += group_scored_tokens(trainer->groups, members[i]);
    return 1 / (double)tokens;
}

/* Of the packed batch's completions. */
static const double *gather_reference(struct trainer *trainer)
{
    const struct batch *batch = &trainer->engine->batch;
    if (!trainer->reference) return NULL;
    for (int64_t s = 0; s < batch->completions; s++)
        trainer->batch_reference[s] = trainer->reference[batch->completion[s]];
    return trainer->batch_reference;
}

/* -- what happened ---------------------------------------------------------------------------- */

static void keep_record(struct trainer *trainer, int64_t g, const struct completion_sums *sums,
                        const struct group_result *result)
{
    bool pair = objective_group_size(trainer->engine->settings->objective.loss_type) == 2;
    double *record = trainer->records + g * RECORD_FIELDS;
    record[RECORD_LOSS] = result->loss;
    record[RECORD_WEIGHT] = result->weight;
    record[RECORD_LOGP_CHOSEN] = sums[0].logp;
    record[RECORD_LENGTH_CHOSEN] = (double)sums[0].count;
    record[RECORD_LOGP_REJECTED] = pair ? sums[1].logp : 0;
    record[RECORD_LENGTH_REJECTED] = pair ? (double)sums[1].count : 0;
}

/* Adds a group's sums, reference and result to the tally. */
static enum status tally_one(struct trainer *trainer, int64_t g, const struct completion_sums *sums,
                             const struct group_result *group, struct step_result *result)
{
    const struct groups *groups = trainer->groups;
    const double *reference = trainer->reference ? trainer->reference + groups->first[g] : NULL;
    tally_group(&result->tally, &trainer->engine->settings->objective, sums, reference, group,
                groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
    for (int64_t s = 0; reference && s < groups->first[g + 1] - groups->first[g]; s++)
        result->drift =
            fmax(result->drift, fabs(sums[s].logp - reference[s]) / (1 + fabs(reference[s])));
    if (trainer->records) keep_record(trainer, g, sums, group);
    if (isfinite(group->loss)) return STATUS_OK;
    return fail("%s: the loss of row %lld is not finite (log-probability %g of %lld tokens)", groups->path,
                (long long)groups->row[g], sums[0].logp, (long long)sums[0].count);
}

/* All groups of this rank's share, in the order in which they were trained on. */
static enum status tally_share(struct trainer *trainer, struct step_result *result)
{
    enum status status = STATUS_OK;
    const struct completion_sums *sums = trainer->sums;
    const struct group_result *group = trainer->results;
    head_take(&trainer->engine->head, trainer->sums, trainer->results);
    for (int64_t m = 0; m < share_micro_batches(&trainer->share); m++) {
        int64_t count;
        const int64_t *members = share_micro_batch(&trainer->share, m, &count);
        for (int64_t i = 0; i < count; i++) {
            enum status mine = tally_one(trainer, members[i], sums, group++, result);
            if (status == STATUS_OK) status = mine;
            sums += trainer->groups->first[members[i] + 1] - trainer->groups->first[members[i]];
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
    const struct groups *groups = trainer->groups;
    const int64_t *members = order_step(trainer->order, step, &count);
    for (int64_t i = 0; trainer->records && report->pair && i < count; i++) {
        int64_t g = members[i], chosen = groups->first[g], rejected = groups->first[g + 1] - 1;
        const double *record = trainer->records + g * RECORD_FIELDS, *reference = trainer->reference;
        struct pair_record pair = {
            .step = step + 1,
            .row = groups->row[g],
            .loss = record[RECORD_LOSS],
            .weight = record[RECORD_WEIGHT],
            .logp_chosen = record[RECORD_LOGP_CHOSEN],
            .logp_rejected = record[RECORD_LOGP_REJECTED],
            .reference_chosen = reference ? reference[chosen] : NAN,
            .reference_rejected = reference ? reference[rejected] : NAN,
            .length_chosen = (int64_t)record[RECORD_LENGTH_CHOSEN],
            .length_rejected = (int64_t)record[RECORD_LENGTH_REJECTED],
        };
        pair.margin =
            trainer->engine->settings->objective.beta *
            (pair.logp_chosen - pair.reference_chosen - pair.logp_rejected + pair.reference_rejected);
        report->pair(report->context, &pair);
    }
}

/* -- the step --------------------------------------------------------------------------------- */

/* Forward, objective and backward of one micro-batch, into the gradients. */
static void train_micro_batch(struct trainer *trainer, int64_t m, double scale,
                              struct bucket_listener listener)
{
    struct engine *e = trainer->engine;
    int64_t count;
    const int64_t *members = share_micro_batch(&trainer->share, m, &count);
    batch_pack(&e->batch, trainer->groups, members, count);

    struct tensor stream = model_forward(&e->model, &e->batch);
    head_train(&e->head, &e->batch, stream, &e->settings->objective, gather_reference(trainer), scale);
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
    const int64_t *members = order_step(trainer->order, step, &count);
    share_of_step(&trainer->share, trainer->groups, members, count, e->comm->rank, e->comm->size,
                  trainer->micro);
    int64_t micro_batches = share_micro_batches(&trainer->share);
    double scale = loss_scale(trainer, members, count);

    *result = (struct step_result){.learning_rate =
                                       learning_rate_at(e->settings, step, trainer->total_steps)};
    tally_clear(&result->tally);
    clear_records(trainer, members, count);
    head_begin(&e->head);
    struct bucket_listener listener = optimiser_listener(optimiser), nobody = {0};
    e->ops->zero(e->device, e->model.gradients,
                 (size_t)e->params.total * dtype_bytes(e->precision.gradient));
    for (int64_t m = 0; m < micro_batches; m++)
        train_micro_batch(trainer, m, scale, m + 1 < micro_batches ? nobody : listener);
    if (!micro_batches) announce_all(e, listener);
    optimiser_reduce(optimiser);
    struct adamw update = update_of(e->settings, step, result->learning_rate);
    optimiser_update(optimiser, &update);

    TRY(finish_step(trainer, result));
    tally_reduce(&result->tally, e->comm);
    comm_maximum(e->comm, &result->drift, 1);
    merge_records(trainer, members, count);
    return STATUS_OK;
}
