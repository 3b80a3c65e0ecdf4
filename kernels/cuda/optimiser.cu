/* The optimiser: norm of the gradient, AdamW over all pieces in one launch. Bound by memory bandwidth. */
#include "kernels/checksum.h"
#include "kernels/cuda/elements.cuh"

#include <float.h>

enum { THREADS = 256 };

/* -- sum of squares ---------------------------------------------------------------------------- */

enum { SQUARE_BLOCKS = 1024, LOADS = 4, CHUNK = 16, SHARE = 16384 };

/* The sum over the block in a tree whose shape is fixed; right on thread 0. parts: [THREADS], used once. */
__device__ static inline double block_total(double x, double *parts)
{
    parts[threadIdx.x] = x;
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    return parts[0];
}

/* f32 where that neither overflows nor loses small squares (below 1e-36 they could), else double: so nothing
 * is lost, NaN and infinity show, and double arithmetic, which some devices have little of, is rare. */
template <int COUNT> __device__ static inline double squares_of(const float (&x)[COUNT])
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        sum = fmaf(x[i], x[i], sum);
    if (sum > 1e-36f && sum <= FLT_MAX) return (double)sum;
    double wide = 0;
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        wide += (double)x[i] * (double)x[i];
    return wide;
}

/* out[block] = the block's part of the sum: every gridDim.x * THREADS-th vector is a thread's, in f32 over
 * CHUNK elements and in double beyond; the elements outside the vectors are the first block's. How many
 * blocks there are depends on the length alone, so the order of the sum does. Reads n elements; >= 90 % of
 * copy bandwidth. */
template <class T>
__global__ void __launch_bounds__(THREADS, 5) squares_kernel(double *out, const T *x, int64_t count)
{
    constexpr int E = VECTOR<T>, TOGETHER = CHUNK / E;
    __shared__ double parts[THREADS];
    int64_t head = (int64_t)(-(uintptr_t)x % 16 / sizeof(T));
    if (head > count) head = count;
    const vector16<T> *from = (const vector16<T> *)(x + head);
    int64_t vectors = (count - head) / E, left = count - vectors * E, step = (int64_t)gridDim.x * THREADS;
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    double sum = 0;
    if (at < left) {
        float one[1] = {widen(x[at < head ? at : at + vectors * E])};
        sum = squares_of(one);
    }
    for (; at + (LOADS - 1) * step < vectors; at += LOADS * step) {
        vector16<T> loaded[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            loaded[i] = from[at + i * step];
#pragma unroll
        for (int i = 0; i < LOADS; i += TOGETHER) {
            float values[CHUNK];
#pragma unroll
            for (int j = 0; j < CHUNK; j++)
                values[j] = widen(loaded[i + j / E].at[j % E]);
            sum += squares_of(values);
        }
    }
    for (; at < vectors; at += step) {
        float values[E];
        load_elements(values, x + head + at * E);
        sum += squares_of(values);
    }
    sum = block_total(sum, parts);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) add_kernel(double *result, const double *partial, int count)
{
    __shared__ double parts[THREADS];
    double sum = 0;
    for (int i = (int)threadIdx.x; i < count; i += THREADS)
        sum += partial[i];
    sum = block_total(sum, parts);
    if (threadIdx.x == 0) *result = sum;
}

void cuda_sum_squares(struct device *device, double *result, struct tensor x)
{
    require_shape(x, 1, x.cols, "x");
    int64_t wanted = divide_up(x.cols, SHARE);
    int blocks = wanted < 1 ? 1 : wanted > SQUARE_BLOCKS ? SQUARE_BLOCKS : (int)wanted;
    double *out = blocks == 1 ? result : (double *)scratch_of(device);
    WITH_TYPE(x.type, T, {
        LAUNCH((squares_kernel<T>), (unsigned)blocks, THREADS, 0, device->stream, out, data_of<T>(x), x.cols);
    });
    if (blocks > 1) LAUNCH(add_kernel, 1, THREADS, 0, device->stream, result, out, blocks);
}

/* One thread adds, in order; the others bring the numbers. Reads 8 bytes a number. */
__global__ void __launch_bounds__(THREADS) norm_kernel(double *norm, const double *squares, int64_t count)
{
    __shared__ double tile[THREADS];
    double sum = 0;
    for (int64_t at = 0; at < count; at += THREADS) {
        int here = count - at < THREADS ? (int)(count - at) : THREADS;
        __syncthreads();
        if ((int)threadIdx.x < here) tile[threadIdx.x] = squares[at + threadIdx.x];
        __syncthreads();
        for (int i = 0; threadIdx.x == 0 && i < here; i++)
            sum += tile[i];
    }
    if (threadIdx.x == 0) *norm = sqrt(sum);
}

void cuda_norm(struct device *device, double *norm, const double *squares, int64_t count)
{
    LAUNCH(norm_kernel, 1, THREADS, 0, device->stream, norm, squares, count);
}

/* -- checksum ---------------------------------------------------------------------------------- */

/* Whole numbers may be added in any order: the atomics change no bit. Reads n elements; >= 80 % of copy
 * bandwidth (some ten integer operations an element). */
template <class W>
__global__ void __launch_bounds__(THREADS)
    checksum_kernel(unsigned long long *result, const W *bits, int64_t count)
{
    __shared__ unsigned long long parts[THREADS / 32];
    unsigned long long sum = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count;
         i += (int64_t)gridDim.x * THREADS)
        sum += checksum_word(bits[i], (uint64_t)i);
    for (int offset = 16; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    sum = 0;
    for (int i = 0; i < THREADS / 32; i++)
        sum += parts[i];
    atomicAdd(result, sum);
}

void cuda_checksum(struct device *device, uint64_t *result, struct tensor x)
{
    REQUIRE(x.rows == 1 && x.data, "a checksum is of one row");
    int64_t blocks = divide_up(x.cols, THREADS * 16);
    if (blocks > 8 * device->multiprocessors) blocks = 8 * device->multiprocessors;
    CUDA_REQUIRE(cudaMemsetAsync(result, 0, sizeof *result, device->stream));
    if (x.cols == 0) return;
    unsigned long long *sum = (unsigned long long *)result;
    if (dtype_bytes(x.type) == 4)
        LAUNCH((checksum_kernel<uint32_t>), (unsigned)blocks, THREADS, 0, device->stream, sum,
               (const uint32_t *)x.data, x.cols);
    else
        LAUNCH((checksum_kernel<uint16_t>), (unsigned)blocks, THREADS, 0, device->stream, sum,
               (const uint16_t *)x.data, x.cols);
}

/* -- adamw ------------------------------------------------------------------------------------- */

/* Pieces are cut into tiles, of which each block takes a run of neighbours. A thread updates EACH elements of
 * a tile: neighbours, or elements THREADS apart where a pointer stands at no multiple of EACH elements or the
 * piece ends. */
enum { EACH = 4, UPDATE_TILE = THREADS * EACH, UPDATE_BLOCKS = 5, WAVES = 8, AT_ONCE = 128 };

struct laid_piece {
    struct adamw_piece piece;
    int64_t first_tile, tiles;
};

/* What a step needs, with the bias corrections folded in as in cpu/optimiser.c. 1 - b2 is taken in double:
 * from a rounded b2 it would be wrong in its fifth digit. */
struct update {
    float first_left, second, second_left, rate, correction, epsilon, decay;
    double max_norm;
    uint32_t keys[2]; /* of seed and step */
};

/* 16 bits for the moment (low) and 16 for the variance of the element at `place` of the model: a change of
 * one bit of the place or of the keys changes each of them with probability near 1/2. */
__device__ static inline uint32_t random_bits(const struct update &u, uint64_t place)
{
    uint32_t x = ((uint32_t)place ^ u.keys[0]) + (uint32_t)(place >> 32) * u.keys[1];
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

/* Up with the probability of the fraction that is cut off: random is below 2^16. What bf16 holds stays as it
 * is, infinity too; NaN stays NaN. */
__device__ static inline struct bfloat round_randomly(float x, uint32_t random)
{
    uint32_t bits = float_bits(x);
    struct bfloat result;
    result.bits = x == x ? (uint16_t)((bits + random) >> 16) : (uint16_t)0x7fff;
    return result;
}

/* Where a thread's element i of a tile stands in it. */
template <bool WHOLE> __device__ static inline int place_of(int i)
{
    return WHOLE ? (int)threadIdx.x * EACH + i : (int)threadIdx.x + i * THREADS;
}

/* The thread's elements of a tile of which `count` are there; 0 where there is none. */
template <bool WHOLE, class T>
__device__ static inline void take(vector<T, EACH> &to, const T *tile, int64_t count)
{
    if constexpr (WHOLE) {
        to = ((const vector<T, EACH> *)tile)[threadIdx.x];
    } else {
        to = {};
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (place_of<WHOLE>(i) < count) to.at[i] = tile[place_of<WHOLE>(i)];
    }
}

template <bool WHOLE, class T>
__device__ static inline void put(T *tile, const vector<T, EACH> &from, int64_t count)
{
    if constexpr (WHOLE) {
        ((vector<T, EACH> *)tile)[threadIdx.x] = from;
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (place_of<WHOLE>(i) < count) tile[place_of<WHOLE>(i)] = from.at[i];
    }
}

/* The arithmetic of cpu/optimiser.c, each operation rounded by itself (no fused products), so f32 parameters
 * and split ones take the same values, on both backends. Returns the parameter; m, v (inout). */
__device__ static inline float updated(const struct update &u, float p, float &m, float &v, float gradient,
                                       float scale, float decay)
{
    float g = __fmul_rn(gradient, scale);
    m = __fadd_rn(m, __fmul_rn(u.first_left, __fsub_rn(g, m)));
    v = __fadd_rn(__fmul_rn(u.second, v), __fmul_rn(__fmul_rn(u.second_left, g), g));
    float below = __fadd_rn(__fmul_rn(__fsqrt_rn(v), u.correction), u.epsilon);
    float change = __fdiv_rn(__fmul_rn(u.rate, m), below);
    /* one rounding into p: at preference-training rates either term alone is near its last bit */
    return __fsub_rn(p, __fadd_rn(change, __fmul_rn(decay, p)));
}

template <class P, class M, class G, bool WHOLE>
__device__ static inline void update_tile(const struct adamw_piece &piece, int64_t at, const struct update &u,
                                          float scale)
{
    constexpr bool SPLIT = sizeof(P) == 2;
    int64_t count = piece.count - at;
    P *parameter = (P *)piece.parameter + at;
    M *moment = (M *)piece.moment + at, *variance = (M *)piece.variance + at;
    vector<P, EACH> p;
    vector<int16_t, EACH> low;
    vector<M, EACH> m, v;
    vector<G, EACH> g;
    take<WHOLE>(p, parameter, count);
    if constexpr (SPLIT) take<WHOLE>(low, piece.low + at, count);
    take<WHOLE>(m, moment, count);
    take<WHOLE>(v, variance, count);
    take<WHOLE>(g, (const G *)piece.gradient + at, count);
    float decay = piece.decay ? u.decay : 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        float master, mi = widen(m.at[i]), vi = widen(v.at[i]);
        if constexpr (SPLIT)
            master = master_join(p.at[i], low.at[i]);
        else
            master = p.at[i];
        master = updated(u, master, mi, vi, widen(g.at[i]), scale, decay);
        if constexpr (SPLIT) {
            p.at[i] = master_high(master);
            low.at[i] = master_low(master);
        } else {
            p.at[i] = master;
        }
        if constexpr (sizeof(M) == 2) {
            uint32_t random = random_bits(u, (uint64_t)(piece.first + at) + (uint64_t)place_of<WHOLE>(i));
            m.at[i] = round_randomly(mi, random & 0xffffu);
            v.at[i] = round_randomly(vi, random >> 16);
        } else {
            m.at[i] = mi;
            v.at[i] = vi;
        }
    }
    put<WHOLE>(parameter, p, count);
    if constexpr (SPLIT) put<WHOLE>(piece.low + at, low, count);
    put<WHOLE>(moment, m, count);
    put<WHOLE>(variance, v, count);
}

template <class P, class M, class G> __device__ static inline bool aligned(const struct adamw_piece &piece)
{
    uintptr_t odd = (uintptr_t)piece.parameter % (EACH * sizeof(P)) | (uintptr_t)piece.low % (EACH * 2) |
                    ((uintptr_t)piece.moment | (uintptr_t)piece.variance) % (EACH * sizeof(M)) |
                    (uintptr_t)piece.gradient % (EACH * sizeof(G));
    return odd == 0;
}

/* A block's tiles are neighbours in the row of all pieces' tiles. All threads look for the piece of the
 * first; the next ones follow. Bytes a parameter, read and written:
 * - p f32, m and v f32, gradient f32: 4+4 + 8+8 + 4 = 28;
 * - p bf16 and low, m and v f32, gradient f32 (bf16): 2+2 + 2+2 + 8+8 + 4 (2) = 28 (26);
 * - p bf16 and low, m and v bf16, gradient f32 (bf16): 2+2 + 2+2 + 4+4 + 4 (2) = 20 (18).
 *
 * Some 55 instructions a parameter, 90 with bf16 moments (sm_90a): 30 % and 70 % of the issue slots of an
 * H200 at full bandwidth. Expected: >= 90 % of copy bandwidth, >= 80 % with bf16 moments (8e9 parameters at
 * 28 bytes: 52 ms at 4.3 TB/s), >= 75 % on pieces whose pointers stand at no multiple of EACH elements. */
template <class P, class M, class G>
__global__ void __launch_bounds__(THREADS, UPDATE_BLOCKS)
    adamw_kernel(const struct laid_piece *pieces, int piece_count, int64_t tiles, struct update u,
                 const double *norm)
{
    __shared__ struct laid_piece laid; /* in registers it would take the place of elements */
    __shared__ int found;
    int64_t tile = tiles * blockIdx.x / gridDim.x, end = tiles * (blockIdx.x + 1) / gridDim.x;
    double length = *norm;
    if (!(fabs(length) < HUGE_VAL)) return;
    bool clip = u.max_norm > 0 && length > u.max_norm;
    float scale = clip ? (float)(u.max_norm / (length + 1e-6)) : 1.0f;
    for (int i = (int)threadIdx.x; i < piece_count; i += THREADS)
        if (pieces[i].first_tile <= tile && tile < pieces[i].first_tile + pieces[i].tiles) found = i;
    __syncthreads();
    for (int i = found; tile < end; i++) {
        __syncthreads(); /* none works on the piece before any more */
        if (threadIdx.x == 0) laid = pieces[i];
        __syncthreads();
        int64_t last = laid.first_tile + laid.tiles < end ? laid.first_tile + laid.tiles : end;
        bool whole = aligned<P, M, G>(laid.piece);
        for (; tile < last; tile++) {
            int64_t at = (tile - laid.first_tile) * UPDATE_TILE;
            if (whole && at + UPDATE_TILE <= laid.piece.count)
                update_tile<P, M, G, true>(laid.piece, at, u, scale);
            else
                update_tile<P, M, G, false>(laid.piece, at, u, scale);
        }
    }
}

/* Any two of (seed, step) give two keys that have nothing to do with each other. */
static uint64_t key_of(uint64_t seed, uint64_t step)
{
    uint64_t key = seed;
    for (int round = 0; round < 2; round++) {
        key = (key ^ (key >> 32)) * 0xd6e8feb86659fd93u;
        key = (key ^ (key >> 32)) * 0xd6e8feb86659fd93u;
        key = (key ^ (key >> 32)) + (round == 0 ? step * 0x9e3779b97f4a7c15u : 0);
    }
    return key;
}

static struct update update_of(const struct adamw *settings)
{
    double first_correction = 1 - pow(settings->beta_first, (double)settings->step);
    double second_correction = 1 - pow(settings->beta_second, (double)settings->step);
    uint64_t key = key_of(settings->seed, (uint64_t)settings->step);
    struct update u = {};
    u.first_left = (float)(1 - settings->beta_first);
    u.second = (float)settings->beta_second;
    u.second_left = (float)(1 - settings->beta_second);
    u.rate = (float)(settings->rate / first_correction);
    u.correction = (float)(1 / sqrt(second_correction));
    u.epsilon = (float)settings->epsilon;
    u.decay = (float)(settings->rate * settings->weight_decay);
    u.max_norm = settings->max_norm;
    u.keys[0] = (uint32_t)key;
    u.keys[1] = (uint32_t)(key >> 32) | 1u;
    return u;
}

/* The list in scratch memory, without empty pieces: a few kilobytes through the device's staging memory, on
 * the stream. Returns how many tiles there are. */
static int64_t lay_out(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
                       bool split, int *laid_count)
{
    struct laid_piece *to = (struct laid_piece *)scratch_of(device), batch[AT_ONCE];
    int64_t tiles = 0, laid = 0;
    int held = 0;
    REQUIRE(piece_count <= (int64_t)(SCRATCH_BYTES / sizeof *to), "%lld pieces are more than scratch holds",
            (long long)piece_count);
    for (int64_t i = 0; i < piece_count; i++) {
        REQUIRE((pieces[i].low != NULL) == split, "bf16 parameters, and only they, have a lower half");
        if (pieces[i].count > 0) {
            int64_t here = divide_up(pieces[i].count, UPDATE_TILE);
            batch[held++] = {pieces[i], tiles, here};
            tiles += here;
        }
        if (held == AT_ONCE || (i + 1 == piece_count && held > 0)) {
            cuda_ops()->upload(device, to + laid, batch, (size_t)held * sizeof *batch);
            laid += held;
            held = 0;
        }
    }
    *laid_count = (int)laid;
    return tiles;
}

void cuda_adamw(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
                const struct adamw *settings, const double *norm)
{
    int laid = 0;
    int64_t tiles = lay_out(device, pieces, piece_count, settings->parameter_type == DTYPE_BFLOAT, &laid);
    if (tiles == 0) return;
    int64_t most = (int64_t)device->multiprocessors * UPDATE_BLOCKS * WAVES;
    unsigned grid = (unsigned)(tiles < most ? tiles : most);
    struct update u = update_of(settings);
    const struct laid_piece *table = (const struct laid_piece *)scratch_of(device);
    WITH_TYPE(settings->parameter_type, P, {
        WITH_TYPE(settings->moment_type, M, {
            WITH_TYPE(settings->gradient_type, G, {
                LAUNCH((adamw_kernel<P, M, G>), grid, THREADS, 0, device->stream, table, laid, tiles, u,
                       norm);
            });
        });
    });
}
