#include "kernels/checksum.h"
#include "kernels/cpu/cpu.h"

enum { BLOCK = 1 << 14 };

HOT static double square_block(const float *x, int64_t count)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

void cpu_sum_squares(struct device *device, double *result, struct tensor x)
{
    require_shape(x, 1, x.cols, "x");
    int64_t blocks = (x.cols + BLOCK - 1) / BLOCK;
    double *partial = scratch_get(&device->shared, (size_t)blocks * sizeof(double));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t left = x.cols - b * BLOCK;
        partial[b] = square_block(row_of(x, 0) + b * BLOCK, left < BLOCK ? left : BLOCK);
    }
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++)
        sum += partial[b];
    *result = sum;
}

void cpu_norm(struct device *device, double *norm, const double *squares, int64_t count)
{
    (void)device;
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += squares[i];
    *norm = sqrt(sum);
}

void cpu_checksum(struct device *device, uint64_t *result, struct tensor x)
{
    REQUIRE(x.rows == 1 && x.data, "a checksum is of one row");
    const uint32_t *whole = x.data;
    const uint16_t *half = x.data;
    bool wide = dtype_bytes(x.type) == sizeof *whole;
    uint64_t sum = 0;
#pragma omp parallel for simd schedule(static) num_threads(device->threads) reduction(+ : sum)
    for (int64_t i = 0; i < x.cols; i++)
        sum += checksum_word(wide ? whole[i] : half[i], (uint64_t)i);
    *result = sum;
}

/* What adamw() needs of a step, with the bias corrections folded in. 1 - b2 is taken in double: from a
 * rounded b2 it would be wrong in its fifth digit. */
struct update {
    float first_left, second, second_left, rate, correction, epsilon, gradient_scale;
};

HOT static void update_block(float *restrict p, float *restrict m, float *restrict v,
                             const float *restrict gradient, struct update u, float decay, int64_t count)
{
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        float g = gradient[i] * u.gradient_scale;
        float moment = m[i] + u.first_left * (g - m[i]);
        float variance = u.second * v[i] + u.second_left * g * g;
        m[i] = moment;
        v[i] = variance;
        /* one rounding into p: at preference-training rates either term alone is near its last bit */
        p[i] -= u.rate * moment / (sqrtf(variance) * u.correction + u.epsilon) + decay * p[i];
    }
}

static struct update update_of(const struct adamw *settings, double norm)
{
    bool clip = settings->max_norm > 0 && norm > settings->max_norm;
    double first_correction = 1 - pow(settings->beta_first, (double)settings->step);
    double second_correction = 1 - pow(settings->beta_second, (double)settings->step);
    return (struct update){
        .first_left = (float)(1 - settings->beta_first),
        .second = (float)settings->beta_second,
        .second_left = (float)(1 - settings->beta_second),
        .rate = (float)(settings->rate / first_correction),
        .correction = (float)(1 / sqrt(second_correction)),
        .epsilon = (float)settings->epsilon,
        .gradient_scale = (float)(clip ? settings->max_norm / (norm + 1e-6) : 1),
    };
}

void cpu_adamw(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
               const struct adamw *settings, const double *norm)
{
    REQUIRE(settings->parameter_type == DTYPE_FLOAT && settings->moment_type == DTYPE_FLOAT &&
                settings->gradient_type == DTYPE_FLOAT,
            "the CPU backend keeps parameters, moments and gradients in f32");
    if (!isfinite(*norm)) return;
    struct update u = update_of(settings, *norm);
    for (int64_t i = 0; i < piece_count; i++) {
        const struct adamw_piece *piece = &pieces[i];
        float *parameter = piece->parameter, *moment = piece->moment, *variance = piece->variance;
        const float *gradient = piece->gradient;
        float decay = piece->decay ? (float)(settings->rate * settings->weight_decay) : 0.0f;
#pragma omp parallel for schedule(static) num_threads(device->threads)
        for (int64_t first = 0; first < piece->count; first += BLOCK)
            update_block(parameter + first, moment + first, variance + first, gradient + first, u, decay,
                         piece->count - first < BLOCK ? piece->count - first : BLOCK);
    }
}
