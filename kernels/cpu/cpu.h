/* What the files of the CPU backend share: the device, scratch memory, vector loops and the exponential. */
#ifndef WPO_KERNELS_CPU_CPU_H
#define WPO_KERNELS_CPU_CPU_H

#include "kernels/ops.h"
#include "kernels/require.h"

#include <string.h>

/* Inner loops are compiled for AVX-512, for AVX2 and for any x86-64, and the processor chooses when the
 * program is loaded. OpenMP regions are not cloned with their function: keep `parallel` outside, HOT
 * functions inside. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define HOT __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define HOT
#endif

struct scratch {
    void *memory;
    size_t bytes;
};

struct device {
    int threads;
    char name[96];             /* for people */
    struct scratch shared;     /* of the calling thread, for results that all threads write */
    struct scratch *by_thread; /* [threads] */
};

/* At least `bytes`, 64-byte aligned, not cleared. Grows once and stays; the contents are lost when it grows.
 */
void *scratch_get(struct scratch *scratch, size_t bytes);

/* c = alpha op(a) op(b) + beta c on the calling thread alone; strides in elements. Must be called inside a
 * parallel region. Results do not depend on how the rows and columns of a larger product are cut into tiles.
 */
void gemm_tile(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float *a, int64_t a_stride, const float *b, int64_t b_stride, float beta, float *c,
               int64_t c_stride);

/* Row r of a float matrix. */
static inline float *row_of(struct tensor t, int64_t r)
{
    return (float *)t.data + r * t.stride;
}

static inline void require_float(struct tensor t, const char *name)
{
    REQUIRE(t.type == DTYPE_FLOAT && t.data && t.rows >= 0 && t.cols >= 0 && t.stride >= t.cols,
            "the CPU backend computes in f32, and %s is not a matrix of it", name);
}

static inline void require_shape(struct tensor t, int64_t rows, int64_t cols, const char *name)
{
    require_float(t, name);
    REQUIRE(t.rows == rows && t.cols == cols, "%s is [%lld,%lld], not [%lld,%lld]", name, (long long)t.rows,
            (long long)t.cols, (long long)rows, (long long)cols);
}

/* e^x to 2 units in the last place for x <= 88, 0 below -87; written so that compilers vectorise it: x = n ln
 * 2 + r, |r| <= ln2/2, e^r by a polynomial, 2^n by building the exponent. NaN stays NaN. */
static inline float exp_fast(float x)
{
    float y = x > -87.0f ? x : -87.0f;
    y = y < 88.0f ? y : 88.0f;
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits */
    float t = y * 1.44269504088896341f + shift;
    int32_t bits;
    memcpy(&bits, &t, sizeof bits);
    float n = t - shift;
    float r =
        y -
        n * 0.693145751953125f; /* ln 2 in two parts, the first with few bits so that n times it is exact */
    r = r - n * 1.42860682030942e-06f;
    float p = 1.0f / 5040; /* the series to r^7: the rest is below r^8/8! < 6e-9 */
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    uint32_t scale_bits = ((uint32_t)bits << 23) + 0x3f800000u;
    float scale;
    memcpy(&scale, &scale_bits, sizeof scale);
    float result = p * scale;
    result = x > -87.0f ? result : 0.0f;
    return x == x ? result : x;
}

/* The table's functions, by file. */
void cpu_zero(struct device *device, void *memory, size_t bytes);
void cpu_matmul(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                bool transpose_b, bool accumulate);
void cpu_bias(struct device *device, struct tensor y, const void *bias);
void cpu_bias_grad(struct device *device, struct tensor dbias, struct tensor dy);
void cpu_gather_rows(struct device *device, struct tensor y, struct tensor x, const int64_t *index);
void cpu_scatter_rows(struct device *device, struct tensor dx, struct tensor dy, const int64_t *index);
void cpu_rmsnorm(struct device *device, struct tensor y, struct tensor sum, struct tensor x, struct tensor r,
                 const void *weight, float epsilon);
void cpu_rmsnorm_grad(struct device *device, struct tensor dx, struct tensor dweight, struct tensor dy,
                      struct tensor x, const void *weight, float epsilon);
void cpu_rope(struct device *device, struct tensor x, int64_t heads, const int64_t *position,
              const float *table, bool inverse);
void cpu_attention(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                   struct packing packing, struct attention_shape shape);
void cpu_attention_grad(struct device *device, struct tensor dqkv, struct tensor dout, struct tensor o,
                        const float *lse, struct tensor qkv, struct packing packing,
                        struct attention_shape shape, void *workspace);
size_t cpu_attention_workspace(struct device *device, int64_t tokens, struct attention_shape shape);
void cpu_swiglu(struct device *device, struct tensor y, struct tensor gate_up);
void cpu_swiglu_grad(struct device *device, struct tensor dgate_up, struct tensor dy, struct tensor gate_up);
void cpu_head_statistics(struct device *device, float *statistics, struct tensor logits,
                         const int64_t *target);
void cpu_head_gradient(struct device *device, struct tensor dlogits, struct tensor logits,
                       const float *statistics, const int64_t *target, const float *coefficient);
void cpu_head_sums(struct device *device, struct completion_sums *sums, const float *statistics,
                   const int64_t *first, const int64_t *shared, int64_t completions);
void cpu_objective(struct device *device, struct group_result *results, float *coefficient,
                   const struct completion_sums *sums, const struct completion_data *data,
                   struct objective_groups groups, const struct objective *objective,
                   const struct batch_facts *facts);
void cpu_sum_squares(struct device *device, double *result, struct tensor x);
void cpu_norm(struct device *device, double *norm, const double *squares, int64_t count);
void cpu_adamw(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
               const struct adamw *settings, const double *norm);
void cpu_checksum(struct device *device, uint64_t *result, struct tensor x);
void cpu_sum_rows(struct device *device, struct tensor y, struct tensor x);

#endif
