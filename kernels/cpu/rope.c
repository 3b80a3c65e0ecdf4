#include "kernels/cpu/cpu.h"

HOT static void rotate(float *head, const float *table, int64_t half, float sign)
{
    for (int64_t i = 0; i < half; i++) {
        float a = head[i], b = head[half + i], cosine = table[i], sine = sign * table[half + i];
        head[i] = a * cosine - b * sine;
        head[half + i] = b * cosine + a * sine;
    }
}

void cpu_rope(struct device *device, struct tensor x, int64_t heads, const int64_t *position,
              const float *table, bool inverse)
{
    require_float(x, "x");
    REQUIRE(heads > 0 && x.cols % (2 * heads) == 0, "%lld columns are not %lld heads of even size",
            (long long)x.cols, (long long)heads);
    int64_t size = x.cols / heads;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t n = 0; n < x.rows; n++)
        for (int64_t h = 0; h < heads; h++)
            rotate(row_of(x, n) + h * size, table + position[n] * size, size / 2, inverse ? -1.0f : 1.0f);
}
