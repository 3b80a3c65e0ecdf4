/* The matrix products of the backend without cuBLASLt: the counterpart of kernels/cuda/gemm.cu, in plain
 * loops. Every element is one sum over k in order, in f32, rounded to c's type once. */
#include "kernels/cuda/cuda.cuh"

#include <stdlib.h>

struct gemm {
    int opened;
};

enum { ROWS = 48, COLS = 256, TERMS = 64 };

struct gemm *gemm_open(struct device *, const char **why)
{
    struct gemm *gemm = (struct gemm *)calloc(1, sizeof *gemm);
    if (!gemm) *why = "out of memory";
    return gemm;
}

void gemm_close(struct gemm *gemm)
{
    free(gemm);
}

/* Rows first_row .. and columns first_col .. of t, or of its transpose, widened; zeros beyond its edge. */
template <class T>
static void pack(float *to, int64_t to_stride, struct tensor t, bool transpose, int64_t first_row,
                 int64_t rows, int64_t first_col, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            int64_t row = transpose ? first_col + c : first_row + r,
                    col = transpose ? first_row + r : first_col + c;
            to[r * to_stride + c] =
                row < t.rows && col < t.cols ? widen(data_of<T>(t)[row * t.stride + col]) : 0.0f;
        }
}

static void multiply(float (&sum)[ROWS][COLS], const float (&a)[ROWS][TERMS], const float (&b)[TERMS][COLS],
                     int64_t rows, int64_t terms)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < terms; k++) {
            const float factor = a[i][k];
            for (int64_t j = 0; j < COLS; j++)
                sum[i][j] += factor * b[k][j];
        }
}

template <class T>
static void store(struct tensor c, const float (&sum)[ROWS][COLS], int64_t row, int64_t rows, int64_t col,
                  int64_t cols, bool accumulate)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            T *at = data_of<T>(c) + (row + i) * c.stride + col + j;
            *at = narrow<T>(accumulate ? widen(*at) + sum[i][j] : sum[i][j]);
        }
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

template <class T>
static void product(struct tensor c, struct tensor a, bool transpose_a, struct tensor b, bool transpose_b,
                    bool accumulate)
{
    static float sum[ROWS][COLS], left[ROWS][TERMS], right[TERMS][COLS];
    int64_t inner = transpose_a ? a.rows : a.cols;
    for (int64_t row = 0; row < c.rows; row += ROWS)
        for (int64_t col = 0; col < c.cols; col += COLS) {
            int64_t rows = least(ROWS, c.rows - row), cols = least(COLS, c.cols - col);
            memset(sum, 0, sizeof sum);
            for (int64_t k = 0; k < inner; k += TERMS) {
                int64_t terms = least(TERMS, inner - k);
                pack<T>(&left[0][0], TERMS, a, transpose_a, row, rows, k, terms);
                pack<T>(&right[0][0], COLS, b, transpose_b, k, terms, col, COLS);
                multiply(sum, left, right, rows, terms);
            }
            if (c.type == DTYPE_FLOAT)
                store<float>(c, sum, row, rows, col, cols, accumulate);
            else
                store<struct bfloat>(c, sum, row, rows, col, cols, accumulate);
        }
}

void cuda_matmul(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                 bool transpose_b, bool accumulate)
{
    require_matrix(a, "a");
    require_matrix(b, "b");
    int64_t inner = transpose_a ? a.rows : a.cols;
    require_shape(c, transpose_a ? a.cols : a.rows, transpose_b ? b.rows : b.cols, "c");
    REQUIRE(inner == (transpose_b ? b.cols : b.rows), "the inner sizes of a product differ");
    REQUIRE(a.type == b.type && (c.type == a.type || c.type == DTYPE_FLOAT),
            "a product of bf16 and f32 matrices, or of f32 matrices into bf16");
    REQUIRE(device->stream == device->streams[QUEUE_COMPUTE],
            "matrix products run on the compute queue alone");
    if (c.rows == 0 || c.cols == 0) return;
    WITH_TYPE(a.type, T, product<T>(c, a, transpose_a, b, transpose_b, accumulate));
}
