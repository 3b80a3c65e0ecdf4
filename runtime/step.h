/* One optimiser step over one global batch: the algorithm of the program. */
#ifndef WPO_RUNTIME_STEP_H
#define WPO_RUNTIME_STEP_H

#include "runtime/engine.h"
#include "runtime/optimiser.h"
#include "runtime/statistics.h"
#include "runtime/tally.h"

/* What a step works on. All is owned by the caller. */
struct trainer {
    struct engine *engine;
    struct optimiser *optimiser;
    struct dataset *dataset;
    int64_t micro; /* groups per micro-batch */
    int64_t total_steps;
    struct reward_mean running; /* over the steps taken so far */
    struct share share;
    struct completion_sums *sums;       /* [S of this rank's share of a step] */
    struct group_result *results;       /* [G of this rank's share of a step] */
    struct completion_data *batch_data; /* [S of a batch] */
    /* Where the objective couples the batch, else NULL: of its completions, before the step. [S] */
    struct completion_sums *batch_sums;
    struct completion_data *step_data;
    double *records; /* [global batch, RECORD_FIELDS]; NULL unless pairs are logged */
};

struct step_result {
    struct tally tally;   /* over all ranks */
    double gradient_norm; /* before clipping */
    double learning_rate;
    bool skipped; /* loss or gradient was not finite: no parameter changed, and status_sentence() says why */
    double drift; /* largest |logp - reference| / (1 + |reference|) of any completion */
};

/* What the results of a step of `batch` groups, all on one rank, need at most: into limits, before
 * engine_open. */
void trainer_limits(struct batch_limits *limits, const struct groups *groups, int64_t batch);
/* Allocates the scratch arrays; trainer_close frees them. log_pairs: keep records. */
void trainer_open(struct trainer *trainer, bool log_pairs);
void trainer_close(struct trainer *trainer);

/* Collective. Step `step` (from 0). The host waits for the device once, at the end. Where a loss or gradient
 * is not finite no parameter changes: an error that names it, or a skipped step (settings->on_nonfinite). */
enum status train_step(struct trainer *trainer, int64_t step, struct step_result *result);

/* Rank 0, after a step with records: one pair_record per pair to the report. */
void trainer_report_pairs(const struct trainer *trainer, int64_t step, const struct report *report);

#endif
