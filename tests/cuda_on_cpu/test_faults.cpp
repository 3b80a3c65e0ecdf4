/* Planted faults: each kernel is right with fault = false and has one mistake with fault = true, of the kind
 * that a kernel for a GPU can have. Each must be found: refused by the emulation with a sentence, reported by
 * a sanitizer, or seen in the result. Every fault runs as a process of its own; all kernels without their
 * faults must pass. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "tests/check.h"

enum { WRONG = 3, THREADS = 128, BLOCKS = 64, COUNT = THREADS * BLOCKS };

#if defined(__SANITIZE_ADDRESS__)
static const bool sanitized = true;
#else
static const bool sanitized = false;
#endif

static cudaStream_t stream = NULL;

/* Device memory with 1, 2, 3, ... in it. */
static float *numbers(int count)
{
    float *memory = NULL;
    CUDA_REQUIRE(cudaMalloc(&memory, (size_t)count * sizeof(float)));
    for (int i = 0; i < count; i++)
        memory[i] = (float)i + 1;
    return memory;
}

static float *space(int count)
{
    float *memory = NULL;
    CUDA_REQUIRE(cudaMalloc(&memory, (size_t)count * sizeof(float)));
    return memory;
}

/* Frees both; whether out[i] == want(i) for all i. */
template <class FUNCTION> static bool equal(float *out, float *in, int count, FUNCTION want)
{
    bool same = true;
    for (int i = 0; i < count; i++)
        same = same && out[i] == (float)want(i);
    CUDA_REQUIRE(cudaFree(out));
    CUDA_REQUIRE(cudaFree(in));
    return same;
}

/* -- memory --------------------------------------------------------------------------------------- */

__global__ static void shift_kernel(float *out, const float *in, int count, bool fault)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    out[i] = i + 1 < count || fault ? in[i + 1] : 0;
}

static bool read_beyond(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(shift_kernel, BLOCKS, THREADS, 0, stream, out, in, COUNT, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1 < COUNT ? i + 2 : 0; });
}

__global__ static void write_kernel(float *out, const float *in, int count, bool fault)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count || fault) out[i] = in[i < count ? i : 0];
}

static bool write_beyond(bool fault)
{
    float *in = numbers(COUNT - 1), *out = space(COUNT - 1);
    LAUNCH(write_kernel, BLOCKS, THREADS, 0, stream, out, in, COUNT - 1, fault);
    return equal(out, in, COUNT - 1, [](int i) { return i + 1; });
}

__global__ static void dynamic_kernel(float *out, const float *in, bool fault)
{
    SHARED_DYNAMIC(raw);
    float *line = (float *)raw;
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    line[t + (fault ? 1 : 0)] = in[i];
    out[i] = line[t + (fault ? 1 : 0)];
}

static bool shared_beyond(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(dynamic_kernel, BLOCKS, THREADS, THREADS * sizeof(float), stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

__global__ static void array_kernel(float *out, const float *in, bool fault)
{
    __shared__ float line[THREADS];
    float *at = line + threadIdx.x + (fault ? 1 : 0);
    int i = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    *at = in[i];
    out[i] = *at;
}

static bool array_beyond(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(array_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

__global__ static void vector_kernel(float *out, const float *in, int shift)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    vector16<float> v = *(const vector16<float> *)(in + 4 * i + shift);
    *(vector16<float> *)(out + 4 * i) = v;
}

static bool misaligned_vector(bool fault)
{
    float *in = numbers(4 * COUNT + 4), *out = space(4 * COUNT);
    LAUNCH(vector_kernel, BLOCKS, THREADS, 0, stream, out, in, fault ? 1 : 0);
    return equal(out, in, 4 * COUNT, [=](int i) { return i + 1 + (fault ? 1 : 0); });
}

__global__ static void sum_kernel(float *out, const float *in, bool fault)
{
    __shared__ float cell[THREADS];
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    if (!fault || t % 2) cell[t] = in[i];
    __syncthreads();
    out[i] = cell[t] + cell[t ^ 1];
}

static bool unwritten_shared(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(sum_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return 2 * (i / 2 * 2) + 3; });
}

static bool unwritten_memory(bool fault)
{
    float *in = fault ? space(COUNT + 1) : numbers(COUNT + 1), *out = space(COUNT);
    LAUNCH(shift_kernel, BLOCKS, THREADS, 0, stream, out, in, COUNT + 1, false);
    return equal(out, in, COUNT, [](int i) { return i + 2; });
}

static bool used_after_free(bool fault)
{
    float *in = numbers(COUNT + 1), *out = space(COUNT), *other = numbers(1);
    if (fault) CUDA_REQUIRE(cudaFree(in));
    LAUNCH(shift_kernel, BLOCKS, THREADS, 0, stream, out, in, COUNT + 1, false);
    return equal(out, fault ? other : in, COUNT, [](int i) { return i + 2; });
}

/* Block b continues what block b - 1 has written: nothing says that it ran before. */
__global__ static void chain_kernel(float *out, const float *in, bool fault)
{
    if (threadIdx.x > 0) return;
    int b = (int)blockIdx.x;
    out[b] = fault && b > 0 ? out[b - 1] + 1 : in[b];
}

static bool order_of_blocks(bool fault)
{
    float *in = numbers(BLOCKS), *out = space(BLOCKS);
    LAUNCH(chain_kernel, BLOCKS, 32, 0, stream, out, in, fault);
    return equal(out, in, BLOCKS, [](int i) { return i + 1; });
}

/* -- barriers ------------------------------------------------------------------------------------- */

__global__ static void reverse_kernel(float *out, const float *in, bool fault)
{
    __shared__ float line[THREADS];
    int t = (int)threadIdx.x, first = (int)blockIdx.x * THREADS;
    line[t] = in[first + t];
    if (!fault) __syncthreads();
    out[first + t] = line[THREADS - 1 - t];
}

static bool missing_barrier(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(reverse_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i / THREADS * THREADS + THREADS - i % THREADS; });
}

/* The second round writes over what slow threads still read. */
__global__ static void rounds_kernel(float *out, const float *in, bool fault)
{
    __shared__ float line[THREADS];
    int t = (int)threadIdx.x, first = (int)blockIdx.x * THREADS;
    float sum = 0;
    for (int round = 0; round < 2; round++) {
        line[t] = in[first + t] * (float)(round + 1);
        __syncthreads();
        sum += line[THREADS - 1 - t];
        if (!fault) __syncthreads();
    }
    out[first + t] = sum;
}

static bool missing_second_barrier(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(rounds_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return 3 * (i / THREADS * THREADS + THREADS - i % THREADS); });
}

/* One barrier too few between warps that are a shuffle ahead of each other. */
__global__ static void parts_kernel(float *out, const float *in, bool fault)
{
    __shared__ float parts[THREADS / 32];
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    float x = in[i], sum = 0;
    for (int round = 0; round < 3; round++) {
        float total = warp_sum(x);
        if (t % 32 == 0) parts[t / 32] = total;
        __syncthreads();
        for (float part : parts)
            sum += part;
        if (!fault) __syncthreads();
        x += 1;
    }
    out[i] = sum;
}

static bool missing_barrier_behind_shuffles(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(parts_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) {
        int first = i / THREADS * THREADS, once = THREADS * first + THREADS * (THREADS + 1) / 2;
        return 3 * once + 3 * THREADS;
    });
}

__global__ static void warp_kernel(float *out, const float *in, bool fault)
{
    __shared__ float line[THREADS];
    int t = (int)threadIdx.x, first = (int)blockIdx.x * THREADS;
    line[t] = in[first + t];
    if (!fault) __syncwarp();
    out[first + t] = line[t ^ 31];
}

static bool missing_warp_barrier(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(warp_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return (i ^ 31) + 1; });
}

__global__ static void divergent_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    if (!fault || t != 70) __syncthreads();
    out[i] = in[i];
}

static bool divergent_barrier(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(divergent_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

__global__ static void branches_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    if (fault && t < 32)
        __syncthreads();
    else
        __syncthreads();
    out[i] = in[i];
}

static bool barrier_in_two_branches(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(branches_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

__global__ static void early_kernel(float *out, const float *in, int count, bool fault)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (fault && i >= count) return;
    __syncthreads();
    if (i < count) out[i] = in[i];
}

static bool return_before_barrier(bool fault)
{
    float *in = numbers(COUNT - 5), *out = space(COUNT - 5);
    LAUNCH(early_kernel, BLOCKS, THREADS, 0, stream, out, in, COUNT - 5, fault);
    return equal(out, in, COUNT - 5, [](int i) { return i + 1; });
}

/* Half of each warp waits for its other half, which waits at the barrier. */
__global__ static void deadlock_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    if (!fault || t % 32 < 16) __syncwarp();
    __syncthreads();
    out[i] = in[i];
}

static bool deadlock(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(deadlock_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

enum named_fault {
    NO_NAMED_FAULT,
    NOT_WAITED,
    NOT_GIVEN,
    NOT_TAKEN,
    GIVEN_TOO_EARLY,
    NO_ARRIVAL,
    OTHER_COUNT,
    HALF_A_WARP
};

/* Two warps give numbers to two others, four times through the same cells: a barrier says that they are
 * there, another that they are taken. */
__global__ static void named_kernel(float *out, const float *in, enum named_fault fault)
{
    __shared__ float cells[2][32];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, pair = warp % 2;
    int there = 1 + 2 * pair, taken = 2 + 2 * pair;
    for (int i = (int)blockIdx.x * 256 + pair * 32; i < (int)blockIdx.x * 256 + 256; i += 64)
        if (warp < 2) {
            if (fault != NOT_GIVEN) cells[pair][lane] = in[i + lane];
            if (fault != HALF_A_WARP || lane < 16) barrier_arrive(there, fault == OTHER_COUNT ? 96 : 64);
            if (fault == NOT_GIVEN) cells[pair][lane] = in[i + lane];
            if (fault == GIVEN_TOO_EARLY)
                barrier_arrive(taken, 64);
            else
                barrier_wait(taken, 64);
        } else {
            if (fault == NOT_WAITED)
                barrier_arrive(there, 64);
            else
                barrier_wait(there, 64);
            if (fault != NOT_TAKEN) out[i + lane] = cells[pair][lane];
            if (fault != NO_ARRIVAL) barrier_arrive(taken, 64);
            if (fault == NOT_TAKEN) out[i + lane] = cells[pair][lane];
        }
}

static bool named(enum named_fault fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(named_kernel, COUNT / 256, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

static bool taken_before_given(bool fault)
{
    return named(fault ? NOT_WAITED : NO_NAMED_FAULT);
}

static bool arrival_before_gift(bool fault)
{
    return named(fault ? NOT_GIVEN : NO_NAMED_FAULT);
}

static bool arrival_before_taking(bool fault)
{
    return named(fault ? NOT_TAKEN : NO_NAMED_FAULT);
}

static bool given_before_taken(bool fault)
{
    return named(fault ? GIVEN_TOO_EARLY : NO_NAMED_FAULT);
}

static bool missing_arrival(bool fault)
{
    return named(fault ? NO_ARRIVAL : NO_NAMED_FAULT);
}

static bool barrier_of_other_count(bool fault)
{
    return named(fault ? OTHER_COUNT : NO_NAMED_FAULT);
}

static bool barrier_of_half_a_warp(bool fault)
{
    return named(fault ? HALF_A_WARP : NO_NAMED_FAULT);
}

/* -- collectives ---------------------------------------------------------------------------------- */

__global__ static void butterfly_kernel(float *out, const float *in, int largest)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    float x = in[i];
    for (int offset = largest; offset > 0; offset /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    out[i] = x;
}

static bool wrong_lane(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(butterfly_kernel, BLOCKS, THREADS, 0, stream, out, in, fault ? 8 : 16);
    return equal(out, in, COUNT, [](int i) { return 32 * (i / 32 * 32) + 32 * 33 / 2; });
}

__global__ static void outside_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    unsigned mask = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    out[i] = __shfl_xor_sync(mask, in[i], fault ? 16 : 8);
}

static bool lane_outside_mask(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(outside_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return (i ^ 8) + 1; });
}

__global__ static void half_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    float x = in[i];
    if (!fault || t % 32 < 16) x = __shfl_sync(0xffffffffu, x, 0);
    out[i] = x;
}

static bool divergent_shuffle(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(half_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i / 32 * 32 + 1; });
}

__global__ static void kinds_kernel(float *out, const float *in, bool fault)
{
    int t = (int)threadIdx.x, i = (int)blockIdx.x * THREADS + t;
    float x = in[i];
    if (fault && t % 2)
        x = __shfl_down_sync(0xffffffffu, x, 0);
    else
        x = __shfl_up_sync(0xffffffffu, x, 0);
    out[i] = x;
}

static bool two_kinds(bool fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(kinds_kernel, BLOCKS, THREADS, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

/* -- asynchronous copies and tensor cores ------------------------------------------------------------ */

enum copy_fault { NO_FAULT, NO_WAIT, WAIT_FOR_FEWER, NO_BARRIER, TOO_EARLY, MISALIGNED };

__global__ static void copy_kernel(float *out, const float *in, enum copy_fault fault)
{
    __shared__ __align__(16) float stage[2][4 * 32];
    int t = (int)threadIdx.x, first = (int)blockIdx.x * 256;
    for (int half = 0; half < 2; half++) {
        copy_async(&stage[half][4 * t], in + first + half * 128 + 4 * t + (fault == MISALIGNED ? 1 : 0),
                   true);
        copy_async_commit();
    }
    if (fault == WAIT_FOR_FEWER)
        copy_async_wait<1>();
    else if (fault != NO_WAIT)
        copy_async_wait<0>();
    if (fault != NO_BARRIER) __syncthreads();
    float x[8];
    for (int i = 0; i < 8; i++)
        x[i] = stage[i / 4][(4 * t + 4 + i % 4) % 128];
    /* The next copy must not start while others still read. */
    if (fault != TOO_EARLY) __syncthreads();
    copy_async(&stage[0][4 * t], in + first + 4 * t, true);
    copy_async_commit();
    __syncthreads();
    copy_async_wait<0>();
    for (int i = 0; i < 8; i++)
        out[first + i / 4 * 128 + (4 * t + 4 + i % 4) % 128] = x[i];
}

static bool copies(enum copy_fault fault)
{
    float *in = numbers(COUNT), *out = space(COUNT);
    LAUNCH(copy_kernel, COUNT / 256, 32, 0, stream, out, in, fault);
    return equal(out, in, COUNT, [](int i) { return i + 1; });
}

static bool missing_wait(bool fault)
{
    return copies(fault ? NO_WAIT : NO_FAULT);
}

static bool wait_for_fewer(bool fault)
{
    return copies(fault ? WAIT_FOR_FEWER : NO_FAULT);
}

static bool missing_barrier_after_wait(bool fault)
{
    return copies(fault ? NO_BARRIER : NO_FAULT);
}

static bool copy_too_early(bool fault)
{
    return copies(fault ? TOO_EARLY : NO_FAULT);
}

static bool misaligned_copy(bool fault)
{
    return copies(fault ? MISALIGNED : NO_FAULT);
}

__global__ static void matrices_kernel(float *out, const float *in, int stride)
{
    SHARED_DYNAMIC(raw);
    uint16_t *rows = (uint16_t *)raw;
    int t = (int)threadIdx.x;
    for (int i = 0; i < 8; i++)
        rows[t * stride + i] = (uint16_t)in[8 * t + i];
    __syncthreads();
    uint32_t r[4];
    load_matrices(r, rows + t * stride);
    for (int m = 0; m < 4; m++) {
        int at = 64 * m + t / 4 * 8 + t % 4 * 2;
        out[at] = (float)(r[m] & 0xffff);
        out[at + 1] = (float)(r[m] >> 16);
    }
}

static bool misaligned_rows(bool fault)
{
    float *in = numbers(256), *out = space(256);
    LAUNCH(matrices_kernel, 1, 32, 32 * 32, stream, out, in, fault ? 12 : 16);
    return equal(out, in, 256, [](int i) { return i + 1; });
}

/* The middle registers of a exchanged: rows and columns of its quarters are taken for each other. */
__global__ static void fragment_kernel(float *out, const float *in, bool fault)
{
    int lane = (int)threadIdx.x, group = lane / 4, pair = lane % 4;
    uint32_t a[4], b[2];
    float d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
        int row = group + i % 2 * 8, col = 2 * pair + i / 2 * 8;
        a[i] = pack_bfloat(in[row * 16 + col], in[row * 16 + col + 1]);
    }
    for (int i = 0; i < 2; i++) /* the left half of a unit matrix: the product is the left half of a */
        b[i] = pack_bfloat(2 * pair + 8 * i == group, 2 * pair + 8 * i + 1 == group);
    if (fault) {
        uint32_t other = a[1];
        a[1] = a[2];
        a[2] = other;
    }
    mma_bfloat(d, a, b);
    for (int i = 0; i < 4; i++)
        out[(group + i / 2 * 8) * 8 + 2 * pair + i % 2] = d[i];
}

static bool wrong_fragment(bool fault)
{
    float *in = numbers(256), *out = space(128);
    LAUNCH(fragment_kernel, 1, 32, 0, stream, out, in, fault);
    return equal(out, in, 128, [](int i) { return i / 8 * 16 + i % 8 + 1; });
}

__global__ static void global_kernel(float *out, const float *in, bool fault)
{
    __shared__ __align__(16) float rows[128];
    int t = (int)threadIdx.x;
    for (int i = 0; i < 4; i++)
        rows[4 * t + i] = in[4 * t + i];
    __syncwarp();
    uint32_t r[4];
    load_matrices(r, fault ? in + 4 * t : rows + 4 * t);
    out[t] = __uint_as_float(r[0]);
}

static bool rows_in_global_memory(bool fault)
{
    float *in = numbers(128), *out = space(32);
    LAUNCH(global_kernel, 1, 32, 0, stream, out, in, fault);
    return equal(out, in, 32, [](int i) { return i + 1; });
}

/* -- launches --------------------------------------------------------------------------------------- */

__global__ static void nothing_kernel(bool) {}

static bool too_many_threads(bool fault)
{
    LAUNCH(nothing_kernel, 1, fault ? 1025 : 1024, 0, stream, fault);
    return true;
}

static bool empty_grid(bool fault)
{
    LAUNCH(nothing_kernel, fault ? 0 : 1, 32, 0, stream, fault);
    return true;
}

static bool shared_not_allowed(bool fault)
{
    if (!fault)
        CUDA_REQUIRE(
            cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
    LAUNCH(nothing_kernel, 1, 32, 100000, stream, fault);
    return true;
}

static bool shared_beyond_device(bool fault)
{
    int bytes = (227 << 10) + (fault ? 16 : 0);
    CUDA_REQUIRE(cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    LAUNCH(nothing_kernel, 1, 32, (size_t)bytes, stream, fault);
    return true;
}

static bool host_memory_copied_as_device(bool fault)
{
    float host[2] = {1, 2}, *in = numbers(2);
    CUDA_REQUIRE(cudaMemcpyAsync(fault ? host : in, host, sizeof host, cudaMemcpyHostToDevice, stream));
    CUDA_REQUIRE(cudaFree(in));
    return true;
}

/* -- all of them ---------------------------------------------------------------------------------------- */

#define FAULT(name, sanitizer)                                                                               \
    {                                                                                                        \
#name, name, sanitizer                                                                               \
    }
static const struct {
    const char *name;
    bool (*run)(bool fault);
    bool sanitizer; /* only a sanitizer is sure to find it */
} faults[] = {
    FAULT(read_beyond, false),
    FAULT(write_beyond, false),
    FAULT(shared_beyond, false),
    FAULT(array_beyond, true),
    FAULT(misaligned_vector, true),
    FAULT(unwritten_shared, false),
    FAULT(unwritten_memory, false),
    FAULT(used_after_free, true),
    FAULT(order_of_blocks, false),
    FAULT(missing_barrier, false),
    FAULT(missing_second_barrier, false),
    FAULT(missing_barrier_behind_shuffles, false),
    FAULT(missing_warp_barrier, false),
    FAULT(divergent_barrier, false),
    FAULT(barrier_in_two_branches, false),
    FAULT(return_before_barrier, false),
    FAULT(deadlock, false),
    FAULT(taken_before_given, false),
    FAULT(arrival_before_gift, false),
    FAULT(arrival_before_taking, false),
    FAULT(given_before_taken, false),
    FAULT(missing_arrival, false),
    FAULT(barrier_of_other_count, false),
    FAULT(barrier_of_half_a_warp, false),
    FAULT(wrong_lane, false),
    FAULT(lane_outside_mask, false),
    FAULT(divergent_shuffle, false),
    FAULT(two_kinds, false),
    FAULT(missing_wait, false),
    FAULT(wait_for_fewer, false),
    FAULT(missing_barrier_after_wait, false),
    FAULT(copy_too_early, false),
    FAULT(misaligned_copy, false),
    FAULT(misaligned_rows, false),
    FAULT(wrong_fragment, false),
    FAULT(rows_in_global_memory, false),
    FAULT(too_many_threads, false),
    FAULT(empty_grid, false),
    FAULT(shared_not_allowed, false),
    FAULT(shared_beyond_device, false),
    FAULT(host_memory_copied_as_device, false),
};
enum { FAULTS = sizeof faults / sizeof faults[0] };

static int run_one(const char *name)
{
    for (const auto &fault : faults)
        if (strcmp(fault.name, name) == 0) return fault.run(true) ? 0 : WRONG;
    return 2;
}

/* Runs the fault as a child; how it was found, or NULL. text: the line that says so. */
static const char *found(const char *program, const char *name, char *text, size_t size)
{
    char command[1024], line[1024];
    const char *how = NULL;
    text[0] = 0;
    snprintf(command, sizeof command, "'%s' %s 2>&1", program, name);
    FILE *child = popen(command, "r");
    REQUIRE(child, "%s cannot be run", program);
    while (fgets(line, sizeof line, child)) {
        const char *said = strstr(line, "CUDA on the CPU: "),
                   *report = strstr(line, "ERROR: AddressSanitizer: ");
        const char *undefined = strstr(line, "runtime error: "), *call = strstr(line, "(cudaError");
        if (how || !(said || report || undefined || call)) continue;
        how = report || undefined ? "sanitizer" : "refused";
        snprintf(text, size, "%.*s",
                 (int)strcspn(said        ? said + 17
                              : report    ? report + 7
                              : undefined ? undefined
                                          : line,
                              "\n"),
                 said        ? said + 17
                 : report    ? report + 7
                 : undefined ? undefined
                             : line);
    }
    int status = pclose(child);
    if (how) return status ? how : NULL;
    return status == WRONG << 8 ? "wrong result" : NULL;
}

int main(int count, char **words)
{
    if (count > 1) return run_one(words[1]);
    for (const auto &fault : faults) {
        bool right = fault.run(false);
        if (!right) fprintf(stderr, "%s: the kernel is wrong without its fault\n", fault.name);
        CHECK(right);
    }
    for (const auto &fault : faults) {
        char text[400];
        const char *how = found(words[0], fault.name, text, sizeof text);
        printf("%-32s %-13s %s\n", fault.name, how ? how : "NOT FOUND", text);
        fflush(stdout);
        if (fault.sanitizer && !sanitized) continue;
        CHECK(how != NULL);
    }
    printf("%d faults%s\n", FAULTS, sanitized ? "" : "; without sanitizers some need not be found");
    return check_result();
}
