/* The optimiser in bf16: parameters as two halves must be the f32 master to the bit, and moments are rounded
 * stochastically, without bias, from a hash that knows no ranks. */
#include "kernels/bfloat.h"
#include "tests/unit/oracle_lab.h"

enum { MOST = 20011, GUARD = 8 };

/* What one update is done with. */
struct recipe {
    enum dtype parameter_type, moment_type, gradient_type;
    int64_t count, cut; /* two pieces: elements before `cut`, and the rest; 0: one */
    int64_t first;      /* place of the first element in the model */
    int steps;
    double norm;
    struct adamw settings;
    const double *parameter, *moment, *variance, *gradient; /* [count], exact in their types */
};

/* What came of it; the parameter is joined from its halves. */
struct outcome {
    uint32_t parameter[MOST];
    double moment[MOST], variance[MOST];
};

/* The low halves live in an array with guards on both sides. */
static int16_t *lows_of(struct lab *lab, const double *parameter, int64_t count)
{
    int16_t *host = calloc((size_t)(count + 2 * GUARD), sizeof *host);
    REQUIRE(host, "the test has no memory");
    for (int64_t i = 0; i < count; i++)
        host[GUARD + i] = master_low((float)parameter[i]);
    for (int i = 0; i < GUARD; i++)
        host[i] = host[GUARD + count + i] = (int16_t)(1000 + i);
    int16_t *low = lab_array(lab, host, (size_t)(count + 2 * GUARD) * sizeof *host);
    free(host);
    return low;
}

static void join(struct lab *lab, uint32_t *parameter, const double *high, const int16_t *low, int64_t count)
{
    int16_t *host = calloc((size_t)(count + 2 * GUARD), sizeof *host);
    REQUIRE(host, "the test has no memory");
    lab->ops->download(lab->device, host, low, (size_t)(count + 2 * GUARD) * sizeof *host);
    lab_note(lab, "low", host, (size_t)(count + 2 * GUARD) * sizeof *host);
    for (int64_t i = 0; i < count; i++)
        parameter[i] = float_bits(master_join(bfloat_round((float)high[i]), host[GUARD + i]));
    for (int i = 0; i < GUARD; i++)
        CHECK(host[i] == 1000 + i && host[GUARD + count + i] == 1000 + i);
    free(host);
}

static struct adamw_piece piece_from(struct adamw_piece piece, const struct recipe *r, int64_t start)
{
    piece.parameter = (char *)piece.parameter + (size_t)start * dtype_bytes(r->parameter_type);
    if (piece.low) piece.low += start;
    piece.moment = (char *)piece.moment + (size_t)start * dtype_bytes(r->moment_type);
    piece.variance = (char *)piece.variance + (size_t)start * dtype_bytes(r->moment_type);
    piece.gradient = (const char *)piece.gradient + (size_t)start * dtype_bytes(r->gradient_type);
    piece.first += start;
    piece.count -= start;
    return piece;
}

static void update(struct lab *lab, const struct recipe *r, struct outcome *out)
{
    bool halves = r->parameter_type == DTYPE_BFLOAT;
    double *high = lab_doubles(lab, r->count);
    for (int64_t i = 0; i < r->count; i++)
        high[i] = halves ? (double)bfloat_widen(master_high((float)r->parameter[i])) : r->parameter[i];
    struct lab_matrix mp = lab_typed(lab, r->parameter_type, 1, r->count, r->cut % 2),
                      mm = lab_typed(lab, r->moment_type, 1, r->count, 0),
                      mv = lab_typed(lab, r->moment_type, 1, r->count, r->cut % 2),
                      mg = lab_typed(lab, r->gradient_type, 1, r->count, 0);
    lab_put(&mp, high);
    lab_put(&mm, r->moment);
    lab_put(&mv, r->variance);
    lab_put(&mg, r->gradient);
    int16_t *low = halves ? lows_of(lab, r->parameter, r->count) : NULL;
    struct adamw_piece whole = {
        mp.view.data, low ? low + GUARD : NULL, mm.view.data, mv.view.data, mg.view.data, r->count, r->first,
        true};
    struct adamw_piece list[2] = {whole, piece_from(whole, r, r->cut)};
    if (r->cut) list[0].count = r->cut;
    struct adamw settings = r->settings;
    settings.parameter_type = r->parameter_type;
    settings.moment_type = r->moment_type;
    settings.gradient_type = r->gradient_type;
    double *norm = lab_array(lab, &r->norm, sizeof r->norm);
    for (int s = 0; s < r->steps; s++, settings.step++)
        lab->ops->adamw(lab->device, list, r->cut ? 2 : 1, &settings, norm);
    LAB_GET(mp, high);
    LAB_GET(mm, out->moment);
    LAB_GET(mv, out->variance);
    CHECK(lab_unchanged(&mg));
    if (halves)
        join(lab, out->parameter, high, low, r->count);
    else
        for (int64_t i = 0; i < r->count; i++)
            out->parameter[i] = float_bits((float)high[i]);
}

/* Numbers of a type, whatever lab->type; some gradients are 0. */
static double *draw(struct lab *lab, enum dtype type, int64_t count, unsigned long long seed, double scale)
{
    double *values = lab_doubles(lab, count);
    for (int64_t i = 0; i < count; i++) {
        double value = check_uniform(&seed);
        values[i] = i % 97 == 5 ? 0 : lab_round_to(type, scale * value);
    }
    return values;
}

static struct recipe recipe_of(struct lab *lab, int64_t count)
{
    struct recipe r = {.count = count, .steps = 1, .norm = 2.7};
    r.parameter = draw(lab, DTYPE_FLOAT, count, 1, 0.05);
    r.gradient = draw(lab, DTYPE_BFLOAT, count, 2, 1);
    r.moment = draw(lab, DTYPE_BFLOAT, count, 3, 0.3);
    double *variance = draw(lab, DTYPE_BFLOAT, count, 4, 0.3);
    for (int64_t i = 0; i < count; i++)
        variance[i] = fabs(variance[i]);
    r.variance = variance;
    r.settings = (struct adamw){.rate = 1e-5,
                                .beta_first = 0.9,
                                .beta_second = 0.99,
                                .epsilon = 1e-8,
                                .weight_decay = 0.1,
                                .max_norm = 1,
                                .step = 3,
                                .seed = 12345};
    return r;
}

/* -- masters ---------------------------------------------------------------------------------- */

static bool same_bits(const struct outcome *a, const struct outcome *b, int64_t count)
{
    return memcmp(a->parameter, b->parameter, (size_t)count * sizeof *a->parameter) == 0 &&
           memcmp(a->moment, b->moment, (size_t)count * sizeof *a->moment) == 0 &&
           memcmp(a->variance, b->variance, (size_t)count * sizeof *a->variance) == 0;
}

/* Two halves, and gradients in either type, are the same arithmetic as f32 throughout: no bit may differ. At
 * this rate most updates are below half a unit of bf16, so that a lost low half would show. */
static void try_masters(struct lab *lab, int64_t count, int64_t cut)
{
    static struct outcome plain, other;
    struct recipe r = recipe_of(lab, count);
    r.steps = 5;
    r.cut = cut;
    update(lab, &r, &plain);
    for (int bits = 1; bits < 4; bits++) {
        r.parameter_type = bits & 1 ? DTYPE_BFLOAT : DTYPE_FLOAT;
        r.gradient_type = bits & 2 ? DTYPE_BFLOAT : DTYPE_FLOAT;
        update(lab, &r, &other);
        CHECK(same_bits(&plain, &other, count));
    }
    r.settings.rate *= 1.001; /* negative control: a thousandth of the rate */
    update(lab, &r, &other);
    CHECK(!same_bits(&plain, &other, count));
    int64_t lost = 0, moved = 0; /* and rounding to bf16 would have lost most of it */
    for (int64_t i = 0; i < count; i++) {
        float before = (float)r.parameter[i], after = float_of_bits(plain.parameter[i]);
        moved += before != after;
        lost += before != after && bfloat_round(before).bits == bfloat_round(after).bits;
    }
    CHECK(count < 100 || (moved > count / 2 && lost > moved / 2));
    lab_release(lab);
}

static void try_broken_norm(struct lab *lab, enum dtype moment_type)
{
    static struct outcome out;
    static const double norms[] = {NAN, (double)INFINITY};
    int64_t count = 1301;
    struct recipe r = recipe_of(lab, count);
    r.parameter_type = DTYPE_BFLOAT;
    r.moment_type = moment_type;
    for (int n = 0; n < 3; n++) {
        r.norm = n < 2 ? norms[n] : 1;
        update(lab, &r, &out);
        int64_t changed = 0;
        for (int64_t i = 0; i < count; i++)
            changed += out.parameter[i] != float_bits((float)r.parameter[i]) ||
                       out.moment[i] != r.moment[i] || out.variance[i] != r.variance[i];
        CHECK(n < 2 ? changed == 0 : changed > count / 2);
    }
    lab_release(lab);
}

/* -- stochastic rounding ---------------------------------------------------------------------- */

/* How an exact f32 was rounded to bf16: up (away from zero) or down, and the chance of up. */
struct rounding {
    int64_t count, strange; /* strange: neither of the two neighbours */
    double up[MOST], chance[MOST];
};

static void study(struct rounding *r, const double *exact, const double *rounded, int64_t count)
{
    r->count = count;
    r->strange = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = float_bits((float)exact[i]), got = float_bits((float)rounded[i]);
        uint32_t below = bits & 0xffff0000u, above = below + 0x10000u;
        r->chance[i] = (double)(bits & 0xffffu) / 65536;
        r->up[i] = got == above;
        r->strange += got != below && (got != above || r->chance[i] == 0);
    }
}

/* Sum over some elements of (up - chance), in standard deviations; independent roundings are beyond 6 with
 * probability 2e-9. which: 0 all, 1 and 2 those with a chance below and above one half, 3 and 4 even and odd
 * elements. */
static double bias_of(const struct rounding *r, int which)
{
    double sum = 0, variance = 0;
    for (int64_t i = 0; i < r->count; i++) {
        bool low = r->chance[i] < 0.5, even = i % 2 == 0;
        if ((which == 1 && !low) || (which == 2 && low) || (which == 3 && !even) || (which == 4 && even))
            continue;
        sum += r->up[i] - r->chance[i];
        variance += r->chance[i] * (1 - r->chance[i]);
    }
    return fabs(sum) / sqrt(variance);
}

/* The same of products of a rounding and the one `lag` elements later in another: they must not be alike. */
static double likeness(const struct rounding *a, const struct rounding *b, int64_t lag)
{
    double sum = 0, variance = 0;
    for (int64_t i = 0; i + lag < a->count; i++) {
        double p = a->chance[i], q = b->chance[i + lag];
        sum += (a->up[i] - p) * (b->up[i + lag] - q);
        variance += p * (1 - p) * q * (1 - q);
    }
    return fabs(sum) / sqrt(variance);
}

static void check_rounding(const struct rounding *r)
{
    static struct rounding nearest;
    CHECK(r->strange == 0);
    for (int which = 0; which < 5; which++)
        CHECK(bias_of(r, which) < 6);
    for (int64_t lag = 1; lag < 10; lag++)
        CHECK(likeness(r, r, lag) < 6);
    nearest = *r; /* negative controls: to nearest, always down, and the same as itself */
    for (int64_t i = 0; i < r->count; i++)
        nearest.up[i] = r->chance[i] >= 0.5;
    CHECK(bias_of(&nearest, 1) > 6 && bias_of(&nearest, 2) > 6);
    for (int64_t i = 0; i < r->count; i++)
        nearest.up[i] = 0;
    CHECK(bias_of(&nearest, 0) > 6);
    CHECK(likeness(r, r, 0) > 6);
}

/* Both moments may be off by one unit of bf16, 2^-7 of themselves, and the root of the second by half of
 * that, 0.0118 together, if the update is made of the rounded ones. */
static void check_parameters(struct lab *lab, const struct recipe *r, const struct outcome *exact,
                             const struct outcome *rounded)
{
    double *got = lab_doubles(lab, r->count), *want = lab_doubles(lab, r->count);
    double *bound = lab_doubles(lab, r->count);
    double first = 1 - pow(r->settings.beta_first, (double)r->settings.step);
    double second = 1 - pow(r->settings.beta_second, (double)r->settings.step);
    for (int64_t i = 0; i < r->count; i++) {
        double update = r->settings.rate * fabs(exact->moment[i]) / first /
                        (sqrt(exact->variance[i] / second) + r->settings.epsilon);
        got[i] = (double)float_of_bits(rounded->parameter[i]);
        want[i] = (double)float_of_bits(exact->parameter[i]);
        bound[i] = 0.0119 * update + 3 * LAB_UNIT * fabs(want[i]);
    }
    LAB_CLOSE(got, want, bound, r->count);
    for (int64_t i = 0; i < r->count; i++)
        want[i] += 0.05 * r->settings.rate;
    LAB_DIFFERS(got, want, bound, r->count);
}

/* One update from moments that are exact in bf16: the f32 run says what was to be rounded. */
static void try_stochastic(struct lab *lab)
{
    static struct outcome exact, rounded, other;
    static struct rounding moment, variance, again;
    struct recipe r = recipe_of(lab, MOST);
    r.settings.rate = 1e-3;
    update(lab, &r, &exact);
    r.moment_type = DTYPE_BFLOAT;
    r.parameter_type = DTYPE_BFLOAT;
    update(lab, &r, &rounded);
    check_parameters(lab, &r, &exact, &rounded);
    study(&moment, exact.moment, rounded.moment, MOST);
    study(&variance, exact.variance, rounded.variance, MOST);
    check_rounding(&moment);
    check_rounding(&variance);

    update(lab, &r, &other); /* the same again */
    CHECK(same_bits(&rounded, &other, MOST));
    r.cut = 7001; /* cut as other ranks would */
    update(lab, &r, &other);
    CHECK(same_bits(&rounded, &other, MOST));
    r.cut = 0;
    for (int change = 0; change < 4; change++) { /* another seed, step or place: unlike the first */
        struct recipe s = r;
        if (change == 0) s.settings.seed++;
        if (change == 1) s.settings.step++;
        if (change == 2) s.first = MOST;
        if (change == 3) s.first = (int64_t)1 << 32;
        update(lab, &s, &other);
        study(&again, exact.moment, other.moment, MOST);
        CHECK(again.strange == 0 && bias_of(&again, 0) < 6 && likeness(&moment, &again, 0) < 6);
        study(&again, exact.variance, other.variance, MOST);
        CHECK(again.strange == 0 && bias_of(&again, 0) < 6 && likeness(&variance, &again, 0) < 6);
    }
    lab_release(lab);
}

/* A variance that grows by an eighth of a unit of bf16 a step: to nearest it would stand still. After n steps
 * each element carries n independent roundings of variance at most ulp^2 / 4, so the mean of M elements is
 * within 6 ulp sqrt(n / 4 / M), while the growth is n / 8 ulp. */
static void try_drift(struct lab *lab)
{
    enum { COUNT = 5003, GROWING = 24 };
    static struct outcome exact, rounded;
    struct recipe r = recipe_of(lab, COUNT);
    double *variance = lab_doubles(lab, COUNT), *gradient = lab_doubles(lab, COUNT), ulp = 0x1p-7;
    for (int64_t i = 0; i < COUNT; i++) {
        variance[i] = 1.25;
        gradient[i] = 1.5; /* (1 - 0.999) (2.25 - 1.25) = 0.001 = 0.128 ulp */
    }
    r.variance = variance;
    r.gradient = gradient;
    r.settings.beta_second = 0.999;
    r.settings.max_norm = 0;
    r.steps = GROWING;
    update(lab, &r, &exact);
    r.moment_type = DTYPE_BFLOAT;
    update(lab, &r, &rounded);
    double sum = 0, growth = 0;
    for (int64_t i = 0; i < COUNT; i++) {
        sum += rounded.variance[i] - exact.variance[i];
        growth += exact.variance[i] - 1.25;
    }
    double bound = 6 * ulp * sqrt(GROWING / 4.0 / COUNT);
    CHECK_NEAR(sum / COUNT, 0, bound);
    CHECK(growth / COUNT > bound); /* standing still would show */
    lab_release(lab);
}

static bool tried;

static void all(struct lab *lab)
{
    if (lab->type != DTYPE_BFLOAT) return;
    tried = true;
    try_masters(lab, 1, 0);
    try_masters(lab, 7, 3);
    try_masters(lab, 1300, 0);
    try_masters(lab, MOST, 65);
    try_broken_norm(lab, DTYPE_FLOAT);
    try_broken_norm(lab, DTYPE_BFLOAT);
    try_stochastic(lab);
    try_drift(lab);
}

int main(void)
{
    lab_run(all);
    if (!tried) SKIP("no backend here computes in bf16");
    return check_result();
}
