/* A view of a matrix that some backend owns. Shapes use one alphabet everywhere: G groups, S completions,
 * N packed tokens, T scored tokens, C width, H query heads, K key heads, D head size, F hidden, V vocabulary,
 * L layers, R ranks; the gradient of x is dx. Compiled by C and by CUDA. */
#ifndef WPO_KERNELS_TENSOR_H
#define WPO_KERNELS_TENSOR_H

#include <stddef.h>
#include <stdint.h>

enum dtype { DTYPE_FLOAT, DTYPE_BFLOAT, DTYPE_HALF };

/* Row-major: element (r, c) stands at data[r * stride + c]. A view owns nothing and is passed by value. */
struct tensor {
    void *data;
    enum dtype type;
    int64_t rows, cols, stride; /* elements */
};

static inline size_t dtype_bytes(enum dtype type)
{
    return type == DTYPE_FLOAT ? 4 : 2;
}

static inline struct tensor tensor_of(void *data, enum dtype type, int64_t rows, int64_t cols)
{
    struct tensor t = {data, type, rows, cols, cols};
    return t;
}

/* Rows first .. first+count-1. */
static inline struct tensor tensor_rows(struct tensor t, int64_t first, int64_t count)
{
    t.data = (char *)t.data + (size_t)(first * t.stride) * dtype_bytes(t.type);
    t.rows = count;
    return t;
}

/* Columns first .. first+count-1; the stride stays that of the whole. */
static inline struct tensor tensor_cols(struct tensor t, int64_t first, int64_t count)
{
    t.data = (char *)t.data + (size_t)first * dtype_bytes(t.type);
    t.cols = count;
    return t;
}

#endif
