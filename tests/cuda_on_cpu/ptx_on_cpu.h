/* The bodies of kernels/cuda/ptx.cuh without a GPU. Every lane checks its own addresses, so that a sentence
 * or a sanitizer's report names the lane at fault; the last lane to arrive does the work of the warp. */
#ifndef WPO_CUDA_ON_CPU_PTX_ON_CPU_H
#define WPO_CUDA_ON_CPU_PTX_ON_CPU_H

#include "kernels/bfloat.h"

#include <cuda_runtime.h>

struct cuda_on_cpu_mma {
    float *d;
    const uint32_t *a, *b;
};
void cuda_on_cpu_run_mma(void **arguments, uint32_t mask);
inline const struct cuda_on_cpu_operation cuda_on_cpu_mma_operation = {"mma_bfloat", cuda_on_cpu_run_mma};

static inline void mma_bfloat(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              CUDA_ON_CPU_PLACE)
{
    struct cuda_on_cpu_mma m = {d, a, b};
    cuda_on_cpu_together(&cuda_on_cpu_mma_operation, 0xffffffffu, &m, file, line);
}

struct cuda_on_cpu_matrices {
    uint32_t *r;
    const void *row;
};
void cuda_on_cpu_run_matrices(void **arguments, uint32_t mask);
void cuda_on_cpu_run_transposed(void **arguments, uint32_t mask);
inline const struct cuda_on_cpu_operation cuda_on_cpu_matrices_operation = {"load_matrices",
                                                                            cuda_on_cpu_run_matrices};
inline const struct cuda_on_cpu_operation cuda_on_cpu_transposed_operation = {"load_matrices_transposed",
                                                                              cuda_on_cpu_run_transposed};
/* 16 bytes of shared memory, or the process ends. */
void cuda_on_cpu_require_shared(const void *address, const char *name, const char *file, int line);

/* Reads the first and the last of 16 bytes, for the sanitizer. */
static inline void cuda_on_cpu_touch(const void *address)
{
    (void)*(const volatile unsigned char *)address;
    (void)*((const volatile unsigned char *)address + 15);
}

static inline void load_matrices(uint32_t (&r)[4], const void *shared_row, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_shared(shared_row, "load_matrices", file, line);
    cuda_on_cpu_touch(shared_row);
    struct cuda_on_cpu_matrices m = {r, shared_row};
    cuda_on_cpu_together(&cuda_on_cpu_matrices_operation, 0xffffffffu, &m, file, line);
}

static inline void load_matrices_transposed(uint32_t (&r)[4], const void *shared_row, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_shared(shared_row, "load_matrices_transposed", file, line);
    cuda_on_cpu_touch(shared_row);
    struct cuda_on_cpu_matrices m = {r, shared_row};
    cuda_on_cpu_together(&cuda_on_cpu_transposed_operation, 0xffffffffu, &m, file, line);
}

void cuda_on_cpu_copy(void *shared, const void *global, bool valid, const char *file, int line);
void cuda_on_cpu_copy_commit();
void cuda_on_cpu_copy_wait(unsigned pending);

static inline void copy_async(void *shared, const void *global, bool valid, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_require_shared(shared, "copy_async", file, line);
    if (valid) cuda_on_cpu_touch(global);
    memset(shared, 0xff, 16); /* what stands there from now on is not to be read */
    cuda_on_cpu_copy(shared, global, valid, file, line);
}

static inline void copy_async_commit()
{
    cuda_on_cpu_copy_commit();
}

template <int PENDING> static inline void copy_async_wait()
{
    static_assert(PENDING >= 0, "a number of groups");
    cuda_on_cpu_copy_wait(PENDING);
}

static inline uint32_t pack_bfloat(float low, float high)
{
    return (uint32_t)bfloat_round(high).bits << 16 | bfloat_round(low).bits;
}

static inline float cuda_on_cpu_flush(float x)
{
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}

static inline float exp2_fast(float x)
{
    return cuda_on_cpu_flush(exp2f(cuda_on_cpu_flush(x)));
}

/* Ends the process where half of a warp comes, where a warp comes again before the barrier has opened, where
 * threads disagree on how many take part, and where the barrier never opens. */
void cuda_on_cpu_named_barrier(int id, int count, bool wait, const char *file, int line);

static inline void barrier_arrive(int id, int threads, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_named_barrier(id, threads, false, file, line);
}

static inline void barrier_wait(int id, int threads, CUDA_ON_CPU_PLACE)
{
    cuda_on_cpu_named_barrier(id, threads, true, file, line);
}

#endif
