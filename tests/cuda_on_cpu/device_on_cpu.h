/* What CUDA C++ gives to a kernel, on the CPU. Part of cuda_runtime.h. */
#ifndef WPO_CUDA_ON_CPU_DEVICE_ON_CPU_H
#define WPO_CUDA_ON_CPU_DEVICE_ON_CPU_H

#include <math.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
/* The tag becomes part of the symbol's name, by which shared_on_cpu.cpp finds these variables; `used` keeps
 * the compiler from reasoning about what they hold. */
#define __shared__ static __attribute__((used, abi_tag("cuda_shared")))

/* -- vector types ----------------------------------------------------------------------------- */

struct uint3 {
    unsigned x, y, z;
};
struct int3 {
    int x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(struct uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define CUDA_ON_CPU_VECTORS(type, name, align)                                                               \
    struct alignas(2 * sizeof(type)) name##2                                                                 \
    {                                                                                                        \
        type x, y;                                                                                           \
    };                                                                                                       \
    struct alignas(align) name##4                                                                            \
    {                                                                                                        \
        type x, y, z, w;                                                                                     \
    };                                                                                                       \
    static inline struct name##2 make_##name##2(type x, type y)                                              \
    {                                                                                                        \
        return {x, y};                                                                                       \
    }                                                                                                        \
    static inline struct name##4 make_##name##4(type x, type y, type z, type w)                              \
    {                                                                                                        \
        return {x, y, z, w};                                                                                 \
    }
CUDA_ON_CPU_VECTORS(float, float, 16)
CUDA_ON_CPU_VECTORS(double, double, 16)
CUDA_ON_CPU_VECTORS(int, int, 16)
CUDA_ON_CPU_VECTORS(unsigned, uint, 16)
CUDA_ON_CPU_VECTORS(short, short, 8)
CUDA_ON_CPU_VECTORS(unsigned short, ushort, 8)
CUDA_ON_CPU_VECTORS(signed char, char, 4)
CUDA_ON_CPU_VECTORS(unsigned char, uchar, 4)
CUDA_ON_CPU_VECTORS(long long, longlong, 16)
CUDA_ON_CPU_VECTORS(unsigned long long, ulonglong, 16)
#undef CUDA_ON_CPU_VECTORS

/* -- the thread that runs --------------------------------------------------------------------- */

struct cuda_on_cpu_thread {
    struct uint3 index;
    unsigned number, lane, warp;
};
extern struct cuda_on_cpu_thread *cuda_on_cpu_here;
extern struct uint3 blockIdx;
extern struct dim3 blockDim, gridDim;
#define threadIdx (cuda_on_cpu_here->index)
enum { warpSize = 32 };

void cuda_on_cpu_run(const char *kernel, const void *function, struct dim3 grid, struct dim3 block,
                     size_t shared_bytes, cudaStream_t stream, void (*body)(void *), void *argument);
unsigned char *cuda_on_cpu_shared();

template <class BODY>
void cuda_on_cpu_launch(const char *kernel, const void *function, struct dim3 grid, struct dim3 block,
                        size_t shared_bytes, cudaStream_t stream, BODY body)
{
    cuda_on_cpu_run(
        kernel, function, grid, block, shared_bytes, stream, [](void *b) { (*(BODY *)b)(); }, &body);
}

/* Ends the process: kernel, block and thread, then the reason. */
[[noreturn]] void cuda_on_cpu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* -- barriers and collectives ----------------------------------------------------------------- */

/* Where a call stands in the source: default arguments are evaluated at the call. */
#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* What the lanes of a mask do together. The last to arrive calls run() with all their arguments. */
struct cuda_on_cpu_operation {
    const char *name;
    void (*run)(void **arguments, uint32_t mask);
};
void cuda_on_cpu_together(const struct cuda_on_cpu_operation *operation, uint32_t mask, void *argument,
                          const char *file, int line);

struct cuda_on_cpu_votes {
    int count, threads;
};
struct cuda_on_cpu_votes cuda_on_cpu_barrier(int vote, const char *name, const char *file, int line);

static inline void __syncthreads(CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_barrier(0, "__syncthreads", file, line);
}

static inline int __syncthreads_count(int vote, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_barrier(vote != 0, "__syncthreads_count", file, line).count;
}

static inline int __syncthreads_or(int vote, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_barrier(vote != 0, "__syncthreads_or", file, line).count > 0;
}

static inline int __syncthreads_and(int vote, CUDA_ON_CPU_PLACE)
{
    struct cuda_on_cpu_votes votes = cuda_on_cpu_barrier(vote != 0, "__syncthreads_and", file, line);
    return votes.count == votes.threads;
}

static inline void cuda_on_cpu_nothing(void **, uint32_t) {}
inline const struct cuda_on_cpu_operation cuda_on_cpu_syncwarp = {"__syncwarp", cuda_on_cpu_nothing};

static inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_together(&cuda_on_cpu_syncwarp, mask, NULL, file, line);
}

/* value goes in, result comes out; source: the lane whose value it is. */
struct cuda_on_cpu_shuffle {
    uint64_t value, result;
    int source;
};
void cuda_on_cpu_run_shuffle(void **arguments, uint32_t mask);
inline const struct cuda_on_cpu_operation cuda_on_cpu_shuffles[] = {
    {"__shfl_sync", cuda_on_cpu_run_shuffle},
    {"__shfl_up_sync", cuda_on_cpu_run_shuffle},
    {"__shfl_down_sync", cuda_on_cpu_run_shuffle},
    {"__shfl_xor_sync", cuda_on_cpu_run_shuffle},
};

template <class T>
static inline T cuda_on_cpu_exchange(int kind, unsigned mask, T value, int source, const char *file, int line)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    struct cuda_on_cpu_shuffle s;
    s.value = s.result = 0;
    memcpy(&s.value, &value, sizeof value);
    s.source = source;
    cuda_on_cpu_together(&cuda_on_cpu_shuffles[kind], mask, &s, file, line);
    memcpy(&value, &s.result, sizeof value);
    return value;
}

void cuda_on_cpu_require_width(int width);

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_width(width);
    int lane = (int)cuda_on_cpu_here->lane;
    return cuda_on_cpu_exchange(0, mask, value, (lane & -width) | (source & (width - 1)), file, line);
}

template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_width(width);
    int lane = (int)cuda_on_cpu_here->lane, source = lane - (int)(delta & 31);
    return cuda_on_cpu_exchange(1, mask, value, source < (lane & -width) ? lane : source, file, line);
}

template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_width(width);
    int lane = (int)cuda_on_cpu_here->lane, source = lane + (int)(delta & 31);
    return cuda_on_cpu_exchange(2, mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_width(width);
    int lane = (int)cuda_on_cpu_here->lane, source = lane ^ (bits & 31);
    return cuda_on_cpu_exchange(3, mask, value, source > (lane | (width - 1)) ? lane : source, file, line);
}

/* In: value. Out: the lanes where it is not 0, or those where it equals the lane's own. */
struct cuda_on_cpu_vote {
    uint64_t value;
    uint32_t lanes;
};
void cuda_on_cpu_run_ballot(void **arguments, uint32_t mask);
void cuda_on_cpu_run_match(void **arguments, uint32_t mask);
inline const struct cuda_on_cpu_operation cuda_on_cpu_ballots[] = {
    {"__ballot_sync", cuda_on_cpu_run_ballot},
    {"__any_sync", cuda_on_cpu_run_ballot},
    {"__all_sync", cuda_on_cpu_run_ballot},
    {"__match_any_sync", cuda_on_cpu_run_match},
};

static inline uint32_t cuda_on_cpu_voted(int kind, unsigned mask, uint64_t value, const char *file, int line)
{
    struct cuda_on_cpu_vote v = {value, 0};
    cuda_on_cpu_together(&cuda_on_cpu_ballots[kind], mask, &v, file, line);
    return v.lanes;
}

static inline unsigned __ballot_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_voted(0, mask, vote != 0, file, line);
}

static inline int __any_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_voted(1, mask, vote != 0, file, line) != 0;
}

static inline int __all_sync(unsigned mask, int vote, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_voted(2, mask, vote != 0, file, line) == mask;
}

template <class T> static inline unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_PLACE)
{
    uint64_t bits = 0;
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "matches are of 4 or 8 bytes");
    memcpy(&bits, &value, sizeof value);
    return cuda_on_cpu_voted(3, mask, bits, file, line);
}

/* Every lane of its own that has not returned could be active; the one that runs certainly is. */
static inline unsigned __activemask()
{
    return 1u << cuda_on_cpu_here->lane;
}

struct cuda_on_cpu_reduction {
    uint32_t value, result;
};
void cuda_on_cpu_run_add(void **arguments, uint32_t mask);
void cuda_on_cpu_run_min(void **arguments, uint32_t mask);
void cuda_on_cpu_run_max(void **arguments, uint32_t mask);
void cuda_on_cpu_run_min_signed(void **arguments, uint32_t mask);
void cuda_on_cpu_run_max_signed(void **arguments, uint32_t mask);
inline const struct cuda_on_cpu_operation cuda_on_cpu_reductions[] = {
    {"__reduce_add_sync", cuda_on_cpu_run_add},        {"__reduce_min_sync", cuda_on_cpu_run_min},
    {"__reduce_max_sync", cuda_on_cpu_run_max},        {"__reduce_min_sync", cuda_on_cpu_run_min_signed},
    {"__reduce_max_sync", cuda_on_cpu_run_max_signed},
};

static inline uint32_t cuda_on_cpu_reduce(int kind, unsigned mask, uint32_t value, const char *file, int line)
{
    struct cuda_on_cpu_reduction r = {value, 0};
    cuda_on_cpu_together(&cuda_on_cpu_reductions[kind], mask, &r, file, line);
    return r.result;
}

static inline unsigned __reduce_add_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_reduce(0, mask, value, file, line);
}

static inline int __reduce_add_sync(unsigned mask, int value, CUDA_ON_CPU_PLACE)
{
    return (int)cuda_on_cpu_reduce(0, mask, (uint32_t)value, file, line);
}

static inline unsigned __reduce_min_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_reduce(1, mask, value, file, line);
}

static inline unsigned __reduce_max_sync(unsigned mask, unsigned value, CUDA_ON_CPU_PLACE)
{
    return cuda_on_cpu_reduce(2, mask, value, file, line);
}

static inline int __reduce_min_sync(unsigned mask, int value, CUDA_ON_CPU_PLACE)
{
    return (int)cuda_on_cpu_reduce(3, mask, (uint32_t)value, file, line);
}

static inline int __reduce_max_sync(unsigned mask, int value, CUDA_ON_CPU_PLACE)
{
    return (int)cuda_on_cpu_reduce(4, mask, (uint32_t)value, file, line);
}

/* One thread runs at a time: memory is always in order here. */
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) {}

#include "math_on_cpu.h"

/* -- what the toolkit adds for C++ ------------------------------------------------------------ */

template <class T> static inline cudaError_t cudaMalloc(T **memory, size_t bytes)
{
    return cudaMalloc((void **)memory, bytes);
}

template <class T> static inline cudaError_t cudaMallocHost(T **memory, size_t bytes, unsigned flags = 0)
{
    return cudaHostAlloc((void **)memory, bytes, flags);
}

template <class T> static inline cudaError_t cudaHostAlloc(T **memory, size_t bytes, unsigned flags)
{
    return cudaHostAlloc((void **)memory, bytes, flags);
}

cudaError_t cuda_on_cpu_allow(const void *function, enum cudaFuncAttribute attribute, int value);
cudaError_t cuda_on_cpu_attributes(struct cudaFuncAttributes *attributes, const void *function);
cudaError_t cuda_on_cpu_occupancy(int *blocks, int threads, size_t shared_bytes);

template <class T>
static inline cudaError_t cudaFuncSetAttribute(T *function, enum cudaFuncAttribute attribute, int value)
{
    return cuda_on_cpu_allow((const void *)function, attribute, value);
}

template <class T>
static inline cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, T *function)
{
    return cuda_on_cpu_attributes(attributes, (const void *)function);
}

template <class T>
static inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T, int threads,
                                                                        size_t shared_bytes)
{
    return cuda_on_cpu_occupancy(blocks, threads, shared_bytes);
}

#endif
