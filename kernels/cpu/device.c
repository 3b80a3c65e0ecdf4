#include "kernels/cpu/cpu.h"

#include <malloc.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

void *scratch_get(struct scratch *scratch, size_t bytes)
{
    if (bytes > scratch->bytes) {
        free(scratch->memory);
        size_t rounded = (bytes + 63) / 64 * 64;
        scratch->memory = aligned_alloc(64, rounded);
        REQUIRE(scratch->memory, "out of memory: %zu bytes of scratch were asked for", rounded);
        scratch->bytes = rounded;
    }
    return scratch->memory;
}

static int cpu_count(const char **why)
{
    (void)why;
    return 1;
}

static struct device *cpu_open(int index, int threads, const char **why)
{
    if (index != 0) {
        *why = "the CPU backend has one device, number 0";
        return NULL;
    }
    struct device *device = calloc(1, sizeof *device);
    if (threads > 0) omp_set_num_threads(threads);
    int count = omp_get_max_threads();
    struct scratch *by_thread = calloc((size_t)count, sizeof *by_thread);
    if (!device || !by_thread) {
        free(device);
        free(by_thread);
        *why = "out of memory";
        return NULL;
    }
    device->threads = count;
    device->by_thread = by_thread;
    snprintf(device->name, sizeof device->name, "CPU, %d thread%s", count, count == 1 ? "" : "s");
    /* The matrix library allocates its panels at every call: keep them in the heap instead of mapping them
     * anew. */
    mallopt(M_MMAP_THRESHOLD, 1 << 28);
    mallopt(M_TRIM_THRESHOLD, 1 << 29);
    return device;
}

static void cpu_close(struct device *device)
{
    if (!device) return;
    for (int i = 0; i < device->threads; i++)
        free(device->by_thread[i].memory);
    free(device->by_thread);
    free(device->shared.memory);
    free(device);
}

static const char *cpu_describe(struct device *device)
{
    return device->name;
}

static void *cpu_alloc(struct device *device, size_t bytes)
{
    (void)device;
    if (bytes > SIZE_MAX - 63) return NULL;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static void cpu_free(struct device *device, void *memory)
{
    (void)device;
    free(memory);
}

static void cpu_upload(struct device *device, void *to_device, const void *from_host, size_t bytes)
{
    (void)device;
    memcpy(to_device, from_host, bytes);
}

static void cpu_download(struct device *device, void *to_host, const void *from_device, size_t bytes)
{
    (void)device;
    memcpy(to_host, from_device, bytes);
}

static void cpu_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memmove(to, from, bytes);
}

static void fill(struct device *device, void *memory, int value, size_t bytes)
{
    const int64_t block = 1 << 20, blocks = ((int64_t)bytes + block - 1) / block;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t i = 0; i < blocks; i++) {
        size_t first = (size_t)(i * block);
        memset((char *)memory + first, value, bytes - first < (size_t)block ? bytes - first : (size_t)block);
    }
}

void cpu_zero(struct device *device, void *memory, size_t bytes)
{
    fill(device, memory, 0, bytes);
}

static void cpu_poison(struct device *device, void *memory, size_t bytes)
{
    fill(device, memory, 0xff, bytes);
}

static void cpu_sync(struct device *device)
{
    (void)device;
}

/* An op has run when its function returns, so there is one queue and nothing to wait for. */
static void cpu_use(struct device *device, enum queue queue)
{
    (void)device;
    (void)queue;
}

static void cpu_follow(struct device *device, enum queue later, enum queue earlier)
{
    (void)device;
    (void)later;
    (void)earlier;
}

static bool cpu_idle(struct device *device, enum queue queue)
{
    (void)device;
    (void)queue;
    return true;
}

static void *cpu_handle(struct device *device, enum queue queue)
{
    (void)device;
    (void)queue;
    return NULL;
}

const struct ops *cpu_ops(void)
{
    static const struct ops ops = {
        .name = "cpu",
        .on_host = true,
        .count = cpu_count,
        .open = cpu_open,
        .close = cpu_close,
        .describe = cpu_describe,
        .alloc = cpu_alloc,
        .free = cpu_free,
        .upload = cpu_upload,
        .download = cpu_download,
        .copy = cpu_copy,
        .zero = cpu_zero,
        .poison = cpu_poison,
        .sync = cpu_sync,
        .use = cpu_use,
        .follow = cpu_follow,
        .idle = cpu_idle,
        .handle = cpu_handle,
        .matmul = cpu_matmul,
        .bias = cpu_bias,
        .bias_grad = cpu_bias_grad,
        .gather_rows = cpu_gather_rows,
        .scatter_rows = cpu_scatter_rows,
        .rmsnorm = cpu_rmsnorm,
        .rmsnorm_grad = cpu_rmsnorm_grad,
        .rope = cpu_rope,
        .attention = cpu_attention,
        .attention_grad = cpu_attention_grad,
        .attention_workspace = cpu_attention_workspace,
        .swiglu = cpu_swiglu,
        .swiglu_grad = cpu_swiglu_grad,
        .head_statistics = cpu_head_statistics,
        .head_gradient = cpu_head_gradient,
        .head_sums = cpu_head_sums,
        .objective = cpu_objective,
        .sum_squares = cpu_sum_squares,
        .norm = cpu_norm,
        .adamw = cpu_adamw,
        .checksum = cpu_checksum,
        .sum_rows = cpu_sum_rows,
    };
    return &ops;
}
