/* The optimiser's ops where parameters and moments are f32: against the oracle. test_ops_masters.c has bf16.
 */
#include "kernels/checksum.h"
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
    int64_t margin = count % 2 ? 3 : 0; /* pieces begin anywhere in the model */
    piece->mp = lab_floats(lab, 1, count, margin);
    piece->mm = lab_floats(lab, 1, count, margin);
    piece->mv = lab_floats(lab, 1, count, margin);
    piece->mg = lab_matrix(lab, 1, count, margin);
    lab_put(&piece->mp, piece->parameter);
    lab_put(&piece->mm, piece->moment);
    lab_put(&piece->mv, piece->variance);
}

/* A number in device memory. */
static double *on_device(struct lab *lab, double value)
{
    return lab_array(lab, &value, sizeof value);
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

static void try_adamw(struct lab *lab, struct adamw settings, double norm, bool fresh)
{
    struct piece pieces[PIECES];
    struct adamw_piece list[PIECES];
    double *norm_on_device = on_device(lab, norm);
    settings.gradient_type = lab->type;
    for (int p = 0; p < PIECES; p++) {
        struct piece *piece = &pieces[p];
        make_piece(lab, piece, piece_counts[p], 50 + 10 * (unsigned long long)p, fresh);
        list[p] = (struct adamw_piece){.parameter = piece->mp.view.data,
                                       .moment = piece->mm.view.data,
                                       .variance = piece->mv.view.data,
                                       .gradient = piece->mg.view.data,
                                       .count = piece_counts[p],
                                       .first = 5000 * p,
                                       .decay = p % 2 == 0};
    }
    for (int s = 0; s < STEPS; s++, settings.step++) {
        for (int p = 0; p < PIECES; p++) {
            int64_t count = piece_counts[p];
            double *gradient =
                lab_randoms(lab, count, 100 + 10 * (unsigned long long)s + (unsigned long long)p, 2);
            if (count > 5) gradient[5] = 0;
            lab_put(&pieces[p].mg, gradient);
            oracle_adamw(pieces[p].parameter, pieces[p].moment, pieces[p].variance, pieces[p].size, gradient,
                         count, list[p].decay, &settings, norm);
        }
        lab->ops->adamw(lab->device, list, PIECES, &settings, norm_on_device);
        for (int p = 0; p < PIECES; p++) {
            CHECK(lab_unchanged(&pieces[p].mg));
            compare_piece(lab, &pieces[p], piece_counts[p], &settings, s + 1);
        }
    }
    lab_release(lab);
}

/* More pieces than a backend may pass to its device at once, twice over, of all lengths about its tiles, some
 * empty (the first and the last too), at odd offsets, with elements between them that belong to none: those
 * stay. In all enough that each block of a GPU takes several tiles, of one piece and of several: an emulated
 * device is small, a real one takes 40 tiles of 1024 elements an SM in one round, 7 million for 160 SMs. */
enum { MANY = 401, GAP = 1 };

static int64_t many_count(const struct lab *lab, int p)
{
    static const int64_t counts[] = {0, 1, 1023, 1024, 1025, 5, 2048, 0, 3001, 31};
    bool large = !lab->slow && strcmp(lab->ops->name, "cuda") == 0;
    if (p == 1) return large ? 7000000 : 70004;
    return counts[p % 10];
}

static void try_many(struct lab *lab, struct adamw settings, double norm)
{
    struct adamw_piece list[MANY];
    int64_t total = 0;
    for (int p = 0; p < MANY; p++)
        total += many_count(lab, p) + GAP;
    total += 8 - total % 8; /* so that the memory, and with it the long piece, can be read in vectors */
    struct piece whole;
    make_piece(lab, &whole, total, 60, false);
    settings.gradient_type = lab->type;
    double *gradient = lab_randoms(lab, total, 64, 2), *got = lab_doubles(lab, total);
    double *before = lab_doubles(lab, total);
    bool *between = calloc((size_t)total, sizeof *between);
    REQUIRE(between, "the test has no memory");
    memcpy(before, whole.parameter, (size_t)total * sizeof *before);
    lab_put(&whole.mg, gradient);
    int64_t start = 0;
    for (int p = 0; p < MANY; p++) {
        int64_t count = many_count(lab, p);
        list[p] = (struct adamw_piece){.parameter = (float *)whole.mp.view.data + start,
                                       .moment = (float *)whole.mm.view.data + start,
                                       .variance = (float *)whole.mv.view.data + start,
                                       .gradient = tensor_cols(whole.mg.view, start, count).data,
                                       .count = count,
                                       .first = start,
                                       .decay = p % 3 == 0};
        oracle_adamw(whole.parameter + start, whole.moment + start, whole.variance + start,
                     whole.size + start, gradient + start, count, list[p].decay, &settings, norm);
        start += count;
        if (p != 0) between[start++] = true; /* so the long piece stands at the very beginning */
    }
    for (; start < total; start++)
        between[start] = true;
    lab->ops->adamw(lab->device, list, MANY, &settings, on_device(lab, norm));
    CHECK(lab_unchanged(&whole.mg));
    LAB_GET(whole.mp, got);
    int64_t touched = 0;
    for (int64_t i = 0; i < total; i++)
        touched += between[i] && got[i] != before[i];
    CHECK(touched == 0);
    compare_piece(lab, &whole, total, &settings, 1);
    free(between);
    lab_release(lab);
}

/* One piece of seven, alone. */
struct seven {
    struct lab_matrix mp, mm, mv, mg;
    struct adamw_piece piece;
};

static struct seven seven_of(struct lab *lab, const double *p, const double *g, bool decay)
{
    double *zeros = lab_doubles(lab, 7);
    struct seven s = {lab_floats(lab, 1, 7, 0),
                      lab_floats(lab, 1, 7, 0),
                      lab_floats(lab, 1, 7, 0),
                      lab_matrix(lab, 1, 7, 0),
                      {0}};
    lab_put(&s.mp, p);
    lab_put(&s.mm, zeros);
    lab_put(&s.mv, zeros);
    lab_put(&s.mg, g);
    s.piece = (struct adamw_piece){.parameter = s.mp.view.data,
                                   .moment = s.mm.view.data,
                                   .variance = s.mv.view.data,
                                   .gradient = s.mg.view.data,
                                   .count = 7,
                                   .decay = decay};
    return s;
}

static const struct adamw halving = {
    .rate = 0.125, .beta_first = 0.9, .beta_second = 0.999, .epsilon = 1e-8, .weight_decay = 0.5, .step = 1};

/* With no gradient and no history a parameter shrinks by rate * weight_decay, or stays as it is. */
static void try_decay(struct lab *lab)
{
    struct adamw settings = halving;
    double *zeros = lab_doubles(lab, 7), *p = lab_randoms(lab, 7, 70, 1), *got = lab_doubles(lab, 7);
    settings.gradient_type = lab->type;
    for (int decay = 0; decay < 2; decay++) {
        struct seven s = seven_of(lab, p, zeros, decay);
        lab->ops->adamw(lab->device, &s.piece, 1, &settings, on_device(lab, 0));
        LAB_GET(s.mp, got);
        for (int i = 0; i < 7; i++) /* 1/16 is exact; at most two roundings */
            CHECK_NEAR(got[i], p[i] * (decay ? 1 - 0.0625 : 1), decay ? 2 * LAB_UNIT * fabs(p[i]) : 0);
    }
    lab_release(lab);
}

/* Where the norm is no number nothing changes, clipping or not; where it is, something does. */
static void try_broken_norm(struct lab *lab)
{
    const double norms[] = {NAN, (double)INFINITY, -NAN, 3};
    double *p = lab_randoms(lab, 7, 71, 1), *g = lab_randoms(lab, 7, 72, 1);
    for (int n = 0; n < 4; n++)
        for (int clip = 0; clip < 2; clip++) {
            struct adamw settings = halving;
            settings.gradient_type = lab->type;
            settings.max_norm = clip;
            struct seven s = seven_of(lab, p, g, true);
            lab->ops->adamw(lab->device, &s.piece, 1, &settings, on_device(lab, norms[n]));
            bool same = lab_unchanged(&s.mp) && lab_unchanged(&s.mm) && lab_unchanged(&s.mv);
            bool other = !lab_unchanged(&s.mp) && !lab_unchanged(&s.mm) && !lab_unchanged(&s.mv);
            CHECK(isfinite(norms[n]) ? other : same);
        }
    lab_release(lab);
}

/* -- sum of squares --------------------------------------------------------------------------- */

static double squares_of(struct lab *lab, const double *x, int64_t count)
{
    struct lab_matrix mx = lab_matrix(lab, 1, count, count % 3);
    double result[3] = {-7, NAN, -7};
    lab_put(&mx, x);
    double *memory = lab_array(lab, result, sizeof result);
    lab->ops->sum_squares(lab->device, memory + 1, mx.view);
    lab->ops->download(lab->device, result, memory, sizeof result);
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
    x[0] = lab_round_to(lab->type, 1e25); /* its square is beyond f32 but not beyond double */
    double large = squares_of(lab, x, 60001), truth = x[0] * x[0];
    CHECK_NEAR(large, truth, 61 * LAB_UNIT * truth);
    lab_release(lab);
}

/* In order and in double, so the same bits; whatever is no number shows. */
static void try_norm(struct lab *lab)
{
    static const int64_t counts[] = {1, 2, 7, 300};
    for (int c = 0; c < 4; c++) {
        double squares[300], result[3] = {-7, NAN, -7}, sum = 0, other = 0;
        unsigned long long state = 9;
        for (int64_t i = 0; i < counts[c]; i++)
            sum += squares[i] = exp2(20 * check_uniform(&state));
        for (int64_t i = counts[c] - 1; i >= 0; i--)
            other += squares[i];
        double *memory = lab_array(lab, result, sizeof result);
        double *given = lab_array(lab, squares, (size_t)counts[c] * sizeof *squares);
        lab->ops->norm(lab->device, memory + 1, given, counts[c]);
        lab->ops->download(lab->device, result, memory, sizeof result);
        CHECK(result[0] == -7 && result[1] == sqrt(sum) && result[2] == -7);
        if (counts[c] == 300) CHECK(result[1] != sqrt(other)); /* another order shows */
        lab_note(lab, "norm", &result[1], sizeof result[1]);
        squares[counts[c] / 2] = NAN;
        given = lab_array(lab, squares, (size_t)counts[c] * sizeof *squares);
        lab->ops->norm(lab->device, memory + 1, given, counts[c]);
        lab->ops->download(lab->device, result, memory, sizeof result);
        CHECK(isnan(result[1]));
    }
    lab_release(lab);
}

/* -- checksum --------------------------------------------------------------------------------- */

static uint64_t checksum_on(struct lab *lab, const void *bits, enum dtype type, int64_t count)
{
    uint64_t result[2] = {7, 7}, *on_device = lab_array(lab, result, sizeof result);
    void *x = lab_array(lab, bits, (size_t)(count ? count : 1) * dtype_bytes(type));
    lab->ops->checksum(lab->device, on_device, tensor_of(x, type, 1, count));
    lab->ops->download(lab->device, result, on_device, sizeof result);
    CHECK(result[1] == 7);
    return result[0];
}

/* Exactly the sum of the words; and one bit, or two elements that changed places, show. */
static void try_checksum(struct lab *lab)
{
    static const int64_t counts[] = {0, 1, 33, 4097, 70001};
    for (int c = 0; c < 5; c++) {
        int64_t count = counts[c];
        uint32_t *bits = (uint32_t *)(void *)lab_doubles(lab, count + 1);
        uint64_t wide = 0, narrow = 0, state = 5;
        for (int64_t i = 0; i < count; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            bits[i] = (uint32_t)(state >> 32);
        }
        for (int64_t i = 0; i < count; i++) {
            wide += checksum_word(bits[i], (uint64_t)i);
            narrow += checksum_word(((const uint16_t *)(const void *)bits)[i], (uint64_t)i);
        }
        CHECK(checksum_on(lab, bits, DTYPE_FLOAT, count) == wide);
        CHECK(checksum_on(lab, bits, DTYPE_BFLOAT, count) == narrow);
        if (count < 2) continue;
        uint32_t first = bits[0];
        bits[0] = bits[count - 1];
        bits[count - 1] = first;
        CHECK(checksum_on(lab, bits, DTYPE_FLOAT, count) != wide);
        bits[count - 1] = bits[0];
        bits[0] = first ^ 0x400u;
        CHECK(checksum_on(lab, bits, DTYPE_FLOAT, count) != wide);
    }
    lab_release(lab);
}

static void all(struct lab *lab)
{
    struct adamw plain = {.rate = 1e-3,
                          .beta_first = 0.9,
                          .beta_second = 0.999,
                          .epsilon = 1e-8,
                          .weight_decay = 0.01,
                          .step = 1};
    struct adamw quick = {.rate = 0.05,
                          .beta_first = 0.9,
                          .beta_second = 0.95,
                          .epsilon = 1e-6,
                          .weight_decay = 0.1,
                          .max_norm = 1,
                          .step = 1};
    struct adamw late = {.rate = 1e-2,
                         .beta_first = 0.8,
                         .beta_second = 0.999,
                         .epsilon = 1e-8,
                         .max_norm = 0.25,
                         .step = 1000};
    try_adamw(lab, plain, 80, true); /* no clipping, whatever the norm */
    try_adamw(lab, quick, 2.7, true);
    try_adamw(lab, quick, 0.99, false); /* clipping, but not of so small a gradient */
    try_adamw(lab, late, 100, false);
    try_many(lab, quick, 2.7);
    try_decay(lab);
    try_broken_norm(lab);
    try_squares(lab);
    try_norm(lab);
    try_checksum(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
