/* What the files of the CUDA backend share: the device, launches, types, vector loads, reductions in a block.
 *
 * The same sources are compiled twice: by nvcc, and as C++ against tests/cuda_on_cpu/, whose cuda_runtime.h stands
 * before the toolkit's on the include path and runs the kernels on the CPU. So a kernel uses plain CUDA C++, launches
 * through LAUNCH, takes dynamic shared memory through SHARED_DYNAMIC, and leaves PTX to kernels/cuda/ptx.cuh. */
#ifndef WPO_KERNELS_CUDA_CUDA_CUH
#define WPO_KERNELS_CUDA_CUDA_CUH

#include "kernels/bfloat.h"
#include "kernels/ops.h"
#include "kernels/require.h"

#include <cuda_runtime.h>

/* -- device ----------------------------------------------------------------------------------- */

enum { SCRATCH_BYTES = 64 << 20, WORKSPACE_BYTES = 64 << 20, STAGING_BYTES = 8 << 20 };

struct gemm; /* handle and algorithms of the matrix products, gemm.cu */

struct device {
    int index, multiprocessors, capability; /* capability: 90 for sm_90 */
    size_t shared_limit;                    /* dynamic shared memory that a block may ask for */
    cudaStream_t streams[QUEUES];
    cudaEvent_t events[QUEUES];
    cudaStream_t stream; /* where ops are queued now */
    /* Partial results of one op, SCRATCH_BYTES; its next user may be queued at once, on the same stream. Ops reach it
     * through scratch_of(). */
    void *scratch;
    struct gemm *gemm;
    struct staging *staging; /* pinned memory through which uploads pass, device.cu */
    char name[160];
};

static inline void *scratch_of(struct device *device)
{
    REQUIRE(device->stream == device->streams[QUEUE_COMPUTE],
            "ops that need scratch memory run on the compute queue alone: there is one scratch memory");
    return device->scratch;
}

/* Ends all ranks with what was done and CUDA's reason when a call fails. */
#define CUDA_REQUIRE(call)                                                                                   \
    do {                                                                                                     \
        cudaError_t cuda_error = (call);                                                                     \
        if (cuda_error != cudaSuccess)                                                                       \
            fatal(__FILE__, __LINE__, "%s: %s (%s)", #call, cudaGetErrorString(cuda_error),                  \
                  cudaGetErrorName(cuda_error));                                                             \
    } while (0)

/* LAUNCH((kernel<T, 128>), grid, block, shared bytes, stream, arguments...) */
#ifdef CUDA_ON_CPU
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                               \
    cuda_on_cpu_launch(#kernel, (const void *)(kernel), grid, block, shared_bytes, stream,                   \
                       [=] { kernel(__VA_ARGS__); })
#define SHARED_DYNAMIC(name) unsigned char *name = cuda_on_cpu_shared()
#else
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                               \
    do {                                                                                                     \
        kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                                  \
        CUDA_REQUIRE(cudaGetLastError());                                                                    \
    } while (0)
#define SHARED_DYNAMIC(name) extern __shared__ __align__(128) unsigned char name[]
#endif

/* -- types ------------------------------------------------------------------------------------ */

/* Runs the statement with T = float or struct bfloat. */
#define WITH_TYPE(dtype_value, T, ...)                                                                       \
    do {                                                                                                     \
        if ((dtype_value) == DTYPE_FLOAT) {                                                                  \
            using T = float;                                                                                 \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            REQUIRE((dtype_value) == DTYPE_BFLOAT, "the CUDA backend computes in f32 and bf16");             \
            using T = struct bfloat;                                                                         \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

__device__ static inline float widen(float x)
{
    return x;
}

__device__ static inline float widen(struct bfloat x)
{
    return bfloat_widen(x);
}

template <class T> __device__ inline T narrow(float x);

template <> __device__ inline float narrow<float>(float x)
{
    return x;
}

template <> __device__ inline struct bfloat narrow<struct bfloat>(float x)
{
    return bfloat_round(x);
}

/* COUNT elements that are loaded and stored as one; aligned to their size, at most to 16 bytes. VECTOR of them make 16
 * bytes. */
template <class T, int COUNT> struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) vector {
    T at[COUNT];
};
template <class T> constexpr int VECTOR = (int)(16 / sizeof(T));
template <class T> using vector16 = vector<T, VECTOR<T>>;

/* Whether rows of this view may be read 16 bytes at a time. */
static inline bool aligned16(struct tensor t)
{
    return (uintptr_t)t.data % 16 == 0 && (size_t)t.stride * dtype_bytes(t.type) % 16 == 0;
}

template <class T> static inline T *data_of(struct tensor t)
{
    return (T *)t.data;
}

static inline void require_matrix(struct tensor t, const char *name)
{
    REQUIRE((t.type == DTYPE_FLOAT || t.type == DTYPE_BFLOAT) && t.data && t.rows >= 0 && t.cols >= 0 &&
                t.stride >= t.cols,
            "%s is not a matrix of f32 or bf16", name);
}

static inline void require_shape(struct tensor t, int64_t rows, int64_t cols, const char *name)
{
    require_matrix(t, name);
    REQUIRE(t.rows == rows && t.cols == cols, "%s is [%lld,%lld], not [%lld,%lld]", name, (long long)t.rows,
            (long long)t.cols, (long long)rows, (long long)cols);
}

/* -- reductions ------------------------------------------------------------------------------- */

static inline int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* The sum over the warp's lanes, on all lanes, in the order of a butterfly: the same bits on all. */
__device__ static inline float warp_sum(float x)
{
    for (int offset = 16; offset > 0; offset /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ static inline float warp_maximum(float x)
{
    for (int offset = 16; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

/* The sum over the block, on all its threads, in fixed order. parts: 32 floats of shared memory that the caller does not
 * touch between two calls; every thread of the block takes part; blockDim.x is a multiple of 32 and y = z = 1. */
__device__ static inline float block_sum(float x, float *parts)
{
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++)
        x += parts[i];
    return x;
}

/* -- the table's functions, by file ------------------------------------------------------------ */

/* The sum over partial rows, in an order that parts alone decides: out[c] (+)= sum_p partial[p * cols + c]. out f32 or
 * bf16, [1, cols]; partial f32 in scratch. rows.cu */
void cuda_add_partials(struct device *device, struct tensor out, const float *partial, int64_t parts,
                       bool accumulate);

/* gemm.cu (its counterpart in tests/cuda_on_cpu/ has plain loops) */
struct gemm *gemm_open(struct device *device, const char **why);
void gemm_close(struct gemm *gemm);
void cuda_matmul(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                 bool transpose_b, bool accumulate);

/* rows.cu */
void cuda_bias(struct device *device, struct tensor y, const void *bias);
void cuda_bias_grad(struct device *device, struct tensor dbias, struct tensor dy);
void cuda_gather_rows(struct device *device, struct tensor y, struct tensor x, const int64_t *index);
void cuda_scatter_rows(struct device *device, struct tensor dx, struct tensor dy, const int64_t *index);
void cuda_sum_rows(struct device *device, struct tensor y, struct tensor x);

/* rmsnorm.cu, rope.cu, swiglu.cu */
void cuda_rmsnorm(struct device *device, struct tensor y, struct tensor sum, struct tensor x, struct tensor r,
                  const void *weight, float epsilon);
void cuda_rmsnorm_grad(struct device *device, struct tensor dx, struct tensor dweight, struct tensor dy,
                       struct tensor x, const void *weight, float epsilon);
void cuda_rope(struct device *device, struct tensor x, int64_t heads, const int64_t *position,
               const float *table, bool inverse);
void cuda_swiglu(struct device *device, struct tensor y, struct tensor gate_up);
void cuda_swiglu_grad(struct device *device, struct tensor dgate_up, struct tensor dy, struct tensor gate_up);

/* attention.cu, attention_grad.cu (bf16, tensor cores), attention_float.cu (f32) */
void cuda_attention(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                    struct packing packing, struct attention_shape shape);
void cuda_attention_grad(struct device *device, struct tensor dqkv, struct tensor dout, struct tensor o,
                         const float *lse, struct tensor qkv, struct packing packing,
                         struct attention_shape shape, void *workspace);
size_t cuda_attention_workspace(struct device *device, int64_t tokens, struct attention_shape shape);
/* The largest head size whose kernels, backward included, find room in the device's shared memory. */
int64_t cuda_head_fits(struct device *device, enum dtype type);
void cuda_attention_float(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                          struct packing packing, struct attention_shape shape);
void cuda_attention_grad_float(struct device *device, struct tensor dqkv, struct tensor dout, const float *delta,
                               const float *lse, struct tensor qkv, struct packing packing,
                               struct attention_shape shape);

/* head.cu */
void cuda_head_statistics(struct device *device, float *statistics, struct tensor logits,
                          const int64_t *target);
void cuda_head_gradient(struct device *device, struct tensor dlogits, struct tensor logits,
                        const float *statistics, const int64_t *target, const float *coefficient);
void cuda_head_sums(struct device *device, struct completion_sums *sums, const float *statistics,
                    const int64_t *first, const int64_t *shared, int64_t completions);
void cuda_objective(struct device *device, struct group_result *results, float *coefficient,
                    const struct completion_sums *sums, const struct completion_data *data,
                    struct objective_groups groups, const struct objective *objective,
                    const struct batch_facts *facts);

/* optimiser.cu */
void cuda_checksum(struct device *device, uint64_t *result, struct tensor x);
void cuda_sum_squares(struct device *device, double *result, struct tensor x);
void cuda_norm(struct device *device, double *norm, const double *squares, int64_t count);
void cuda_adamw(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
                const struct adamw *settings, const double *norm);

#endif
