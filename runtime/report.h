/* Where the runtime tells what happens. The launcher fills this in; it is called on rank 0 only. */
#ifndef WPO_RUNTIME_REPORT_H
#define WPO_RUNTIME_REPORT_H

#include "runtime/status.h"

#include <stdint.h>

struct metric {
    const char *name; /* TRL's names: "loss", "rewards/margins", ... static storage */
    double value;     /* NaN: not known, left out */
};

/* How far a phase has come; for the live line. */
struct progress {
    const char *phase; /* "reference", "train", "eval": static storage */
    int64_t done, total;
    double loss, margin, accuracy, weight; /* of the latest step; NaN where they do not apply */
    double tokens_per_second;
};

/* One pair of one step, for the per-pair log. */
struct pair_record {
    int64_t step, row; /* row of the source file */
    double loss, weight, margin, logp_chosen, logp_rejected, reference_chosen, reference_rejected;
    int64_t length_chosen, length_rejected;
};

struct report {
    void *context;
    void (*note)(void *context, const char *sentence);
    void (*progress)(void *context, const struct progress *progress); /* every step; may draw or not */
    /* A record for metrics.jsonl and a printed line. Names of evaluation metrics begin with "eval_". */
    void (*metrics)(void *context, int64_t step, const struct metric *metrics, int64_t count);
    void (*pair)(void *context, const struct pair_record *pair); /* only with log_pairs */
    /* Called once when nothing can refuse the run any more, before its first step. May be NULL. */
    enum status (*opened)(void *opening);
    void *opening;
};

#endif
