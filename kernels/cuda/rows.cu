/* Moving and summing rows: gather, scatter, bias. Bound by memory bandwidth. */
#include "kernels/cuda/elements.cuh"

/* -- bias ------------------------------------------------------------------------------------- */

enum { ROWS_EACH = 4 };

/* A thread adds its E columns of the bias to ROWS_EACH rows, whose loads are under way together. Reads and
 * writes N C elements; >= 85 % of copy bandwidth. */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS) bias_kernel(struct tensor y, const T *bias, int shift)
{
    int64_t first = plane_row(shift, ROWS_EACH), col = plane_item(shift) * E;
    if (col >= y.cols) return;
    float add[E];
    vector<T, E> packed[ROWS_EACH];
#pragma unroll
    for (int k = 0; k < ROWS_EACH; k++) {
        int64_t row = first + k * plane_lines(shift);
        if (row < y.rows) packed[k] = load_packed<E>(row_of<T>(y, row) + col);
    }
    load_elements(add, bias + col);
#pragma unroll
    for (int k = 0; k < ROWS_EACH; k++) {
        int64_t row = first + k * plane_lines(shift);
        if (row >= y.rows) break;
        float sum[E];
        widen_all(sum, packed[k]);
#pragma unroll
        for (int i = 0; i < E; i++)
            sum[i] += add[i];
        store_elements(row_of<T>(y, row) + col, sum);
    }
}

void cuda_bias(struct device *device, struct tensor y, const void *bias)
{
    require_matrix(y, "y");
    if (y.rows == 0 || y.cols == 0) return;
    WITH_TYPE(y.type, T, {
        bool whole = aligned16(y) && aligned16(bias) && y.cols % VECTOR<T> == 0;
        WITH_WIDTH(whole, VECTOR<T>, E, {
            struct plane plane = plane_over(y.rows, divide_up(y.cols, E), ROWS_EACH);
            LAUNCH((bias_kernel<T, E>), plane.grid, PLANE_THREADS, 0, device->stream, y, (const T *)bias,
                   plane.shift);
        });
    });
}

/* Sums of columns. A warp covers 32 E neighbouring columns and walks down every eighth row of the block's
 * part, so that reads are 512 bytes long; the block's 8 warps are added in order, and cuda_add_partials()
 * adds the parts. Reads N C elements (and 8 C parts bytes of partial sums pass through the second cache); >=
 * 85 % of copy bandwidth. */
enum { SUM_LANES = 32, SUM_LINES = 8, SUM_PARTS = 256, SUM_LEAST_ROWS = 64 };

template <class T, int E>
__global__ void __launch_bounds__(SUM_LANES *SUM_LINES)
    column_sums_kernel(float *partial, struct tensor x, int64_t part_rows)
{
    __shared__ float sums[SUM_LINES][SUM_LANES * E];
    int lane = threadIdx.x % SUM_LANES, line = threadIdx.x / SUM_LANES;
    int64_t base = (int64_t)blockIdx.y * SUM_LANES * E, col = base + lane * E;
    int64_t first = (int64_t)blockIdx.x * part_rows,
            end = first + part_rows < x.rows ? first + part_rows : x.rows;
    float sum[E] = {};
    if (col < x.cols) {
#pragma unroll 4
        for (int64_t row = first + line; row < end; row += SUM_LINES) {
            float values[E];
            load_elements(values, row_of<T>(x, row) + col);
#pragma unroll
            for (int i = 0; i < E; i++)
                sum[i] += values[i];
        }
    }
#pragma unroll
    for (int i = 0; i < E; i++)
        sums[line][lane * E + i] = sum[i];
    __syncthreads();
    for (int c = threadIdx.x; c < SUM_LANES * E; c += SUM_LANES * SUM_LINES) {
        if (base + c >= x.cols) break;
        float total = 0;
        for (int k = 0; k < SUM_LINES; k++)
            total += sums[k][c];
        partial[blockIdx.x * x.cols + base + c] = total;
    }
}

void cuda_bias_grad(struct device *device, struct tensor dbias, struct tensor dy)
{
    require_matrix(dy, "dy");
    require_shape(dbias, 1, dy.cols, "dbias");
    if (dy.rows == 0 || dy.cols == 0) return;
    int64_t room = SCRATCH_BYTES / (int64_t)sizeof(float) / dy.cols;
    REQUIRE(room >= 1, "sums of %lld columns do not fit the scratch memory", (long long)dy.cols);
    int64_t parts = divide_up(dy.rows, SUM_LEAST_ROWS);
    if (parts > SUM_PARTS) parts = SUM_PARTS;
    int64_t part_rows = divide_up(dy.rows, parts < room ? parts : room);
    parts = divide_up(dy.rows, part_rows);
    float *partial = (float *)scratch_of(device);
    WITH_TYPE(dy.type, T, {
        WITH_WIDTH(aligned16(dy) && dy.cols % VECTOR<T> == 0, VECTOR<T>, E, {
            int64_t along = divide_up(dy.cols, SUM_LANES * E);
            REQUIRE(along <= 65535, "%lld columns are too many", (long long)dy.cols);
            LAUNCH((column_sums_kernel<T, E>), dim3((unsigned)parts, (unsigned)along, 1),
                   SUM_LANES * SUM_LINES, 0, device->stream, partial, dy, part_rows);
        });
    });
    cuda_add_partials(device, dbias, partial, parts, true);
}

/* A warp covers 32 columns; the block's 8 warps sum an eighth of the parts each, in order, and are then added
 * in order. Reads 4 parts C bytes, mostly out of the second cache: a few microseconds. */
template <class T>
__global__ void __launch_bounds__(SUM_LANES *SUM_LINES)
    add_partials_kernel(T *out, int64_t cols, const float *partial, int64_t parts, bool accumulate)
{
    __shared__ float sums[SUM_LINES][SUM_LANES];
    int lane = threadIdx.x % SUM_LANES, line = threadIdx.x / SUM_LANES;
    int64_t col = (int64_t)blockIdx.x * SUM_LANES + lane;
    int64_t each = (parts + SUM_LINES - 1) / SUM_LINES, first = line * each;
    int64_t end = first + each < parts ? first + each : parts;
    float sum = 0;
    if (col < cols) {
#pragma unroll 8
        for (int64_t p = first; p < end; p++)
            sum += partial[p * cols + col];
    }
    sums[line][lane] = sum;
    __syncthreads();
    if (line > 0 || col >= cols) return;
    for (int k = 1; k < SUM_LINES; k++)
        sum += sums[k][lane];
    out[col] = narrow<T>(accumulate ? widen(out[col]) + sum : sum);
}

void cuda_add_partials(struct device *device, struct tensor out, const float *partial, int64_t parts,
                       bool accumulate)
{
    require_matrix(out, "out");
    REQUIRE(out.rows == 1 && parts >= 0, "partial sums go to one row");
    if (out.cols == 0) return;
    WITH_TYPE(out.type, T, {
        LAUNCH(add_partials_kernel<T>, (unsigned)divide_up(out.cols, SUM_LANES), SUM_LANES * SUM_LINES, 0,
               device->stream, data_of<T>(out), out.cols, partial, parts, accumulate);
    });
}

/* -- rows by index ---------------------------------------------------------------------------- */

/* A thread copies E neighbouring elements of ROWS_EACH rows, so that the loads that wait for an index wait
 * together. Reads and writes n C elements (repeated rows come out of the second cache) and reads 8 n bytes of
 * index; >= 85 % of copy bandwidth. */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS)
    gather_kernel(struct tensor y, struct tensor x, const int64_t *index, int shift)
{
    int64_t first = plane_row(shift, ROWS_EACH), col = plane_item(shift) * E;
    if (col >= y.cols) return;
    vector<T, E> packed[ROWS_EACH];
#pragma unroll
    for (int k = 0; k < ROWS_EACH; k++) {
        int64_t row = first + k * plane_lines(shift), from = row < y.rows ? index[row] : -1;
        if (from >= x.rows) refuse();
        packed[k] = vector<T, E>{};
        if (from >= 0) packed[k] = load_packed<E>(row_of<T>(x, from) + col);
    }
#pragma unroll
    for (int k = 0; k < ROWS_EACH; k++) {
        int64_t row = first + k * plane_lines(shift);
        if (row < y.rows) *(vector<T, E> *)(row_of<T>(y, row) + col) = packed[k];
    }
}

void cuda_gather_rows(struct device *device, struct tensor y, struct tensor x, const int64_t *index)
{
    require_matrix(x, "x");
    require_shape(y, y.rows, x.cols, "y");
    REQUIRE(x.type == y.type, "x and y have two types");
    if (y.rows == 0 || y.cols == 0) return;
    WITH_TYPE(y.type, T, {
        WITH_WIDTH(aligned16(y) && aligned16(x) && y.cols % VECTOR<T> == 0, VECTOR<T>, E, {
            struct plane plane = plane_over(y.rows, divide_up(y.cols, E), ROWS_EACH);
            LAUNCH((gather_kernel<T, E>), plane.grid, PLANE_THREADS, 0, device->stream, y, x, index,
                   plane.shift);
        });
    });
}

/* Sorts the rows by their index, rows of one index in order: place i of `order` and `sorted` (the row and its
 * index) counts the indices that are less, or equal and earlier. A block places 32 rows, each lane one; its 8
 * warps count an eighth of all indices each, which pass through shared memory. n^2 comparisons, 8 n^2 / 32
 * bytes out of the second cache: about 30 microseconds for 16,384 rows on an H200. */
enum { SORT_TILE = 1024 };

__device__ static inline int sort_key(const int64_t *index, int64_t i)
{
    int64_t key = index[i];
    return key < 0 ? -1 : key < INT32_MAX ? (int)key : INT32_MAX;
}

__global__ static void __launch_bounds__(SUM_LANES *SUM_LINES)
    sort_rows_kernel(int *order, int *sorted, const int64_t *index, int count)
{
    __shared__ int keys[SORT_TILE];
    __shared__ int counts[SUM_LINES][SUM_LANES];
    int lane = threadIdx.x % SUM_LANES, line = threadIdx.x / SUM_LANES;
    int base = (int)blockIdx.x * SUM_LANES, mine = base + lane;
    int key = mine < count ? sort_key(index, mine) : INT32_MAX, before = 0;
    for (int tile = 0; tile < count; tile += SORT_TILE) {
        for (int i = threadIdx.x; i < SORT_TILE; i += SUM_LANES * SUM_LINES)
            keys[i] = tile + i < count ? sort_key(index, tile + i) : INT32_MAX;
        __syncthreads();
        int first = line * (SORT_TILE / SUM_LINES);
        /* Runs of 32 indices lie wholly before this block's rows, or are they, or lie wholly after: equal
         * ones count where they are earlier. Beyond the end stands the greatest, which is never less. */
        for (int run = first; run < first + SORT_TILE / SUM_LINES; run += SUM_LANES) {
            bool own = tile + run == base;
            bool earlier = tile + run < base;
            if (own) {
#pragma unroll 8
                for (int i = 0; i < SUM_LANES; i++)
                    before += keys[run + i] < key || (keys[run + i] == key && i < lane);
            } else if (earlier) {
#pragma unroll 8
                for (int i = 0; i < SUM_LANES; i++)
                    before += keys[run + i] <= key;
            } else {
#pragma unroll 8
                for (int i = 0; i < SUM_LANES; i++)
                    before += keys[run + i] < key;
            }
        }
        __syncthreads();
    }
    counts[line][lane] = before;
    __syncthreads();
    if (line > 0 || mine >= count) return;
    for (int k = 1; k < SUM_LINES; k++)
        before += counts[k][lane];
    order[before] = mine;
    sorted[before] = key;
}

/* The thread that meets the first of a run of equal indices adds all rows of the run to its E columns of dx,
 * in order, after the first SCATTER_AHEAD loads under way together; the others leave. Sums are carried in f32
 * and rounded once. Reads n C elements of dy, reads and writes as many rows of dx as there are different
 * indices; >= 75 % of copy bandwidth, less where one index has hundreds of rows. */
enum { SCATTER_AHEAD = 8 };

template <class TX, class TY, int E>
__global__ void __launch_bounds__(PLANE_THREADS, 4)
    scatter_kernel(struct tensor dx, struct tensor dy, const int *order, const int *sorted, int shift)
{
    int64_t place = plane_row(shift, 1), col = plane_item(shift) * E, count = dy.rows;
    if (place >= count || col >= dx.cols) return;
    int key = sorted[place];
    if (key < 0 || (place > 0 && sorted[place - 1] == key)) return;
    if (key >= dx.rows) refuse();
    TX *to = row_of<TX>(dx, key) + col;
    float sum[E], first[E];
    load_elements(sum, to);
    load_elements(first, row_of<TY>(dy, order[place]) + col);
#pragma unroll
    for (int i = 0; i < E; i++)
        sum[i] += first[i];
    for (place++; place < count && sorted[place] == key; place += SCATTER_AHEAD) {
        vector<TY, E> packed[SCATTER_AHEAD];
        int run = 1; /* how many of the rows ahead belong to the index */
#pragma unroll
        for (int k = 1; k < SCATTER_AHEAD; k++)
            run += place + k < count && sorted[place + k] == key;
#pragma unroll
        for (int k = 0; k < SCATTER_AHEAD; k++) /* beyond the run the first again, unused */
            packed[k] = load_packed<E>(row_of<TY>(dy, order[k < run ? place + k : place]) + col);
#pragma unroll
        for (int k = 0; k < SCATTER_AHEAD; k++) {
            float values[E];
            widen_all(values, packed[k]);
#pragma unroll
            for (int i = 0; i < E; i++) /* a choice and not a branch, behind which the loads would be put */
                sum[i] = k < run ? sum[i] + values[i] : sum[i];
        }
    }
    store_elements(to, sum);
}

template <class TX, class TY>
static void scatter(struct device *device, struct tensor dx, struct tensor dy, const int *order,
                    const int *sorted)
{
    bool whole = aligned16(dx) && aligned16(dy) && dy.cols % VECTOR<TY> == 0;
    WITH_WIDTH(whole, VECTOR<TY>, E, {
        struct plane plane = plane_over(dy.rows, divide_up(dy.cols, E), 1);
        LAUNCH((scatter_kernel<TX, TY, E>), plane.grid, PLANE_THREADS, 0, device->stream, dx, dy, order,
               sorted, plane.shift);
    });
}

void cuda_scatter_rows(struct device *device, struct tensor dx, struct tensor dy, const int64_t *index)
{
    require_matrix(dx, "dx");
    require_shape(dy, dy.rows, dx.cols, "dy");
    if (dy.rows == 0 || dy.cols == 0) return;
    REQUIRE(dy.rows <= SCRATCH_BYTES / (int64_t)(2 * sizeof(int)) && dx.rows < INT32_MAX,
            "%lld rows to scatter over %lld are too many", (long long)dy.rows, (long long)dx.rows);
    int *order = (int *)scratch_of(device), *sorted = order + dy.rows;
    LAUNCH(sort_rows_kernel, (unsigned)divide_up(dy.rows, SUM_LANES), SUM_LANES * SUM_LINES, 0,
           device->stream, order, sorted, index, (int)dy.rows);
    WITH_TYPE(dx.type, TX, { WITH_TYPE(dy.type, TY, { scatter<TX, TY>(device, dx, dy, order, sorted); }); });
}

/* -- sum of rows ------------------------------------------------------------------------------ */

/* A thread sums its E columns over all rows, in order and in f32, before it writes: y may be a row of x.
 * Reads R n elements, writes n; >= 85 % of copy bandwidth. */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS) sum_rows_kernel(T *y, struct tensor x)
{
    int64_t col = ((int64_t)blockIdx.x * PLANE_THREADS + threadIdx.x) * E;
    if (col >= x.cols) return;
    float sum[E] = {};
#pragma unroll 4
    for (int64_t row = 0; row < x.rows; row++) {
        float values[E];
        load_elements(values, row_of<T>(x, row) + col);
#pragma unroll
        for (int i = 0; i < E; i++)
            sum[i] += values[i];
    }
    store_elements(y + col, sum);
}

void cuda_sum_rows(struct device *device, struct tensor y, struct tensor x)
{
    require_matrix(x, "x");
    require_shape(y, 1, x.cols, "y");
    REQUIRE(x.type == y.type, "x and y have two types");
    if (x.cols == 0) return;
    WITH_TYPE(x.type, T, {
        bool whole = aligned16(x) && aligned16(y.data) && x.cols % VECTOR<T> == 0;
        WITH_WIDTH(whole, VECTOR<T>, E, {
            int64_t blocks = divide_up(x.cols, (int64_t)PLANE_THREADS * E);
            REQUIRE(blocks <= INT32_MAX, "rows of %lld elements are too long for one launch",
                    (long long)x.cols);
            LAUNCH((sum_rows_kernel<T, E>), (unsigned)blocks, PLANE_THREADS, 0, device->stream, data_of<T>(y),
                   x);
        });
    });
}
