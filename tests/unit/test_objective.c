/* What stands around the losses: published golden values, weights, step 0, the likelihood term, broken
 * numbers. Golden values are printed to eight digits: tolerance half a unit of the last one, and a little,
 * because one of them is .935506985. */
#include "tests/unit/loss_case.h"
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

static const double golden = 5.1e-9;

/* -- golden values ---------------------------------------------------------------------------- */

static void golden_pairs(void)
{
    static const struct {
        enum loss_type type;
        double smoothing, loss, chosen, rejected;
    } rows[] = {
        {LOSS_SIGMOID, 0, 0.59813887, -0.04501660, 0.04501660},
        {LOSS_SIGMOID, 0.1, 0.61813887, -0.03501660, 0.03501660},
        {LOSS_ROBUST, 0.1, 0.57313887, -0.05751660, 0.05751660},
        {LOSS_HINGE, 0, 0.80000000, -0.1, 0.1},
        {LOSS_IPO, 0, 21.84894694, -1.33551020, 1.86971429},
        {LOSS_EXO_PAIR, 0.1, 0.40630425, -0.04943462, 0.04943462},
        {LOSS_NCA_PAIR, 0, 1.33976707, -0.02013185, 0.02412536},
        {LOSS_BCO_PAIR, 0, 1.28901775, -0.04675457, 0.04825071},
        {LOSS_SPPO_HARD, 0, 32.18, -7.4, 8.6},
        {LOSS_APO_ZERO, 0, 0.95005284, -0.02489467, 0.02496940},
        {LOSS_APO_DOWN, 0, 0.98262031, 0.00014301, 0.02475166},
        {LOSS_DISCOPOP, 0, 0.81476314, -0.07341767, 0.07341767},
        {LOSS_SIGMOID_NORM, 0, 0.67699407, -0.00702654, 0.00983716},
        {LOSS_SIMPO, 0, 0.64439666, -0.13572023, 0.19000833},
        {LOSS_CPO, 0, 0.74965892, -0.05274723, 0.05274723},
        {LOSS_ORPO, 0, 0.05159641, -0.00791542, 0.01010083},
    };
    const int count = sizeof rows / sizeof *rows;
    for (int i = 0; i < count; i++) {
        struct loss_case l = case_pair(rows[i].type, WEIGHTING_NONE);
        l.objective.label_smoothing = rows[i].smoothing;
        if (rows[i].type == LOSS_SIMPO) l.objective.gamma_beta_ratio = 0.25; /* gamma = 0.5, beta = 2 */
        struct group_result r = case_run(&l);
        CHECK_NEAR(r.loss, rows[i].loss, golden);
        for (int s = 0; s < 2; s++) {
            CHECK_NEAR(l.c[s].leading, s ? rows[i].rejected : rows[i].chosen, golden);
            CHECK(l.c[s].trailing == l.c[s].leading);
        }
        CHECK(r.weight == 1 && r.log_weight == 0 && !r.clamped && r.likelihood == 0);
        CHECK(fabs(r.loss - rows[(i + 1) % count].loss) > golden); /* the next row is another number */
    }
    struct loss_case l = case_pair(LOSS_SIGMOID, WEIGHTING_NONE);
    l.objective.length_alpha = 0.05;
    CHECK_NEAR(case_run(&l).loss, 0.55435524, golden);
    CHECK_NEAR(l.c[0].leading, -0.04255575, golden);
    CHECK_NEAR(l.c[1].leading, 0.04255575, golden);
    l = case_pair(LOSS_SPPO, WEIGHTING_NONE); /* certain preferences: half of sppo_hard */
    l.objective.beta = 0.1;
    l.objective.score_type = SCORE_PROBABILITY;
    l.data[0].score = 1, l.data[1].score = 0;
    CHECK_NEAR(case_run(&l).loss, 32.18 / 2, 1e-13);
}

static void golden_labelled(void)
{
    struct loss_case l = case_pair(LOSS_KTO, WEIGHTING_NONE);
    l.facts.kl = 0.2;
    l.data[0].desirable = true;
    CHECK_NEAR(case_run(&l).loss, 0.47252770 + 0.47751518, 2 * golden);
    CHECK_NEAR(l.c[0].leading, -0.02492453, golden);
    CHECK_NEAR(l.c[1].leading, 0.02494944, golden);
    l.n = 1;
    CHECK_NEAR(case_run(&l).loss, 0.47252770, golden);
}

/* -- what is added to losses, by hand --------------------------------------------------------- */

static double logistic_loss(double u)
{
    return log1p(exp(-u));
}

/* h_w = 1.3, h_l = -0.7, beta = 0.1: u = 0.2. Values are sums of a few terms below 10: 1e-15 each. */
static void modifiers(void)
{
    const double plain = logistic_loss(0.2), rounding = 4e-15;
    struct loss_case l = case_pair(LOSS_SIGMOID, WEIGHTING_NONE);
    l.data[0].score = 2, l.data[1].score = 0.5;
    l.objective.reward_margin_beta = 0.4; /* the margin to keep: 0.4 * 1.5 */
    CHECK_NEAR(case_run(&l).loss, logistic_loss(0.2 - 0.6), rounding);

    l = case_pair(LOSS_SIGMOID, WEIGHTING_NONE); /* VPO: - alpha beta h_w */
    l.objective.vpo_alpha = 0.6;
    CHECK_NEAR(case_run(&l).loss, plain - 0.06 * 1.3, rounding);
    CHECK_NEAR(l.c[0].leading, -0.04501660 - 0.06, golden);
    CHECK_NEAR(l.c[1].leading, 0.04501660, golden);

    l = case_pair(LOSS_SIGMOID, WEIGHTING_SAMPLED); /* SELM: + alpha beta h', which has no weight */
    case_set(&l, 2, 4, -6, 0.8);
    l.n = 3;
    l.objective.optimism_alpha = 0.45;
    l.facts.group_scale = 0.5;
    CHECK_NEAR(case_run(&l).loss, exp(-0.7) * plain + 0.045 * 0.8, rounding);
    CHECK_NEAR(l.result.log_weight, -0.7, rounding); /* of the pair alone */
    CHECK_NEAR(l.c[2].leading, 0.045 / 2, 1e-16);
    CHECK_NEAR(l.c[0].leading, exp(-0.7) * -0.04501660 / 2, golden);

    l = case_pair(LOSS_SIGMOID, WEIGHTING_NONE); /* LD-DPO; leading are 5/8 of log p, the rest counts half */
    l.objective.ld_alpha = 0.5;
    double u = 0.1 * (-9.1 * 13 / 16 + 9.1 + 1.3 - (-8.0 * 13 / 16 + 8 - 0.7));
    CHECK_NEAR(case_run(&l).loss, logistic_loss(u), rounding);
    CHECK_NEAR(l.c[0].leading, -0.1 / (1 + exp(u)), 1e-15);
    CHECK(l.c[0].trailing == 0.5 * l.c[0].leading && l.c[1].trailing == 0.5 * l.c[1].leading);

    l = case_pair(LOSS_SPPO, WEIGHTING_NONE); /* P of the scores' difference */
    l.data[0].score = 2, l.data[1].score = 0.5;
    l.objective.beta = 0.1;
    double half = (1 / (1 + exp(-1.5)) - 0.5) / 0.1, w = 1.3 - half, lost = -0.7 + half;
    CHECK_NEAR(case_run(&l).loss, (w * w + lost * lost) / 2, 4 * rounding);
    CHECK_NEAR(l.c[1].leading, lost, rounding);
    l.objective.score_type = SCORE_PROBABILITY; /* of either, on its own */
    l.data[0].score = 0.8, l.data[1].score = 0.4;
    CHECK_NEAR(case_run(&l).loss, ((1.3 - 3) * (1.3 - 3) + (-0.7 + 1) * (-0.7 + 1)) / 2, 4 * rounding);

    l = case_pair(LOSS_SIGMOID, WEIGHTING_NONE);
    l.objective.f_divergence_type = DIVERGENCE_FORWARD_KL; /* before the length divides */
    l.objective.terms[0].type = LOSS_SIGMOID_NORM;
    CHECK_NEAR(case_run(&l).loss, logistic_loss(0.1 * ((1 - exp(-1.3)) / 7 - (1 - exp(0.7)) / 5)), rounding);
    CHECK_NEAR(objective_reward(&l.objective, &l.sums[0], &l.data[0]), 0.13,
               1e-15); /* whatever f, whatever |y| */
    l = case_pair(LOSS_SIMPO, WEIGHTING_NONE);
    CHECK_NEAR(objective_reward(&l.objective, &l.sums[0], &l.data[0]), 2 * -9.1 / 7, 1e-15);
}

/* A class that counts for itself: lambda, the weights' share of the batch, one's own weight, and the scale.
 */
static void labelled_factors(void)
{
    struct loss_case l = case_pair(LOSS_KTO, WEIGHTING_SAMPLED);
    l.data[0].desirable = true;
    l.facts =
        (struct batch_facts){.group_scale = 0.25, .token_scale = 1, .kl = 0.2, .class_weight = {0.6, 2.2}};
    l.objective.desirable_weight = 1.5, l.objective.undesirable_weight = 0.5;
    double w = 2.2 * 1.5 * exp(-0.2), lost = 0.6 * 0.5 * exp(-0.5);
    CHECK_NEAR(case_run(&l).loss, w * 0.47252770 + lost * 0.47751518, (w + lost) * golden);
    CHECK_NEAR(l.c[0].leading, 0.25 * w * -0.02492453, w * golden);
    CHECK_NEAR(l.c[1].leading, 0.25 * lost * 0.02494944, golden);
    CHECK_NEAR(l.result.weight, (exp(-0.2) + exp(-0.5)) / 2, 1e-15);
    CHECK_NEAR(l.result.log_weight, -0.35, 1e-15);
}

/* -- weights, from the logits up -------------------------------------------------------------- */

static struct completion_sums sums_of(const double *logits, const int64_t *target, int64_t tokens,
                                      int64_t vocabulary)
{
    double statistics[16 * HEAD_STATISTICS];
    struct completion_sums sums = {.count = tokens};
    oracle_head_statistics(statistics, NULL, logits, target, tokens, vocabulary);
    for (int64_t t = 0; t < tokens; t++) {
        const double *s = statistics + t * HEAD_STATISTICS;
        sums.logp += s[HEAD_LOGP];
        sums.square += s[HEAD_LOG_SQUARE];
        sums.maximum -= s[HEAD_LOG_SUM];
    }
    return sums;
}

static const double chosen_logits[] = {2, 0, -1, .5, 0, 1, 3, -2, .1, .2, .3, .4};
static const double rejected_logits[] = {1, 1, 0, 0, -1, 4, 0, 2};
static const int64_t chosen_target[] = {0, 2, 1}, rejected_target[] = {2, 1};

/* The golden pair of WPO: reference log-probabilities -3 and -2, beta 0.01. */
static struct loss_case golden_case(enum weighting weighting)
{
    struct loss_case l = case_of(LOSS_SIGMOID, weighting);
    l.objective.beta = 0.01;
    l.sums[0] = sums_of(chosen_logits, chosen_target, 3, 4);
    l.sums[1] = sums_of(rejected_logits, rejected_target, 2, 4);
    l.data[0].reference = -3, l.data[1].reference = -2;
    return l;
}

static void golden_weights(void)
{
    struct loss_case l = golden_case(WEIGHTING_SAMPLED);
    const struct completion_sums *pair = l.sums;
    CHECK_NEAR(pair[0].square, -0.616497 - 0.330405 - 1.373917, 1.5e-6); /* six digits, three numbers */
    CHECK_NEAR(pair[1].square, -1.192743 - 0.278986, 1e-6);
    CHECK_NEAR(pair[0].logp, -1.96040047, golden);
    CHECK_NEAR(pair[1].logp, -2.15516405, golden);
    static const double weights[WEIGHTING_COUNT][2] = {
        {1, 1}, {.52023907, .34041765}, {1.12765427, .71054890}, {.93550698, .60653066}};
    for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++)
        for (int s = 0; s < 2; s++) {
            CHECK_NEAR(exp(completion_log_weight(&pair[s], weighting)), weights[weighting][s], golden);
            CHECK(fabs(exp(completion_log_weight(&pair[s], weighting)) - weights[(weighting + 1) % 4][s]) >
                  golden);
        }
    for (int clamp = 0; clamp < 2; clamp++) { /* below 1, so the clamp changes nothing */
        l.objective.weight_clamp = clamp;
        struct group_result r = case_run(&l);
        CHECK_NEAR(r.weight, 0.80125350, golden);
        CHECK_NEAR(r.loss, 0.55061436, golden);
        CHECK_NEAR(l.c[0].leading, -0.00398234, golden);
        CHECK(l.c[1].leading == -l.c[0].leading && !r.clamped);
    }
}

/* The chosen side alone is above 1: here the clamp shows. */
static void sides_and_clamp(void)
{
    static const double sides[3] = {1.12765427 * .71054890, 1.12765427, .71054890};
    struct loss_case plain = golden_case(WEIGHTING_NONE);
    double loss = case_run(&plain).loss;
    for (enum weight_sides side = WEIGHT_BOTH; side <= WEIGHT_REJECTED; side++)
        for (int clamp = 0; clamp < 2; clamp++) {
            struct loss_case l = golden_case(WEIGHTING_SAMPLED);
            l.objective.weight_sides = side;
            l.objective.weight_clamp = clamp;
            struct group_result r = case_run(&l);
            bool above = side == WEIGHT_CHOSEN;
            double weight = clamp && above ? 1 : sides[side];
            CHECK(r.clamped == (clamp && above));
            CHECK_NEAR(r.log_weight, log(sides[side]), 2 * golden); /* of two numbers of eight digits */
            CHECK_NEAR(r.weight, weight, 2 * golden);
            CHECK_NEAR(r.loss, weight * loss, 2 * golden);
            for (int s = 0; s < 2; s++)
                CHECK_NEAR(l.c[s].leading, weight * plain.c[s].leading, 1e-15 + 2 * golden * 0.01);
        }
}

/* Whatever the tokens: a uniform distribution has weight 1 for `sampled` and `greedy`, and the most likely
 * token weight 1 for `greedy`. */
static void weight_properties(void)
{
    double uniform[3 * 7];
    int64_t target[3] = {0, 3, 6}, likely[2] = {0, 1};
    for (int i = 0; i < 21; i++)
        uniform[i] = 2.5;
    struct completion_sums flat = sums_of(uniform, target, 3, 7);
    CHECK_NEAR(completion_log_weight(&flat, WEIGHTING_SAMPLED), 0, 1e-14);
    CHECK_NEAR(completion_log_weight(&flat, WEIGHTING_GREEDY), 0, 1e-14);
    CHECK_NEAR(completion_log_weight(&flat, WEIGHTING_UNALIGNED), -log(7), 1e-14);
    struct completion_sums best = sums_of(rejected_logits, likely, 2, 4);
    CHECK_NEAR(completion_log_weight(&best, WEIGHTING_GREEDY), 0, 1e-14);
    CHECK(completion_log_weight(&best, WEIGHTING_SAMPLED) > 0); /* likelier than a sampled token */
}

/* A weight that overflows double stays finite, with and without clamp: e^60 at most. */
static void weight_limits(void)
{
    for (enum loss_type type = 0; type < LOSS_COUNT; type++)
        for (int clamp = 0; clamp < 2; clamp++) {
            if (loss_kind(type).traits & TRAIT_UNWEIGHTED) continue;
            struct loss_case l = case_at(type, 0, 0);
            bool labelled = objective_shape(&l.objective) == GROUP_LABELLED;
            l.objective.weighting = WEIGHTING_SAMPLED;
            l.objective.weight_clamp = clamp;
            l.sums[0].square = -2e7;
            l.data[0].score = 1, l.data[1].score = 0;
            struct group_result r = case_run(&l);
            double most = labelled ? (exp(60) + exp(-0.5)) / 2 : clamp ? 1 : exp(60);
            CHECK_NEAR(r.weight / most, 1, 1e-15);
            CHECK(r.clamped == (clamp && !labelled) && r.log_weight > 1e6 && isfinite(r.loss));
            CHECK(isfinite(l.c[0].leading) && isfinite(l.c[1].leading));
        }
}

/* -- step 0, where policy is reference -------------------------------------------------------- */

static void step_zero(void)
{
    static const struct {
        enum loss_type type;
        double loss; /* at beta 0.1; of labelled completions: of two */
    } rows[] = {{LOSS_SIGMOID, M_LN2},
                {LOSS_ROBUST, M_LN2},
                {LOSS_HINGE, 1},
                {LOSS_IPO, 25},
                {LOSS_IPO_SUM, 25},
                {LOSS_SPPO_HARD, 50},
                {LOSS_NCA_PAIR, 2 * M_LN2},
                {LOSS_BCO_PAIR, 2 * M_LN2},
                {LOSS_APO_ZERO, 1},
                {LOSS_APO_DOWN, 1},
                {LOSS_AOT, M_LN2},
                {LOSS_AOT_UNPAIRED, M_LN2},
                {LOSS_KTO, 1},
                {LOSS_BCO, 2 * M_LN2},
                {LOSS_SIGMOID_NORM, M_LN2},
                {LOSS_ALL_PAIRS, M_LN2},
                {LOSS_PLACKETT_LUCE, M_LN2}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct loss_case l = case_at(rows[i].type, 0, 0);
        l.data[0].desirable = true;
        CHECK_NEAR(case_run(&l).loss, rows[i].loss, 4e-16 * rows[i].loss);
    }
    for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++)
        for (int smooth = 0; smooth < 2; smooth++) {
            double e = smooth ? 0.25 : 0;
            struct loss_case l = golden_case(weighting);
            l.objective.beta = 0.1;
            l.objective.label_smoothing = e;
            for (int s = 0; s < 2; s++)
                l.data[s].reference = l.sums[s].logp;
            struct group_result r = case_run(&l);
            CHECK_NEAR(r.loss, log(2) * r.weight, 2e-16 * r.weight); /* both halves of smoothing are log 2 */
            CHECK_NEAR(l.c[0].leading, r.weight * 0.1 * (0.5 - (1 - e)), 1e-16);
        }
}

/* -- the likelihood term, and what an objective is -------------------------------------------- */

static void likelihood(void)
{
    struct loss_case l = case_pair(LOSS_SFT, WEIGHTING_NONE);
    l.facts.token_scale = 0.25;
    struct group_result r = case_run(&l);
    CHECK(r.loss == 0 && r.likelihood == 9.1 && r.weight == 1 && !r.clamped && r.log_weight == 0);
    CHECK(l.c[0].leading == -0.25 && l.c[0].trailing == -0.25 && l.c[1].leading == 0);

    l = case_pair(LOSS_SIGMOID, WEIGHTING_SAMPLED); /* neither weight nor ld_alpha touches it */
    l.objective.ld_alpha = 0.5;
    struct loss_case plain = l;
    case_run(&plain);
    l.objective.terms[l.objective.term_count++] = (struct loss_term){LOSS_SFT, 0.3};
    l.objective.rpo_alpha = 0.2;
    l.facts.token_scale = 0.125;
    l.with_prompt = true;
    l.prompt = (struct completion_sums){.logp = -4, .leading = -4, .count = 3};
    r = case_run(&l);
    CHECK(r.loss == plain.result.loss);
    CHECK_NEAR(r.likelihood, 0.5 * 13.1, 1e-14);
    CHECK_NEAR(l.c[0].leading, plain.c[0].leading - 0.0625, 1e-16);
    CHECK_NEAR(l.c[0].trailing, plain.c[0].trailing - 0.0625, 1e-16);
    CHECK(l.c[1].leading == plain.c[1].leading && l.c[1].trailing == plain.c[1].trailing);
    CHECK(l.c[2].leading == -0.0625 && l.c[2].trailing == -0.0625);
    l.objective.terms[1].weight = l.objective.rpo_alpha = 0; /* no likelihood: nothing of the prompt */
    CHECK(case_run(&l).likelihood == 0 && l.c[2].leading == 0 && l.c[2].trailing == 0);
}

static void shapes(void)
{
    static const struct {
        enum loss_type type;
        int64_t least, most;
    } rows[] = {{LOSS_SFT, 1, LARGEST_GROUP},
                {LOSS_SIGMOID, 2, 2},
                {LOSS_KTO, 1, LARGEST_GROUP},
                {LOSS_ALL_PAIRS, 2, LARGEST_GROUP}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t least, most;
        struct objective o = objective_of(rows[i].type, WEIGHTING_NONE);
        objective_group_size(&o, &least, &most);
        CHECK(least == rows[i].least && most == rows[i].most);
    }
    struct objective o = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    int64_t least, most;
    CHECK(objective_uses_reference(&o));
    o.optimism_alpha = 0.1;
    objective_group_size(&o, &least, &most);
    CHECK(least == 3 && most == 3);
    o.reference_free = true;
    CHECK(!objective_uses_reference(&o));
    o = objective_of(LOSS_SFT, WEIGHTING_NONE);
    CHECK(!objective_uses_reference(&o) && objective_likelihood(&o) == 1);
    o.terms[o.term_count++] = (struct loss_term){LOSS_KTO, 1}; /* sft stands first: the other counts */
    CHECK(objective_uses_reference(&o) && objective_shape(&o) == GROUP_LABELLED);
    for (enum loss_type type = 0; type < LOSS_COUNT; type++) {
        o = objective_of(type, WEIGHTING_NONE);
        CHECK(o.beta == loss_kind(type).beta && o.beta > 0 && *loss_kind(type).name);
        CHECK(o.rpo_alpha == (type == LOSS_CPO || type == LOSS_ORPO));
        CHECK(o.gamma_beta_ratio == (type == LOSS_SIMPO ? 0.5 : 0) && o.discopop_tau == 0.05);
        CHECK(o.label_smoothing == (type == LOSS_EXO_PAIR ? 1e-3 : 0) && o.f_alpha_divergence_coef == 0.5);
        CHECK(o.desirable_weight == 1 && o.undesirable_weight == 1 && o.ld_alpha == 1 && o.weight_clamp);
    }
}

/* -- broken numbers --------------------------------------------------------------------------- */

/* Whatever is not finite makes every coefficient NaN, so that no step is taken, also where a loss is flat. */
static void not_finite(void)
{
    static const double broken[] = {(double)NAN, -(double)INFINITY, (double)INFINITY};
    for (enum loss_type type = 0; type < LOSS_COUNT; type++)
        for (int i = 0; i < 3; i++)
            for (int s = 0; s < 2; s++)
                for (int where = 0; where < 5; where++) {
                    struct loss_case l = case_pair(type, WEIGHTING_NONE);
                    double *at[] = {&l.sums[s].logp, &l.data[s].reference, &l.sums[s].square, &l.prompt.logp,
                                    &l.sums[s].leading};
                    bool unweighted = loss_kind(type).traits & TRAIT_UNWEIGHTED;
                    if (where == 1 && !objective_uses_reference(&l.objective)) continue;
                    if (where == 2 && unweighted) continue;
                    if (where == 2) l.objective.weighting = WEIGHTING_SAMPLED;
                    if (where == 4) l.objective.ld_alpha = 0.5;
                    l.objective.rpo_alpha = 0.5;
                    l.with_prompt = true;
                    l.prompt = (struct completion_sums){.logp = -4, .count = 3};
                    l.data[0].score = 2, l.data[1].score = 1;
                    case_run(&l);
                    CHECK(isfinite(l.c[0].leading) && isfinite(l.c[1].leading) && isfinite(l.c[2].leading));
                    *at[where] = broken[i];
                    struct group_result r = case_run(&l);
                    CHECK(!(isfinite(r.loss) && isfinite(r.likelihood)));
                    for (int c = 0; c < 3; c++)
                        CHECK(isnan(l.c[c].leading) && isnan(l.c[c].trailing));
                }
    static const enum divergence divergences[] = {DIVERGENCE_FORWARD_KL, DIVERGENCE_JS, DIVERGENCE_ALPHA};
    for (int i = 0; i < 3; i++) { /* where exponentials are cut off a NaN must stay one */
        struct loss_case l = case_pair(LOSS_HINGE, WEIGHTING_NONE);
        double slope;
        l.objective.f_divergence_type = divergences[i];
        CHECK(isnan(divergence_score(&l.objective, (double)NAN, &slope)) && isnan(slope));
    }
    struct loss_case l = case_pair(LOSS_HINGE, WEIGHTING_NONE); /* a score that the data lacks */
    l.objective.reward_margin_beta = 1;
    CHECK(isnan(case_run(&l).loss) && isnan(l.c[0].leading));
}

int main(void)
{
    golden_pairs();
    golden_labelled();
    modifiers();
    labelled_factors();
    golden_weights();
    sides_and_clamp();
    weight_properties();
    weight_limits();
    step_zero();
    likelihood();
    shapes();
    not_finite();
    return check_result();
}
