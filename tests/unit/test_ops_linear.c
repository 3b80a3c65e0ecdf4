/* Matrix products, biases, and rows by index. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

struct product {
    int64_t m, n, k;
    bool transpose_a, transpose_b, accumulate;
    int64_t margin;
    enum dtype c_type;
};

/* A product of k terms in f32 is within (k+2) u sum |a||b| whatever the order of summation, and adding it to
 * what is there rounds once more: u |c| each for the old value and the new. For long sums that bound is too
 * weak to notice anything; roundings are then as good as random, and 6 sqrt(k) u sum |a||b| holds with
 * probability 1 - 1e-7 a result (Higham & Mary 2019, theorem 2.4 with lambda = 6). Products of bf16 are
 * exact, their sums take 2 u for u (oracle_lab.c), and a bf16 c is rounded once, after what was there is
 * added. */
static double product_factor(const struct lab *lab, int64_t k)
{
    return (k <= 1000 ? (double)(k + 2) : 6 * sqrt((double)k)) * lab->sum_unit;
}

static void try_product_into(struct lab *lab, struct product p)
{
    int64_t count = p.m * p.n;
    double *a = lab_randoms(lab, p.m * p.k, 1, 1), *b = lab_randoms(lab, p.k * p.n, 2, 1);
    double *old = lab_randoms(lab, count, 3, 1), *got = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count),
           *unused = lab_doubles(lab, count);
    struct lab_matrix ma = lab_matrix(lab, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.margin);
    struct lab_matrix mb = lab_matrix(lab, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.margin);
    struct lab_matrix mc = lab_typed(lab, p.c_type, p.m, p.n, p.margin);
    lab_put(&ma, a);
    lab_put(&mb, b);
    if (p.accumulate)
        lab_put(&mc, old);
    else
        lab_fill(&mc, NAN);
    lab->ops->matmul(lab->device, mc.view, ma.view, p.transpose_a, mb.view, p.transpose_b, p.accumulate);
    LAB_GET(mc, got);
    CHECK(lab_unchanged(&ma) && lab_unchanged(&mb));
    if (!lab->first) { /* the bits are compared with those of the first run */
        lab_release(lab);
        return;
    }

    oracle_matmul(want, bound, a, p.transpose_a, b, p.transpose_b, p.m, p.n, p.k);
    for (int64_t i = 0; i < count; i++) {
        bound[i] *= product_factor(lab, p.k);
        if (p.accumulate) {
            want[i] += old[i];
            bound[i] += 2 * LAB_UNIT * (fabs(old[i]) + fabs(want[i]));
        }
    }
    lab_stored(p.c_type, bound, want, count);
    LAB_CLOSE(got, want, bound, count);

    /* Negative controls: the other reading of accumulate; and the last terms missing in each sum. */
    for (int64_t i = 0; i < count; i++)
        want[i] += p.accumulate ? -old[i] : old[i];
    LAB_DIFFERS(got, want, bound, count);
    int64_t kept = p.k - 1 - p.k / 16;
    for (int64_t i = 0; i < p.m * p.k; i++)
        if ((p.transpose_a ? i / p.m : i % p.k) >= kept) a[i] = 0;
    oracle_matmul(want, unused, a, p.transpose_a, b, p.transpose_b, p.m, p.n, p.k);
    for (int64_t i = 0; i < count; i++)
        want[i] += p.accumulate ? old[i] : 0;
    LAB_DIFFERS(got, want, bound, count);
    lab_release(lab);
}

static void try_product(struct lab *lab, struct product p)
{
    p.c_type = lab->type;
    try_product_into(lab, p);
    if (lab->type == DTYPE_FLOAT) return;
    p.c_type = DTYPE_FLOAT;
    try_product_into(lab, p);
}

static void products(struct lab *lab)
{
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 7, 13},   {7, 13, 65}, {13, 65, 24},  {65, 24, 7},
                                        {65, 65, 65}, {24, 1, 300}, {7, 65, 1},  {130, 65, 257}};
    for (int64_t s = 0; s < (int64_t)(sizeof shapes / sizeof shapes[0]); s++)
        for (int bits = 0; bits < 8; bits++)
            for (int64_t margin = 0; margin < 4; margin += 3)
                try_product(lab, (struct product){shapes[s][0], shapes[s][1], shapes[s][2], bits & 1,
                                                  bits & 2, bits & 4, margin, lab->type});
    /* Shapes of weight gradients: few results, many terms. A library is tempted to split the sum over
     * threads. */
    try_product(lab, (struct product){24, 24, 5000, true, false, true, 0, lab->type});
    try_product(lab, (struct product){7, 13, 20001, true, false, true, 0, lab->type});
    try_product(lab, (struct product){1, 65, 9000, false, false, false, 0, lab->type});
    try_product(lab, (struct product){65, 1, 9000, false, true, false, 0, lab->type});
    /* And of the head: one chunk of logits, and its gradient. */
    try_product(lab, (struct product){65, 1000, 24, false, true, false, 0, lab->type});
    try_product(lab, (struct product){65, 24, 1000, false, false, true, 0, lab->type});
}

/* y + b is one rounding, a second one where it is stored in bf16. */
static void try_bias(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    int64_t count = rows * cols;
    double *y = lab_randoms(lab, count, 4, 1), *b = lab_randoms(lab, cols, 5, 1),
           *got = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count);
    struct lab_matrix my = lab_matrix(lab, rows, cols, margin), mb = lab_matrix(lab, 1, cols, 0);
    lab_put(&my, y);
    lab_put(&mb, b);
    lab->ops->bias(lab->device, my.view, mb.view.data);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mb));
    for (int64_t i = 0; i < count; i++) {
        want[i] = y[i] + b[i % cols];
        bound[i] = LAB_UNIT * fabs(want[i]);
    }
    lab_stored(lab->type, bound, want, count);
    LAB_CLOSE(got, want, bound, count);
    LAB_DIFFERS(got, y, bound, count);
    lab_release(lab);
}

/* A column of n terms added to what is there has n + 1 roundings. */
static void try_bias_grad(struct lab *lab, int64_t rows, int64_t cols, int64_t margin, enum dtype type)
{
    double *dy = lab_randoms(lab, rows * cols, 4, 1), *b = lab_randoms(lab, cols, 5, 1),
           *got = lab_doubles(lab, cols);
    double *want = lab_doubles(lab, cols), *bound = lab_doubles(lab, cols);
    struct lab_matrix mdy = lab_matrix(lab, rows, cols, margin), mb = lab_typed(lab, type, 1, cols, margin);
    lab_put(&mdy, dy);
    lab_put(&mb, b);
    lab->ops->bias_grad(lab->device, mb.view, mdy.view);
    LAB_GET(mb, got);
    CHECK(lab_unchanged(&mdy));
    for (int64_t c = 0; c < cols; c++) {
        double size = fabs(b[c]);
        want[c] = b[c];
        for (int64_t r = 0; r < rows; r++) {
            want[c] += dy[r * cols + c];
            size += fabs(dy[r * cols + c]);
        }
        bound[c] = (double)(rows + 1) * LAB_UNIT * size;
    }
    lab_stored(type, bound, want, cols);
    LAB_CLOSE(got, want, bound, cols);
    for (int64_t c = 0; c < cols; c++)
        want[c] -= b[c];
    LAB_DIFFERS(got, want, bound, cols);
    lab_release(lab);
}

/* A quarter of the rows nowhere, the others with many repetitions. */
static int64_t *draw_index(struct lab *lab, int64_t table, int64_t rows)
{
    int64_t *index = lab_integers(lab, rows);
    unsigned long long state = 11;
    for (int64_t i = 0; i < rows; i++)
        index[i] = i % 4 == 2 ? -1 : (int64_t)((check_uniform(&state) + 1) / 2 * (double)table);
    index[0] = table - 1;
    return index;
}

static void check_index(struct lab *lab, const int64_t *on_device, const int64_t *index, int64_t rows)
{
    int64_t *held = lab_integers(lab, rows);
    lab->ops->download(lab->device, held, on_device, (size_t)rows * sizeof *held);
    CHECK(memcmp(held, index, (size_t)rows * sizeof *held) == 0);
}

/* Copies are exact. */
static void try_gather(struct lab *lab, int64_t table, int64_t rows, int64_t cols, int64_t margin)
{
    double *x = lab_randoms(lab, table * cols, 6, 1);
    int64_t *index = draw_index(lab, table, rows);
    int64_t *on_device = lab_array(lab, index, (size_t)rows * sizeof *index);
    struct lab_matrix mx = lab_matrix(lab, table, cols, margin), my = lab_matrix(lab, rows, cols, margin);
    double *got = lab_doubles(lab, rows * cols), *want = lab_doubles(lab, rows * cols);
    double *bound = lab_doubles(lab, rows * cols);
    lab_put(&mx, x);
    lab_fill(&my, NAN);
    lab->ops->gather_rows(lab->device, my.view, mx.view, on_device);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mx));
    check_index(lab, on_device, index, rows);
    for (int64_t i = 0; i < rows * cols; i++)
        want[i] = index[i / cols] < 0 ? 0 : x[index[i / cols] * cols + i % cols];
    LAB_CLOSE(got, want, bound, rows * cols);
    want[cols - 1] += 1e-6;
    LAB_DIFFERS(got, want, bound, rows * cols);
    lab_release(lab);
}

/* Sums are made in order of i, in f32 and from what is there on, so they are exact: the oracle repeats them.
 * A bf16 dx is rounded once, when the sum of its row is complete. */
static void try_scatter(struct lab *lab, int64_t table, int64_t rows, int64_t cols, int64_t margin,
                        enum dtype type)
{
    double *x = lab_randoms(lab, table * cols, 6, 1), *dy = lab_randoms(lab, rows * cols, 7, 1);
    int64_t *index = draw_index(lab, table, rows);
    int64_t *on_device = lab_array(lab, index, (size_t)rows * sizeof *index);
    struct lab_matrix mx = lab_typed(lab, type, table, cols, margin),
                      my = lab_matrix(lab, rows, cols, margin);
    double *sum = lab_doubles(lab, table * cols), *got = lab_doubles(lab, table * cols);
    double *bound = lab_doubles(lab, table * cols);
    lab_put(&mx, x);
    lab_put(&my, dy);
    lab->ops->scatter_rows(lab->device, mx.view, my.view, on_device);
    LAB_GET(mx, got);
    CHECK(lab_unchanged(&my));
    check_index(lab, on_device, index, rows);
    for (int64_t i = 0; i < table * cols; i++)
        sum[i] = x[i];
    for (int64_t i = 0; i < rows * cols; i++)
        if (index[i / cols] >= 0) {
            int64_t at = index[i / cols] * cols + i % cols;
            sum[at] = lab_round(sum[at] + dy[i]);
        }
    for (int64_t i = 0; i < table * cols; i++)
        sum[i] = lab_round_to(type, sum[i]);
    LAB_CLOSE(got, sum, bound, table * cols);
    sum[(table - 1) * cols] += 1e-5; /* row 0 goes there */
    LAB_DIFFERS(got, sum, bound, table * cols);
    lab_release(lab);
}

/* Sums over rows in order, exact as above: apart and into one of the rows. bf16 rows are summed in f32, and
 * the sum is rounded once. */
static void try_sum_rows(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    double *x = lab_doubles(lab, rows * cols), *got = lab_doubles(lab, rows * cols);
    double *want = lab_doubles(lab, cols), *bound = lab_doubles(lab, cols), *often = lab_doubles(lab, cols);
    unsigned long long state = 12;
    for (int64_t i = 0; i < rows * cols; i++) {
        x[i] = lab_round_to(lab->type, check_uniform(&state) * exp2((double)(i % 7)));
        want[i % cols] = lab_round(want[i % cols] + x[i]);
        often[i % cols] = lab_round_to(lab->type, often[i % cols] + x[i]);
    }
    for (int64_t c = 0; c < cols; c++)
        want[c] = lab_round_to(lab->type, want[c]);
    struct lab_matrix mx = lab_matrix(lab, rows, cols, margin), my = lab_matrix(lab, 1, cols, margin);
    lab_put(&mx, x);
    lab_fill(&my, NAN);
    lab->ops->sum_rows(lab->device, my.view, mx.view);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mx));
    LAB_CLOSE(got, want, bound, cols);
    int64_t into = rows / 2;
    lab->ops->sum_rows(lab->device, tensor_rows(mx.view, into, 1), mx.view);
    LAB_GET(mx, got);
    for (int64_t i = 0; i < rows * cols; i++)
        CHECK(i / cols == into || got[i] == x[i]);
    LAB_CLOSE(got + into * cols, want, bound, cols);
    /* Negative controls: another order; and in bf16, where the order seldom shows, a rounding at every row.
     */
    double *backwards = lab_doubles(lab, cols);
    for (int64_t i = rows * cols - 1; i >= 0; i--)
        backwards[i % cols] = lab_round(backwards[i % cols] + x[i]);
    if (rows > 2) LAB_DIFFERS(got + into * cols, lab->type == DTYPE_FLOAT ? backwards : often, bound, cols);
    lab_release(lab);
}

/* No rows: sums are empty, and nothing else changes. */
static void try_nothing(struct lab *lab)
{
    const struct ops *ops = lab->ops;
    struct lab_matrix a = lab_matrix(lab, 0, 24, 0), b = lab_matrix(lab, 7, 24, 0),
                      c = lab_matrix(lab, 0, 7, 0);
    struct lab_matrix sum = lab_floats(lab, 1, 24, 0), total = lab_matrix(lab, 1, 24, 0);
    int64_t *index = lab_array(lab, "", 0);
    double *numbers = lab_randoms(lab, 7 * 24, 13, 1), *got = lab_doubles(lab, 24);
    lab_put(&a, numbers);
    lab_put(&b, numbers);
    lab_put(&c, numbers);
    lab_put(&sum, numbers);
    lab_put(&total, numbers);
    ops->matmul(lab->device, c.view, a.view, false, b.view, true, false);
    ops->bias(lab->device, a.view, b.view.data);
    ops->bias_grad(lab->device, sum.view, a.view);
    ops->gather_rows(lab->device, a.view, b.view, index);
    ops->scatter_rows(lab->device, b.view, a.view, index);
    CHECK(lab_unchanged(&a) && lab_unchanged(&b) && lab_unchanged(&c) && lab_unchanged(&sum));
    ops->sum_rows(lab->device, total.view, a.view);
    LAB_GET(total, got);
    for (int i = 0; i < 24; i++)
        CHECK(got[i] == 0);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    static const int64_t rows[] = {1, 7, 13, 65, 301}, cols[] = {7, 13, 65, 24};
    products(lab);
    for (int64_t r = 0; r < 5; r++)
        for (int64_t c = 0; c < 4; c++)
            for (int64_t margin = 0; margin < 4; margin += 3) {
                if (lab->slow && (r + c + margin) % 2) continue;
                try_bias(lab, rows[r], cols[c], margin);
                try_gather(lab, 5, rows[r], cols[c], margin);
                try_gather(lab, 1000, rows[r], cols[c], margin);
                for (enum dtype type = DTYPE_FLOAT; type <= lab->type; type++) {
                    try_bias_grad(lab, rows[r], cols[c], margin, type);
                    try_scatter(lab, 5, rows[r], cols[c], margin, type);
                    try_scatter(lab, 1000, rows[r], cols[c], margin, type);
                }
                try_sum_rows(lab, r + 1, rows[r] * cols[c], margin);
            }
    /* wider than any tile, in whole vectors and not */
    try_bias(lab, 5, 4096, 0);
    try_bias_grad(lab, 1300, 264, 0, DTYPE_FLOAT);
    try_gather(lab, 9, 13, 2056, 8);
    try_scatter(lab, 9, 130, 1032, 0, lab->type);
    try_sum_rows(lab, 4, 70001, 0);
    try_nothing(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
