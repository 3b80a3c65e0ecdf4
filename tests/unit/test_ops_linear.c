/* Matrix products, biases, and rows by index. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

struct product {
    int64_t m, n, k;
    bool transpose_a, transpose_b, accumulate;
    int64_t margin;
};

/* A product of k terms in f32 is within (k+2) u sum |a||b| whatever the order of summation, and adding it to
 * what is there rounds once more: u |c| each for the old value and the new. For long sums that bound is too
 * weak to notice anything; roundings are then as good as random, and 6 sqrt(k) u sum |a||b| holds with
 * probability 1 - 1e-7 a result (Higham & Mary 2019, theorem 2.4 with lambda = 6). */
static double product_factor(int64_t k)
{
    return (k <= 1000 ? (double)(k + 2) : 6 * sqrt((double)k)) * LAB_UNIT;
}

static void try_product(struct lab *lab, struct product p)
{
    int64_t count = p.m * p.n;
    double *a = lab_randoms(lab, p.m * p.k, 1, 1), *b = lab_randoms(lab, p.k * p.n, 2, 1);
    double *old = lab_randoms(lab, count, 3, 1), *got = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count),
           *unused = lab_doubles(lab, count);
    struct lab_matrix ma = lab_matrix(lab, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.margin);
    struct lab_matrix mb = lab_matrix(lab, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.margin);
    struct lab_matrix mc = lab_matrix(lab, p.m, p.n, p.margin);
    lab_put(&ma, a);
    lab_put(&mb, b);
    if (p.accumulate)
        lab_put(&mc, old);
    else
        lab_fill(&mc, NAN);
    lab->ops->matmul(lab->device, mc.view, ma.view, p.transpose_a, mb.view, p.transpose_b, p.accumulate);
    LAB_GET(mc, got);
    CHECK(lab_unchanged(&ma) && lab_unchanged(&mb));

    oracle_matmul(want, bound, a, p.transpose_a, b, p.transpose_b, p.m, p.n, p.k);
    for (int64_t i = 0; i < count; i++) {
        bound[i] *= product_factor(p.k);
        if (p.accumulate) {
            want[i] += old[i];
            bound[i] += 2 * LAB_UNIT * (fabs(old[i]) + fabs(want[i]));
        }
    }
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

static void products(struct lab *lab)
{
    static const int64_t shapes[][3] = {{1, 1, 1},    {1, 7, 13},   {7, 13, 65}, {13, 65, 24},  {65, 24, 7},
                                        {65, 65, 65}, {24, 1, 300}, {7, 65, 1},  {130, 65, 257}};
    for (int64_t s = 0; s < (int64_t)(sizeof shapes / sizeof shapes[0]); s++)
        for (int bits = 0; bits < 8; bits++)
            for (int64_t margin = 0; margin < 4; margin += 3)
                try_product(lab, (struct product){shapes[s][0], shapes[s][1], shapes[s][2], bits & 1,
                                                  bits & 2, bits & 4, margin});
    /* Shapes of weight gradients: few results, many terms. A library is tempted to split the sum over
     * threads. */
    try_product(lab, (struct product){24, 24, 5000, true, false, true, 0});
    try_product(lab, (struct product){7, 13, 20001, true, false, true, 0});
    try_product(lab, (struct product){1, 65, 9000, false, false, false, 0});
    try_product(lab, (struct product){65, 1, 9000, false, true, false, 0});
    /* And of the head: one chunk of logits, and its gradient. */
    try_product(lab, (struct product){65, 1000, 24, false, true, false, 0});
    try_product(lab, (struct product){65, 24, 1000, false, false, true, 0});
}

/* y + b is one rounding; a column of n terms added to what is there n+1 of them. */
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
    LAB_CLOSE(got, want, bound, count);
    LAB_DIFFERS(got, y, bound, count);

    lab_put(&my, y);
    lab_put(&mb, b);
    lab->ops->bias_grad(lab->device, mb.view.data, my.view);
    LAB_GET(mb, got);
    CHECK(lab_unchanged(&my));
    for (int64_t c = 0; c < cols; c++) {
        double size = fabs(b[c]);
        want[c] = b[c];
        for (int64_t r = 0; r < rows; r++) {
            want[c] += y[r * cols + c];
            size += fabs(y[r * cols + c]);
        }
        bound[c] = (double)(rows + 1) * LAB_UNIT * size;
    }
    LAB_CLOSE(got, want, bound, cols);
    for (int64_t c = 0; c < cols; c++)
        want[c] -= b[c];
    LAB_DIFFERS(got, want, bound, cols);
    lab_release(lab);
}

/* Copies are exact. Sums are made in order of i, in f32, so they are exact too: the oracle repeats them. */
static void try_rows(struct lab *lab, int64_t table, int64_t rows, int64_t cols, int64_t margin)
{
    double *x = lab_randoms(lab, table * cols, 6, 1), *dy = lab_randoms(lab, rows * cols, 7, 1);
    int64_t *index = (int64_t *)(void *)lab_doubles(lab, rows);
    unsigned long long state = 11;
    for (int64_t i = 0; i < rows; i++) /* a quarter nowhere, the others with many repetitions */
        index[i] = i % 4 == 2 ? -1 : (int64_t)((check_uniform(&state) + 1) / 2 * (double)table);
    index[0] = table - 1;
    int64_t *on_device = lab_array(lab, index, (size_t)rows * sizeof *index);
    struct lab_matrix mx = lab_matrix(lab, table, cols, margin), my = lab_matrix(lab, rows, cols, margin);
    double *got = lab_doubles(lab, rows * cols), *want = lab_doubles(lab, rows * cols);
    double *bound = lab_doubles(lab, (rows + table) * cols);

    lab_put(&mx, x);
    lab_fill(&my, NAN);
    lab->ops->gather_rows(lab->device, my.view, mx.view, on_device);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mx));
    for (int64_t i = 0; i < rows * cols; i++)
        want[i] = index[i / cols] < 0 ? 0 : x[index[i / cols] * cols + i % cols];
    LAB_CLOSE(got, want, bound, rows * cols);
    want[cols - 1] += 1e-6;
    LAB_DIFFERS(got, want, bound, rows * cols);

    double *sum = lab_doubles(lab, table * cols), *dx = lab_doubles(lab, table * cols);
    lab_put(&mx, x);
    lab_put(&my, dy);
    lab->ops->scatter_rows(lab->device, mx.view, my.view, on_device);
    LAB_GET(mx, dx);
    CHECK(lab_unchanged(&my));
    for (int64_t i = 0; i < table * cols; i++)
        sum[i] = x[i];
    for (int64_t i = 0; i < rows * cols; i++)
        if (index[i / cols] >= 0) {
            int64_t at = index[i / cols] * cols + i % cols;
            sum[at] = lab_round(sum[at] + dy[i]);
        }
    LAB_CLOSE(dx, sum, bound, table * cols);
    int64_t held[3] = {0};
    lab->ops->download(lab->device, held, on_device, (size_t)(rows < 3 ? rows : 3) * sizeof *held);
    CHECK(memcmp(held, index, (size_t)(rows < 3 ? rows : 3) * sizeof *held) == 0);
    lab_release(lab);
}

static void all(struct lab *lab)
{
    static const int64_t rows[] = {1, 7, 13, 65, 301}, cols[] = {7, 13, 65, 24};
    products(lab);
    for (int64_t r = 0; r < 5; r++)
        for (int64_t c = 0; c < 4; c++)
            for (int64_t margin = 0; margin < 2; margin++) {
                try_bias(lab, rows[r], cols[c], 3 * margin);
                try_rows(lab, 5, rows[r], cols[c], 3 * margin);
                try_rows(lab, 1000, rows[r], cols[c], 3 * margin);
            }
}

int main(void)
{
    lab_run(all);
    return check_result();
}
