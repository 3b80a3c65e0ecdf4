/* The head's row kernels: statistics of each scored token from its logits, and the logits' gradient. A block
 * owns a row. Both are bound by memory bandwidth; an exponential a logit is one ex2, of which an SM does 16 a
 * clock. */
#include "kernels/cuda/elements.cuh"

#include <float.h>

/* 256 threads, of which an SM holds five blocks (48 registers): 1280 threads with 64 bytes each on their way
 * are 80 KiB, and some 40 KiB an SM cover the latency of memory. Many small blocks rather than few large
 * ones: while one sums up its row the others read. */
enum { THREADS = 256, BLOCKS = 5, LOADS = 4, CHUNK = 16 };

static constexpr float LOG2_E = 1.44269504088896341f;

/* Stands for -infinity where that would be multiplied by 0. */
static constexpr float FAR_BELOW = -1e30f;

/* Elements before the first 16-byte boundary, at most `cols`. */
template <class T> __device__ static inline int before_boundary(const T *row, int cols)
{
    int bytes = (int)(-(uintptr_t)row % 16), elements = bytes / (int)sizeof(T);
    return elements < cols ? elements : cols;
}

/* How a row is cut: `head` elements, vectors of E, and what is left over: fewer than E + 16 bytes' worth
 * elements, the head among them, one to a thread. */
struct row_cut {
    int head, vectors, left;
};

template <int E> __device__ static inline struct row_cut cut_row(int head, int cols)
{
    struct row_cut cut = {head, (cols - head) / E, 0};
    cut.left = cols - cut.vectors * E;
    return cut;
}

/* Column of left-over element i. */
template <int E> __device__ static inline int left_column(struct row_cut cut, int i)
{
    return i < cut.head ? i : i + cut.vectors * E;
}

/* bf16 in pairs: a shift for the lower, a mask for the upper. */
template <class T, int E> __device__ static inline void widen_pairs(float *to, const vector<T, E> &from)
{
    if constexpr (sizeof(T) == 2 && E % 2 == 0) {
        uint32_t pairs[E / 2];
        memcpy(pairs, &from, sizeof pairs);
#pragma unroll
        for (int i = 0; i < E / 2; i++) {
            to[2 * i] = float_of_bits(pairs[i] << 16);
            to[2 * i + 1] = float_of_bits(pairs[i] & 0xffff0000u);
        }
    } else {
#pragma unroll
        for (int i = 0; i < E; i++)
            to[i] = widen(from.at[i]);
    }
}

__device__ static inline void check_target(int64_t target, int64_t vocabulary)
{
    if (target < 0 || target >= vocabulary) refuse();
}

/* -- statistics ------------------------------------------------------------------------------- */

/* Of some of a row's logits: their maximum m (at least -FLT_MAX, never NaN), s1, s2 and t1 (enum
 * head_statistic) relative to m, and their plain sum. */
struct row_sums {
    float maximum, first, second, moment, logits;
};

/* To a higher maximum, a factor q = e^-step: s1 shrinks by q, s2 by q^2, and t1 = sum (z-m) e^(z-m) becomes
 * q (t1 - step s1). */
__device__ static inline struct row_sums raise(struct row_sums s, float maximum)
{
    float rise = fmaxf(s.maximum - maximum, FAR_BELOW), shrink = exp2_fast(rise * LOG2_E);
    struct row_sums raised = {maximum, shrink * s.first, shrink * shrink * s.second,
                              shrink * fmaf(rise, s.first, s.moment), s.logits};
    return raised;
}

/* One change of the maximum for the whole chunk, without a branch: where it stays the factor is exactly 1.
 * The chunk is summed by itself first, so rounding grows with the chunk and the number of chunks, not with
 * their product. A logit of -infinity adds 0; a NaN passes by the maximum and shows in the sums. */
template <int COUNT> __device__ static inline void add_chunk(struct row_sums &s, const float (&z)[COUNT])
{
    float maximum = s.maximum, first = 0, second = 0, moment = 0, logits = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        maximum = fmaxf(maximum, z[i]);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float d = z[i] - maximum, e = exp2_fast(d * LOG2_E);
        first += e;
        second = fmaf(e, e, second);
        moment = fmaf(fmaxf(d, FAR_BELOW), e, moment);
        logits += z[i];
    }
    s = raise(s, maximum);
    s.first += first;
    s.second += second;
    s.moment += moment;
    s.logits += logits;
}

/* The calling thread's part of the row. */
template <class T> __device__ static inline struct row_sums sum_part(const T *row, int cols)
{
    constexpr int E = VECTOR<T>, TOGETHER = CHUNK / E;
    struct row_sums sums = {-FLT_MAX, 0, 0, 0, 0};
    struct row_cut cut = cut_row<E>(before_boundary(row, cols), cols);
    const vector16<T> *vectors = (const vector16<T> *)(row + cut.head);
    int at = (int)threadIdx.x;
    if (at < cut.left) {
        float z[1] = {widen(row[left_column<E>(cut, at)])};
        add_chunk(sums, z);
    }
    for (; at + (LOADS - 1) * THREADS < cut.vectors; at += LOADS * THREADS) {
        vector16<T> loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            loaded[i] = vectors[at + i * THREADS];
#pragma unroll
        for (int i = 0; i < LOADS; i += TOGETHER) {
            float z[CHUNK];
#pragma unroll
            for (int j = 0; j < TOGETHER; j++)
                widen_pairs(z + j * E, loaded[i + j]);
            add_chunk(sums, z);
        }
    }
    for (; at < cut.vectors; at += THREADS) {
        float z[E];
        load_elements(z, row + cut.head + at * E);
        add_chunk(sums, z);
    }
    return sums;
}

/* The formulas of cpu/head.c. */
__device__ static inline void store_statistics(float *statistics, float maximum, double first, double second,
                                               double moment, double logits, float at_target, int cols)
{
    double log_first = log(first);
    statistics[HEAD_MAXIMUM] = maximum;
    statistics[HEAD_LOG_SUM] = (float)log_first;
    statistics[HEAD_LOGP] = (float)((double)at_target - (double)maximum - log_first);
    statistics[HEAD_LOG_SQUARE] = (float)(log(second) - 2 * log_first);
    statistics[HEAD_ENTROPY] = (float)(log_first - moment / first);
    statistics[HEAD_MEAN] = (float)(logits / (double)cols);
    statistics[HEAD_HIT] = at_target >= maximum ? 1.0f : 0.0f;
    statistics[HEAD_SPARE] = 0;
}

/* Each thread keeps running sums of its part of the row, brought to the block's maximum once at the end and
 * added in order of lanes and warps. Rows go from the last to the first: the product that made the logits
 * wrote the last ones last, and the gradient begins with the first, so that the cache still holds some of
 * them both times.
 *
 * Reads T V logits, writes 32 T bytes. 10.3 instructions a logit from f32, 10.9 from bf16 (sm_90a): 37 % and
 * 79 % of the issue slots of an H200 at full bandwidth. Expected: >= 92 % of copy bandwidth from f32, >= 85 %
 * from bf16. */
template <class T>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    head_statistics_kernel(float *statistics, struct tensor logits, const int64_t *target)
{
    constexpr int WARPS = THREADS / 32;
    __shared__ float maxima[WARPS], parts[WARPS][4];
    int64_t t = (int64_t)(gridDim.x - 1 - blockIdx.x), y = target[t];
    int cols = (int)logits.cols, warp = (int)threadIdx.x / 32;
    const T *row = row_of<T>(logits, t);
    check_target(y, logits.cols);
    struct row_sums sums = sum_part(row, cols);

    float maximum = warp_maximum(sums.maximum);
    if (threadIdx.x % 32 == 0) maxima[warp] = maximum;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        maximum = fmaxf(maximum, maxima[i]);
    sums = raise(sums, maximum);
    float first = warp_sum(sums.first), second = warp_sum(sums.second), moment = warp_sum(sums.moment),
          plain = warp_sum(sums.logits);
    if (threadIdx.x % 32 == 0) {
        parts[warp][0] = first;
        parts[warp][1] = second;
        parts[warp][2] = moment;
        parts[warp][3] = plain;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    double total[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < WARPS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            total[j] += (double)parts[i][j];
    store_statistics(statistics + t * HEAD_STATISTICS, maximum, total[0], total[1], total[2], total[3],
                     widen(row[y]), cols);
}

static void require_logits(struct tensor logits)
{
    require_matrix(logits, "logits");
    REQUIRE(logits.cols > 0 && logits.cols <= INT32_MAX / 2 && logits.rows <= INT32_MAX,
            "logits [%lld,%lld] do not fit a launch", (long long)logits.rows, (long long)logits.cols);
}

void cuda_head_statistics(struct device *device, float *statistics, struct tensor logits,
                          const int64_t *target)
{
    require_logits(logits);
    if (logits.rows == 0) return;
    WITH_TYPE(logits.type, T, {
        LAUNCH((head_statistics_kernel<T>), (unsigned)logits.rows, THREADS, 0, device->stream, statistics,
               logits, target);
    });
}

/* -- gradient --------------------------------------------------------------------------------- */

/* 16 bytes, 8, 4 or 2 at a time, and not worth a place in the cache. */
template <class V> __device__ static inline V load_once(const V *from)
{
    V value;
    if constexpr (sizeof(V) == 16) {
        uint4 bits = __ldcs((const uint4 *)from);
        memcpy(&value, &bits, sizeof value);
    } else if constexpr (sizeof(V) == 4) {
        unsigned bits = __ldcs((const unsigned *)from);
        memcpy(&value, &bits, sizeof value);
    } else {
        unsigned short bits = __ldcs((const unsigned short *)from);
        memcpy(&value, &bits, sizeof value);
    }
    return value;
}

template <class V> __device__ static inline void store_once(V *to, V value)
{
    if constexpr (sizeof(V) == 16) {
        uint4 bits;
        memcpy(&bits, &value, sizeof value);
        __stcs((uint4 *)to, bits);
    } else if constexpr (sizeof(V) == 8) {
        uint2 bits;
        memcpy(&bits, &value, sizeof value);
        __stcs((uint2 *)to, bits);
    } else if constexpr (sizeof(V) == 4) {
        unsigned bits;
        memcpy(&bits, &value, sizeof value);
        __stcs((unsigned *)to, bits);
    } else {
        unsigned short bits;
        memcpy(&bits, &value, sizeof value);
        __stcs((unsigned short *)to, bits);
    }
}

/* dz = scale e^(z - maximum), scale = -coefficient / s1 */
struct slope {
    float maximum, scale;
};

__device__ static inline float slope_at(struct slope slope, float z)
{
    return slope.scale * exp2_fast((z - slope.maximum) * LOG2_E);
}

/* `items` vectors of E, LOADS vectors or CHUNK single elements a thread at once. Where dz are narrower than z
 * no thread writes before all have read their share of the round. */
template <class Z, class D, int E>
__device__ static inline void slope_span(D *dz, const Z *z, int items, struct slope slope)
{
    constexpr int ROUND = E == 1 ? CHUNK : LOADS;
    const vector<Z, E> *from = (const vector<Z, E> *)z + threadIdx.x;
    vector<D, E> *to = (vector<D, E> *)dz + threadIdx.x;
    for (; items > 0; items -= ROUND * THREADS) {
        int mine = items - (int)threadIdx.x; /* every THREADS-th of them is this thread's */
        vector<Z, E> in[ROUND] = {};
        float values[ROUND * E];
#pragma unroll
        for (int i = 0; i < ROUND; i++)
            if (i * THREADS < mine) in[i] = load_once(from + i * THREADS);
#pragma unroll
        for (int i = 0; i < ROUND; i++)
            widen_pairs(values + i * E, in[i]);
#pragma unroll
        for (int i = 0; i < ROUND * E; i++)
            values[i] = slope_at(slope, values[i]);
        vector<D, ROUND *E> results = narrow_all<D, ROUND * E>(values);
        if constexpr (sizeof(D) < sizeof(Z)) __syncthreads();
#pragma unroll
        for (int i = 0; i < ROUND; i++) {
            vector<D, E> out;
#pragma unroll
            for (int j = 0; j < E; j++)
                out.at[j] = results.at[i * E + j];
            if (i * THREADS < mine) store_once(to + i * THREADS, out);
        }
        from += ROUND * THREADS;
        to += ROUND * THREADS;
    }
}

/* The whole row, in vectors of E after `head` single elements. */
template <class Z, class D, int E>
__device__ static inline void slope_row(D *dz, const Z *z, int head, int cols, struct slope slope)
{
    struct row_cut cut = cut_row<E>(head, cols);
    int column = left_column<E>(cut, (int)threadIdx.x);
    bool has_left = (int)threadIdx.x < cut.left;
    float left = has_left ? slope_at(slope, widen(z[column])) : 0;
    slope_span<Z, D, E>(dz + head, z + head, cut.vectors, slope);
    __syncthreads();
    if (has_left) dz[column] = narrow<D>(left);
}

/* A block walks its row upwards. bf16 results that take the place of f32 logits, from the row's beginning:
 * the round that reads elements a .. b-1 writes bytes 2a .. 2b-1 of the row after all of the block have read,
 * and what is still unread begins at byte 4b; the few elements outside the vectors, and the target's, are
 * read before the first round and written after the last. A block touches no other row. Where both types are
 * one a thread writes what it read itself.
 *
 * Reads T V logits, writes T V results (f32 to bf16: 6 bytes a logit). 6 to 9 instructions a logit, 15 to 35
 * % of the issue slots of an H200. Expected: >= 90 % of copy bandwidth. Where a row begins at no multiple of
 * 16 bytes a few elements stand outside the vectors; where z and dz then share no boundary all are read and
 * written singly, CHUNK of them under way a thread (10 to 12 instructions a logit): still >= 80 %. */
template <class Z, class D>
__global__ void __launch_bounds__(THREADS, BLOCKS)
    head_gradient_kernel(struct tensor dlogits, struct tensor logits, const float *statistics,
                         const int64_t *target, const float *coefficient)
{
    constexpr int E = VECTOR<Z>;
    __shared__ float at_target;
    int64_t t = blockIdx.x, y = target[t];
    int cols = (int)logits.cols;
    const Z *z = row_of<Z>(logits, t);
    D *dz = row_of<D>(dlogits, t);
    const float *row = statistics + t * HEAD_STATISTICS;
    float factor = coefficient[t];
    struct slope slope = {row[HEAD_MAXIMUM], -factor * expf(-row[HEAD_LOG_SUM])};
    check_target(y, logits.cols);
    if (threadIdx.x == 0) at_target = slope_at(slope, widen(z[y]));
    __syncthreads();

    int head = before_boundary(z, cols);
    if ((uintptr_t)(dz + head) % sizeof(vector<D, E>) == 0)
        slope_row<Z, D, E>(dz, z, head, cols, slope);
    else
        slope_row<Z, D, 1>(dz, z, 0, cols, slope);
    __syncthreads();
    if (threadIdx.x == 0) dz[y] = narrow<D>(factor + at_target);
}

void cuda_head_gradient(struct device *device, struct tensor dlogits, struct tensor logits,
                        const float *statistics, const int64_t *target, const float *coefficient)
{
    require_logits(logits);
    require_shape(dlogits, logits.rows, logits.cols, "dlogits");
    REQUIRE(dlogits.type == logits.type || logits.type == DTYPE_FLOAT, "dlogits are wider than logits");
    REQUIRE(dlogits.data != logits.data || (size_t)dlogits.stride * dtype_bytes(dlogits.type) ==
                                               (size_t)logits.stride * dtype_bytes(logits.type),
            "rows of dlogits do not begin where those of the logits in their memory do");
    if (logits.rows == 0) return;
    WITH_TYPE(dlogits.type, D, {
        if (logits.type == DTYPE_FLOAT)
            LAUNCH((head_gradient_kernel<float, D>), (unsigned)logits.rows, THREADS, 0, device->stream,
                   dlogits, logits, statistics, target, coefficient);
        else
            LAUNCH((head_gradient_kernel<struct bfloat, struct bfloat>), (unsigned)logits.rows, THREADS, 0,
                   device->stream, dlogits, logits, statistics, target, coefficient);
    });
}
