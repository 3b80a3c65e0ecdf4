/* What bench_ops measures with: sizes, random data, times between events, and the rows of the result. */
#ifndef WPO_BENCHMARKS_OPS_BENCH_CUH
#define WPO_BENCHMARKS_OPS_BENCH_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/objective.h"

#include <algorithm>
#include <initializer_list>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <vector>

#ifdef CUDA_ON_CPU
#include <chrono>
#endif

struct sizes {
    int64_t tokens, width, hidden, heads, key_heads, head_size, vocabulary, chunk, chunks, parameters, side,
        span;
    size_t copy_bytes;
};
static const struct sizes full = {16384, 4096, 14336,          32, 8, 128, 128256, 4096, 4, 1 << 28,
                                  8192,  4096, (size_t)1 << 30};
static const struct sizes small = {64, 128, 96, 4, 2, 64, 1003, 32, 2, 4096, 64, 64, 1 << 16};

struct bench {
    const struct ops *ops;
    struct device *device;
    struct sizes size;
    int samples;
    const char *only;
    double copy_rate, product_rate; /* bytes/s, FLOP/s: measured */
    double head_over_products;      /* the whole head over its bare products; aimed at: 1.10 */
    std::vector<void *> owned;
    std::string rows; /* JSON */
};

/* -- random data ------------------------------------------------------------------------------ */

/* x[i] = scale times a number of [-1, 1) that a hash makes of i. Zeros would be timed too favourably. */
template <class T> static __global__ void randomise(T *x, int64_t count, float scale, uint32_t seed)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count;
         i += gridDim.x * (int64_t)blockDim.x) {
        uint32_t h = (uint32_t)i * 2654435761u + seed * 40503u + 1;
        h = (h ^ (h >> 15)) * 2246822519u;
        h = (h ^ (h >> 13)) * 3266489917u;
        h ^= h >> 16;
        x[i] = narrow<T>(scale * ((float)(h >> 8) * 0x1p-23f - 1));
    }
}

static cudaStream_t stream_of(const struct bench *b)
{
    return (cudaStream_t)b->ops->handle(b->device, QUEUE_COMPUTE);
}

static void *room(struct bench *b, size_t bytes)
{
    void *memory = b->ops->alloc(b->device, bytes);
    REQUIRE(memory, "no room on the device for %zu bytes", bytes);
    b->owned.push_back(memory);
    return memory;
}

static struct tensor matrix(struct bench *b, enum dtype type, int64_t rows, int64_t cols, float scale = 1)
{
    struct tensor t = tensor_of(room(b, (size_t)(rows * cols) * dtype_bytes(type)), type, rows, cols);
    uint32_t seed = (uint32_t)b->owned.size();
    unsigned blocks =
        (unsigned)std::min<int64_t>(divide_up(rows * cols, 256), b->size.tokens >= 1024 ? 4096 : 2);
    WITH_TYPE(type, T,
              LAUNCH((randomise<T>), blocks, 256, 0, stream_of(b), (T *)t.data, rows * cols, scale, seed));
    return t;
}

template <class E> static E *array(struct bench *b, const std::vector<E> &host)
{
    E *memory = (E *)room(b, host.size() * sizeof(E));
    b->ops->upload(b->device, memory, host.data(), host.size() * sizeof(E));
    return memory;
}

static void release(struct bench *b)
{
    b->ops->sync(b->device);
    for (void *memory : b->owned)
        b->ops->free(b->device, memory);
    b->owned.clear();
}

/* Places spread over [0, limit), all different while limit >= count. */
static std::vector<int64_t> places(int64_t count, int64_t limit)
{
    std::vector<int64_t> index((size_t)count);
    for (int64_t i = 0; i < count; i++)
        index[(size_t)i] = i * 7919 % limit;
    return index;
}

/* -- timing ----------------------------------------------------------------------------------- */

struct timing {
    double median, p20, p80; /* seconds; 0 where the clock is too coarse */
};

/* All samples are queued before the host waits, so that its own time does not show. */
template <class F> static std::vector<double> sample(struct bench *b, int samples, F call)
{
    std::vector<double> seconds;
    for (int i = 0; i < 3; i++)
        call();
#ifdef CUDA_ON_CPU
    for (int i = 0; i < samples; i++) {
        auto start = std::chrono::steady_clock::now();
        call();
        b->ops->sync(b->device);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
#else
    std::vector<cudaEvent_t> events((size_t)samples + 1);
    for (cudaEvent_t &event : events)
        CUDA_REQUIRE(cudaEventCreate(&event));
    CUDA_REQUIRE(cudaEventRecord(events[0], stream_of(b)));
    for (int i = 0; i < samples; i++) {
        call();
        CUDA_REQUIRE(cudaEventRecord(events[(size_t)i + 1], stream_of(b)));
    }
    b->ops->sync(b->device);
    for (int i = 0; i < samples; i++) {
        float milliseconds;
        CUDA_REQUIRE(cudaEventElapsedTime(&milliseconds, events[(size_t)i], events[(size_t)i + 1]));
        seconds.push_back(milliseconds / 1e3);
    }
    for (cudaEvent_t event : events)
        CUDA_REQUIRE(cudaEventDestroy(event));
#endif
    return seconds;
}

template <class F> static struct timing measure(struct bench *b, int samples, F call)
{
    std::vector<double> s = sample(b, samples, call);
    std::sort(s.begin(), s.end());
    auto at = [&](double q) { return s[(size_t)(q * (double)(s.size() - 1) + 0.5)]; };
    return {at(0.5), at(0.2), at(0.8)};
}

/* An idle device runs at a lower clock: the yardsticks come after some tenths of a second of work. */
template <class F> static void warm_up(struct bench *b, F call)
{
    int rounds = b->size.tokens < full.tokens ? 0 : 20;
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < 20; i++)
            call();
        b->ops->sync(b->device);
    }
}

struct work {
    double bytes, flops;
    double target; /* share of the roofline that is aimed at; 0: none */
};

static void report(struct bench *b, const char *name, const std::string &shape_text, struct work w,
                   struct timing t)
{
    const char *shape = shape_text.c_str();
    double memory = w.bytes > 0 && b->copy_rate > 0 ? w.bytes / b->copy_rate : 0;
    double products = w.flops > 0 && b->product_rate > 0 ? w.flops / b->product_rate : 0;
    if (b->size.tokens < full.tokens) w.target = 0; /* small sizes measure launches */
    double roofline = memory + products;            /* the parts of a chain of launches do not overlap */
    double rate = (w.flops > 0 ? w.flops / 1e12 : w.bytes / 1e9) / t.median;
    const char *unit = w.flops > 0 ? "TFLOP/s" : "GB/s";
    char line[640];
    snprintf(
        line, sizeof line,
        "%s\n  {\"name\": \"%s\", \"shape\": \"%s\", \"milliseconds\": %.5g, \"p20\": %.5g, \"p80\": %.5g, "
        "\"samples\": %d, \"bytes\": %.6g, \"flops\": %.6g, \"figure\": %.5g, \"unit\": \"%s\", "
        "\"roofline_milliseconds\": %.5g, \"share\": %.4g, \"target\": %.3g}",
        b->rows.empty() ? "" : ",", name, shape, t.median * 1e3, t.p20 * 1e3, t.p80 * 1e3, b->samples,
        w.bytes, w.flops, rate, unit, roofline * 1e3, roofline / t.median, w.target);
    b->rows += line;
    fprintf(stderr, "%-34s %-34s %9.4f ms %9.1f %-7s %5.1f %%%s\n", name, shape, t.median * 1e3, rate, unit,
            100 * roofline / t.median, roofline / t.median < w.target ? "  (below its target)" : "");
}

/* "a x b x c" */
static std::string by(std::initializer_list<int64_t> sides)
{
    std::string text;
    for (int64_t side : sides)
        text += (text.empty() ? "" : " x ") + std::to_string(side);
    return text;
}

static bool wanted(const struct bench *b, const char *name)
{
    return !b->only || strstr(name, b->only);
}

/* The median time in seconds; 0 where it was not asked for. */
template <class F>
static double run(struct bench *b, const char *name, const std::string &shape, struct work w, F call)
{
    if (!wanted(b, name)) return 0;
    struct timing t = measure(b, b->samples, call);
    report(b, name, shape, w, t);
    return t.median;
}

#endif
