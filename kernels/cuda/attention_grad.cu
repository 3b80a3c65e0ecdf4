/* The backward pass of attention in bf16: delta here, then dk and dv (attention_grad_keys.cu), then dq
 * (attention_grad_queries.cu), both of which make the probabilities again from q, k and lse. f32 is
 * attention_float.cu.
 *
 * Seven products of 2 D FLOPs for each visible pair of query and key where the least is five. For that no sum
 * crosses blocks: there are no atomics, results have the same bits every time, and the only memory besides is
 * delta. At 250 to 320 TFLOP/s done that is 180 to 230 in the usual count of five. */
#include "kernels/cuda/attention_grad.cuh"

namespace
{

/* delta = rowsum(do * o) per token and head; eight lanes each. Reads 2 N H D elements, writes N H f32; >= 85
 * % of copy bandwidth. */
enum { DELTA_LANES = 8, DELTA_THREADS = 256 };

template <class T>
__global__ void __launch_bounds__(DELTA_THREADS)
    delta_kernel(float *delta, const T *o, int64_t o_stride, const T *dout, int64_t dout_stride,
                 int64_t count, int heads, int size, bool whole)
{
    int64_t at = ((int64_t)blockIdx.x * DELTA_THREADS + threadIdx.x) / DELTA_LANES;
    int lane = (int)threadIdx.x % DELTA_LANES;
    float sum = 0;
    if (at < count) { /* the whole warp is needed below */
        const T *x = o + at / heads * o_stride + at % heads * size;
        const T *y = dout + at / heads * dout_stride + at % heads * size;
        if (whole) {
            for (int i = lane * VECTOR<T>; i < size; i += DELTA_LANES * VECTOR<T>) {
                vector16<T> a = *(const vector16<T> *)(x + i), b = *(const vector16<T> *)(y + i);
                for (int j = 0; j < VECTOR<T>; j++)
                    sum += widen(a.at[j]) * widen(b.at[j]);
            }
        } else {
            for (int i = lane; i < size; i += DELTA_LANES)
                sum += widen(x[i]) * widen(y[i]);
        }
    }
    for (int offset = DELTA_LANES / 2; offset > 0; offset /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (at < count && lane == 0) delta[at] = sum;
}

} // namespace

size_t cuda_attention_workspace(struct device *device, int64_t tokens, struct attention_shape shape)
{
    (void)device;
    return (size_t)(divide_up(tokens * shape.heads * 4, 256) * 256);
}

void cuda_attention_grad(struct device *device, struct tensor dqkv, struct tensor dout, struct tensor o,
                         const float *lse, struct tensor qkv, struct packing packing,
                         struct attention_shape shape, void *workspace)
{
    require_attention(qkv, packing, shape);
    require_shape(dqkv, qkv.rows, qkv.cols, "dqkv");
    require_shape(o, qkv.rows, shape.heads * shape.head_size, "o");
    require_shape(dout, qkv.rows, shape.heads * shape.head_size, "dout");
    REQUIRE(dqkv.type == qkv.type && o.type == qkv.type && dout.type == qkv.type,
            "qkv, o and their gradients differ in type");
    if (qkv.rows == 0 || packing.tile_count == 0) return;

    float *delta = (float *)workspace;
    int64_t count = qkv.rows * shape.heads;
    unsigned blocks = (unsigned)divide_up(count * DELTA_LANES, DELTA_THREADS);
    WITH_TYPE(qkv.type, T, {
        bool whole = aligned16(o) && aligned16(dout) && shape.head_size % VECTOR<T> == 0;
        LAUNCH((delta_kernel<T>), blocks, DELTA_THREADS, 0, device->stream, delta, data_of<T>(o), o.stride,
               data_of<T>(dout), dout.stride, count, (int)shape.heads, (int)shape.head_size, whole);
    });
    if (qkv.type == DTYPE_FLOAT) {
        cuda_attention_grad_float(device, dqkv, dout, delta, lse, qkv, packing, shape);
        return;
    }
    struct attention_grad grad = {};
    grad.qkv = data_of<struct bfloat>(qkv);
    grad.dout = data_of<struct bfloat>(dout);
    grad.dqkv = data_of<struct bfloat>(dqkv);
    grad.qkv_stride = qkv.stride;
    grad.dout_stride = dout.stride;
    grad.dqkv_stride = dqkv.stride;
    grad.lse = lse;
    grad.delta = delta;
    grad.packing = packing;
    grad.heads = (int)shape.heads;
    grad.key_heads = (int)shape.key_heads;
    grad.size = (int)shape.head_size;
    grad.window = window_of(packing, shape);
    grad.scale = shape.scale;
    grad.whole = aligned16(qkv) && aligned16(dout);
    attention_grad_keys(device, &grad);
    attention_grad_queries(device, &grad);
}

/* The pass over keys needs most: A100, H100 and B200 have room for all sizes, smaller relatives of theirs (99
 * KiB a block) for 64. 512 bytes are for static shared memory. */
int64_t cuda_head_fits(struct device *device, enum dtype type)
{
    static const int64_t sizes[] = {128, 96, 80, 64};
    if (type == DTYPE_FLOAT) return sizes[0];
    for (int i = 0; i < 4; i++)
        if (attention_grad_keys_shared(sizes[i]) + 512 <= device->shared_limit) return sizes[i];
    return 0;
}
