/* Evaluation: log-probabilities, weights and the metrics of training, without gradients. */
#ifndef WPO_RUNTIME_EVALUATE_H
#define WPO_RUNTIME_EVALUATE_H

#include "runtime/engine.h"
#include "runtime/statistics.h"
#include "runtime/tally.h"

/* What is known of one completion. */
struct completion_record {
    struct completion_sums sums;
    double reference;                   /* nats; NaN without a reference */
    double log_weight[WEIGHTING_COUNT]; /* log w(x,y) for each weighting */
};

struct evaluation {
    struct dataset dataset;                /* its groups are those of the file that the objective takes */
    struct completion_record *completions; /* [dataset.groups.completion_count], on every rank */
    struct metric *metrics;                /* names without the prefix "eval_" */
    int64_t metric_count;
};

/* Collective. References of the groups of steps first .. first+steps-1 of a dataset that is planned, under
 * the parameters that the engine holds, the mismatched ones included; those of other groups stay. report may
 * be NULL. */
enum status dataset_reference(struct engine *engine, struct dataset *dataset, int64_t first, int64_t steps,
                              int64_t micro, const struct report *report);

/* Collective. Sums [S] (out) of a dataset that is planned, and the tally (out) of its objective as of one
 * batch: on every rank alike. known: its references are there; running: the mean of rewards so far, which
 * evaluation does not move. */
enum status dataset_score(struct engine *engine, struct dataset *dataset, int64_t micro,
                          const struct report *report, const char *phase, bool known,
                          const struct reward_mean *running, struct completion_sums *sums,
                          struct tally *tally);

/* Collective. Reads settings->model_name_or_path, eval_file, ref_model_name_or_path (NULL: no reference; the
 * reward metrics are then left out), objective, per_device_eval_batch_size, logits_megabytes, threads,
 * device. evaluation (out) is to be freed where the status is STATUS_OK, and empty elsewhere. */
enum status evaluate_run(struct comm *comm, const struct settings *settings, const struct report *report,
                         struct evaluation *evaluation);
void evaluation_free(struct evaluation *evaluation);

/* Local. Writes one record per completion: HDF5 if the name ends in .h5, else JSON lines. Built under a
 * temporary name, then renamed. */
enum status evaluation_write(const struct evaluation *evaluation, const char *path);

#endif
