#include "runtime/optimiser.h"

#include "kernels/require.h"

#include <math.h>
#include <stdlib.h>

/* -- who owns what ---------------------------------------------------------------------------- */

/* This rank's part of a bucket, in the flat vector. */
static void bucket_share(const struct optimiser *o, int64_t bucket, int64_t *first, int64_t *count)
{
    const struct bucket *b = &o->model->params->buckets[bucket];
    comm_share(b->count, o->comm->size, o->comm->rank, first, count);
    *first += b->offset;
}

static int64_t owned_elements(const struct optimiser *o)
{
    if (o->zero_stage == 0) return o->model->params->total;
    int64_t sum = 0;
    for (int64_t b = 0; b < o->model->params->bucket_count; b++) {
        int64_t first, count;
        bucket_share(o, b, &first, &count);
        sum += count;
    }
    return sum;
}

void optimiser_open(struct optimiser *o, struct arena *arena, struct comm *comm, struct model *model,
                    int64_t zero_stage)
{
    *o = (struct optimiser){.comm = comm, .model = model, .zero_stage = zero_stage};
    o->state_count = owned_elements(o);
    arena_want(arena, "optimiser", (void **)&o->moment, o->state_count, sizeof(float));
    arena_want(arena, "optimiser", (void **)&o->variance, o->state_count, sizeof(float));
    o->received = allocate(model->params->bucket_count, sizeof *o->received);
    for (int64_t b = 0; b < model->params->bucket_count; b++)
        arena_want(arena, "reduction", (void **)&o->received[b],
                   reduction_room(comm, model->params->buckets[b].count), sizeof(float));
}

/* The overlap of a run of the flat vector with a tensor, as a piece whose state begins at `state`. */
static bool cut_piece(const struct optimiser *o, const struct parameter *p, int64_t first, int64_t count,
                      int64_t state, struct checkpoint_piece *piece)
{
    int64_t begin = p->offset > first ? p->offset : first;
    int64_t end = p->offset + p->count < first + count ? p->offset + p->count : first + count;
    if (begin >= end) return false;
    state += begin - first;
    *piece = (struct checkpoint_piece){.offset = begin,
                                       .count = end - begin,
                                       .parameter = o->model->parameters + begin,
                                       .moment = o->moment + state,
                                       .variance = o->variance + state};
    return true;
}

static void add_update(struct optimiser *o, const struct parameter *p, const struct checkpoint_piece *piece)
{
    o->updates[o->update_count++] = (struct adamw_piece){.parameter = piece->parameter,
                                                         .moment = piece->moment,
                                                         .variance = piece->variance,
                                                         .gradient = o->model->gradients + piece->offset,
                                                         .count = piece->count,
                                                         .decay = p->decay};
}

static void lay_out_pieces(struct optimiser *o)
{
    const struct params *params = o->model->params;
    int64_t owned = 0; /* elements of the state so far */
    for (int64_t i = 0, last = -1, first = 0, count = 0; i < params->count; i++) {
        const struct parameter *p = &params->list[i];
        if (p->bucket != last) {
            owned += count;
            bucket_share(o, p->bucket, &first, &count);
            last = p->bucket;
        }
        int64_t state = o->zero_stage == 0 ? first : owned;
        struct checkpoint_piece piece;
        if (cut_piece(o, p, first, count, state, &piece)) {
            o->pieces[o->piece_count++] = piece;
            if (o->zero_stage > 0) add_update(o, p, &piece);
        }
        if (o->zero_stage == 0 && cut_piece(o, p, 0, params->total, 0, &piece)) add_update(o, p, &piece);
    }
}

void optimiser_prepare(struct optimiser *o)
{
    const struct params *params = o->model->params;
    o->updates = allocate(params->count, sizeof *o->updates);
    o->pieces = allocate(params->count, sizeof *o->pieces);
    lay_out_pieces(o);
    o->reductions = allocate(params->bucket_count, sizeof *o->reductions);
    for (int64_t b = 0; b < params->bucket_count; b++)
        o->reductions[b] = reduction_create(o->comm, o->model->gradients + params->buckets[b].offset,
                                            params->buckets[b].count, o->received[b]);
    size_t bytes = (size_t)o->state_count * sizeof(float);
    o->model->ops->zero(o->model->device, o->moment, bytes);
    o->model->ops->zero(o->model->device, o->variance, bytes);
}

void optimiser_close(struct optimiser *o)
{
    for (int64_t b = 0; o->reductions && b < o->model->params->bucket_count; b++)
        reduction_free(o->reductions[b]);
    free(o->reductions);
    free(o->received);
    free(o->updates);
    free(o->pieces);
    *o = (struct optimiser){0};
}

/* -- reduction -------------------------------------------------------------------------------- */

static void bucket_ready(void *context, int64_t bucket)
{
    struct optimiser *o = context;
    reduction_start(o->reductions[bucket]);
    for (int64_t b = 0; b < o->model->params->bucket_count; b++)
        reduction_progress(o->reductions[b]);
}

struct bucket_listener optimiser_listener(struct optimiser *o)
{
    return (struct bucket_listener){bucket_ready, o};
}

double optimiser_reduce(struct optimiser *o)
{
    const struct params *params = o->model->params;
    const struct ops *ops = o->model->ops;
    double sum = 0;
    for (int64_t b = params->bucket_count - 1; b >= 0; b--)
        reduction_finish(o->reductions[b]);
    for (int64_t b = 0; b < params->bucket_count; b++) {
        int64_t first, count;
        double squares;
        bucket_share(o, b, &first, &count);
        ops->sum_squares(o->model->device, &squares, o->model->gradients + first, count);
        sum += squares;
        if (o->zero_stage == 0)
            comm_share_all(o->comm, o->model->gradients + params->buckets[b].offset,
                           params->buckets[b].count);
    }
    comm_sum(o->comm, &sum, 1);
    return sqrt(sum);
}

void optimiser_update(struct optimiser *o, const struct adamw *settings)
{
    o->model->ops->adamw(o->model->device, o->updates, o->update_count, settings);
    if (o->zero_stage > 0)
        for (int64_t b = 0; b < o->model->params->bucket_count; b++)
            comm_share_all(o->comm, o->model->parameters + o->model->params->buckets[b].offset,
                           o->model->params->buckets[b].count);
}

void optimiser_spread(struct optimiser *o)
{
    for (int64_t b = 0; b < o->model->params->bucket_count; b++) {
        const struct bucket *bucket = &o->model->params->buckets[b];
        comm_share_all(o->comm, o->model->parameters + bucket->offset, bucket->count);
        if (o->zero_stage > 0) continue;
        comm_share_all(o->comm, o->moment + bucket->offset, bucket->count);
        comm_share_all(o->comm, o->variance + bucket->offset, bucket->count);
    }
}

const char *optimiser_not_finite(const struct optimiser *o)
{
    for (int64_t i = 0; i < o->piece_count; i++) {
        const struct checkpoint_piece *piece = &o->pieces[i];
        double squares;
        o->model->ops->sum_squares(o->model->device, &squares, o->model->gradients + piece->offset,
                                   piece->count);
        if (isfinite(squares)) continue;
        for (int64_t p = 0; p < o->model->params->count; p++) {
            const struct parameter *parameter = &o->model->params->list[p];
            if (piece->offset >= parameter->offset && piece->offset < parameter->offset + parameter->count)
                return parameter->name;
        }
    }
    return NULL;
}

/* -- schedule --------------------------------------------------------------------------------- */

double learning_rate_at(const struct settings *settings, int64_t done, int64_t total)
{
    int64_t warmup = settings->warmup_steps > 0 ? settings->warmup_steps
                                                : (int64_t)ceil(settings->warmup_ratio * (double)total);
    double rate = settings->learning_rate;
    if (done < warmup) return rate * (double)done / (double)warmup;
    double progress = total > warmup ? (double)(done - warmup) / (double)(total - warmup) : 1;
    switch (settings->lr_scheduler_type) {
    case SCHEDULE_LINEAR:
        return rate * (progress < 1 ? 1 - progress : 0);
    case SCHEDULE_COSINE:
        return rate * 0.5 * (1 + cos(3.14159265358979323846 * progress));
    case SCHEDULE_CONSTANT:
        break;
    }
    return rate;
}
