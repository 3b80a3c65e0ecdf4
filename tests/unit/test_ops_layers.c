/* Norm, rotary positions and the gated activation, forward against the oracle and backward against its
 * derivatives. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

static const int64_t row_counts[] = {1, 7, 13, 65}, col_counts[] = {7, 13, 65, 24};

/* -- rmsnorm ---------------------------------------------------------------------------------- */

/* Relative errors in f32: the mean of C squares (C+2) u, half of that after the root, a few roundings for the
 * root, the quotient, the two factors and the sum x + r itself. In bf16 the norm may be taken of the sum as
 * it is stored, or before: w = LAB_UNIT_BFLOAT of each element, and as much of the root of the mean square.
 */
static void try_norm(struct lab *lab, int64_t rows, int64_t cols, int64_t margin, bool residual,
                     bool in_place, double scale)
{
    int64_t count = rows * cols;
    double *x = lab_randoms(lab, count, 1, scale), *r = lab_randoms(lab, count, 2, scale);
    double *weight = lab_randoms(lab, cols, 3, 2), *got = lab_doubles(lab, count),
           *got_sum = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *sum = lab_doubles(lab, count), *bound = lab_doubles(lab, count);
    struct lab_matrix mx = lab_matrix(lab, rows, cols, margin),
                      mr = lab_matrix(lab, rows, cols, margin ? margin + 1 : 0);
    struct lab_matrix my = lab_matrix(lab, rows, cols, 2 * margin), ms = lab_matrix(lab, rows, cols, margin);
    struct lab_matrix mw = lab_matrix(lab, 1, cols, 0);
    float epsilon = 1e-5f;
    lab_put(&mx, x);
    lab_put(&mr, r);
    lab_put(&mw, weight);
    lab_fill(&my, NAN);
    lab_fill(&ms, NAN);
    struct tensor none = {0};
    lab->ops->rmsnorm(lab->device, my.view,
                      !residual  ? none
                      : in_place ? mx.view
                                 : ms.view,
                      mx.view, residual ? mr.view : none, mw.view.data, epsilon);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mr) && lab_unchanged(&mw));
    CHECK((residual && in_place) || lab_unchanged(&mx));
    CHECK((residual && !in_place) || lab_unchanged(&ms));

    double between = residual && lab->type == DTYPE_BFLOAT ? 2 * LAB_UNIT_BFLOAT : 0;
    oracle_rmsnorm(want, sum, x, residual ? r : NULL, weight, rows, cols, (double)epsilon);
    for (int64_t i = 0; i < count; i++)
        bound[i] = (((double)cols / 2 + 8) * LAB_UNIT + between) * fabs(want[i]) + 1e-44;
    lab_stored(lab->type, bound, want, count);
    LAB_CLOSE(got, want, bound, count);
    if (residual) { /* one rounding */
        lab_get(in_place ? &mx : &ms, got_sum, "sum");
        for (int64_t i = 0; i < count; i++)
            sum[i] = lab_round_to(lab->type, sum[i]);
        LAB_CLOSE(got_sum, sum, lab_doubles(lab, count), count);
    }
    if (residual && scale > 0) { /* negative control: r forgotten */
        oracle_rmsnorm(want, NULL, x, NULL, weight, rows, cols, (double)epsilon);
        LAB_DIFFERS(got, want, bound, count);
    }
    lab_release(lab);
}

struct norm_loss {
    double *x, *weight, *dy, *y;
    int64_t rows, cols;
    double epsilon;
};

static double norm_loss(void *context)
{
    struct norm_loss *l = context;
    double loss = 0;
    oracle_rmsnorm(l->y, NULL, l->x, NULL, l->weight, l->rows, l->cols, l->epsilon);
    for (int64_t i = 0; i < l->rows * l->cols; i++)
        loss += l->y[i] * l->dy[i];
    return loss;
}

struct norm_grad {
    int64_t rows, cols, margin;
    enum dtype weight_type;                     /* of dweight */
    double *x, *dy, *weight, *old, *old_weight; /* [N,C] or [C] */
    double *got, *got_weight;
    float epsilon;
};

static void norm_grad_ask(struct lab *lab, struct norm_grad *g)
{
    struct lab_matrix mx = lab_matrix(lab, g->rows, g->cols, g->margin);
    struct lab_matrix mdy = lab_matrix(lab, g->rows, g->cols, g->margin ? g->margin + 1 : 0);
    struct lab_matrix mdx = lab_matrix(lab, g->rows, g->cols, g->margin);
    struct lab_matrix mw = lab_matrix(lab, 1, g->cols, 0),
                      mdw = lab_typed(lab, g->weight_type, 1, g->cols, g->margin);
    lab_put(&mx, g->x);
    lab_put(&mdy, g->dy);
    lab_put(&mdx, g->old);
    lab_put(&mw, g->weight);
    lab_put(&mdw, g->old_weight);
    lab->ops->rmsnorm_grad(lab->device, mdx.view, mdw.view, mdy.view, mx.view, mw.view.data, g->epsilon);
    LAB_GET(mdx, g->got);
    LAB_GET(mdw, g->got_weight);
    CHECK(lab_unchanged(&mx) && lab_unchanged(&mdy) && lab_unchanged(&mw));
}

/* Bounds: rstd^2 mean(x dy w) carries (C+4) u for rstd^2 and (C+2) u for the mean, on the absolute values of
 * its terms; the sum over N rows in dweight adds N u; adding to what is there rounds once. The derivatives
 * are good to 1e-9 at these sizes (oracle_ops.h): `slack`. */
static void norm_grad_check(struct lab *lab, struct norm_grad *g)
{
    int64_t rows = g->rows, cols = g->cols, count = rows * cols;
    double u = LAB_UNIT, slack = 1e-9, epsilon = (double)g->epsilon;
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count), *y = lab_doubles(lab, count);
    double *want_weight = lab_doubles(lab, cols), *bound_weight = lab_doubles(lab, cols);
    for (int64_t n = 0; n < rows; n++) {
        struct norm_loss row = {g->x + n * cols, g->weight, g->dy + n * cols, y, 1, cols, epsilon};
        double square = 0, product = 0;
        for (int64_t c = 0; c < cols; c++) {
            square += row.x[c] * row.x[c] / (double)cols;
            product += fabs(row.x[c] * row.dy[c] * row.weight[c]) / (double)cols;
        }
        double rstd = 1 / sqrt(square + epsilon);
        for (int64_t c = 0; c < cols; c++) {
            int64_t i = n * cols + c;
            want[i] = g->old[i] + oracle_derivative(norm_loss, &row, &row.x[c]);
            double size = rstd * (fabs(row.dy[c] * row.weight[c]) + fabs(row.x[c]) * rstd * rstd * product);
            bound[i] = (2 * (double)cols + 16) * u * size + 2 * u * (fabs(g->old[i]) + fabs(want[i])) + slack;
            bound_weight[c] += fabs(row.dy[c] * row.x[c] * rstd);
        }
    }
    lab_stored(lab->type, bound, want, count);
    LAB_CLOSE(g->got, want, bound, count);
    struct norm_loss whole = {g->x, g->weight, g->dy, y, rows, cols, epsilon};
    for (int64_t c = 0; c < cols; c++) {
        want_weight[c] = g->old_weight[c] + oracle_derivative(norm_loss, &whole, &g->weight[c]);
        bound_weight[c] = (double)(rows + cols + 16) * u * (bound_weight[c] + fabs(g->old_weight[c])) + slack;
    }
    lab_stored(g->weight_type, bound_weight, want_weight, cols);
    LAB_CLOSE(g->got_weight, want_weight, bound_weight, cols);
    for (int64_t i = 0; i < count; i++) /* negative controls: overwritten instead of added */
        want[i] -= g->old[i];
    LAB_DIFFERS(g->got, want, bound, count);
    for (int64_t c = 0; c < cols; c++)
        want_weight[c] -= g->old_weight[c];
    LAB_DIFFERS(g->got_weight, want_weight, bound_weight, cols);
}

static void try_norm_grad(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    for (enum dtype type = DTYPE_FLOAT; type <= lab->type; type++) {
        int64_t count = rows * cols;
        struct norm_grad g = {.rows = rows, .cols = cols, .margin = margin, .weight_type = type};
        g.epsilon = 1e-5f;
        g.x = lab_randoms(lab, count, 4, 2);
        g.dy = lab_randoms(lab, count, 5, 1);
        g.weight = lab_randoms(lab, cols, 6, 2);
        g.old = lab_randoms(lab, count, 7, 1);
        g.old_weight = lab_randoms(lab, cols, 8, 1);
        g.got = lab_doubles(lab, count);
        g.got_weight = lab_doubles(lab, cols);
        norm_grad_ask(lab, &g);
        if (lab->first) norm_grad_check(lab, &g);
        lab_release(lab);
    }
}

/* -- rope ------------------------------------------------------------------------------------- */

struct rope_loss {
    double *x, *cotangent, *turned, *table;
    int64_t *position;
    int64_t heads, size;
};

static double rope_loss(void *context)
{
    struct rope_loss *l = context;
    double loss = 0;
    int64_t width = l->heads * l->size;
    memcpy(l->turned, l->x, (size_t)width * sizeof *l->x);
    oracle_rope(l->turned, 1, l->heads, l->size, l->position, l->table, false);
    for (int64_t i = 0; i < width; i++)
        loss += l->turned[i] * l->cotangent[i];
    return loss;
}

/* Two products and a sum: 2 u of each product and u of the sum, so 3 u (|a| + |b|) with |cos|, |sin| <= 1.
 * The table is f32 whatever x is. */
static void try_rope(struct lab *lab, int64_t rows, int64_t heads, int64_t size, int64_t margin)
{
    int64_t width = heads * size, count = rows * width, positions = 400, half = size / 2;
    double *x = lab_randoms(lab, count, 9, 3), *table = lab_doubles(lab, positions * size),
           *got = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count);
    int64_t *position = lab_integers(lab, rows);
    for (int64_t p = 0; p < positions; p++)
        for (int64_t j = 0; j < half; j++) {
            double angle = (double)p * pow(10000, -2.0 * (double)j / (double)size);
            table[p * size + j] = lab_round(cos(angle));
            table[p * size + half + j] = lab_round(sin(angle));
        }
    for (int64_t n = 0; n < rows; n++)
        position[n] = n % 5 == 4 ? 399 : n * 17 % 300;
    struct lab_matrix mx = lab_matrix(lab, rows, width, margin), mt = lab_floats(lab, positions, size, 0);
    int64_t *on_device = lab_array(lab, position, (size_t)rows * sizeof *position);
    lab_put(&mt, table);
    for (int inverse = 0; inverse < 2; inverse++) {
        lab_put(&mx, x);
        lab->ops->rope(lab->device, mx.view, heads, on_device, mt.view.data, inverse);
        LAB_GET(mx, got);
        CHECK(lab_unchanged(&mt));
        if (inverse) { /* the gradient: derivative of sum(cotangent * rope(x)), cotangent being what was fed
                          in */
            double *other = lab_randoms(lab, width, 10, 1), *turned = lab_doubles(lab, width);
            for (int64_t n = 0; n < rows; n++) {
                struct rope_loss loss = {other, x + n * width, turned, table, position + n, heads, size};
                for (int64_t i = 0; i < width; i++)
                    want[n * width + i] = oracle_derivative(rope_loss, &loss, &other[i]);
            }
        } else {
            memcpy(want, x, (size_t)count * sizeof *x);
            oracle_rope(want, rows, heads, size, position, table, false);
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t pair = i % size < half ? i + half : i - half;
            bound[i] = 3 * LAB_UNIT * (fabs(x[i]) + fabs(x[pair])) + 1e-11;
        }
        lab_stored(lab->type, bound, want, count);
        LAB_CLOSE(got, want, bound, count);
        if (rows > 1) { /* negative control: one row one position later */
            memcpy(want, x, (size_t)count * sizeof *x);
            position[1]++;
            oracle_rope(want, rows, heads, size, position, table, inverse);
            position[1]--;
            LAB_DIFFERS(got, want, bound, count);
        }
    }
    lab_release(lab);
}

/* -- swiglu ----------------------------------------------------------------------------------- */

static double swiglu_loss(void *context)
{
    double *of = context, y; /* g, u, dy */
    oracle_swiglu(&y, of, 1, 1);
    return y * of[2];
}

/* The exponential is good to a few u, then a handful of roundings: 16 u of the result, 24 u of the two terms
 * of silu' = s + g s (1 - s). Where e^-g overflows f32 (g < -88) the result may be 0: |g| e^g < 1e-36. */
static void try_swiglu(struct lab *lab, int64_t rows, int64_t hidden, int64_t margin, double scale)
{
    int64_t count = rows * hidden;
    double *x = lab_randoms(lab, 2 * count, 12, scale), *got = lab_doubles(lab, count);
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count);
    struct lab_matrix mx = lab_matrix(lab, rows, 2 * hidden, margin),
                      my = lab_matrix(lab, rows, hidden, margin);
    lab_put(&mx, x);
    lab_fill(&my, NAN);
    lab->ops->swiglu(lab->device, my.view, mx.view);
    LAB_GET(my, got);
    CHECK(lab_unchanged(&mx));
    oracle_swiglu(want, x, rows, hidden);
    for (int64_t i = 0; i < count; i++)
        bound[i] = 16 * LAB_UNIT * fabs(want[i]) + 1e-36 * (1 + scale);
    lab_stored(lab->type, bound, want, count);
    LAB_CLOSE(got, want, bound, count);
    for (int64_t i = 0; i < count; i++)
        want[i] *= 1 + 12 * lab->unit + 1e-5;
    LAB_DIFFERS(got, want, bound, count);
    lab_release(lab);
}

static void try_swiglu_grad(struct lab *lab, int64_t rows, int64_t hidden, int64_t margin, double scale)
{
    int64_t count = rows * hidden;
    double *x = lab_randoms(lab, 2 * count, 12, scale), *dy = lab_randoms(lab, count, 13, 1),
           *got = lab_doubles(lab, 2 * count);
    double *want = lab_doubles(lab, 2 * count), *bound = lab_doubles(lab, 2 * count);
    struct lab_matrix mx = lab_matrix(lab, rows, 2 * hidden, margin),
                      mdy = lab_matrix(lab, rows, hidden, margin ? margin + 1 : 0),
                      mdx = lab_matrix(lab, rows, 2 * hidden, 2 * margin);
    lab_put(&mx, x);
    lab_put(&mdy, dy);
    lab_fill(&mdx, NAN);
    lab->ops->swiglu_grad(lab->device, mdx.view, mdy.view, mx.view);
    LAB_GET(mdx, got);
    CHECK(lab_unchanged(&mx) && lab_unchanged(&mdy));
    for (int64_t i = 0; i < count; i++) {
        int64_t at = i / hidden * 2 * hidden + i % hidden;
        double of[3] = {x[at], x[at + hidden], dy[i]}, s = 1 / (1 + exp(-of[0]));
        want[at] = oracle_derivative(swiglu_loss, of, &of[0]);
        want[at + hidden] = oracle_derivative(swiglu_loss, of, &of[1]);
        bound[at] =
            24 * LAB_UNIT * fabs(of[2] * of[1]) * (s + fabs(of[0]) * s * (1 - s)) + 1e-11 * (1 + fabs(of[1]));
        bound[at + hidden] = 16 * LAB_UNIT * fabs(want[at + hidden]) + 1e-12 * (1 + fabs(of[0]));
    }
    lab_stored(lab->type, bound, want, 2 * count);
    LAB_CLOSE(got, want, bound, 2 * count);
    double *in_place = lab_doubles(lab, 2 * count), *zeros = lab_doubles(lab, 2 * count);
    lab->ops->swiglu_grad(lab->device, mx.view, mdy.view, mx.view);
    LAB_GET(mx, in_place);
    LAB_CLOSE(in_place, got, zeros, 2 * count); /* in place: the same bits */
    want[count / 2] += 1e-2 * (fabs(want[count / 2]) + 1);
    LAB_DIFFERS(got, want, bound, 2 * count);
    lab_release(lab);
}

/* No rows: nothing happens. */
static void try_nothing(struct lab *lab)
{
    const struct ops *ops = lab->ops;
    struct lab_matrix x = lab_matrix(lab, 0, 24, 0), r = lab_matrix(lab, 0, 24, 0),
                      wide = lab_matrix(lab, 0, 48, 0), weight = lab_matrix(lab, 1, 24, 0);
    double *numbers = lab_randoms(lab, 48, 14, 1);
    struct lab_matrix table = lab_floats(lab, 1, 8, 0);
    lab_put(&x, numbers);
    lab_put(&r, numbers);
    lab_put(&wide, numbers);
    lab_put(&weight, numbers);
    lab_fill(&table, 0);
    ops->rmsnorm(lab->device, x.view, r.view, r.view, x.view, weight.view.data, 1e-5f);
    ops->rmsnorm_grad(lab->device, x.view, weight.view, r.view, r.view, weight.view.data, 1e-5f);
    ops->rope(lab->device, x.view, 3, lab_array(lab, "", 0), table.view.data, false);
    ops->swiglu(lab->device, x.view, wide.view);
    ops->swiglu_grad(lab->device, wide.view, x.view, wide.view);
    CHECK(lab_unchanged(&x) && lab_unchanged(&r) && lab_unchanged(&wide) && lab_unchanged(&weight));
    lab_release(lab);
}

static void all(struct lab *lab)
{
    for (int64_t r = 0; r < 4; r++)
        for (int64_t c = 0; c < 4; c++)
            for (int64_t margin = 0; margin < 4; margin += 3) {
                int64_t rows = row_counts[r], cols = col_counts[c];
                if (lab->slow && (r + c + margin) % 2) continue;
                for (int residual = 0; residual < 3; residual++)
                    try_norm(lab, rows, cols, margin, residual > 0, residual == 2, 1);
                try_norm_grad(lab, rows, cols, margin);
                try_swiglu(lab, rows, cols, margin, 4);
                try_swiglu_grad(lab, rows, cols, margin, 4);
            }
    try_norm(lab, 301, 65, 0, true, true, 1e-4);  /* epsilon matters */
    try_norm(lab, 301, 65, 0, true, false, 1e12); /* squares up to 1e24 */
    try_norm(lab, 7, 13, 0, true, false, 0);      /* rows of zeros: 0 / sqrt(epsilon) */
    /* wider than a block is likely to be, in whole vectors and not */
    try_norm(lab, 3, 4096, 0, true, true, 1);
    try_norm(lab, 3, 3077, 3, true, false, 1);
    try_norm(lab, 2, 8200, 8, false, false, 1);
    try_norm_grad(lab, 301, 24, 0);
    try_norm_grad(lab, 3, lab->slow ? 264 : 520, 0);
    try_swiglu(lab, 301, 24, 0, 120); /* both sides of the overflow of e^-g */
    try_swiglu_grad(lab, 301, 24, 0, 120);
    try_swiglu(lab, 3, 2056, 0, 4);
    try_swiglu_grad(lab, 3, 2056, 8, 4);
    static const int64_t heads[][2] = {{6, 8}, {3, 10}, {8, 14}, {2, 8}, {4, 2}, {2, 64}, {1, 128}, {2, 80}};
    for (int64_t h = 0; h < 8; h++)
        for (int64_t r = 0; r < (lab->slow ? 2 : 4); r++)
            try_rope(lab, row_counts[r], heads[h][0], heads[h][1], r % 2 ? 3 : 0);
    try_nothing(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
