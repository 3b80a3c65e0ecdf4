#include "kernels/cpu/cpu.h"

#include <omp.h>

HOT static float sum_of_squares(const float *x, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    return sum;
}

HOT static void add_rows(float *sum, const float *x, const float *r, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] = x[i] + r[i];
}

HOT static void scale_row(float *y, const float *x, const float *weight, float rstd, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i] * rstd * weight[i];
}

static float reciprocal_deviation(const float *x, int64_t count, float epsilon)
{
    return 1.0f / sqrtf(sum_of_squares(x, count) / (float)count + epsilon);
}

void cpu_rmsnorm(struct device *device, struct tensor y, struct tensor sum, struct tensor x, struct tensor r,
                 const void *weight, float epsilon)
{
    require_float(y, "y");
    require_shape(x, y.rows, y.cols, "x");
    if (r.data) {
        require_shape(r, y.rows, y.cols, "r");
        require_shape(sum, y.rows, y.cols, "sum");
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t n = 0; n < y.rows; n++) {
        const float *in = row_of(x, n);
        if (r.data) {
            add_rows(row_of(sum, n), in, row_of(r, n), y.cols);
            in = row_of(sum, n);
        }
        scale_row(row_of(y, n), in, weight, reciprocal_deviation(in, y.cols, epsilon), y.cols);
    }
}

/* sum over the row of x dy w */
HOT static float weighted_dot(const float *x, const float *dy, const float *weight, int64_t count)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * dy[i] * weight[i];
    return sum;
}

HOT static void add_gradients(float *dx, float *dweight, const float *dy, const float *x, const float *weight,
                              float rstd, float projection, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        dx[i] += rstd * (dy[i] * weight[i] - x[i] * projection);
        dweight[i] += dy[i] * x[i] * rstd;
    }
}

HOT static void add_partial(float *dweight, const float *partial, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        dweight[i] += partial[i];
}

/* The weight's gradient is summed in blocks of rows whose size does not depend on the threads, then in block
 * order. */
void cpu_rmsnorm_grad(struct device *device, struct tensor dx, struct tensor dweight, struct tensor dy,
                      struct tensor x, const void *weight, float epsilon)
{
    enum { BLOCK = 32 };
    require_float(dy, "dy");
    require_shape(dx, dy.rows, dy.cols, "dx");
    require_shape(x, dy.rows, dy.cols, "x");
    require_shape(dweight, 1, dy.cols, "dweight");
    int64_t count = dy.cols, blocks = (dy.rows + BLOCK - 1) / BLOCK;
    float *partials = scratch_get(&device->shared, (size_t)(blocks * count) * sizeof(float));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t b = 0; b < blocks; b++) {
        float *partial = partials + b * count;
        memset(partial, 0, (size_t)count * sizeof(float));
        int64_t end = (b + 1) * BLOCK < dy.rows ? (b + 1) * BLOCK : dy.rows;
        for (int64_t n = b * BLOCK; n < end; n++) {
            const float *in = row_of(x, n);
            float rstd = reciprocal_deviation(in, count, epsilon);
            float mean = weighted_dot(in, row_of(dy, n), weight, count) / (float)count;
            add_gradients(row_of(dx, n), partial, row_of(dy, n), in, weight, rstd, rstd * rstd * mean, count);
        }
    }
    for (int64_t b = 0; b < blocks; b++)
        add_partial(row_of(dweight, 0), partials + b * count, count);
}
