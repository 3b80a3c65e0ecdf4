#include "runtime/train.h"

#include "runtime/clock.h"
#include "runtime/evaluate.h"
#include "runtime/run.h"
#include "runtime/signals.h"

#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>

/* -- evaluation, checkpoints, records --------------------------------------------------------- */

/* The evaluation file is one batch to an objective that couples its groups. */
static enum status evaluate(struct run *run)
{
    struct dataset *dataset = &run->eval;
    TRY(run_eval_reference(run));
    struct completion_sums *sums = allocate(dataset->groups.completion_count, sizeof *sums);
    struct tally tally;
    enum status status =
        dataset_score(&run->engine, dataset, run->settings->per_device_eval_batch_size, run->report, "eval",
                      run->has_reference, &run->trainer.running, sums, &tally);
    if (status == STATUS_OK && run->comm->rank == 0 && run->report->metrics) {
        struct metric list[TALLY_METRICS];
        int64_t count = tally_metrics(&tally, &run->settings->objective, run->has_reference, true, list);
        run->report->metrics(run->report->context, run->state.step, list, count);
    }
    free(sums);
    return status;
}

static enum status write_checkpoint(struct run *run)
{
    if (run->saved_step == run->state.step) return STATUS_OK;
    double start = clock_seconds();
    enum status status = comm_agree(run->comm, optimiser_stage_out(&run->optimiser));
    if (status == STATUS_OK)
        status = checkpoint_save(run->comm, run->settings->output_dir, &run->engine.params, &run->state,
                                 run->optimiser.pieces, run->optimiser.piece_count);
    optimiser_stage_free(&run->optimiser);
    TRY(status);
    run->saved_step = run->state.step;
    run_note(run, "saved %s/checkpoint-%lld in %.1f s", run->settings->output_dir, (long long)run->state.step,
             clock_seconds() - start);
    return STATUS_OK;
}

static enum status prune(struct run *run)
{
    int64_t limit = run->settings->save_total_limit;
    return limit > 0 ? checkpoint_prune(run->comm, run->settings->output_dir, limit) : STATUS_OK;
}

static enum status save(struct run *run)
{
    TRY(engine_same_parameters(&run->engine, "before saving"));
    TRY(write_checkpoint(run));
    return prune(run);
}

/* A disk that is full for a while must not end a run that older checkpoints protect; ranks that differ must.
 */
static enum status save_or_warn(struct run *run)
{
    TRY(engine_same_parameters(&run->engine, "before saving"));
    if (write_checkpoint(run) != STATUS_OK)
        run_note(run, "warning: no checkpoint at step %lld: %s; training goes on, and saves again later",
                 (long long)run->state.step, status_sentence());
    else if (prune(run) != STATUS_OK)
        run_note(run, "warning: an old checkpoint was not deleted: %s", status_sentence());
    return STATUS_OK;
}

static void log_record(struct run *run, double seconds)
{
    struct rusage usage;
    if (!run->window_steps) return; /* every step of the window was skipped */
    getrusage(RUSAGE_SELF, &usage);
    double peak = (double)usage.ru_maxrss / 0x1p20; /* KiB to GiB */
    comm_maximum(run->comm, &peak, 1);
    if (run->comm->rank == 0 && run->report->metrics) {
        struct metric list[TALLY_METRICS + 9];
        int64_t n = tally_metrics(&run->window, &run->settings->objective, run->has_reference, false, list);
        list[n++] = (struct metric){"grad_norm", run->window_norm};
        list[n++] = (struct metric){"learning_rate", run->window_rate};
        list[n++] = (struct metric){"epoch", (double)run->state.step /
                                                 (double)order_steps_per_epoch(&run->train.order)};
        list[n++] = (struct metric){"num_tokens", (double)run->state.tokens};
        list[n++] = (struct metric){"tokens_per_second", run->window.sum[TALLY_TOKENS] / seconds};
        list[n++] = (struct metric){"packed_tokens_per_second", run->window.sum[TALLY_PACKED] / seconds};
        list[n++] = (struct metric){"step_seconds", seconds / (double)run->window_steps};
        list[n++] = (struct metric){"memory/peak_gib", peak};
        list[n++] = (struct metric){"skipped_steps", (double)run->skipped_in_all};
        run->report->metrics(run->report->context, run->state.step, list, n);
    }
    tally_clear(&run->window);
    run->window_seconds = 0;
    run->window_steps = 0;
}

static void report_progress(const struct run *run, const struct step_result *result, double seconds)
{
    if (run->comm->rank != 0 || !run->report->progress) return;
    const struct tally *tally = &result->tally;
    const struct objective *objective = &run->settings->objective;
    bool compares = tally_compares(objective), sides = objective_shape(objective) != GROUP_CHOSEN;
    struct progress progress = {
        .phase = "train",
        .done = run->state.step,
        .total = run->total_steps,
        .loss = tally_loss(tally, objective),
        .margin = sides ? tally_reward(tally, TALLY_CHOSEN) - tally_reward(tally, TALLY_REJECTED) : NAN,
        .accuracy = compares ? tally->sum[TALLY_ACCURATE] / tally->sum[TALLY_GROUPS] : NAN,
        .weight = sides ? tally->sum[TALLY_WEIGHT] / tally->sum[TALLY_GROUPS] : NAN,
        .tokens_per_second = tally->sum[TALLY_TOKENS] / seconds,
    };
    run->report->progress(run->report->context, &progress);
}

/* -- the loop --------------------------------------------------------------------------------- */

/* The loss of the step is DPO's alone, which log 2 times the mean weight is known of. */
static bool is_plain_logistic(const struct objective *objective)
{
    return objective->term_count == 1 && objective->terms[0].type == LOSS_SIGMOID &&
           objective->terms[0].weight == 1 && objective->rpo_alpha == 0 && objective->length_alpha == 0 &&
           objective->reward_margin_beta == 0 && objective->f_divergence_type == DIVERGENCE_REVERSE_KL;
}

/* Before anything was learned the policy is its own reference: every log-ratio is zero, and DPO's loss is
 * log 2 times the mean weight. Rounding may differ where a cached reference was computed in other
 * micro-batches, whose products a library may sum in another order: docs/numerics.md has both bounds. */
static enum status check_first_step(const struct run *run, const struct step_result *result)
{
    const double tolerance = run->engine.precision.compute == DTYPE_FLOAT ? 1e-4 : 0.2;
    if (!run->policy_is_reference || run->state.step > 0) return STATUS_OK;
    const double *sum = result->tally.sum;
    double loss = sum[TALLY_LOSS] / sum[TALLY_GROUPS],
           wanted = log(2) * sum[TALLY_WEIGHT] / sum[TALLY_GROUPS];
    bool logistic = is_plain_logistic(&run->settings->objective);
    bool same = !logistic || fabs(loss - wanted) <= tolerance * wanted + 1e-12;
    if (result->drift <= tolerance && same) return STATUS_OK;
    char *of_loss = logistic ? text_format(", so the loss must be log 2 times the mean weight, %.6f, and it "
                                           "is %.6f",
                                           wanted, loss)
                             : text_copy("");
    enum status status = fail("step 0: the policy is the reference%s (a log-probability differs from its "
                              "reference by %.1e, relative); the reference log-probabilities in %s belong to "
                              "something else: delete the folder's reference files",
                              of_loss, result->drift, run->settings->output_dir);
    free(of_loss);
    return status;
}

static bool is_due(enum when when, int64_t every, int64_t step, int64_t per_epoch)
{
    return (when == WHEN_STEPS && every > 0 && step % every == 0) ||
           (when == WHEN_EPOCH && step % per_epoch == 0);
}

/* One bad batch among many is passed over; when nothing else comes the model itself is broken. */
static enum status skip_step(struct run *run)
{
    enum { IN_A_ROW = 10 };
    run_note(run, "warning: step %lld was skipped, and no parameter changed: %s",
             (long long)run->state.step + 1, status_sentence());
    run->state.step++;
    run->skipped_in_all++;
    if (++run->skipped_steps < IN_A_ROW) return STATUS_OK;
    return fail(
        "%d steps in a row had a loss or gradient that is not finite; lower learning_rate, and go on from an "
        "older checkpoint",
        IN_A_ROW);
}

static enum status run_step(struct run *run)
{
    double start = clock_seconds();
    struct step_result result;
    enum status status = train_step(&run->trainer, run->state.step, &result);
    if (status != STATUS_OK) {
        char *reason = text_copy(status_sentence());
        status = fail("step %lld was not taken: %s%s", (long long)run->state.step + 1, reason,
                      run->saved_step || run->checkpoint ? "; the last checkpoint is good" : "");
        free(reason);
        return status;
    }
    if (result.skipped) return skip_step(run);
    run->skipped_steps = 0;
    TRY(check_first_step(run, &result));
    double seconds = clock_seconds() - start;
    if (run->comm->rank == 0) trainer_report_pairs(&run->trainer, run->state.step, run->report);
    run->state.step++;
    run->state.tokens += (int64_t)result.tally.sum[TALLY_TOKENS];
    run->state.reward_steps = run->trainer.running.steps;
    run->state.reward_mean = run->trainer.running.mean;
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
    int64_t step = run->state.step, per_epoch = order_steps_per_epoch(&run->train.order);
    bool last = step == run->total_steps;
    if (step == 1 || last || (settings->logging_steps > 0 && step % settings->logging_steps == 0))
        log_record(run, run->window_seconds);
    if (settings->sync_ref_model && step % settings->ref_model_sync_steps == 0) TRY(run_sync_reference(run));
    if (settings->hash_steps > 0 && step % settings->hash_steps == 0)
        TRY(engine_same_parameters(&run->engine, "during training"));
    if (run->has_eval && (last || is_due(settings->eval_strategy, settings->eval_steps, step, per_epoch)))
        TRY(evaluate(run));
    if (!last && is_due(settings->save_strategy, settings->save_steps, step, per_epoch))
        return save_or_warn(run);
    return STATUS_OK;
}

static enum status run_loop(struct run *run)
{
    if (run->state.step >= run->total_steps) {
        run_note(run, "nothing left to do: %lld of %lld steps are done", (long long)run->state.step,
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
    if (status == STATUS_OK)
        status =
            comm_agree(comm, comm->rank == 0 && report->opened ? report->opened(report->opening) : STATUS_OK);
    if (status == STATUS_OK) status = run_loop(&run);
    run_close(&run);
    return status;
}
