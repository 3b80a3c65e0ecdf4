/* The groups that an objective works on, the order in which steps take them, and what is known of their
 * completions before the first step. */
#ifndef WPO_RUNTIME_DATASET_H
#define WPO_RUNTIME_DATASET_H

#include "kernels/objective.h"
#include "runtime/comm.h"
#include "runtime/order.h"
#include "runtime/settings.h"

struct dataset {
    struct groups groups; /* group_count 0: there is no dataset */
    struct order order;
    struct completion_data *data; /* [S]; references are 0 until they are known */
    /* For STATISTIC_KL; group_count 0 elsewhere. The same groups form each step. */
    struct groups mismatched;
    struct order mismatched_order;
    double *mismatched_reference; /* [S] */
    int64_t dropped;              /* groups of the file that the settings leave out */
};

/* Local, but for the number of ranks, which must not be above that of groups. Reads the file and selects from
 * it. dataset_close() is due whatever the status. */
enum status dataset_open(struct dataset *dataset, const char *path, const struct settings *settings,
                         const struct comm *comm);
/* `batch` groups a step, over all ranks. */
void dataset_plan(struct dataset *dataset, int64_t batch, uint64_t seed, bool shuffle);
void dataset_close(struct dataset *dataset);

/* What any micro-batch of `micro` groups can need, the mismatched ones included. */
struct batch_limits dataset_measure(const struct dataset *dataset, const struct settings *settings,
                                    int64_t micro);

#endif
