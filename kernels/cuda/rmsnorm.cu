/* The norm of rows, with the residual addition before it. Bound by memory bandwidth.
 *
 * A block takes a row. Up to KEPT elements a thread stay in registers between the sum of squares and the
 * scaling, so that a row is read once: CHUNKS chunks of E elements, E being what one load of 16 bytes brings.
 * Wider rows, and rows that cannot be read 16 bytes at a time, go through a loop that reads twice, the second
 * time out of the caches. */
#include "kernels/cuda/elements.cuh"

enum { KEPT = 16, FORWARD_THREADS = 1024, FORWARD_SHORT = 512 };
enum { GRAD_THREADS = 512, GRAD_SHORT = 128, GRAD_PARTS = 512 };

/* Threads for so many chunks of work: whole warps, up to the limit. */
static unsigned threads_for(int64_t chunks, int limit)
{
    return chunks < limit ? (unsigned)divide_up(chunks, 32) * 32 : (unsigned)limit;
}

/* -- forward ---------------------------------------------------------------------------------- */

/* x, or x + r rounded to T as it is stored in sum. */
template <class T, int E> __device__ inline void add_residual(vector<T, E> &x, const vector<T, E> &r)
{
    float a[E], b[E];
    widen_all(a, x);
    widen_all(b, r);
#pragma unroll
    for (int i = 0; i < E; i++)
        a[i] += b[i];
    x = narrow_all<T>(a);
}

template <class T, int E> __device__ inline float square_sum(const vector<T, E> &x)
{
    float a[E], sum = 0;
    widen_all(a, x);
#pragma unroll
    for (int i = 0; i < E; i++)
        sum += a[i] * a[i];
    return sum;
}

template <class T, int E>
__device__ inline void store_scaled(T *y, const vector<T, E> &x, const T *weight, float rstd)
{
    float a[E], w[E];
    widen_all(a, x);
    load_elements(w, weight);
#pragma unroll
    for (int i = 0; i < E; i++)
        a[i] = a[i] * rstd * w[i];
    store_elements(y, a);
}

/* Reads 2 N C and writes 2 N C elements with the residual, else N C each; >= 85 % of copy bandwidth. */
template <class T, int E, int CHUNKS, int THREADS>
__global__ void __launch_bounds__(THREADS) rmsnorm_kernel(struct tensor y, struct tensor sum, struct tensor x,
                                                          struct tensor r, const T *weight, float epsilon)
{
    __shared__ float parts[32];
    int64_t row = blockIdx.x;
    const T *from = row_of<T>(x, row);
    vector<T, E> kept[CHUNKS];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
        kept[k] = vector<T, E>{};
        if (col < y.cols) kept[k] = load_packed<E>(from + col);
    }
    if (r.data) {
        vector<T, E> other[CHUNKS];
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
            other[k] = vector<T, E>{};
            if (col < y.cols) other[k] = load_packed<E>(row_of<T>(r, row) + col);
        }
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
            add_residual(kept[k], other[k]);
            if (col < y.cols) *(vector<T, E> *)(row_of<T>(sum, row) + col) = kept[k];
        }
    }
    float square = 0;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++)
        square += square_sum(kept[k]);
    float rstd = 1.0f / sqrtf(block_sum(square, parts) / (float)y.cols + epsilon);
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
        if (col < y.cols) store_scaled(row_of<T>(y, row) + col, kept[k], weight + col, rstd);
    }
}

/* The same for any width. A thread reads back only what it has written itself. */
template <class T, int E>
__global__ void __launch_bounds__(FORWARD_THREADS)
    rmsnorm_wide_kernel(struct tensor y, struct tensor sum, struct tensor x, struct tensor r, const T *weight,
                        float epsilon)
{
    __shared__ float parts[32];
    int64_t row = blockIdx.x;
    const T *from = row_of<T>(x, row);
    float square = 0;
    for (int64_t col = threadIdx.x * E; col < y.cols; col += (int64_t)blockDim.x * E) {
        vector<T, E> value = load_packed<E>(from + col);
        if (r.data) {
            add_residual(value, load_packed<E>(row_of<T>(r, row) + col));
            *(vector<T, E> *)(row_of<T>(sum, row) + col) = value;
        }
        square += square_sum(value);
    }
    float rstd = 1.0f / sqrtf(block_sum(square, parts) / (float)y.cols + epsilon);
    if (r.data) from = row_of<T>(sum, row);
    for (int64_t col = threadIdx.x * E; col < y.cols; col += (int64_t)blockDim.x * E)
        store_scaled(row_of<T>(y, row) + col, load_packed<E>(from + col), weight + col, rstd);
}

template <class T>
static void rmsnorm(struct device *device, struct tensor y, struct tensor sum, struct tensor x,
                    struct tensor r, const T *weight, float epsilon)
{
    constexpr int WHOLE = VECTOR<T>, MANY = KEPT / WHOLE;
    bool whole = aligned16(y) && aligned16(x) && aligned16(r) && (!r.data || aligned16(sum)) &&
                 aligned16(weight) && y.cols % WHOLE == 0;
    int64_t chunks = divide_up(y.cols, whole ? WHOLE : 1);
    unsigned rows = (unsigned)y.rows;
    if (whole && chunks <= FORWARD_SHORT)
        LAUNCH((rmsnorm_kernel<T, WHOLE, 1, FORWARD_SHORT>), rows, threads_for(chunks, FORWARD_SHORT), 0,
               device->stream, y, sum, x, r, weight, epsilon);
    else if (whole && y.cols <= KEPT * FORWARD_THREADS)
        LAUNCH((rmsnorm_kernel<T, WHOLE, MANY, FORWARD_THREADS>), rows,
               threads_for(divide_up(chunks, MANY), FORWARD_THREADS), 0, device->stream, y, sum, x, r, weight,
               epsilon);
    else if (whole)
        LAUNCH((rmsnorm_wide_kernel<T, WHOLE>), rows, FORWARD_THREADS, 0, device->stream, y, sum, x, r,
               weight, epsilon);
    else
        LAUNCH((rmsnorm_wide_kernel<T, 1>), rows, threads_for(divide_up(chunks, 4), FORWARD_THREADS), 0,
               device->stream, y, sum, x, r, weight, epsilon);
}

void cuda_rmsnorm(struct device *device, struct tensor y, struct tensor sum, struct tensor x, struct tensor r,
                  const void *weight, float epsilon)
{
    require_matrix(y, "y");
    require_shape(x, y.rows, y.cols, "x");
    REQUIRE(x.type == y.type && y.rows <= INT32_MAX,
            "x and y have two types, or more rows than a launch takes");
    if (r.data) {
        require_shape(r, y.rows, y.cols, "r");
        require_shape(sum, y.rows, y.cols, "sum");
        REQUIRE(r.type == y.type && sum.type == y.type, "r, sum and y have several types");
    } else {
        r = sum = tensor_of(NULL, y.type, 0, 0);
    }
    if (y.rows == 0 || y.cols == 0) return;
    WITH_TYPE(y.type, T, { rmsnorm<T>(device, y, sum, x, r, (const T *)weight, epsilon); });
}

/* -- backward --------------------------------------------------------------------------------- */

/* Two sums over the block at once, as block_sum() makes one. parts: 64 floats. */
struct two_sums {
    float square, product;
};

__device__ static inline struct two_sums block_sums(float square, float product, float *parts)
{
    struct two_sums sums = {warp_sum(square), warp_sum(product)};
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = sums.square;
        parts[32 + threadIdx.x / 32] = sums.product;
    }
    __syncthreads();
    sums.square = sums.product = 0;
    for (unsigned i = 0; i < blockDim.x / 32; i++) {
        sums.square += parts[i];
        sums.product += parts[32 + i];
    }
    return sums;
}

template <class T, int E>
__device__ inline void add_sums(float &square, float &product, const vector<T, E> &x, const vector<T, E> &dy,
                                const T *weight)
{
    float a[E], d[E], w[E];
    widen_all(a, x);
    widen_all(d, dy);
    load_elements(w, weight);
#pragma unroll
    for (int i = 0; i < E; i++) {
        square += a[i] * a[i];
        product += a[i] * d[i] * w[i];
    }
}

/* dx += rstd (dy w - x projection), and dy x rstd into dweight's partial sums. */
template <class T, int E>
__device__ inline void add_gradients(T *dx, float (&partial)[E], const vector<T, E> &old,
                                     const vector<T, E> &x, const vector<T, E> &dy, const T *weight,
                                     float rstd, float projection)
{
    float a[E], d[E], w[E], o[E];
    widen_all(a, x);
    widen_all(d, dy);
    widen_all(o, old);
    load_elements(w, weight);
#pragma unroll
    for (int i = 0; i < E; i++) {
        o[i] += rstd * (d[i] * w[i] - a[i] * projection);
        partial[i] += d[i] * a[i] * rstd;
    }
    store_elements(dx, o);
}

/* Block b of GRAD_PARTS takes rows b, b + parts, b + 2 parts, ..., so that the order of every sum follows
 * from the shape alone. A thread keeps its columns of x, dy and dx of the row in registers, and its columns'
 * share of dweight over all rows, which it leaves in `partial`. Reads 3 N C and writes N C elements, and
 * passes 8 C parts bytes of partial sums through the second cache; >= 80 % of copy bandwidth. */
template <class T, int E, int CHUNKS>
__global__ void __launch_bounds__(GRAD_THREADS, sizeof(T) == 2 || CHUNKS == 1 ? 2 : 1)
    rmsnorm_grad_kernel(struct tensor dx, float *partial, struct tensor dy, struct tensor x, const T *weight,
                        float epsilon)
{
    __shared__ float parts[64];
    float share[CHUNKS][E] = {};
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        vector<T, E> a[CHUNKS], d[CHUNKS], o[CHUNKS];
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
            if (col >= x.cols) col = 0; /* any place that may be read: it is not used */
            a[k] = load_packed<E>(row_of<T>(x, row) + col);
            d[k] = load_packed<E>(row_of<T>(dy, row) + col);
            o[k] = load_packed<E>(row_of<T>(dx, row) + col);
        }
        float square = 0, product = 0;
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
            if (col >= x.cols) break;
            add_sums(square, product, a[k], d[k], weight + col);
        }
        struct two_sums sums = block_sums(square, product, parts);
        float rstd = 1.0f / sqrtf(sums.square / (float)x.cols + epsilon);
        float projection = rstd * rstd * (sums.product / (float)x.cols);
#pragma unroll
        for (int k = 0; k < CHUNKS; k++) {
            int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
            if (col >= x.cols) break;
            add_gradients(row_of<T>(dx, row) + col, share[k], o[k], a[k], d[k], weight + col, rstd,
                          projection);
        }
    }
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        int64_t col = (int64_t)(threadIdx.x + k * blockDim.x) * E;
        if (col < x.cols) store_elements(partial + blockIdx.x * x.cols + col, share[k]);
    }
}

/* The same for any width: rows are read twice, and the shares of dweight stand in `partial` all the time. */
template <class T, int E>
__global__ void __launch_bounds__(GRAD_THREADS)
    rmsnorm_grad_wide_kernel(struct tensor dx, float *partial, struct tensor dy, struct tensor x,
                             const T *weight, float epsilon)
{
    __shared__ float parts[64];
    float *shares = partial + blockIdx.x * x.cols;
    int64_t first = threadIdx.x * E, step = (int64_t)blockDim.x * E;
    for (int64_t row = blockIdx.x; row < x.rows; row += gridDim.x) {
        const T *from = row_of<T>(x, row), *gradient = row_of<T>(dy, row);
        T *to = row_of<T>(dx, row);
        float square = 0, product = 0;
        for (int64_t col = first; col < x.cols; col += step)
            add_sums(square, product, load_packed<E>(from + col), load_packed<E>(gradient + col),
                     weight + col);
        struct two_sums sums = block_sums(square, product, parts);
        float rstd = 1.0f / sqrtf(sums.square / (float)x.cols + epsilon);
        float projection = rstd * rstd * (sums.product / (float)x.cols);
        for (int64_t col = first; col < x.cols; col += step) {
            float share[E] = {};
            if (row != blockIdx.x) load_elements(share, shares + col);
            add_gradients(to + col, share, load_packed<E>(to + col), load_packed<E>(from + col),
                          load_packed<E>(gradient + col), weight + col, rstd, projection);
            store_elements(shares + col, share);
        }
    }
}

template <class T>
static void rmsnorm_grad(struct device *device, struct tensor dx, float *partial, unsigned parts,
                         struct tensor dy, struct tensor x, const T *weight, float epsilon)
{
    constexpr int WHOLE = VECTOR<T>, MANY = KEPT / WHOLE;
    bool whole = aligned16(dx) && aligned16(dy) && aligned16(x) && aligned16(weight) && x.cols % WHOLE == 0;
    int64_t chunks = divide_up(x.cols, whole ? WHOLE : 1);
    if (whole && chunks <= GRAD_SHORT)
        LAUNCH((rmsnorm_grad_kernel<T, WHOLE, 1>), parts, threads_for(chunks, GRAD_SHORT), 0, device->stream,
               dx, partial, dy, x, weight, epsilon);
    else if (whole && x.cols <= KEPT * GRAD_THREADS)
        LAUNCH((rmsnorm_grad_kernel<T, WHOLE, MANY>), parts,
               threads_for(divide_up(chunks, MANY), GRAD_THREADS), 0, device->stream, dx, partial, dy, x,
               weight, epsilon);
    else if (whole)
        LAUNCH((rmsnorm_grad_wide_kernel<T, WHOLE>), parts, GRAD_THREADS, 0, device->stream, dx, partial, dy,
               x, weight, epsilon);
    else
        LAUNCH((rmsnorm_grad_wide_kernel<T, 1>), parts, threads_for(divide_up(chunks, 4), GRAD_THREADS), 0,
               device->stream, dx, partial, dy, x, weight, epsilon);
}

void cuda_rmsnorm_grad(struct device *device, struct tensor dx, struct tensor dweight, struct tensor dy,
                       struct tensor x, const void *weight, float epsilon)
{
    require_matrix(dy, "dy");
    require_shape(dx, dy.rows, dy.cols, "dx");
    require_shape(x, dy.rows, dy.cols, "x");
    require_shape(dweight, 1, dy.cols, "dweight");
    REQUIRE(dx.type == dy.type && x.type == dy.type, "x, dx and dy have several types");
    if (dy.rows == 0 || dy.cols == 0) return;
    int64_t parts = dy.rows < GRAD_PARTS ? dy.rows : (int64_t)GRAD_PARTS;
    int64_t room = SCRATCH_BYTES / (int64_t)sizeof(float) / dy.cols;
    REQUIRE(room >= 1, "gradients of %lld weights do not fit the scratch memory", (long long)dy.cols);
    if (parts > room) parts = room;
    float *partial = (float *)scratch_of(device);
    WITH_TYPE(dy.type, T,
              { rmsnorm_grad<T>(device, dx, partial, (unsigned)parts, dy, x, (const T *)weight, epsilon); });
    cuda_add_partials(device, dweight, partial, parts, true);
}
