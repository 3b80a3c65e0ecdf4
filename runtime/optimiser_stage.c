/* Parameters, masters and moments between the device and f32 on the host, where models and checkpoints are.
 */
#include "kernels/bfloat.h"
#include "kernels/require.h"
#include "runtime/optimiser.h"

#include <stdlib.h>

/* -- masters ---------------------------------------------------------------------------------- */

static void put_low(struct optimiser *o, int64_t state, const float *values, int64_t count)
{
    enum { PIECE = 1 << 20 };
    int16_t *low = allocate(PIECE, sizeof *low);
    for (int64_t first = 0; first < count; first += PIECE) {
        int64_t length = count - first < PIECE ? count - first : PIECE;
        for (int64_t i = 0; i < length; i++)
            low[i] = master_low(values[first + i]);
        o->model->ops->upload(o->model->device, o->low + state + first, low, (size_t)length * sizeof *low);
    }
    free(low);
}

void optimiser_put(struct optimiser *o, const float *flat)
{
    const struct params *params = o->model->params;
    if (!optimiser_has_low(o)) return;
    if (o->options.zero_stage == 0) {
        put_low(o, 0, flat, params->total);
        return;
    }
    for (int64_t i = 0; i < o->piece_count; i++)
        put_low(o, o->piece_state[i], flat + o->pieces[i].offset, o->pieces[i].count);
}

/* -- to the host and back ---------------------------------------------------------------------- */

/* A run of the reference's parameters on the device. */
static void *reference_run(const struct optimiser *o, const struct checkpoint_piece *piece)
{
    return (char *)o->reference + (size_t)piece->offset * dtype_bytes(o->model->precision.compute);
}

enum status optimiser_stage_room(struct optimiser *o)
{
    for (int64_t i = 0; o->reference && !o->staged && i < o->piece_count; i++)
        o->pieces[i].reference = reference_run(o, &o->pieces[i]);
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        struct checkpoint_piece *piece = &o->pieces[i];
        size_t bytes = (size_t)piece->count * sizeof(float);
        if (piece->parameter) continue;
        piece->parameter = malloc(bytes);
        piece->moment = malloc(bytes);
        piece->variance = malloc(bytes);
        if (o->reference) piece->reference = malloc(bytes);
        if (!piece->parameter || !piece->moment || !piece->variance || (o->reference && !piece->reference))
            return fail("out of host memory for a copy of parameters and moments (12 bytes for each of the "
                        "rank's parameters, 16 with sync_ref_model); give the job more memory, or use more "
                        "ranks");
    }
    return STATUS_OK;
}

/* From the device, widened to f32. */
static void values_out(const struct optimiser *o, float *values, const void *from, enum dtype type,
                       int64_t count)
{
    if (type == DTYPE_FLOAT) {
        o->model->ops->download(o->model->device, values, from, (size_t)count * sizeof *values);
        return;
    }
    struct bfloat *halves = allocate(count, sizeof *halves);
    o->model->ops->download(o->model->device, halves, from, (size_t)count * sizeof *halves);
    for (int64_t i = 0; i < count; i++)
        values[i] = bfloat_widen(halves[i]);
    free(halves);
}

static void values_in(const struct optimiser *o, const float *values, void *to, enum dtype type,
                      int64_t count)
{
    if (type == DTYPE_FLOAT) {
        o->model->ops->upload(o->model->device, to, values, (size_t)count * sizeof *values);
        return;
    }
    struct bfloat *halves = allocate(count, sizeof *halves);
    for (int64_t i = 0; i < count; i++)
        halves[i] = bfloat_round(values[i]);
    o->model->ops->upload(o->model->device, to, halves, (size_t)count * sizeof *halves);
    free(halves);
}

static void parameters_out(const struct optimiser *o, const struct checkpoint_piece *piece, int64_t state)
{
    const struct ops *ops = o->model->ops;
    struct device *d = o->model->device;
    const void *from = model_run(o->model, piece->offset, piece->count).data;
    if (!optimiser_has_low(o)) {
        ops->download(d, piece->parameter, from, (size_t)piece->count * sizeof(float));
        return;
    }
    struct bfloat *high = allocate(piece->count, sizeof *high);
    int16_t *low = allocate(piece->count, sizeof *low);
    ops->download(d, high, from, (size_t)piece->count * sizeof *high);
    ops->download(d, low, o->low + state, (size_t)piece->count * sizeof *low);
    for (int64_t i = 0; i < piece->count; i++)
        piece->parameter[i] = master_join(high[i], low[i]);
    free(high);
    free(low);
}

static void parameters_in(struct optimiser *o, const struct checkpoint_piece *piece, int64_t state)
{
    const struct ops *ops = o->model->ops;
    struct device *d = o->model->device;
    void *to = model_run(o->model, piece->offset, piece->count).data;
    if (!optimiser_has_low(o)) {
        ops->upload(d, to, piece->parameter, (size_t)piece->count * sizeof(float));
        return;
    }
    struct bfloat *high = allocate(piece->count, sizeof *high);
    for (int64_t i = 0; i < piece->count; i++)
        high[i] = master_high(piece->parameter[i]);
    ops->upload(d, to, high, (size_t)piece->count * sizeof *high);
    free(high);
    put_low(o, state, piece->parameter, piece->count);
}

enum status optimiser_stage_out(struct optimiser *o)
{
    TRY(optimiser_stage_room(o));
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        const struct checkpoint_piece *piece = &o->pieces[i];
        int64_t state = o->piece_state[i];
        parameters_out(o, piece, state);
        enum dtype type = o->options.moment_type;
        values_out(o, piece->moment, optimiser_state(o, o->moment, state), type, piece->count);
        values_out(o, piece->variance, optimiser_state(o, o->variance, state), type, piece->count);
        if (o->reference)
            values_out(o, piece->reference, reference_run(o, piece), o->model->precision.compute,
                       piece->count);
    }
    return STATUS_OK;
}

/* With zero_stage 0 every rank needs the state of all. */
static void share_state(struct optimiser *o)
{
    for (int64_t b = 0; b < o->model->params->bucket_count; b++) {
        const struct bucket *bucket = &o->model->params->buckets[b];
        enum dtype type = o->options.moment_type;
        exchange_share_all(o->exchange,
                           tensor_of(optimiser_state(o, o->moment, bucket->offset), type, 1, bucket->count));
        exchange_share_all(
            o->exchange, tensor_of(optimiser_state(o, o->variance, bucket->offset), type, 1, bucket->count));
        if (optimiser_has_low(o))
            exchange_share_all(o->exchange, tensor_of(o->low + bucket->offset, DTYPE_HALF, 1, bucket->count));
    }
}

static void share_reference(struct optimiser *o)
{
    enum dtype type = o->model->precision.compute;
    for (int64_t b = 0; b < o->model->params->bucket_count; b++) {
        const struct bucket *bucket = &o->model->params->buckets[b];
        void *first = (char *)o->reference + (size_t)bucket->offset * dtype_bytes(type);
        exchange_share_all(o->exchange, tensor_of(first, type, 1, bucket->count));
    }
}

void optimiser_stage_in(struct optimiser *o)
{
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        const struct checkpoint_piece *piece = &o->pieces[i];
        int64_t state = o->piece_state[i];
        parameters_in(o, piece, state);
        enum dtype type = o->options.moment_type;
        values_in(o, piece->moment, optimiser_state(o, o->moment, state), type, piece->count);
        values_in(o, piece->variance, optimiser_state(o, o->variance, state), type, piece->count);
        if (o->reference)
            values_in(o, piece->reference, reference_run(o, piece), o->model->precision.compute,
                      piece->count);
    }
    optimiser_share_parameters(o);
    if (o->reference) share_reference(o);
    if (o->options.zero_stage == 0) share_state(o);
    exchange_wait(o->exchange); /* the first transfers of a run: a download would wait for them unwatched */
    optimiser_stage_free(o);
}

void optimiser_stage_free(struct optimiser *o)
{
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        free(o->pieces[i].parameter);
        free(o->pieces[i].moment);
        free(o->pieces[i].variance);
        free(o->pieces[i].reference);
        o->pieces[i].parameter = o->pieces[i].moment = o->pieces[i].variance = o->pieces[i].reference = NULL;
    }
}
