/* The scalar mathematics of the objectives against closed forms. Golden values are computed by hand from the
 * papers' formulas and carry eight digits: tolerance 6e-9, half a unit of the last digit and a little. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

static const double golden = 6e-9;

static struct objective pair_objective(enum weighting weighting, double beta, double smoothing)
{
    return (struct objective){
        .loss_type = LOSS_SIGMOID, .weighting = weighting, .beta = beta, .label_smoothing = smoothing};
}

/* A pair whose log-ratios are h_w = 1.3 and h_l = -0.7 on 7 and 5 tokens. */
static void plain_losses(void)
{
    static const struct {
        double smoothing, loss, coefficient;
    } rows[] = {{0, 0.59813887, -0.04501660}, {0.1, 0.61813887, -0.03501660}};
    struct completion_sums sums[2] = {{.logp = -9.1, .count = 7}, {.logp = -8, .count = 5}};
    double reference[2] = {-9.1 - 1.3, -8 + 0.7}, c[2];
    for (int i = 0; i < 2; i++) {
        struct objective objective = pair_objective(WEIGHTING_NONE, 0.1, rows[i].smoothing);
        struct group_result r = objective_group(&objective, sums, reference, c);
        CHECK_NEAR(r.loss, rows[i].loss, golden);
        CHECK_NEAR(c[0], rows[i].coefficient, golden);
        CHECK_NEAR(c[1], -rows[i].coefficient, golden);
        CHECK(r.weight == 1 && r.log_weight == 0 && !r.clamped);
        CHECK(fabs(r.loss - rows[1 - i].loss) > golden); /* the other row is another number */
    }
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

static void golden_weights(void)
{
    struct completion_sums pair[2] = {sums_of(chosen_logits, chosen_target, 3, 4),
                                      sums_of(rejected_logits, rejected_target, 2, 4)};
    CHECK_NEAR(pair[0].square, -0.616497 - 0.330405 - 1.373917, 2e-6); /* six digits, three numbers */
    CHECK_NEAR(pair[1].square, -1.192743 - 0.278986, 2e-6);
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

    double reference[2] = {-3, -2}, c[2];
    struct objective objective = pair_objective(WEIGHTING_SAMPLED, 0.01, 0);
    for (int clamp = 0; clamp < 2; clamp++) { /* below 1, so the clamp changes nothing */
        objective.weight_clamp = clamp;
        struct group_result r = objective_group(&objective, pair, reference, c);
        CHECK_NEAR(r.weight, 0.80125350, golden);
        CHECK_NEAR(r.loss, 0.55061436, golden);
        CHECK_NEAR(c[0], -0.00398234, golden);
        CHECK(c[1] == -c[0] && !r.clamped);
    }
}

/* The chosen side alone is above 1: here the clamp shows. */
static void sides_and_clamp(void)
{
    static const double sides[3] = {1.12765427 * .71054890, 1.12765427, .71054890};
    struct completion_sums pair[2] = {sums_of(chosen_logits, chosen_target, 3, 4),
                                      sums_of(rejected_logits, rejected_target, 2, 4)};
    double reference[2] = {-3, -2}, c[2], plain[2];
    struct objective none = pair_objective(WEIGHTING_NONE, 0.01, 0);
    double loss = objective_group(&none, pair, reference, plain).loss;
    for (enum weight_sides side = WEIGHT_BOTH; side <= WEIGHT_REJECTED; side++)
        for (int clamp = 0; clamp < 2; clamp++) {
            struct objective objective = pair_objective(WEIGHTING_SAMPLED, 0.01, 0);
            objective.weight_sides = side;
            objective.weight_clamp = clamp;
            struct group_result r = objective_group(&objective, pair, reference, c);
            bool above = side == WEIGHT_CHOSEN;
            double weight = clamp && above ? 1 : sides[side];
            CHECK(r.clamped == (clamp && above));
            CHECK_NEAR(r.log_weight, log(sides[side]),
                       2 * golden); /* of two numbers of eight digits, before the clamp */
            CHECK_NEAR(r.weight, weight, 2 * golden);
            CHECK_NEAR(r.loss, weight * loss, 2 * golden);
            CHECK_NEAR(c[0], weight * plain[0], 1e-15 + 2 * golden * 0.01);
            CHECK_NEAR(c[1], weight * plain[1], 1e-15 + 2 * golden * 0.01);
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
    CHECK(completion_log_weight(&best, WEIGHTING_SAMPLED) >
          0); /* more likely than a sampled token on average */
}

/* -- step 0, where policy is reference -------------------------------------------------------- */

static void step_zero(void)
{
    struct completion_sums pair[2] = {sums_of(chosen_logits, chosen_target, 3, 4),
                                      sums_of(rejected_logits, rejected_target, 2, 4)};
    double reference[2] = {pair[0].logp, pair[1].logp}, c[2];
    for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++)
        for (int smooth = 0; smooth < 2; smooth++) {
            double e = smooth ? 0.25 : 0;
            struct objective objective = pair_objective(weighting, 0.1, e);
            struct group_result r = objective_group(&objective, pair, reference, c);
            CHECK_NEAR(r.loss, log(2) * r.weight, 2e-16 * r.weight); /* both halves of smoothing are log 2 */
            CHECK_NEAR(c[0], r.weight * 0.1 * (0.5 - (1 - e)), 1e-16);
        }
}

/* -- the gradient: derivatives of the loss at a fixed weight ---------------------------------- */

struct pair_loss {
    struct objective objective;
    struct completion_sums sums[2];
    double reference[2];
    bool through_weight;
};

static double pair_loss(void *context)
{
    struct pair_loss *l = context;
    double c[2];
    struct group_result r = objective_group(&l->objective, l->sums, l->reference, c);
    return l->through_weight ? r.loss : r.loss / r.weight;
}

/* Five-point rule: h^4 times the fifth derivative of beta-scaled logistic loss, and 1e-13 |loss| of rounding.
 */
static void gradients(void)
{
    unsigned long long state = 3;
    for (int trial = 0; trial < 60; trial++) {
        struct pair_loss l = {.objective = pair_objective((enum weighting)(trial % 4), trial % 3 ? 0.1 : 0.5,
                                                          trial % 2 ? 0.2 : 0)};
        l.objective.weight_sides = (enum weight_sides)(trial % 3);
        l.objective.weight_clamp = trial % 5 == 0;
        for (int s = 0; s < 2; s++) {
            l.sums[s].count = 1 + trial % 13;
            l.sums[s].logp = -3 + 2 * check_uniform(&state);
            l.sums[s].square = -2 + check_uniform(&state);
            l.sums[s].maximum = -1 + check_uniform(&state);
            l.reference[s] = l.sums[s].logp + 20 * check_uniform(&state);
        }
        double c[2];
        struct group_result r = objective_group(&l.objective, l.sums, l.reference, c);
        for (int s = 0; s < 2; s++) {
            double slope = r.weight * oracle_derivative(pair_loss, &l, &l.sums[s].logp);
            CHECK_NEAR(c[s], slope, 1e-10 * (1 + r.loss));
            CHECK(fabs(c[s] + slope) > 1e-9 || fabs(slope) < 1e-9); /* the sign can be told */
        }
        l.through_weight = true; /* negative control: had the weight a gradient, it would show */
        if (l.objective.weighting != WEIGHTING_NONE && !r.clamped &&
            l.objective.weight_sides != WEIGHT_REJECTED)
            CHECK(fabs(c[0] - oracle_derivative(pair_loss, &l, &l.sums[0].logp)) > 1e-8 * (1 + r.loss));
    }
}

/* -- extremes --------------------------------------------------------------------------------- */

static void extremes(void)
{
    CHECK(log_sigmoid(1e6) == 0 && log_sigmoid(-1e6) == -1e6);
    CHECK(sigmoid(1e6) == 1 && sigmoid(-1e6) == 0 && sigmoid(0) == 0.5);
    CHECK_NEAR(log_sigmoid(-745), -745, 1e-12);
    CHECK_NEAR(log_sigmoid(40), -exp(-40), 1e-30); /* not rounded to 0 */
    CHECK_NEAR(sigmoid(-700) / exp(-700), 1, 1e-14);
    for (double x = -50; x <= 50; x += 3.7) {
        CHECK_NEAR(log_sigmoid(x) - log_sigmoid(-x), x, 1e-14 * (1 + fabs(x)));
        CHECK_NEAR(sigmoid(x) + sigmoid(-x), 1, 2e-16);
        CHECK_NEAR(exp(log_sigmoid(x)), sigmoid(x), 1e-14 * sigmoid(x));
    }
    for (int sign = -1; sign <= 1; sign += 2)
        for (int smooth = 0; smooth < 2; smooth++)
            for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++) {
                struct completion_sums pair[2] = {
                    {.logp = sign > 0 ? -1 : -1e6, .square = -5, .maximum = -3, .count = 1},
                    {.logp = sign > 0 ? -1e6 : -1, .square = -5, .maximum = -3, .count = 1}};
                double reference[2] = {-2, -2}, c[2], e = smooth ? 0.1 : 0, beta = 1;
                struct objective objective = pair_objective(weighting, beta, e);
                struct group_result r = objective_group(&objective, pair, reference, c);
                CHECK(isfinite(r.loss) && isfinite(r.weight) && isfinite(c[0]) && isfinite(c[1]));
                if (weighting != WEIGHTING_NONE) continue;
                double margin = sign * 999999.0;
                CHECK_NEAR(r.loss, sign > 0 ? e * margin : (1 - e) * -margin, 1e-9);
                CHECK_NEAR(c[0], sign > 0 ? e : -(1 - e), 1e-15);
            }
    /* A weight that overflows double stays finite, with and without clamp. */
    for (int clamp = 0; clamp < 2; clamp++) {
        struct completion_sums pair[2] = {{.logp = -1, .square = -2e6, .count = 1},
                                          {.logp = -1, .square = -9, .count = 1}};
        double reference[2] = {-1, -1}, c[2];
        struct objective objective = pair_objective(WEIGHTING_SAMPLED, 0.1, 0);
        objective.weight_clamp = clamp;
        struct group_result r = objective_group(&objective, pair, reference, c);
        CHECK(isfinite(r.loss) && isfinite(c[0]) && r.weight >= 1 && r.clamped == clamp &&
              r.log_weight > 1e6);
        CHECK(!clamp || r.weight == 1);
    }
}

/* -- sft -------------------------------------------------------------------------------------- */

static void sft(void)
{
    struct completion_sums one = sums_of(chosen_logits, chosen_target, 3, 4);
    struct objective objective = {.loss_type = LOSS_SFT, .weighting = WEIGHTING_SAMPLED, .beta = 0.1};
    double c = 7;
    struct group_result r = objective_group(&objective, &one, NULL, &c);
    CHECK_NEAR(r.loss, 1.96040047, golden);
    CHECK(c == -1 && r.weight == 1 && !r.clamped && r.log_weight == 0);
    CHECK(objective_group_size(LOSS_SFT) == 1 && objective_group_size(LOSS_SIGMOID) == 2);
    CHECK(!objective_uses_reference(LOSS_SFT) && objective_uses_reference(LOSS_SIGMOID));
}

/* A loss that is not finite has a gradient that is not either, whatever the rows of softmax hold, so that no
 * step is taken; and a weight of nothing known is no number. */
static void not_finite(void)
{
    static const double broken[] = {NAN, -INFINITY};
    for (int i = 0; i < 2; i++)
        for (int pair = 0; pair < 2; pair++) {
            struct objective objective = pair_objective(WEIGHTING_SAMPLED, 0.1, 0);
            struct completion_sums sums[2] = {{.logp = broken[i], .square = -1, .count = 3},
                                              {.logp = -4, .square = -1, .count = 3}};
            double reference[2] = {-5, -4}, c[2] = {0, 0};
            objective.loss_type = pair ? LOSS_SIGMOID : LOSS_SFT;
            struct group_result r = objective_group(&objective, sums, reference, c);
            CHECK(!isfinite(r.loss) && isnan(c[0]) && (!pair || isnan(c[1])));
            CHECK(!pair || (isnan(broken[i]) ? isnan(r.weight) : r.weight == 0));
        }
}

int main(void)
{
    plain_losses();
    golden_weights();
    sides_and_clamp();
    weight_properties();
    step_zero();
    gradients();
    extremes();
    sft();
    not_finite();
    return check_result();
}
