/* From each rank's gradients to equal parameters on all ranks: reduction in buckets while backward still
 * runs, global norm, AdamW on this rank's share, and the shares back to everybody (ZeRO stage 1, Rajbhandari
 * et al. 2020). With zero_stage 0 every rank keeps the whole optimiser state and updates all parameters. */
#ifndef WPO_RUNTIME_OPTIMISER_H
#define WPO_RUNTIME_OPTIMISER_H

#include "runtime/checkpoint.h"
#include "runtime/comm.h"
#include "runtime/model.h"
#include "runtime/settings.h"

struct optimiser {
    struct comm *comm;
    struct model *model;
    int64_t zero_stage;
    struct reduction **reductions; /* [buckets] */
    float **received;              /* [buckets] what the reductions receive into */
    float *moment, *variance;      /* device; this rank's shares one after the other, or everything */
    int64_t state_count;
    struct adamw_piece *updates; /* what this rank updates, cut at tensors because decay differs */
    int64_t update_count;
    struct checkpoint_piece *pieces; /* this rank's shares, cut at tensors */
    int64_t piece_count;
};

/* Wishes for the moments and for what reductions receive. */
void optimiser_open(struct optimiser *optimiser, struct arena *arena, struct comm *comm, struct model *model,
                    int64_t zero_stage);
/* After arena_place: moments are zero. */
void optimiser_prepare(struct optimiser *optimiser);
void optimiser_close(struct optimiser *optimiser);

/* Hears of finished buckets during the step's last backward, and starts their reduction. */
struct bucket_listener optimiser_listener(struct optimiser *optimiser);
/* Collective. Waits for every reduction and gives back the L2 norm of the whole gradient. */
double optimiser_reduce(struct optimiser *optimiser);
/* Collective. One AdamW update; afterwards parameters are equal on all ranks. */
void optimiser_update(struct optimiser *optimiser, const struct adamw *settings);
/* Collective. After pieces were filled from a checkpoint: every rank gets all parameters. */
void optimiser_spread(struct optimiser *optimiser);

/* Name of the first tensor of this rank's share whose gradient is not finite, or NULL. */
const char *optimiser_not_finite(const struct optimiser *optimiser);

/* Learning rate after `done` of `total` steps, as Transformers' schedules give it. */
double learning_rate_at(const struct settings *settings, int64_t done, int64_t total);

#endif
