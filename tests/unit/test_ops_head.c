/* The head: statistics of a token from its logits, their gradient in place, sums of completions, objective.
 */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

/* What the logits look like. */
enum looks {
    LOOKS_RANDOM,
    LOOKS_RISING,   /* every logit is a new maximum */
    LOOKS_EQUAL,    /* all the same: entropy log V, every token is a hit */
    LOOKS_TARGET,   /* the target at 80, the others at -80 */
    LOOKS_OTHER,    /* another token at 80, the target at -80 */
    LOOKS_FAR,      /* around 1e4 */
    LOOKS_WIDE,     /* from -1e4 to 1e4 */
    LOOKS_PAIR,     /* two tokens tie at the top */
    LOOKS_NEGATIVE, /* all far below 0: a maximum that starts at 0 is wrong */
    LOOKS_COUNT
};

static double *draw_logits(struct lab *lab, enum looks looks, const int64_t *target, int64_t tokens,
                           int64_t vocabulary)
{
    double *z = lab_randoms(lab, tokens * vocabulary, 20 + looks, looks == LOOKS_WIDE ? 1e4 : 6);
    for (int64_t i = 0; i < tokens * vocabulary; i++) {
        int64_t v = i % vocabulary, y = target[i / vocabulary], other = (y + 1) % vocabulary;
        if (looks == LOOKS_RISING) z[i] = lab_round(0.01 * (double)v + z[i] * 1e-4);
        if (looks == LOOKS_EQUAL) z[i] = 0.5;
        if (looks == LOOKS_TARGET) z[i] = v == y ? 80 : -80;
        if (looks == LOOKS_OTHER) z[i] = v == other ? 80 : -80;
        if (looks == LOOKS_FAR) z[i] = lab_round(1e4 + z[i]);
        if (looks == LOOKS_PAIR && (v == y || v == other)) z[i] = 9;
        if (looks == LOOKS_NEGATIVE) z[i] = lab_round(z[i] - 900);
    }
    return z;
}

struct logp_loss {
    double *z, *statistics;
    int64_t target, vocabulary;
};

static double logp_loss(void *context)
{
    struct logp_loss *l = context;
    oracle_head_statistics(l->statistics, NULL, l->z, &l->target, 1, l->vocabulary);
    return l->statistics[HEAD_LOGP];
}

/* d logp / d z, and how far f32 may be off: p = exp(z - m - log s1) is within (e1 + u |z - m| + 8 u) of
 * itself, e1 being the bound of log s1; then one subtraction and one product. An exponential below e^-87 may
 * be 0. */
static void logit_gradient(double *dz, double *bound, double *z, double e1, int64_t target,
                           int64_t vocabulary, double coefficient, bool derive)
{
    double statistics[HEAD_STATISTICS];
    struct logp_loss loss = {z, statistics, target, vocabulary};
    logp_loss(&loss);
    for (int64_t v = 0; v < vocabulary; v++) {
        double d = z[v] - statistics[HEAD_MAXIMUM], p = exp(d - statistics[HEAD_LOG_SUM]);
        double exact = (v == target ? 1 : 0) - p, error = e1 + LAB_UNIT * (fabs(d) + 8);
        dz[v] = coefficient * (derive ? oracle_derivative(logp_loss, &loss, &z[v]) : exact);
        bound[v] = fabs(coefficient) * (error * p + 2 * LAB_UNIT * (p + (v == target)) + 1e-37);
        if (derive) bound[v] += 1e-9 * fabs(coefficient); /* of the five-point rule, where z is of size 10 */
    }
}

static void try_head(struct lab *lab, int64_t tokens, int64_t vocabulary, int64_t margin, enum looks looks)
{
    int64_t count = tokens * vocabulary, statistics_count = tokens * HEAD_STATISTICS;
    int64_t *target = (int64_t *)(void *)lab_doubles(lab, tokens);
    for (int64_t t = 0; t < tokens; t++)
        target[t] = t % 3 == 2 ? vocabulary - 1 : t * 31 % vocabulary;
    double *z = draw_logits(lab, looks, target, tokens, vocabulary);
    double *coefficient = lab_randoms(lab, tokens, 40, 0.1), *got = lab_doubles(lab, statistics_count);
    double *want = lab_doubles(lab, statistics_count), *bound = lab_doubles(lab, statistics_count);
    if (tokens > 2) coefficient[1] = 0;
    int64_t *on_device = lab_array(lab, target, (size_t)tokens * sizeof *target);
    struct lab_matrix mz = lab_matrix(lab, tokens, vocabulary, margin);
    struct lab_matrix ms = lab_matrix(lab, tokens, HEAD_STATISTICS, 0), mc = lab_matrix(lab, 1, tokens, 0);
    lab_put(&mz, z);
    lab_put(&mc, coefficient);
    lab_fill(&ms, NAN);
    lab->ops->head_statistics(lab->device, ms.view.data, mz.view, on_device);
    LAB_GET(ms, got);
    CHECK(lab_unchanged(&mz));
    oracle_head_statistics(want, bound, z, target, tokens, vocabulary);
    lab_put(&ms, got); /* an input from here on */
    double *kept = lab_doubles(lab, statistics_count);
    memcpy(kept, got, (size_t)statistics_count * sizeof *kept);
    for (int64_t t = 0; t < tokens; t++) /* what stands in the spare column is nobody's business */
        kept[t * HEAD_STATISTICS + HEAD_SPARE] = 0;
    LAB_CLOSE(kept, want, bound, statistics_count);
    for (int64_t t = 0; t < tokens;
         t++) { /* probabilities are at most 1, the most likely token at least 1/V */
        const double *s = got + t * HEAD_STATISTICS;
        CHECK(s[HEAD_LOGP] <= -s[HEAD_LOG_SUM] && s[HEAD_LOG_SUM] >= 0);
        CHECK(s[HEAD_LOG_SQUARE] <= -s[HEAD_LOG_SUM] + bound[t * HEAD_STATISTICS + HEAD_LOG_SQUARE]);
        CHECK(s[HEAD_ENTROPY] >= -bound[t * HEAD_STATISTICS + HEAD_ENTROPY]);
    }

    lab->ops->head_gradient(lab->device, mz.view, ms.view.data, on_device, mc.view.data);
    double *dz = lab_doubles(lab, count), *dz_want = lab_doubles(lab, count),
           *dz_bound = lab_doubles(lab, count);
    LAB_GET(mz, dz);
    CHECK(lab_unchanged(&ms) && lab_unchanged(&mc));
    bool derive = (looks == LOOKS_RANDOM || looks == LOOKS_PAIR) && vocabulary <= 65;
    for (int64_t t = 0; t < tokens; t++)
        logit_gradient(dz_want + t * vocabulary, dz_bound + t * vocabulary, z + t * vocabulary,
                       bound[t * HEAD_STATISTICS + HEAD_LOG_SUM], target[t], vocabulary, coefficient[t],
                       derive);
    LAB_CLOSE(dz, dz_want, dz_bound, count);

    /* Negative controls: the next token as target; the gradient of the wrong sign of p. */
    int64_t truth = target[0];
    target[0] = (truth + 1) % vocabulary;
    logit_gradient(dz_want, dz_bound, z, bound[HEAD_LOG_SUM], target[0], vocabulary, coefficient[0], false);
    LAB_DIFFERS(dz, dz_want, dz_bound, count);
    if (looks != LOOKS_EQUAL && looks != LOOKS_PAIR) {
        oracle_head_statistics(want, bound, z, target, tokens, vocabulary);
        LAB_DIFFERS(kept, want, bound, statistics_count);
    }
    lab_release(lab);
}

/* -- sums and objective ----------------------------------------------------------------------- */

enum { COMPLETIONS = 26 };

/* Numbers as they come out of a head, for completions of 1 to 65 tokens. */
static int64_t draw_statistics(double *statistics, int64_t *first)
{
    static const int64_t lengths[] = {1, 7, 13, 65, 2};
    unsigned long long state = 5;
    int64_t at = 0;
    for (int64_t s = 0; s < COMPLETIONS; s++) {
        first[s] = at;
        for (int64_t i = 0; i < lengths[s % 5]; i++, at++) {
            double *row = statistics + at * HEAD_STATISTICS;
            for (int c = 0; c < HEAD_STATISTICS; c++)
                row[c] = lab_round(3 * check_uniform(&state));
            row[HEAD_LOG_SUM] = fabs(row[HEAD_LOG_SUM]);
            row[HEAD_LOGP] = lab_round(-row[HEAD_LOG_SUM] - fabs(row[HEAD_LOGP]));
            row[HEAD_HIT] = row[HEAD_HIT] > 1 ? 1 : 0;
        }
    }
    first[COMPLETIONS] = at;
    return at;
}

static const struct {
    enum head_statistic column;
    double sign;
} sum_columns[] = {{HEAD_LOGP, 1},    {HEAD_LOG_SQUARE, 1}, {HEAD_LOG_SUM, -1},
                   {HEAD_ENTROPY, 1}, {HEAD_MEAN, 1},       {HEAD_HIT, 1}};

static void sums_as_doubles(double *values, const struct completion_sums *sums)
{
    for (int64_t s = 0; s < COMPLETIONS; s++) {
        double six[] = {sums[s].logp,    sums[s].square, sums[s].maximum,
                        sums[s].entropy, sums[s].logits, sums[s].hits};
        memcpy(values + 6 * s, six, sizeof six);
    }
}

/* The sums are double: n terms in any order are within n 2^-53 sum |.|. */
static void try_sums(struct lab *lab, struct completion_sums sums[COMPLETIONS + 1],
                     int64_t first[COMPLETIONS + 1])
{
    double *statistics = lab_doubles(lab, 8192);
    int64_t tokens = draw_statistics(statistics, first);
    struct lab_matrix ms = lab_matrix(lab, tokens, HEAD_STATISTICS, 0);
    lab_put(&ms, statistics);
    int64_t *first_on_device = lab_array(lab, first, (COMPLETIONS + 1) * sizeof *first);
    memset(sums, 0xff, (COMPLETIONS + 1) * sizeof *sums); /* NaN; one more as a canary */
    struct completion_sums *on_device = lab_array(lab, sums, (COMPLETIONS + 1) * sizeof *sums);
    lab->ops->head_sums(lab->device, on_device, ms.view.data, first_on_device, COMPLETIONS);
    lab->ops->download(lab->device, sums, on_device, (COMPLETIONS + 1) * sizeof *sums);
    CHECK(lab_unchanged(&ms) && sums[COMPLETIONS].count == -1);
    double got[6 * COMPLETIONS], want[6 * COMPLETIONS] = {0}, bound[6 * COMPLETIONS] = {0};
    for (int64_t s = 0; s < COMPLETIONS; s++) {
        CHECK(sums[s].count == first[s + 1] - first[s]);
        for (int64_t t = first[s]; t < first[s + 1]; t++)
            for (int c = 0; c < 6; c++) {
                double term = sum_columns[c].sign * statistics[t * HEAD_STATISTICS + sum_columns[c].column];
                want[6 * s + c] += term;
                bound[6 * s + c] += (double)(first[s + 1] - first[s]) * 0x1p-53 * fabs(term);
            }
    }
    sums_as_doubles(got, sums);
    lab_note(lab, "sums", got, sizeof got);
    LAB_CLOSE(got, want, bound, 6 * COMPLETIONS);
    want[6 * 3] +=
        statistics[first[4] * HEAD_STATISTICS + HEAD_LOGP]; /* negative control: one token too many */
    LAB_DIFFERS(got, want, bound, 6 * COMPLETIONS);
    lab_release(lab);
}

/* The same scalar code, in the backend and here: a few double roundings apart; the coefficient is then
 * rounded to f32. */
static void try_objective(struct lab *lab, const struct completion_sums *sums, const int64_t *first,
                          struct objective objective)
{
    enum { MOST = COMPLETIONS };
    int64_t size = objective_group_size(objective.loss_type), groups = COMPLETIONS / size,
            tokens = first[COMPLETIONS];
    double reference[MOST], scale = 1.0 / 7, *coefficient = lab_doubles(lab, tokens);
    double *want_coefficient = lab_doubles(lab, tokens), *bound_coefficient = lab_doubles(lab, tokens);
    unsigned long long state = 6;
    for (int64_t s = 0; s < COMPLETIONS; s++)
        reference[s] = sums[s].logp + 30 * check_uniform(&state);
    struct group_result results[MOST + 1];
    memset(results, 0, sizeof results);
    for (int64_t g = 0; g <= groups; g++)
        results[g].loss = results[g].weight = results[g].log_weight = NAN;
    struct lab_matrix mc = lab_matrix(lab, 1, tokens, 0);
    lab_fill(&mc, NAN);
    struct group_result *results_on_device = lab_array(lab, results, sizeof results);
    lab->ops->objective(
        lab->device, results_on_device, mc.view.data, lab_array(lab, sums, COMPLETIONS * sizeof *sums),
        objective_uses_reference(objective.loss_type) ? lab_array(lab, reference, sizeof reference) : NULL,
        lab_array(lab, first, (COMPLETIONS + 1) * sizeof *first), groups, size, &objective, scale);
    LAB_GET(mc, coefficient);
    lab->ops->download(lab->device, results, results_on_device, sizeof results);
    CHECK(isnan(results[groups].loss));
    double got[3 * MOST], want[3 * MOST], bound[3 * MOST];
    for (int64_t g = 0; g < groups; g++) {
        double c[2] = {0, 0};
        struct group_result r = objective_group(&objective, sums + g * size, reference + g * size, c);
        double three[] = {r.loss, r.weight, r.log_weight};
        CHECK(results[g].clamped == r.clamped);
        memcpy(got + 3 * g, (double[]){results[g].loss, results[g].weight, results[g].log_weight},
               sizeof three);
        memcpy(want + 3 * g, three, sizeof three);
        for (int i = 0; i < 3; i++)
            bound[3 * g + i] = 1e-13 * fabs(three[i]);
        for (int64_t t = first[g * size]; t < first[(g + 1) * size]; t++) {
            want_coefficient[t] = scale * c[size == 2 && t >= first[g * size + 1]];
            bound_coefficient[t] = 1.01 * LAB_UNIT * fabs(want_coefficient[t]);
        }
    }
    lab_note(lab, "objective", got, (size_t)(3 * groups) * sizeof *got);
    LAB_CLOSE(got, want, bound, 3 * groups);
    LAB_CLOSE(coefficient, want_coefficient, bound_coefficient, tokens);
    for (int64_t t = 0; t < tokens; t++) /* negative control: the scale forgotten */
        want_coefficient[t] /= scale;
    LAB_DIFFERS(coefficient, want_coefficient, bound_coefficient, tokens);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    static const int64_t vocabularies[] = {7, 65, 1000}, rows[] = {1, 7, 13, 65};
    for (int v = 0; v < 3; v++)
        for (int r = 0; r < 4; r++)
            for (int64_t margin = 0; margin < 4; margin += 3)
                for (enum looks looks = LOOKS_RANDOM; looks < LOOKS_COUNT; looks++)
                    if (looks == LOOKS_RANDOM || r == v)
                        try_head(lab, rows[r], vocabularies[v], margin, looks);
    try_head(lab, 7, 50257, 0, LOOKS_RANDOM);
    for (enum looks looks = LOOKS_RISING; looks < LOOKS_COUNT; looks++)
        try_head(lab, 3, 6007, 3, looks);
    struct completion_sums sums[COMPLETIONS + 1];
    int64_t first[COMPLETIONS + 1];
    try_sums(lab, sums, first);
    for (enum weighting weighting = WEIGHTING_NONE; weighting < WEIGHTING_COUNT; weighting++)
        for (int bits = 0; bits < 6; bits++)
            try_objective(lab, sums, first,
                          (struct objective){LOSS_SIGMOID, weighting, (enum weight_sides)(bits % 3),
                                             bits >= 3, 0.1, bits % 2 ? 0.1 : 0});
    try_objective(lab, sums, first, (struct objective){.loss_type = LOSS_SFT});
}

int main(void)
{
    lab_run(all);
    return check_result();
}
