/* Attention over spans, in tiles of queries: the scores of one tile against all its keys fit in the
 * second-level cache, so no N x N matrix exists. A tile sees two runs of keys, the span's prefix and the span
 * itself up to the tile's end; both are contiguous rows, so every product is a plain sgemm. Work is shared by
 * (group, query head). */
#include "kernels/cpu/cpu.h"

#include <omp.h>

enum { TILE = 64 };

/* One tile of queries of one head, and the columns of its score matrix: keys of the prefix, then of the span.
 */
struct tile {
    int64_t row, rows;                 /* tokens of the batch */
    int64_t prefix_start, prefix_keys; /* first `prefix_keys` columns */
    int64_t own_start, own_keys;       /* the rest */
    int64_t position;                  /* of the first query, in its sequence */
    int64_t keys;                      /* prefix_keys + own_keys */
    int64_t own_position;              /* of the first own key */
    int64_t prefix_position;           /* of the first prefix key */
};

/* Keys that no query of the tile can see because of the window are left out at the front. */
static struct tile tile_of(const struct span *span, int64_t first, int64_t window)
{
    struct tile t = {.row = span->start + first, .position = span->position + first};
    t.rows = span->count - first < TILE ? span->count - first : TILE;
    int64_t oldest =
        window && t.position >= window ? t.position - window + 1 : 0; /* seen by the first query */
    int64_t prefix_skip = oldest < span->prefix_count ? oldest : span->prefix_count;
    int64_t own_skip = oldest > span->position ? oldest - span->position : 0;
    t.prefix_start = span->prefix_start + prefix_skip;
    t.prefix_keys = span->prefix_count - prefix_skip;
    t.prefix_position = prefix_skip;
    t.own_start = span->start + own_skip;
    t.own_keys = first + t.rows - own_skip;
    t.own_position = span->position + own_skip;
    t.keys = t.prefix_keys + t.own_keys;
    return t;
}

/* Columns that query i of the tile sees: from *first up to *end. */
static void visible(const struct tile *t, int64_t i, int64_t window, int64_t *first, int64_t *end)
{
    int64_t position = t->position + i;
    *end = t->prefix_keys + (position - t->own_position) + 1;
    *first = 0;
    if (window && position >= window) {
        int64_t oldest = position - window + 1; /* the position of the first key it sees */
        if (oldest >= t->own_position)
            *first = t->prefix_keys + oldest - t->own_position;
        else if (oldest > t->prefix_position)
            *first =
                oldest - t->prefix_position < t->prefix_keys ? oldest - t->prefix_position : t->prefix_keys;
    }
}

HOT static float row_maximum(const float *x, int64_t count)
{
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < count; i++)
        maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

HOT static float exponentiate(float *x, float shift, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        x[i] = exp_fast(x[i] - shift);
        sum += x[i];
    }
    return sum;
}

HOT static void scale_by(float *x, float factor, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] *= factor;
}

/* scores[rows][stride] = scale q k^T over the tile's keys. */
static void tile_scores(const struct tile *t, struct tensor q, struct tensor k, float scale, float *scores)
{
    gemm_tile(false, true, t->rows, t->prefix_keys, q.cols, scale, row_of(q, t->row), q.stride,
              row_of(k, t->prefix_start), k.stride, 0, scores, t->keys);
    gemm_tile(false, true, t->rows, t->own_keys, q.cols, scale, row_of(q, t->row), q.stride,
              row_of(k, t->own_start), k.stride, 0, scores + t->prefix_keys, t->keys);
}

/* out[rows] = p x over the tile's keys, where p is [rows][keys] and x is k or v. */
static void tile_mix(const struct tile *t, const float *p, struct tensor x, float *out, int64_t out_stride)
{
    gemm_tile(false, false, t->rows, x.cols, t->own_keys, 1, p + t->prefix_keys, t->keys,
              row_of(x, t->own_start), x.stride, 0, out, out_stride);
    if (t->prefix_keys)
        gemm_tile(false, false, t->rows, x.cols, t->prefix_keys, 1, p, t->keys, row_of(x, t->prefix_start),
                  x.stride, 1, out, out_stride);
}

static void forward_tile(const struct tile *t, struct tensor q, struct tensor k, struct tensor v,
                         struct tensor o, float *lse, int64_t lse_stride, struct attention_shape shape,
                         float *scores)
{
    tile_scores(t, q, k, shape.scale, scores);
    for (int64_t i = 0; i < t->rows; i++) {
        float *row = scores + i * t->keys;
        int64_t first, end;
        visible(t, i, shape.window, &first, &end);
        float maximum = row_maximum(row + first, end - first);
        float sum = exponentiate(row + first, maximum, end - first);
        scale_by(row + first, 1.0f / sum, end - first);
        memset(row, 0, (size_t)first * sizeof(float));
        memset(row + end, 0, (size_t)(t->keys - end) * sizeof(float));
        lse[(t->row + i) * lse_stride] = maximum + logf(sum);
    }
    tile_mix(t, scores, v, row_of(o, t->row), o.stride);
}

/* Columns of head h in q | k | v. */
struct head_views {
    struct tensor q, k, v;
};

static struct head_views head_of(struct tensor qkv, struct attention_shape shape, int64_t h)
{
    int64_t size = shape.head_size, key = h / (shape.heads / shape.key_heads);
    return (struct head_views){tensor_cols(qkv, h * size, size),
                               tensor_cols(qkv, (shape.heads + key) * size, size),
                               tensor_cols(qkv, (shape.heads + shape.key_heads + key) * size, size)};
}

static void check_shape(struct tensor qkv, struct attention_shape shape)
{
    REQUIRE(shape.key_heads > 0 && shape.heads % shape.key_heads == 0, "%lld query heads over %lld key heads",
            (long long)shape.heads, (long long)shape.key_heads);
    require_shape(qkv, qkv.rows, (shape.heads + 2 * shape.key_heads) * shape.head_size, "qkv");
}

static float *thread_scratch(struct device *device, int64_t floats)
{
    return scratch_get(&device->by_thread[omp_get_thread_num()], (size_t)floats * sizeof(float));
}

void cpu_attention(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                   struct packing packing, struct attention_shape shape)
{
    check_shape(qkv, shape);
    require_shape(o, qkv.rows, shape.heads * shape.head_size, "o");
#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t task = 0; task < packing.group_count * shape.heads; task++) {
        int64_t g = task / shape.heads, h = task % shape.heads;
        struct head_views x = head_of(qkv, shape, h);
        float *scores = thread_scratch(device, TILE * packing.longest);
        for (int64_t s = packing.group_spans[g]; s < packing.group_spans[g + 1]; s++) {
            for (int64_t first = 0; first < packing.spans[s].count; first += TILE) {
                struct tile t = tile_of(&packing.spans[s], first, shape.window);
                forward_tile(&t, x.q, x.k, x.v, tensor_cols(o, h * shape.head_size, shape.head_size), lse + h,
                             shape.heads, shape, scores);
            }
        }
    }
}

/* -- backward --------------------------------------------------------------------------------- */

HOT static float dot(const float *a, const float *b, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

/* p = exp(score - lse), ds = scale p (dp - delta), over the scores and over dp in place. */
HOT static void score_gradients(float *p, float *dp, float lse, float delta, float scale, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        p[i] = exp_fast(p[i] - lse);
        dp[i] = scale * p[i] * (dp[i] - delta);
    }
}

/* x[keys] += p^T y[rows], the tile's keys being two runs of rows of x. */
static void tile_spread(const struct tile *t, const float *p, struct tensor y, struct tensor x)
{
    gemm_tile(true, false, t->prefix_keys, y.cols, t->rows, 1, p, t->keys, row_of(y, t->row), y.stride, 1,
              row_of(x, t->prefix_start), x.stride);
    gemm_tile(true, false, t->own_keys, y.cols, t->rows, 1, p + t->prefix_keys, t->keys, row_of(y, t->row),
              y.stride, 1, row_of(x, t->own_start), x.stride);
}

struct backward_views {
    struct head_views x;       /* q, k, v of this head */
    struct tensor o, dout, dq; /* [N, D] */
    struct tensor dk, dv;      /* [N, D], this query head's own */
};

static void backward_tile(const struct tile *t, const struct backward_views *b, const float *lse,
                          int64_t lse_stride, struct attention_shape shape, float *scores, float *dp)
{
    tile_scores(t, b->x.q, b->x.k, shape.scale, scores);
    tile_scores(t, b->dout, b->x.v, 1, dp);
    for (int64_t i = 0; i < t->rows; i++) {
        float *p = scores + i * t->keys, *ds = dp + i * t->keys;
        int64_t first, end, n = t->row + i;
        visible(t, i, shape.window, &first, &end);
        float delta = dot(row_of(b->o, n), row_of(b->dout, n), shape.head_size);
        score_gradients(p + first, ds + first, lse[n * lse_stride], delta, shape.scale, end - first);
        memset(p, 0, (size_t)first * sizeof(float));
        memset(ds, 0, (size_t)first * sizeof(float));
        memset(p + end, 0, (size_t)(t->keys - end) * sizeof(float));
        memset(ds + end, 0, (size_t)(t->keys - end) * sizeof(float));
    }
    tile_mix(t, dp, b->x.k, row_of(b->dq, t->row), b->dq.stride);
    tile_spread(t, scores, b->dout, b->dv);
    tile_spread(t, dp, b->x.q, b->dk);
}

/* dk and dv of every query head: query heads that share a key head would race on its gradient. */
size_t cpu_attention_workspace(struct device *device, int64_t tokens, struct attention_shape shape)
{
    (void)device;
    return 2 * (size_t)tokens * (size_t)(shape.heads * shape.head_size) * sizeof(float);
}

/* dk | dv of each key head = the sum over its query heads, in order. */
HOT static void sum_heads(float *to, const float *per_head, int64_t shared, int64_t size)
{
    for (int64_t i = 0; i < size; i++) {
        float sum = per_head[i];
        for (int64_t h = 1; h < shared; h++)
            sum += per_head[h * size + i];
        to[i] = sum;
    }
}

void cpu_attention_grad(struct device *device, struct tensor dqkv, struct tensor dout, struct tensor o,
                        const float *lse, struct tensor qkv, struct packing packing,
                        struct attention_shape shape, void *workspace)
{
    check_shape(qkv, shape);
    int64_t size = shape.head_size, tokens = qkv.rows, width = shape.heads * size;
    require_shape(dqkv, tokens, qkv.cols, "dqkv");
    require_shape(o, tokens, width, "o");
    require_shape(dout, tokens, width, "dout");
    struct tensor dk = tensor_of(workspace, DTYPE_FLOAT, tokens, width);
    struct tensor dv = tensor_of((float *)workspace + tokens * width, DTYPE_FLOAT, tokens, width);
    cpu_zero(device, workspace, cpu_attention_workspace(device, tokens, shape));

#pragma omp parallel for schedule(dynamic, 1) num_threads(device->threads)
    for (int64_t task = 0; task < packing.group_count * shape.heads; task++) {
        int64_t g = task / shape.heads, h = task % shape.heads;
        struct backward_views b = {head_of(qkv, shape, h),
                                   tensor_cols(o, h * size, size),
                                   tensor_cols(dout, h * size, size),
                                   tensor_cols(dqkv, h * size, size),
                                   tensor_cols(dk, h * size, size),
                                   tensor_cols(dv, h * size, size)};
        float *scores = thread_scratch(device, 2 * TILE * packing.longest),
              *dp = scores + TILE * packing.longest;
        for (int64_t s = packing.group_spans[g]; s < packing.group_spans[g + 1]; s++) {
            for (int64_t first = 0; first < packing.spans[s].count; first += TILE) {
                struct tile t = tile_of(&packing.spans[s], first, shape.window);
                backward_tile(&t, &b, lse + h, shape.heads, shape, scores, dp);
            }
        }
    }
    int64_t shared = shape.heads / shape.key_heads;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t n = 0; n < tokens; n++) {
        for (int64_t key = 0; key < shape.key_heads; key++) {
            float *to = row_of(dqkv, n) + width + key * size;
            sum_heads(to, row_of(dk, n) + key * shared * size, shared, size);
            sum_heads(to + shape.key_heads * size, row_of(dv, n) + key * shared * size, shared, size);
        }
    }
}
