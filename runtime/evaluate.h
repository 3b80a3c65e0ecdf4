/* Evaluation: log-probabilities, weights and the metrics of training, without gradients. */
#ifndef WPO_RUNTIME_EVALUATE_H
#define WPO_RUNTIME_EVALUATE_H

#include "runtime/comm.h"
#include "runtime/groups.h"
#include "runtime/report.h"
#include "runtime/settings.h"

/* What is known of one completion. */
struct completion_record {
    struct completion_sums sums;
    double reference;                   /* nats; NaN without a reference */
    double log_weight[WEIGHTING_COUNT]; /* log w(x,y) for each weighting */
};

struct evaluation {
    struct groups groups;
    struct completion_record *completions; /* [groups.completion_count], on every rank */
    struct metric *metrics;                /* names without the prefix "eval_" */
    int64_t metric_count;
};

/* Collective. Reads settings->model_name_or_path, eval_file, ref_model_name_or_path (NULL: no reference; the
 * reward metrics are then left out), objective, per_device_eval_batch_size, logits_megabytes, threads,
 * device. */
enum status evaluate_run(struct comm *comm, const struct settings *settings, const struct report *report,
                         struct evaluation *evaluation);
void evaluation_free(struct evaluation *evaluation);

/* Local. Writes one record per completion: HDF5 if the name ends in .h5, else JSON lines. Built under a
 * temporary name, then renamed. */
enum status evaluation_write(const struct evaluation *evaluation, const char *path);

#endif
