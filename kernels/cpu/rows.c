/* Moving and summing rows: gather, scatter, bias, sums over ranks. Bound by memory bandwidth. */
#include "kernels/cpu/cpu.h"

HOT static void add_row(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        to[i] += from[i];
}

void cpu_bias(struct device *device, struct tensor y, const void *bias)
{
    require_float(y, "y");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t r = 0; r < y.rows; r++)
        add_row(row_of(y, r), bias, y.cols);
}

/* Sums over rows go by stripes of columns, one thread a stripe: rows are then added in order whatever the
 * number of threads. */
enum { STRIPE = 64 };

void cpu_bias_grad(struct device *device, struct tensor dbias, struct tensor dy)
{
    require_float(dy, "dy");
    require_shape(dbias, 1, dy.cols, "dbias");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t first = 0; first < dy.cols; first += STRIPE) {
        int64_t count = dy.cols - first < STRIPE ? dy.cols - first : STRIPE;
        for (int64_t r = 0; r < dy.rows; r++)
            add_row(row_of(dbias, 0) + first, row_of(dy, r) + first, count);
    }
}

void cpu_gather_rows(struct device *device, struct tensor y, struct tensor x, const int64_t *index)
{
    require_float(x, "x");
    require_shape(y, y.rows, x.cols, "y");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t r = 0; r < y.rows; r++) {
        REQUIRE(index[r] < x.rows, "row %lld of %lld is asked for", (long long)index[r], (long long)x.rows);
        if (index[r] < 0)
            memset(row_of(y, r), 0, (size_t)y.cols * sizeof(float));
        else
            memcpy(row_of(y, r), row_of(x, index[r]), (size_t)y.cols * sizeof(float));
    }
}

void cpu_scatter_rows(struct device *device, struct tensor dx, struct tensor dy, const int64_t *index)
{
    require_float(dx, "dx");
    require_shape(dy, dy.rows, dx.cols, "dy");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t first = 0; first < dx.cols; first += STRIPE) {
        int64_t count = dx.cols - first < STRIPE ? dx.cols - first : STRIPE;
        for (int64_t r = 0; r < dy.rows; r++) {
            REQUIRE(index[r] < dx.rows, "row %lld of %lld is asked for", (long long)index[r],
                    (long long)dx.rows);
            if (index[r] >= 0) add_row(row_of(dx, index[r]) + first, row_of(dy, r) + first, count);
        }
    }
}

/* y may be a row of x: a stripe of it is written after that stripe of all rows was read. */
void cpu_sum_rows(struct device *device, struct tensor y, struct tensor x)
{
    require_float(x, "x");
    require_shape(y, 1, x.cols, "y");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t first = 0; first < x.cols; first += STRIPE) {
        int64_t count = x.cols - first < STRIPE ? x.cols - first : STRIPE;
        float sum[STRIPE] = {0};
        for (int64_t r = 0; r < x.rows; r++)
            add_row(sum, row_of(x, r) + first, count);
        memcpy(row_of(y, 0) + first, sum, (size_t)count * sizeof(float));
    }
}
