/* What the two backward kernels of attention share: their arguments, and the two products that a warp makes.
 *
 * A warp works on 32 rows (keys or queries) against 32 others at a time: x = a b^T over the D columns of a
 * head, then acc += x c with x, rounded to bf16, staying in the registers it was computed in (fragment_of).
 * 32 rows a warp and not 16: every fragment of b and c then feeds two products, and shared memory (128 bytes
 * a clock) keeps up with the tensor cores. */
#ifndef WPO_KERNELS_CUDA_ATTENTION_GRAD_CUH
#define WPO_KERNELS_CUDA_ATTENTION_GRAD_CUH

#include "kernels/cuda/attention.cuh"

/* Eight warps; a block owns the rows of one packing tile and meets the others 64 at a time. */
enum { GRAD_THREADS = 256, GRAD_ROWS = PACKING_TILE, GRAD_STEP = 64, GRAD_BLOCK = 32, GRAD_PAIRS = 4 };

/* Exponentials are taken in powers of two. */
static constexpr float LOG2_E = 1.4426950408889634f;

/* The arguments of both kernels. */
struct attention_grad {
    const struct bfloat *qkv, *dout;
    struct bfloat *dqkv;
    int64_t qkv_stride, dout_stride, dqkv_stride;
    const float *lse, *delta; /* [N, heads] */
    struct packing packing;
    int heads, key_heads, size; /* columns of a head: a multiple of 8, at most D */
    int window;                 /* 0: none */
    float scale;
    bool whole; /* rows may be read 16 bytes at a time */
};

/* -- tiles in shared memory ----------------------------------------------------------------------
 *
 * Rows are padded by one chunk of 16 bytes, which makes their number of chunks odd: the eight rows of an 8x8
 * matrix lie in different banks, and within a tile every place is a constant away from where the lane begins.
 * The swizzled tiles of the forward kernel are smaller, but their places differ from lane to lane, in
 * registers that these kernels do not have. */
template <int D> constexpr int GRAD_STRIDE = D + 8;
template <int D, int ROWS> constexpr int GRAD_TILE = GRAD_STRIDE<D> *ROWS; /* elements */

/* Starts the copy of rows x size of `from` into a tile of ROWS x D, zeros in what is left; done at once where
 * rows are not aligned. The caller commits and waits. */
template <int ROWS, int D>
__device__ inline void grad_load(struct bfloat *tile, const struct bfloat *from, int64_t stride, int rows,
                                 int size, bool whole)
{
    constexpr int ACROSS = D / 8, CHUNKS = ROWS * ACROSS;
    const int thread = (int)fresh(threadIdx.x);
    if (!whole) {
#pragma unroll 1
        for (int at = thread; at < CHUNKS; at += GRAD_THREADS) {
            int row = at / ACROSS, chunk = at % ACROSS;
            bool valid = row < rows && chunk * 8 < size;
            *(vector16<struct bfloat> *)(tile + row * GRAD_STRIDE<D> + chunk * 8) =
                valid ? gather_chunk(from + row * stride + chunk * 8) : vector16<struct bfloat>{};
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < CHUNKS; i += GRAD_THREADS) {
        int row = (i + thread) / ACROSS, chunk = (i + thread) % ACROSS;
        if (CHUNKS % GRAD_THREADS && i + thread >= CHUNKS) break;
        bool valid = row < rows && chunk * 8 < size;
        copy_async(tile + row * GRAD_STRIDE<D> + chunk * 8, valid ? from + row * stride + chunk * 8 : from,
                   valid);
    }
}

/* Where a lane reads 16x16 blocks: from row lane % 16, as load_a and load_b_transposed do; from row lane % 8
 * + 8 (lane / 16), as load_b does. */
template <int D> __device__ inline int grad_lane_down()
{
    int lane = (int)(fresh(threadIdx.x) % 32);
    return lane % 16 * GRAD_STRIDE<D> + lane / 16 * 8;
}

template <int D> __device__ inline int grad_lane_across()
{
    int lane = (int)(fresh(threadIdx.x) % 32);
    return (lane % 8 + lane / 16 * 8) * GRAD_STRIDE<D> + lane / 8 % 2 * 8;
}

/* -- products of a warp -------------------------------------------------------------------------- */

/* x[m][n] is the 16x8 block at row 16 m, column 8 n; this lane has of it
 * [0], [1]: row lane / 4, columns 2 (lane % 4) and + 1;  [2], [3]: row + 8. */
typedef float grad_block[2][4][4];

/* x += a b^T of 32 rows each; a from this lane's place down, b from its place across. */
template <int D>
__device__ inline void grad_multiply(grad_block &x, const struct bfloat *a, const struct bfloat *b)
{
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t left[2][4], right[2][4];
        for (int i = 0; i < 2; i++) {
            load_matrices(left[i], a + 16 * i * GRAD_STRIDE<D> + 16 * step);
            load_matrices(right[i], b + 16 * i * GRAD_STRIDE<D> + 16 * step);
        }
        for (int m = 0; m < 2; m++)
            for (int n = 0; n < 2; n++)
                mma_pair(x[m][2 * n], x[m][2 * n + 1], left[m], right[n]);
    }
}

/* acc += x c, x rounded to bf16, c of 32 rows from this lane's place down. */
template <int D>
__device__ inline void grad_accumulate(float (&acc)[2][D / 8][4], const grad_block &x, const struct bfloat *c)
{
#pragma unroll
    for (int k = 0; k < 2; k++) {
        uint32_t left[2][4];
        for (int m = 0; m < 2; m++)
            fragment_of(left[m], x[m][2 * k], x[m][2 * k + 1]);
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            uint32_t right[4];
            load_matrices_transposed(right, c + 16 * k * GRAD_STRIDE<D> + 16 * step);
            for (int m = 0; m < 2; m++)
                mma_pair(acc[m][2 * step], acc[m][2 * step + 1], left[m], right);
        }
    }
}

/* The mask of what lies `row` queries further down and `column` keys further right. */
__device__ static inline struct mask mask_at(struct mask m, int row, int column)
{
    m = mask_below(m, row);
    m.low -= column;
    m.high -= column;
    return m;
}

/* The 32 rows of acc, times factor, to the first `rows` rows and `size` columns of `to`. */
template <int D>
__device__ inline void grad_store(struct bfloat *to, int64_t stride, int rows, int size,
                                  const float (&acc)[2][D / 8][4], float factor)
{
    int lane = (int)threadIdx.x % 32;
    bool pairs = (uintptr_t)to % 4 == 0 && stride % 2 == 0;
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = 16 * m + 8 * half + lane / 4;
            if (row >= rows) continue;
            struct bfloat *at = to + row * stride + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                if (n * 8 >= size) continue;
                uint32_t both = pack_bfloat(acc[m][n][2 * half] * factor, acc[m][n][2 * half + 1] * factor);
                if (pairs) {
                    *(uint32_t *)(at + n * 8) = both;
                } else {
                    at[n * 8].bits = (uint16_t)both;
                    at[n * 8 + 1].bits = (uint16_t)(both >> 16);
                }
            }
        }
    }
}

/* attention_grad_keys.cu: dk and dv of all key heads. attention_grad_queries.cu: dq of all query heads. */
void attention_grad_keys(struct device *device, const struct attention_grad *grad);
/* Dynamic shared memory that it asks for. */
size_t attention_grad_keys_shared(int64_t head_size);
void attention_grad_queries(struct device *device, const struct attention_grad *grad);

#endif
