/* What the row-wise kernels share: loads and stores through f32 registers, and how threads are laid over a
 * matrix. */
#ifndef WPO_KERNELS_CUDA_ELEMENTS_CUH
#define WPO_KERNELS_CUDA_ELEMENTS_CUH

#include "kernels/cuda/ptx.cuh"

template <class T, int COUNT>
__device__ inline void widen_all(float (&to)[COUNT], const vector<T, COUNT> &packed)
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        to[i] = widen(packed.at[i]);
}

/* COUNT elements in one load. from is aligned to COUNT elements or 16 bytes, whichever is less. */
template <int COUNT, class T> __device__ inline vector<T, COUNT> load_packed(const T *from)
{
    return *(const vector<T, COUNT> *)from;
}

template <class T, int COUNT> __device__ inline void load_elements(float (&to)[COUNT], const T *from)
{
    widen_all(to, load_packed<COUNT>(from));
}

/* Rounds floats as narrow() does, two at a time where there are two. */
template <class T, int COUNT> __device__ inline vector<T, COUNT> narrow_all(const float (&from)[COUNT])
{
    vector<T, COUNT> packed;
    if constexpr (sizeof(T) == 2 && COUNT % 2 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT; i += 2) {
            uint32_t two = pack_bfloat(from[i], from[i + 1]);
            packed.at[i].bits = (uint16_t)two;
            packed.at[i + 1].bits = (uint16_t)(two >> 16);
        }
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            packed.at[i] = narrow<T>(from[i]);
    }
    return packed;
}

template <class T, int COUNT> __device__ inline void store_elements(T *to, const float (&from)[COUNT])
{
    *(vector<T, COUNT> *)to = narrow_all<T, COUNT>(from);
}

template <class T> __device__ inline T *row_of(struct tensor t, int64_t row)
{
    return (T *)t.data + row * t.stride;
}

static inline bool aligned16(const void *data)
{
    return (uintptr_t)data % 16 == 0;
}

/* Runs the statement with E = COUNT elements at a time where whole, else with E = 1. */
#define WITH_WIDTH(whole, COUNT, E, ...)                                                                     \
    do {                                                                                                     \
        if (whole) {                                                                                         \
            constexpr int E = (COUNT);                                                                       \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            constexpr int E = 1;                                                                             \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

/* A block of PLANE_THREADS covers 2^shift neighbouring items of a row and PLANE_THREADS / 2^shift rows at
 * once; blockIdx.y counts along the row, blockIdx.x along the rows. */
enum { PLANE_THREADS = 256 };

struct plane {
    dim3 grid;
    int shift;
};

/* Every thread takes `rows_each` rows. items >= 1, rows >= 1. */
static inline struct plane plane_over(int64_t rows, int64_t items, int rows_each)
{
    struct plane plane;
    plane.shift = 0;
    while ((1 << plane.shift) < PLANE_THREADS && (1 << plane.shift) < items)
        plane.shift++;
    int64_t lines = (int64_t)(PLANE_THREADS >> plane.shift) * rows_each;
    int64_t down = divide_up(rows, lines), along = divide_up(items, (int64_t)1 << plane.shift);
    REQUIRE(down <= INT32_MAX && along <= 65535,
            "a matrix of %lld rows of %lld items is too large for one launch", (long long)rows,
            (long long)items);
    plane.grid = dim3((unsigned)down, (unsigned)along, 1);
    return plane;
}

__device__ static inline int64_t plane_item(int shift)
{
    return ((int64_t)blockIdx.y << shift) + (threadIdx.x & ((1u << shift) - 1));
}

/* The first of the thread's rows; the next ones are plane_lines() further on each. */
__device__ static inline int64_t plane_row(int shift, int rows_each)
{
    return (int64_t)blockIdx.x * (PLANE_THREADS >> shift) * rows_each + (threadIdx.x >> shift);
}

__device__ static inline int plane_lines(int shift)
{
    return PLANE_THREADS >> shift;
}

/* Ends the kernel, and the program at the next check: an index that cannot be, in a kernel that cannot speak.
 */
__device__ static inline void refuse()
{
#ifdef CUDA_ON_CPU
    DIE("a kernel was given an index out of range");
#else
    __trap();
#endif
}

#endif
