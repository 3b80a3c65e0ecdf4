/* Gradients of queries: one block per (tile of 128 queries, query head).
 *
 * p = exp(scale q k^T - lse); ds = p (do v^T - delta); dq = scale sum ds k, over the prefix and then the span
 * itself up to the query, 64 keys at a time, the next ones being copied meanwhile. p is made again: the
 * kernel of keys and values would have to sum dq across blocks.
 *
 * Two warps share 32 queries and take 32 keys each of the 64; at the end one adds the other's sums to its
 * own. With 16 queries a warp that would not be needed, but a product would load twice as much from shared
 * memory.
 *
 * Does 6 D FLOPs for each visible pair of query and key. For the 192 mma (D = 128) of 32 x 32 scores a warp
 * loads 40 KiB from shared memory: 320 clocks of it, beside 307 of mma.sync. Expect 250 to 320 TFLOP/s at
 * D = 128 and 4k tokens on H100 and H200. */
#include "kernels/cuda/attention_grad.cuh"

#include <math.h>

namespace
{

/* Shared memory of a block, in elements of bf16. */
template <int D> struct queries_room {
    static constexpr int TILE = GRAD_TILE<D, GRAD_ROWS>, STEP = GRAD_TILE<D, GRAD_STEP>;
    static constexpr int QUERIES = 0, DOUT = TILE, STEPS = 2 * TILE; /* then k, v, k, v: steps take turns */
    static constexpr int NUMBERS = STEPS + 4 * STEP;                 /* lse, delta */
    static constexpr int BYTES = 2 * (NUMBERS + 4 * GRAD_ROWS);
    /* The sums of the second warps, where k and v were. */
    static_assert(GRAD_PAIRS * GRAD_BLOCK * D * 2 <= 4 * STEP, "the sums do not fit");
};

/* Starts the copies of a step's k and v. */
template <int D>
__device__ inline void load_step(struct bfloat *tiles, const struct key_tile &step, int key_head,
                                 const struct attention_grad &grad)
{
    const struct bfloat *k =
        grad.qkv + step.row * grad.qkv_stride + (int64_t)(grad.heads + key_head) * grad.size;
    const struct bfloat *v = k + (int64_t)grad.key_heads * grad.size;
    grad_load<GRAD_STEP, D>(tiles, k, grad.qkv_stride, step.count, grad.size, grad.whole);
    grad_load<GRAD_STEP, D>(tiles + queries_room<D>::STEP, v, grad.qkv_stride, step.count, grad.size,
                            grad.whole);
}

/* Of the 32x32 scores at (query, key) of the tile of queries and step t of the walk. */
__device__ inline struct mask mask_of(const struct span &span, const struct key_walk &walk, int t, int query,
                                      int key, int window)
{
    struct key_tile step = key_tile_of<GRAD_STEP>(span, walk, t);
    int first = walk.own_end - (walk.own_end - 1) % GRAD_ROWS - 1;
    return mask_at(mask_between(span, first, step.first, step.own, window), query, key);
}

/* x = ds of scores x and of y = dP; lse and delta from this warp's first query on. */
__device__ inline void score_gradients(grad_block &x, const grad_block &y, const float *lse,
                                       const float *delta, float scale, struct mask mask)
{
    int lane = (int)threadIdx.x % 32;
    bool full = mask_full(mask, GRAD_BLOCK, GRAD_BLOCK);
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int query = 16 * m + 8 * half + lane / 4;
            float lse_of = lse[query], delta_of = delta[query];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int n = i / 2, e = 2 * half + i % 2;
                float p = exp2_fast(fmaf(x[m][n][e], scale, -lse_of));
                bool seen = full || mask_sees(mask, query, 8 * n + lane % 4 * 2 + i % 2);
                x[m][n][e] = seen ? p * (y[m][n][e] - delta_of) : 0.0f;
            }
        }
    }
}

/* acc of the second warp of each pair is added to that of the first. Every thread of the block takes part. */
template <int D> __device__ inline void add_halves(float (&acc)[2][D / 8][4], bool second, float4 *room)
{
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        float(&at)[4] = acc[i / (D / 8)][i % (D / 8)];
        if (second) room[i * 32] = make_float4(at[0], at[1], at[2], at[3]);
    }
    __syncthreads();
    if (second) return;
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        float(&at)[4] = acc[i / (D / 8)][i % (D / 8)];
        float4 other = room[i * 32];
        at[0] += other.x;
        at[1] += other.y;
        at[2] += other.z;
        at[3] += other.w;
    }
}

template <int D> __global__ void __launch_bounds__(GRAD_THREADS, 1) queries_kernel(struct attention_grad grad)
{
    using room = queries_room<D>;
    SHARED_DYNAMIC(memory);
    struct bfloat *shared = (struct bfloat *)memory;
    float *numbers = (float *)(shared + room::NUMBERS);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int pair = warp % GRAD_PAIRS, first_query = pair * GRAD_BLOCK,
              first_key = warp / GRAD_PAIRS * GRAD_BLOCK;
    const int head = (int)(blockIdx.x % (unsigned)grad.heads),
              key_head = head / (grad.heads / grad.key_heads);
    const struct packing_tile tile = grad.packing.tiles[blockIdx.x / (unsigned)grad.heads];
    __shared__ struct span span; /* and the walk in shared memory too: registers are what is short */
    __shared__ struct key_walk walk;
    if (threadIdx.x == 0) {
        span = grad.packing.spans[tile.span];
        walk = key_walk_of<GRAD_STEP>(span, tile.first, min(GRAD_ROWS, (int)span.count - tile.first),
                                      grad.window);
    }
    __syncthreads();
    const int rows = walk.own_end - tile.first;
    const int64_t row = span.start + tile.first, column = (int64_t)head * grad.size;

    grad_load<GRAD_ROWS, D>(shared + room::QUERIES, grad.qkv + row * grad.qkv_stride + column,
                            grad.qkv_stride, rows, grad.size, grad.whole);
    grad_load<GRAD_ROWS, D>(shared + room::DOUT, grad.dout + row * grad.dout_stride + column,
                            grad.dout_stride, rows, grad.size, grad.whole);
    load_step<D>(shared + room::STEPS, key_tile_of<GRAD_STEP>(span, walk, 0), key_head, grad);
    copy_async_commit();
    if (threadIdx.x < GRAD_ROWS) { /* lse in powers of two; beyond the last query such that p is 0 */
        bool valid = (int)threadIdx.x < rows;
        int64_t at = (row + (int)threadIdx.x) * grad.heads + head;
        numbers[threadIdx.x] = valid ? grad.lse[at] * LOG2_E : INFINITY;
        numbers[GRAD_ROWS + threadIdx.x] = valid ? grad.delta[at] : 0.0f;
    }

    float acc[2][D / 8][4] = {};
#pragma unroll 1
    for (int t = 0; t < walk.tiles; t++) {
        copy_async_wait<0>();
        __syncthreads(); /* step t is there; nobody reads step t - 1 any more */
        if (t + 1 < walk.tiles)
            load_step<D>(shared + room::STEPS + (t + 1) % 2 * 2 * room::STEP,
                         key_tile_of<GRAD_STEP>(span, walk, t + 1), key_head, grad);
        copy_async_commit();
        if (first_query >= rows ||
            mask_empty(mask_of(span, walk, t, first_query, first_key, grad.window), GRAD_BLOCK, GRAD_BLOCK))
            continue;
        const struct bfloat *k = shared + room::STEPS + t % 2 * 2 * room::STEP + first_key * GRAD_STRIDE<D>;
        const struct bfloat *down = shared + first_query * GRAD_STRIDE<D> + grad_lane_down<D>();
        const struct bfloat *across = k + grad_lane_across<D>();
        grad_block x = {}, y = {};
        grad_multiply<D>(x, down + room::QUERIES, across);
        grad_multiply<D>(y, down + room::DOUT, across + room::STEP);
        /* The mask is made again rather than carried in registers past the products. */
        score_gradients(x, y, numbers + first_query, numbers + GRAD_ROWS + first_query, grad.scale * LOG2_E,
                        mask_of(span, walk, t, first_query, first_key, grad.window));
        grad_accumulate<D>(acc, x, k + grad_lane_down<D>());
    }

    add_halves<D>(acc, first_key > 0, (float4 *)(shared + room::STEPS) + pair * GRAD_BLOCK * D / 4 + lane);
    if (first_key == 0)
        grad_store<D>(grad.dqkv + (row + first_query) * grad.dqkv_stride + column, grad.dqkv_stride,
                      rows - first_query, grad.size, acc, grad.scale);
}

} // namespace

void attention_grad_queries(struct device *device, const struct attention_grad *grad)
{
    unsigned blocks = (unsigned)(grad->packing.tile_count * grad->heads);
    WITH_HEAD_SIZE(grad->size, D, {
        ALLOW_SHARED(device, (queries_kernel<D>), queries_room<D>::BYTES);
        LAUNCH((queries_kernel<D>), blocks, GRAD_THREADS, queries_room<D>::BYTES, device->stream, *grad);
    });
}
