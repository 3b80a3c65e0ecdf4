/* The whole model: packed and prefix-shared, in f32, against a transformer in double that sees one sequence
 * at a time; and its gradient against that one's derivatives. */
#include "runtime/head.h"
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_model.h"
#include "tests/unit/oracle_ops.h"

/* -- models and data -- */

enum { KINDS = 4, GROUPS = 5, PAIR = 2, COMPLETIONS = GROUPS * PAIR, VOCABULARY = 37 };

/* Llama with long-context scaling and heads wider than C / H; Mistral with a window; Qwen2 with biases and a
 * tied head; Llama with linear scaling, tied. */
static struct config config_of(int kind)
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
    return config;
}

/* Prompts and completions of odd lengths, some of one token. */
static const int64_t prompt_lengths[GROUPS] = {3, 1, 13, 7, 2};
static const int64_t completion_lengths[COMPLETIONS] = {5, 1, 1, 2, 7, 24, 4, 4, 1, 1};

struct text {
    struct groups groups;
    int32_t prompt[64], completion[128];
    int64_t prompt_offset[COMPLETIONS + 1], completion_offset[COMPLETIONS + 1], first[COMPLETIONS + 1];
    int64_t row[COMPLETIONS];
};

static void finish_text(struct text *text, int64_t groups, int64_t completions)
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

static void write_text(struct text *text)
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
static void write_separate(struct text *separate, const struct text *text)
{
    static int32_t prompts[256];
    memset(separate, 0, sizeof *separate);
    for (int s = 0; s < COMPLETIONS; s++) {
        int64_t from = text->prompt_offset[s / PAIR], count = text->prompt_offset[s / PAIR + 1] - from;
        memcpy(prompts + separate->prompt_offset[s], text->prompt + from, (size_t)count * sizeof *prompts);
        separate->prompt_offset[s + 1] = separate->prompt_offset[s] + count;
        separate->completion_offset[s + 1] = text->completion_offset[s + 1];
        separate->first[s + 1] = s + 1;
    }
    memcpy(separate->completion, text->completion, sizeof text->completion);
    finish_text(separate, COMPLETIONS, COMPLETIONS);
    separate->groups.prompt_tokens = prompts;
}

/* Parameters large enough that every part matters. */
static double *draw_parameters(struct lab *lab, const struct params *params)
{
    double *flat = lab_doubles(lab, params->total);
    for (int64_t p = 0; p < params->count; p++) {
        const struct parameter *parameter = &params->list[p];
        double size = parameter->vector ? 0.3 : parameter->rows == VOCABULARY ? 0.8 : 0.5;
        double *values = lab_randoms(lab, parameter->count, 200 + (unsigned long long)p, size);
        for (int64_t i = 0; i < parameter->count; i++)
            flat[parameter->offset + i] = lab_round(values[i] + (parameter->init == INIT_ONES ? 1 : 0));
    }
    return flat;
}

/* -- running the model -- */

struct rig {
    struct lab *lab;
    struct params params;
    struct config config;
    struct arena arena;
    struct batch batch;
    struct model model;
    struct head head;
};

static void rig_open(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
                     const struct groups *groups, const double *flat, size_t logits_bytes)
{
    struct batch_limits limits = batch_measure(groups, groups->group_count);
    memset(rig, 0, sizeof *rig);
    rig->lab = lab;
    rig->config = *config;
    params_layout(&rig->params, &rig->config);
    arena_open(&rig->arena, lab->ops, lab->device);
    batch_open(&rig->batch, &rig->arena, limits);
    model_open(&rig->model, &rig->arena, &rig->config, &rig->params, mode, limits);
    head_open(&rig->head, &rig->arena, &rig->model, limits, logits_bytes);
    REQUIRE(arena_place(&rig->arena) == STATUS_OK, "no room for a tiny model");
    model_prepare(&rig->model);
    float *values = calloc((size_t)rig->params.total, sizeof *values);
    for (int64_t i = 0; i < rig->params.total; i++)
        values[i] = (float)flat[i];
    lab->ops->upload(lab->device, rig->model.parameters, values, (size_t)rig->params.total * sizeof *values);
    lab->ops->sync(lab->device);
    free(values);
}

static void rig_close(struct rig *rig)
{
    model_close(&rig->model);
    batch_close(&rig->batch);
    arena_close(&rig->arena);
    params_free(&rig->params);
}

/* Which buckets were announced, and in which order. */
struct heard {
    int64_t bucket[16], count;
};

static void hear(void *context, int64_t bucket)
{
    struct heard *heard = context;
    if (heard->count < 16) heard->bucket[heard->count] = bucket;
    heard->count++;
}

struct outcome {
    struct completion_sums sums[COMPLETIONS];
    struct group_result results[COMPLETIONS];
    float *gradients; /* [total]; lives until lab_release */
};

static struct outcome rig_train(struct rig *rig, const struct groups *groups, const int64_t *members,
                                int64_t count, const struct objective *objective, const double *reference,
                                double scale)
{
    struct outcome outcome = {0};
    const struct ops *ops = rig->lab->ops;
    size_t bytes = (size_t)rig->params.total * sizeof(float);
    struct heard heard = {0};
    ops->zero(rig->lab->device, rig->model.gradients, bytes);
    batch_pack(&rig->batch, groups, members, count);
    struct tensor stream = model_forward(&rig->model, &rig->batch);
    head_train(&rig->head, &rig->batch, stream, objective, reference, scale, outcome.sums, outcome.results);
    model_backward(&rig->model, &rig->batch, (struct bucket_listener){hear, &heard});
    outcome.gradients = (float *)(void *)lab_doubles(rig->lab, rig->params.total);
    ops->download(rig->lab->device, outcome.gradients, rig->model.gradients, bytes);
    CHECK(heard.count == rig->config.layers + 1);
    for (int64_t i = 0; i < heard.count; i++) /* from the last layer down to the embedding */
        CHECK(heard.bucket[i] == rig->config.layers - i);
    return outcome;
}

static void rig_score(struct rig *rig, const struct groups *groups, const int64_t *members, int64_t count,
                      struct completion_sums *sums)
{
    batch_pack(&rig->batch, groups, members, count);
    head_score(&rig->head, &rig->batch, model_forward(&rig->model, &rig->batch), sums);
}

static const int64_t everyone[COMPLETIONS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

/* -- tolerances --
 *
 * A logit is the end of a chain of 4 + 11 L ops, each a sum of at most 40 terms, relative error (40+8) u of
 * the absolute terms; with L = 3 that is 37 * 48 u = 1.1e-4 of the logit's own size if all errors are as
 * large and as one-sided as they can be. They are not: a tenth of it is the bound per token, and of a
 * gradient the same, twice as long a chain, relative to the largest gradient of its tensor. */
static const double token_bound = 1.1e-5, gradient_bound = 2.2e-5;

static void six(double *values, const struct completion_sums *sums)
{
    memcpy(values,
           (double[]){sums->logp, sums->square, sums->maximum, sums->entropy, sums->logits, sums->hits},
           6 * sizeof *values);
}

/* Sums of completions, in the order of `index` (NULL: as they are), against others. */
static double sums_worst(const struct completion_sums *got, const struct completion_sums *want,
                         const int64_t *index, int64_t count)
{
    double worst = 0;
    for (int64_t s = 0; s < count; s++) {
        const struct completion_sums *other = &want[index ? index[s] : s];
        double a[6], b[6], bound[6];
        six(a, &got[s]);
        six(b, other);
        for (int i = 0; i < 6; i++)
            bound[i] = token_bound * (fabs(b[i]) + (double)other->count);
        worst = fmax(worst, lab_worst(a, b, bound, 6, NULL));
        if (got[s].count != other->count) worst = (double)INFINITY;
    }
    return worst;
}

static void oracle_sums(struct completion_sums *sums, const double *flat, const struct params *params,
                        const struct config *config, const struct text *text)
{
    for (int64_t s = 0; s < COMPLETIONS; s++) {
        int64_t prompt = text->prompt_offset[s / PAIR], completion = text->completion_offset[s];
        sums[s] = oracle_model_sums(flat, params, config, text->prompt + prompt,
                                    text->prompt_offset[s / PAIR + 1] - prompt, text->completion + completion,
                                    text->completion_offset[s + 1] - completion);
    }
}

/* -- gradients against derivatives -- */

struct model_loss {
    const double *flat, *reference;
    const struct params *params;
    const struct config *config;
    const struct text *text;
    const struct objective *objective; /* without weighting */
    double weight[GROUPS], scale;
};

/* The batch's loss at fixed weights: no gradient flows through them. */
static double model_loss(void *context)
{
    struct model_loss *l = context;
    struct completion_sums sums[COMPLETIONS];
    double loss = 0, unused[PAIR];
    oracle_sums(sums, l->flat, l->params, l->config, l->text);
    for (int64_t g = 0; g < GROUPS; g++)
        loss += l->scale * l->weight[g] *
                objective_group(l->objective, sums + g * PAIR, l->reference + g * PAIR, unused).loss;
    return loss;
}

/* Some elements of every tensor, the whole of none but the smallest: of matrices 6, of the embedding rows in
 * use. */
static void compare_gradients(const struct rig *rig, double *flat, struct model_loss *loss,
                              const float *gradients)
{
    unsigned long long state = 5;
    double all = 0, error = 0;
    for (int64_t p = 0; p < rig->params.count; p++) {
        const struct parameter *parameter = &rig->params.list[p];
        double largest = 0;
        for (int64_t i = 0; i < parameter->count; i++)
            largest = fmax(largest, fabs((double)gradients[parameter->offset + i]));
        CHECK(largest > 0);
        for (int sample = 0; sample < 8; sample++) {
            int64_t i = (int64_t)((check_uniform(&state) + 1) / 2 * (double)parameter->count);
            if (parameter->rows == VOCABULARY && sample < 4) /* a token that is in the text */
                i = loss->text->completion[sample * 5] * parameter->cols + i % parameter->cols;
            double slope = oracle_derivative(model_loss, loss, &flat[parameter->offset + i]);
            double got = (double)gradients[parameter->offset + i];
            all += slope * slope;
            error += (got - slope) * (got - slope);
            if (!(fabs(got - slope) <= gradient_bound * largest))
                fprintf(stderr, "%s[%lld]: the next failure\n", parameter->name, (long long)i);
            CHECK_NEAR(got, slope, gradient_bound * largest);
        }
    }
    printf("  gradients: relative error %.2g\n", sqrt(error / all));
}

static void gaps_are_zero(const struct rig *rig, const float *gradients)
{
    int64_t next = 0;
    for (int64_t p = 0; p < rig->params.count; p++) {
        for (; next < rig->params.list[p].offset; next++)
            CHECK(gradients[next] == 0);
        next += rig->params.list[p].count;
    }
    for (; next < rig->params.total; next++)
        CHECK(gradients[next] == 0);
}

/* Difference of two gradients, as a multiple of the bound, tensor by tensor. */
static double gradients_worst(const struct rig *rig, const float *got, const float *want)
{
    double worst = 0;
    for (int64_t p = 0; p < rig->params.count; p++) {
        const struct parameter *parameter = &rig->params.list[p];
        double largest = 0, difference = 0;
        for (int64_t i = parameter->offset; i < parameter->offset + parameter->count; i++) {
            largest = fmax(largest, fabs((double)want[i]));
            difference = fmax(difference, fabs((double)got[i] - (double)want[i]));
        }
        worst = fmax(worst, difference > 0 ? difference / (gradient_bound * largest) : 0);
    }
    return worst;
}

/* -- the cases -- */

struct study {
    struct lab *lab;
    struct config config;
    struct text text, separate;
    double *flat, reference[COMPLETIONS];
    struct objective objective;
    struct rig rig;       /* MODEL_TRAIN, all logits at once */
    struct outcome whole; /* one batch of all groups */
    struct completion_sums truth[COMPLETIONS];
};

static const double loss_scale = 1.0 / GROUPS;

static void against_oracle(struct study *s)
{
    oracle_sums(s->truth, s->flat, &s->rig.params, &s->config, &s->text);
    double ratio = sums_worst(s->whole.sums, s->truth, NULL, COMPLETIONS);
    printf("  sums: %.2g of the bound\n", ratio);
    CHECK(ratio <= 1);
    struct objective plain = s->objective;
    plain.weighting = WEIGHTING_NONE;
    struct model_loss loss = {s->flat, s->reference, &s->rig.params, &s->config, &s->text,
                              &plain,  {0},          loss_scale};
    for (int g = 0; g < GROUPS; g++) {
        double unused[PAIR];
        struct group_result r = objective_group(&s->objective, s->truth + (int64_t)g * PAIR,
                                                s->reference + (int64_t)g * PAIR, unused);
        loss.weight[g] = r.weight;
        CHECK_NEAR(s->whole.results[g].weight, r.weight, 4 * token_bound * r.weight);
        CHECK_NEAR(s->whole.results[g].loss, r.loss, 200 * token_bound * (1 + r.loss));
    }
    compare_gradients(&s->rig, s->flat, &loss, s->whole.gradients);
    gaps_are_zero(&s->rig, s->whole.gradients);
}

/* Negative controls: other models whose sums must not be taken for these. */
static void against_wrong_models(struct study *s)
{
    struct completion_sums wrong[COMPLETIONS];
    struct config other = s->config;
    other.rope = (struct rope){.type = ROPE_DEFAULT, .theta = s->config.rope.theta * 1.1, .factor = 1};
    oracle_sums(wrong, s->flat, &s->rig.params, &other, &s->text);
    CHECK(sums_worst(s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
    other = s->config;
    other.window = s->config.window ? s->config.window + 1 : 6;
    oracle_sums(wrong, s->flat, &s->rig.params, &other, &s->text);
    CHECK(sums_worst(s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
    struct text shorter = s->text; /* completions that follow nothing but the prompt's last token */
    for (int64_t i = 0; i + 1 < s->text.prompt_offset[GROUPS]; i++)
        shorter.prompt[i] = (shorter.prompt[i] + 1) % VOCABULARY;
    oracle_sums(wrong, s->flat, &s->rig.params, &s->config, &shorter);
    CHECK(sums_worst(s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
}

/* The same log-probabilities and gradients from other packings of the same sequences. */
static void against_other_packings(struct study *s)
{
    static const int64_t backward[GROUPS] = {4, 3, 2, 1, 0};
    static const int64_t backward_completions[COMPLETIONS] = {8, 9, 6, 7, 4, 5, 2, 3, 0, 1};
    double reference[COMPLETIONS];
    for (int i = 0; i < COMPLETIONS; i++)
        reference[i] = s->reference[backward_completions[i]];
    struct outcome turned =
        rig_train(&s->rig, &s->text.groups, backward, GROUPS, &s->objective, reference, loss_scale);
    CHECK(sums_worst(turned.sums, s->whole.sums, backward_completions, COMPLETIONS) <= 1);
    CHECK(gradients_worst(&s->rig, turned.gradients, s->whole.gradients) <= 1);

    int64_t total = s->rig.params.total; /* one group at a time: the gradients add up */
    float *sum = (float *)(void *)lab_doubles(s->lab, total), *first = NULL;
    for (int64_t g = 0; g < GROUPS; g++) {
        struct outcome alone =
            rig_train(&s->rig, &s->text.groups, &g, 1, &s->objective, s->reference + g * PAIR, loss_scale);
        int64_t pair[PAIR] = {g * PAIR, g * PAIR + 1};
        CHECK(sums_worst(alone.sums, s->whole.sums, pair, PAIR) <= 1);
        for (int64_t i = 0; i < total; i++)
            sum[i] += alone.gradients[i];
        if (g == 0) first = alone.gradients;
    }
    CHECK(gradients_worst(&s->rig, sum, s->whole.gradients) <= 1);
    CHECK(gradients_worst(&s->rig, first, s->whole.gradients) > 1); /* one group is not the sum */

    struct rig apart; /* every completion with its own copy of the prompt */
    struct completion_sums sums[COMPLETIONS];
    rig_open(&apart, s->lab, &s->config, MODEL_SCORE, &s->separate.groups, s->flat, 1 << 20);
    rig_score(&apart, &s->separate.groups, everyone, COMPLETIONS, sums);
    CHECK(sums_worst(sums, s->whole.sums, NULL, COMPLETIONS) <= 1);
    for (int64_t c = 0; c < COMPLETIONS; c++) { /* and all by itself */
        rig_score(&apart, &s->separate.groups, &c, 1, sums);
        CHECK(sums_worst(sums, s->whole.sums, &c, 1) <= 1);
    }
    rig_close(&apart);
}

/* The gradient of sft over separate sequences is that over shared prompts, where the coefficients are the
 * same. */
static void shared_gradients(struct study *s)
{
    struct objective sft = {.loss_type = LOSS_SFT};
    struct rig rig;
    rig_open(&rig, s->lab, &s->config, MODEL_TRAIN, &s->separate.groups, s->flat, 1 << 20);
    struct outcome apart = rig_train(&rig, &s->separate.groups, everyone, COMPLETIONS, &sft, NULL, 0.25);
    /* A pair at margin 0 has coefficients -beta/2 and beta/2: chosen minus rejected, from the two halves. */
    double at[COMPLETIONS];
    for (int c = 0; c < COMPLETIONS; c++)
        at[c] = s->whole.sums[c].logp;
    struct objective pair = {.loss_type = LOSS_SIGMOID, .beta = 0.5};
    struct outcome shared = rig_train(&s->rig, &s->text.groups, everyone, GROUPS, &pair, at, 1);
    static const int64_t halves[2][GROUPS] = {{0, 2, 4, 6, 8}, {1, 3, 5, 7, 9}};
    float *difference = (float *)(void *)lab_doubles(s->lab, rig.params.total);
    double largest = 0;
    for (int h = 0; h < 2; h++) {
        struct outcome half = rig_train(&rig, &s->separate.groups, halves[h], GROUPS, &sft, NULL, 0.25);
        for (int64_t i = 0; i < rig.params.total; i++) {
            difference[i] += h ? -half.gradients[i] : half.gradients[i];
            largest = fmax(largest, fabs((double)half.gradients[i]));
        }
    }
    for (int64_t i = 0; i < rig.params.total;
         i++) /* the halves may cancel: their size is what roundings refer to */
        if (fabs((double)shared.gradients[i] - (double)difference[i]) > 2 * gradient_bound * largest) {
            CHECK_NEAR(shared.gradients[i], difference[i], 2 * gradient_bound * largest);
            break;
        }
    CHECK(gradients_worst(&rig, apart.gradients, difference) > 1);
    for (int g = 0; g < GROUPS; g++) /* margin exactly 0: the same kernels on the same batch */
        CHECK_NEAR(shared.results[g].loss, log(2), 2e-16);
    rig_close(&rig);
}

/* Recomputation, scoring and pieces of logits. */
static void against_other_modes(struct study *s)
{
    struct rig rig;
    size_t bytes = (size_t)s->rig.params.total * sizeof(float);
    rig_open(&rig, s->lab, &s->config, MODEL_RECOMPUTE, &s->text.groups, s->flat, 1 << 20);
    struct outcome again =
        rig_train(&rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    CHECK(memcmp(again.gradients, s->whole.gradients, bytes) == 0); /* the same bits */
    CHECK(memcmp(again.sums, s->whole.sums, sizeof again.sums) == 0);
    again = rig_train(&rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    CHECK(memcmp(again.gradients, s->whole.gradients, bytes) == 0); /* twice */
    rig_close(&rig);

    struct completion_sums sums[COMPLETIONS];
    rig_open(&rig, s->lab, &s->config, MODEL_SCORE, &s->text.groups, s->flat, 1 << 20);
    rig_score(&rig, &s->text.groups, everyone, GROUPS, sums);
    CHECK(memcmp(sums, s->whole.sums, sizeof sums) == 0); /* so the margin at step 0 is exactly 0 */
    rig_close(&rig);

    /* Room for 16 rows of logits; one group has 31. */
    rig_open(&rig, s->lab, &s->config, MODEL_TRAIN, &s->text.groups, s->flat, 1);
    CHECK(rig.head.chunk == 16);
    again = rig_train(&rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    CHECK(sums_worst(again.sums, s->whole.sums, NULL, COMPLETIONS) <= 1);
    CHECK(gradients_worst(&rig, again.gradients, s->whole.gradients) <= 1);
    struct completion_sums pieces[COMPLETIONS];
    rig_score(&rig, &s->text.groups, everyone, GROUPS, pieces);
    CHECK(memcmp(pieces, again.sums, sizeof pieces) == 0);
    rig_close(&rig);
}

static void frequencies(const struct config *config)
{
    double got[8], want[8], bound[8];
    int64_t half = config->head_size / 2;
    model_rope_frequencies(config, got);
    for (int64_t i = 0; i < half; i++) {
        want[i] = oracle_model_frequency(config, i);
        bound[i] = 1e-14 * want[i];
    }
    LAB_CLOSE(got, want, bound, half);
}

static void study_kind(struct lab *lab, int kind)
{
    static struct study study;
    struct study *s = &study;
    memset(s, 0, sizeof *s);
    s->lab = lab;
    s->config = config_of(kind);
    s->objective = (struct objective){LOSS_SIGMOID, WEIGHTING_SAMPLED, WEIGHT_BOTH, true, 0.3, 0.1};
    write_text(&s->text);
    write_separate(&s->separate, &s->text);
    frequencies(&s->config);
    struct params params;
    params_layout(&params, &s->config);
    s->flat = draw_parameters(lab, &params);
    params_free(&params);
    unsigned long long state = 9;
    for (int64_t c = 0; c < COMPLETIONS; c++) /* somewhere near, so that margins are not 0 */
        s->reference[c] = -3.5 * (double)completion_lengths[c] + 2 * check_uniform(&state);
    rig_open(&s->rig, lab, &s->config, MODEL_TRAIN, &s->text.groups, s->flat, 1 << 20);
    s->whole = rig_train(&s->rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    lab_note(lab, "sums", s->whole.sums, sizeof s->whole.sums);
    lab_note(lab, "results", s->whole.results, sizeof s->whole.results);
    lab_note(lab, "gradients", s->whole.gradients, (size_t)s->rig.params.total * sizeof(float));
    against_other_modes(s);
    if (lab->first) {
        printf("model %d (%s)\n", kind, family_name(s->config.family));
        against_oracle(s);
        against_wrong_models(s);
        against_other_packings(s);
        shared_gradients(s);
    }
    rig_close(&s->rig);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    for (int kind = 0; kind < KINDS; kind++)
        study_kind(lab, kind);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
