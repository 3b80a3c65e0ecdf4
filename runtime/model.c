#include "runtime/model.h"

#include "kernels/bfloat.h"
#include "kernels/require.h"

#include <math.h>
#include <stdlib.h>

/* -- memory ----------------------------------------------------------------------------------- */

static int64_t qkv_width(const struct config *config)
{
    return (config->heads + 2 * config->key_heads) * config->head_size;
}

static struct attention_shape attention_shape(const struct config *config)
{
    return (struct attention_shape){.heads = config->heads,
                                    .key_heads = config->key_heads,
                                    .head_size = config->head_size,
                                    .window = config->window,
                                    .scale = (float)(1 / sqrt((double)config->head_size))};
}

/* An activation or parameter array in the type that the model computes in. */
static void want(struct model *model, struct arena *arena, const char *name, void **where, int64_t count)
{
    arena_want(arena, name, where, count, dtype_bytes(model->precision.compute));
}

static void want_layer(struct model *model, struct arena *arena, struct layer_activations *layer,
                       int64_t tokens)
{
    const struct config *config = model->config;
    const char *name = "activations";
    want(model, arena, name, &layer->norm, tokens * config->width);
    want(model, arena, name, &layer->qkv, tokens * qkv_width(config));
    want(model, arena, name, &layer->attention, tokens * config->heads * config->head_size);
    arena_want(arena, name, (void **)&layer->lse, tokens * config->heads, sizeof(float));
    want(model, arena, name, &layer->middle, tokens * config->width);
    want(model, arena, name, &layer->mlp_norm, tokens * config->width);
    want(model, arena, name, &layer->gate_up, tokens * 2 * config->hidden);
    want(model, arena, name, &layer->product, tokens * config->hidden);
}

static void want_gradients(struct model *model, struct arena *arena, int64_t tokens)
{
    const struct config *config = model->config;
    const char *name = "activation gradients";
    arena_want(arena, "gradients", &model->gradients, model->params->total,
               dtype_bytes(model->precision.gradient));
    want(model, arena, name, &model->dstream, tokens * config->width);
    want(model, arena, name, &model->dnorm, tokens * config->width);
    want(model, arena, name, &model->dqkv, tokens * qkv_width(config));
    want(model, arena, name, &model->dattention, tokens * config->heads * config->head_size);
    want(model, arena, name, &model->dproduct, tokens * config->hidden);
    arena_want(arena, name, &model->workspace, 1,
               arena->ops->attention_workspace(arena->device, tokens, attention_shape(config)));
}

void model_open(struct model *model, struct arena *arena, const struct config *config,
                const struct params *params, struct precision precision, enum model_mode mode,
                struct batch_limits limits)
{
    *model = (struct model){.config = config,
                            .params = params,
                            .ops = arena->ops,
                            .device = arena->device,
                            .mode = mode,
                            .precision = precision};
    int64_t tokens = limits.tokens, layers = config->layers;
    model->layers = allocate(layers, sizeof *model->layers);
    model->stream = allocate(layers + 1, sizeof *model->stream);
    want(model, arena, "parameters", &model->parameters, params->total);
    for (int64_t l = 0; l < (mode == MODEL_TRAIN ? layers : 1); l++)
        want_layer(model, arena, &model->layers[l], tokens);
    for (int64_t l = 0; l < (mode == MODEL_SCORE ? 2 : layers + 1); l++)
        want(model, arena, "activations", &model->stream[l], tokens * config->width);
    want(model, arena, "activations", &model->branch, tokens * config->width);
    model->rope_positions = limits.longest;
    arena_want(arena, "tables", (void **)&model->rope_table, model->rope_positions * config->head_size,
               sizeof(float));
    if (mode != MODEL_SCORE) want_gradients(model, arena, tokens);
}

void model_rope_frequencies(const struct config *config, double *frequency)
{
    const struct rope *rope = &config->rope;
    const double turn = 2 * 3.14159265358979323846;
    for (int64_t i = 0; i < config->head_size / 2; i++) {
        double f = pow(rope->theta, -2.0 * (double)i / (double)config->head_size);
        if (rope->type == ROPE_LINEAR) f /= rope->factor;
        if (rope->type == ROPE_LLAMA) {
            /* Turns made over the original context decide: few turns (long waves) are stretched, many are
             * kept. */
            double turns = (double)rope->original_positions * f / turn;
            double keep = (turns - rope->low_frequency_factor) /
                          (rope->high_frequency_factor - rope->low_frequency_factor);
            keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
            f = keep * f + (1 - keep) * f / rope->factor;
        }
        frequency[i] = f;
    }
}

static void fill_rope_table(struct model *model)
{
    int64_t size = model->config->head_size, half = size / 2;
    double *frequency = allocate(half, sizeof *frequency);
    float *table = allocate(model->rope_positions * size, sizeof *table);
    model_rope_frequencies(model->config, frequency);
    for (int64_t p = 0; p < model->rope_positions; p++) {
        for (int64_t i = 0; i < half; i++) {
            table[p * size + i] = (float)cos((double)p * frequency[i]);
            table[p * size + half + i] = (float)sin((double)p * frequency[i]);
        }
    }
    model->ops->upload(model->device, model->rope_table, table,
                       (size_t)(model->rope_positions * size) * sizeof(float));
    free(table);
    free(frequency);
}

void model_prepare(struct model *model)
{
    int64_t layers = model->config->layers;
    for (int64_t l = 1; l < layers && model->mode != MODEL_TRAIN; l++)
        model->layers[l] = model->layers[0];
    for (int64_t l = 2; l <= layers && model->mode == MODEL_SCORE; l++)
        model->stream[l] = model->stream[l % 2];
    fill_rope_table(model);
}

void model_close(struct model *model)
{
    free(model->layers);
    free(model->stream);
    *model = (struct model){0};
}

/* -- views ------------------------------------------------------------------------------------ */

struct tensor model_run(const struct model *model, int64_t offset, int64_t count)
{
    enum dtype type = model->precision.compute;
    return tensor_of((char *)model->parameters + (size_t)offset * dtype_bytes(type), type, 1, count);
}

struct tensor model_run_gradient(const struct model *model, int64_t offset, int64_t count)
{
    enum dtype type = model->precision.gradient;
    return tensor_of((char *)model->gradients + (size_t)offset * dtype_bytes(type), type, 1, count);
}

struct tensor model_matrix(const struct model *model, const struct parameter *parameter, int64_t rows)
{
    return tensor_of(model_run(model, parameter->offset, 0).data, model->precision.compute, rows,
                     parameter->cols);
}

struct tensor model_matrix_gradient(const struct model *model, const struct parameter *parameter,
                                    int64_t rows)
{
    return tensor_of(model_run_gradient(model, parameter->offset, 0).data, model->precision.gradient, rows,
                     parameter->cols);
}

const void *model_vector(const struct model *model, const struct parameter *parameter)
{
    return model_run(model, parameter->offset, parameter->count).data;
}

struct tensor model_vector_gradient(const struct model *model, const struct parameter *parameter,
                                    int64_t cols)
{
    return model_run_gradient(model, parameter->offset, cols);
}

/* An activation [rows, cols]. */
static struct tensor matrix(const struct model *model, void *data, int64_t rows, int64_t cols)
{
    return tensor_of(data, model->precision.compute, rows, cols);
}

void model_put(struct model *model, const float *flat)
{
    enum { PIECE = 1 << 20 };
    int64_t total = model->params->total;
    if (model->precision.compute == DTYPE_FLOAT) {
        model->ops->upload(model->device, model->parameters, flat, (size_t)total * sizeof *flat);
        return;
    }
    struct bfloat *piece = allocate(PIECE, sizeof *piece);
    for (int64_t first = 0; first < total; first += PIECE) {
        int64_t count = total - first < PIECE ? total - first : PIECE;
        for (int64_t i = 0; i < count; i++)
            piece[i] = master_high(flat[first + i]);
        model->ops->upload(model->device, model_run(model, first, count).data, piece,
                           (size_t)count * sizeof *piece);
    }
    free(piece);
}

/* The views of one layer over the tokens of one batch. Neighbouring matrices (q, k, v; gate, up) are one. */
struct layer_views {
    struct tensor input, norm, qkv, rotated, attention, branch, middle, mlp_norm, gate_up, product;
    struct tensor qkv_weight, output_weight, gate_up_weight, down_weight;
    const struct parameter *attention_norm, *mlp_norm_weight, *query, *output, *gate, *down, *bias;
};

static struct layer_views view_layer(const struct model *model, int64_t l, int64_t tokens)
{
    const struct config *c = model->config;
    const struct layer_activations *a = &model->layers[l];
    struct layer_views v = {
        .input = matrix(model, model->stream[l], tokens, c->width),
        .norm = matrix(model, a->norm, tokens, c->width),
        .qkv = matrix(model, a->qkv, tokens, qkv_width(c)),
        .attention = matrix(model, a->attention, tokens, c->heads * c->head_size),
        .branch = matrix(model, model->branch, tokens, c->width),
        .middle = matrix(model, a->middle, tokens, c->width),
        .mlp_norm = matrix(model, a->mlp_norm, tokens, c->width),
        .gate_up = matrix(model, a->gate_up, tokens, 2 * c->hidden),
        .product = matrix(model, a->product, tokens, c->hidden),
        .attention_norm = params_layer(model->params, c, l, LAYER_NORM),
        .mlp_norm_weight = params_layer(model->params, c, l, LAYER_MLP_NORM),
        .query = params_layer(model->params, c, l, LAYER_QUERY),
        .output = params_layer(model->params, c, l, LAYER_OUTPUT),
        .gate = params_layer(model->params, c, l, LAYER_GATE),
        .down = params_layer(model->params, c, l, LAYER_DOWN),
        .bias = c->qkv_bias ? params_layer(model->params, c, l, LAYER_QUERY_BIAS) : NULL,
    };
    v.rotated = tensor_cols(v.qkv, 0, (c->heads + c->key_heads) * c->head_size);
    v.qkv_weight = model_matrix(model, v.query, qkv_width(c));
    v.output_weight = model_matrix(model, v.output, v.output->rows);
    v.gate_up_weight = model_matrix(model, v.gate, 2 * c->hidden);
    v.down_weight = model_matrix(model, v.down, v.down->rows);
    return v;
}

/* -- forward ---------------------------------------------------------------------------------- */

/* From the normed input of a layer to its product, all that backward needs. */
static void layer_activate(struct model *model, const struct layer_views *v, float *lse,
                           const struct batch *batch)
{
    const struct ops *ops = model->ops;
    struct device *d = model->device;
    const struct config *c = model->config;
    float epsilon = (float)c->norm_epsilon;
    ops->matmul(d, v->qkv, v->norm, false, v->qkv_weight, true, false);
    if (v->bias) ops->bias(d, v->qkv, model_vector(model, v->bias));
    ops->rope(d, v->rotated, c->heads + c->key_heads, batch->on_device.position, model->rope_table, false);
    ops->attention(d, v->attention, lse, v->qkv, batch_packing(batch), attention_shape(c));
    ops->matmul(d, v->branch, v->attention, false, v->output_weight, true, false);
    ops->rmsnorm(d, v->mlp_norm, v->middle, v->input, v->branch, model_vector(model, v->mlp_norm_weight),
                 epsilon);
    ops->matmul(d, v->gate_up, v->mlp_norm, false, v->gate_up_weight, true, false);
    ops->swiglu(d, v->product, v->gate_up);
}

struct tensor model_forward(struct model *model, const struct batch *batch)
{
    const struct ops *ops = model->ops;
    struct device *d = model->device;
    const struct config *c = model->config;
    int64_t tokens = batch->tokens;
    REQUIRE(batch->longest <= model->rope_positions, "a sequence is longer than was measured");

    struct tensor stream = matrix(model, model->stream[0], tokens, c->width), previous = stream, none = {0};
    const struct parameter *embedding = params_embedding(model->params);
    ops->gather_rows(d, stream, model_matrix(model, embedding, embedding->rows), batch->on_device.id);
    for (int64_t l = 0; l < c->layers; l++) {
        struct layer_views v = view_layer(model, l, tokens);
        /* The MLP branch of the layer before joins the stream where the stream is normed next. */
        ops->rmsnorm(d, v.norm, v.input, previous, l ? v.branch : none, model_vector(model, v.attention_norm),
                     (float)c->norm_epsilon);
        layer_activate(model, &v, model->layers[l].lse, batch);
        if (l + 1 < c->layers) ops->matmul(d, v.branch, v.product, false, v.down_weight, true, false);
        previous = v.middle;
    }
    struct layer_views last = view_layer(model, c->layers - 1, tokens);
    struct tensor out = matrix(model, model->stream[c->layers], tokens, c->width);
    ops->copy(d, out.data, last.middle.data, (size_t)(tokens * c->width) * dtype_bytes(out.type));
    ops->matmul(d, out, last.product, false, last.down_weight, true, true);
    return out;
}

/* -- backward --------------------------------------------------------------------------------- */

struct tensor model_dstream(struct model *model, const struct batch *batch)
{
    return matrix(model, model->dstream, batch->tokens, model->config->width);
}

static void mlp_backward(struct model *model, const struct layer_views *v, struct tensor dstream)
{
    const struct ops *ops = model->ops;
    struct device *d = model->device;
    const struct config *c = model->config;
    struct tensor dproduct = matrix(model, model->dproduct, dstream.rows, c->hidden), dgate_up = v->gate_up;
    struct tensor dnorm = matrix(model, model->dnorm, dstream.rows, c->width);
    ops->matmul(d, dproduct, dstream, false, v->down_weight, false, false);
    ops->matmul(d, model_matrix_gradient(model, v->down, v->down->rows), dstream, true, v->product, false,
                true);
    ops->swiglu_grad(d, dgate_up, dproduct, v->gate_up);
    ops->matmul(d, dnorm, dgate_up, false, v->gate_up_weight, false, false);
    ops->matmul(d, model_matrix_gradient(model, v->gate, 2 * c->hidden), dgate_up, true, v->mlp_norm, false,
                true);
    ops->rmsnorm_grad(d, dstream, model_vector_gradient(model, v->mlp_norm_weight, c->width), dnorm,
                      v->middle, model_vector(model, v->mlp_norm_weight), (float)c->norm_epsilon);
}

static void attention_backward(struct model *model, const struct layer_views *v, const float *lse,
                               struct tensor dstream, const struct batch *batch)
{
    const struct ops *ops = model->ops;
    struct device *d = model->device;
    const struct config *c = model->config;
    struct tensor dattention = matrix(model, model->dattention, dstream.rows, c->heads * c->head_size);
    struct tensor dqkv = matrix(model, model->dqkv, dstream.rows, qkv_width(c));
    struct tensor dnorm = matrix(model, model->dnorm, dstream.rows, c->width);
    ops->matmul(d, dattention, dstream, false, v->output_weight, false, false);
    ops->matmul(d, model_matrix_gradient(model, v->output, v->output->rows), dstream, true, v->attention,
                false, true);
    ops->attention_grad(d, dqkv, dattention, v->attention, lse, v->qkv, batch_packing(batch),
                        attention_shape(c), model->workspace);
    ops->rope(d, tensor_cols(dqkv, 0, v->rotated.cols), c->heads + c->key_heads, batch->on_device.position,
              model->rope_table, true);
    if (v->bias) ops->bias_grad(d, model_vector_gradient(model, v->bias, qkv_width(c)), dqkv);
    ops->matmul(d, dnorm, dqkv, false, v->qkv_weight, false, false);
    ops->matmul(d, model_matrix_gradient(model, v->query, qkv_width(c)), dqkv, true, v->norm, false, true);
    ops->rmsnorm_grad(d, dstream, model_vector_gradient(model, v->attention_norm, c->width), dnorm, v->input,
                      model_vector(model, v->attention_norm), (float)c->norm_epsilon);
}

void model_backward(struct model *model, const struct batch *batch, struct bucket_listener listener)
{
    const struct ops *ops = model->ops;
    struct device *d = model->device;
    const struct config *c = model->config;
    REQUIRE(model->mode != MODEL_SCORE, "a model without gradients is asked for them");

    struct tensor dstream = model_dstream(model, batch), none = {0};
    for (int64_t l = c->layers - 1; l >= 0; l--) {
        struct layer_views v = view_layer(model, l, batch->tokens);
        if (model->mode == MODEL_RECOMPUTE) {
            ops->rmsnorm(d, v.norm, none, v.input, none, model_vector(model, v.attention_norm),
                         (float)c->norm_epsilon);
            layer_activate(model, &v, model->layers[l].lse, batch);
        }
        mlp_backward(model, &v, dstream);
        attention_backward(model, &v, model->layers[l].lse, dstream, batch);
        if (listener.ready) listener.ready(listener.context, 1 + l);
    }
    const struct parameter *embedding = params_embedding(model->params);
    ops->scatter_rows(d, model_matrix_gradient(model, embedding, embedding->rows), dstream,
                      batch->on_device.id);
    if (listener.ready) listener.ready(listener.context, 0);
}
