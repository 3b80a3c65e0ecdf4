/* The reference's log-probabilities of a run: computed before the first step or read from the run folder, and
 * again whenever a reference that follows the policy has moved. */
#include "runtime/clock.h"
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "runtime/reference.h"
#include "runtime/run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- reference -------------------------------------------------------------------------------- */

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

/* The backend, and what else decides a reference log-probability. */
static void describe_backend(const struct run *run, char *text, size_t bytes)
{
    double alpha = run->settings->objective.ld_alpha;
    int length = snprintf(text, bytes, "%s%s", run->engine.ops->name,
                          run->engine.precision.compute == DTYPE_BFLOAT ? " bfloat16" : "");
    if (alpha != 1) snprintf(text + length, bytes - (size_t)length, " ld_alpha %.9g", alpha);
}

/* Log-probabilities under the parameters that the engine holds, from the cache or computed into it: logp
 * (out) [S]. */
static enum status reference_for(struct run *run, struct order *order, int64_t steps, int64_t micro,
                                 const char *fingerprint, const char *file, double *logp)
{
    const struct groups *groups = order->groups;
    struct reference_key key;
    memcpy(key.model, fingerprint, sizeof key.model);
    memcpy(key.data, groups->fingerprint, sizeof key.data);
    describe_backend(run, key.backend, sizeof key.backend);
    int64_t count = groups->completion_count;

    char *path = files_join(run->settings->output_dir, file);
    bool found;
    enum status status = comm_agree(run->comm, reference_read(logp, &found, groups, &key, path));
    if (status == STATUS_OK && !comm_any(run->comm, !found) && reference_complete(logp, order, steps)) {
        run_note(run, "reference log-probabilities: read from %s", path);
    } else if (status == STATUS_OK) {
        double start = clock_seconds();
        struct completion_sums *sums = allocate(count, sizeof *sums);
        status = engine_score(&run->engine, order, 0, steps, micro, run->report, "reference", sums, NULL);
        for (int64_t s = 0; s < count; s++)
            logp[s] = sums[s].count ? objective_logp(&run->settings->objective, &sums[s]) : NAN;
        free(sums);
        if (status == STATUS_OK)
            status = comm_agree(run->comm,
                                run->comm->rank == 0 ? reference_write(logp, groups, &key, path) : STATUS_OK);
        run_note(run, "reference log-probabilities of %s%s: computed in %.1f s", groups->path,
                 strstr(file, "mismatched") ? ", mismatched" : "", clock_seconds() - start);
    }
    free(path);
    return status;
}

/* Of a dataset's completions, and of the mismatched ones where there are any. */
static enum status reference_of(struct run *run, struct dataset *dataset, int64_t steps, int64_t micro,
                                const char *fingerprint, const char *file, const char *mismatched_file)
{
    int64_t count = dataset->groups.completion_count;
    double *logp = allocate(count, sizeof *logp);
    enum status status = reference_for(run, &dataset->order, steps, micro, fingerprint, file, logp);
    for (int64_t s = 0; s < count; s++)
        dataset->data[s].reference = logp[s];
    free(logp);
    if (status != STATUS_OK || !dataset->mismatched.group_count) return status;
    dataset->mismatched_reference =
        allocate(dataset->mismatched.completion_count, sizeof *dataset->mismatched_reference);
    return reference_for(run, &dataset->mismatched_order, steps, micro, fingerprint, mismatched_file,
                         dataset->mismatched_reference);
}

/* Steps from `step` on for which the reference stays as it is. */
static int64_t steps_until_sync(const struct run *run, int64_t step)
{
    int64_t left = run->total_steps - step, every = run->settings->ref_model_sync_steps;
    if (!run->settings->sync_ref_model) return left;
    int64_t until = every - step % every;
    return until < left ? until : left;
}

enum status run_reference(struct run *run, const char *fingerprint)
{
    const struct settings *settings = run->settings;
    TRY(reference_of(run, &run->train, steps_until_sync(run, 0), settings->per_device_train_batch_size,
                     fingerprint, "reference.h5", "reference-mismatched.h5"));
    if (!run->has_eval) return STATUS_OK;
    return reference_of(run, &run->eval, order_steps_per_epoch(&run->eval.order),
                        settings->per_device_eval_batch_size, fingerprint, "reference-eval.h5",
                        "reference-eval-mismatched.h5");
}

/* -- a reference that follows ----------------------------------------------------------------- */

static enum status score_again(struct run *run, struct dataset *dataset, int64_t first, int64_t steps,
                               int64_t micro)
{
    follower_swap(&run->follower);
    enum status status = dataset_reference(&run->engine, dataset, first, steps, micro, run->report);
    follower_swap(&run->follower);
    return status;
}

/* From the step on at which the reference moved last, even where some of its steps are done: a group is
 * scored in the micro-batch in which it came first, and its value must be the same after a resume. */
enum status run_reference_again(struct run *run)
{
    const struct settings *settings = run->settings;
    int64_t moved = run->state.step - run->state.step % settings->ref_model_sync_steps;
    if (moved == 0) return STATUS_OK; /* never yet */
    run->eval_reference_is_old = true;
    int64_t steps = steps_until_sync(run, moved);
    if (steps <= 0) return STATUS_OK;
    return score_again(run, &run->train, moved, steps, settings->per_device_train_batch_size);
}

enum status run_sync_reference(struct run *run)
{
    follower_mix(&run->follower, run->settings->ref_model_mixup_alpha);
    return run_reference_again(run);
}

enum status run_eval_reference(struct run *run)
{
    if (!run->eval_reference_is_old) return STATUS_OK;
    TRY(score_again(run, &run->eval, 0, order_steps_per_epoch(&run->eval.order),
                    run->settings->per_device_eval_batch_size));
    run->eval_reference_is_old = false;
    return STATUS_OK;
}
