/* The instructions that CUDA C++ has no words for, a few lines each. In the emulation their bodies come from
 * tests/cuda_on_cpu/ and honour the same layout of fragments over the lanes of a warp (PTX ISA, "Matrix Fragments for
 * mma.m16n8k16"). All lanes of a warp take part in ldmatrix and mma. */
#ifndef WPO_KERNELS_CUDA_PTX_CUH
#define WPO_KERNELS_CUDA_PTX_CUH

#include "kernels/cuda/cuda.cuh"

#ifdef CUDA_ON_CPU
#include <ptx_on_cpu.h>
#else

/* d += a b: a 16x16 bf16 (4 registers of 2), b 16x8 bf16 (2 registers of 2), d 16x8 f32.
 * With group = lane / 4 and pair = lane % 4:
 *   a[0] (row group, cols 2 pair, +1)  a[1] (row group + 8, same)  a[2] (row group, cols 2 pair + 8, +9)  a[3] (both + 8)
 *   b[0] (rows 2 pair, +1; col group)  b[1] (rows 2 pair + 8, +9; col group)
 *   d[0], d[1] (row group; cols 2 pair, +1)  d[2], d[3] (row group + 8) */
__device__ static inline void mma_bfloat(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of 16-bit elements from shared memory: lanes 8i..8i+7 give the addresses of the rows (16 bytes,
 * 16-byte aligned) of matrix i; lane l receives in r[i] elements (row l / 4, cols 2 (l % 4), +1) of matrix i. */
__device__ static inline void load_matrices(uint32_t (&r)[4], const void *shared_row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared_row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* The same with every matrix transposed: lane l receives elements (rows 2 (l % 4), +1; col l / 4). */
__device__ static inline void load_matrices_transposed(uint32_t (&r)[4], const void *shared_row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared_row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes from global to shared memory without passing through registers, zeros where not valid (global is then not
 * read, but must still be an address). Visible to this thread after copy_async_wait, to others after a barrier more. */
__device__ static inline void copy_async(void *shared, const void *global, bool valid)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes)
                 : "memory");
}

/* Closes a group of copies; waits until at most PENDING groups of this thread are still under way. */
__device__ static inline void copy_async_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int PENDING> __device__ static inline void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

/* Two floats, each rounded to the nearest bf16 (ties to even): the first in the low half. */
__device__ static inline uint32_t pack_bfloat(float low, float high)
{
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

/* 2^x, relative error below 2^-22; 0 below -126. */
__device__ static inline float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* A barrier of some warps, id 1 .. 15: who waits goes on when `threads` threads have come, by either call, and sees what
 * they wrote to shared memory before. */
__device__ static inline void barrier_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

__device__ static inline void barrier_wait(int id, int threads)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

#endif
#endif
