/* Packings under construction, and what the device's attention says of them. For the tests of attention. */
#ifndef WPO_TESTS_UNIT_ATTENTION_PLAN_H
#define WPO_TESTS_UNIT_ATTENTION_PLAN_H

#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

enum { MOST_SPANS = 64, MOST_GROUPS = 16, MOST_TILES = 256 };

/* A packing under construction, on the host. */
struct plan {
    struct span spans[MOST_SPANS];
    int64_t group_spans[MOST_GROUPS + 1];
    struct packing packing;
    int64_t tokens;
};

static inline void plan_start(struct plan *plan)
{
    memset(plan, 0, sizeof *plan);
    plan->packing = (struct packing){.spans = plan->spans, .group_spans = plan->group_spans};
}

/* A prompt and its completions; counts end with -1. A count of 0 is the span of a completion of one token,
 * which predicts nothing and is not packed. */
static inline void plan_group(struct plan *plan, int64_t prompt, const int64_t *completions)
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

#define GROUP(plan, prompt, ...) plan_group(plan, prompt, (const int64_t[]){__VA_ARGS__, -1})

/* The same on the device, as the ops want it. */
static inline struct packing plan_upload(struct lab *lab, const struct plan *plan)
{
    struct packing packing = plan->packing;
    static struct packing_tile tiles[MOST_TILES];
    REQUIRE(packing_tiles_room(plan->tokens, packing.span_count) <= MOST_TILES, "too many tiles");
    packing.tile_count = packing_cut(tiles, plan->spans, plan->group_spans, packing.group_count);
    packing.tiles = lab_array(lab, tiles, (size_t)packing.tile_count * sizeof *tiles);
    packing.spans = lab_array(lab, plan->spans, (size_t)packing.span_count * sizeof *plan->spans);
    packing.group_spans =
        lab_array(lab, plan->group_spans, (size_t)(packing.group_count + 1) * sizeof *plan->group_spans);
    return packing;
}

/* The head size that this backend takes, `size` or the next above it. */
static inline int64_t size_for(const struct lab *lab, int64_t size)
{
    int64_t multiple = lab->ops->head_multiple ? lab->ops->head_multiple : 1;
    return (size + multiple - 1) / multiple * multiple;
}

static inline struct attention_shape shape_of(int64_t heads, int64_t key_heads, int64_t head_size,
                                              int64_t window)
{
    return (struct attention_shape){heads, key_heads, head_size, window,
                                    (float)(1 / sqrt((double)head_size))};
}

static inline int64_t qkv_width(const struct attention_shape *shape)
{
    return (shape->heads + 2 * shape->key_heads) * shape->head_size;
}

/* What the device says, forward and backward. */
struct answer {
    double *o, *lse, *dqkv;
};

static inline struct answer ask(struct lab *lab, const struct plan *plan, struct attention_shape shape,
                                const double *qkv, const double *dout, int64_t margin)
{
    int64_t tokens = plan->tokens, width = qkv_width(&shape), out = shape.heads * shape.head_size;
    struct answer answer = {lab_doubles(lab, tokens * out), lab_doubles(lab, tokens * shape.heads),
                            lab_doubles(lab, tokens * width)};
    struct packing packing = plan_upload(lab, plan);
    struct lab_matrix mqkv = lab_matrix(lab, tokens, width, margin),
                      mo = lab_matrix(lab, tokens, out, margin);
    struct lab_matrix mlse = lab_floats(lab, tokens, shape.heads, 0),
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
    struct lab_matrix workspace = lab_floats(lab, 1, floats > 0 ? floats : 1, 0);
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

#endif
