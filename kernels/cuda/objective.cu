/* From the statistics of tokens to the coefficients of tokens: sums of each completion, then each group's
 * objective. Small work that stands between two large pieces, so what counts is its latency. */
#include "kernels/cuda/elements.cuh"

/* -- sums ------------------------------------------------------------------------------------- */

enum { SUM_THREADS = 256, TILE = 1024 };

/* A block sums one completion: all threads bring TILE rows of statistics into shared memory, then one thread
 * for each column adds them in order of tokens, in double. That is the order of the `cpu` backend: the same
 * statistics give the same bits. The chain of additions is 8 clocks a token where double arithmetic is
 * full-blooded, some 20 us for a completion of 4096 tokens; all completions run beside each other. Reads 32 T
 * bytes. */
__global__ void __launch_bounds__(SUM_THREADS)
    head_sums_kernel(struct completion_sums *sums, const float *statistics, const int64_t *first)
{
    __shared__ float tile[TILE * HEAD_STATISTICS];
    __shared__ double total[HEAD_STATISTICS];
    int64_t begin = first[blockIdx.x], end = first[blockIdx.x + 1];
    int column = (int)threadIdx.x;
    float sign = column == HEAD_LOG_SUM ? -1.0f : 1.0f; /* log max p = -log s1 */
    double sum = 0;
    for (int64_t at = begin; at < end; at += TILE) {
        int rows = end - at < TILE ? (int)(end - at) : TILE;
        const float *from = statistics + at * HEAD_STATISTICS;
        __syncthreads();
#pragma unroll 8
        for (int i = (int)threadIdx.x; i < rows * HEAD_STATISTICS; i += SUM_THREADS)
            tile[i] = from[i];
        __syncthreads();
        if (column >= HEAD_STATISTICS) continue;
#pragma unroll 16
        for (int t = 0; t < rows; t++)
            sum += (double)(sign * tile[t * HEAD_STATISTICS + column]);
    }
    if (column < HEAD_STATISTICS) total[column] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    struct completion_sums *s = sums + blockIdx.x;
    s->logp = total[HEAD_LOGP];
    s->square = total[HEAD_LOG_SQUARE];
    s->maximum = total[HEAD_LOG_SUM];
    s->entropy = total[HEAD_ENTROPY];
    s->logits = total[HEAD_MEAN];
    s->hits = total[HEAD_HIT];
    s->count = end - begin;
}

void cuda_head_sums(struct device *device, struct completion_sums *sums, const float *statistics,
                    const int64_t *first, int64_t completions)
{
    REQUIRE(completions >= 0 && completions <= INT32_MAX, "%lld completions do not fit a launch",
            (long long)completions);
    if (completions == 0) return;
    LAUNCH(head_sums_kernel, (unsigned)completions, SUM_THREADS, 0, device->stream, sums, statistics, first);
}

/* -- objective -------------------------------------------------------------------------------- */

enum { GROUP_THREADS = 128, LARGEST_GROUP = 64 };

/* A block works on one group: a thread computes the objective, all write the coefficient of each completion
 * to its tokens. Writes 4 T bytes. */
__global__ void __launch_bounds__(GROUP_THREADS)
    objective_kernel(struct group_result *results, float *coefficient, const struct completion_sums *sums,
                     const double *reference, const int64_t *first, int size, struct objective objective,
                     double scale)
{
    __shared__ double of_completion[LARGEST_GROUP];
    int64_t g = blockIdx.x, begin = g * size;
    if (threadIdx.x == 0)
        results[g] =
            objective_group(&objective, sums + begin, reference ? reference + begin : NULL, of_completion);
    __syncthreads();
    for (int s = 0; s < size; s++) {
        float value = (float)(scale * of_completion[s]);
        int64_t end = first[begin + s + 1];
        for (int64_t t = first[begin + s] + threadIdx.x; t < end; t += GROUP_THREADS)
            coefficient[t] = value;
    }
}

void cuda_objective(struct device *device, struct group_result *results, float *coefficient,
                    const struct completion_sums *sums, const double *reference, const int64_t *first,
                    int64_t groups, int64_t size, const struct objective *objective, double scale)
{
    REQUIRE(size == objective_group_size(objective->loss_type) && size <= LARGEST_GROUP,
            "groups of %lld do not fit the objective", (long long)size);
    REQUIRE(reference || !objective_uses_reference(objective->loss_type), "the objective needs a reference");
    REQUIRE(groups >= 0 && groups <= INT32_MAX, "%lld groups do not fit a launch", (long long)groups);
    if (groups == 0) return;
    struct objective by_value = *objective;
    LAUNCH(objective_kernel, (unsigned)groups, GROUP_THREADS, 0, device->stream, results, coefficient, sums,
           reference, first, (int)size, by_value, scale);
}
