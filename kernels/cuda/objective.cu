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
    head_sums_kernel(struct completion_sums *sums, const float *statistics, const int64_t *first,
                     const int64_t *shared)
{
    __shared__ float tile[TILE * HEAD_STATISTICS];
    __shared__ double total[HEAD_STATISTICS], leading;
    int64_t begin = first[blockIdx.x], end = first[blockIdx.x + 1];
    int column = (int)threadIdx.x;
    float sign = column == HEAD_LOG_SUM ? -1.0f : 1.0f; /* log max p = -log s1 */
    int64_t behind = begin + shared[blockIdx.x];
    double sum = 0;
    if (column == 0) leading = 0;
    for (int64_t at = begin; at < end; at += TILE) {
        int rows = end - at < TILE ? (int)(end - at) : TILE;
        const float *from = statistics + at * HEAD_STATISTICS;
        __syncthreads();
#pragma unroll 8
        for (int i = (int)threadIdx.x; i < rows * HEAD_STATISTICS; i += SUM_THREADS)
            tile[i] = from[i];
        __syncthreads();
        if (column >= HEAD_STATISTICS) continue;
        int part = behind > at ? (behind - at < rows ? (int)(behind - at) : rows) : 0;
#pragma unroll 16
        for (int t = 0; t < part; t++)
            sum += (double)(sign * tile[t * HEAD_STATISTICS + column]);
        if (column == HEAD_LOGP && part > 0) leading = sum;
#pragma unroll 16
        for (int t = part; t < rows; t++)
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
    s->leading = leading;
    s->count = end - begin;
}

void cuda_head_sums(struct device *device, struct completion_sums *sums, const float *statistics,
                    const int64_t *first, const int64_t *shared, int64_t completions)
{
    REQUIRE(completions >= 0 && completions <= INT32_MAX, "%lld completions do not fit a launch",
            (long long)completions);
    if (completions == 0) return;
    LAUNCH(head_sums_kernel, (unsigned)completions, SUM_THREADS, 0, device->stream, sums, statistics, first,
           shared);
}

/* -- objective -------------------------------------------------------------------------------- */

enum { GROUP_THREADS = 128 };

/* A block works on one group: a thread computes the objective, all write the coefficients of its completions
 * to their tokens. Writes 4 T bytes. All losses are one function with a switch: one block a multiprocessor as
 * the least leaves it the registers that it asks for. */
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    objective_kernel(struct group_result *results, float *coefficient, const struct completion_sums *sums,
                     const struct completion_data *data, struct objective_groups groups,
                     const struct objective objective, const struct batch_facts facts)
{
    __shared__ struct completion_view view[LARGEST_GROUP];
    __shared__ struct token_coefficient of[LARGEST_GROUP + 1];
    int64_t g = blockIdx.x, begin = groups.segment[g] - groups.segment[0];
    int all = (int)(groups.segment[g + 1] - groups.segment[g]), n = all - (groups.prompts ? 1 : 0);
    if (threadIdx.x == 0)
        results[g] = objective_group(&objective, &facts, sums + begin, data + begin,
                                     groups.prompts ? sums + begin + n : NULL, n, view, of);
    __syncthreads();
    for (int i = 0; i < all; i++) {
        float leading = (float)of[i].leading, trailing = (float)of[i].trailing;
        int64_t start = groups.first[begin + i], behind = start + groups.shared[begin + i],
                end = groups.first[begin + i + 1];
        for (int64_t t = start + threadIdx.x; t < end; t += GROUP_THREADS)
            coefficient[t] = t < behind ? leading : trailing;
    }
}

void cuda_objective(struct device *device, struct group_result *results, float *coefficient,
                    const struct completion_sums *sums, const struct completion_data *data,
                    struct objective_groups groups, const struct objective *objective,
                    const struct batch_facts *facts)
{
    REQUIRE(groups.count >= 0 && groups.count <= INT32_MAX, "%lld groups do not fit a launch",
            (long long)groups.count);
    if (groups.count == 0) return;
    struct objective by_value = *objective;
    struct batch_facts facts_by_value = *facts;
    LAUNCH(objective_kernel, (unsigned)groups.count, GROUP_THREADS, 0, device->stream, results, coefficient,
           sums, data, groups, by_value, facts_by_value);
}
