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
    if (o->options.zero_stage == 0) return o->model->params->total;
    int64_t sum = 0;
    for (int64_t b = 0; b < o->model->params->bucket_count; b++) {
        int64_t first, count;
        bucket_share(o, b, &first, &count);
        sum += count;
    }
    return sum;
}

void optimiser_open(struct optimiser *o, struct arena *arena, struct comm *comm, struct exchange *exchange,
                    struct model *model, struct optimiser_options options)
{
    int64_t buckets = model->params->bucket_count;
    *o = (struct optimiser){.comm = comm, .exchange = exchange, .model = model, .options = options};
    o->state_count = owned_elements(o);
    arena_want(arena, "optimiser", &o->moment, o->state_count, dtype_bytes(options.moment_type));
    arena_want(arena, "optimiser", &o->variance, o->state_count, dtype_bytes(options.moment_type));
    if (optimiser_has_low(o))
        arena_want(arena, "optimiser", (void **)&o->low, o->state_count, sizeof *o->low);
    arena_want(arena, "optimiser", (void **)&o->squares, comm->size * buckets, sizeof *o->squares);
    arena_want(arena, "optimiser", (void **)&o->norm, 1, sizeof *o->norm);
    o->received = allocate(buckets, sizeof *o->received);
    for (int64_t b = 0; b < buckets; b++)
        arena_want(arena, "reduction", (void **)&o->received[b],
                   exchange_reduction_room(exchange, model->params->buckets[b].count), sizeof(float));
}

/* The overlap of a run of the flat vector with a tensor. */
static bool cut(const struct parameter *p, int64_t first, int64_t count, int64_t *begin, int64_t *length)
{
    int64_t end = p->offset + p->count < first + count ? p->offset + p->count : first + count;
    *begin = p->offset > first ? p->offset : first;
    *length = end - *begin;
    return *length > 0;
}

static void add_update(struct optimiser *o, const struct parameter *p, int64_t begin, int64_t count,
                       int64_t state)
{
    o->updates[o->update_count++] =
        (struct adamw_piece){.parameter = model_run(o->model, begin, count).data,
                             .low = optimiser_has_low(o) ? o->low + state : NULL,
                             .moment = optimiser_state(o, o->moment, state),
                             .variance = optimiser_state(o, o->variance, state),
                             .gradient = model_run_gradient(o->model, begin, count).data,
                             .count = count,
                             .first = begin,
                             .decay = p->decay};
}

static void add_piece(struct optimiser *o, int64_t begin, int64_t count, int64_t state)
{
    o->piece_state[o->piece_count] = state;
    struct checkpoint_piece *piece = &o->pieces[o->piece_count++];
    *piece = (struct checkpoint_piece){.offset = begin, .count = count};
    if (o->staged) return;
    piece->parameter = model_run(o->model, begin, count).data;
    piece->moment = optimiser_state(o, o->moment, state);
    piece->variance = optimiser_state(o, o->variance, state);
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
        int64_t begin, length;
        if (cut(p, first, count, &begin, &length)) {
            int64_t state = o->options.zero_stage == 0 ? begin : owned + begin - first;
            add_piece(o, begin, length, state);
            if (o->options.zero_stage > 0) add_update(o, p, begin, length, state);
        }
        if (o->options.zero_stage == 0) add_update(o, p, p->offset, p->count, p->offset);
    }
}

void optimiser_prepare(struct optimiser *o)
{
    const struct params *params = o->model->params;
    const struct ops *ops = o->model->ops;
    struct device *d = o->model->device;
    bool all_float = !optimiser_has_low(o) && o->options.moment_type == DTYPE_FLOAT;
    o->staged = !ops->on_host || !all_float;
    o->updates = allocate(params->count, sizeof *o->updates);
    o->pieces = allocate(params->count, sizeof *o->pieces);
    o->piece_state = allocate(params->count, sizeof *o->piece_state);
    lay_out_pieces(o);
    o->reductions = allocate(params->bucket_count, sizeof(struct reduction *));
    for (int64_t b = 0; b < params->bucket_count; b++)
        o->reductions[b] = exchange_reduction_create(
            o->exchange, model_run_gradient(o->model, params->buckets[b].offset, params->buckets[b].count),
            o->received[b]);
    size_t bytes = (size_t)o->state_count * dtype_bytes(o->options.moment_type);
    ops->zero(d, o->moment, bytes);
    ops->zero(d, o->variance, bytes);
    if (optimiser_has_low(o)) ops->zero(d, o->low, (size_t)o->state_count * sizeof *o->low);
}

void optimiser_close(struct optimiser *o)
{
    for (int64_t b = 0; o->reductions && b < o->model->params->bucket_count; b++)
        exchange_reduction_free(o->exchange, o->reductions[b]);
    optimiser_stage_free(o);
    free(o->reductions);
    free(o->received);
    free(o->updates);
    free(o->pieces);
    free(o->piece_state);
    *o = (struct optimiser){0};
}

/* -- reduction -------------------------------------------------------------------------------- */

static void bucket_ready(void *context, int64_t bucket)
{
    struct optimiser *o = context;
    exchange_reduction_start(o->exchange, o->reductions[bucket]);
    for (int64_t b = 0; b < o->model->params->bucket_count; b++)
        exchange_reduction_progress(o->exchange, o->reductions[b]);
}

struct bucket_listener optimiser_listener(struct optimiser *o)
{
    return (struct bucket_listener){bucket_ready, o};
}

void optimiser_reduce(struct optimiser *o)
{
    const struct params *params = o->model->params;
    const struct ops *ops = o->model->ops;
    struct device *d = o->model->device;
    double *mine = o->squares + o->comm->rank * params->bucket_count;
    for (int64_t b = params->bucket_count - 1; b >= 0; b--)
        exchange_reduction_finish(o->exchange, o->reductions[b]);
    for (int64_t b = 0; b < params->bucket_count; b++) {
        const struct bucket *bucket = &params->buckets[b];
        int64_t first, count;
        bucket_share(o, b, &first, &count);
        ops->sum_squares(d, mine + b, model_run_gradient(o->model, first, count));
        if (o->options.zero_stage == 0)
            exchange_share_all(o->exchange, model_run_gradient(o->model, bucket->offset, bucket->count));
    }
    exchange_gather_doubles(o->exchange, o->squares, params->bucket_count);
    ops->norm(d, o->norm, o->squares, o->comm->size * params->bucket_count);
}

double optimiser_norm(struct optimiser *o)
{
    double norm;
    o->model->ops->download(o->model->device, &norm, o->norm, sizeof norm);
    return norm;
}

void optimiser_share_parameters(struct optimiser *o)
{
    const struct params *params = o->model->params;
    for (int64_t b = 0; b < params->bucket_count; b++)
        exchange_share_all(o->exchange,
                           model_run(o->model, params->buckets[b].offset, params->buckets[b].count));
}

void optimiser_update(struct optimiser *o, const struct adamw *settings)
{
    struct adamw with_types = *settings;
    with_types.parameter_type = o->model->precision.compute;
    with_types.gradient_type = o->model->precision.gradient;
    with_types.moment_type = o->options.moment_type;
    with_types.seed = o->options.seed;
    o->model->ops->adamw(o->model->device, o->updates, o->update_count, &with_types, o->norm);
    if (o->options.zero_stage > 0) optimiser_share_parameters(o);
}

const char *optimiser_not_finite(const struct optimiser *o)
{
    const struct params *params = o->model->params;
    for (int64_t i = 0; i < o->piece_count; i++) {
        const struct checkpoint_piece *piece = &o->pieces[i];
        double squares, *on_device = o->squares;
        o->model->ops->sum_squares(o->model->device, on_device,
                                   model_run_gradient(o->model, piece->offset, piece->count));
        o->model->ops->download(o->model->device, &squares, on_device, sizeof squares);
        if (isfinite(squares)) continue;
        for (int64_t p = 0; p < params->count; p++)
            if (piece->offset >= params->list[p].offset &&
                piece->offset < params->list[p].offset + params->list[p].count)
                return params->list[p].name;
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
