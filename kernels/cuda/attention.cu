/* Forward attention in bf16 on tensor cores, in the flash manner: a block holds 128 queries of one head and
 * walks over the keys they see, 64 at a time; scores, their softmax and the sum of values stay in registers.
 *
 * Work: 4 D FLOPs for each visible pair of query and key; of memory it moves qkv once and o once, a tenth of
 * the time at about 1000 keys a query, and less beyond. Each of the 4 warps has 32 rows, so a fragment of
 * keys or values read from shared memory feeds two products: with 16 rows the 128 bytes a cycle of shared
 * memory would cap the tensor cores at half of their rate. mma.sync reaches about 0.62 of Hopper's peak in
 * bare products, and the softmax (an exponential, an fma, a maximum and a sum for every 4 D FLOPs) overlaps
 * with it only as far as the two blocks of a multiprocessor drift apart: expect 280 to 310 TFLOP/s at D = 128
 * and 4k tokens, 220 to 260 at D = 64, on H100 and H200 alike (not measured). 400 and more need wgmma, whose
 * operands do not pass through registers.
 *
 * Keys and values have one buffer each, and each is filled while the other is worked on: values arrive during
 * q k^T, the next keys during the softmax and p v. That hides as much as two buffers each would, in half of
 * the memory: two blocks of D = 128 fit a multiprocessor of sm_80 as well. */
#include "kernels/cuda/attention.cuh"

#include <math.h>

namespace
{

enum { QUERIES = PACKING_TILE, KEYS = 64, WARPS = 4, THREADS = 32 * WARPS, WARP_ROWS = QUERIES / WARPS };
static_assert(WARP_ROWS == 32, "a warp works on two fragments of 16 rows");

struct forward {
    const struct bfloat *qkv;
    struct bfloat *o;
    float *lse;
    int64_t qkv_stride, o_stride;
    const struct span *spans;
    const struct packing_tile *tiles;
    int heads, key_heads, head_size, window;
    float scale;         /* of scores whose exponential has base 2 */
    bool whole, whole_o; /* rows are 16-byte aligned */
};

/* Rows group and group + 8 of both fragments of 16 rows, as the accumulators of mma lie over the lanes. */
struct softmax {
    float top[2][2]; /* the greatest scaled score so far, -inf before the first */
    float sum[2][2]; /* of this lane's columns */
};

/* Queries stay in registers as fragments where there is room; else they are read again for every tile of
 * keys. */
template <int D> constexpr bool HOLDS = D <= 64;
template <int D> using held = uint32_t[HOLDS<D> ? D / 16 : 1][2][4];

template <int D>
__device__ inline void load_queries(uint32_t (&a)[2][4], const struct bfloat *queries, int step,
                                    unsigned lane)
{
    load_a<D>(a[0], queries, 0, step, lane);
    load_a<D>(a[1], queries, 16, step, lane);
}

template <int D>
__device__ inline void multiply_scores(float (&s)[2][KEYS / 8][4], held<D> &queries_held,
                                       const struct bfloat *queries, const struct bfloat *keys, unsigned lane)
{
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t read[2][4];
        if (!HOLDS<D>) load_queries<D>(read, queries, step, lane);
        uint32_t(&a)[2][4] = HOLDS<D> ? queries_held[HOLDS<D> ? step : 0] : read;
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            load_b<D>(b, keys, 16 * n, step, lane);
            mma_pair(s[0][2 * n], s[0][2 * n + 1], a[0], b);
            mma_pair(s[1][2 * n], s[1][2 * n + 1], a[1], b);
        }
    }
}

__device__ inline void hide(float (&s)[2][KEYS / 8][4], struct mask mask, unsigned lane)
{
    int group = (int)(lane / 4), pair = (int)(lane % 4);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!mask_sees(mask, 16 * m + group + 8 * (e / 2), 8 * n + 2 * pair + e % 2))
                    s[m][n][e] = -INFINITY;
}

/* Scores become their exponentials, relative to the greatest score so far. The factor for what was summed
 * before is exactly 1 where the greatest score is still the same, since both are differences of the same
 * rounded products. */
__device__ inline void exponentiate(float (&s)[2][KEYS / 8][4], struct softmax &state, float (&factor)[2][2],
                                    float scale)
{
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = s[m][0][2 * half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
                top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            top = fmaxf(state.top[m][half], top * scale);
            float shift = top == -INFINITY ? 0 : top; /* no key seen yet: all exponentials are 0 */
            factor[m][half] = exp2_fast(state.top[m][half] - shift);
            state.top[m][half] = top;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++) {
                    s[m][n][e] = exp2_fast(fmaf(s[m][n][e], scale, -shift));
                    sum += s[m][n][e];
                }
            state.sum[m][half] = fmaf(state.sum[m][half], factor[m][half], sum);
        }
}

template <int D> __device__ inline void rescale(float (&o)[2][D / 8][4], const float (&factor)[2][2])
{
    bool same = factor[0][0] == 1 && factor[0][1] == 1 && factor[1][0] == 1 && factor[1][1] == 1;
    if (__all_sync(0xffffffffu, same)) return; /* most tiles but the first few */
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[m][n][e] *= factor[m][e / 2];
}

template <int D>
__device__ inline void add_values(float (&o)[2][D / 8][4], const float (&p)[2][KEYS / 8][4],
                                  const struct bfloat *values, unsigned lane)
{
#pragma unroll
    for (int step = 0; step < KEYS / 16; step++) {
        uint32_t a[2][4];
        fragment_of(a[0], p[0][2 * step], p[0][2 * step + 1]);
        fragment_of(a[1], p[1][2 * step], p[1][2 * step + 1]);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load_b_transposed<D>(b, values, 16 * step, n, lane);
            mma_pair(o[0][2 * n], o[0][2 * n + 1], a[0], b);
            mma_pair(o[1][2 * n], o[1][2 * n + 1], a[1], b);
        }
    }
}

/* Divides by the sums and stores the warp's rows, through its own rows of shared memory so that whole chunks
 * of 16 bytes go out. rows: those of the warp that exist; they may be none. */
template <int D>
__device__ inline void store_rows(const struct forward &f, const float (&o)[2][D / 8][4],
                                  struct softmax &state, struct bfloat *shared, int64_t token, int rows,
                                  int head)
{
    int lane = (int)threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = 16 * m + 8 * half + group;
            float sum = state.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            float inverse = 1 / sum;
            if (row < rows && pair == 0)
                f.lse[(token + row) * f.heads + head] =
                    fmaf(state.top[m][half], 0.693147180559945309f, logf(sum));
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                uint32_t packed = pack_bfloat(o[m][n][2 * half] * inverse, o[m][n][2 * half + 1] * inverse);
                vector<struct bfloat, 2> two;
                two.at[0].bits = (uint16_t)(packed & 0xffff);
                two.at[1].bits = (uint16_t)(packed >> 16);
                *(vector<struct bfloat, 2> *)(shared + chunk_place<D>(row, n) + 2 * pair) = two;
            }
        }
    __syncwarp();
    constexpr int across = CHUNK_GROUP<D>, down = 32 / across;
    struct bfloat *to = f.o + token * f.o_stride + head * f.head_size;
    for (int row = lane / across; row < min(rows, (int)WARP_ROWS); row += down)
        for (int chunk = lane % across; chunk * 8 < f.head_size; chunk += across) {
            vector16<struct bfloat> eight =
                *(const vector16<struct bfloat> *)(shared + chunk_place<D>(row, chunk));
            struct bfloat *place = to + row * f.o_stride + chunk * 8;
            if (f.whole_o)
                *(vector16<struct bfloat> *)place = eight;
            else
                scatter_chunk(place, eight);
        }
}

/* What a block works on. It lies in shared memory, from where it is read again for each tile of keys: the
 * registers are all needed for scores and sums. */
struct work {
    struct span span;
    struct key_walk walk;
    int64_t token;                  /* of the first query */
    int head, first, rows;          /* queries first .. first + rows - 1 of the span */
    const struct bfloat *q, *k, *v; /* of the first query, of the first token */
};

__device__ inline struct work work_of(const struct forward &f)
{
    struct work w;
    const struct packing_tile tile = f.tiles[blockIdx.x / (unsigned)f.heads];
    w.span = f.spans[tile.span];
    w.head = (int)(blockIdx.x % (unsigned)f.heads);
    w.first = tile.first;
    w.rows = (int)min(w.span.count - tile.first, (int64_t)QUERIES);
    w.token = w.span.start + tile.first;
    w.walk = key_walk_of<KEYS>(w.span, w.first, w.rows, f.window);
    w.q = f.qkv + w.token * f.qkv_stride + w.head * f.head_size;
    w.k = f.qkv + (int64_t)(f.heads + w.head / (f.heads / f.key_heads)) * f.head_size;
    w.v = w.k + (int64_t)f.key_heads * f.head_size;
    return w;
}

/* Of tile j of the keys and the queries from `row` on. */
__device__ inline struct mask mask_of(const struct work &w, int j, int row, int window)
{
    const struct key_tile t = key_tile_of<KEYS>(w.span, w.walk, j);
    return mask_below(mask_between(w.span, w.first, t.first, t.own, window), row);
}

/* Starts the copy of tile j of the keys, or of the values. */
template <int D>
__device__ inline void copy_keys(struct bfloat *to, const struct bfloat *from, const struct work &w, int j,
                                 const struct forward &f, unsigned thread)
{
    const struct key_tile t = key_tile_of<KEYS>(w.span, w.walk, j);
    copy_tile<KEYS, D, THREADS>(to, from + t.row * f.qkv_stride, f.qkv_stride, t.count, f.head_size, f.whole,
                                thread);
    copy_async_commit();
}

/* Blocks of one tile of queries stand beside each other, those that share a key head nearest: they read the
 * same keys at about the same time, once from memory and then from L2. And as the tiles with most keys come
 * first for all heads, the blocks that run last are short. */
template <int D>
__global__ void __launch_bounds__(THREADS, 2 /* on a multiprocessor */) attention_forward(struct forward f)
{
    SHARED_DYNAMIC(memory);
    __shared__ struct work w;
    struct bfloat *queries = (struct bfloat *)memory, *keys = queries + QUERIES * D,
                  *values = keys + KEYS * D;
    const unsigned thread = threadIdx.x;
    const int warp =
        __shfl_sync(0xffffffffu, (int)(thread / 32), 0); /* tells the compiler that all lanes agree */
    struct bfloat *own = queries + warp * WARP_ROWS * D; /* this warp's queries */
    if (thread == 0) w = work_of(f);
    __syncthreads();
    copy_tile<QUERIES, D, THREADS>(queries, w.q, f.qkv_stride, w.rows, f.head_size, f.whole);
    copy_keys<D>(keys, w.k, w, 0, f, thread);

    held<D> queries_held;
    float o[2][D / 8][4] = {};
    struct softmax state = {{{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}}, {}};
    for (int j = 0; j < w.walk.tiles; j++) {
        copy_async_wait<0>();
        __syncthreads(); /* keys are there, and no warp needs the values of the tile before */
        copy_keys<D>(values, w.v, w, j, f, fresh(thread));
        if (HOLDS<D> && j == 0)
#pragma unroll
            for (int step = 0; step < D / 16; step++)
                load_queries<D>(queries_held[HOLDS<D> ? step : 0], own, step, thread % 32);

        const bool works = warp * WARP_ROWS < w.rows &&
                           !mask_empty(mask_of(w, j, warp * WARP_ROWS, f.window), WARP_ROWS, KEYS);
        float s[2][KEYS / 8][4] = {};
        if (works) multiply_scores<D>(s, queries_held, own, keys, fresh(thread) % 32);

        copy_async_wait<0>();
        __syncthreads(); /* values are there, and no warp needs the keys */
        if (j + 1 < w.walk.tiles) copy_keys<D>(keys, w.k, w, j + 1, f, fresh(thread));
        if (works) {
            const struct mask mask = mask_of(w, j, warp * WARP_ROWS, f.window);
            float factor[2][2];
            if (!mask_full(mask, WARP_ROWS, KEYS)) hide(s, mask, fresh(thread) % 32);
            exponentiate(s, state, factor, f.scale);
            rescale<D>(o, factor);
            add_values<D>(o, s, values, fresh(thread) % 32);
        }
    }
    store_rows<D>(f, o, state, own, w.token + warp * WARP_ROWS, w.rows - warp * WARP_ROWS, w.head);
}

template <int D> void launch_forward(struct device *device, struct forward f, int64_t blocks)
{
    constexpr int bytes = (QUERIES + 2 * KEYS) * D * (int)sizeof(struct bfloat);
    ALLOW_SHARED(device, attention_forward<D>, bytes);
    LAUNCH((attention_forward<D>), dim3((unsigned)blocks), dim3(THREADS), bytes, device->stream, f);
}

} // namespace

void cuda_attention(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                    struct packing packing, struct attention_shape shape)
{
    require_attention(qkv, packing, shape);
    require_shape(o, qkv.rows, shape.heads * shape.head_size, "o");
    REQUIRE(o.type == qkv.type, "o and qkv are of different types");
    if (qkv.type == DTYPE_FLOAT) {
        cuda_attention_float(device, o, lse, qkv, packing, shape);
        return;
    }
    int64_t blocks = packing.tile_count * shape.heads;
    REQUIRE(blocks < INT32_MAX, "attention over %lld tiles", (long long)packing.tile_count);
    if (blocks == 0) return;
    struct forward f = {data_of<const struct bfloat>(qkv),
                        data_of<struct bfloat>(o),
                        lse,
                        qkv.stride,
                        o.stride,
                        packing.spans,
                        packing.tiles,
                        (int)shape.heads,
                        (int)shape.key_heads,
                        (int)shape.head_size,
                        window_of(packing, shape),
                        shape.scale * 1.44269504088896341f,
                        aligned16(qkv),
                        aligned16(o)};
    WITH_HEAD_SIZE(shape.head_size, D, launch_forward<D>(device, f, blocks));
}
