/* Losses at extremes, in closed form, and beside each other: what equals what. */
#include "tests/unit/loss_case.h"

static const double smooth = 0.1, far = 1e4;

/* -- scalars ---------------------------------------------------------------------------------- */

static void scalars(void)
{
    CHECK(log_sigmoid(1e6) == 0 && log_sigmoid(-1e6) == -1e6);
    CHECK(sigmoid(1e6) == 1 && sigmoid(-1e6) == 0 && sigmoid(0) == 0.5);
    CHECK(sigmoid_slope(1e6) == 0 && sigmoid_slope(-1e6) == 0 && sigmoid_slope(0) == 0.25);
    CHECK_NEAR(log_sigmoid(-745), -745, 1e-12);
    CHECK_NEAR(log_sigmoid(40), -exp(-40), 1e-30); /* not rounded to 0 */
    CHECK_NEAR(sigmoid(-700) / exp(-700), 1, 1e-14);
    CHECK_NEAR(sigmoid_slope(700) / exp(-700), 1, 1e-14);
    for (double x = -50; x <= 50; x += 3.7) {
        CHECK_NEAR(log_sigmoid(x) - log_sigmoid(-x), x, 1e-14 * (1 + fabs(x)));
        CHECK_NEAR(sigmoid(x) + sigmoid(-x), 1, 2e-16);
        CHECK_NEAR(exp(log_sigmoid(x)), sigmoid(x), 1e-14 * sigmoid(x));
        CHECK_NEAR(sigmoid_slope(x), sigmoid(x) * sigmoid(-x), 1e-15 * sigmoid_slope(x));
    }
}

/* Closed forms, f-DPO table 1; behind e^20 the tangent, so that value and slope go on without a step. */
static void divergences(void)
{
    struct objective o = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    double slope, step = 1e-4, unused;
    static const double h[] = {-1e4, -60, -20.5, -19, -2, -1e-6, 0, 0.7, 19, 60, 1e4};
    for (int i = 0; i < 11; i++) {
        CHECK(divergence_score(&o, h[i], &slope) == h[i] && slope == 1);
        for (int kind = 0; kind < 4; kind++) {
            struct objective of = o;
            of.f_divergence_type = kind == 0   ? DIVERGENCE_FORWARD_KL
                                   : kind == 1 ? DIVERGENCE_JS
                                               : DIVERGENCE_ALPHA;
            of.f_alpha_divergence_coef = kind == 2 ? 0.5 : 1.5;
            double alpha = kind == 0 ? -1 : of.f_alpha_divergence_coef - 1;
            double value = divergence_score(&of, h[i], &slope), x = alpha * h[i];
            double want = (x <= 20 ? expm1(x) : exp(20) * (1 + x - 20) - 1) / alpha;
            if (kind == 1) want = log(2) + log_sigmoid(h[i]);
            CHECK_NEAR(value, want, 1e-14 * fabs(want) + 2e-16); /* JS: a difference near h = 0 */
            double near =
                divergence_score(&of, h[i] + step, &unused) - divergence_score(&of, h[i] - step, &unused);
            /* Off by step^2 f''' / 6 < 2e-9 f', and by roundings of the values: 2e-16 / 1e-4. */
            CHECK_NEAR(slope, near / (2 * step), 2e-9 * slope + 4e-12 * fabs(value));
            CHECK(isfinite(value) && slope >= 0 && (slope > 0 || fabs(h[i]) > 700));
        }
    }
    o.f_divergence_type = DIVERGENCE_ALPHA;
    o.f_alpha_divergence_coef = 1; /* the limit */
    CHECK(divergence_score(&o, 0.7, &slope) == 0.7 && slope == 1);
}

/* -- limits ----------------------------------------------------------------------------------- */

/* beta = 1, lengths 7 and 5; h_w and h_l as given; the loss, and what each side's log-probability is worth,
 * as the closed form says. M = 1e4. With label smoothing e = 0.1 where the loss takes it. */
static void pair_limits(void)
{
    const double e = smooth, M = far, half = log(2) / 2, robust = 1 / (1 - 2 * smooth);
    const struct {
        enum loss_type type;
        double chosen, rejected, loss, dw, dl;
    } rows[] = {
        {LOSS_SIGMOID, M, 0, e * M, e, -e}, /* the smoothed label keeps pulling */
        {LOSS_SIGMOID, -M, 0, (1 - e) * M, -(1 - e), 1 - e},
        {LOSS_SIGMOID, M, M, log(2), e - 0.5, 0.5 - e}, /* the margin alone counts */
        {LOSS_ROBUST, M, 0, -e * M * robust, -e * robust, e * robust},
        {LOSS_ROBUST, 0, M, (1 - e) * M * robust, -(1 - e) * robust, (1 - e) * robust},
        {LOSS_HINGE, M, 0, 0, 0, 0},
        {LOSS_HINGE, -M, M, 1 + 2 * M, -1, 1},
        {LOSS_HINGE, 1.001, 0, 0, 0, 0}, /* on both sides of its bend */
        {LOSS_HINGE, 0.999, 0, 0.001, -1, 1},
        {LOSS_IPO, M, 0, (M / 7 - 0.5) * (M / 7 - 0.5), 2 * (M / 7 - 0.5) / 7, -2 * (M / 7 - 0.5) / 5},
        {LOSS_IPO_SUM, 0, M, (M + 0.5) * (M + 0.5), -2 * (M + 0.5), 2 * (M + 0.5)},
        {LOSS_EXO_PAIR, M, 0, -log(1 - e), 0, 0}, /* KL of (1, 0) from (1-e, e) */
        {LOSS_EXO_PAIR, 0, M, -log(e), 0, 0},
        {LOSS_NCA_PAIR, M, 0, M / 2 + half, 0.5, 0.25},
        {LOSS_NCA_PAIR, -M, 0, M + half, -1, 0.25},
        {LOSS_NCA_PAIR, 0, M, 3 * half + M / 2, -0.25, 0.5},
        {LOSS_NCA_PAIR, 0, -M, 3 * half, -0.25, 0},
        {LOSS_BCO_PAIR, M, -M, 0, 0, 0},
        {LOSS_BCO_PAIR, -M, M, 2 * M, -1, 1},
        {LOSS_SPPO_HARD, M, -M, 2 * (M - 0.5) * (M - 0.5), 2 * (M - 0.5), -2 * (M - 0.5)},
        {LOSS_SPPO, M, 0, (M - 0.5) * (M - 0.5) / 2 + 0.125, M - 0.5, 0.5}, /* scores: P = 1 and 0 */
        {LOSS_APO_ZERO, M, -M, 0, 0, 0},
        {LOSS_APO_ZERO, -M, M, 2, 0, 0},
        {LOSS_APO_DOWN, M, M, 1.5, -0.25, 0.25},
        {LOSS_APO_DOWN, -M, 0, 1, 0, 0},
        {LOSS_APO_DOWN, -M, -2 * M, 0, 0, 0},
        {LOSS_DISCOPOP, M, 0, 0, 0, 0}, /* e^-u of an exponential that cannot overflow */
        {LOSS_DISCOPOP, -M, 0, M, -1, 1},
        {LOSS_SIGMOID_NORM, 0, M, (1 - e) * M / 5, -(1 - e) / 7, (1 - e) / 5},
        {LOSS_PLACKETT_LUCE, M, 0, 0, 0, 0},
        {LOSS_PLACKETT_LUCE, 0, M, M, -1, 1},
        {LOSS_ALL_PAIRS, -M, M, (1 - e) * 2 * M, -(1 - e), 1 - e},
        {LOSS_AOT, 0, M, (1 - e) * M, -(1 - e), 1 - e},
        {LOSS_AOT_UNPAIRED, -M, M, (1 - e) * M, -(1 - e), 1 - e},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct loss_case l = case_at(rows[i].type, rows[i].chosen, rows[i].rejected);
        l.objective.beta = 1;
        if (loss_kind(rows[i].type).traits & TRAIT_SMOOTHING) l.objective.label_smoothing = e;
        if (rows[i].type == LOSS_SPPO) l.data[0].score = 500, l.data[1].score = -500;
        double loss = case_run(&l).loss;
        double roundings = 1e-15 * (far + fabs(rows[i].loss)); /* of log-ratios near 1e4 */
        if (!(fabs(loss - rows[i].loss) <= roundings * 8)) fprintf(stderr, "row %zu\n", i);
        CHECK_NEAR(loss, rows[i].loss, roundings * 8);
        CHECK_NEAR(l.c[0].leading, rows[i].dw, 1e-12 * (1 + fabs(rows[i].dw)));
        CHECK_NEAR(l.c[1].leading, rows[i].dl, 1e-12 * (1 + fabs(rows[i].dl)));
    }
}

/* Without a reference: mean log-probabilities near 0 and far below, of one token and of many. */
static void reference_free_limits(void)
{
    static const double means[] = {-1e-9, -1e-6, -1e-3, -1, -60, -1e4};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            for (int64_t length = 1; length < 20; length += 18)
                for (int which = 0; which < 3; which++) {
                    static const enum loss_type types[] = {LOSS_SIMPO, LOSS_CPO, LOSS_ORPO};
                    struct loss_case l = case_of(types[which], WEIGHTING_NONE);
                    double n = (double)length, u;
                    l.objective.beta = 1;
                    case_set(&l, 0, length, means[i] * n, 0);
                    case_set(&l, 1, 1, means[j], 0);
                    double loss = case_run(&l).loss;
                    CHECK(isfinite(loss) && loss >= 0 && l.c[0].leading <= 0 && l.c[1].leading >= 0);
                    CHECK(isfinite(l.c[0].leading) && isfinite(l.c[1].leading));
                    if (types[which] == LOSS_ORPO) continue;
                    u = means[i] * (types[which] == LOSS_CPO ? n : 1) - means[j] -
                        l.objective.gamma_beta_ratio;
                    CHECK_NEAR(loss, log1p(exp(-fabs(u))) + fmax(-u, 0), 1e-15 * (4 + fabs(u)));
                }
}

static double odds_loss(double chosen, double rejected, double *slope)
{
    struct loss_case l = case_of(LOSS_ORPO, WEIGHTING_NONE);
    l.objective.beta = 1;
    case_set(&l, 0, 1, chosen, 0);
    case_set(&l, 1, 1, rejected, 0);
    double loss = case_run(&l).loss;
    *slope = l.c[1].leading;
    return loss;
}

/* The odds of a mean probability p = e^v are p / (1-p): -log sigmoid(log(o_w / o_l)) = log(1 + o_l / o_w). */
static void orpo_limits(void)
{
    double slope, before, after;
    CHECK_NEAR(odds_loss(log(0.5), log(0.5), &slope), log(2), 1e-15);
    CHECK_NEAR(slope, 1, 1e-15);                                             /* 1/2 / (1 - 1/2) */
    CHECK_NEAR(odds_loss(log(0.75), log(0.5), &slope), log(4.0 / 3), 1e-15); /* odds 3 and 1 */
    CHECK_NEAR(odds_loss(log(0.5), -1.5e-6, &slope), log1p(1 / expm1(1.5e-6)),
               1e-14); /* to the last digits */
    CHECK_NEAR(odds_loss(-far, log(0.5), &slope), far, 1e-11);
    CHECK_NEAR(slope, 2, 1e-14);
    CHECK(odds_loss(log(0.5), -far, &slope) == 0 && slope == 0);
    /* Beyond -1e-6 the log odds go on along their tangent: value and slope make no step, and both stay finite
     * where all tokens are certain. */
    double last = odds_loss(log(0.5), -1.0000001e-6, &before),
           next = odds_loss(log(0.5), -0.9999999e-6, &after);
    CHECK_NEAR(next - last, 2e-13 * 1e6, 1e-9); /* d odds = d v / (1 - e^v) */
    CHECK_NEAR(after / before, 1, 1e-6);
    double certain = odds_loss(log(0.5), 0, &slope);
    CHECK_NEAR(certain, -log(1e-6) + 1, 2e-6); /* odds of 1e6, and once the tangent's 1e6 times 1e-6 */
    CHECK_NEAR(slope, 1e6, 2);
    CHECK(odds_loss(-1e-9, -1e-9, &slope) == log(2));
}

/* One labelled completion: lambda times 0 or 1 of kto, lambda times a straight line of bco. */
static void labelled_limits(void)
{
    const struct {
        enum loss_type type;
        bool desirable;
        double h, loss, slope;
    } rows[] = {
        {LOSS_KTO, true, far, 0, 0},
        {LOSS_KTO, true, -far, 1.3, 0},
        {LOSS_KTO, true, 0.5, 0.65, -0.325}, /* at z_0: half, and the steepest, lambda / 4 */
        {LOSS_KTO, false, 0.5, 0.35, 0.175},
        {LOSS_KTO, false, far, 0.7, 0},
        {LOSS_KTO, false, -far, 0, 0},
        {LOSS_BCO, true, -far, 1.3 * (far + 0.2), -1.3},
        {LOSS_BCO, true, far, 0, 0},
        {LOSS_BCO, false, far, 0.7 * (far - 0.2), 0.7},
        {LOSS_BCO, false, 0.2, 0.7 * 0.69314718055994529, 0.35},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct loss_case l = case_at(rows[i].type, rows[i].h, 0);
        l.n = 1;
        l.objective.beta = 1;
        l.objective.desirable_weight = 1.3, l.objective.undesirable_weight = 0.7;
        l.facts.kl = 0.5, l.facts.shift = 0.2;
        l.data[0].desirable = rows[i].desirable;
        CHECK_NEAR(case_run(&l).loss, rows[i].loss, 1e-15 * far);
        CHECK_NEAR(l.c[0].leading, rows[i].slope, 1e-12);
    }
}

/* A group of many with one far ahead, and with one far behind. */
static void ranked_limits(void)
{
    for (int n = 2; n <= CASE_MOST; n++) {
        struct loss_case l = case_of(LOSS_PLACKETT_LUCE, WEIGHTING_NONE);
        l.n = n;
        l.objective.beta = 1;
        double factorial = 0; /* log n! : all rankings are as likely */
        for (int i = 0; i < n; i++) {
            case_set(&l, i, 1 + i, -4, 0);
            factorial += log(i + 1);
        }
        CHECK_NEAR(case_run(&l).loss, factorial, 1e-15 * n * n);
        case_set(&l, 0, 1, -4, far); /* the best is certain: of the others all rankings are as likely */
        CHECK_NEAR(case_run(&l).loss, factorial - log(n), 1e-15 * n * n);
        CHECK(l.c[0].leading == 0);
        case_set(&l, 0, 1, -4, -far); /* it is last with certainty: once the whole distance */
        CHECK_NEAR(case_run(&l).loss, far + factorial - log(n) + log(n - 1), 1e-11);
        CHECK(l.c[0].leading == -1);
        double sum = 0;
        for (int i = 0; i < n; i++)
            sum += l.c[i].leading;
        CHECK_NEAR(sum, 0, 1e-15 * n); /* what all have in common does not count */
    }
}

/* -- monotone --------------------------------------------------------------------------------- */

/* The loss falls with h_w and rises with h_l, and coefficients have those signs, over many orders of size. */
static void monotone(void)
{
    static const enum loss_type types[] = {LOSS_SIGMOID,  LOSS_ROBUST,        LOSS_HINGE,     LOSS_BCO_PAIR,
                                           LOSS_APO_ZERO, LOSS_SIGMOID_NORM,  LOSS_ALL_PAIRS, LOSS_AOT,
                                           LOSS_CPO,      LOSS_PLACKETT_LUCE, LOSS_SIMPO,     LOSS_ORPO};
    for (size_t k = 0; k < sizeof types / sizeof *types; k++)
        for (int side = 0; side < 2; side++) {
            bool reference = loss_kind(types[k]).traits & TRAIT_REFERENCE;
            double before = 0;
            for (int i = -400; i <= (reference ? 400 : 0); i++) {
                double h = sinh(i / 40.0); /* up to 1e4 */
                struct loss_case l = case_pair(types[k], WEIGHTING_NONE);
                if (reference)
                    case_set(&l, side, 3, -7, h);
                else
                    case_set(&l, side, 3, h, 0);
                double loss = case_run(&l).loss, fall = side ? before - loss : loss - before;
                CHECK(i == -400 || fall <= 1e-12 * (1 + fabs(loss)));
                CHECK(l.c[0].leading <= 0 && l.c[1].leading >= 0);
                before = loss;
            }
        }
}

/* -- what equals what ------------------------------------------------------------------------- */

static void same(struct loss_case *a, struct loss_case *b, double factor, double roundings)
{
    double left = case_run(a).loss, right = factor * case_run(b).loss;
    CHECK_NEAR(left, right, roundings * (1 + fabs(right)));
    for (int64_t i = 0; i < a->n; i++) {
        CHECK_NEAR(a->c[i].leading, factor * b->c[i].leading, roundings);
        CHECK_NEAR(a->c[i].trailing, factor * b->c[i].trailing, roundings);
    }
}

static void equal_losses(double w, double l_ratio)
{
    struct loss_case a, b = case_at(LOSS_SIGMOID, w, l_ratio);
    const double tiny = 4e-15; /* a few roundings of log-ratios of size 10 */
    a = case_at(LOSS_PLACKETT_LUCE, w, l_ratio);
    same(&a, &b, 1, tiny);
    a = case_at(LOSS_ALL_PAIRS, w, l_ratio);
    same(&a, &b, 1, tiny);
    a.data[0].score = a.data[1].score = 0; /* no preference: nothing to learn */
    CHECK(case_run(&a).loss == 0 && a.c[0].leading == 0 && a.c[1].leading == 0);
    a = case_at(LOSS_ROBUST, w, l_ratio);
    same(&a, &b, 1, 0);
    a = case_at(LOSS_AOT, w, l_ratio);
    same(&a, &b, 1, 0);
    a = case_at(LOSS_CPO, w, l_ratio), b.objective.reference_free = true;
    same(&a, &b, 1, 0);

    a = case_at(LOSS_SPPO, w, l_ratio), b = case_at(LOSS_SPPO_HARD, w, l_ratio);
    a.objective.beta = b.objective.beta;
    a.objective.score_type = SCORE_PROBABILITY;
    a.data[0].score = 1, a.data[1].score = 0;
    same(&a, &b, 0.5, 0);

    a = case_at(LOSS_IPO, w, l_ratio), b = case_at(LOSS_IPO_SUM, w, l_ratio);
    a.sums[0].count = a.sums[1].count = 1;
    same(&a, &b, 1, 0);

    a = case_at(LOSS_BCO, w, l_ratio), b = case_at(LOSS_BCO_PAIR, w, l_ratio);
    a.data[0].desirable = true;
    same(&a, &b, 1, 0);
    a = case_at(LOSS_KTO, w, l_ratio), b = case_at(LOSS_APO_ZERO_UNPAIRED, w, l_ratio);
    a.data[0].desirable = b.data[0].desirable = true;
    same(&a, &b, 1, 0);
    b = case_at(LOSS_APO_ZERO, w, l_ratio);
    same(&a, &b, 1, 0);

    /* AOT's unpaired form where every partner is of its own group: the pair's margin, on each side. */
    a = case_at(LOSS_AOT_UNPAIRED, w, l_ratio), b = case_at(LOSS_SIGMOID, w, l_ratio);
    a.data[0].reference += l_ratio, a.data[1].reference += w;
    same(&a, &b, 1, tiny);
}

/* Losses of a margin and nothing else: what is added to both sides does not count, the two sides pull
 * equally, and with sides changed u is -u. */
static void margins(double w, double l_ratio)
{
    static const enum loss_type types[] = {LOSS_SIGMOID,  LOSS_ROBUST,   LOSS_HINGE,         LOSS_IPO_SUM,
                                           LOSS_EXO_PAIR, LOSS_DISCOPOP, LOSS_PLACKETT_LUCE, LOSS_ALL_PAIRS};
    for (int i = 0; i < 8; i++) {
        struct loss_case a = case_at(types[i], w, l_ratio), b = case_at(types[i], w + 2, l_ratio + 2),
                         turned = case_at(types[i], l_ratio, w), back = case_at(types[i], -w, -l_ratio);
        same(&a, &b, 1, 1e-13 * a.objective.beta * (1 + fabs(w - l_ratio)));
        CHECK_NEAR(a.c[0].leading, -a.c[1].leading, 1e-16);
        same(&turned, &back, 1, 1e-13 * a.objective.beta * (1 + fabs(w - l_ratio)));
    }
    /* log sigmoid(u) - log sigmoid(-u) = u; with a smoothing of one half sides would not matter. */
    struct loss_case a = case_at(LOSS_SIGMOID, w, l_ratio), b = case_at(LOSS_SIGMOID, l_ratio, w);
    CHECK_NEAR(case_run(&b).loss - case_run(&a).loss, 0.1 * (w - l_ratio), 1e-14);
    CHECK_NEAR(b.c[0].leading + a.c[0].leading, -0.1, 1e-15);
    a.objective.label_smoothing = b.objective.label_smoothing = 0.5;
    CHECK_NEAR(case_run(&a).loss, case_run(&b).loss, 1e-14);
}

/* A weight of exactly 1 changes nothing; a list is the sum of its losses, in any order. */
static void weights_and_lists(void)
{
    for (enum loss_type type = 0; type < LOSS_COUNT; type++) {
        struct loss_case a = case_pair(type, WEIGHTING_SAMPLED), b = case_pair(type, WEIGHTING_NONE);
        a.data[0].score = b.data[0].score = 2, a.data[1].score = b.data[1].score = 1;
        if (loss_kind(type).traits & TRAIT_UNWEIGHTED) continue;
        for (int i = 0; i < 2; i++)
            a.sums[i].square = a.sums[i].logp;
        same(&a, &b, 1, 0);
        CHECK(a.result.weight == 1 && a.result.log_weight == 0 && !a.result.clamped);
    }
    for (enum weighting weighting = WEIGHTING_NONE; weighting <= WEIGHTING_UNALIGNED; weighting++)
        for (int kind = 0; kind < 3; kind++) {
            static const enum loss_type types[3][2] = {
                {LOSS_SIGMOID, LOSS_HINGE}, {LOSS_ALL_PAIRS, LOSS_PLACKETT_LUCE}, {LOSS_KTO, LOSS_BCO}};
            struct loss_case list = case_pair(types[kind][0], weighting), turned, one, other;
            list.n = kind ? 3 : 2; /* of more than two the product of all weights is not that of each pair */
            case_set(&list, 2, 4, -6, 0.3);
            list.data[0].desirable = true;
            list.objective.terms[0].weight = 0.3;
            list.objective.terms[1] = (struct loss_term){types[kind][1], 0.7};
            list.objective.term_count = 2;
            turned = one = other = list;
            turned.objective.terms[0] = list.objective.terms[1];
            turned.objective.terms[1] = list.objective.terms[0];
            one.objective.term_count = other.objective.term_count = 1;
            other.objective.terms[0] = list.objective.terms[1];
            same(&list, &turned, 1, 1e-15);
            double loss = case_run(&one).loss + case_run(&other).loss;
            CHECK_NEAR(case_run(&list).loss, loss, 1e-15);
            for (int i = 0; i < list.n; i++)
                CHECK_NEAR(list.c[i].leading, one.c[i].leading + other.c[i].leading, 1e-16);
        }
}

/* Every pair of a ranked group has its own weight, and its own clamp. */
static void pair_weights(void)
{
    struct loss_case l = case_of(LOSS_ALL_PAIRS, WEIGHTING_SAMPLED);
    double loss = 0, weights = 0;
    l.n = 3;
    for (int i = 0; i < 3; i++)
        case_set(&l, i, 2 + i, -5, 0.4 * i);
    l.sums[2].square = -5 - 4 * 0.9; /* log w = 0.9: with the first 0.7, with the second 0.4 */
    for (int i = 0; i < 3; i++)
        for (int j = i + 1; j < 3; j++) {
            double w = exp(fmin(completion_log_weight(&l.sums[i], WEIGHTING_SAMPLED) +
                                    completion_log_weight(&l.sums[j], WEIGHTING_SAMPLED),
                                0));
            loss += w * log1p(exp(0.1 * 0.4 * (j - i))) / 3;
            weights += w / 3;
        }
    CHECK_NEAR(case_run(&l).loss, loss, 1e-15);
    CHECK_NEAR(l.result.weight, weights, 1e-15);
    CHECK(l.result.clamped);
}

int main(void)
{
    static const double ratios[] = {-6, -0.7, 0, 1.3, 8};
    scalars();
    divergences();
    pair_limits();
    reference_free_limits();
    orpo_limits();
    labelled_limits();
    ranked_limits();
    monotone();
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            equal_losses(ratios[i], ratios[j]);
            margins(ratios[i], ratios[j]);
        }
    weights_and_lists();
    pair_weights();
    return check_result();
}
