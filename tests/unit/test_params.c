/* The parameter table: names, order, buckets, and initial values that depend on nothing but the seed. */
#include "runtime/files.h"
#include "runtime/params.h"
#include "tests/check.h"

#include <omp.h>

static struct config shape(enum family family, bool tied)
{
    return (struct config){.family = family,
                           .width = 14,
                           .layers = 3,
                           .heads = 7,
                           .key_heads = 1,
                           .head_size = 6,
                           .hidden = 13,
                           .vocabulary = 65,
                           .positions = 77,
                           .norm_epsilon = 1e-6,
                           .initializer_range = 0.5,
                           .tied = tied,
                           .qkv_bias = family == FAMILY_QWEN};
}

/* Buckets tile the vector, parameters tile their bucket but for the gap at its end. */
static void check_layout(const struct config *config)
{
    struct params params;
    params_layout(&params, config);
    CHECK(params.bucket_count == config->layers + 2);
    int64_t offset = 0, count = 0, next = 0;
    for (int64_t b = 0; b < params.bucket_count; b++) {
        const struct bucket *bucket = &params.buckets[b];
        CHECK(bucket->offset == offset && bucket->offset % PARAMS_ALIGNMENT == 0 && bucket->count > 0);
        int64_t inside = offset;
        for (; next < params.count && params.list[next].bucket == b; next++) {
            const struct parameter *parameter = &params.list[next];
            CHECK(parameter->offset == inside && parameter->count == parameter->rows * parameter->cols);
            CHECK(!parameter->vector || parameter->rows == 1);
            CHECK(parameter->decay == !parameter->vector);
            CHECK((parameter->init == INIT_NORMAL) == !parameter->vector);
            inside += parameter->count;
            count += parameter->count;
        }
        offset += bucket->count;
        CHECK(inside <= offset && offset - inside < PARAMS_ALIGNMENT);
    }
    CHECK(next == params.count && offset == params.total && count == config_parameters(config));
    params_free(&params);
    CHECK(!params.list && !params.buckets);
}

struct expected {
    enum layer_parameter which;
    const char *name;
    int64_t rows, cols;
    bool vector;
    enum parameter_init init;
};

static void check_names(const struct config *config)
{
    static const struct expected table[] = {
        {LAYER_NORM, "input_layernorm.weight", 1, 14, true, INIT_ONES},
        {LAYER_QUERY, "self_attn.q_proj.weight", 42, 14, false, INIT_NORMAL},
        {LAYER_KEY, "self_attn.k_proj.weight", 6, 14, false, INIT_NORMAL},
        {LAYER_VALUE, "self_attn.v_proj.weight", 6, 14, false, INIT_NORMAL},
        {LAYER_OUTPUT, "self_attn.o_proj.weight", 14, 42, false, INIT_NORMAL},
        {LAYER_MLP_NORM, "post_attention_layernorm.weight", 1, 14, true, INIT_ONES},
        {LAYER_GATE, "mlp.gate_proj.weight", 13, 14, false, INIT_NORMAL},
        {LAYER_UP, "mlp.up_proj.weight", 13, 14, false, INIT_NORMAL},
        {LAYER_DOWN, "mlp.down_proj.weight", 14, 13, false, INIT_NORMAL},
        {LAYER_QUERY_BIAS, "self_attn.q_proj.bias", 1, 42, true, INIT_ZEROS},
        {LAYER_KEY_BIAS, "self_attn.k_proj.bias", 1, 6, true, INIT_ZEROS},
        {LAYER_VALUE_BIAS, "self_attn.v_proj.bias", 1, 6, true, INIT_ZEROS},
    };
    struct params params;
    params_layout(&params, config);
    size_t rows = config->qkv_bias ? 12 : 9;
    CHECK(params.count == 2 + 3 * (int64_t)rows + (config->tied ? 0 : 1));
    for (int64_t layer = 0; layer < config->layers; layer++)
        for (size_t i = 0; i < rows; i++) {
            char *name = text_format("model.layers.%lld.%s", (long long)layer, table[i].name);
            const struct parameter *parameter = params_layer(&params, config, layer, table[i].which);
            CHECK(!strcmp(parameter->name, name) && parameter == params_find(&params, name));
            CHECK(parameter->rows == table[i].rows && parameter->cols == table[i].cols);
            CHECK(parameter->vector == table[i].vector && parameter->init == table[i].init);
            CHECK(parameter->bucket == 1 + layer);
            free(name);
        }
    const struct parameter *embedding = params_embedding(&params), *head = params_head(&params, config);
    CHECK(!strcmp(embedding->name, "model.embed_tokens.weight") && embedding->offset == 0);
    CHECK(embedding->rows == 65 && embedding->cols == 14);
    CHECK(!strcmp(params_final_norm(&params, config)->name, "model.norm.weight"));
    CHECK(config->tied ? head == embedding : !strcmp(head->name, "lm_head.weight") && head->rows == 65);
    CHECK(!params_find(&params, "model.layers.3.input_layernorm.weight"));
    CHECK(config->tied == !params_find(&params, "lm_head.weight"));

    /* One product serves q, k, v; another gate and up; one addition the three biases. */
    const struct parameter *layer = params_layer(&params, config, 1, LAYER_NORM);
    CHECK(layer[LAYER_KEY].offset == layer[LAYER_QUERY].offset + 42 * 14);
    CHECK(layer[LAYER_VALUE].offset == layer[LAYER_KEY].offset + 6 * 14);
    CHECK(layer[LAYER_UP].offset == layer[LAYER_GATE].offset + 13 * 14);
    if (config->qkv_bias) CHECK(layer[LAYER_VALUE_BIAS].offset == layer[LAYER_QUERY_BIAS].offset + 48);
    params_free(&params);
}

static void check_initial(void)
{
    struct config config = shape(FAMILY_QWEN, false), other = config;
    other.vocabulary = 66; /* does not move the values of any other tensor */
    struct params params, others;
    params_layout(&params, &config);
    params_layout(&others, &other);
    size_t bytes = (size_t)params.total * sizeof(float);
    float *one = allocate(params.total, sizeof *one), *four = allocate(params.total, sizeof *four);
    float *next = allocate(params.total, sizeof *next), *wide = allocate(others.total, sizeof *wide);
    memset(one, 0xff, bytes);
    omp_set_num_threads(1);
    params_initialise(&params, &config, 7, one);
    omp_set_num_threads(4);
    params_initialise(&params, &config, 7, four);
    params_initialise(&params, &config, 8, next);
    params_initialise(&others, &other, 7, wide);
    CHECK(memcmp(one, four, bytes) == 0);

    double sum = 0, square = 0, product = 0;
    int64_t normals = 0, filled = 0, same = 0, gaps = 0;
    for (int64_t p = 0; p < params.count; p++) {
        const struct parameter *parameter = &params.list[p];
        const float *values = one + parameter->offset;
        CHECK(memcmp(values, wide + others.list[p].offset, (size_t)parameter->count * sizeof(float)) == 0);
        for (int64_t i = 0; i < parameter->count; i++, filled++) {
            if (parameter->init == INIT_ONES) CHECK(values[i] == 1);
            if (parameter->init == INIT_ZEROS) CHECK(values[i] == 0);
            if (parameter->init != INIT_NORMAL) continue;
            double z = (double)values[i] / 0.5;
            sum += z;
            square += z * z;
            if (i) product += z * (double)values[i - 1] / 0.5;
            same += values[i] == next[parameter->offset + i];
            normals++;
        }
    }
    /* For n independent standard normal values the mean has deviation 1/sqrt(n), the mean square sqrt(2/n),
     * the mean product of neighbours 1/sqrt(n): five deviations each. The values are fixed, so this cannot
     * fail by chance. */
    double n = (double)normals;
    CHECK_NEAR(sum / n, 0, 5 / sqrt(n));
    CHECK_NEAR(square / n, 1, 5 * sqrt(2 / n));
    CHECK_NEAR(product / n, 0, 5 / sqrt(n));
    CHECK(same < normals / 1000);
    for (int64_t p = 0; p < params.count; p++) { /* the gaps are zero although the memory was not */
        int64_t end = params.list[p].offset + params.list[p].count;
        int64_t gap = p + 1 < params.count ? params.list[p + 1].offset : params.total;
        for (int64_t i = end; i < gap; i++, gaps++)
            CHECK(one[i] == 0);
    }
    CHECK(gaps > 0 && gaps + filled == params.total);
    const float *first = one + params.list[2].offset, *second = one + params.list[3].offset;
    CHECK(memcmp(first, second, 6 * 14 * sizeof(float)) != 0); /* tensors differ from each other */

    free(one);
    free(four);
    free(next);
    free(wide);
    params_free(&params);
    params_free(&others);
}

/* Tables of published models: only the table is made, no weights. */
static void check_published(void)
{
    static const char *const names[] = {"Meta-Llama-3-8B-Instruct", "Mistral-7B-v0.1", "Qwen2.5-7B-Instruct"};
    for (size_t i = 0; i < 3 && test_data(); i++) {
        struct config config;
        char *path = text_format("%s/configs/%s.config.json", test_data(), names[i]);
        CHECK(config_read(&config, path) == STATUS_OK);
        check_layout(&config);
        free(path);
    }
}

int main(void)
{
    const enum family families[] = {FAMILY_LLAMA, FAMILY_QWEN};
    for (int i = 0; i < 4; i++) {
        struct config config = shape(families[i / 2], i % 2);
        check_layout(&config);
        check_names(&config);
    }
    check_initial();
    check_published();
    return check_result();
}
