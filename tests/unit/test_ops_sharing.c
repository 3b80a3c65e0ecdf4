/* Attention with prefix sharing against sequences that stand alone. */
#include "tests/unit/attention_plan.h"

/* Copies rows between the shared packing (prompt, a, b, ...) and separate sequences (prompt, a), (prompt, b),
 * ...; or adds back. `rows` [separate tokens] says which shared row each separate row is. */
static void spread(double *separate, const double *shared, const int64_t *rows, int64_t count, int64_t width)
{
    for (int64_t i = 0; i < count; i++)
        memcpy(separate + i * width, shared + rows[i] * width, (size_t)width * sizeof *shared);
}

/* Both ways are within their bounds of the truth, which is the same; the prompt's part of dout is given to
 * the first copy alone, and dqkv of the prompt is the sum over the copies, each of which was rounded to bf16
 * by itself. */
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

    if (!lab->first) {
        lab_release(lab);
        return;
    }
    double *o = lab_doubles(lab, tokens * out), *bound = lab_doubles(lab, tokens * out);
    double *lse = lab_doubles(lab, tokens * shape.heads), *lse_bound = lab_doubles(lab, tokens * shape.heads);
    double *dqkv = lab_doubles(lab, tokens * width), *grad_bound = lab_doubles(lab, tokens * width);
    double *again = lab_doubles(lab, copies * out), *again_bound = lab_doubles(lab, copies * out);
    oracle_attention(o, lse, bound, lse_bound, NULL, qkv, tokens, &shared.packing, &shape, FLAW_NONE,
                     lab->type);
    oracle_attention_grad(dqkv, grad_bound, NULL, dout, qkv, tokens, &shared.packing, &shape, FLAW_NONE,
                          lab->type);
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
    for (int64_t i = 0; i < copies * width && lab->type == DTYPE_BFLOAT; i++)
        grad_bound[rows[i / width] * width + i % width] += LAB_UNIT_BFLOAT * fabs(apart.dqkv[i]);
    LAB_CLOSE(together.dqkv, sum, grad_bound, tokens * width);
    if (completions[1] > 0)
        LAB_DIFFERS(together.dqkv, last, grad_bound, tokens * width); /* one copy is not the sum */
    lab_release(lab);
}

static void all(struct lab *lab)
{
    try_sharing(lab, 5, (const int64_t[]){7, 0, 4, -1}, shape_of(6, 2, 8, 0));
    try_sharing(lab, 13, (const int64_t[]){1, 65, -1}, shape_of(3, 3, size_for(lab, 10), 5));
    if (!lab->slow) try_sharing(lab, 150, (const int64_t[]){300, 65, 1, -1}, shape_of(6, 2, 8, 0));
    try_sharing(lab, 65, (const int64_t[]){150, -1}, shape_of(8, 4, size_for(lab, 14), 100));
}

int main(void)
{
    lab_run(all);
    return check_result();
}
