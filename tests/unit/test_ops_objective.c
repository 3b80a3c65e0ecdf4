/* From the statistics of tokens to the coefficients of tokens: sums of completions, objectives of groups. */
#include "tests/unit/oracle_lab.h"

/* -- sums ------------------------------------------------------------------------------------- */

enum { SEGMENTS = 29, LONGEST = 2500 };

/* Of completions, in turns. The long ones are longer than what a block holds at a time, and as long. */
static const int64_t short_lengths[5] = {1, 7, 13, 65, 2}, long_lengths[5] = {1024, 1, 1025, LONGEST, 2049};

struct text {
    int64_t first[SEGMENTS + 1], shared[SEGMENTS];
    struct completion_sums sums[SEGMENTS + 1];
};

/* Of s's tokens: none, some, up to the edge of what a block holds, all, or more than there are. */
static int64_t draw_shared(int64_t s, int64_t length)
{
    const int64_t choices[] = {length, length / 2, length > 1024 ? 1024 : 1, 0, length + 3};
    return choices[s % 7 % 5];
}

/* Numbers as they come out of a head. A segment may be empty: a prompt of one token. */
static int64_t draw_statistics(double *statistics, struct text *text, const int64_t lengths[5])
{
    unsigned long long state = 5;
    int64_t at = 0;
    for (int64_t s = 0; s < SEGMENTS; s++) {
        int64_t length = s == 11 ? 0 : lengths[s % 5];
        text->first[s] = at;
        text->shared[s] = draw_shared(s, length);
        for (int64_t i = 0; i < length; i++, at++) {
            double *row = statistics + at * HEAD_STATISTICS;
            for (int c = 0; c < HEAD_STATISTICS; c++)
                row[c] = lab_round(3 * check_uniform(&state));
            row[HEAD_LOG_SUM] = fabs(row[HEAD_LOG_SUM]);
            row[HEAD_LOGP] = lab_round(-row[HEAD_LOG_SUM] - fabs(row[HEAD_LOGP]));
            row[HEAD_HIT] = row[HEAD_HIT] > 1 ? 1 : 0;
        }
    }
    text->first[SEGMENTS] = at;
    return at;
}

/* In order, in double: every backend has these bits. */
static struct completion_sums sum_tokens(const double *statistics, int64_t begin, int64_t end, int64_t shared)
{
    struct completion_sums sum = {.count = end - begin};
    for (int64_t t = begin; t < end; t++) {
        const double *row = statistics + t * HEAD_STATISTICS;
        sum.logp += row[HEAD_LOGP];
        sum.square += row[HEAD_LOG_SQUARE];
        sum.maximum += -row[HEAD_LOG_SUM];
        sum.entropy += row[HEAD_ENTROPY];
        sum.logits += row[HEAD_MEAN];
        sum.hits += row[HEAD_HIT];
        if (t - begin < shared) sum.leading += row[HEAD_LOGP];
    }
    return sum;
}

static bool same_sums(const struct completion_sums *a, const struct completion_sums *b)
{
    return a->logp == b->logp && a->square == b->square && a->maximum == b->maximum &&
           a->entropy == b->entropy && a->logits == b->logits && a->hits == b->hits &&
           a->leading == b->leading && a->count == b->count;
}

static void try_sums(struct lab *lab, struct text *text, const int64_t lengths[5])
{
    double *statistics = lab_doubles(lab, (int64_t)SEGMENTS * LONGEST * HEAD_STATISTICS);
    int64_t tokens = draw_statistics(statistics, text, lengths);
    struct lab_matrix ms = lab_floats(lab, tokens, HEAD_STATISTICS, 0);
    lab_put(&ms, statistics);
    memset(text->sums, 0xff, sizeof text->sums); /* NaN; one more as a canary */
    struct completion_sums *on_device = lab_array(lab, text->sums, sizeof text->sums);
    lab->ops->head_sums(lab->device, on_device, ms.view.data, lab_array(lab, text->first, sizeof text->first),
                        lab_array(lab, text->shared, sizeof text->shared), SEGMENTS);
    lab->ops->download(lab->device, text->sums, on_device, sizeof text->sums);
    CHECK(lab_unchanged(&ms) && text->sums[SEGMENTS].count == -1);
    lab_note(lab, "sums", text->sums, SEGMENTS * sizeof *text->sums);
    for (int64_t s = 0; s < SEGMENTS; s++) {
        int64_t begin = text->first[s], end = text->first[s + 1];
        struct completion_sums want = sum_tokens(statistics, begin, end, text->shared[s]);
        CHECK(same_sums(&text->sums[s], &want));
        if (end == begin) continue;
        want = sum_tokens(statistics, begin, end, text->shared[s] < end - begin ? text->shared[s] + 1 : 0);
        CHECK(!same_sums(&text->sums[s], &want)); /* negative control: other leading tokens */
    }
    for (int64_t s = 0; s < SEGMENTS;
         s++) /* only a prompt may be empty, and not every layout has one there */
        if (text->sums[s].count == 0) text->sums[s].count = 1;
    lab_release(lab);
}

/* -- objectives ------------------------------------------------------------------------------- */

enum { GROUPS_MOST = SEGMENTS, UNUSED = 5 };

/* Sizes of groups in turns, of completions; a prompt's segment comes on top. */
struct layout {
    int64_t sizes[3];
    bool prompts;
};

struct grouping {
    struct layout layout;
    int64_t count, segments; /* that are filled */
    int64_t segment[GROUPS_MOST + 1];
};

static struct grouping group_segments(struct layout layout)
{
    struct grouping grouping = {.layout = layout};
    grouping.segment[0] = UNUSED; /* a later chunk of a batch: its segments do not begin at 0 */
    for (;;) {
        int64_t size = layout.sizes[grouping.count % 3] + (layout.prompts ? 1 : 0);
        if (grouping.segments + size > SEGMENTS) return grouping;
        grouping.segments += size;
        grouping.segment[++grouping.count] = UNUSED + grouping.segments;
    }
}

static void draw_data(struct completion_data data[SEGMENTS], const struct text *text)
{
    unsigned long long state = 6;
    for (int64_t s = 0; s < SEGMENTS; s++)
        data[s] = (struct completion_data){.reference = text->sums[s].logp + 30 * check_uniform(&state),
                                           .score = floor(4 * check_uniform(&state)),
                                           .desirable = check_uniform(&state) > 0};
}

/* What is downloaded, as doubles. */
struct outcome {
    double results[5 * GROUPS_MOST], *coefficient;
};

static void result_as_doubles(double *values, const struct group_result *r)
{
    memcpy(values, (double[]){r->loss, r->likelihood, r->weight, r->log_weight, r->clamped},
           5 * sizeof *values);
}

static struct outcome on_device(struct lab *lab, const struct text *text, const struct completion_data *data,
                                const struct grouping *grouping, const struct objective *objective,
                                const struct batch_facts *facts)
{
    struct outcome outcome = {.coefficient = lab_doubles(lab, text->first[SEGMENTS])};
    struct group_result results[GROUPS_MOST + 1];
    size_t bytes = sizeof results;
    memset(results, 0, bytes);
    for (int64_t g = 0; g <= GROUPS_MOST; g++)
        results[g].loss = (double)NAN;
    struct lab_matrix mc = lab_floats(lab, 1, text->first[SEGMENTS], 0);
    lab_fill(&mc, 12345);
    struct group_result *there = lab_array(lab, results, bytes);
    struct objective_groups groups = {.count = grouping->count,
                                      .segment = lab_array(lab, grouping->segment, sizeof grouping->segment),
                                      .first = lab_array(lab, text->first, sizeof text->first),
                                      .shared = lab_array(lab, text->shared, sizeof text->shared),
                                      .prompts = grouping->layout.prompts};
    lab->ops->objective(lab->device, there, mc.view.data, lab_array(lab, text->sums, sizeof text->sums),
                        lab_array(lab, data, SEGMENTS * sizeof *data), groups, objective, facts);
    LAB_GET(mc, outcome.coefficient);
    lab->ops->download(lab->device, results, there, bytes);
    CHECK(isnan(results[grouping->count].loss)); /* a canary */
    for (int64_t g = 0; g < grouping->count; g++)
        result_as_doubles(outcome.results + 5 * g, &results[g]);
    lab_note(lab, "objective", outcome.results, (size_t)(5 * grouping->count) * sizeof(double));
    return outcome;
}

/* The same by the shared header, group by group. */
static struct outcome on_host(struct lab *lab, const struct text *text, const struct completion_data *data,
                              const struct grouping *grouping, const struct objective *objective,
                              const struct batch_facts *facts)
{
    struct outcome outcome = {.coefficient = lab_doubles(lab, text->first[SEGMENTS])};
    for (int64_t t = 0; t < text->first[SEGMENTS]; t++)
        outcome.coefficient[t] = 12345; /* what no group has is left alone */
    for (int64_t g = 0; g < grouping->count; g++) {
        struct completion_view view[LARGEST_GROUP];
        struct token_coefficient of[LARGEST_GROUP + 1];
        int64_t begin = grouping->segment[g] - UNUSED, end = grouping->segment[g + 1] - UNUSED;
        int64_t n = end - begin - (grouping->layout.prompts ? 1 : 0);
        struct group_result r =
            objective_group(objective, facts, text->sums + begin, data + begin,
                            grouping->layout.prompts ? text->sums + begin + n : NULL, n, view, of);
        result_as_doubles(outcome.results + 5 * g, &r);
        for (int64_t s = begin; s < end; s++)
            for (int64_t t = text->first[s]; t < text->first[s + 1]; t++)
                outcome.coefficient[t] =
                    t - text->first[s] < text->shared[s] ? of[s - begin].leading : of[s - begin].trailing;
    }
    return outcome;
}

/* The same scalar code here and there: what differs is a few roundings of exp and log1p, amplified where a
 * sum over the group cancels, and that of the coefficient to f32. */
static void try_objective(struct lab *lab, const struct text *text, struct layout layout,
                          struct objective objective)
{
    struct completion_data data[SEGMENTS];
    struct grouping grouping = group_segments(layout);
    struct batch_facts facts = {.group_scale = 1.0 / 7,
                                .token_scale = 1.0 / 300,
                                .kl = 0.4,
                                .shift = -0.3,
                                .class_weight = {0.8, 1.7}};
    int64_t tokens = text->first[SEGMENTS], results = 5 * grouping.count;
    draw_data(data, text);
    struct outcome got = on_device(lab, text, data, &grouping, &objective, &facts);
    struct outcome want = on_host(lab, text, data, &grouping, &objective, &facts);
    double bound[5 * GROUPS_MOST], *bounds = lab_doubles(lab, tokens);
    for (int64_t i = 0; i < results; i++)
        bound[i] = 1e-12 * fabs(want.results[i]) + 1e-14;
    for (int64_t t = 0; t < tokens; t++)
        bounds[t] = want.coefficient[t] == 12345 ? 0 : 1.01 * LAB_UNIT * fabs(want.coefficient[t]) + 1e-16;
    LAB_CLOSE(got.results, want.results, bound, results);
    LAB_CLOSE(got.coefficient, want.coefficient, bounds, tokens);

    /* Negative controls: another mean, and another first group. */
    struct batch_facts other = facts;
    other.group_scale *= 1.001, other.token_scale *= 1.001;
    want = on_host(lab, text, data, &grouping, &objective, &other);
    LAB_DIFFERS(got.coefficient, want.coefficient, bounds, tokens);
    data[0].reference += 1, data[0].desirable = !data[0].desirable;
    want = on_host(lab, text, data, &grouping, &objective, &facts);
    if (objective_uses_reference(&objective)) LAB_DIFFERS(got.results, want.results, bound, results);
    lab_release(lab);
}

static struct layout layout_of(enum group_shape shape, bool prompts)
{
    switch (shape) {
    case GROUP_CHOSEN:
        return (struct layout){{1, 2, 1}, prompts};
    case GROUP_LABELLED:
        return (struct layout){{1, 3, 2}, prompts};
    case GROUP_RANKED:
        return (struct layout){{2, 7, 3}, prompts};
    case GROUP_PAIR:
        break;
    }
    return (struct layout){{2, 2, 2}, prompts};
}

/* Every loss, as it is by default and with whatever reaches the tokens: parts of a completion, prompts,
 * weights. */
static void every_loss(struct lab *lab, const struct text *text)
{
    for (enum loss_type type = 0; type < LOSS_COUNT; type++) {
        enum group_shape shape = loss_kind(type).shape;
        bool weightless = loss_kind(type).traits & TRAIT_UNWEIGHTED;
        struct objective objective = objective_of(type, WEIGHTING_NONE);
        try_objective(lab, text, layout_of(shape, false), objective);
        if (!weightless) objective.weighting = WEIGHTING_SAMPLED;
        objective.ld_alpha = 0.6;
        if (shape != GROUP_LABELLED) objective.rpo_alpha = 0.3;
        objective.nll_on_prompt = true;
        try_objective(lab, text, layout_of(shape, true), objective);
    }
}

static void every_weight(struct lab *lab, const struct text *text)
{
    for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++)
        for (int bits = 0; bits < 6; bits++) {
            struct objective objective = objective_of(LOSS_SIGMOID, weighting);
            objective.weight_sides = (enum weight_sides)(bits % 3);
            objective.weight_clamp = bits >= 3;
            objective.label_smoothing = bits % 2 ? 0.1 : 0;
            try_objective(lab, text, layout_of(GROUP_PAIR, false), objective);
        }
}

/* Several losses at once, the third completion of SELM, VPO, divergences, margins. */
static void every_modifier(struct lab *lab, const struct text *text)
{
    struct objective objective = objective_of(LOSS_SIGMOID, WEIGHTING_GREEDY);
    objective.terms[1] = (struct loss_term){LOSS_SFT, 0.5};
    objective.terms[2] = (struct loss_term){LOSS_BCO_PAIR, 0.2};
    objective.terms[3] = (struct loss_term){LOSS_SIGMOID_NORM, 0.7};
    objective.term_count = LOSS_TERMS;
    objective.length_alpha = 0.01;
    objective.reward_margin_beta = 0.2;
    objective.vpo_alpha = 0.3;
    for (enum divergence divergence = DIVERGENCE_REVERSE_KL; divergence <= DIVERGENCE_ALPHA; divergence++) {
        objective.f_divergence_type = divergence;
        try_objective(lab, text, layout_of(GROUP_PAIR, true), objective);
    }
    objective.optimism_alpha = 0.4;
    objective.ld_alpha = 0.5;
    try_objective(lab, text, (struct layout){{3, 3, 3}, false}, objective);
}

/* A group as large as may be. */
static void largest_group(struct lab *lab)
{
    enum { N = LARGEST_GROUP };
    struct completion_sums sums[N];
    struct completion_data data[N];
    int64_t first[N + 1], shared[N], segment[2] = {0, N};
    double got[N], want[N], bound[N];
    unsigned long long state = 8;
    for (int i = 0; i < N; i++) {
        first[i] = i, first[i + 1] = i + 1, shared[i] = 1;
        sums[i] = (struct completion_sums){.logp = -3 + check_uniform(&state), .count = 1};
        data[i] = (struct completion_data){.reference = -3 + check_uniform(&state), .score = -i / 2};
    }
    for (int which = 0; which < 2; which++) {
        struct objective objective =
            objective_of(which ? LOSS_ALL_PAIRS : LOSS_PLACKETT_LUCE, WEIGHTING_NONE);
        struct batch_facts facts = {.group_scale = 1, .token_scale = 1, .class_weight = {1, 1}};
        struct completion_view view[N];
        struct token_coefficient of[N];
        struct group_result r = objective_group(&objective, &facts, sums, data, NULL, N, view, of), back;
        struct group_result *result = lab_array(lab, &r, sizeof r);
        struct lab_matrix mc = lab_floats(lab, 1, N, 0);
        lab_fill(&mc, NAN);
        lab->ops->zero(lab->device, result, sizeof r);
        struct objective_groups groups = {.count = 1,
                                          .segment = lab_array(lab, segment, sizeof segment),
                                          .first = lab_array(lab, first, sizeof first),
                                          .shared = lab_array(lab, shared, sizeof shared)};
        lab->ops->objective(lab->device, result, mc.view.data, lab_array(lab, sums, sizeof sums),
                            lab_array(lab, data, sizeof data), groups, &objective, &facts);
        LAB_GET(mc, got);
        lab->ops->download(lab->device, &back, result, sizeof back);
        CHECK_NEAR(back.loss, r.loss, 1e-12 * r.loss);
        for (int i = 0; i < N; i++) {
            want[i] = of[i].leading;
            bound[i] = 1.01 * LAB_UNIT * fabs(want[i]) + 1e-15;
        }
        LAB_CLOSE(got, want, bound, N);
    }
    lab_release(lab);
}

/* No groups, no completions: nothing happens. */
static void nothing(struct lab *lab)
{
    struct objective objective = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    struct batch_facts facts = {.group_scale = 1, .token_scale = 1, .class_weight = {1, 1}};
    struct objective_groups none = {0};
    lab->ops->head_sums(lab->device, NULL, NULL, NULL, NULL, 0);
    lab->ops->objective(lab->device, NULL, NULL, NULL, NULL, none, &objective, &facts);
    lab->ops->sync(lab->device);
}

static void all(struct lab *lab)
{
    static struct text text;
    try_sums(lab, &text, long_lengths);
    try_objective(lab, &text, layout_of(GROUP_PAIR, false), objective_of(LOSS_SIGMOID, WEIGHTING_SAMPLED));
    try_sums(lab, &text, short_lengths);
    every_loss(lab, &text);
    every_weight(lab, &text);
    every_modifier(lab, &text);
    largest_group(lab);
    nothing(lab);
}

int main(void)
{
    lab_run_float(all);
    return check_result();
}
