/* The stand-in's products, in plain loops over matrices by columns, and a check of everything that the
 * library relies on: sizes that fit, leading dimensions that hold a column, the alignment that was promised,
 * f32 sums, a reduction in fixed order. */
#include "kernels/bfloat.h"
#include "kernels/require.h"
#include "tests/cuda/lt/cublasLt.h"

int lt_choices, lt_products;
bool lt_without_algorithm;

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    static int context;
    *handle = (cublasLtHandle_t)(void *)&context;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "another status";
}

cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t product, cublasComputeType_t compute,
                                      cudaDataType_t scale)
{
    REQUIRE(compute == CUBLAS_COMPUTE_32F && scale == CUDA_R_32F, "products must be summed in f32");
    *product = {compute, CUBLAS_OP_N, CUBLAS_OP_N};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t name, const void *value,
                                              size_t bytes)
{
    REQUIRE(bytes == sizeof(cublasOperation_t), "an operation has %zu bytes, not %zu",
            sizeof(cublasOperation_t), bytes);
    (name == CUBLASLT_MATMUL_DESC_TRANSA ? product->transpose_a : product->transpose_b) =
        *(const cublasOperation_t *)value;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType_t type, uint64_t rows,
                                        uint64_t cols, int64_t leading)
{
    REQUIRE(rows && cols && leading >= (int64_t)rows,
            "a column of %llu stands in a leading dimension of %lld", (unsigned long long)rows,
            (long long)leading);
    *layout = {type, rows, cols, leading};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t preference)
{
    *preference = {0, 7, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void *value, size_t bytes)
{
    if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        REQUIRE(bytes == sizeof(size_t), "a size has %zu bytes", bytes);
        preference->workspace = *(const size_t *)value;
        return CUBLAS_STATUS_SUCCESS;
    }
    REQUIRE(bytes == sizeof(uint32_t), "a mask or an alignment has %zu bytes", bytes);
    if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK)
        preference->schemes = *(const uint32_t *)value;
    else
        preference->alignment[name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] = *(const uint32_t *)value;
    return CUBLAS_STATUS_SUCCESS;
}

static uint64_t extent(const cublasLtMatrixLayoutOpaque_t *layout, cublasOperation_t operation, bool rows)
{
    return (operation == CUBLAS_OP_N) == rows ? layout->rows : layout->cols;
}

/* The first two proposals cannot be used: one needs more workspace than there is, one is not supported. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t *found, int *count)
{
    REQUIRE(preference->schemes == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE,
            "a reduction of no fixed order is allowed");
    REQUIRE(c->rows == extent(a, product->transpose_a, true) &&
                c->cols == extent(b, product->transpose_b, false) &&
                extent(a, product->transpose_a, false) == extent(b, product->transpose_b, true) && c == d,
            "the sizes of a product do not fit");
    REQUIRE(a->type == b->type && (c->type == a->type || c->type == CUDA_R_32F),
            "types that cuBLASLt does not multiply");
    REQUIRE(asked >= 3, "three proposals must fit");
    lt_choices++;
    *count = lt_without_algorithm ? 2 : 3;
    for (int i = 0; i < *count; i++) {
        found[i] = {{{0}, lt_choices}, preference->workspace, CUBLAS_STATUS_SUCCESS};
        for (int j = 0; j < 4; j++)
            found[i].algo.alignment[j] = i == 2 ? preference->alignment[j] : 1u << 30;
    }
    found[0].workspaceSize++;
    found[1].state = CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

static float read(const void *data, const cublasLtMatrixLayoutOpaque_t *layout, uint64_t row, uint64_t col)
{
    uint64_t at = row + col * (uint64_t)layout->leading;
    return layout->type == CUDA_R_32F ? ((const float *)data)[at]
                                      : bfloat_widen(((const struct bfloat *)data)[at]);
}

static void write(void *data, const cublasLtMatrixLayoutOpaque_t *layout, uint64_t row, uint64_t col,
                  float value)
{
    uint64_t at = row + col * (uint64_t)layout->leading;
    if (layout->type == CUDA_R_32F)
        ((float *)data)[at] = value;
    else
        ((struct bfloat *)data)[at] = bfloat_round(value);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
                              cudaStream_t)
{
    const void *pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        REQUIRE((uintptr_t)pointers[i] % algorithm->alignment[i] == 0,
                "operand %d is not aligned as was promised", i);
    REQUIRE(workspace && workspace_bytes && *(const float *)alpha == 1 && c == d,
            "a call that makes no sense");
    bool first = product->transpose_a == CUBLAS_OP_T, second = product->transpose_b == CUBLAS_OP_T;
    uint64_t terms = extent(a_layout, product->transpose_a, false);
    for (uint64_t j = 0; j < c_layout->cols; j++)
        for (uint64_t i = 0; i < c_layout->rows; i++) {
            float sum = 0, scale = *(const float *)beta;
            for (uint64_t k = 0; k < terms; k++)
                sum += read(a, a_layout, first ? k : i, first ? i : k) *
                       read(b, b_layout, second ? j : k, second ? k : j);
            write(d, d_layout, i, j, sum + (scale != 0 ? scale * read(c, c_layout, i, j) : 0));
        }
    lt_products++;
    return CUBLAS_STATUS_SUCCESS;
}
