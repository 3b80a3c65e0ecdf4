#include "kernels/cpu/cpu.h"

HOT static void swiglu_row(float *y, const float *gate, const float *up, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        y[i] = gate[i] / (1.0f + exp_fast(-gate[i])) * up[i];
}

void cpu_swiglu(struct device *device, struct tensor y, struct tensor gate_up)
{
    require_float(y, "y");
    require_shape(gate_up, y.rows, 2 * y.cols, "gate_up");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t n = 0; n < y.rows; n++)
        swiglu_row(row_of(y, n), row_of(gate_up, n), row_of(gate_up, n) + y.cols, y.cols);
}

/* silu(g) = g s, silu'(g) = s (1 + g (1 - s)), s = 1 / (1 + e^-g). Writing over the input is safe: element i
 * is read before it is written. */
HOT static void swiglu_grad_row(float *dgate, float *dup, const float *dy, const float *gate, const float *up,
                                int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float g = gate[i], u = up[i], d = dy[i], s = 1.0f / (1.0f + exp_fast(-g));
        dgate[i] = d * u * s * (1.0f + g * (1.0f - s));
        dup[i] = d * g * s;
    }
}

void cpu_swiglu_grad(struct device *device, struct tensor dgate_up, struct tensor dy, struct tensor gate_up)
{
    int64_t size = dy.cols;
    require_float(dy, "dy");
    require_shape(gate_up, dy.rows, 2 * size, "gate_up");
    require_shape(dgate_up, dy.rows, 2 * size, "dgate_up");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t n = 0; n < dy.rows; n++)
        swiglu_grad_row(row_of(dgate_up, n), row_of(dgate_up, n) + size, row_of(dy, n), row_of(gate_up, n),
                        row_of(gate_up, n) + size, size);
}
