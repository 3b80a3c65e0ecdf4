/* The optimiser's ops, and the device's memory. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

/* -- adamw ------------------------------------------------------------------------------------ */

enum { PIECES = 4, STEPS = 3 };
static const int64_t piece_counts[PIECES] = {1, 7, 65, 1300};

struct piece {
    double *parameter, *moment, *variance, *size, *bound; /* the oracle's */
    struct lab_matrix mp, mm, mv, mg;
};

static void make_piece(struct lab *lab, struct piece *piece, int64_t count, unsigned long long seed,
                       bool fresh)
{
    double scale = fresh ? 0 : 0.1;
    piece->parameter = lab_randoms(lab, count, seed, 1);
    piece->moment = lab_randoms(lab, count, seed + 1, scale);
    piece->variance = lab_randoms(lab, count, seed + 2, scale);
    piece->size = lab_doubles(lab, count);
    piece->bound = lab_doubles(lab, count);
    for (int64_t i = 0; i < count; i++) {
        piece->variance[i] = fabs(piece->variance[i]);
        piece->size[i] = fabs(piece->moment[i]);
    }
    piece->mp = lab_matrix(lab, 1, count, 0);
    piece->mm = lab_matrix(lab, 1, count, 0);
    piece->mv = lab_matrix(lab, 1, count, 0);
    piece->mg = lab_matrix(lab, 1, count, 0);
    lab_put(&piece->mp, piece->parameter);
    lab_put(&piece->mm, piece->moment);
    lab_put(&piece->mv, piece->variance);
}

/* Each step, in f32 with constants made in double: a moment takes 4 roundings of terms whose absolute values
 * sum to `size` (so 4 steps u size in all, and the same for the variance, whose terms are positive); the
 * quotient of the update 24 more, of rate size / (sqrt v + epsilon), growing by 8 a step from what the
 * moments carry; the parameter itself 2 u |p| a step, decay included. Constants rounded to f32 before 1 -
 * beta^t is formed would be off by 1e-5 and show. */
static void compare_piece(struct lab *lab, struct piece *piece, int64_t count, const struct adamw *settings,
                          int done)
{
    double u = LAB_UNIT, *got = lab_doubles(lab, count), *bound = lab_doubles(lab, count), steps = done;
    LAB_GET(piece->mm, got);
    for (int64_t i = 0; i < count; i++)
        bound[i] = 4 * steps * u * piece->size[i];
    LAB_CLOSE(got, piece->moment, bound, count);
    LAB_GET(piece->mv, got);
    for (int64_t i = 0; i < count; i++)
        bound[i] = 6 * steps * u * piece->variance[i] + 1e-44;
    LAB_CLOSE(got, piece->variance, bound, count);
    LAB_GET(piece->mp, got);
    double first = 1 - pow(settings->beta_first, (double)settings->step);
    double second = 1 - pow(settings->beta_second, (double)settings->step);
    for (int64_t i = 0; i < count; i++) {
        double update =
            settings->rate * piece->size[i] / first / (sqrt(piece->variance[i] / second) + settings->epsilon);
        piece->bound[i] += (16 + 8 * steps) * u * update + 2 * u * fabs(piece->parameter[i]) + u * update;
    }
    LAB_CLOSE(got, piece->parameter, piece->bound, count);
    for (int64_t i = 0; i < count; i++) /* negative control: half a thousandth of the rate */
        got[i] += 5e-4 * settings->rate;
    LAB_DIFFERS(got, piece->parameter, piece->bound, count);
}

static void try_adamw(struct lab *lab, struct adamw settings, bool fresh)
{
    struct piece pieces[PIECES];
    struct adamw_piece list[PIECES];
    for (int p = 0; p < PIECES; p++)
        make_piece(lab, &pieces[p], piece_counts[p], 50 + 10 * (unsigned long long)p, fresh);
    for (int s = 0; s < STEPS; s++, settings.step++) {
        for (int p = 0; p < PIECES; p++) {
            int64_t count = piece_counts[p];
            double *gradient =
                lab_randoms(lab, count, 100 + 10 * (unsigned long long)s + (unsigned long long)p, 2);
            bool decay = p % 2 == 0;
            if (count > 5) gradient[5] = 0;
            lab_put(&pieces[p].mg, gradient);
            list[p] = (struct adamw_piece){pieces[p].mp.view.data,
                                           pieces[p].mm.view.data,
                                           pieces[p].mv.view.data,
                                           pieces[p].mg.view.data,
                                           count,
                                           decay};
            oracle_adamw(pieces[p].parameter, pieces[p].moment, pieces[p].variance, pieces[p].size, gradient,
                         count, decay, &settings);
        }
        lab->ops->adamw(lab->device, list, PIECES, &settings);
        for (int p = 0; p < PIECES; p++) {
            CHECK(lab_unchanged(&pieces[p].mg));
            compare_piece(lab, &pieces[p], piece_counts[p], &settings, s + 1);
        }
    }
    /* Decay: with no gradient and no history the parameter shrinks by rate * weight_decay, or stays as it is.
     */
    lab_release(lab);
}

static void try_decay(struct lab *lab)
{
    struct adamw settings = {0.125, 0.9, 0.999, 1e-8, 0.5, 1, 1};
    double *zeros = lab_doubles(lab, 7), *p = lab_randoms(lab, 7, 70, 1), *got = lab_doubles(lab, 7);
    for (int decay = 0; decay < 2; decay++) {
        struct lab_matrix mp = lab_matrix(lab, 1, 7, 0), mm = lab_matrix(lab, 1, 7, 0),
                          mv = lab_matrix(lab, 1, 7, 0);
        struct lab_matrix mg = lab_matrix(lab, 1, 7, 0);
        lab_put(&mp, p);
        lab_put(&mm, zeros);
        lab_put(&mv, zeros);
        lab_put(&mg, zeros);
        struct adamw_piece piece = {mp.view.data, mm.view.data, mv.view.data, mg.view.data, 7, decay};
        lab->ops->adamw(lab->device, &piece, 1, &settings);
        LAB_GET(mp, got);
        for (int i = 0; i < 7; i++) /* 1/16 is exact; at most two roundings */
            CHECK_NEAR(got[i], p[i] * (decay ? 1 - 0.0625 : 1), decay ? 2 * LAB_UNIT * fabs(p[i]) : 0);
    }
    lab_release(lab);
}

/* -- sum of squares --------------------------------------------------------------------------- */

static double squares_of(struct lab *lab, const double *x, int64_t count)
{
    struct lab_matrix mx = lab_matrix(lab, 1, count, 0);
    double result[3] = {-7, NAN, -7};
    lab_put(&mx, x);
    double *on_device = lab_array(lab, result, sizeof result);
    lab->ops->sum_squares(lab->device, on_device + 1, mx.view.data, count);
    lab->ops->download(lab->device, result, on_device, sizeof result);
    CHECK(lab_unchanged(&mx) && result[0] == -7 && result[2] == -7);
    lab_note(lab, "sum_squares", &result[1], sizeof result[1]);
    return result[1];
}

/* A square rounds once if it is f32, and f32 sums of at most 60 terms before they are widened may be off by
 * 60 u. */
static void try_squares(struct lab *lab)
{
    static const int64_t counts[] = {1, 7, 13, 65, 1000, 200003};
    for (int c = 0; c < 6; c++) {
        double *x = lab_randoms(lab, counts[c], 80, 3), want = 0;
        for (int64_t i = 0; i < counts[c]; i++)
            want += x[i] * x[i];
        double got = squares_of(lab, x, counts[c]);
        CHECK_NEAR(got, want, 61 * LAB_UNIT * want);
        CHECK(fabs(got - (want + x[counts[c] - 1] * x[counts[c] - 1])) > 61 * LAB_UNIT * want ||
              counts[c] > 1000);
        for (int at = 0; at < 3; at++) { /* first, last, and in between */
            int64_t where = at == 0 ? 0 : at == 1 ? counts[c] - 1 : counts[c] / 2;
            double keep = x[where];
            x[where] = NAN;
            CHECK(isnan(squares_of(lab, x, counts[c])));
            x[where] = -INFINITY;
            CHECK(isinf(squares_of(lab, x, counts[c])));
            x[where] = keep;
        }
        lab_release(lab);
    }
    double *x = lab_doubles(lab, 60001); /* an f32 sum would stop growing at 2^24 */
    for (int64_t i = 0; i < 60001; i++)
        x[i] = i ? 1 : 4096;
    CHECK_NEAR(squares_of(lab, x, 60001), 16777216.0 + 60000, 61 * LAB_UNIT * 16777216.0);
    x[0] = 1e25f; /* its square is beyond f32 but not beyond double */
    double large = squares_of(lab, x, 60001), truth = x[0] * x[0];
    CHECK_NEAR(large, truth, 61 * LAB_UNIT * truth);
    lab_release(lab);
}

/* -- memory ----------------------------------------------------------------------------------- */

static void try_memory(struct lab *lab)
{
    const struct ops *ops = lab->ops;
    static const size_t sizes[] = {1, 63, 64, 65, 4097};
    for (int s = 0; s < 5; s++) {
        size_t bytes = sizes[s];
        unsigned char host[4097], back[4097];
        for (size_t i = 0; i < bytes; i++)
            host[i] = (unsigned char)(i * 31 + 7);
        char *a = ops->alloc(lab->device, bytes), *b = ops->alloc(lab->device, bytes);
        CHECK(a && b && (uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0);
        ops->upload(lab->device, a, host, bytes);
        ops->zero(lab->device, b, bytes);
        ops->copy(lab->device, b, a, bytes - 1);
        ops->download(lab->device, back, b, bytes);
        CHECK(memcmp(back, host, bytes - 1) == 0 && back[bytes - 1] == 0);
        ops->download(lab->device, back, a, bytes);
        CHECK(memcmp(back, host, bytes) == 0);
        ops->free(lab->device, a);
        ops->free(lab->device, b);
    }
    float some[9];
    char *poisoned = ops->alloc(lab->device, sizeof some);
    ops->zero(lab->device, poisoned, sizeof some);
    ops->poison(lab->device, poisoned, 7 * sizeof *some);
    ops->download(lab->device, some, poisoned, sizeof some);
    for (int i = 0; i < 9; i++)
        CHECK(i < 7 ? isnan(some[i]) : some[i] == 0);
    ops->free(lab->device, poisoned);
#ifndef __SANITIZE_ADDRESS__ /* which ends the program when so much is asked for */
    CHECK(ops->alloc(lab->device, (size_t)1 << 60) == NULL);
#endif
    ops->free(lab->device, NULL);
    CHECK(ops->name && *ops->name);
}

static void all(struct lab *lab)
{
    try_adamw(lab, (struct adamw){1e-3, 0.9, 0.999, 1e-8, 0.01, 1, 1}, true);
    try_adamw(lab, (struct adamw){0.05, 0.9, 0.95, 1e-6, 0.1, 0.37, 1}, true); /* gradients clipped to 0.37 */
    try_adamw(lab, (struct adamw){1e-2, 0.8, 0.999, 1e-8, 0, 2.5e-3, 1000}, false);
    try_decay(lab);
    try_squares(lab);
    try_memory(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
