/* The gated activation. Element-wise: bound by memory bandwidth. */
#include "kernels/cuda/elements.cuh"

/* 1 / (1 + e^-g); where e^-g overflows it is 0. */
__device__ static inline float sigmoid(float g)
{
    return 1.0f / (1.0f + expf(-g));
}

/* A thread makes E neighbouring results of one row. Reads 2 N F, writes N F elements: 6 bytes a result in
 * bf16; >= 85 % of copy bandwidth (about 20 instructions a result keep half of the issue slots of an H200
 * busy at that rate). */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS)
    swiglu_kernel(struct tensor y, struct tensor gate_up, int shift)
{
    int64_t row = plane_row(shift, 1), col = plane_item(shift) * E;
    if (row >= y.rows || col >= y.cols) return;
    const T *from = row_of<T>(gate_up, row) + col;
    float gate[E], up[E];
    load_elements(gate, from);
    load_elements(up, from + y.cols);
#pragma unroll
    for (int i = 0; i < E; i++)
        gate[i] = gate[i] * sigmoid(gate[i]) * up[i];
    store_elements(row_of<T>(y, row) + col, gate);
}

/* silu(g) = g s, silu'(g) = s (1 + g (1 - s)), s = sigmoid(g). Every element is read before its place is
 * written, by the same thread: dgate_up may be gate_up. Reads 3 N F, writes 2 N F elements; >= 85 % of copy
 * bandwidth. */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS)
    swiglu_grad_kernel(struct tensor dgate_up, struct tensor dy, struct tensor gate_up, int shift)
{
    int64_t row = plane_row(shift, 1), col = plane_item(shift) * E;
    if (row >= dy.rows || col >= dy.cols) return;
    const T *from = row_of<T>(gate_up, row) + col;
    float gate[E], up[E], d[E];
    load_elements(gate, from);
    load_elements(up, from + dy.cols);
    load_elements(d, row_of<T>(dy, row) + col);
#pragma unroll
    for (int i = 0; i < E; i++) {
        float g = gate[i], s = sigmoid(g);
        gate[i] = d[i] * up[i] * s * (1.0f + g * (1.0f - s));
        up[i] = d[i] * g * s;
    }
    T *to = row_of<T>(dgate_up, row) + col;
    store_elements(to, gate);
    store_elements(to + dy.cols, up);
}

void cuda_swiglu(struct device *device, struct tensor y, struct tensor gate_up)
{
    require_matrix(y, "y");
    require_shape(gate_up, y.rows, 2 * y.cols, "gate_up");
    REQUIRE(gate_up.type == y.type, "gate_up and y have two types");
    if (y.rows == 0 || y.cols == 0) return;
    WITH_TYPE(y.type, T, {
        bool whole = aligned16(y) && aligned16(gate_up) && y.cols % VECTOR<T> == 0;
        WITH_WIDTH(whole, VECTOR<T>, E, {
            struct plane plane = plane_over(y.rows, divide_up(y.cols, E), 1);
            LAUNCH((swiglu_kernel<T, E>), plane.grid, PLANE_THREADS, 0, device->stream, y, gate_up,
                   plane.shift);
        });
    });
}

void cuda_swiglu_grad(struct device *device, struct tensor dgate_up, struct tensor dy, struct tensor gate_up)
{
    require_matrix(dy, "dy");
    require_shape(gate_up, dy.rows, 2 * dy.cols, "gate_up");
    require_shape(dgate_up, dy.rows, 2 * dy.cols, "dgate_up");
    REQUIRE(gate_up.type == dy.type && dgate_up.type == dy.type,
            "gate_up, dgate_up and dy have several types");
    if (dy.rows == 0 || dy.cols == 0) return;
    WITH_TYPE(dy.type, T, {
        bool whole = aligned16(dy) && aligned16(gate_up) && aligned16(dgate_up) && dy.cols % VECTOR<T> == 0;
        WITH_WIDTH(whole, VECTOR<T>, E, {
            struct plane plane = plane_over(dy.rows, divide_up(dy.cols, E), 1);
            LAUNCH((swiglu_grad_kernel<T, E>), plane.grid, PLANE_THREADS, 0, device->stream, dgate_up, dy,
                   gate_up, plane.shift);
        });
    });
}
