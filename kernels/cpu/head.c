/* The head's row kernels and the objective. Each logit is read once for the statistics and once for the
 * gradient; the rows are long, so a block of them is kept in the first-level cache between its two passes. */
#include "kernels/cpu/cpu.h"

enum { BLOCK = 2048 };

HOT static float block_maximum(const float *z, int64_t count)
{
    float maximum = -INFINITY;
#pragma omp simd reduction(max : maximum)
    for (int64_t i = 0; i < count; i++)
        maximum = z[i] > maximum ? z[i] : maximum;
    return maximum;
}

struct block_sums {
    float first, second, first_moment, logits; /* s1, s2, t1 relative to a maximum, and the plain sum */
};

HOT static struct block_sums sum_block(const float *z, float maximum, int64_t count)
{
    float first = 0, second = 0, moment = 0, logits = 0;
#pragma omp simd reduction(+ : first, second, moment, logits)
    for (int64_t i = 0; i < count; i++) {
        float d = z[i] - maximum, e = exp_fast(d);
        first += e;
        second += e * e;
        moment += d * e;
        logits += z[i];
    }
    return (struct block_sums){first, second, moment, logits};
}

/* Online over blocks: when the maximum m grows to m', s1 shrinks by q = e^(m-m'), s2 by q^2, and
 * t1 = sum (z-m) e^(z-m) becomes q (t1 + (m-m') s1). Between blocks the sums are doubles. */
static void row_statistics(float *statistics, const float *z, int64_t count, int64_t target)
{
    double first = 0, second = 0, moment = 0, logits = 0;
    float maximum = -INFINITY;
    for (int64_t i = 0; i < count; i += BLOCK) {
        int64_t length = count - i < BLOCK ? count - i : BLOCK;
        float higher = block_maximum(z + i, length);
        if (higher > maximum) {
            double step = (double)maximum - (double)higher, q = exp(step);
            if (first > 0) moment = q * (moment + step * first);
            first *= q;
            second *= q * q;
            maximum = higher;
        }
        struct block_sums sums = sum_block(z + i, maximum, length);
        first += (double)sums.first;
        second += (double)sums.second;
        moment += (double)sums.first_moment;
        logits += (double)sums.logits;
    }
    double log_first = log(first);
    statistics[HEAD_MAXIMUM] = maximum;
    statistics[HEAD_LOG_SUM] = (float)log_first;
    statistics[HEAD_LOGP] = (float)((double)z[target] - (double)maximum - log_first);
    statistics[HEAD_LOG_SQUARE] = (float)(log(second) - 2 * log_first);
    statistics[HEAD_ENTROPY] = (float)(log_first - moment / first);
    statistics[HEAD_MEAN] = (float)(logits / (double)count);
    statistics[HEAD_HIT] = z[target] >= maximum ? 1.0f : 0.0f;
    statistics[HEAD_SPARE] = 0;
}

static void check_target(int64_t target, int64_t vocabulary)
{
    REQUIRE(target >= 0 && target < vocabulary, "token id %lld is outside a vocabulary of %lld",
            (long long)target, (long long)vocabulary);
}

void cpu_head_statistics(struct device *device, float *statistics, struct tensor logits,
                         const int64_t *target)
{
    require_float(logits, "logits");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t t = 0; t < logits.rows; t++) {
        check_target(target[t], logits.cols);
        row_statistics(statistics + t * HEAD_STATISTICS, row_of(logits, t), logits.cols, target[t]);
    }
}

/* dz may be z. */
HOT static void softmax_gradient(float *dz, const float *z, float maximum, float log_sum, float coefficient,
                                 int64_t count)
{
    float scale = -coefficient;
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        dz[i] = scale * exp_fast(z[i] - maximum - log_sum);
}

void cpu_head_gradient(struct device *device, struct tensor dlogits, struct tensor logits,
                       const float *statistics, const int64_t *target, const float *coefficient)
{
    require_float(logits, "logits");
    require_shape(dlogits, logits.rows, logits.cols, "dlogits");
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t t = 0; t < logits.rows; t++) {
        check_target(target[t], logits.cols);
        const float *row = statistics + t * HEAD_STATISTICS;
        float *dz = row_of(dlogits, t);
        softmax_gradient(dz, row_of(logits, t), row[HEAD_MAXIMUM], row[HEAD_LOG_SUM], coefficient[t],
                         logits.cols);
        dz[target[t]] += coefficient[t];
    }
}

void cpu_head_sums(struct device *device, struct completion_sums *sums, const float *statistics,
                   const int64_t *first, const int64_t *shared, int64_t completions)
{
    (void)device;
    for (int64_t s = 0; s < completions; s++) {
        struct completion_sums sum = {.count = first[s + 1] - first[s]};
        for (int64_t t = first[s]; t < first[s + 1]; t++) {
            const float *row = statistics + t * HEAD_STATISTICS;
            sum.logp += (double)row[HEAD_LOGP];
            sum.square += (double)row[HEAD_LOG_SQUARE];
            sum.maximum -= (double)row[HEAD_LOG_SUM];
            sum.entropy += (double)row[HEAD_ENTROPY];
            sum.logits += (double)row[HEAD_MEAN];
            sum.hits += (double)row[HEAD_HIT];
            if (t < first[s] + shared[s]) sum.leading = sum.logp;
        }
        sums[s] = sum;
    }
}

void cpu_objective(struct device *device, struct group_result *results, float *coefficient,
                   const struct completion_sums *sums, const struct completion_data *data,
                   struct objective_groups groups, const struct objective *objective,
                   const struct batch_facts *facts)
{
    (void)device;
    for (int64_t g = 0; g < groups.count; g++) {
        struct completion_view view[LARGEST_GROUP];
        struct token_coefficient of[LARGEST_GROUP + 1];
        int64_t begin = groups.segment[g] - groups.segment[0],
                all = groups.segment[g + 1] - groups.segment[g], n = all - (groups.prompts ? 1 : 0);
        REQUIRE(n <= LARGEST_GROUP, "a group of %lld completions is too large", (long long)n);
        results[g] = objective_group(objective, facts, sums + begin, data + begin,
                                     groups.prompts ? sums + begin + n : NULL, n, view, of);
        for (int64_t i = 0; i < all; i++) {
            int64_t start = groups.first[begin + i], behind = start + groups.shared[begin + i];
            for (int64_t t = start; t < groups.first[begin + i + 1]; t++)
                coefficient[t] = (float)(t < behind ? of[i].leading : of[i].trailing);
        }
    }
}
