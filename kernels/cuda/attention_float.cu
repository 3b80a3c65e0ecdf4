/* Attention in f32, forward and backward, without tensor cores: the precision that tests compare against, so
 * its virtue is that it is plain. A warp owns a few rows (queries, or keys for their gradients) and meets the
 * other side 32 at a time in shared memory: a lane stands for one of the 32 while scores are made, then for
 * columns of the head while they are summed. Every sum runs in a fixed order, and no gradient is added to by
 * two blocks.
 *
 * Work: 4 D FLOPs forward and 14 D backward for each visible pair (scores and dp are made twice). Shared
 * memory is read about as often as an fma is done, so expect a fifth of the f32 peak. */
#include "kernels/cuda/attention.cuh"

#include <math.h>

namespace
{

enum {
    WARPS = 8,
    THREADS = 32 * WARPS,
    WARP_ROWS = 4,
    ROWS = WARPS * WARP_ROWS, /* of a block: a part of a packing tile */
    PARTS = PACKING_TILE / ROWS,
    OTHERS = 32,                   /* rows of the other side at a time: a lane each */
    SPREAD = HEAD_SIZE_LIMIT / 32, /* columns of a row that a lane sums */
};

struct arguments {
    const float *qkv, *dout, *lse_in, *delta;
    float *o, *lse, *dqkv;
    int64_t qkv_stride, o_stride, dout_stride, dqkv_stride;
    const struct span *spans;
    const int64_t *group_spans;
    const struct packing_tile *tiles;
    int heads, key_heads, size, window;
    float scale;
};

/* The rows of a block: ROWS of a packing tile, fewer at a span's end, perhaps none. */
struct part {
    struct span span;
    int group, head, first, rows;
    int64_t token;
};

__device__ inline struct part part_of(const struct arguments &a, int heads)
{
    struct part p;
    const struct packing_tile tile = a.tiles[blockIdx.x / (unsigned)(PARTS * heads)];
    p.span = a.spans[tile.span];
    p.group = tile.group;
    p.head = (int)(blockIdx.x % (unsigned)heads);
    p.first = tile.first + (int)(blockIdx.x / (unsigned)heads % PARTS) * ROWS;
    p.rows = (int)max(min(p.span.count - p.first, (int64_t)ROWS), (int64_t)0);
    p.token = p.span.start + p.first;
    return p;
}

/* Where a head's columns begin in qkv and dqkv. */
__device__ inline int64_t query_column(const struct arguments &a, int head)
{
    return (int64_t)head * a.size;
}

__device__ inline int64_t key_column(const struct arguments &a, int key_head)
{
    return (int64_t)(a.heads + key_head) * a.size;
}

__device__ inline int64_t value_column(const struct arguments &a, int key_head)
{
    return (int64_t)(a.heads + a.key_heads + key_head) * a.size;
}

/* A tile in shared memory has rows of an odd number of floats: 32 lanes at one column of 32 rows meet 32
 * banks. */
__device__ inline int pitch_of(int size)
{
    return size | 1;
}

__device__ inline void load_tile(float *tile, const float *from, int64_t stride, int rows, int size)
{
    for (int i = (int)threadIdx.x; i < OTHERS * size; i += THREADS) {
        int row = i / size, column = i % size;
        tile[row * pitch_of(size) + column] = row < rows ? from[row * stride + column] : 0;
    }
}

static_assert(ROWS == OTHERS, "load_tile fills both kinds");

/* The tile's keys and values take the place of those before, when the whole block is done with them. */
__device__ inline void next_tiles(float *keys, float *values, const struct arguments &a, int key_head,
                                  const struct key_tile &t)
{
    const float *from = a.qkv + t.row * a.qkv_stride;
    __syncthreads();
    load_tile(keys, from + key_column(a, key_head), a.qkv_stride, t.count, a.size);
    load_tile(values, from + value_column(a, key_head), a.qkv_stride, t.count, a.size);
    __syncthreads();
}

/* dots[i] = own row i of the warp times this lane's row of the other side. */
__device__ inline void multiply(float (&dots)[WARP_ROWS], const float *own, const float *other, int size)
{
    const int pitch = pitch_of(size);
    const float *row = own + (int)threadIdx.x / 32 * WARP_ROWS * pitch,
                *mine = other + (int)threadIdx.x % 32 * pitch;
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++)
        dots[i] = 0;
    for (int c = 0; c < size; c++)
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++)
            dots[i] = fmaf(row[i * pitch + c], mine[c], dots[i]);
}

/* sums[i] += over the other side's rows n: weight[i] of lane n times row n; this lane sums columns lane, lane
 * + 32.. */
__device__ inline void accumulate(float (&sums)[WARP_ROWS][SPREAD], const float (&weight)[WARP_ROWS],
                                  const float *other, int size)
{
    const int lane = (int)threadIdx.x % 32;
    for (int n = 0; n < OTHERS; n++) {
        const float *row = other + n * pitch_of(size);
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++) {
            float w = __shfl_sync(0xffffffffu, weight[i], n);
#pragma unroll
            for (int c = 0; c < SPREAD; c++)
                if (lane + 32 * c < size) sums[i][c] = fmaf(w, row[lane + 32 * c], sums[i][c]);
        }
    }
}

/* The warp's rows, each times a factor, to rows of `to`. */
__device__ inline void store_sums(float *to, int64_t stride, int rows, int size,
                                  const float (&sums)[WARP_ROWS][SPREAD], const float (&factor)[WARP_ROWS])
{
    const int lane = (int)threadIdx.x % 32, first = (int)threadIdx.x / 32 * WARP_ROWS;
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++)
#pragma unroll
        for (int c = 0; c < SPREAD; c++)
            if (first + i < rows && lane + 32 * c < size)
                to[(first + i) * stride + lane + 32 * c] = sums[i][c] * factor[i];
}

/* -- forward ------------------------------------------------------------------------------------ */

__global__ void __launch_bounds__(THREADS) attention_float(struct arguments a)
{
    SHARED_DYNAMIC(memory);
    const int tile = OTHERS * pitch_of(a.size), first = (int)threadIdx.x / 32 * WARP_ROWS,
              lane = (int)threadIdx.x % 32;
    float *queries = (float *)memory, *keys = queries + tile, *values = keys + tile;
    const struct part p = part_of(a, a.heads);
    if (p.rows == 0) return;
    const int key_head = p.head / (a.heads / a.key_heads);
    load_tile(queries, a.qkv + p.token * a.qkv_stride + query_column(a, p.head), a.qkv_stride, p.rows,
              a.size);

    float sums[WARP_ROWS][SPREAD] = {}, top[WARP_ROWS], total[WARP_ROWS] = {}, inverse[WARP_ROWS];
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++)
        top[i] = -INFINITY;
    const struct key_walk walk = key_walk_of<OTHERS>(p.span, p.first, p.rows, a.window);
    for (int j = 0; j < walk.tiles; j++) {
        const struct key_tile t = key_tile_of<OTHERS>(p.span, walk, j);
        next_tiles(keys, values, a, key_head, t);

        float weight[WARP_ROWS];
        multiply(weight, queries, keys, a.size);
        const struct mask mask = mask_between(p.span, p.first, t.first, t.own, a.window);
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++) {
            const bool seen = lane < t.count && mask_sees(mask, first + i, lane);
            const float score = seen ? weight[i] * a.scale : -INFINITY;
            const float greatest = fmaxf(top[i], warp_maximum(score));
            const float shift = greatest == -INFINITY ? 0 : greatest; /* no key seen yet */
            const float factor = expf(top[i] - shift);
            weight[i] = expf(score - shift);
            total[i] = fmaf(total[i], factor, warp_sum(weight[i]));
            top[i] = greatest;
#pragma unroll
            for (int c = 0; c < SPREAD; c++)
                sums[i][c] *= factor;
        }
        accumulate(sums, weight, values, a.size);
    }
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++) {
        inverse[i] = 1 / total[i];
        if (first + i < p.rows && lane == 0)
            a.lse[(p.token + first + i) * a.heads + p.head] = top[i] + logf(total[i]);
    }
    store_sums(a.o + p.token * a.o_stride + query_column(a, p.head), a.o_stride, p.rows, a.size, sums,
               inverse);
}

/* -- backward ----------------------------------------------------------------------------------- */

/* p and ds of a pair, from its score and from dp: weight[i] of own row i against this lane's row. */
__device__ inline void differentiate(float &p, float &ds, bool seen, float scale, float lse, float delta)
{
    const float probability = seen ? expf(fmaf(p, scale, -lse)) : 0;
    ds = probability * (ds - delta);
    p = probability;
}

/* dq: rows are queries. */
__global__ void __launch_bounds__(THREADS) attention_grad_queries_float(struct arguments a)
{
    SHARED_DYNAMIC(memory);
    const int tile = OTHERS * pitch_of(a.size), first = (int)threadIdx.x / 32 * WARP_ROWS,
              lane = (int)threadIdx.x % 32;
    float *queries = (float *)memory, *douts = queries + tile, *keys = douts + tile, *values = keys + tile;
    const struct part p = part_of(a, a.heads);
    if (p.rows == 0) return;
    const int key_head = p.head / (a.heads / a.key_heads);
    load_tile(queries, a.qkv + p.token * a.qkv_stride + query_column(a, p.head), a.qkv_stride, p.rows,
              a.size);
    load_tile(douts, a.dout + p.token * a.dout_stride + query_column(a, p.head), a.dout_stride, p.rows,
              a.size);

    float sums[WARP_ROWS][SPREAD] = {}, lse[WARP_ROWS], delta[WARP_ROWS], factor[WARP_ROWS];
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++) {
        const int64_t at = (p.token + min(first + i, p.rows - 1)) * a.heads + p.head;
        lse[i] = a.lse_in[at];
        delta[i] = a.delta[at];
        factor[i] = a.scale;
    }
    const struct key_walk walk = key_walk_of<OTHERS>(p.span, p.first, p.rows, a.window);
    for (int j = 0; j < walk.tiles; j++) {
        const struct key_tile t = key_tile_of<OTHERS>(p.span, walk, j);
        next_tiles(keys, values, a, key_head, t);

        float score[WARP_ROWS], ds[WARP_ROWS];
        multiply(score, queries, keys, a.size);
        multiply(ds, douts, values, a.size);
        const struct mask mask = mask_between(p.span, p.first, t.first, t.own, a.window);
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++)
            differentiate(score[i], ds[i],
                          first + i < p.rows && lane < t.count && mask_sees(mask, first + i, lane), a.scale,
                          lse[i], delta[i]);
        accumulate(sums, ds, keys, a.size);
    }
    store_sums(a.dqkv + p.token * a.dqkv_stride + query_column(a, p.head), a.dqkv_stride, p.rows, a.size,
               sums, factor);
}

/* What a block of keys has in shared memory. */
struct key_side {
    float *keys, *values, *queries, *douts;
};

/* Adds to the gradients of keys what the queries of one span give, for one query head. own: the keys are of
 * that span, else of its prefix. key: index of the first of them there. */
__device__ inline void add_queries(float (&dk)[WARP_ROWS][SPREAD], float (&dv)[WARP_ROWS][SPREAD],
                                   const struct arguments &a, const struct key_side &side,
                                   const struct span &span, int head, int key, int keys, bool own)
{
    const int first = (int)threadIdx.x / 32 * WARP_ROWS, lane = (int)threadIdx.x % 32;
    const int key_position = own ? (int)span.position + key : key;
    /* Queries from the first key itself, up to the last whose window reaches the last key. */
    int end = (int)span.count;
    if (a.window) end = min(end, key_position + keys - 1 + a.window - (int)span.position);
    for (int query = own ? key : 0; query < end; query += OTHERS) {
        const int64_t token = span.start + query;
        const int count = min((int)span.count - query, (int)OTHERS);
        __syncthreads(); /* the tiles before are done with */
        load_tile(side.queries, a.qkv + token * a.qkv_stride + query_column(a, head), a.qkv_stride, count,
                  a.size);
        load_tile(side.douts, a.dout + token * a.dout_stride + query_column(a, head), a.dout_stride, count,
                  a.size);
        __syncthreads();

        const int64_t at = (token + min(lane, count - 1)) * a.heads + head;
        const float lse = a.lse_in[at], delta = a.delta[at];
        float p[WARP_ROWS], ds[WARP_ROWS];
        multiply(p, side.keys, side.queries, a.size);
        multiply(ds, side.values, side.douts, a.size);
        const struct mask mask = mask_between(span, query, key, own, a.window);
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++)
            differentiate(p[i], ds[i], first + i < keys && lane < count && mask_sees(mask, lane, first + i),
                          a.scale, lse, delta);
        accumulate(dv, p, side.douts, a.size);
        accumulate(dk, ds, side.queries, a.size);
    }
}

/* dk and dv: rows are keys. Sums run over the query heads of the key head, for each over the span itself and
 * then over the spans of the group whose prefix it is, in their order. */
__global__ void __launch_bounds__(THREADS) attention_grad_keys_float(struct arguments a)
{
    SHARED_DYNAMIC(memory);
    const int tile = OTHERS * pitch_of(a.size), shared = a.heads / a.key_heads;
    const struct key_side side = {(float *)memory, (float *)memory + tile, (float *)memory + 2 * tile,
                                  (float *)memory + 3 * tile};
    const struct part p = part_of(a, a.key_heads);
    if (p.rows == 0) return;
    const float *from = a.qkv + p.token * a.qkv_stride;
    load_tile(side.keys, from + key_column(a, p.head), a.qkv_stride, p.rows, a.size);
    load_tile(side.values, from + value_column(a, p.head), a.qkv_stride, p.rows, a.size);

    float dk[WARP_ROWS][SPREAD] = {}, dv[WARP_ROWS][SPREAD] = {}, scale[WARP_ROWS], one[WARP_ROWS];
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++) {
        scale[i] = a.scale;
        one[i] = 1;
    }
    for (int head = p.head * shared; head < (p.head + 1) * shared; head++) {
        add_queries(dk, dv, a, side, p.span, head, p.first, p.rows, true);
        for (int64_t s = a.group_spans[p.group]; s < a.group_spans[p.group + 1]; s++) {
            const struct span span = a.spans[s];
            if (span.prefix_start == p.span.start && span.prefix_count > p.first)
                add_queries(dk, dv, a, side, span, head, p.first, p.rows, false);
        }
    }
    float *to = a.dqkv + p.token * a.dqkv_stride;
    store_sums(to + key_column(a, p.head), a.dqkv_stride, p.rows, a.size, dk, scale);
    store_sums(to + value_column(a, p.head), a.dqkv_stride, p.rows, a.size, dv, one);
}

/* -- host --------------------------------------------------------------------------------------- */

struct arguments arguments_of(struct tensor qkv, struct packing packing, struct attention_shape shape)
{
    require_attention(qkv, packing, shape);
    struct arguments a = {};
    a.qkv = data_of<const float>(qkv);
    a.qkv_stride = qkv.stride;
    a.spans = packing.spans;
    a.group_spans = packing.group_spans;
    a.tiles = packing.tiles;
    a.heads = (int)shape.heads;
    a.key_heads = (int)shape.key_heads;
    a.size = (int)shape.head_size;
    a.window = window_of(packing, shape);
    a.scale = shape.scale;
    return a;
}

dim3 grid_of(struct packing packing, int64_t heads)
{
    int64_t blocks = packing.tile_count * PARTS * heads;
    REQUIRE(blocks < INT32_MAX, "attention over %lld tiles", (long long)packing.tile_count);
    return dim3((unsigned)blocks);
}

int tiles_bytes(int tiles, struct attention_shape shape)
{
    return tiles * OTHERS * ((int)shape.head_size | 1) * (int)sizeof(float);
}

} // namespace

void cuda_attention_float(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                          struct packing packing, struct attention_shape shape)
{
    if (packing.tile_count == 0) return;
    struct arguments a = arguments_of(qkv, packing, shape);
    a.o = data_of<float>(o);
    a.o_stride = o.stride;
    a.lse = lse;
    int bytes = tiles_bytes(3, shape);
    ALLOW_SHARED(device, attention_float, tiles_bytes(3, {1, 1, HEAD_SIZE_LIMIT, 0, 1}));
    LAUNCH(attention_float, grid_of(packing, shape.heads), dim3(THREADS), bytes, device->stream, a);
}

void cuda_attention_grad_float(struct device *device, struct tensor dqkv, struct tensor dout,
                               const float *delta, const float *lse, struct tensor qkv,
                               struct packing packing, struct attention_shape shape)
{
    if (packing.tile_count == 0) return;
    struct arguments a = arguments_of(qkv, packing, shape);
    a.dout = data_of<const float>(dout);
    a.dout_stride = dout.stride;
    a.dqkv = data_of<float>(dqkv);
    a.dqkv_stride = dqkv.stride;
    a.lse_in = lse;
    a.delta = delta;
    int bytes = tiles_bytes(4, shape), most = tiles_bytes(4, {1, 1, HEAD_SIZE_LIMIT, 0, 1});
    ALLOW_SHARED(device, attention_grad_queries_float, most);
    ALLOW_SHARED(device, attention_grad_keys_float, most);
    LAUNCH(attention_grad_queries_float, grid_of(packing, shape.heads), dim3(THREADS), bytes, device->stream,
           a);
    LAUNCH(attention_grad_keys_float, grid_of(packing, shape.key_heads), dim3(THREADS), bytes, device->stream,
           a);
}
