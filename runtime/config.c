#include "runtime/config.h"

#include "runtime/json.h"

#include <stdlib.h>
#include <string.h>

/* Caps. With them no product of sizes that the program forms reaches 2^56, so that none can overflow. */
enum {
    MAX_WIDTH = 1 << 17,
    MAX_LAYERS = 1 << 10,
    MAX_HEADS = 1 << 12,
    MAX_HEAD_SIZE = 1 << 10,
    MAX_HIDDEN = 1 << 20,
    MAX_VOCABULARY = 1 << 24,
    MAX_POSITIONS = 1 << 24,
};

struct family_entry {
    const char *name, *architecture;
};

static const struct family_entry families[] = {
    [FAMILY_LLAMA] = {"llama", "LlamaForCausalLM"},
    [FAMILY_MISTRAL] = {"mistral", "MistralForCausalLM"},
    [FAMILY_QWEN] = {"qwen2", "Qwen2ForCausalLM"},
};
enum { FAMILY_COUNT = sizeof families / sizeof families[0] };

static const char supported[] = "supported are llama, mistral and qwen2";

const char *family_name(enum family family)
{
    return families[family].name;
}

/* model_type and architectures must agree; either alone is enough. */
static enum status read_family(struct config *config, struct json_value root)
{
    struct json_value type = json_key(root, "model_type"), list = json_key(root, "architectures");
    struct json_value first = json_item(list, 0);
    const char *name = NULL, *architecture = NULL;
    if (json_present(type)) TRY(json_as_text(type, &name));
    if (json_present(list)) TRY(json_as_list(list));
    if (json_count(list) > 1) return json_fail(list, "names more than one architecture");
    if (json_present(first)) TRY(json_as_text(first, &architecture));
    if (!name && !architecture) return json_fail(type, "is missing; %s", supported);
    for (int i = 0; i < FAMILY_COUNT; i++) {
        if (strcmp(name ? name : architecture, name ? families[i].name : families[i].architecture) != 0)
            continue;
        if (architecture && strcmp(architecture, families[i].architecture) != 0)
            return json_fail(first, "is \"%s\", which is not supported; a %s model must be %s", architecture,
                             families[i].name, families[i].architecture);
        config->family = (enum family)i;
        return STATUS_OK;
    }
    if (name) return json_fail(type, "is \"%s\", which is not supported; %s", name, supported);
    return json_fail(first, "is \"%s\", which is not supported; %s", architecture, supported);
}

static enum status read_sizes(struct config *config, struct json_value root)
{
    TRY(json_as_int(json_key(root, "hidden_size"), 1, MAX_WIDTH, &config->width));
    TRY(json_as_int(json_key(root, "num_hidden_layers"), 1, MAX_LAYERS, &config->layers));
    TRY(json_as_int(json_key(root, "intermediate_size"), 1, MAX_HIDDEN, &config->hidden));
    TRY(json_as_int(json_key(root, "vocab_size"), 1, MAX_VOCABULARY, &config->vocabulary));
    TRY(json_as_int(json_key(root, "max_position_embeddings"), 1, MAX_POSITIONS, &config->positions));
    struct json_value heads = json_key(root, "num_attention_heads");
    TRY(json_as_int(heads, 1, MAX_HEADS, &config->heads));

    struct json_value key_heads = json_key(root, "num_key_value_heads");
    if (config->family == FAMILY_LLAMA) /* the first Llamas did not write it */
        TRY(json_int_or(key_heads, 1, MAX_HEADS, config->heads, &config->key_heads));
    else
        TRY(json_as_int(key_heads, 1, MAX_HEADS, &config->key_heads));
    if (config->heads % config->key_heads != 0)
        return json_fail(key_heads, "is %lld, which does not divide num_attention_heads = %lld",
                         (long long)config->key_heads, (long long)config->heads);

    struct json_value head_size = json_key(root, "head_dim");
    TRY(json_int_or(head_size, 2, MAX_HEAD_SIZE, 0, &config->head_size));
    if (!config->head_size) {
        if (config->width % config->heads != 0 || config->width / config->heads > MAX_HEAD_SIZE)
            return json_fail(heads,
                             "is %lld, which does not divide hidden_size = %lld into heads of at most %d",
                             (long long)config->heads, (long long)config->width, MAX_HEAD_SIZE);
        config->head_size = config->width / config->heads;
    }
    if (config->head_size % 2 != 0)
        return json_fail(head_size, "is %lld, but rotary embeddings need an even head size",
                         (long long)config->head_size);
    return STATUS_OK;
}

static enum status read_positive(struct json_value value, double otherwise, double maximum, double *result)
{
    TRY(json_number_or(value, otherwise, result));
    if (!(*result > 0 && *result <= maximum))
        return json_fail(value, "is %g, but it must be above 0 and at most %g", *result, maximum);
    return STATUS_OK;
}

/* Absent or 1: the whole head is rotated. */
static enum status refuse_partial(struct json_value value)
{
    double share;
    TRY(json_number_or(value, 1, &share));
    return share == 1
               ? STATUS_OK
               : json_fail(value, "is %g; only models that rotate the whole head are supported", share);
}

static enum status read_scaling(struct rope *rope, struct json_value scaling)
{
    struct json_value factor = json_key(scaling, "factor");
    TRY(json_as_number(factor, &rope->factor));
    if (!(rope->factor >= 1 && rope->factor <= 1e6))
        return json_fail(factor, "is %g, but it must be from 1 to 1e6", rope->factor);
    if (rope->type != ROPE_LLAMA) return STATUS_OK;
    struct json_value low = json_key(scaling, "low_freq_factor"),
                      high = json_key(scaling, "high_freq_factor");
    TRY(json_as_number(low, &rope->low_frequency_factor));
    TRY(json_as_number(high, &rope->high_frequency_factor));
    if (!(rope->low_frequency_factor > 0))
        return json_fail(low, "is %g, but it must be above 0", rope->low_frequency_factor);
    if (!(rope->high_frequency_factor > rope->low_frequency_factor && rope->high_frequency_factor <= 1e6))
        return json_fail(high, "is %g, but it must be above low_freq_factor = %g and at most 1e6",
                         rope->high_frequency_factor, rope->low_frequency_factor);
    return json_as_int(json_key(scaling, "original_max_position_embeddings"), 1, MAX_POSITIONS,
                       &rope->original_positions);
}

static enum status read_rope_type(struct rope *rope, struct json_value scaling)
{
    struct json_value value = json_key(scaling, "rope_type"), old = json_key(scaling, "type");
    const char *type = "default", *other = NULL;
    if (json_present(old)) TRY(json_as_text(old, &other));
    if (json_present(value))
        TRY(json_as_text(value, &type));
    else if (other)
        type = other, value = old;
    if (other && strcmp(other, type) != 0)
        return json_fail(old, "is \"%s\", but rope_type is \"%s\"", other, type);
    if (strcmp(type, "default") == 0)
        rope->type = ROPE_DEFAULT;
    else if (strcmp(type, "linear") == 0)
        rope->type = ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0)
        rope->type = ROPE_LLAMA;
    else
        return json_fail(value, "is \"%s\", which is not supported; supported are default, linear and llama3",
                         type);
    return STATUS_OK;
}

/* Transformers 4 writes rope_theta and rope_scaling; Transformers 5 writes rope_parameters with rope_theta
 * inside. */
static enum status read_rope(struct rope *rope, struct json_value root)
{
    static const char *const known[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "partial_rotary_factor",
                                        "original_max_position_embeddings",
                                        NULL};
    struct json_value older = json_key(root, "rope_scaling"), newer = json_key(root, "rope_parameters");
    struct json_value theta = json_key(root, "rope_theta"),
                      outside = json_key(root, "original_max_position_embeddings");
    struct json_value scaling = json_present(newer) ? newer : older;
    *rope = (struct rope){
        .type = ROPE_DEFAULT, .factor = 1, .low_frequency_factor = 1, .high_frequency_factor = 1};
    TRY(refuse_partial(json_key(root, "partial_rotary_factor")));
    if (json_present(older) && json_present(newer))
        return json_fail(older, "and rope_parameters are both given; keep one of them");
    if (!json_present(scaling)) return read_positive(theta, 10000, 1e12, &rope->theta);

    TRY(json_only(scaling, known));
    TRY(refuse_partial(json_key(scaling, "partial_rotary_factor")));
    TRY(read_rope_type(rope, scaling));
    if (json_present(json_key(scaling, "rope_theta"))) theta = json_key(scaling, "rope_theta");
    TRY(read_positive(theta, 10000, 1e12, &rope->theta));
    if (rope->type == ROPE_DEFAULT) return STATUS_OK;
    if (rope->type == ROPE_LLAMA && json_present(outside))
        return json_fail(outside, "stands outside of %s; Transformers' versions disagree on what that means",
                         scaling.path);
    return read_scaling(rope, scaling);
}

/* All layers share one window or none has any. */
static enum status check_layer_types(const struct config *config, struct json_value root)
{
    struct json_value list = json_key(root, "layer_types");
    if (!json_present(list)) return STATUS_OK;
    TRY(json_as_list(list));
    const char *wanted = config->window ? "sliding_attention" : "full_attention";
    for (int64_t i = 0; i < json_count(list); i++) {
        const char *type;
        TRY(json_as_text(json_item(list, i), &type));
        if (strcmp(type, wanted) != 0)
            return json_fail(json_item(list, i),
                             "is \"%s\", but only models whose layers are all \"%s\" are supported", type,
                             wanted);
    }
    return STATUS_OK;
}

static enum status read_window(struct config *config, struct json_value root)
{
    struct json_value window = json_key(root, "sliding_window"), use = json_key(root, "use_sliding_window");
    config->window = 0;
    if (config->family == FAMILY_LLAMA) {
        if (json_present(window))
            return json_fail(window, "is not supported for llama models; it must be null");
    } else if (config->family == FAMILY_MISTRAL) {
        if (!window.node) config->window = 4096; /* Transformers' default, where null means none */
        if (json_present(window)) TRY(json_as_int(window, 1, MAX_POSITIONS, &config->window));
    } else {
        bool used;
        int64_t full_layers;
        TRY(json_bool_or(use, false, &used));
        TRY(json_int_or(json_key(root, "max_window_layers"), 0, INT64_MAX, 28, &full_layers));
        if (used && (json_present(window) || !window.node) && full_layers < config->layers)
            return json_fail(use, "is true for layers %lld and on; mixed sliding windows are not supported",
                             (long long)full_layers);
    }
    return check_layer_types(config, root);
}

static enum status refuse_true(struct json_value value)
{
    bool given;
    TRY(json_bool_or(value, false, &given));
    return given ? json_fail(value, "is true, which is not supported") : STATUS_OK;
}

static enum status refuse_what_is_not_implemented(const struct config *config, struct json_value root)
{
    struct json_value activation = json_key(root, "hidden_act"),
                      quantised = json_key(root, "quantization_config");
    const char *name = "silu";
    if (json_present(activation)) TRY(json_as_text(activation, &name));
    if (strcmp(name, "silu") != 0)
        return json_fail(activation, "is \"%s\", which is not supported; it must be silu", name);
    if (config->family != FAMILY_QWEN) TRY(refuse_true(json_key(root, "attention_bias")));
    TRY(refuse_true(json_key(root, "mlp_bias")));
    if (json_present(quantised))
        return json_fail(quantised,
                         "is given; quantised models are not supported, take the original weights");
    return STATUS_OK;
}

static enum status read_root(struct config *config, struct json_value root)
{
    TRY(json_as_object(root));
    TRY(read_family(config, root));
    TRY(refuse_what_is_not_implemented(config, root));
    TRY(read_sizes(config, root));
    TRY(read_rope(&config->rope, root));
    TRY(read_window(config, root));
    TRY(read_positive(json_key(root, "rms_norm_eps"), 1e-6, 1, &config->norm_epsilon));
    TRY(read_positive(json_key(root, "initializer_range"), 0.02, 1, &config->initializer_range));
    config->qkv_bias = config->family == FAMILY_QWEN;
    return json_bool_or(json_key(root, "tie_word_embeddings"), false, &config->tied);
}

static enum status read_json(struct config *config, struct json *json)
{
    enum status status = read_root(config, json_root(json));
    json_free(json);
    return status;
}

enum status config_read(struct config *config, const char *path)
{
    memset(config, 0, sizeof *config);
    struct json *json;
    TRY(json_read(&json, path, JSON_SMALL));
    return read_json(config, json);
}

enum status config_parse(struct config *config, const char *name, const char *text)
{
    memset(config, 0, sizeof *config);
    struct json *json;
    TRY(json_parse(&json, name, text, strlen(text)));
    return read_json(config, json);
}

int64_t config_parameters(const struct config *config)
{
    int64_t query = config->heads * config->head_size, key = config->key_heads * config->head_size;
    int64_t attention = config->width * (2 * query + 2 * key) + (config->qkv_bias ? query + 2 * key : 0);
    int64_t layer = attention + 3 * config->width * config->hidden + 2 * config->width;
    return config->vocabulary * config->width * (config->tied ? 1 : 2) + config->layers * layer +
           config->width;
}
