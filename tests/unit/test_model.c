/* The whole model: packed and prefix-shared, in f32, against a transformer in double that sees one sequence
 * at a time; and its gradient against that one's derivatives. */
#include "tests/unit/oracle_ops.h"
#include "tests/unit/oracle_rig.h"

static const int64_t everyone[COMPLETIONS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

/* -- gradients against derivatives ------------------------------------------------------------ */

struct model_loss {
    const double *flat, *reference;
    const struct params *params;
    const struct config *config;
    const struct rig_text *text;
    const struct objective *objective; /* without weighting */
    double weight[GROUPS], scale;
    bool prompts; /* scored, and leading tokens told apart */
};

/* The batch's loss at fixed weights: no gradient flows through them. */
static double model_loss(void *context)
{
    struct model_loss *l = context;
    struct completion_sums sums[SEGMENTS];
    double loss = 0;
    if (l->prompts)
        rig_truth_prompts(sums, l->flat, l->params, l->config, l->text);
    else
        rig_truth(sums, l->flat, l->params, l->config, l->text);
    for (int64_t g = 0; g < GROUPS; g++) {
        struct group_result r = rig_objective(l->objective, sums + g * (PAIR + l->prompts),
                                              l->reference + g * PAIR, l->scale, l->prompts);
        loss += l->scale * (l->weight[g] * r.loss + r.likelihood);
    }
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
            if (!(fabs(got - slope) <= rig_gradient_bound(rig->lab) * largest))
                fprintf(stderr, "%s[%lld]: the next failure\n", parameter->name, (long long)i);
            CHECK_NEAR(got, slope, rig_gradient_bound(rig->lab) * largest);
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

struct study {
    struct lab *lab;
    struct config config;
    struct rig_text text;
    double *flat, reference[COMPLETIONS];
    struct objective objective;
    struct rig rig;           /* MODEL_TRAIN, all logits at once */
    struct rig_outcome whole; /* one batch of all groups */
    struct completion_sums truth[COMPLETIONS];
};

static const double loss_scale = 1.0 / GROUPS;

static void against_oracle(struct study *s)
{
    rig_truth(s->truth, s->flat, &s->rig.params, &s->config, &s->text);
    double ratio = rig_sums_worst(s->lab, s->whole.sums, s->truth, NULL, COMPLETIONS);
    printf("  sums: %.2g of the bound\n", ratio);
    CHECK(ratio <= 1);
    struct objective plain = s->objective;
    plain.weighting = WEIGHTING_NONE;
    struct model_loss loss = {s->flat, s->reference, &s->rig.params, &s->config, &s->text,
                              &plain,  {0},          loss_scale,     false};
    for (int64_t g = 0; g < GROUPS; g++) {
        struct group_result r =
            rig_objective(&s->objective, s->truth + g * PAIR, s->reference + g * PAIR, loss_scale, false);
        loss.weight[g] = r.weight;
        CHECK_NEAR(s->whole.results[g].weight, r.weight, 4 * rig_token_bound(s->lab) * r.weight);
        /* The margin of two completions of up to 24 tokens is off by both their errors. */
        CHECK_NEAR(s->whole.results[g].loss, r.loss,
                   (s->lab->type == DTYPE_FLOAT ? 200 : 12) * rig_token_bound(s->lab) * (1 + r.loss));
    }
    compare_gradients(&s->rig, s->flat, &loss, s->whole.gradients);
    gaps_are_zero(&s->rig, s->whole.gradients);
}

/* Prompts that are learnt as well, and tokens behind the shorter completion that count half. */
static void with_prompts(struct study *s)
{
    struct objective objective = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    struct completion_sums truth[SEGMENTS];
    struct rig rig;
    objective.beta = 0.3;
    objective.ld_alpha = 0.5;
    objective.rpo_alpha = 0.2;
    objective.nll_on_prompt = true;
    rig_open_prompts(&rig, s->lab, &s->config, MODEL_TRAIN, &s->text.groups, s->flat, 1 << 20);
    struct rig_outcome outcome =
        rig_train(&rig, &s->text.groups, everyone, GROUPS, &objective, s->reference, loss_scale);
    rig_truth_prompts(truth, s->flat, &rig.params, &s->config, &s->text);
    CHECK(rig_sums_worst(s->lab, outcome.sums, truth, NULL, SEGMENTS) <= 1);
    for (int i = 0; i < SEGMENTS; i++) /* of a prompt everything leads */
        CHECK_NEAR(outcome.sums[i].leading, i % 3 == 2 ? outcome.sums[i].logp : truth[i].leading,
                   rig_token_bound(s->lab) * (fabs(truth[i].logp) + (double)truth[i].count));
    struct model_loss loss = {s->flat,    s->reference,    &rig.params, &s->config, &s->text,
                              &objective, {1, 1, 1, 1, 1}, loss_scale,  true};
    compare_gradients(&rig, s->flat, &loss, outcome.gradients);
    objective.ld_alpha = 1; /* negative control: the same without the parts */
    struct rig_outcome whole =
        rig_train(&rig, &s->text.groups, everyone, GROUPS, &objective, s->reference, loss_scale);
    CHECK(rig_gradients_worst(&rig, whole.gradients, outcome.gradients) > 1);
    rig_close(&rig);
}

/* Negative controls: other models whose sums must not be taken for these. In bf16 only the coarsest of them
 * is farther away than roundings. */
static void against_wrong_models(struct study *s)
{
    struct completion_sums wrong[COMPLETIONS];
    struct rig_text shorter = s->text; /* completions that follow nothing but the prompt's last token */
    for (int64_t i = 0; i + 1 < s->text.prompt_offset[GROUPS]; i++)
        shorter.prompt[i] = (shorter.prompt[i] + 1) % VOCABULARY;
    rig_truth(wrong, s->flat, &s->rig.params, &s->config, &shorter);
    CHECK(rig_sums_worst(s->lab, s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
    if (s->lab->type != DTYPE_FLOAT) return;
    struct config other = s->config;
    other.rope = (struct rope){.type = ROPE_DEFAULT, .theta = s->config.rope.theta * 1.1, .factor = 1};
    rig_truth(wrong, s->flat, &s->rig.params, &other, &s->text);
    CHECK(rig_sums_worst(s->lab, s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
    other = s->config;
    other.window = s->config.window ? s->config.window + 1 : 6;
    rig_truth(wrong, s->flat, &s->rig.params, &other, &s->text);
    CHECK(rig_sums_worst(s->lab, s->whole.sums, wrong, NULL, COMPLETIONS) > 1);
}

static void frequencies(const struct lab *lab, const struct config *config)
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
    s->config = rig_config(lab, kind);
    s->objective = objective_of(LOSS_SIGMOID, WEIGHTING_SAMPLED);
    s->objective.beta = 0.3;
    s->objective.label_smoothing = 0.1;
    rig_text(&s->text);
    frequencies(lab, &s->config);
    struct params params;
    params_layout(&params, &s->config);
    s->flat = rig_parameters(lab, &params);
    params_free(&params);
    rig_reference(s->reference);
    rig_open(&s->rig, lab, &s->config, MODEL_TRAIN, &s->text.groups, s->flat, 1 << 20);
    s->whole = rig_train(&s->rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    CHECK(s->whole.bucket_count == s->config.layers + 1);
    for (int64_t i = 0; i < s->whole.bucket_count; i++) /* from the last layer down to the embedding */
        CHECK(s->whole.bucket[i] == s->config.layers - i);
    lab_note(lab, "sums", s->whole.sums, sizeof s->whole.sums);
    lab_note(lab, "gradients", s->whole.gradients, (size_t)s->rig.params.total * sizeof(float));
    if (lab->first) {
        printf("model %d (%s)\n", kind, family_name(s->config.family));
        against_oracle(s);
        against_wrong_models(s);
        if (kind == 1) with_prompts(s);
    }
    rig_close(&s->rig);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    /* On an emulated device under sanitizers two of the four: a window, and biases with a tied head. */
    bool some = lab->slow && strcmp(lab->ops->name, "cpu") != 0 && getenv("WPO_SHORT");
    for (int kind = some ? 1 : 0; kind < (some ? 3 : KINDS); kind++)
        study_kind(lab, kind);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
