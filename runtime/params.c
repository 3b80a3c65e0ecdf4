#include "runtime/params.h"

#include "kernels/require.h"
#include "runtime/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WITHOUT_BIAS = LAYER_DOWN + 1, WITH_BIAS = LAYER_VALUE_BIAS + 1 };

static int64_t layer_parameters(const struct config *config)
{
    return config->qkv_bias ? WITH_BIAS : WITHOUT_BIAS;
}

struct layout {
    struct params *params;
    int64_t offset; /* of the next parameter */
};

static void add(struct layout *layout, const char *name, int64_t rows, int64_t cols)
{
    struct params *params = layout->params;
    struct parameter *parameter = &params->list[params->count++];
    int written = snprintf(parameter->name, sizeof parameter->name, "%s", name);
    REQUIRE(written > 0 && (size_t)written < sizeof parameter->name, "the tensor name %s is too long", name);
    parameter->rows = rows ? rows : 1;
    parameter->cols = cols;
    parameter->vector = rows == 0;
    parameter->offset = layout->offset;
    parameter->count = parameter->rows * cols;
    parameter->bucket = params->bucket_count;
    parameter->decay = rows != 0;
    parameter->init = rows ? INIT_NORMAL : strstr(name, "bias") ? INIT_ZEROS : INIT_ONES;
    layout->offset += parameter->count;
}

static void end_bucket(struct layout *layout)
{
    struct params *params = layout->params;
    int64_t offset = params->total;
    params->total = (layout->offset + PARAMS_ALIGNMENT - 1) / PARAMS_ALIGNMENT * PARAMS_ALIGNMENT;
    params->buckets[params->bucket_count++] = (struct bucket){offset, params->total - offset};
    layout->offset = params->total;
}

static void add_layer(struct layout *layout, const struct config *config, int64_t layer)
{
    int64_t query = config->heads * config->head_size, key = config->key_heads * config->head_size;
    const struct {
        const char *name;
        int64_t rows, cols; /* rows 0: a vector */
    } table[WITH_BIAS] = {
        [LAYER_NORM] = {"input_layernorm.weight", 0, config->width},
        [LAYER_QUERY] = {"self_attn.q_proj.weight", query, config->width},
        [LAYER_KEY] = {"self_attn.k_proj.weight", key, config->width},
        [LAYER_VALUE] = {"self_attn.v_proj.weight", key, config->width},
        [LAYER_OUTPUT] = {"self_attn.o_proj.weight", config->width, query},
        [LAYER_MLP_NORM] = {"post_attention_layernorm.weight", 0, config->width},
        [LAYER_GATE] = {"mlp.gate_proj.weight", config->hidden, config->width},
        [LAYER_UP] = {"mlp.up_proj.weight", config->hidden, config->width},
        [LAYER_DOWN] = {"mlp.down_proj.weight", config->width, config->hidden},
        [LAYER_QUERY_BIAS] = {"self_attn.q_proj.bias", 0, query},
        [LAYER_KEY_BIAS] = {"self_attn.k_proj.bias", 0, key},
        [LAYER_VALUE_BIAS] = {"self_attn.v_proj.bias", 0, key},
    };
    for (int64_t i = 0; i < layer_parameters(config); i++) {
        char name[sizeof layout->params->list->name];
        snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)layer, table[i].name);
        add(layout, name, table[i].rows, table[i].cols);
    }
    end_bucket(layout);
}

void params_layout(struct params *params, const struct config *config)
{
    memset(params, 0, sizeof *params);
    params->list = allocate(config->layers * layer_parameters(config) + 3, sizeof *params->list);
    params->buckets = allocate(config->layers + 2, sizeof *params->buckets);
    struct layout layout = {params, 0};
    add(&layout, "model.embed_tokens.weight", config->vocabulary, config->width);
    end_bucket(&layout);
    for (int64_t layer = 0; layer < config->layers; layer++)
        add_layer(&layout, config, layer);
    add(&layout, "model.norm.weight", 0, config->width);
    if (!config->tied) add(&layout, "lm_head.weight", config->vocabulary, config->width);
    end_bucket(&layout);
}

void params_free(struct params *params)
{
    free(params->list);
    free(params->buckets);
    memset(params, 0, sizeof *params);
}

const struct parameter *params_embedding(const struct params *params)
{
    return &params->list[0];
}

const struct parameter *params_layer(const struct params *params, const struct config *config, int64_t layer,
                                     enum layer_parameter which)
{
    REQUIRE(layer >= 0 && layer < config->layers && (int64_t)which < layer_parameters(config),
            "the model has no parameter %d in layer %lld", (int)which, (long long)layer);
    return &params->list[1 + layer * layer_parameters(config) + (int64_t)which];
}

const struct parameter *params_final_norm(const struct params *params, const struct config *config)
{
    return &params->list[1 + config->layers * layer_parameters(config)];
}

const struct parameter *params_head(const struct params *params, const struct config *config)
{
    return config->tied ? params_embedding(params) : params_final_norm(params, config) + 1;
}

const struct parameter *params_find(const struct params *params, const char *name)
{
    for (int64_t i = 0; i < params->count; i++)
        if (strcmp(params->list[i].name, name) == 0) return &params->list[i];
    return NULL;
}

/* -- initial values --------------------------------------------------------------------------- */

/* Two standard normal values of a tensor (Box and Muller 1958). */
static void normal_pair(uint64_t seed, uint64_t tensor, uint64_t pair, double values[2])
{
    const double turn = 6.283185307179586476925;
    double first = 1 - random_unit(seed, tensor, 2 * pair); /* in (0, 1] */
    double second = random_unit(seed, tensor, 2 * pair + 1);
    double radius = sqrt(-2 * log(first));
    values[0] = radius * cos(turn * second);
    values[1] = radius * sin(turn * second);
}

static void fill_normal(float *values, int64_t count, uint64_t seed, uint64_t tensor, double deviation)
{
    int64_t pairs = (count + 1) / 2;
#pragma omp parallel for schedule(static)
    for (int64_t pair = 0; pair < pairs; pair++) {
        double normal[2];
        normal_pair(seed, tensor, (uint64_t)pair, normal);
        for (int64_t i = 2 * pair; i < count && i < 2 * pair + 2; i++)
            values[i] = (float)(deviation * normal[i % 2]);
    }
}

void params_initialise(const struct params *params, const struct config *config, uint64_t seed, float *flat)
{
    memset(flat, 0, (size_t)params->total * sizeof *flat);
    for (int64_t p = 0; p < params->count; p++) {
        const struct parameter *parameter = &params->list[p];
        float *values = flat + parameter->offset;
        if (parameter->init == INIT_NORMAL)
            fill_normal(values, parameter->count, seed, (uint64_t)p, config->initializer_range);
        for (int64_t i = 0; i < parameter->count && parameter->init == INIT_ONES; i++)
            values[i] = 1;
    }
}
