#include "tests/unit/oracle_rig.h"

struct config rig_config(const struct lab *lab, int kind)
{
    struct config config = {.family = FAMILY_LLAMA,
                            .width = 18,
                            .layers = 2,
                            .heads = 6,
                            .key_heads = 2,
                            .head_size = 4,
                            .hidden = 13,
                            .vocabulary = VOCABULARY,
                            .positions = 128,
                            .norm_epsilon = 1e-5,
                            .initializer_range = 0.3,
                            .rope = {.type = ROPE_DEFAULT, .theta = 100, .factor = 1}};
    if (kind == 0) config.rope = (struct rope){ROPE_LLAMA, 1000, 8, 1, 4, 16};
    if (kind == 1) {
        config.family = FAMILY_MISTRAL;
        config.window = 5;
        config.head_size = 8;
    }
    if (kind == 2) {
        config.family = FAMILY_QWEN;
        config.heads = config.key_heads = 3;
        config.head_size = 6;
        config.tied = config.qkv_bias = true;
        config.norm_epsilon = 1e-6;
    }
    if (kind == 3) {
        config.layers = 3;
        config.key_heads = 1;
        config.tied = true;
        config.rope.type = ROPE_LINEAR;
        config.rope.factor = 3;
    }
    int64_t multiple = lab->ops->head_multiple;
    if (multiple) config.head_size = (config.head_size + multiple - 1) / multiple * multiple;
    return config;
}

/* Prompts and completions of odd lengths, some of one token. */
static const int64_t prompt_lengths[GROUPS] = {3, 1, 13, 7, 2};
static const int64_t completion_lengths[COMPLETIONS] = {5, 1, 1, 2, 7, 24, 4, 4, 1, 1};

static void finish_text(struct rig_text *text, int64_t groups, int64_t completions)
{
    text->groups = (struct groups){.group_count = groups,
                                   .completion_count = completions,
                                   .prompt_tokens = text->prompt,
                                   .prompt_offset = text->prompt_offset,
                                   .completion_tokens = text->completion,
                                   .completion_offset = text->completion_offset,
                                   .first = text->first,
                                   .row = text->row,
                                   .vocabulary = VOCABULARY,
                                   .max_length = 64};
}

void rig_text(struct rig_text *text)
{
    unsigned long long state = 77;
    memset(text, 0, sizeof *text);
    for (int g = 0; g < GROUPS; g++) {
        text->prompt_offset[g + 1] = text->prompt_offset[g] + prompt_lengths[g];
        text->first[g + 1] = (int64_t)(g + 1) * PAIR;
    }
    for (int s = 0; s < COMPLETIONS; s++)
        text->completion_offset[s + 1] = text->completion_offset[s] + completion_lengths[s];
    for (int64_t i = 0; i < text->prompt_offset[GROUPS]; i++)
        text->prompt[i] = (int32_t)((check_uniform(&state) + 1) / 2 * VOCABULARY);
    for (int64_t i = 0; i < text->completion_offset[COMPLETIONS]; i++)
        text->completion[i] = (int32_t)((check_uniform(&state) + 1) / 2 * VOCABULARY);
    finish_text(text, GROUPS, COMPLETIONS);
}

/* The same completions, each with a copy of its prompt: nothing is shared. Group s holds completion s. */
void rig_text_separate(struct rig_text *separate, const struct rig_text *text)
{
    memset(separate, 0, sizeof *separate);
    for (int s = 0; s < COMPLETIONS; s++) {
        int64_t from = text->prompt_offset[s / PAIR], count = text->prompt_offset[s / PAIR + 1] - from;
        memcpy(separate->prompt + separate->prompt_offset[s], text->prompt + from,
               (size_t)count * sizeof *text->prompt);
        separate->prompt_offset[s + 1] = separate->prompt_offset[s] + count;
        separate->completion_offset[s + 1] = text->completion_offset[s + 1];
        separate->first[s + 1] = s + 1;
    }
    memcpy(separate->completion, text->completion, sizeof text->completion);
    finish_text(separate, COMPLETIONS, COMPLETIONS);
}

/* Parameters large enough that every part matters. */
double *rig_parameters(struct lab *lab, const struct params *params)
{
    double *flat = lab_doubles(lab, params->total);
    for (int64_t p = 0; p < params->count; p++) {
        const struct parameter *parameter = &params->list[p];
        double size = parameter->vector ? 0.3 : parameter->rows == VOCABULARY ? 0.8 : 0.5;
        double *values = lab_randoms(lab, parameter->count, 200 + (unsigned long long)p, size);
        for (int64_t i = 0; i < parameter->count; i++)
            flat[parameter->offset + i] =
                lab_round_to(lab->type, values[i] + (parameter->init == INIT_ONES ? 1 : 0));
    }
    return flat;
}

void rig_reference(double reference[COMPLETIONS])
{
    unsigned long long state = 9;
    for (int64_t c = 0; c < COMPLETIONS; c++)
        reference[c] = -3.5 * (double)completion_lengths[c] + 2 * check_uniform(&state);
}

/* -- running the model ------------------------------------------------------------------------ */

static void open_rig(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
                     struct batch_limits limits, const double *flat, size_t logits_bytes)
{
    memset(rig, 0, sizeof *rig);
    rig->lab = lab;
    rig->config = *config;
    params_layout(&rig->params, &rig->config);
    arena_open(&rig->arena, lab->ops, lab->device);
    batch_open(&rig->batch, &rig->arena, limits);
    struct precision precision = {lab->type, DTYPE_FLOAT};
    model_open(&rig->model, &rig->arena, &rig->config, &rig->params, precision, mode, limits);
    head_open(&rig->head, &rig->arena, &rig->model, limits, logits_bytes);
    REQUIRE(arena_place(&rig->arena) == STATUS_OK, "no room for a tiny model");
    model_prepare(&rig->model);
    float *values = calloc((size_t)rig->params.total, sizeof *values);
    for (int64_t i = 0; i < rig->params.total; i++)
        values[i] = (float)flat[i];
    model_put(&rig->model, values);
    lab->ops->sync(lab->device);
    free(values);
}

void rig_open(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
              const struct groups *groups, const double *flat, size_t logits_bytes)
{
    open_rig(rig, lab, config, mode, batch_measure(groups, groups->group_count, false), flat, logits_bytes);
}

void rig_open_prompts(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
                      const struct groups *groups, const double *flat, size_t logits_bytes)
{
    open_rig(rig, lab, config, mode, batch_measure(groups, groups->group_count, true), flat, logits_bytes);
}

void rig_close(struct rig *rig)
{
    model_close(&rig->model);
    batch_close(&rig->batch);
    arena_close(&rig->arena);
    params_free(&rig->params);
}

static void hear(void *context, int64_t bucket)
{
    struct rig_outcome *outcome = context;
    if (outcome->bucket_count < 16) outcome->bucket[outcome->bucket_count] = bucket;
    outcome->bucket_count++;
}

static struct batch_facts facts_of(double scale)
{
    return (struct batch_facts){.group_scale = scale, .token_scale = scale, .class_weight = {1, 1}};
}

struct group_result rig_objective(const struct objective *objective, const struct completion_sums *sums,
                                  const double *reference, double scale, bool prompt)
{
    struct batch_facts facts = facts_of(scale);
    struct completion_data data[PAIR] = {{.reference = reference ? reference[0] : 0},
                                         {.reference = reference ? reference[1] : 0}};
    struct completion_view view[PAIR];
    struct token_coefficient unused[PAIR + 1];
    return objective_group(objective, &facts, sums, data, prompt ? sums + PAIR : NULL, PAIR, view, unused);
}

struct rig_outcome rig_train(struct rig *rig, const struct groups *groups, const int64_t *members,
                             int64_t count, const struct objective *objective, const double *reference,
                             double scale)
{
    struct rig_outcome outcome = {0};
    struct batch_facts facts = facts_of(scale);
    struct completion_data data[SEGMENTS] = {{0}};
    const struct ops *ops = rig->lab->ops;
    size_t bytes = (size_t)rig->params.total * sizeof(float);
    ops->zero(rig->lab->device, rig->model.gradients, bytes);
    batch_pack(&rig->batch, groups, members, count);
    struct tensor stream = model_forward(&rig->model, &rig->batch);
    head_begin(&rig->head);
    for (int64_t s = 0, at = 0; s < rig->batch.completions && reference; s++)
        if (rig->batch.completion[s] >= 0) data[s].reference = reference[at++];
    head_train(&rig->head, &rig->batch, stream, objective, &facts, data);
    model_backward(&rig->model, &rig->batch, (struct bucket_listener){hear, &outcome});
    head_take(&rig->head, outcome.sums, outcome.results);
    outcome.gradients = (float *)(void *)lab_doubles(rig->lab, rig->params.total);
    ops->download(rig->lab->device, outcome.gradients, rig->model.gradients, bytes);
    return outcome;
}

void rig_score(struct rig *rig, const struct groups *groups, const int64_t *members, int64_t count,
               struct completion_sums *sums)
{
    batch_pack(&rig->batch, groups, members, count);
    head_score(&rig->head, &rig->batch, model_forward(&rig->model, &rig->batch), sums);
}

/* -- tolerances --
 *
 * f32: a logit is the end of a chain of 4 + 11 L ops, each a sum of at most 40 terms, relative error (40+8) u
 * of the absolute terms; with L = 3 that is 37 * 48 u = 1.1e-4 of the logit's own size if all errors are as
 * large and as one-sided as they can be. They are not: a tenth of it is the bound per token, and of a
 * gradient the same, twice as long a chain, relative to the largest gradient of its tensor.
 *
 * bf16: each of the 37 ops rounds its result once, by at most w = 2^-8 and w / sqrt 3 as a rule,
 * independently: sqrt(37) w / sqrt 3 = 1.4 % of a logit, and three times that as the bound per token. The
 * gradient's chain is twice as long, sqrt 2, and it is multiplied by a coefficient that inherits the relative
 * error of the weight (the token's) and that of the margin: 0.3 sqrt(24 tokens) of a token's, half of which
 * is sigmoid's slope. 1.4 + 1 + 0.7 = 3.1 times the bound of a token. */
double rig_token_bound(const struct lab *lab)
{
    return lab->type == DTYPE_FLOAT ? 1.1e-5 : 0.041;
}

double rig_gradient_bound(const struct lab *lab)
{
    return lab->type == DTYPE_FLOAT ? 2.2e-5 : 0.13;
}

static void six(double *values, const struct completion_sums *sums)
{
    memcpy(values,
           (double[]){sums->logp, sums->square, sums->maximum, sums->entropy, sums->logits, sums->hits},
           6 * sizeof *values);
}

double rig_sums_worst(const struct lab *lab, const struct completion_sums *got,
                      const struct completion_sums *want, const int64_t *index, int64_t count)
{
    double worst = 0;
    for (int64_t s = 0; s < count; s++) {
        const struct completion_sums *other = &want[index ? index[s] : s];
        double a[6], b[6], bound[6];
        six(a, &got[s]);
        six(b, other);
        for (int i = 0; i < 6; i++)
            bound[i] = rig_token_bound(lab) * (fabs(b[i]) + (double)other->count);
        /* Whether a token is the likeliest is a question of near ties, which bf16 may answer otherwise. */
        if (lab->type != DTYPE_FLOAT) bound[5] = 1 + (double)other->count / 10;
        worst = fmax(worst, lab_worst(a, b, bound, 6, NULL));
        if (got[s].count != other->count) worst = (double)INFINITY;
    }
    return worst;
}

void rig_truth(struct completion_sums *sums, const double *flat, const struct params *params,
               const struct config *config, const struct rig_text *text)
{
    for (int64_t s = 0; s < COMPLETIONS; s++) {
        int64_t prompt = text->prompt_offset[s / PAIR], completion = text->completion_offset[s];
        sums[s] = oracle_model_sums(flat, params, config, text->prompt + prompt,
                                    text->prompt_offset[s / PAIR + 1] - prompt, text->completion + completion,
                                    text->completion_offset[s + 1] - completion);
    }
}

void rig_truth_prompts(struct completion_sums sums[SEGMENTS], const double *flat, const struct params *params,
                       const struct config *config, const struct rig_text *text)
{
    struct completion_sums completions[COMPLETIONS];
    rig_truth(completions, flat, params, config, text);
    for (int64_t g = 0; g < GROUPS; g++) {
        const int32_t *prompt = text->prompt + text->prompt_offset[g];
        int64_t length = text->prompt_offset[g + 1] - text->prompt_offset[g];
        struct completion_sums *of = sums + g * (PAIR + 1), *pair = completions + g * PAIR;
        int64_t shorter = pair[0].count < pair[1].count ? pair[0].count : pair[1].count;
        for (int64_t i = 0; i < PAIR; i++) {
            const int32_t *completion = text->completion + text->completion_offset[g * PAIR + i];
            of[i] = pair[i];
            of[i].leading = pair[i].logp;
            if (shorter == pair[i].count) continue;
            of[i].leading = oracle_model_sums(flat, params, config, prompt, length, completion, shorter).logp;
        }
        of[PAIR] = (struct completion_sums){0};
        if (length > 1) of[PAIR] = oracle_model_sums(flat, params, config, prompt, 1, prompt + 1, length - 1);
    }
}

/* Difference of two gradients, as a multiple of the bound, tensor by tensor. */
double rig_gradients_worst(const struct rig *rig, const float *got, const float *want)
{
    double worst = 0;
    for (int64_t p = 0; p < rig->params.count; p++) {
        const struct parameter *parameter = &rig->params.list[p];
        double largest = 0, difference = 0;
        for (int64_t i = parameter->offset; i < parameter->offset + parameter->count; i++) {
            largest = fmax(largest, fabs((double)want[i]));
            difference = fmax(difference, fabs((double)got[i] - (double)want[i]));
        }
        worst = fmax(worst, difference > 0 ? difference / (rig_gradient_bound(rig->lab) * largest) : 0);
    }
    return worst;
}
