/* From each rank's gradients to equal parameters on all ranks: reduction in buckets while backward still
 * runs, global norm, AdamW on this rank's share, and the shares back to everybody (ZeRO stage 1, Rajbhandari
 * et al. 2020). With zero_stage 0 every rank keeps the whole optimiser state and updates all parameters. */
#ifndef WPO_RUNTIME_OPTIMISER_H
#define WPO_RUNTIME_OPTIMISER_H

#include "runtime/checkpoint.h"
#include "runtime/exchange.h"
#include "runtime/model.h"
#include "runtime/settings.h"

struct optimiser_options {
    int64_t zero_stage;
    enum dtype moment_type;
    uint64_t seed; /* of the rounding of bf16 moments */
};

struct optimiser {
    struct comm *comm;
    struct exchange *exchange;
    struct model *model;
    struct optimiser_options options;
    struct reduction **reductions; /* [buckets] */
    float **received;              /* [buckets] what the reductions receive into */
    int16_t *low;                  /* device; lower halves of the masters where parameters are bf16 */
    void *moment, *variance;       /* device; as low, this rank's shares one after the other, or everything */
    int64_t state_count;           /* elements of each of the three */
    double *squares;               /* device [ranks * buckets]; square sums of the shares of gradients */
    double *norm;                  /* device; of the whole gradient */
    void *reference; /* of a follower, device; not updated, but staged with the rest; NULL: there is none */
    struct adamw_piece *updates; /* what this rank updates, cut at tensors because decay differs */
    int64_t update_count;
    struct checkpoint_piece *pieces; /* this rank's shares, cut at tensors */
    int64_t *piece_state;            /* [pieces] where their state begins */
    int64_t piece_count;
    bool staged; /* pieces are host copies, not the device's memory itself */
};

/* Wishes for moments, masters and for what reductions receive. */
void optimiser_open(struct optimiser *optimiser, struct arena *arena, struct comm *comm,
                    struct exchange *exchange, struct model *model, struct optimiser_options options);
/* After arena_place: moments are zero, and so are the lower halves of the masters. */
void optimiser_prepare(struct optimiser *optimiser);
void optimiser_close(struct optimiser *optimiser);

/* The masters of the parameters that model_put() rounded: flat [params->total], host. */
void optimiser_put(struct optimiser *optimiser, const float *flat);

/* Hears of finished buckets during the step's last backward, and starts their reduction. */
struct bucket_listener optimiser_listener(struct optimiser *optimiser);
/* Collective. The sums of all gradients and their norm, on the device; nothing waits but what hosts must. */
void optimiser_reduce(struct optimiser *optimiser);
/* Collective. One AdamW update, unless the norm is not finite; afterwards parameters are equal on all ranks.
 */
void optimiser_update(struct optimiser *optimiser, const struct adamw *settings);
/* Waits for the L2 norm of the whole gradient, before clipping. */
double optimiser_norm(struct optimiser *optimiser);

/* This rank's pieces as f32 on the host, current from stage_out until the next update; NULL moments before
 * optimiser_prepare. Their memory, 12 bytes an element where it is not the device's, belongs to the optimiser
 * and is there until stage_free. */
enum status optimiser_stage_out(struct optimiser *optimiser);
/* Makes room for what checkpoint_load is to fill ... */
enum status optimiser_stage_room(struct optimiser *optimiser);
/* ... and, collective, takes it to the device and to every rank, and frees it. */
void optimiser_stage_in(struct optimiser *optimiser);

void optimiser_stage_free(struct optimiser *optimiser);

/* Collective. Parameters from the ranks that own them to all. */
void optimiser_share_parameters(struct optimiser *optimiser);

/* Whether masters have a lower half beside the parameters. */
static inline bool optimiser_has_low(const struct optimiser *optimiser)
{
    return optimiser->model->precision.compute != DTYPE_FLOAT;
}

/* The part of moment or variance that begins at element `first`. */
static inline void *optimiser_state(const struct optimiser *optimiser, void *array, int64_t first)
{
    return (char *)array + (size_t)first * dtype_bytes(optimiser->options.moment_type);
}

/* Name of the first tensor of this rank's share whose gradient is not finite, or NULL. Waits. */
const char *optimiser_not_finite(const struct optimiser *optimiser);

/* Learning rate after `done` of `total` steps, as Transformers' schedules give it. */
double learning_rate_at(const struct settings *settings, int64_t done, int64_t total);

#endif
