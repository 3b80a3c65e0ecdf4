#include "runtime/evaluate.h"

#include "runtime/engine.h"
#include "runtime/signals.h"
#include "runtime/tally.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The model's sums and, if there is a reference model, the reference's log-probabilities. */
static enum status score_models(struct engine *engine, struct order *order, const struct report *report,
                                struct completion_sums *sums, double **reference)
{
    const struct settings *settings = engine->settings;
    int64_t steps = order_steps_per_epoch(order), count = order->groups->completion_count;
    char fingerprint[65];
    if (settings->ref_model_name_or_path) {
        TRY(engine_load(engine, settings->ref_model_name_or_path, fingerprint, NULL));
        TRY(engine_score(engine, order, 0, steps, settings->per_device_eval_batch_size, report, "reference",
                         sums));
        *reference = allocate(count, sizeof **reference);
        for (int64_t s = 0; s < count; s++)
            (*reference)[s] = sums[s].logp;
    }
    TRY(engine_load(engine, settings->model_name_or_path, fingerprint, NULL));
    return engine_score(engine, order, 0, steps, settings->per_device_eval_batch_size, report, "eval", sums);
}

/* Of a broken model there is no more to say, and its metrics are left out. */
static void warn_of_broken(const struct report *report, const struct groups *groups,
                           const struct completion_sums *sums)
{
    int64_t broken = 0, row = 0;
    for (int64_t g = groups->group_count - 1; g >= 0; g--)
        for (int64_t s = groups->first[g]; s < groups->first[g + 1]; s++) {
            if (isfinite(sums[s].logp)) continue;
            broken++;
            row = groups->row[g];
        }
    if (!broken || !report->note) return;
    char *sentence =
        text_format("warning: %s: the log-probabilities of %lld of %lld completions are not "
                    "finite, first in row %lld: the model is broken, or overflows",
                    groups->path, (long long)broken, (long long)groups->completion_count, (long long)row);
    report->note(report->context, sentence);
    free(sentence);
}

static enum status evaluate_groups(struct engine *engine, const struct report *report,
                                   struct evaluation *evaluation)
{
    const struct settings *settings = engine->settings;
    const struct groups *groups = &evaluation->groups;
    struct order order;
    order_open(&order, groups, settings->per_device_eval_batch_size * engine->comm->size, 0, false);
    struct completion_sums *sums = allocate(groups->completion_count, sizeof *sums);
    double *reference = NULL;
    enum status status = score_models(engine, &order, report, sums, &reference);
    if (status == STATUS_OK) {
        struct tally tally;
        evaluation->completions = allocate(groups->completion_count, sizeof *evaluation->completions);
        evaluation->metrics = allocate(TALLY_METRICS, sizeof *evaluation->metrics);
        warn_of_broken(report, groups, sums);
        tally_groups(&tally, &settings->objective, groups, sums, reference);
        evaluation->metric_count =
            tally_metrics(&tally, &settings->objective, reference != NULL, false, evaluation->metrics);
        for (int64_t s = 0; s < groups->completion_count; s++) {
            struct completion_record *record = &evaluation->completions[s];
            record->sums = sums[s];
            record->reference = reference ? reference[s] : NAN;
            for (int w = 0; w < WEIGHTING_COUNT; w++)
                record->log_weight[w] = completion_log_weight(&sums[s], (enum weighting)w);
        }
    }
    free(reference);
    free(sums);
    order_close(&order);
    return status;
}

enum status evaluate_run(struct comm *comm, const struct settings *settings, const struct report *report,
                         struct evaluation *evaluation)
{
    *evaluation = (struct evaluation){0};
    signals_install();
    struct groups *groups = &evaluation->groups;
    TRY(comm_agree(comm, groups_open(groups, settings->eval_file)));
    TRY(groups_same(groups, comm));
    TRY(comm_agree(comm, groups_fit(groups, &settings->objective, comm)));
    struct engine engine;
    enum status status = engine_open(&engine, comm, settings, MODEL_SCORE,
                                     batch_measure(groups, settings->per_device_eval_batch_size));
    if (status == STATUS_OK) status = comm_agree(comm, engine_check_groups(&engine, groups));
    if (status == STATUS_OK) status = engine_place(&engine);
    if (status == STATUS_OK) status = evaluate_groups(&engine, report, evaluation);
    engine_close(&engine);
    return status;
}

void evaluation_free(struct evaluation *evaluation)
{
    groups_close(&evaluation->groups);
    free(evaluation->completions);
    free(evaluation->metrics);
    *evaluation = (struct evaluation){0};
}
