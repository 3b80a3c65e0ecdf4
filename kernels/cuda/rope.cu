/* Rotary positions, in place. Bound by memory bandwidth. */
#include "kernels/cuda/elements.cuh"

enum { HEADS_EACH = 4 };

/* A thread turns E neighbouring pairs of up to HEADS_EACH heads of one row, all by the same E angles, which
 * it therefore reads once; its 2 HEADS_EACH loads are under way together. Reads and writes N heads D
 * elements; the table's rows (4 D bytes a token) come out of the caches. >= 85 % of copy bandwidth. */
template <class T, int E>
__global__ void __launch_bounds__(PLANE_THREADS)
    rope_kernel(struct tensor x, int heads, int half, const int64_t *position, const float *table, float sign,
                int shift)
{
    int steps = half / E, groups = (heads + HEADS_EACH - 1) / HEADS_EACH;
    int64_t row = plane_row(shift, 1), item = plane_item(shift);
    if (row >= x.rows || item >= (int64_t)groups * steps) return;
    int group = (int)item / steps, pair = (int)item % steps * E;
    T *first = row_of<T>(x, row) + pair;
    vector<T, E> a[HEADS_EACH], b[HEADS_EACH];
#pragma unroll
    for (int k = 0; k < HEADS_EACH; k++) {
        int head = group + k * groups;
        if (head >= heads) break;
        a[k] = load_packed<E>(first + (int64_t)head * 2 * half);
        b[k] = load_packed<E>(first + (int64_t)head * 2 * half + half);
    }
    float cosine[E], sine[E];
    const float *angle = table + position[row] * 2 * half + pair;
    load_elements(cosine, angle);
    load_elements(sine, angle + half);
#pragma unroll
    for (int k = 0; k < HEADS_EACH; k++) {
        int head = group + k * groups;
        if (head >= heads) break;
        float low[E], high[E];
        widen_all(low, a[k]);
        widen_all(high, b[k]);
#pragma unroll
        for (int i = 0; i < E; i++) {
            float s = sign * sine[i], was = low[i];
            low[i] = was * cosine[i] - high[i] * s;
            high[i] = high[i] * cosine[i] + was * s;
        }
        store_elements(first + (int64_t)head * 2 * half, low);
        store_elements(first + (int64_t)head * 2 * half + half, high);
    }
}

void cuda_rope(struct device *device, struct tensor x, int64_t heads, const int64_t *position,
               const float *table, bool inverse)
{
    require_matrix(x, "x");
    REQUIRE(heads > 0 && x.cols % (2 * heads) == 0 && x.cols <= INT32_MAX,
            "%lld columns are not %lld heads of even size", (long long)x.cols, (long long)heads);
    if (x.rows == 0 || x.cols == 0) return;
    int half = (int)(x.cols / heads / 2);
    float sign = inverse ? -1.0f : 1.0f;
    WITH_TYPE(x.type, T, {
        bool whole = aligned16(x) && aligned16(table) && half % VECTOR<T> == 0;
        WITH_WIDTH(whole, VECTOR<T>, E, {
            struct plane plane = plane_over(x.rows, divide_up(heads, HEADS_EACH) * (half / E), 1);
            LAUNCH((rope_kernel<T, E>), plane.grid, PLANE_THREADS, 0, device->stream, x, (int)heads, half,
                   position, table, sign, plane.shift);
        });
    });
}
