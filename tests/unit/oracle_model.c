#include "tests/unit/oracle_model.h"

#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

/* rope_type "llama3" as Meta's reference has it: by wavelength, in three cases. */
double oracle_model_frequency(const struct config *config, int64_t pair)
{
    const struct rope *rope = &config->rope;
    double plain = 1 / pow(rope->theta, 2 * (double)pair / (double)config->head_size);
    if (rope->type == ROPE_DEFAULT) return plain;
    if (rope->type == ROPE_LINEAR) return plain / rope->factor;
    double wavelength = 2 * acos(-1) / plain, original = (double)rope->original_positions;
    if (wavelength < original / rope->high_frequency_factor) return plain;
    if (wavelength > original / rope->low_frequency_factor) return plain / rope->factor;
    double smooth = (original / wavelength - rope->low_frequency_factor) /
                    (rope->high_frequency_factor - rope->low_frequency_factor);
    return (1 - smooth) * plain / rope->factor + smooth * plain;
}

/* What one sequence is computed with. */
struct pass {
    const double *flat;
    const struct params *params;
    const struct config *config;
    int64_t rows;
};

static const double *parameter_of(const struct pass *pass, int64_t layer, const char *name)
{
    char full[160];
    if (layer >= 0)
        snprintf(full, sizeof full, "model.layers.%lld.%s", (long long)layer, name);
    else
        snprintf(full, sizeof full, "%s", name);
    const struct parameter *parameter = params_find(pass->params, full);
    return parameter ? pass->flat + parameter->offset : NULL;
}

static double *room(int64_t count)
{
    double *values = calloc((size_t)count, sizeof *values);
    REQUIRE(values, "the test has no memory");
    return values;
}

/* y (out) [rows, out] = x w^T + bias. */
static void linear(const struct pass *pass, double *y, const double *x, int64_t in, int64_t out,
                   const double *weight, const double *bias)
{
    for (int64_t n = 0; n < pass->rows; n++)
        for (int64_t o = 0; o < out; o++) {
            double sum = bias ? bias[o] : 0;
            for (int64_t i = 0; i < in; i++)
                sum += x[n * in + i] * weight[o * in + i];
            y[n * out + o] = sum;
        }
}

static void rotate(const struct pass *pass, double *x, int64_t heads)
{
    int64_t size = pass->config->head_size, half = size / 2;
    for (int64_t n = 0; n < pass->rows; n++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t j = 0; j < half; j++) {
                double angle = (double)n * oracle_model_frequency(pass->config, j);
                double *a = x + (n * heads + h) * size + j, *b = a + half, first = *a, second = *b;
                *a = first * cos(angle) - second * sin(angle);
                *b = second * cos(angle) + first * sin(angle);
            }
}

/* o (out) [rows, H D]: causal, with the window. */
static void attend(const struct pass *pass, double *o, const double *q, const double *k, const double *v)
{
    const struct config *c = pass->config;
    int64_t size = c->head_size, share = c->heads / c->key_heads;
    double p[512];
    for (int64_t n = 0; n < pass->rows; n++)
        for (int64_t h = 0; h < c->heads; h++) {
            int64_t first = c->window && n - c->window + 1 > 0 ? n - c->window + 1 : 0;
            double sum = 0;
            for (int64_t t = first; t <= n; t++) {
                double score = 0;
                for (int64_t d = 0; d < size; d++)
                    score += q[(n * c->heads + h) * size + d] * k[(t * c->key_heads + h / share) * size + d];
                p[t] = exp(score / sqrt((double)size)); /* scores here are small: no maximum needed */
                sum += p[t];
            }
            for (int64_t d = 0; d < size; d++) {
                double value = 0;
                for (int64_t t = first; t <= n; t++)
                    value += p[t] / sum * v[(t * c->key_heads + h / share) * size + d];
                o[(n * c->heads + h) * size + d] = value;
            }
        }
}

/* x (inout) [rows, C]. */
static void attention_branch(const struct pass *pass, double *x, int64_t layer)
{
    const struct config *c = pass->config;
    int64_t rows = pass->rows, wide = c->heads * c->head_size, narrow = c->key_heads * c->head_size;
    double *norm = room(rows * c->width), *q = room(rows * wide), *k = room(rows * narrow),
           *v = room(rows * narrow);
    double *o = room(rows * wide);
    oracle_rmsnorm(norm, NULL, x, NULL, parameter_of(pass, layer, "input_layernorm.weight"), rows, c->width,
                   c->norm_epsilon);
    linear(pass, q, norm, c->width, wide, parameter_of(pass, layer, "self_attn.q_proj.weight"),
           parameter_of(pass, layer, "self_attn.q_proj.bias"));
    linear(pass, k, norm, c->width, narrow, parameter_of(pass, layer, "self_attn.k_proj.weight"),
           parameter_of(pass, layer, "self_attn.k_proj.bias"));
    linear(pass, v, norm, c->width, narrow, parameter_of(pass, layer, "self_attn.v_proj.weight"),
           parameter_of(pass, layer, "self_attn.v_proj.bias"));
    rotate(pass, q, c->heads);
    rotate(pass, k, c->key_heads);
    attend(pass, o, q, k, v);
    linear(pass, norm, o, wide, c->width, parameter_of(pass, layer, "self_attn.o_proj.weight"), NULL);
    for (int64_t i = 0; i < rows * c->width; i++)
        x[i] += norm[i];
    free(norm);
    free(q);
    free(k);
    free(v);
    free(o);
}

static void mlp_branch(const struct pass *pass, double *x, int64_t layer)
{
    const struct config *c = pass->config;
    int64_t rows = pass->rows;
    double *norm = room(rows * c->width), *gate = room(rows * c->hidden), *up = room(rows * c->hidden);
    oracle_rmsnorm(norm, NULL, x, NULL, parameter_of(pass, layer, "post_attention_layernorm.weight"), rows,
                   c->width, c->norm_epsilon);
    linear(pass, gate, norm, c->width, c->hidden, parameter_of(pass, layer, "mlp.gate_proj.weight"), NULL);
    linear(pass, up, norm, c->width, c->hidden, parameter_of(pass, layer, "mlp.up_proj.weight"), NULL);
    for (int64_t i = 0; i < rows * c->hidden; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    linear(pass, norm, gate, c->hidden, c->width, parameter_of(pass, layer, "mlp.down_proj.weight"), NULL);
    for (int64_t i = 0; i < rows * c->width; i++)
        x[i] += norm[i];
    free(norm);
    free(gate);
    free(up);
}

static struct completion_sums add_up(const double *logits, const int64_t *target, int64_t count,
                                     int64_t vocabulary)
{
    double *statistics = room(count * HEAD_STATISTICS);
    struct completion_sums sums = {.count = count};
    oracle_head_statistics(statistics, NULL, logits, target, count, vocabulary);
    for (int64_t t = 0; t < count; t++) {
        const double *s = statistics + t * HEAD_STATISTICS;
        sums.logp += s[HEAD_LOGP];
        sums.square += s[HEAD_LOG_SQUARE];
        sums.maximum -= s[HEAD_LOG_SUM];
        sums.entropy += s[HEAD_ENTROPY];
        sums.logits += s[HEAD_MEAN];
        sums.hits += s[HEAD_HIT];
    }
    free(statistics);
    return sums;
}

struct completion_sums oracle_model_sums(const double *flat, const struct params *params,
                                         const struct config *config, const int32_t *prompt,
                                         int64_t prompt_count, const int32_t *completion, int64_t count)
{
    struct pass pass = {flat, params, config, prompt_count + count - 1};
    int64_t width = config->width, vocabulary = config->vocabulary, target[256];
    REQUIRE(pass.rows <= 512 && count <= 256, "too long for this oracle");
    const double *embedding = parameter_of(&pass, -1, "model.embed_tokens.weight");
    double *x = room(pass.rows * width), *norm = room(pass.rows * width),
           *logits = room(pass.rows * vocabulary);
    for (int64_t n = 0; n < pass.rows; n++) {
        int32_t token = n < prompt_count ? prompt[n] : completion[n - prompt_count];
        memcpy(x + n * width, embedding + token * width, (size_t)width * sizeof *x);
    }
    for (int64_t layer = 0; layer < config->layers; layer++) {
        attention_branch(&pass, x, layer);
        mlp_branch(&pass, x, layer);
    }
    oracle_rmsnorm(norm, NULL, x, NULL, parameter_of(&pass, -1, "model.norm.weight"), pass.rows, width,
                   config->norm_epsilon);
    linear(&pass, logits, norm, width, vocabulary,
           config->tied ? embedding : parameter_of(&pass, -1, "lm_head.weight"), NULL);
    for (int64_t t = 0; t < count; t++)
        target[t] = completion[t];
    struct completion_sums sums = add_up(logits + (prompt_count - 1) * vocabulary, target, count, vocabulary);
    free(x);
    free(norm);
    free(logits);
    return sums;
}
