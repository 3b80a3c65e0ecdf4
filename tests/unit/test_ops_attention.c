/* Attention over packings, against the definition with its mask spelt out. Heads wide and narrow, windows,
 * spans longer than any tile. */
#include "tests/unit/attention_plan.h"

/* Which negative controls can be told apart in this packing. */
static bool flaw_shows(const struct plan *plan, const struct attention_shape *shape, enum oracle_flaw flaw)
{
    for (int64_t q = 0; q < plan->tokens; q++)
        for (int64_t k = 0; k < plan->tokens; k++)
            if (oracle_sees(&plan->packing, shape->window, q, k, flaw) !=
                oracle_sees(&plan->packing, shape->window, q, k, FLAW_NONE))
                return true;
    return flaw == FLAW_KEY_HEAD && shape->key_heads > 1 && shape->key_heads < shape->heads;
}

static void try_flaws(struct lab *lab, const struct plan *plan, struct attention_shape shape,
                      const double *qkv, const double *dout, struct answer got, const double *bound,
                      const double *grad_bound)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    double *o = lab_doubles(lab, tokens * out), *lse = lab_doubles(lab, tokens * shape.heads);
    double *dqkv = lab_doubles(lab, tokens * width), *unused = lab_doubles(lab, tokens * width);
    for (enum oracle_flaw flaw = FLAW_NO_WINDOW; flaw <= FLAW_KEY_HEAD; flaw++) {
        if (!flaw_shows(plan, &shape, flaw)) continue;
        oracle_attention(o, lse, NULL, NULL, NULL, qkv, tokens, &plan->packing, &shape, flaw, lab->type);
        oracle_attention_grad(dqkv, unused, NULL, dout, qkv, tokens, &plan->packing, &shape, flaw, lab->type);
        LAB_DIFFERS(got.o, o, bound, tokens * out);
        LAB_DIFFERS(got.dqkv, dqkv, grad_bound, tokens * width);
    }
}

struct truth {
    double *o, *bound, *noise, *lse, *lse_bound, *dqkv, *grad_bound, *grad_noise;
};

static struct truth know(struct lab *lab, const struct plan *plan, const struct attention_shape *shape,
                         const double *qkv, const double *dout, bool noisy)
{
    int64_t tokens = plan->tokens, width = tokens * qkv_width(shape), out = tokens * shape->heads;
    struct truth t = {.lse = lab_doubles(lab, out), .lse_bound = lab_doubles(lab, out)};
    out *= shape->head_size;
    t.o = lab_doubles(lab, out);
    t.bound = lab_doubles(lab, out);
    t.noise = noisy ? lab_doubles(lab, out) : NULL;
    t.dqkv = lab_doubles(lab, width);
    t.grad_bound = lab_doubles(lab, width);
    t.grad_noise = noisy ? lab_doubles(lab, width) : NULL;
    oracle_attention(t.o, t.lse, t.bound, t.lse_bound, t.noise, qkv, tokens, &plan->packing, shape, FLAW_NONE,
                     lab->type);
    oracle_attention_grad(t.dqkv, t.grad_bound, t.grad_noise, dout, qkv, tokens, &plan->packing, shape,
                          FLAW_NONE, lab->type);
    return t;
}

/* The mean square of the errors in columns first .. first+cols-1, in the mean variance that roundings to bf16
 * may have: about 0.54 if they are what they should be (oracle_attention.c), 4 times that if results are cut
 * instead of rounded, or were rounded on the way. */
static double noise_ratio(const double *got, const double *want, const double *noise, int64_t rows,
                          int64_t width, int64_t first, int64_t cols)
{
    double errors = 0, variance = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = r * width + first; i < r * width + first + cols; i++) {
            errors += (got[i] - want[i]) * (got[i] - want[i]);
            variance += noise[i];
        }
    return errors / variance;
}

static void check_noise(const struct truth *t, const struct answer *got, int64_t tokens,
                        const struct attention_shape *shape)
{
    int64_t size = shape->head_size, q = shape->heads * size, k = shape->key_heads * size, all = q + 2 * k;
    static const char *const names[] = {"o", "dq", "dk", "dv"};
    const double ratios[] = {noise_ratio(got->o, t->o, t->noise, tokens, q, 0, q),
                             noise_ratio(got->dqkv, t->dqkv, t->grad_noise, tokens, all, 0, q),
                             noise_ratio(got->dqkv, t->dqkv, t->grad_noise, tokens, all, q, k),
                             noise_ratio(got->dqkv, t->dqkv, t->grad_noise, tokens, all, q + k, k)};
    for (int i = 0; i < 4; i++) {
        check_count++;
        if (ratios[i] < 1) continue;
        check_failures++;
        fprintf(
            stderr,
            "%s: the noise of %s is %.2f times what roundings to bf16 explain (%lld tokens, heads of %lld)\n",
            __FILE__, names[i], ratios[i], (long long)tokens, (long long)size);
    }
}

static void try_attention(struct lab *lab, const struct plan *plan, struct attention_shape shape,
                          int64_t margin, double size)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    double *qkv = lab_randoms(lab, tokens * width, 1, size), *dout = lab_randoms(lab, tokens * out, 2, 1);
    struct answer got = ask(lab, plan, shape, qkv, dout, margin);
    if (lab->first) { /* the other runs must give the same bits */
        bool noisy = lab->type == DTYPE_BFLOAT && tokens > 100 && tokens < 600 && size == 1;
        struct truth t = know(lab, plan, &shape, qkv, dout, noisy);
        LAB_CLOSE(got.o, t.o, t.bound, tokens * out);
        LAB_CLOSE(got.lse, t.lse, t.lse_bound, tokens * shape.heads);
        LAB_CLOSE(got.dqkv, t.dqkv, t.grad_bound, tokens * width);
        if (tokens < 200 && size == 1) try_flaws(lab, plan, shape, qkv, dout, got, t.bound, t.grad_bound);
        if (noisy) check_noise(&t, &got, tokens, &shape);
    }
    lab_release(lab);
}

/* -- the oracle's own gradient, against derivatives of its forward pass ----------------------- */

struct attention_loss {
    const struct plan *plan;
    const struct attention_shape *shape;
    double *qkv, *dout, *o, *lse;
};

static double attention_loss(void *context)
{
    struct attention_loss *l = context;
    int64_t count = l->plan->tokens * l->shape->heads * l->shape->head_size;
    double loss = 0;
    oracle_attention(l->o, l->lse, NULL, NULL, NULL, l->qkv, l->plan->tokens, &l->plan->packing, l->shape,
                     FLAW_NONE, DTYPE_FLOAT);
    for (int64_t i = 0; i < count; i++)
        loss += l->o[i] * l->dout[i];
    return loss;
}

/* The rule's own error: third derivatives of a softmax of scores of size 1, times h^4: below 1e-9. */
static void try_oracle(struct lab *lab, const struct plan *plan, struct attention_shape shape)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    double *qkv = lab_randoms(lab, tokens * width, 3, 1), *dout = lab_randoms(lab, tokens * out, 4, 1);
    double *dqkv = lab_doubles(lab, tokens * width), *unused = lab_doubles(lab, tokens * width);
    double *slope = lab_doubles(lab, tokens * width), *bound = lab_doubles(lab, tokens * width);
    struct attention_loss loss = {
        plan, &shape, qkv, dout, lab_doubles(lab, tokens * out), lab_doubles(lab, tokens * shape.heads)};
    oracle_attention_grad(dqkv, unused, NULL, dout, qkv, tokens, &plan->packing, &shape, FLAW_NONE,
                          lab->type);
    for (int64_t i = 0; i < tokens * width; i++) {
        slope[i] = oracle_derivative(attention_loss, &loss, &qkv[i]);
        bound[i] = 1e-9;
    }
    LAB_CLOSE(dqkv, slope, bound, tokens * width);
    struct attention_shape other = shape;
    other.window = shape.window ? 0 : 2;
    oracle_attention_grad(dqkv, unused, NULL, dout, qkv, tokens, &plan->packing, &other, FLAW_NONE,
                          lab->type);
    LAB_DIFFERS(dqkv, slope, bound, tokens * width);
    lab_release(lab);
}

/* -- the cases -------------------------------------------------------------------------------- */

static void small_plan(struct plan *plan)
{
    plan_start(plan);
    GROUP(plan, 1, 1);
    GROUP(plan, 3, 1, 0);
    GROUP(plan, 2, 0, 2);
    GROUP(plan, 1, 0, 0);
    GROUP(plan, 5, 7, 1, 4);
    plan_group(plan, 4, (const int64_t[]){-1});
}

static void middle_plan(struct plan *plan)
{
    plan_start(plan);
    GROUP(plan, 13, 7, 65);
    GROUP(plan, 1, 13, 1);
    GROUP(plan, 33, 1, 13, 7);
}

static void long_plan(struct plan *plan)
{
    plan_start(plan);
    GROUP(plan, 150, 300, 1);
    GROUP(plan, 2, 3, 0);
    GROUP(plan, 300, 150, 65);
}

/* Spans on both sides of a tile of 128, and whole tiles. */
static void edge_plan(struct plan *plan)
{
    plan_start(plan);
    GROUP(plan, 7, 130);
    GROUP(plan, 128, 1, 129);
    GROUP(plan, 65, 127);
}

/* No tokens: nothing happens. */
static void try_nothing(struct lab *lab)
{
    static struct plan plan;
    plan_start(&plan);
    struct attention_shape shape = shape_of(2, 1, size_for(lab, 8), 0);
    struct lab_matrix wide = lab_matrix(lab, 0, qkv_width(&shape), 0),
                      o = lab_matrix(lab, 0, 2 * shape.head_size, 0), lse = lab_floats(lab, 0, 2, 0);
    lab_fill(&wide, 0);
    lab_fill(&o, 0);
    lab_fill(&lse, 0);
    struct packing packing = plan_upload(lab, &plan);
    size_t bytes = lab->ops->attention_workspace(lab->device, 0, shape);
    struct lab_matrix workspace = lab_floats(lab, 1, (int64_t)(bytes / 4 + 1), 0);
    lab_fill(&workspace, 0);
    lab->ops->attention(lab->device, o.view, lse.view.data, wide.view, packing, shape);
    lab->ops->attention_grad(lab->device, wide.view, o.view, o.view, lse.view.data, wide.view, packing, shape,
                             workspace.view.data);
    CHECK(lab_unchanged(&wide) && lab_unchanged(&o) && lab_unchanged(&lse));
    lab_release(lab);
}

/* Heads as models have them, over spans that fill tiles and such that do not. */
static void wide_heads(struct lab *lab)
{
    static const int64_t sizes[] = {16, 64, 80, 96, 128},
                         heads[][2] = {{4, 1}, {2, 1}, {4, 2}, {2, 2}, {4, 1}};
    static struct plan middle, edges, large;
    middle_plan(&middle);
    edge_plan(&edges);
    long_plan(&large);
    for (int i = 0; i < 5; i++) {
        int64_t window = i % 2 ? 20 : 0;
        if (lab->ops->head_limit && sizes[i] > lab->ops->head_limit) continue;
        try_attention(lab, &middle, shape_of(heads[i][0], heads[i][1], sizes[i], window), i % 2 ? 3 : 0, 1);
        if (!lab->slow || i % 2)
            try_attention(lab, &edges, shape_of(2, 1, sizes[i], 20 - window), i % 2 ? 0 : 8, 1);
    }
    try_attention(lab, &edges, shape_of(2, 1, 64, 130), 0, 1); /* a window longer than a tile */
    try_attention(lab, &large, shape_of(2, 1, lab->slow ? 16 : 64, 0), 0, 1);
}

static void all(struct lab *lab)
{
    static const int64_t heads[][2] = {{6, 2}, {3, 3}, {8, 4}, {8, 2}}, sizes[] = {8, 10, 40},
                         windows[] = {0, 5, 1};
    static struct plan small, middle, large;
    small_plan(&small);
    middle_plan(&middle);
    long_plan(&large);
    if (lab->first && lab->type == DTYPE_FLOAT) {
        try_oracle(lab, &small, shape_of(6, 2, 4, 0));
        try_oracle(lab, &small, shape_of(2, 2, 2, 5));
    }
    for (int h = 0; h < 4; h++)
        for (int s = 0; s < 3; s++)
            for (int w = 0; w < 3; w++) {
                struct attention_shape shape =
                    shape_of(heads[h][0], heads[h][1], size_for(lab, sizes[s]), windows[w]);
                if (lab->slow && (h + s + w) % 3) continue;
                try_attention(lab, &small, shape, (h + s + w) % 2 ? 3 : 0, 1);
                if (h == s) try_attention(lab, &middle, shape, w ? 3 : 0, 1);
            }
    wide_heads(lab);
    if (!lab->slow) {
        try_attention(lab, &large, shape_of(6, 2, 8, 0), 0, 1);
        try_attention(lab, &large, shape_of(8, 4, size_for(lab, 14), 100), 3, 1);
    }
    try_attention(lab, &large, shape_of(3, 3, size_for(lab, 10), 5), 3, 1);
    try_attention(lab, &middle, shape_of(6, 2, 8, 0), 0, 12); /* scores up to some hundreds */
    try_attention(lab, &middle, shape_of(6, 2, 8, 5), 0, 60); /* and thousands: one key takes all */
    try_attention(lab, &middle, shape_of(6, 2, 8, 0), 0, 0);  /* all equal */
    try_nothing(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
