/* Matrix products by cuBLASLt, the one library of this backend.
 *
 * The library's matrices stand by columns, so a row-major view is its own transpose there, and c = op(a)
 * op(b) is asked for as c^T = op(b)^T op(a)^T: b goes first, a second, each transposed where the caller
 * transposes it. c is written where it stands; beta = 1 adds to it. Nothing is copied and nothing padded.
 *
 * 2 m n k FLOPs, and at least one reading of a and b and one writing of c. Large bf16 products on an H200 are
 * known to reach about 790 TFLOP/s; expect 90 % of the product that bench_ops measures as its yardstick.
 * Memory bounds those with a side below about 200 (400 where they add).
 *
 * Same bits every time. Which algorithm runs follows from the shape, types, strides and alignment alone (the
 * library's heuristic measures nothing), one stream uses the workspace, and a sum over k that is split over
 * blocks may only be put together from f32 parts in the workspace, by a kernel of its own that adds them in
 * order (COMPUTE_TYPE); the schemes that add within c (INPLACE) or round the parts to c's type (OUTPUT_TYPE)
 * are not allowed. f32 is multiplied as f32: CUBLAS_COMPUTE_32F never lets the library round to TF32.
 *
 * The algorithm of a shape is looked up once and kept with its descriptors; after that a product costs a
 * probe of a table and one call. The table has a fixed size: when shapes vary without end, old ones make way.
 * The bias is an op of its own and not fused: few models have one, and it moves under 1 % of a step's bytes.
 */
#include "kernels/cuda/cuda.cuh"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

enum { PLANS = 1024, PROBES = 8, CANDIDATES = 8 };

/* What the choice of an algorithm depends on. Compared byte by byte, so it has no padding. */
struct gemm_key {
    int64_t m, n, k, a_stride, b_stride, c_stride;
    uint8_t type, c_type, transpose_a, transpose_b, accumulate;
    uint8_t a_align, b_align, c_align; /* bytes, at most 128 */
};
static_assert(sizeof(struct gemm_key) == 56, "the key has padding");

struct gemm_plan {
    struct gemm_key key; /* m = 0: empty */
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    uint64_t used; /* when, for choosing which plan makes way */
};

struct gemm {
    cublasLtHandle_t library;
    void *workspace;
    uint64_t calls;
    struct gemm_plan plans[PLANS];
};

static void lt_require(cublasStatus_t status, const char *what, const struct gemm_key *key)
{
    REQUIRE(
        status == CUBLAS_STATUS_SUCCESS,
        "cuBLASLt: %s failed (%s) for c [%lld,%lld] (%s, stride %lld)%s a%s (%s, stride %lld) b%s (stride "
        "%lld) over %lld terms",
        what, cublasLtGetStatusName(status), (long long)key->m, (long long)key->n,
        key->c_type == DTYPE_FLOAT ? "f32" : "bf16", (long long)key->c_stride, key->accumulate ? " +=" : " =",
        key->transpose_a ? "^T" : "", key->type == DTYPE_FLOAT ? "f32" : "bf16", (long long)key->a_stride,
        key->transpose_b ? "^T" : "", (long long)key->b_stride, (long long)key->k);
}

struct gemm *gemm_open(struct device *device, const char **why)
{
    (void)device;
    struct gemm *gemm = (struct gemm *)calloc(1, sizeof *gemm);
    if (!gemm) {
        *why = "out of memory";
        return NULL;
    }
    if (cublasLtCreate(&gemm->library) != CUBLAS_STATUS_SUCCESS) {
        *why = "cuBLASLt cannot be started; is its version that of the CUDA toolkit wpo was built with?";
        free(gemm);
        return NULL;
    }
    if (cudaMalloc(&gemm->workspace, WORKSPACE_BYTES) != cudaSuccess) {
        (void)cudaGetLastError();
        *why = "no room on the device for the 64 MiB workspace of the matrix products";
        cublasLtDestroy(gemm->library);
        free(gemm);
        return NULL;
    }
    return gemm;
}

void gemm_close(struct gemm *gemm)
{
    if (!gemm) return;
    CUDA_REQUIRE(cudaFree(gemm->workspace));
    cublasLtDestroy(gemm->library);
    free(gemm);
}

/* -- a plan for one shape --------------------------------------------------------------------- */

static uint8_t alignment_of(const void *data)
{
    uintptr_t address = (uintptr_t)data | 128;
    return (uint8_t)(address & (~address + 1));
}

static cudaDataType_t library_type(uint8_t type)
{
    return type == DTYPE_FLOAT ? CUDA_R_32F : CUDA_R_16BF;
}

static void set_preference(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t name,
                           const void *value, size_t bytes, const struct gemm_key *key)
{
    lt_require(cublasLtMatmulPreferenceSetAttribute(preference, name, value, bytes), "a preference", key);
}

/* The library's first operand is our b, its second our a. */
static void choose_algorithm(struct gemm *gemm, struct gemm_plan *plan)
{
    const struct gemm_key *key = &plan->key;
    cublasLtMatmulPreferenceOpaque_t preference;
    size_t workspace = WORKSPACE_BYTES;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* NONE is 0 and always allowed */
    uint32_t first = key->b_align, second = key->a_align, result = key->c_align;
    lt_require(cublasLtMatmulPreferenceInit(&preference), "a preference", key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace, key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes, key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &first, sizeof first, key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &second, sizeof second, key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &result, sizeof result, key);
    set_preference(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &result, sizeof result, key);

    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    int count = 0;
    lt_require(cublasLtMatmulAlgoGetHeuristic(gemm->library, &plan->product, &plan->b, &plan->a, &plan->c,
                                              &plan->c, &preference, CANDIDATES, found, &count),
               "the choice of an algorithm", key);
    for (int i = 0; i < count; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || found[i].workspaceSize > WORKSPACE_BYTES) continue;
        plan->algorithm = found[i].algo;
        return;
    }
    lt_require(CUBLAS_STATUS_NOT_SUPPORTED, "the choice of an algorithm", key);
}

static void make_layout(cublasLtMatrixLayout_t layout, uint8_t type, int64_t rows, int64_t cols,
                        int64_t stride, const struct gemm_key *key)
{
    lt_require(cublasLtMatrixLayoutInit(layout, library_type(type), (uint64_t)cols, (uint64_t)rows, stride),
               "a layout", key);
}

static void make_plan(struct gemm *gemm, struct gemm_plan *plan, const struct gemm_key *key)
{
    plan->key = *key;
    cublasOperation_t first = key->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = key->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    lt_require(cublasLtMatmulDescInit(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a descriptor", key);
    lt_require(
        cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first),
        "a transpose", key);
    lt_require(
        cublasLtMatmulDescSetAttribute(&plan->product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second),
        "a transpose", key);
    int64_t m = key->m, n = key->n, k = key->k;
    make_layout(&plan->a, key->type, key->transpose_a ? k : m, key->transpose_a ? m : k, key->a_stride, key);
    make_layout(&plan->b, key->type, key->transpose_b ? n : k, key->transpose_b ? k : n, key->b_stride, key);
    make_layout(&plan->c, key->c_type, m, n, key->c_stride, key);
    choose_algorithm(gemm, plan);
}

/* FNV over the words of the key, with the high half folded in. */
static uint64_t hash_key(const struct gemm_key *key)
{
    uint64_t words[sizeof *key / 8], hash = 14695981039346656037u;
    memcpy(words, key, sizeof *key);
    for (size_t i = 0; i < sizeof *key / 8; i++) {
        hash = (hash ^ words[i]) * 1099511628211u;
        hash ^= hash >> 32;
    }
    return hash;
}

/* The plan of this shape, made when it is not there, in the place of the one among PROBES that was used least
 * recently. */
static struct gemm_plan *find_plan(struct gemm *gemm, const struct gemm_key *key)
{
    uint64_t home = hash_key(key);
    struct gemm_plan *oldest = NULL;
    for (uint64_t i = 0; i < PROBES; i++) {
        struct gemm_plan *plan = &gemm->plans[(home + i) % PLANS];
        if (memcmp(&plan->key, key, sizeof *key) == 0) return plan;
        if (!oldest || plan->used < oldest->used) oldest = plan;
    }
    make_plan(gemm, oldest, key);
    return oldest;
}

/* -- the op ----------------------------------------------------------------------------------- */

static void require_product(struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                            bool transpose_b)
{
    require_matrix(a, "a");
    require_matrix(b, "b");
    require_shape(c, transpose_a ? a.cols : a.rows, transpose_b ? b.rows : b.cols, "c");
    int64_t k = transpose_a ? a.rows : a.cols, other = transpose_b ? b.cols : b.rows;
    REQUIRE(k == other, "the inner sizes %lld and %lld of a product differ", (long long)k, (long long)other);
    REQUIRE(a.type == b.type && (c.type == a.type || c.type == DTYPE_FLOAT),
            "a product of bf16 and f32 matrices, or of f32 matrices into bf16");
}

/* A sum of no terms. */
static void clear(struct device *device, struct tensor c)
{
    size_t unit = dtype_bytes(c.type);
    CUDA_REQUIRE(cudaMemset2DAsync(c.data, (size_t)c.stride * unit, 0, (size_t)c.cols * unit, (size_t)c.rows,
                                   device->stream));
}

void cuda_matmul(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                 bool transpose_b, bool accumulate)
{
    require_product(c, a, transpose_a, b, transpose_b);
    REQUIRE(device->stream == device->streams[QUEUE_COMPUTE],
            "matrix products run on the compute queue alone: their workspace is one");
    if (c.rows == 0 || c.cols == 0) return;
    int64_t k = transpose_a ? a.rows : a.cols;
    if (k == 0) {
        if (!accumulate) clear(device, c);
        return;
    }

    struct gemm_key key;
    memset(&key, 0, sizeof key);
    key.m = c.rows, key.n = c.cols, key.k = k;
    key.a_stride = a.stride, key.b_stride = b.stride, key.c_stride = c.stride;
    key.type = (uint8_t)a.type, key.c_type = (uint8_t)c.type;
    key.transpose_a = transpose_a, key.transpose_b = transpose_b, key.accumulate = accumulate;
    key.a_align = alignment_of(a.data), key.b_align = alignment_of(b.data),
    key.c_align = alignment_of(c.data);

    struct gemm *gemm = device->gemm;
    struct gemm_plan *plan = find_plan(gemm, &key);
    plan->used = ++gemm->calls;
    float alpha = 1, beta = accumulate ? 1 : 0;
    lt_require(cublasLtMatmul(gemm->library, &plan->product, &alpha, b.data, &plan->b, a.data, &plan->a,
                              &beta, c.data, &plan->c, c.data, &plan->c, &plan->algorithm, gemm->workspace,
                              WORKSPACE_BYTES, device->stream),
               "the product", &key);
}
