/* Attention over packings, against the definition with its mask spelt out; and prefix sharing against
 * sequences that stand alone. Heads wide and narrow, windows, spans longer than any tile. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

enum { MOST_SPANS = 64, MOST_GROUPS = 16 };

/* A packing under construction, on the host. */
struct plan {
    struct span spans[MOST_SPANS];
    int64_t group_spans[MOST_GROUPS + 1];
    struct packing packing;
    int64_t tokens;
};

static void plan_start(struct plan *plan)
{
    memset(plan, 0, sizeof *plan);
    plan->packing = (struct packing){.spans = plan->spans, .group_spans = plan->group_spans};
}

/* A prompt and its completions; counts end with -1. A count of 0 is the span of a completion of one token,
 * which predicts nothing and is not packed. */
static void plan_group(struct plan *plan, int64_t prompt, const int64_t *completions)
{
    struct packing *packing = &plan->packing;
    int64_t start = plan->tokens;
    plan->spans[packing->span_count++] = (struct span){start, prompt, 0, 0, 0};
    plan->tokens += prompt;
    if (packing->longest < prompt) packing->longest = prompt;
    for (; *completions >= 0; completions++) {
        plan->spans[packing->span_count++] = (struct span){plan->tokens, *completions, start, prompt, prompt};
        plan->tokens += *completions;
        if (packing->longest < prompt + *completions) packing->longest = prompt + *completions;
    }
    plan->group_spans[++packing->group_count] = packing->span_count;
}

/* The same on the device, as the ops want it. */
static struct packing plan_upload(struct lab *lab, const struct plan *plan)
{
    struct packing packing = plan->packing;
    packing.spans = lab_array(lab, plan->spans, (size_t)packing.span_count * sizeof *plan->spans);
    packing.group_spans =
        lab_array(lab, plan->group_spans, (size_t)(packing.group_count + 1) * sizeof *plan->group_spans);
    return packing;
}

static struct attention_shape shape_of(int64_t heads, int64_t key_heads, int64_t head_size, int64_t window)
{
    return (struct attention_shape){heads, key_heads, head_size, window,
                                    (float)(1 / sqrt((double)head_size))};
}

static int64_t qkv_width(const struct attention_shape *shape)
{
    return (shape->heads + 2 * shape->key_heads) * shape->head_size;
}

/* What the device says, forward and backward. */
struct answer {
    double *o, *lse, *dqkv;
};

static struct answer ask(struct lab *lab, const struct plan *plan, struct attention_shape shape,
                         const double *qkv, const double *dout, int64_t margin)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    struct answer answer = {lab_doubles(lab, tokens * out), lab_doubles(lab, tokens * shape.heads),
                            lab_doubles(lab, tokens * width)};
    struct packing packing = plan_upload(lab, plan);
    struct lab_matrix mqkv = lab_matrix(lab, tokens, width, margin),
                      mo = lab_matrix(lab, tokens, out, margin);
    struct lab_matrix mlse = lab_matrix(lab, tokens, shape.heads, 0),
                      mdout = lab_matrix(lab, tokens, out, 2 * margin);
    struct lab_matrix mdqkv = lab_matrix(lab, tokens, width, margin);
    lab_put(&mqkv, qkv);
    lab_put(&mdout, dout);
    lab_fill(&mo, NAN);
    lab_fill(&mlse, NAN);
    lab_fill(&mdqkv, NAN);
    lab->ops->attention(lab->device, mo.view, mlse.view.data, mqkv.view, packing, shape);
    LAB_GET(mo, answer.o);
    LAB_GET(mlse, answer.lse);
    CHECK(lab_unchanged(&mqkv));

    lab_put(&mo, answer.o); /* from here on they are inputs: a change would show */
    lab_put(&mlse, answer.lse);
    size_t bytes = lab->ops->attention_workspace(lab->device, tokens, shape);
    int64_t floats = (int64_t)((bytes + 3) / 4);
    struct lab_matrix workspace = lab_matrix(lab, 1, floats > 0 ? floats : 1, 0);
    lab_fill(&workspace, NAN);
    lab->ops->attention_grad(lab->device, mdqkv.view, mdout.view, mo.view, mlse.view.data, mqkv.view, packing,
                             shape, workspace.view.data);
    LAB_GET(mdqkv, answer.dqkv);
    CHECK(lab_unchanged(&mqkv) && lab_unchanged(&mdout) && lab_unchanged(&mo) && lab_unchanged(&mlse));
    double *unused = lab_doubles(lab, workspace.view.cols);
    int records = lab->record_count;
    CHECK(lab_get(&workspace, unused, "workspace")); /* only its edges matter, not what is left in it */
    lab->record_count = records;
    return answer;
}

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
        oracle_attention(o, lse, NULL, NULL, qkv, tokens, &plan->packing, &shape, flaw);
        oracle_attention_grad(dqkv, unused, dout, qkv, tokens, &plan->packing, &shape, flaw);
        LAB_DIFFERS(got.o, o, bound, tokens * out);
        LAB_DIFFERS(got.dqkv, dqkv, grad_bound, tokens * width);
    }
}

static void try_attention(struct lab *lab, const struct plan *plan, struct attention_shape shape,
                          int64_t margin, double size)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    double *qkv = lab_randoms(lab, tokens * width, 1, size), *dout = lab_randoms(lab, tokens * out, 2, 1);
    struct answer got = ask(lab, plan, shape, qkv, dout, margin);
    if (lab->first) { /* the other numbers of threads must give the same bits */
        double *o = lab_doubles(lab, tokens * out), *bound = lab_doubles(lab, tokens * out);
        double *lse = lab_doubles(lab, tokens * shape.heads),
               *lse_bound = lab_doubles(lab, tokens * shape.heads);
        double *dqkv = lab_doubles(lab, tokens * width), *grad_bound = lab_doubles(lab, tokens * width);
        oracle_attention(o, lse, bound, lse_bound, qkv, tokens, &plan->packing, &shape, FLAW_NONE);
        oracle_attention_grad(dqkv, grad_bound, dout, qkv, tokens, &plan->packing, &shape, FLAW_NONE);
        LAB_CLOSE(got.o, o, bound, tokens * out);
        LAB_CLOSE(got.lse, lse, lse_bound, tokens * shape.heads);
        LAB_CLOSE(got.dqkv, dqkv, grad_bound, tokens * width);
        if (tokens < 200 && size == 1) try_flaws(lab, plan, shape, qkv, dout, got, bound, grad_bound);
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
    oracle_attention(l->o, l->lse, NULL, NULL, l->qkv, l->plan->tokens, &l->plan->packing, l->shape,
                     FLAW_NONE);
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
    oracle_attention_grad(dqkv, unused, dout, qkv, tokens, &plan->packing, &shape, FLAW_NONE);
    for (int64_t i = 0; i < tokens * width; i++) {
        slope[i] = oracle_derivative(attention_loss, &loss, &qkv[i]);
        bound[i] = 1e-9;
    }
    LAB_CLOSE(dqkv, slope, bound, tokens * width);
    struct attention_shape other = shape;
    other.window = shape.window ? 0 : 2;
    oracle_attention_grad(dqkv, unused, dout, qkv, tokens, &plan->packing, &other, FLAW_NONE);
    LAB_DIFFERS(dqkv, slope, bound, tokens * width);
    lab_release(lab);
}

/* -- prefix sharing equals separate sequences ------------------------------------------------- */

/* Copies rows between the shared packing (prompt, a, b, ...) and separate sequences (prompt, a), (prompt, b),
 * ...; or adds back. `rows` [separate tokens] says which shared row each separate row is. */
static void spread(double *separate, const double *shared, const int64_t *rows, int64_t count, int64_t width)
{
    for (int64_t i = 0; i < count; i++)
        memcpy(separate + i * width, shared + rows[i] * width, (size_t)width * sizeof *shared);
}

/* Both ways are within their bounds of the truth, which is the same; the prompt's part of dout is given to
 * the first copy alone, and dqkv of the prompt is the sum over the copies. */
static void try_sharing(struct lab *lab, int64_t prompt, const int64_t *completions,
                        struct attention_shape shape)
{
    static struct plan shared, separate;
    static const int64_t none[] = {-1};
    int64_t width = qkv_width(&shape), out = shape.heads * shape.head_size, rows[4096], at = 0, next = prompt;
    plan_start(&shared);
    plan_start(&separate);
    plan_group(&shared, prompt, completions);
    for (const int64_t *c = completions; *c >= 0; c++) {
        plan_group(&separate, prompt + *c, none);
        for (int64_t i = 0; i < prompt; i++)
            rows[at++] = i;
        for (int64_t i = 0; i < *c; i++)
            rows[at++] = next++;
    }
    int64_t tokens = shared.tokens, copies = separate.tokens;
    double *qkv = lab_randoms(lab, tokens * width, 5, 1), *dout = lab_randoms(lab, tokens * out, 6, 1);
    double *qkv_apart = lab_doubles(lab, copies * width), *dout_apart = lab_doubles(lab, copies * out);
    spread(qkv_apart, qkv, rows, copies, width);
    spread(dout_apart, dout, rows, copies, out);
    for (int64_t i = prompt + completions[0]; i < copies; i++)
        if (rows[i] < prompt) memset(dout_apart + i * out, 0, (size_t)out * sizeof *dout);
    struct answer together = ask(lab, &shared, shape, qkv, dout, 0);
    struct answer apart = ask(lab, &separate, shape, qkv_apart, dout_apart, 0);

    double *o = lab_doubles(lab, tokens * out), *bound = lab_doubles(lab, tokens * out);
    double *lse = lab_doubles(lab, tokens * shape.heads), *lse_bound = lab_doubles(lab, tokens * shape.heads);
    double *dqkv = lab_doubles(lab, tokens * width), *grad_bound = lab_doubles(lab, tokens * width);
    double *again = lab_doubles(lab, copies * out), *again_bound = lab_doubles(lab, copies * out);
    oracle_attention(o, lse, bound, lse_bound, qkv, tokens, &shared.packing, &shape, FLAW_NONE);
    oracle_attention_grad(dqkv, grad_bound, dout, qkv, tokens, &shared.packing, &shape, FLAW_NONE);
    spread(again, together.o, rows, copies, out);
    spread(again_bound, bound, rows, copies, out);
    for (int64_t i = 0; i < copies * out; i++)
        again_bound[i] *= 2;
    LAB_CLOSE(apart.o, again, again_bound, copies * out);

    double *sum = lab_doubles(lab, tokens * width), *last = lab_doubles(lab, tokens * width);
    for (int64_t i = 0; i < copies * width; i++) {
        sum[rows[i / width] * width + i % width] += apart.dqkv[i];
        last[rows[i / width] * width + i % width] = apart.dqkv[i];
    }
    for (int64_t i = 0; i < tokens * width; i++)
        grad_bound[i] *= 2;
    LAB_CLOSE(together.dqkv, sum, grad_bound, tokens * width);
    if (completions[1] > 0)
        LAB_DIFFERS(together.dqkv, last, grad_bound, tokens * width); /* one copy is not the sum */
    lab_release(lab);
}

/* -- the cases -------------------------------------------------------------------------------- */

#define GROUP(plan, prompt, ...) plan_group(plan, prompt, (const int64_t[]){__VA_ARGS__, -1})

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

static void all(struct lab *lab)
{
    static const int64_t heads[][2] = {{6, 2}, {3, 3}, {8, 4}, {4, 1}}, sizes[] = {8, 10, 14},
                         windows[] = {0, 5, 1};
    static struct plan small, middle, large;
    small_plan(&small);
    middle_plan(&middle);
    long_plan(&large);
    if (lab->first) {
        try_oracle(lab, &small, shape_of(6, 2, 4, 0));
        try_oracle(lab, &small, shape_of(2, 2, 2, 5));
    }
    for (int h = 0; h < 4; h++)
        for (int s = 0; s < 3; s++)
            for (int w = 0; w < 3; w++) {
                struct attention_shape shape = shape_of(heads[h][0], heads[h][1], sizes[s], windows[w]);
                try_attention(lab, &small, shape, (h + s + w) % 2 ? 3 : 0, 1);
                if (h == s) try_attention(lab, &middle, shape, w ? 3 : 0, 1);
            }
    try_attention(lab, &large, shape_of(6, 2, 8, 0), 0, 1);
    try_attention(lab, &large, shape_of(8, 4, 14, 100), 3, 1);
    try_attention(lab, &large, shape_of(3, 3, 10, 5), 3, 1);
    try_attention(lab, &middle, shape_of(2, 1, 64, 0), 0, 1);
    try_attention(lab, &middle, shape_of(2, 2, 128, 20), 3, 1);
    try_attention(lab, &middle, shape_of(6, 2, 8, 0), 0, 12); /* scores up to some hundreds */
    try_attention(lab, &middle, shape_of(6, 2, 8, 5), 0, 60); /* and thousands: one key takes all */
    try_attention(lab, &middle, shape_of(6, 2, 8, 0), 0, 0);  /* all equal */
    try_sharing(lab, 5, (const int64_t[]){7, 0, 4, -1}, shape_of(6, 2, 8, 0));
    try_sharing(lab, 13, (const int64_t[]){1, 65, -1}, shape_of(3, 3, 10, 5));
    try_sharing(lab, 150, (const int64_t[]){300, 65, 1, -1}, shape_of(6, 2, 8, 0));
    try_sharing(lab, 65, (const int64_t[]){150, -1}, shape_of(8, 4, 14, 100));
}

int main(void)
{
    lab_run(all);
    return check_result();
}
