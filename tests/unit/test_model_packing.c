/* The whole model gives the same numbers however the sequences are packed, shared, recomputed or cut into
 * chunks. */
#include "tests/unit/oracle_rig.h"

static const int64_t everyone[COMPLETIONS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

struct study {
    struct lab *lab;
    struct config config;
    struct rig_text text, separate;
    double *flat, reference[COMPLETIONS];
    struct objective objective;
    struct rig rig;           /* MODEL_TRAIN, all logits at once */
    struct rig_outcome whole; /* one batch of all groups */
};

static const double loss_scale = 1.0 / GROUPS;

/* The same log-probabilities and gradients from other packings of the same sequences. */
static void against_other_packings(struct study *s)
{
    static const int64_t backward[GROUPS] = {4, 3, 2, 1, 0};
    static const int64_t backward_completions[COMPLETIONS] = {8, 9, 6, 7, 4, 5, 2, 3, 0, 1};
    double reference[COMPLETIONS];
    for (int i = 0; i < COMPLETIONS; i++)
        reference[i] = s->reference[backward_completions[i]];
    struct rig_outcome turned =
        rig_train(&s->rig, &s->text.groups, backward, GROUPS, &s->objective, reference, loss_scale);
    CHECK(rig_sums_worst(s->lab, turned.sums, s->whole.sums, backward_completions, COMPLETIONS) <= 1);
    CHECK(rig_gradients_worst(&s->rig, turned.gradients, s->whole.gradients) <= 1);

    int64_t total = s->rig.params.total; /* one group at a time: the gradients add up */
    float *sum = (float *)(void *)lab_doubles(s->lab, total), *first = NULL;
    for (int64_t g = 0; g < GROUPS; g++) {
        struct rig_outcome alone =
            rig_train(&s->rig, &s->text.groups, &g, 1, &s->objective, s->reference + g * PAIR, loss_scale);
        int64_t pair[PAIR] = {g * PAIR, g * PAIR + 1};
        CHECK(rig_sums_worst(s->lab, alone.sums, s->whole.sums, pair, PAIR) <= 1);
        for (int64_t i = 0; i < total; i++)
            sum[i] += alone.gradients[i];
        if (g == 0) first = alone.gradients;
    }
    CHECK(rig_gradients_worst(&s->rig, sum, s->whole.gradients) <= 1);
    if (s->lab->type ==
        DTYPE_FLOAT) /* one group is not the sum: in bf16 the others may hide in its roundings */
        CHECK(rig_gradients_worst(&s->rig, first, s->whole.gradients) > 1);

    struct rig apart; /* every completion with its own copy of the prompt */
    struct completion_sums sums[COMPLETIONS];
    rig_open(&apart, s->lab, &s->config, MODEL_SCORE, &s->separate.groups, s->flat, 1 << 20);
    rig_score(&apart, &s->separate.groups, everyone, COMPLETIONS, sums);
    CHECK(rig_sums_worst(s->lab, sums, s->whole.sums, NULL, COMPLETIONS) <= 1);
    for (int64_t c = 0; c < COMPLETIONS; c++) { /* and all by itself */
        rig_score(&apart, &s->separate.groups, &c, 1, sums);
        CHECK(rig_sums_worst(s->lab, sums, s->whole.sums, &c, 1) <= 1);
    }
    rig_close(&apart);
}

/* The gradient of sft over separate sequences is that over shared prompts, where the coefficients are the
 * same. */
static void shared_gradients(struct study *s)
{
    struct objective sft = objective_of(LOSS_SFT, WEIGHTING_NONE);
    struct rig rig;
    rig_open(&rig, s->lab, &s->config, MODEL_TRAIN, &s->separate.groups, s->flat, 1 << 20);
    struct rig_outcome apart = rig_train(&rig, &s->separate.groups, everyone, COMPLETIONS, &sft, NULL, 0.25);
    /* A pair at margin 0 has coefficients -beta/2 and beta/2: chosen minus rejected, from the two halves. */
    double at[COMPLETIONS];
    for (int c = 0; c < COMPLETIONS; c++)
        at[c] = s->whole.sums[c].logp;
    struct objective pair = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    pair.beta = 0.5;
    struct rig_outcome shared = rig_train(&s->rig, &s->text.groups, everyone, GROUPS, &pair, at, 1);
    static const int64_t halves[2][GROUPS] = {{0, 2, 4, 6, 8}, {1, 3, 5, 7, 9}};
    float *difference = (float *)(void *)lab_doubles(s->lab, rig.params.total);
    double largest = 0;
    for (int h = 0; h < 2; h++) {
        struct rig_outcome half = rig_train(&rig, &s->separate.groups, halves[h], GROUPS, &sft, NULL, 0.25);
        for (int64_t i = 0; i < rig.params.total; i++) {
            difference[i] += h ? -half.gradients[i] : half.gradients[i];
            largest = fmax(largest, fabs((double)half.gradients[i]));
        }
    }
    for (int64_t i = 0; i < rig.params.total;
         i++) /* the halves may cancel: their size is what roundings refer to */
        if (fabs((double)shared.gradients[i] - (double)difference[i]) >
            2 * rig_gradient_bound(s->lab) * largest) {
            CHECK_NEAR(shared.gradients[i], difference[i], 2 * rig_gradient_bound(s->lab) * largest);
            break;
        }
    CHECK(rig_gradients_worst(&rig, apart.gradients, difference) > 1);
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
    struct rig_outcome again =
        rig_train(&rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    CHECK(memcmp(again.gradients, s->whole.gradients, bytes) == 0); /* the same bits */
    CHECK(memcmp(again.sums, s->whole.sums, COMPLETIONS * sizeof *again.sums) == 0);
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
    CHECK(rig_sums_worst(s->lab, again.sums, s->whole.sums, NULL, COMPLETIONS) <= 1);
    CHECK(rig_gradients_worst(&rig, again.gradients, s->whole.gradients) <= 1);
    struct completion_sums pieces[COMPLETIONS];
    rig_score(&rig, &s->text.groups, everyone, GROUPS, pieces);
    CHECK(memcmp(pieces, again.sums, sizeof pieces) == 0);
    rig_close(&rig);
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
    rig_text_separate(&s->separate, &s->text);
    struct params params;
    params_layout(&params, &s->config);
    s->flat = rig_parameters(lab, &params);
    params_free(&params);
    rig_reference(s->reference);
    rig_open(&s->rig, lab, &s->config, MODEL_TRAIN, &s->text.groups, s->flat, 1 << 20);
    s->whole = rig_train(&s->rig, &s->text.groups, everyone, GROUPS, &s->objective, s->reference, loss_scale);
    against_other_modes(s);
    if (lab->first) {
        against_other_packings(s);
        shared_gradients(s);
    }
    rig_close(&s->rig);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    int first = !lab->slow ? 0 : getenv("WPO_SHORT") ? KINDS - 1 : 2;
    for (int kind = first; kind < KINDS; kind++)
        study_kind(lab, kind);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
