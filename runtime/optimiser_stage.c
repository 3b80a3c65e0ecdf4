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

enum status optimiser_stage_room(struct optimiser *o)
{
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        struct checkpoint_piece *piece = &o->pieces[i];
        size_t bytes = (size_t)piece->count * sizeof(float);
        if (piece->parameter) continue;
        piece->parameter = malloc(bytes);
        piece->moment = malloc(bytes);
        piece->variance = malloc(bytes);
        if (!piece->parameter || !piece->moment || !piece->variance)
            return fail("out of host memory for a copy of parameters and moments (12 bytes for each of the "
                        "rank's parameters); give the job more memory, or use more ranks");
    }
    return STATUS_OK;
}

/* A state array from the device, widened to f32. */
static void state_out(const struct optimiser *o, float *values, void *array, int64_t first, int64_t count)
{
    const void *from = optimiser_state(o, array, first);
    if (o->options.moment_type == DTYPE_FLOAT) {
        o->model->ops->download(o->model->device, values, from, (size_t)count * sizeof *values);
        return;
    }
    struct bfloat *halves = allocate(count, sizeof *halves);
    o->model->ops->download(o->model->device, halves, from, (size_t)count * sizeof *halves);
    for (int64_t i = 0; i < count; i++)
        values[i] = bfloat_widen(halves[i]);
    free(halves);
}

static void state_in(const struct optimiser *o, const float *values, void *array, int64_t first,
                     int64_t count)
{
    void *to = optimiser_state(o, array, first);
    if (o->options.moment_type == DTYPE_FLOAT) {
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
        state_out(o, piece->moment, o->moment, state, piece->count);
        state_out(o, piece->variance, o->variance, state, piece->count);
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

void optimiser_stage_in(struct optimiser *o)
{
    for (int64_t i = 0; o->staged && i < o->piece_count; i++) {
        const struct checkpoint_piece *piece = &o->pieces[i];
        int64_t state = o->piece_state[i];
        parameters_in(o, piece, state);
        state_in(o, piece->moment, o->moment, state, piece->count);
        state_in(o, piece->variance, o->variance, state, piece->count);
    }
    optimiser_share_parameters(o);
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
        o->pieces[i].parameter = o->pieces[i].moment = o->pieces[i].variance = NULL;
    }
}
