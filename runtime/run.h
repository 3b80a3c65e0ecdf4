/* What one training run holds, from opening to closing. Private to run.c, run_reference.c and train.c. */
#ifndef WPO_RUNTIME_RUN_H
#define WPO_RUNTIME_RUN_H

#include "runtime/follower.h"
#include "runtime/step.h"

/* Everything one run holds. */
struct run {
    struct comm *comm;
    const struct settings *settings;
    const struct report *report;
    const char *run_file;
    struct dataset train, eval;
    bool has_eval, has_reference, policy_is_reference;
    struct engine engine;
    struct optimiser optimiser;
    struct follower follower; /* with sync_ref_model */
    bool eval_reference_is_old;
    struct trainer trainer;
    char *checkpoint; /* folder to resume from, or NULL */
    struct checkpoint_state state;
    int64_t total_steps;
    int64_t saved_step;  /* of the newest checkpoint that this process wrote; 0: none */
    struct tally window; /* since the last record */
    double window_seconds, window_norm, window_rate;
    int64_t window_steps;
    int64_t skipped_steps,
        skipped_in_all; /* in a row, and of this process: not finite, see settings->on_nonfinite */
};

/* Collective. Opens files, model, optimiser and reference, and resumes if the settings say so. comm,
 * settings, report and run_file are set already. run_close() is due whatever the status. */
enum status run_open(struct run *run);
void run_close(struct run *run);

/* Collective. References of both datasets under the model that the engine holds, from the run folder's cache
 * or computed into it. */
enum status run_reference(struct run *run, const char *fingerprint);
/* Collective, with sync_ref_model, at a step that is due: the reference moves towards the policy, and the
 * log-probabilities of the steps until the next time are computed. */
enum status run_sync_reference(struct run *run);
/* Collective. The second half of it alone: after a checkpoint brought the reference back. */
enum status run_reference_again(struct run *run);
/* Collective. Before an evaluation: the reference may have moved since the last one. */
enum status run_eval_reference(struct run *run);

/* A sentence for the log, from rank 0. */
void run_note(const struct run *run, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
