/* What an objective takes of a file's groups, and what couples them, on a world that fits the eye. */
#include "runtime/selection.h"
#include "runtime/statistics.h"
#include "tests/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GROUPS = 4 };

static void *copy(const void *from, size_t bytes)
{
    void *to = malloc(bytes);
    CHECK(to);
    memcpy(to, from, bytes);
    return to;
}

/* Pairs whose completion s has s + 1 tokens, all of value 10 s + place; prompts of 1, 2, 3, 1 tokens. */
static struct groups pairs(bool scored)
{
    static const int64_t prompt_offset[GROUPS + 1] = {0, 1, 3, 6, 7}, first[GROUPS + 1] = {0, 2, 4, 6, 8},
                                                row[GROUPS] = {0, 2, 5, 6};
    static const float score[2 * GROUPS] = {5, 1, 3, 2.5f, 2, 2, 9, 0};
    int32_t prompt[7], tokens[36];
    int64_t offset[2 * GROUPS + 1] = {0};
    for (int i = 0; i < 7; i++)
        prompt[i] = 100 + i;
    for (int s = 0; s < 2 * GROUPS; s++) {
        for (int t = 0; t <= s; t++)
            tokens[offset[s] + t] = 10 * s + t;
        offset[s + 1] = offset[s] + s + 1;
    }
    struct groups groups = {.group_count = GROUPS,
                            .completion_count = 2 * GROUPS,
                            .prompt_tokens = copy(prompt, sizeof prompt),
                            .prompt_offset = copy(prompt_offset, sizeof prompt_offset),
                            .completion_tokens = copy(tokens, sizeof tokens),
                            .completion_offset = copy(offset, sizeof offset),
                            .first = copy(first, sizeof first),
                            .row = copy(row, sizeof row),
                            .score = scored ? copy(score, sizeof score) : NULL,
                            .vocabulary = 200,
                            .max_length = 20,
                            .kind = "preference",
                            .fingerprint = "0123",
                            .path = text_copy("pairs.h5")};
    return groups;
}

/* Completion `at` of the selection is completion s of the file. */
static bool is_completion(const struct groups *groups, int64_t at, int s)
{
    int64_t start = groups->completion_offset[at], count = groups->completion_offset[at + 1] - start;
    bool same = count == s + 1;
    for (int64_t t = 0; same && t < count; t++)
        same = groups->completion_tokens[start + t] == 10 * s + t;
    return same;
}

static void leaving_out(void)
{
    struct groups groups = pairs(true);
    struct settings settings = {
        .objective = objective_of(LOSS_SIGMOID, WEIGHTING_NONE), .has_min_margin = true, .min_margin = 1};
    int64_t dropped;
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK);
    CHECK(dropped == 2 && groups.group_count == 2 && groups.completion_count == 4); /* groups 0 and 3 */
    CHECK(is_completion(&groups, 0, 0) && is_completion(&groups, 1, 1) && is_completion(&groups, 2, 6) &&
          is_completion(&groups, 3, 7));
    CHECK(groups.row[1] == 6 && groups.prompt_offset[1] == 1 && groups.prompt_offset[2] == 2);
    CHECK(groups.prompt_tokens[1] == 106 && groups.score[2] == 9 && groups.first[2] == 4);
    CHECK(strcmp(groups.fingerprint, "0123") != 0);
    groups_close(&groups);

    groups = pairs(true);
    settings.min_margin = 0; /* nothing is below it: the data is the file's */
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK && dropped == 0);
    CHECK(!strcmp(groups.fingerprint, "0123") && groups.group_count == GROUPS);
    groups_close(&groups);

    groups = pairs(false);
    settings = (struct settings){.objective = objective_of(LOSS_SFT, WEIGHTING_NONE)};
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK);
    CHECK(groups.completion_count == GROUPS && groups.first[GROUPS] == GROUPS);
    for (int g = 0; g < GROUPS; g++)
        CHECK(is_completion(&groups, g, 2 * g));
    CHECK(strcmp(groups.fingerprint, "0123") != 0);
    groups_close(&groups);
}

/* Scores must be there where they are read, and there only; rankings stand by them. */
static void scored(void)
{
    struct groups groups = pairs(true);
    struct settings settings = {.objective = objective_of(LOSS_SIGMOID, WEIGHTING_NONE)};
    int64_t dropped;
    settings.objective.reward_margin_beta = 1;
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK);
    groups.score[3] = NAN;
    CHECK(selection_take(&groups, &settings, &dropped) != STATUS_OK);
    CHECK_TEXT(status_sentence(), "row 2 lacks one");

    /* A third completion, which was sampled, has none. */
    settings.objective.optimism_alpha = 0.1;
    groups.group_count = 1, groups.first[1] = groups.completion_count = 3;
    groups.score[2] = NAN;
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK);
    groups_close(&groups);

    groups = pairs(true);
    settings = (struct settings){.objective = objective_of(LOSS_PLACKETT_LUCE, WEIGHTING_NONE)};
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK); /* a tie stands by score */
    groups.score[5] = 2.5f;
    CHECK(selection_take(&groups, &settings, &dropped) != STATUS_OK);
    CHECK_TEXT(status_sentence(), "row 5 do not stand by score");
    groups_close(&groups);

    /* Of pairs the first is the desirable one; what has no labels and is no pair has none. */
    groups = pairs(false);
    settings.objective = objective_of(LOSS_KTO, WEIGHTING_NONE);
    CHECK(selection_take(&groups, &settings, &dropped) == STATUS_OK);
    for (int s = 0; s < 2 * GROUPS; s++)
        CHECK(groups.label[s] == (s % 2 == 0));
    groups_close(&groups);
    groups = pairs(false);
    strcpy(groups.kind, "prompt-completion");
    CHECK(selection_take(&groups, &settings, &dropped) != STATUS_OK);
    CHECK_TEXT(status_sentence(), "has no labels");
    groups_close(&groups);
}

/* A sampled third completion has no place in a ranking, and no label. */
static void forms(void)
{
    static const struct {
        enum loss_type type;
        const char *form;
        bool taken;
    } cases[] = {{LOSS_KTO, "sampled", false},
                 {LOSS_PLACKETT_LUCE, "sampled", false},
                 {LOSS_SFT, "sampled", true},
                 {LOSS_KTO, "pair", true},
                 {LOSS_ALL_PAIRS, "", true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct groups groups = pairs(false);
        struct settings settings = {.objective = objective_of(cases[i].type, WEIGHTING_NONE)};
        int64_t dropped;
        strcpy(groups.form, cases[i].form);
        CHECK((selection_take(&groups, &settings, &dropped) == STATUS_OK) == cases[i].taken);
        groups_close(&groups);
    }
}

static void mismatched(void)
{
    struct groups groups = pairs(false), other;
    CHECK(selection_mismatch(&other, &groups) == STATUS_OK);
    CHECK(other.group_count == GROUPS && other.completion_count == 2 * GROUPS);
    CHECK(is_completion(&other, 2, 0) && is_completion(&other, 3, 1) && is_completion(&other, 6, 4));
    CHECK(is_completion(&other, 0, 6) && is_completion(&other, 1, 7));
    CHECK(strcmp(other.fingerprint, groups.fingerprint) != 0);
    groups_close(&other);
    groups_close(&groups);

    /* A prompt of one token leaves room for six of seven. */
    groups = pairs(false);
    groups.max_length = 7;
    CHECK(selection_mismatch(&other, &groups) == STATUS_OK);
    CHECK(other.completion_offset[1] == 6 && other.completion_offset[2] == 12);
    CHECK(other.completion_tokens[0] == 60 && other.completion_tokens[6] == 70);
    groups_close(&other);
    groups.group_count = 1;
    CHECK(selection_mismatch(&other, &groups) != STATUS_OK);
    CHECK_TEXT(status_sentence(), "only one row");
    groups_close(&groups);
}

/* -- statistics ------------------------------------------------------------------------------- */

static struct dataset dataset_of(struct completion_data *data)
{
    return (struct dataset){.groups = pairs(false), .data = data};
}

static const int64_t all[GROUPS] = {0, 1, 2, 3};

static void sorted(void)
{
    /* Policy margins 3, -1, 2, 0 and reference margins 10, 30, 20, 40: in order -1 0 2 3 and 10 20 30 40. */
    static const double policy[] = {3, -1, 2, 0}, known[] = {10, 30, 20, 40}, partner[] = {40, 10, 30, 20};
    struct completion_data data[2 * GROUPS] = {{0}}, adjusted[2 * GROUPS];
    struct completion_sums sums[2 * GROUPS] = {{0}};
    for (int g = 0; g < GROUPS; g++) {
        sums[2 * g].logp = -5 + policy[g], sums[2 * g + 1].logp = -5;
        data[2 * g].reference = -50 + known[g], data[2 * g + 1].reference = -50;
    }
    struct dataset dataset = dataset_of(data);
    struct objective aot = objective_of(LOSS_AOT, WEIGHTING_NONE);
    struct batch_facts facts = statistics_scales(&aot, &dataset.groups, (struct members){all, GROUPS});
    struct reward_mean none = {0}, after;
    statistics_batch(&facts, &aot, &dataset, (struct members){all, GROUPS}, sums, &none, &after, adjusted);
    for (int g = 0; g < GROUPS; g++)
        CHECK(adjusted[2 * g].reference - adjusted[2 * g + 1].reference == partner[g]);

    /* A margin that is no number comes last, and leaves the others their order. */
    sums[2].logp = NAN;
    statistics_batch(&facts, &aot, &dataset, (struct members){all, GROUPS}, sums, &none, &after, adjusted);
    CHECK(adjusted[0].reference == 30 && adjusted[2].reference == 40 && adjusted[4].reference == 20 &&
          adjusted[6].reference == 10);

    /* Log-ratios h_w 4, 1, 3, 2 and h_l 0, 9, 5, 7: the second smallest of one side is 2, of the other 5. */
    static const double won[] = {4, 1, 3, 2}, lost[] = {0, 9, 5, 7}, of_won[] = {9, 0, 7, 5},
                        of_lost[] = {1, 4, 2, 3};
    for (int g = 0; g < GROUPS; g++) {
        sums[2 * g].logp = data[2 * g].reference + won[g];
        sums[2 * g + 1].logp = data[2 * g + 1].reference + lost[g];
    }
    struct objective unpaired = objective_of(LOSS_AOT_UNPAIRED, WEIGHTING_NONE);
    statistics_batch(&facts, &unpaired, &dataset, (struct members){all, GROUPS}, sums, &none, &after,
                     adjusted);
    for (int g = 0; g < GROUPS; g++) {
        CHECK(sums[2 * g].logp - adjusted[2 * g].reference == won[g] - of_won[g]);
        CHECK(sums[2 * g + 1].logp - adjusted[2 * g + 1].reference == lost[g] - of_lost[g]);
    }
    groups_close(&dataset.groups);
}

static void means(void)
{
    struct completion_data data[2 * GROUPS], adjusted[2 * GROUPS];
    struct completion_sums sums[2 * GROUPS];
    for (int s = 0; s < 2 * GROUPS; s++) {
        data[s] = (struct completion_data){.reference = -20, .desirable = s < 3};
        sums[s] = (struct completion_sums){.logp = -20 + s, .square = -20, .count = 1 + s};
    }
    struct dataset dataset = dataset_of(data);
    struct members members = {all, GROUPS};
    struct reward_mean running = {.steps = 3, .mean = 0.75}, after;

    struct objective bco = objective_of(LOSS_BCO, WEIGHTING_SAMPLED);
    struct batch_facts facts = statistics_scales(&bco, &dataset.groups, members);
    CHECK(facts.group_scale == 1.0 / (2 * GROUPS));
    statistics_batch(&facts, &bco, &dataset, members, sums, &running, &after, adjusted);
    CHECK_NEAR(facts.shift, (3 * 0.75 + 0.1 * 3.5) / 4, 1e-15); /* mean log-ratio 3.5, beta 0.1 */
    CHECK(after.steps == 4 && after.mean == facts.shift && running.steps == 3);
    /* w = exp(s / (1 + s)): the classes' sums make each class weigh one over 8 completions. */
    double sum[2] = {0, 0};
    for (int s = 0; s < 2 * GROUPS; s++)
        sum[s < 3] += exp(s / (1.0 + s));
    CHECK_NEAR(facts.class_weight[1] * sum[1] * facts.group_scale, 1, 1e-15);
    CHECK_NEAR(facts.class_weight[0] * sum[0] * facts.group_scale, 1, 1e-15);

    struct completion_data alike[2 * GROUPS];
    for (int s = 0; s < 2 * GROUPS; s++)
        alike[s] = (struct completion_data){.reference = -20, .desirable = 1};
    dataset.data = alike; /* a class without a completion */
    statistics_batch(&facts, &bco, &dataset, members, sums, &running, &after, adjusted);
    CHECK(facts.class_weight[0] == 1);
    dataset.data = data;

    double known[2 * GROUPS];
    struct objective kto = objective_of(LOSS_KTO, WEIGHTING_NONE);
    CHECK(selection_mismatch(&dataset.mismatched, &dataset.groups) == STATUS_OK);
    dataset.mismatched_reference = known;
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int s = 0; s < 2 * GROUPS; s++)
            known[s] = sums[s].logp - sign * (s + 1);
        statistics_kl(&facts, &kto, &dataset, members, sums);
        CHECK(facts.kl == (sign > 0 ? 4.5 : 0)); /* an estimate below zero is none */
    }
    /* What is not finite must not pass for an estimate of zero. */
    double held = known[3], broken[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        known[3] = broken[i];
        statistics_kl(&facts, &kto, &dataset, members, sums);
        CHECK(isnan(facts.kl));
    }
    known[3] = held;
    /* A batch of two groups: their completions alone count. */
    statistics_kl(&facts, &kto, &dataset, (struct members){all + 2, 2}, sums);
    CHECK(facts.kl == 6.5);
    groups_close(&dataset.groups);
    groups_close(&dataset.mismatched);
}

static void scales(void)
{
    struct groups groups = pairs(false);
    struct objective orpo = objective_of(LOSS_ORPO, WEIGHTING_NONE);
    struct members members = {all + 1, 2}; /* chosen completions of 3 and 5 tokens, prompts of 2 and 3 */
    CHECK(statistics_scales(&orpo, &groups, members).token_scale == 1.0 / 8);
    orpo.nll_on_prompt = true;
    CHECK(statistics_scales(&orpo, &groups, members).token_scale == 1.0 / (8 + 1 + 2));
    CHECK(statistics_scales(&orpo, &groups, members).group_scale == 0.5);
    groups_close(&groups);
}

int main(void)
{
    leaving_out();
    scored();
    forms();
    mismatched();
    sorted();
    means();
    scales();
    return check_result();
}
