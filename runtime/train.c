#include "runtime/train.h"

#include "kernels/require.h"
#include "runtime/files.h"
#include "runtime/pretrained.h"
#include "runtime/reference.h"
#include "runtime/signals.h"
#include "runtime/step.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* Everything one run holds. */
struct run {
    struct comm *comm;
    const struct settings *settings;
    const struct report *report;
    const char *run_file;
    struct groups groups, eval_groups;
    bool has_eval, has_reference, policy_is_reference;
    struct order order, eval_order;
    struct engine engine;
    struct optimiser optimiser;
    struct trainer trainer;
    double *reference, *eval_reference; /* [S] */
    char *checkpoint;                   /* folder to resume from, or NULL */
    struct checkpoint_state state;
    int64_t total_steps;
    struct tally window; /* since the last record */
    double window_seconds, window_norm, window_rate;
    int64_t window_steps;
};

static double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

__attribute__((format(printf, 2, 3))) static void note(const struct run *run, const char *format, ...)
{
    if (run->comm->rank != 0 || !run->report->note) return;
    char sentence[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    run->report->note(run->report->context, sentence);
}

/* -- opening
 * ----------------------------------------------------------------------------------------------------- */

static enum status open_data(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(groups_open(&run->groups, settings->train_file));
    TRY(groups_fit(&run->groups, &settings->objective, run->comm));
    if (!settings->eval_file) return STATUS_OK;
    TRY(groups_open(&run->eval_groups, settings->eval_file));
    run->has_eval = true;
    return groups_fit(&run->eval_groups, &settings->objective, run->comm);
}

/* A resumed run keeps the global batch, the seed and the data it began with, whatever the number of ranks. */
static enum status check_resumed(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(checkpoint_state_read(&run->state, run->checkpoint));
    if (settings->global_batch_size > 0 && settings->global_batch_size != run->state.global_batch)
        return fail("%s: the run was started with a global batch of %lld, and global_batch_size is %lld now; "
                    "a resumed "
                    "run keeps its batch",
                    run->checkpoint, (long long)run->state.global_batch,
                    (long long)settings->global_batch_size);
    if (settings->seed != run->state.seed)
        return fail("%s: the run was started with seed %llu, and seed is %llu now; a resumed run keeps its "
                    "order of data",
                    run->checkpoint, (unsigned long long)run->state.seed, (unsigned long long)settings->seed);
    if (strcmp(run->groups.fingerprint, run->state.data_fingerprint) != 0)
        return fail("%s: the run was started on other data than %s; resume with the same train_file",
                    run->checkpoint, settings->train_file);
    return STATUS_OK;
}

static enum status plan_steps(struct run *run)
{
    const struct settings *settings = run->settings;
    int64_t batch = run->checkpoint ? run->state.global_batch : settings->global_batch_size;
    if (batch <= 0)
        batch =
            settings->per_device_train_batch_size * settings->gradient_accumulation_steps * run->comm->size;
    if (batch < run->comm->size)
        return fail("a global batch of %lld groups leaves ranks idle: start at most %lld ranks, or raise "
                    "global_batch_size",
                    (long long)batch, (long long)batch);
    order_open(&run->order, &run->groups, batch, settings->seed, true);
    if (run->has_eval)
        order_open(&run->eval_order, &run->eval_groups,
                   settings->per_device_eval_batch_size * run->comm->size, 0, false);
    int64_t per_epoch = order_steps_per_epoch(&run->order);
    run->total_steps = settings->max_steps > 0
                           ? settings->max_steps
                           : (int64_t)ceil(settings->num_train_epochs * (double)per_epoch);
    run->state.global_batch = batch;
    run->state.seed = settings->seed;
    run->state.world = run->comm->size;
    return STATUS_OK;
}

static enum status open_engine(struct run *run)
{
    const struct settings *settings = run->settings;
    struct batch_limits limits = batch_measure(&run->groups, settings->per_device_train_batch_size);
    if (run->has_eval)
        limits = batch_limits_union(limits,
                                    batch_measure(&run->eval_groups, settings->per_device_eval_batch_size));
    enum model_mode mode = settings->gradient_checkpointing ? MODEL_RECOMPUTE : MODEL_TRAIN;
    struct engine *e = &run->engine;
    TRY(engine_open(e, run->comm, settings, mode, limits));
    TRY(engine_check_groups(e, &run->groups));
    if (run->has_eval) TRY(engine_check_groups(e, &run->eval_groups));
    optimiser_open(&run->optimiser, &e->arena, run->comm, &e->model, settings->zero_stage);
    TRY(engine_place(e));
    optimiser_prepare(&run->optimiser);
    char *table = arena_table(&e->arena);
    note(run, "memory per rank: %.1f MiB planned (%s)", (double)e->arena.bytes / 0x1p20, table);
    free(table);
    return STATUS_OK;
}

/* -- reference
 * --------------------------------------------------------------------------------------------------- */

/* NaN where the first `steps` steps do not come; those that come must be known. */
static bool reference_complete(const double *logp, struct order *order, int64_t steps)
{
    int64_t per_epoch = order_steps_per_epoch(order);
    for (int64_t step = 0; step < (steps < per_epoch ? steps : per_epoch); step++) {
        int64_t count;
        const int64_t *members = order_step(order, step, &count);
        for (int64_t i = 0; i < count; i++)
            for (int64_t s = order->groups->first[members[i]]; s < order->groups->first[members[i] + 1]; s++)
                if (isnan(logp[s])) return false;
    }
    return true;
}

/* Log-probabilities under the parameters that the engine holds, from the cache or computed into it. */
static enum status reference_for(struct run *run, struct order *order, int64_t steps, int64_t micro,
                                 const char *fingerprint, const char *file, double **out)
{
    const struct groups *groups = order->groups;
    struct reference_key key;
    memcpy(key.model, fingerprint, sizeof key.model);
    memcpy(key.data, groups->fingerprint, sizeof key.data);
    snprintf(key.backend, sizeof key.backend, "%s", run->engine.ops->name);
    int64_t count = groups->completion_count, per_epoch = order_steps_per_epoch(order);
    double *logp = *out = allocate(count, sizeof *logp);

    char *path = files_join(run->settings->output_dir, file);
    bool found;
    enum status status = comm_agree(run->comm, reference_read(logp, &found, groups, &key, path));
    if (status == STATUS_OK && !comm_any(run->comm, !found) && reference_complete(logp, order, steps)) {
        note(run, "reference log-probabilities: read from %s", path);
    } else if (status == STATUS_OK) {
        double start = now_seconds();
        struct completion_sums *sums = allocate(count, sizeof *sums);
        status = engine_score(&run->engine, order, 0, steps < per_epoch ? steps : per_epoch, micro,
                              run->report, "reference", sums);
        for (int64_t s = 0; s < count; s++)
            logp[s] = sums[s].count ? sums[s].logp : NAN;
        free(sums);
        if (status == STATUS_OK)
            status = comm_agree(run->comm,
                                run->comm->rank == 0 ? reference_write(logp, groups, &key, path) : STATUS_OK);
        note(run, "reference log-probabilities of %s: computed in %.1f s", groups->path,
             now_seconds() - start);
    }
    free(path);
    return status;
}

/* Leaves the starting policy in the engine. */
static enum status load_models(struct run *run)
{
    const struct settings *settings = run->settings;
    const char *policy = settings->model_name_or_path;
    const char *reference = settings->ref_model_name_or_path ? settings->ref_model_name_or_path : policy;
    char fingerprint[65];
    run->has_reference = objective_uses_reference(settings->objective.loss_type);
    if (run->has_reference) {
        TRY(engine_load(&run->engine, reference, fingerprint));
        TRY(reference_for(run, &run->order, run->total_steps, settings->per_device_train_batch_size,
                          fingerprint, "reference.h5", &run->reference));
        if (run->has_eval)
            TRY(reference_for(run, &run->eval_order, order_steps_per_epoch(&run->eval_order),
                              settings->per_device_eval_batch_size, fingerprint, "reference-eval.h5",
                              &run->eval_reference));
    }
    if (!run->has_reference || strcmp(reference, policy) != 0)
        TRY(engine_load(&run->engine, policy, run->state.model_fingerprint));
    else
        memcpy(run->state.model_fingerprint, fingerprint, sizeof fingerprint);
    run->policy_is_reference = run->has_reference && !strcmp(run->state.model_fingerprint, fingerprint);
    return STATUS_OK;
}

static enum status load_checkpoint(struct run *run)
{
    char fingerprint[65];
    memcpy(fingerprint, run->state.model_fingerprint, sizeof fingerprint);
    checkpoint_state_free(&run->state);
    TRY(checkpoint_load(run->comm, run->checkpoint, &run->engine.params, &run->state, run->optimiser.pieces,
                        run->optimiser.piece_count));
    if (strcmp(fingerprint, run->state.model_fingerprint) != 0)
        return fail(
            "%s: the run was started from another model than %s; resume with the same model_name_or_path",
            run->checkpoint, run->settings->model_name_or_path);
    optimiser_spread(&run->optimiser);
    note(run, "resumed from %s: step %lld of %lld, written by %lld ranks", run->checkpoint,
         (long long)run->state.step, (long long)run->total_steps, (long long)run->state.world);
    return engine_same_parameters(&run->engine, "after loading the checkpoint");
}

/* The texts that go into every checkpoint. */
static enum status collect_texts(struct run *run)
{
    free(run->state.run_file);
    free(run->state.config);
    run->state.config = NULL;
    run->state.run_file = text_copy(run->run_file);
    memcpy(run->state.data_fingerprint, run->groups.fingerprint, sizeof run->state.data_fingerprint);
    run->state.world = run->comm->size;
    char *path = files_join(run->settings->model_name_or_path, "config.json");
    size_t bytes;
    enum status status = files_read(&run->state.config, &bytes, path, 1 << 20);
    free(path);
    return status;
}

static enum status run_open(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(comm_agree(run->comm, open_data(run)));
    if (settings->resume_from_checkpoint)
        TRY(checkpoint_find(run->comm, settings->output_dir, settings->resume_from_checkpoint,
                            &run->checkpoint));
    if (run->checkpoint) TRY(comm_agree(run->comm, check_resumed(run)));
    TRY(plan_steps(run));
    TRY(open_engine(run));
    TRY(load_models(run));
    if (run->checkpoint) TRY(load_checkpoint(run));
    TRY(comm_agree(run->comm, collect_texts(run)));
    run->trainer = (struct trainer){.engine = &run->engine,
                                    .optimiser = &run->optimiser,
                                    .groups = &run->groups,
                                    .order = &run->order,
                                    .reference = run->reference,
                                    .micro = settings->per_device_train_batch_size,
                                    .total_steps = run->total_steps};
    trainer_open(&run->trainer, settings->log_pairs);
    tally_clear(&run->window);
    note(run, "training: %lld groups, %lld a step, %lld steps, %d ranks of %d threads, %lld parameters",
         (long long)run->groups.group_count, (long long)run->state.global_batch, (long long)run->total_steps,
         run->comm->size, run->engine.threads, (long long)config_parameters(&run->engine.config));
    return STATUS_OK;
}

static void run_close(struct run *run)
{
    trainer_close(&run->trainer);
    if (run->engine.arena.ops) optimiser_close(&run->optimiser);
    engine_close(&run->engine);
    order_close(&run->order);
    order_close(&run->eval_order);
    groups_close(&run->groups);
    groups_close(&run->eval_groups);
    checkpoint_state_free(&run->state);
    free(run->reference);
    free(run->eval_reference);
    free(run->checkpoint);
}

/* -- evaluation, checkpoints, records
 * ---------------------------------------------------------------------------- */

static enum status evaluate(struct run *run)
{
    const struct groups *groups = &run->eval_groups;
    struct completion_sums *sums = allocate(groups->completion_count, sizeof *sums);
    enum status status =
        engine_score(&run->engine, &run->eval_order, 0, order_steps_per_epoch(&run->eval_order),
                     run->settings->per_device_eval_batch_size, run->report, "eval", sums);
    if (status == STATUS_OK && run->comm->rank == 0 && run->report->metrics) {
        struct tally tally;
        struct metric list[TALLY_METRICS];
        tally_groups(&tally, &run->settings->objective, groups, sums, run->eval_reference);
        int64_t count = tally_metrics(&tally, &run->settings->objective, run->has_reference, true, list);
        run->report->metrics(run->report->context, run->state.step, list, count);
    }
    free(sums);
    return status;
}

static enum status save(struct run *run)
{
    TRY(engine_same_parameters(&run->engine, "before saving"));
    double start = now_seconds();
    TRY(checkpoint_save(run->comm, run->settings->output_dir, &run->engine.params, &run->state,
                        run->optimiser.pieces, run->optimiser.piece_count));
    note(run, "saved %s/checkpoint-%lld in %.1f s", run->settings->output_dir, (long long)run->state.step,
         now_seconds() - start);
    if (run->settings->save_total_limit > 0)
        return checkpoint_prune(run->comm, run->settings->output_dir, run->settings->save_total_limit);
    return STATUS_OK;
}

/* A disk that is full for a while must not end a run that older checkpoints protect. */
static void save_or_warn(struct run *run)
{
    if (save(run) != STATUS_OK)
        note(run, "warning: no checkpoint at step %lld: %s; training goes on, and saves again later",
             (long long)run->state.step, status_sentence());
}

static void log_record(struct run *run, double seconds)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double peak = (double)usage.ru_maxrss / 0x1p20; /* KiB to GiB */
    comm_maximum(run->comm, &peak, 1);
    if (run->comm->rank == 0 && run->report->metrics) {
        struct metric list[TALLY_METRICS + 8];
        int64_t n = tally_metrics(&run->window, &run->settings->objective, run->has_reference, false, list);
        list[n++] = (struct metric){"grad_norm", run->window_norm};
        list[n++] = (struct metric){"learning_rate", run->window_rate};
        list[n++] =
            (struct metric){"epoch", (double)run->state.step / (double)order_steps_per_epoch(&run->order)};
        list[n++] = (struct metric){"num_tokens", (double)run->state.tokens};
        list[n++] = (struct metric){"tokens_per_second", run->window.sum[TALLY_TOKENS] / seconds};
        list[n++] = (struct metric){"packed_tokens_per_second", run->window.sum[TALLY_PACKED] / seconds};
        list[n++] = (struct metric){"step_seconds", seconds / (double)run->window_steps};
        list[n++] = (struct metric){"memory/peak_gib", peak};
        run->report->metrics(run->report->context, run->state.step, list, n);
    }
    tally_clear(&run->window);
    run->window_seconds = 0;
    run->window_steps = 0;
}

static void report_progress(const struct run *run, const struct step_result *result, double seconds)
{
    if (run->comm->rank != 0 || !run->report->progress) return;
    const double *sum = result->tally.sum;
    bool pairs = objective_group_size(run->settings->objective.loss_type) == 2;
    struct progress progress = {
        .phase = "train",
        .done = run->state.step,
        .total = run->total_steps,
        .loss = tally_loss(&result->tally, &run->settings->objective),
        .margin = pairs ? (sum[TALLY_REWARD_CHOSEN] - sum[TALLY_REWARD_REJECTED]) / sum[TALLY_GROUPS] : NAN,
        .accuracy = pairs ? sum[TALLY_ACCURATE] / sum[TALLY_GROUPS] : NAN,
        .weight = pairs ? sum[TALLY_WEIGHT] / sum[TALLY_GROUPS] : NAN,
        .tokens_per_second = sum[TALLY_TOKENS] / seconds,
    };
    run->report->progress(run->report->context, &progress);
}

/* -- the loop
 * ---------------------------------------------------------------------------------------------------- */

/* Before anything was learned the policy is its own reference: every margin is zero and the loss is log 2
 * times the mean weight. Rounding may differ where a cached reference was computed in other micro-batches. */
static enum status check_first_step(const struct run *run, const struct step_result *result)
{
    const double tolerance = 1e-4;
    if (!run->policy_is_reference || run->state.step > 0) return STATUS_OK;
    const double *sum = result->tally.sum;
    double loss = sum[TALLY_LOSS] / sum[TALLY_GROUPS],
           wanted = log(2) * sum[TALLY_WEIGHT] / sum[TALLY_GROUPS];
    if (result->drift <= tolerance && fabs(loss - wanted) <= tolerance * wanted + 1e-12) return STATUS_OK;
    return fail("step 0: the policy is the reference, so the loss must be log 2 times the mean weight, %.6f, "
                "and it is "
                "%.6f (a log-probability differs from its reference by %.1e, relative); the reference "
                "log-probabilities in "
                "%s belong to something else: delete the folder's reference files",
                wanted, loss, result->drift, run->settings->output_dir);
}

static bool is_due(enum when when, int64_t every, int64_t step, int64_t per_epoch)
{
    return (when == WHEN_STEPS && every > 0 && step % every == 0) ||
           (when == WHEN_EPOCH && step % per_epoch == 0);
}

static enum status run_step(struct run *run)
{
    double start = now_seconds();
    struct step_result result;
    enum status status = train_step(&run->trainer, run->state.step, &result);
    if (status != STATUS_OK) {
        char *reason = text_copy(status_sentence());
        status = fail("step %lld was not taken: %s; the last checkpoint is good",
                      (long long)run->state.step + 1, reason);
        free(reason);
        return status;
    }
    TRY(check_first_step(run, &result));
    double seconds = now_seconds() - start;
    if (run->comm->rank == 0) trainer_report_pairs(&run->trainer, run->state.step, run->report);
    run->state.step++;
    run->state.tokens += (int64_t)result.tally.sum[TALLY_TOKENS];
    tally_add(&run->window, &result.tally);
    run->window_seconds += seconds;
    run->window_steps++;
    run->window_norm = result.gradient_norm;
    run->window_rate = result.learning_rate;
    report_progress(run, &result, seconds);
    return STATUS_OK;
}

/* What is due after a step, besides the step. */
static enum status after_step(struct run *run)
{
    const struct settings *settings = run->settings;
    int64_t step = run->state.step, per_epoch = order_steps_per_epoch(&run->order);
    bool last = step == run->total_steps;
    if (step == 1 || last || (settings->logging_steps > 0 && step % settings->logging_steps == 0))
        log_record(run, run->window_seconds);
    if (settings->hash_steps > 0 && step % settings->hash_steps == 0)
        TRY(engine_same_parameters(&run->engine, "during training"));
    if (run->has_eval && (last || is_due(settings->eval_strategy, settings->eval_steps, step, per_epoch)))
        TRY(evaluate(run));
    if (!last && is_due(settings->save_strategy, settings->save_steps, step, per_epoch)) save_or_warn(run);
    return STATUS_OK;
}

static enum status run_loop(struct run *run)
{
    if (run->state.step >= run->total_steps) {
        note(run, "nothing left to do: %lld of %lld steps are done", (long long)run->state.step,
             (long long)run->total_steps);
        return STATUS_OK;
    }
    if (run->has_eval) TRY(evaluate(run));
    while (run->state.step < run->total_steps) {
        TRY(run_step(run));
        enum status status = after_step(run);
        if (status != STATUS_OK && status != STATUS_STOPPED) return status;
        if (status == STATUS_OK && !comm_any(run->comm, signals_pending())) continue;
        TRY(save(run));
        return fail_stopped("stopped by a signal after step %lld of %lld, which is saved; go on with "
                            "resume_from_checkpoint: auto",
                            (long long)run->state.step, (long long)run->total_steps);
    }
    return save(run);
}

enum status train_run(struct comm *comm, const struct settings *settings, const char *run_file,
                      const struct report *report)
{
    struct run run = {.comm = comm, .settings = settings, .report = report, .run_file = run_file};
    signals_install();
    enum status status = run_open(&run);
    if (status == STATUS_OK) status = run_loop(&run);
    run_close(&run);
    return status;
}
