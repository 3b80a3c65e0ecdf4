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

void trainer_open(struct trainer *trainer, bool log_pairs)
{
    struct batch_limits limits = trainer->engine->batch.limits;
    trainer->sums = allocate(limits.completions, sizeof *trainer->sums);
    trainer->results = allocate(limits.groups, sizeof *trainer->results);
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

/* Adds the groups of the batch that was just trained on to the tally. */
static enum status tally_batch(struct trainer *trainer, const double *reference, struct step_result *result)
{
    const struct batch *batch = &trainer->engine->batch;
    const struct groups *groups = trainer->groups;
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < batch->groups; i++) {
        int64_t g = batch->group[i], first = batch->group_first[i];
        const struct completion_sums *sums = trainer->sums + first;
        tally_group(&result->tally, &trainer->engine->settings->objective, sums,
                    reference ? reference + first : NULL, &trainer->results[i],
                    groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
        for (int64_t s = 0; reference && s < batch->group_first[i + 1] - first; s++)
            result->drift = fmax(result->drift, fabs(sums[s].logp - reference[first + s]) /
                                                    (1 + fabs(reference[first + s])));
        if (trainer->records) keep_record(trainer, g, sums, &trainer->results[i]);
        if (!isfinite(trainer->results[i].loss) && status == STATUS_OK)
            status = fail("%s: the loss of row %lld is not finite (log-probability %g of %lld tokens)",
                          groups->path, (long long)groups->row[g], sums[0].logp, (long long)sums[0].count);
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
static enum status train_micro_batch(struct trainer *trainer, int64_t m, double scale,
                                     struct bucket_listener listener, struct step_result *result)
{
    struct engine *e = trainer->engine;
    int64_t count;
    const int64_t *members = share_micro_batch(&trainer->share, m, &count);
    batch_pack(&e->batch, trainer->groups, members, count);
    const double *reference = gather_reference(trainer);

    struct tensor stream = model_forward(&e->model, &e->batch);
    head_train(&e->head, &e->batch, stream, &e->settings->objective, reference, scale, trainer->sums,
               trainer->results);
    if (listener.ready) listener.ready(listener.context, e->params.bucket_count - 1);
    model_backward(&e->model, &e->batch, listener);
    return tally_batch(trainer, reference, result);
}

/* A rank whose share of a small last batch is empty still takes part in every reduction. */
static void announce_all(const struct engine *e, struct bucket_listener listener)
{
    for (int64_t b = e->params.bucket_count - 1; b >= 0; b--)
        listener.ready(listener.context, b);
}

enum status train_step(struct trainer *trainer, int64_t step, struct step_result *result)
{
    struct engine *e = trainer->engine;
    const struct settings *settings = e->settings;
    int64_t count;
    const int64_t *members = order_step(trainer->order, step, &count);
    share_of_step(&trainer->share, trainer->groups, members, count, e->comm->rank, e->comm->size,
                  trainer->micro);
    int64_t micro_batches = share_micro_batches(&trainer->share);
    double scale = loss_scale(trainer, members, count);

    tally_clear(&result->tally);
    clear_records(trainer, members, count);
    result->drift = 0;
    enum status status = STATUS_OK;
    struct bucket_listener listener = optimiser_listener(trainer->optimiser), nobody = {0};
    e->ops->zero(e->device, e->model.gradients, (size_t)e->params.total * sizeof(float));
    for (int64_t m = 0; m < micro_batches; m++) {
        enum status mine =
            train_micro_batch(trainer, m, scale, m + 1 < micro_batches ? nobody : listener, result);
        if (status == STATUS_OK) status = mine;
    }
    if (!micro_batches) announce_all(e, listener);

    result->gradient_norm = optimiser_reduce(trainer->optimiser);
    TRY(comm_agree(e->comm, status));
    TRY(check_gradient(trainer, result->gradient_norm));

    double clip = settings->max_grad_norm;
    result->learning_rate = learning_rate_at(settings, step, trainer->total_steps);
    optimiser_update(trainer->optimiser,
                     &(struct adamw){.rate = result->learning_rate,
                                     .beta_first = settings->adam_beta1,
                                     .beta_second = settings->adam_beta2,
                                     .epsilon = settings->adam_epsilon,
                                     .weight_decay = settings->weight_decay,
                                     .gradient_scale = clip > 0 && result->gradient_norm > clip
                                                           ? clip / (result->gradient_norm + 1e-6)
                                                           : 1,
                                     .step = step + 1});
    tally_reduce(&result->tally, e->comm);
    comm_maximum(e->comm, &result->drift, 1);
    merge_records(trainer, members, count);
    return STATUS_OK;
}
