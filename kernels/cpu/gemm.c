/* Matrix products on oneDNN's sgemm, the one library of this backend. The product is cut into tiles here and
 * each tile is computed by one thread, so that the number of threads changes who computes an element but not
 * how: within a tile the library adds along k in an order that depends on k alone. */
#include "kernels/cpu/cpu.h"

#include <dnnl.h>

void gemm_tile(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
               const float *a, int64_t a_stride, const float *b, int64_t b_stride, float beta, float *c,
               int64_t c_stride)
{
    if (m == 0 || n == 0) return;
    dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a,
                                      a_stride, b, b_stride, beta, c, c_stride);
    REQUIRE(status == dnnl_success, "sgemm of %lld x %lld x %lld failed with status %d", (long long)m,
            (long long)n, (long long)k, (int)status);
}

struct tiling {
    int64_t rows, cols;           /* of a tile */
    int64_t row_count, col_count; /* tiles */
};

static int64_t tile_extent(int64_t size, int64_t parts)
{
    int64_t extent = (size + parts - 1) / parts;
    return (extent + 15) / 16 * 16;
}

/* A tile of r x c costs 2 r c k flops and the packing of r k + c k elements, each worth about `packing` flops
 * on the processors measured. Choose the cut whose slowest thread finishes first. */
static struct tiling choose_tiling(int64_t m, int64_t n, int threads)
{
    const double packing = 40;
    struct tiling best = {m, n, 1, 1};
    double best_cost = INFINITY;
    int64_t row_limit = m / 64 + 1 < 4 * threads ? m / 64 + 1 : 4 * threads;
    int64_t col_limit = n / 64 + 1 < 4 * threads ? n / 64 + 1 : 4 * threads;
    for (int64_t i = 1; i <= row_limit; i++) {
        for (int64_t j = 1; j <= col_limit; j++) {
            struct tiling t = {.rows = tile_extent(m, i), .cols = tile_extent(n, j)};
            t.row_count = (m + t.rows - 1) / t.rows;
            t.col_count = (n + t.cols - 1) / t.cols;
            int64_t rounds = (t.row_count * t.col_count + threads - 1) / threads;
            double cost =
                (double)rounds * (2.0 * (double)(t.rows * t.cols) + packing * (double)(t.rows + t.cols));
            if (cost < best_cost) {
                best_cost = cost;
                best = t;
            }
        }
    }
    return best;
}

void cpu_matmul(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                bool transpose_b, bool accumulate)
{
    require_float(a, "a");
    require_float(b, "b");
    int64_t k = transpose_a ? a.rows : a.cols;
    require_shape(c, transpose_a ? a.cols : a.rows, transpose_b ? b.rows : b.cols, "c");
    REQUIRE((transpose_b ? b.cols : b.rows) == k, "the inner sizes %lld and %lld of a product differ",
            (long long)k, (long long)(transpose_b ? b.cols : b.rows));
    if (c.rows == 0 || c.cols == 0) return;

    struct tiling t = choose_tiling(c.rows, c.cols, device->threads);
#pragma omp parallel for schedule(static, 1) num_threads(device->threads) collapse(2)
    for (int64_t i = 0; i < t.row_count; i++) {
        for (int64_t j = 0; j < t.col_count; j++) {
            int64_t row = i * t.rows, col = j * t.cols;
            int64_t rows = c.rows - row < t.rows ? c.rows - row : t.rows;
            int64_t cols = c.cols - col < t.cols ? c.cols - col : t.cols;
            const float *a_tile = (const float *)a.data + (transpose_a ? row : row * a.stride);
            const float *b_tile = (const float *)b.data + (transpose_b ? col * b.stride : col);
            gemm_tile(transpose_a, transpose_b, rows, cols, k, 1, a_tile, a.stride, b_tile, b.stride,
                      accumulate ? 1 : 0, row_of(c, row) + col, c.stride);
        }
    }
}
