/* Gradients of keys and values: one block per (tile of 128 keys, key head).
 *
 * p = exp(scale k q^T - lse); dv = sum p do; ds = p (v do^T - delta); dk = scale sum ds q, over all queries
 * that see these keys: for every query head of the group in order, those of the span itself from the tile on,
 * then, where the span is a prompt, those of its completions. So the gradient of a shared prompt, and that of
 * a key head shared by query heads, is summed in registers, in an order that never changes: no atomics, no
 * partial sums in memory.
 *
 * Scores stand transposed, keys down: p and ds then come out of their products in the layout in which the
 * next product wants its first operand. dk and dv of 32 keys and 128 columns are 256 registers a lane, more
 * than there are; so two warps share 32 keys, and each keeps one of the sums and makes two of the products:
 * - the warp of values makes k q^T and p, hands p over (f32, through shared memory), and adds p do to dv;
 * - the warp of keys makes v do^T, takes p, makes ds, and adds ds q to dk.
 * The two meet at barriers of their own, at which as a rule only the warp of keys waits; the other pairs run
 * on. The whole block meets once every 64 queries, when the next q and do, copied meanwhile, are there.
 *
 * Does 8 D FLOPs for each visible pair of query and key, 256 of them (D = 128) for each byte it copies,
 * mostly from the second-level cache. For the 128 mma of 32 x 32 scores a warp moves 28 KiB through shared
 * memory: 224 clocks of it, beside the 205 that mma.sync takes at its 0.62 of Hopper's peak. Two warps a
 * quarter do not hide all of it: expect 250 to 320 TFLOP/s at D = 128 and 4k tokens on H100 and H200. */
#include "kernels/cuda/attention_grad.cuh"

#include <math.h>

namespace
{

/* Shared memory of a block, in elements of bf16. */
template <int D> struct keys_room {
    static constexpr int TILE = GRAD_TILE<D, GRAD_ROWS>, STEP = GRAD_TILE<D, GRAD_STEP>;
    static constexpr int KEYS = 0, VALUES = TILE, STEPS = 2 * TILE; /* then q, do, q, do: steps take turns */
    static constexpr int EXCHANGE = STEPS + 4 * STEP, PAIR = 2 * GRAD_BLOCK * GRAD_BLOCK;
    static constexpr int NUMBERS = EXCHANGE + GRAD_PAIRS * PAIR; /* lse, delta, lse, delta */
    static constexpr int BYTES = 2 * (NUMBERS + 8 * GRAD_STEP);
};

/* 64 queries of one head, or fewer; rows 0: there are no more. */
struct query_step {
    int64_t row;
    int rows, head;
    struct mask mask; /* against the tile of keys */
};

/* Where the walk over the queries stands. One thread walks, ahead of the others. */
struct query_walk {
    struct packing_tile tile;
    struct span own;
    int rows, head, heads_end;
    struct span span;         /* where the queries are */
    int64_t index, spans_end; /* of it; of those of the group */
    int next, end;            /* queries left in it */
};

/* Turns to queries first .. of a span, as far as the window lets any of them see the tile's last key. */
__device__ void walk_into(struct query_walk *w, const struct span &span, int first, bool own, int window)
{
    int last_key = w->tile.first + w->rows - 1 + (own ? (int)span.position : 0);
    w->span = span;
    w->next = first;
    w->end = (int)span.count;
    if (window) w->end = min(w->end, last_key + window - (int)span.position);
}

__device__ void walk_own(struct query_walk *w, const struct packing &packing, int window)
{
    w->index = packing.group_spans[w->tile.group] - 1;
    walk_into(w, w->own, w->tile.first, true, window);
}

__device__ void walk_begin(struct query_walk *w, const struct packing &packing, int tile, int heads_from,
                           int heads_end, int window)
{
    w->tile = packing.tiles[tile];
    w->own = packing.spans[w->tile.span];
    w->rows = min(GRAD_ROWS, (int)w->own.count - w->tile.first);
    w->head = heads_from;
    w->heads_end = heads_end;
    /* Only a span without a prefix can be one. */
    w->spans_end = w->own.prefix_count ? 0 : packing.group_spans[w->tile.group + 1];
    walk_own(w, packing, window);
}

__device__ void walk_on(struct query_walk *w, struct query_step *step, const struct packing &packing,
                        int window)
{
    while (w->next >= w->end) {
        if (++w->index < w->spans_end) {
            struct span span = packing.spans[w->index];
            if (w->index != w->tile.span && span.prefix_start == w->own.start &&
                span.prefix_count == w->own.count)
                walk_into(w, span, 0, false, window);
        } else if (++w->head < w->heads_end) {
            walk_own(w, packing, window);
        } else {
            step->rows = 0;
            w->head--;
            w->index--;
            return;
        }
    }
    bool own = w->span.start == w->own.start;
    step->row = w->span.start + w->next;
    step->rows = min(GRAD_STEP, w->end - w->next);
    step->head = w->head;
    step->mask = mask_between(w->span, w->next, w->tile.first, own, window);
    w->next += GRAD_STEP;
}

/* Starts the copies of a step's q and do. */
template <int D>
__device__ inline void load_step(struct bfloat *tiles, const struct query_step &step,
                                 const struct attention_grad &grad)
{
    int64_t column = (int64_t)step.head * grad.size;
    grad_load<GRAD_STEP, D>(tiles, grad.qkv + step.row * grad.qkv_stride + column, grad.qkv_stride, step.rows,
                            grad.size, grad.whole);
    grad_load<GRAD_STEP, D>(tiles + keys_room<D>::STEP, grad.dout + step.row * grad.dout_stride + column,
                            grad.dout_stride, step.rows, grad.size, grad.whole);
}

/* Number i of a step: lse in powers of two, of queries beyond the last such that p is 0; then delta. */
__device__ inline float number_of(int i, const struct query_step &step, const struct attention_grad &grad)
{
    bool is_delta = i >= GRAD_STEP;
    int row = i % GRAD_STEP;
    if (row >= step.rows) return is_delta ? 0.0f : INFINITY;
    int64_t at = (step.row + row) * grad.heads + step.head;
    return is_delta ? grad.delta[at] : grad.lse[at] * LOG2_E;
}

/* x = p of scores x. */
__device__ inline void probabilities(grad_block &x, const float *lse, float scale, struct mask mask,
                                     bool full)
{
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        int query = 8 * n + lane % 4 * 2;
        float lse_of[2] = {lse[query], lse[query + 1]};
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2_fast(fmaf(x[m][n][e], scale, -lse_of[e % 2]));
                bool seen = full || mask_sees(mask, query + e % 2, 16 * m + lane / 4 + e / 2 * 8);
                x[m][n][e] = seen ? p : 0.0f;
            }
    }
}

/* p from one warp to the other, every lane to its like. */
__device__ inline void hand_over(float4 *exchange, const grad_block &p)
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float(&from)[4] = p[i / 4][i % 4];
        exchange[i * 32] = make_float4(from[0], from[1], from[2], from[3]);
    }
}

/* x = ds of x = dP. */
__device__ inline void score_gradients(grad_block &x, const float4 *exchange, const float *delta)
{
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float4 p = exchange[i * 32];
        const float *of = delta + i % 4 * 8 + lane % 4 * 2;
        float(&at)[4] = x[i / 4][i % 4];
        at[0] = p.x * (at[0] - of[0]);
        at[1] = p.y * (at[1] - of[1]);
        at[2] = p.z * (at[2] - of[0]);
        at[3] = p.w * (at[3] - of[1]);
    }
}

template <int D> __global__ void __launch_bounds__(GRAD_THREADS, 1) keys_kernel(struct attention_grad grad)
{
    using room = keys_room<D>;
    SHARED_DYNAMIC(memory);
    struct bfloat *shared = (struct bfloat *)memory;
    float *numbers = (float *)(shared + room::NUMBERS);
    __shared__ struct query_walk walk;
    __shared__ struct query_step steps[4]; /* they take turns */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    /* The warps of a pair run on different quarters of the multiprocessor, as do neighbouring pairs. */
    const bool values = warp < GRAD_PAIRS;
    const int pair = values ? warp : (warp + GRAD_PAIRS / 2) % GRAD_PAIRS, first_key = pair * GRAD_BLOCK;
    const int key_head = (int)(blockIdx.x % (unsigned)grad.key_heads),
              shared_by = grad.heads / grad.key_heads;

    /* The warps of keys have less to do: they walk, and fetch lse and delta, one number a thread. */
    const bool walker = threadIdx.x == GRAD_THREADS - 1;
    const int number_at = (int)threadIdx.x - (GRAD_THREADS - 2 * GRAD_STEP);

    if (walker) { /* the tiles that most queries see come last in the list */
        int tile = (int)grad.packing.tile_count - 1 - (int)(blockIdx.x / (unsigned)grad.key_heads);
        walk_begin(&walk, grad.packing, tile, key_head * shared_by, (key_head + 1) * shared_by, grad.window);
        walk_on(&walk, &steps[0], grad.packing, grad.window);
        walk_on(&walk, &steps[1], grad.packing, grad.window);
    }
    __syncthreads();
    const int rows = walk.rows;
    const int64_t key_row = walk.own.start + walk.tile.first;
    {
        const struct bfloat *keys =
            grad.qkv + key_row * grad.qkv_stride + (int64_t)(grad.heads + key_head) * grad.size;
        const struct bfloat *value = keys + (int64_t)grad.key_heads * grad.size;
        grad_load<GRAD_ROWS, D>(shared + room::KEYS, keys, grad.qkv_stride, rows, grad.size, grad.whole);
        grad_load<GRAD_ROWS, D>(shared + room::VALUES, value, grad.qkv_stride, rows, grad.size, grad.whole);
    }
    load_step<D>(shared + room::STEPS, steps[0], grad);
    if (number_at >= 0) numbers[number_at] = number_of(number_at, steps[0], grad);
    copy_async_commit();

    const struct bfloat *own =
        shared + (values ? room::KEYS : room::VALUES) + first_key * GRAD_STRIDE<D> + grad_lane_down<D>();
    float4 *exchange = (float4 *)(shared + room::EXCHANGE + pair * room::PAIR) + lane;
    float acc[2][D / 8][4] = {};
    for (int t = 0; steps[t % 4].rows > 0; t++) {
        const int stage = t % 2;
        copy_async_wait<0>();
        __syncthreads(); /* step t is there; nobody reads step t - 1 any more */
        const bool more = steps[(t + 1) % 4].rows > 0;
        float number = 0;
        if (more) {
            load_step<D>(shared + room::STEPS + (1 - stage) * 2 * room::STEP, steps[(t + 1) % 4], grad);
            if (number_at >= 0) number = number_of(number_at, steps[(t + 1) % 4], grad);
        }
        copy_async_commit();
        if (walker) walk_on(&walk, &steps[(t + 2) % 4], grad.packing, grad.window);
        __syncwarp();

        const struct bfloat *q_dout = shared + room::STEPS + stage * 2 * room::STEP;
#pragma unroll 1
        for (int first = 0; first < GRAD_STEP; first += GRAD_BLOCK) {
            const struct mask mask = mask_at(steps[t % 4].mask, first, first_key);
            const bool any =
                first < steps[t % 4].rows && first_key < rows && !mask_empty(mask, GRAD_BLOCK, GRAD_BLOCK);
            const float *lse = numbers + stage * 2 * GRAD_STEP + first, *delta = lse + GRAD_STEP;
            const struct bfloat *at = q_dout + first * GRAD_STRIDE<D>;
            grad_block x = {};
            if (any) grad_multiply<D>(x, own, at + (values ? 0 : room::STEP) + grad_lane_across<D>());
            if (values) {
                if (any) {
                    bool full = mask_full(mask, GRAD_BLOCK, GRAD_BLOCK);
                    probabilities(x, lse, grad.scale * LOG2_E, mask, full);
                    hand_over(exchange, x);
                }
                barrier_arrive(1 + 2 * pair, 64);
            } else {
                barrier_wait(1 + 2 * pair, 64);
                if (any) score_gradients(x, exchange, delta);
                barrier_arrive(2 + 2 * pair, 64);
            }
            if (any) grad_accumulate<D>(acc, x, at + (values ? room::STEP : 0) + grad_lane_down<D>());
            if (values) barrier_wait(2 + 2 * pair, 64); /* p is taken; it was long ago */
        }
        if (more && number_at >= 0) numbers[(1 - stage) * 2 * GRAD_STEP + number_at] = number;
    }

    struct bfloat *to = grad.dqkv + (key_row + first_key) * grad.dqkv_stride +
                        (int64_t)(grad.heads + key_head + (values ? grad.key_heads : 0)) * grad.size;
    grad_store<D>(to, grad.dqkv_stride, rows - first_key, grad.size, acc, values ? 1.0f : grad.scale);
}

} // namespace

void attention_grad_keys(struct device *device, const struct attention_grad *grad)
{
    unsigned blocks = (unsigned)(grad->packing.tile_count * grad->key_heads);
    WITH_HEAD_SIZE(grad->size, D, {
        ALLOW_SHARED(device, (keys_kernel<D>), keys_room<D>::BYTES);
        LAUNCH((keys_kernel<D>), blocks, GRAD_THREADS, keys_room<D>::BYTES, device->stream, *grad);
    });
}

size_t attention_grad_keys_shared(int64_t head_size)
{
    size_t bytes = 0;
    WITH_HEAD_SIZE(head_size, D, { bytes = keys_room<D>::BYTES; });
    return bytes;
}
