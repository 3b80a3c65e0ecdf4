#include "runtime/evaluate.h"

#include "runtime/engine.h"
#include "runtime/signals.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status dataset_score(struct engine *engine, struct dataset *dataset, int64_t micro,
                          const struct report *report, const char *phase, bool known,
                          const struct reward_mean *running, struct completion_sums *sums,
                          struct tally *tally)
{
    const struct objective *objective = &engine->settings->objective;
    const struct groups *groups = &dataset->groups;
    int64_t steps = order_steps_per_epoch(&dataset->order), *all = allocate(groups->group_count, sizeof *all);
    struct members members = {all, groups->group_count};
    struct reward_mean after;
    for (int64_t g = 0; g < groups->group_count; g++)
        all[g] = g;
    struct batch_facts facts = statistics_scales(objective, groups, members);
    enum status status = STATUS_OK;
    if (dataset->mismatched.group_count && dataset->mismatched_reference) {
        struct completion_sums *other = allocate(dataset->mismatched.completion_count, sizeof *other);
        status =
            engine_score(engine, &dataset->mismatched_order, 0, steps, micro, report, phase, other, NULL);
        if (status == STATUS_OK) statistics_kl(&facts, objective, dataset, members, other);
        free(other);
    }
    struct completion_sums *prompts =
        objective->nll_on_prompt ? allocate(groups->group_count, sizeof *prompts) : NULL;
    if (status == STATUS_OK)
        status = engine_score(engine, &dataset->order, 0, steps, micro, report, phase, sums, prompts);
    if (status == STATUS_OK) {
        struct completion_data *adjusted = allocate(groups->completion_count, sizeof *adjusted);
        statistics_batch(&facts, objective, dataset, members, sums, running, &after, adjusted);
        if (running->steps > 0) facts.shift = running->mean; /* evaluation does not move it */
        tally_groups(tally, objective, &facts, groups, sums, prompts, dataset->data, adjusted, known);
        free(adjusted);
    }
    free(prompts);
    free(all);
    return status;
}

enum status dataset_reference(struct engine *engine, struct dataset *dataset, int64_t first, int64_t steps,
                              int64_t micro, const struct report *report)
{
    const struct objective *objective = &engine->settings->objective;
    int64_t count = dataset->groups.completion_count; /* as many are mismatched */
    struct completion_sums *sums = allocate(count, sizeof *sums);
    enum status status =
        engine_score(engine, &dataset->order, first, steps, micro, report, "reference", sums, NULL);
    for (int64_t s = 0; s < count && status == STATUS_OK; s++)
        if (sums[s].count) dataset->data[s].reference = objective_logp(objective, &sums[s]);
    if (status == STATUS_OK && dataset->mismatched.group_count) {
        double **reference = &dataset->mismatched_reference;
        if (!*reference) *reference = allocate(count, sizeof **reference);
        status = engine_score(engine, &dataset->mismatched_order, first, steps, micro, report, "reference",
                              sums, NULL);
        for (int64_t s = 0; s < count && status == STATUS_OK; s++)
            if (sums[s].count) (*reference)[s] = objective_logp(objective, &sums[s]);
    }
    free(sums);
    return status;
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

static void keep_completions(struct evaluation *evaluation, const struct completion_sums *sums, bool known)
{
    int64_t count = evaluation->dataset.groups.completion_count;
    evaluation->completions = allocate(count, sizeof *evaluation->completions);
    for (int64_t s = 0; s < count; s++) {
        struct completion_record *record = &evaluation->completions[s];
        record->sums = sums[s];
        record->reference = known ? evaluation->dataset.data[s].reference : NAN;
        for (int w = 0; w < WEIGHTING_COUNT; w++)
            record->log_weight[w] = completion_log_weight(&sums[s], (enum weighting)w);
    }
}

static enum status evaluate_groups(struct engine *engine, const struct report *report,
                                   struct evaluation *evaluation)
{
    const struct settings *settings = engine->settings;
    struct dataset *dataset = &evaluation->dataset;
    const struct reward_mean none = {0};
    bool known = settings->ref_model_name_or_path != NULL;
    char fingerprint[65];
    struct tally tally;
    dataset_plan(dataset, settings->per_device_eval_batch_size * engine->comm->size, 0, false);
    if (known) {
        TRY(engine_load(engine, settings->ref_model_name_or_path, fingerprint, NULL));
        TRY(dataset_reference(engine, dataset, 0, order_steps_per_epoch(&dataset->order),
                              settings->per_device_eval_batch_size, report));
    }
    TRY(engine_load(engine, settings->model_name_or_path, fingerprint, NULL));
    struct completion_sums *sums = allocate(dataset->groups.completion_count, sizeof *sums);
    enum status status = dataset_score(engine, dataset, settings->per_device_eval_batch_size, report, "eval",
                                       known, &none, sums, &tally);
    if (status == STATUS_OK) {
        warn_of_broken(report, &dataset->groups, sums);
        keep_completions(evaluation, sums, known);
        evaluation->metrics = allocate(TALLY_METRICS, sizeof *evaluation->metrics);
        evaluation->metric_count =
            tally_metrics(&tally, &settings->objective, known, false, evaluation->metrics);
    }
    free(sums);
    return status;
}

static enum status evaluate_file(struct comm *comm, const struct settings *settings,
                                 const struct report *report, struct evaluation *evaluation)
{
    struct dataset *dataset = &evaluation->dataset;
    TRY(comm_agree(comm, dataset_open(dataset, settings->eval_file, settings, comm)));
    TRY(groups_same(&dataset->groups, comm));
    struct engine engine;
    enum status status =
        engine_open(&engine, comm, settings, MODEL_SCORE,
                    dataset_measure(dataset, settings, settings->per_device_eval_batch_size));
    if (status == STATUS_OK) status = comm_agree(comm, engine_check_groups(&engine, &dataset->groups));
    if (status == STATUS_OK) status = engine_place(&engine);
    if (status == STATUS_OK) status = evaluate_groups(&engine, report, evaluation);
    engine_close(&engine);
    return status;
}

enum status evaluate_run(struct comm *comm, const struct settings *settings, const struct report *report,
                         struct evaluation *evaluation)
{
    *evaluation = (struct evaluation){0};
    signals_install();
    enum status status = evaluate_file(comm, settings, report, evaluation);
    if (status != STATUS_OK) evaluation_free(evaluation);
    return status;
}

void evaluation_free(struct evaluation *evaluation)
{
    dataset_close(&evaluation->dataset);
    free(evaluation->completions);
    free(evaluation->metrics);
    *evaluation = (struct evaluation){0};
}
