/* The CUDA device: opening it, its memory, its queues, and the table of operations. */
#include "kernels/cuda/cuda.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pinned memory through which host memory passes, so that the caller may change his at once while the copy
 * runs beside the host. A ring of slots: an upload takes as many neighbouring slots as it needs, and the
 * event of the last of them tells when they are free again. A step's many small arrays take a slot each, so
 * the host hardly ever waits. */
enum {
    SLOT_BYTES = 128 << 10,
    SLOTS = STAGING_BYTES / SLOT_BYTES,
    SLOTS_AT_ONCE = 16,
    REPLY_BYTES = 64 << 10
};

struct staging {
    char *memory, *reply; /* pinned: [STAGING_BYTES] for uploads, [REPLY_BYTES] for small downloads */
    cudaEvent_t events[SLOTS];
    int waits_for[SLOTS]; /* the slot whose event frees this one; -1: free */
    int next;
};

/* -- devices ---------------------------------------------------------------------------------- */

/* Sentences with figures in them; the caller gets a pointer to it and passes it on at once. */
static char reason[256];

static const char *driver_reason(cudaError_t error)
{
    int driver = 0, runtime = 0;
    if (error == cudaErrorNoDevice)
        return "no NVIDIA GPU is visible (see nvidia-smi and CUDA_VISIBLE_DEVICES)";
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
    if (error == cudaErrorInsufficientDriver && driver == 0)
        return "there is no NVIDIA driver on this machine";
    if (error == cudaErrorInsufficientDriver)
        snprintf(reason, sizeof reason,
                 "the NVIDIA driver is older than this build's CUDA %d.%d (driver says %d.%d): update it",
                 runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
    else
        snprintf(reason, sizeof reason, "CUDA does not start: %s (%s)", cudaGetErrorString(error),
                 cudaGetErrorName(error));
    return reason;
}

static int cuda_count(const char **why)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0) return count;
    *why = driver_reason(error == cudaSuccess ? cudaErrorNoDevice : error);
    (void)cudaGetLastError(); /* it is told: later calls shall not report it as theirs */
    return 0;
}

/* In functions that return false with a sentence in `reason`. */
#define TRY(call)                                                                                            \
    do {                                                                                                     \
        cudaError_t try_error = (call);                                                                      \
        if (try_error != cudaSuccess) {                                                                      \
            snprintf(reason, sizeof reason, "GPU %d cannot be used: %.60s: %s (%s)", device->index, #call,   \
                     cudaGetErrorString(try_error), cudaGetErrorName(try_error));                            \
            (void)cudaGetLastError();                                                                        \
            return false;                                                                                    \
        }                                                                                                    \
    } while (0)

__global__ static void probe() {}

/* Whether this build holds kernels for the device. */
static bool has_kernels(struct device *device)
{
    struct cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, probe) == cudaSuccess) return true;
    (void)cudaGetLastError();
    snprintf(reason, sizeof reason,
             "this build has no kernels for GPU %d (sm_%d): build it for that architecture", device->index,
             device->capability);
    return false;
}

static bool learn(struct device *device)
{
    int major = 0, minor = 0, shared = 0, driver = 0, runtime = 0;
    static struct cudaDeviceProp properties; /* about a kilobyte */
    TRY(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device->index));
    TRY(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device->index));
    TRY(cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, device->index));
    TRY(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device->index));
    TRY(cudaGetDeviceProperties(&properties, device->index));
    TRY(cudaDriverGetVersion(&driver));
    TRY(cudaRuntimeGetVersion(&runtime));
    device->capability = 10 * major + minor;
    device->shared_limit = (size_t)shared;
    if (device->capability < 80) {
        snprintf(reason, sizeof reason,
                 "GPU %d (%.80s, sm_%d) is too old: sm_80 (Ampere) or later is needed for bf16",
                 device->index, properties.name, device->capability);
        return false;
    }
    snprintf(device->name, sizeof device->name, "%.80s, sm_%d, %.1f GiB, driver %d.%d, runtime %d.%d",
             properties.name, device->capability, (double)properties.totalGlobalMem / (double)(1 << 30),
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return has_kernels(device);
}

static bool make_queues(struct device *device)
{
    int lowest = 0, highest = 0; /* a lower number goes first */
    TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    for (int q = 0; q < QUEUES; q++) {
        int priority = q == QUEUE_EXCHANGE ? highest : lowest;
        TRY(cudaStreamCreateWithPriority(&device->streams[q], cudaStreamNonBlocking, priority));
        TRY(cudaEventCreateWithFlags(&device->events[q], cudaEventDisableTiming));
    }
    device->stream = device->streams[QUEUE_COMPUTE];
    return true;
}

static bool make_staging(struct device *device)
{
    struct staging *staging = device->staging = (struct staging *)calloc(1, sizeof *staging);
    if (!staging) {
        snprintf(reason, sizeof reason, "out of host memory");
        return false;
    }
    for (int s = 0; s < SLOTS; s++)
        staging->waits_for[s] = -1;
    TRY(cudaMallocHost((void **)&staging->memory, STAGING_BYTES));
    TRY(cudaMallocHost((void **)&staging->reply, REPLY_BYTES));
    for (int s = 0; s < SLOTS; s++)
        TRY(cudaEventCreateWithFlags(&staging->events[s], cudaEventDisableTiming));
    return true;
}

static bool make_scratch(struct device *device)
{
    TRY(cudaMalloc(&device->scratch, SCRATCH_BYTES));
    return true;
}

/* Gives back whatever of the device has been made. Errors have been told before, or do not matter any more.
 */
static void release(struct device *device)
{
    if (device->gemm) gemm_close(device->gemm);
    if (device->staging) {
        for (int s = 0; s < SLOTS; s++)
            if (device->staging->events[s]) (void)cudaEventDestroy(device->staging->events[s]);
        if (device->staging->memory) (void)cudaFreeHost(device->staging->memory);
        if (device->staging->reply) (void)cudaFreeHost(device->staging->reply);
        free(device->staging);
    }
    if (device->scratch) (void)cudaFree(device->scratch);
    for (int q = 0; q < QUEUES; q++) {
        if (device->events[q]) (void)cudaEventDestroy(device->events[q]);
        if (device->streams[q]) (void)cudaStreamDestroy(device->streams[q]);
    }
    (void)cudaGetLastError();
    free(device);
}

static bool select_device(struct device *device)
{
    TRY(cudaSetDevice(device->index));
    return true;
}

static struct device *cuda_open(int index, int threads, const char **why)
{
    (void)threads;
    int count = cuda_count(why);
    if (count == 0) return NULL;
    *why = reason;
    if (index < 0 || index >= count) {
        snprintf(reason, sizeof reason, "there is no GPU %d: this machine shows %d, numbered from 0", index,
                 count);
        return NULL;
    }
    struct device *device = (struct device *)calloc(1, sizeof *device);
    if (!device) {
        *why = "out of host memory";
        return NULL;
    }
    device->index = index;
    if (select_device(device) && learn(device) && make_queues(device) && make_scratch(device) &&
        make_staging(device)) {
        snprintf(reason, sizeof reason, "the library of matrix products does not start on GPU %d", index);
        device->gemm = gemm_open(device, why);
        if (device->gemm) return device;
    }
    release(device);
    return NULL;
}

static void cuda_sync(struct device *device);

static void cuda_close(struct device *device)
{
    if (!device) return;
    cuda_sync(device);
    release(device);
}

static const char *cuda_describe(struct device *device)
{
    return device->name;
}

static void cuda_identity(struct device *device, unsigned char mark[16])
{
    static struct cudaDeviceProp properties;
    static_assert(sizeof properties.uuid == 16, "a UUID has 16 bytes");
    CUDA_REQUIRE(cudaGetDeviceProperties(&properties, device->index));
    memcpy(mark, &properties.uuid, sizeof properties.uuid);
}

/* -- memory ----------------------------------------------------------------------------------- */

static void *cuda_alloc(struct device *device, size_t bytes)
{
    (void)device;
    void *memory = NULL;
    cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    CUDA_REQUIRE(error);
    REQUIRE((uintptr_t)memory % 256 == 0, "CUDA's memory is not aligned to 256 bytes");
    return memory;
}

static void cuda_free(struct device *device, void *memory)
{
    (void)device;
    CUDA_REQUIRE(cudaFree(memory)); /* waits for the device: what is queued has run before the memory goes */
}

/* `count` neighbouring slots that no copy reads any more. */
static int take_slots(struct staging *staging, int count)
{
    int first = staging->next + count <= SLOTS ? staging->next : 0;
    for (int s = first; s < first + count; s++) {
        if (staging->waits_for[s] >= 0)
            CUDA_REQUIRE(cudaEventSynchronize(staging->events[staging->waits_for[s]]));
        staging->waits_for[s] = -1;
    }
    staging->next = first + count;
    return first;
}

static void cuda_upload(struct device *device, void *to_device, const void *from_host, size_t bytes)
{
    struct staging *staging = device->staging;
    const size_t most = (size_t)SLOTS_AT_ONCE * SLOT_BYTES;
    for (size_t done = 0; done < bytes;) {
        size_t piece = bytes - done < most ? bytes - done : most;
        int count = (int)((piece + SLOT_BYTES - 1) / SLOT_BYTES), first = take_slots(staging, count);
        char *pinned = staging->memory + (size_t)first * SLOT_BYTES;
        memcpy(pinned, (const char *)from_host + done, piece);
        CUDA_REQUIRE(
            cudaMemcpyAsync((char *)to_device + done, pinned, piece, cudaMemcpyHostToDevice, device->stream));
        CUDA_REQUIRE(cudaEventRecord(staging->events[first + count - 1], device->stream));
        for (int s = first; s < first + count; s++)
            staging->waits_for[s] = first + count - 1;
        done += piece;
    }
}

static void cuda_download(struct device *device, void *to_host, const void *from_device, size_t bytes)
{
    if (bytes == 0) return;
    void *target = bytes <= REPLY_BYTES ? device->staging->reply : to_host;
    CUDA_REQUIRE(cudaMemcpyAsync(target, from_device, bytes, cudaMemcpyDeviceToHost, device->stream));
    CUDA_REQUIRE(cudaStreamSynchronize(device->stream));
    if (target != to_host) memcpy(to_host, target, bytes);
}

static void cuda_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    if (bytes == 0 || to == from) return;
    CUDA_REQUIRE(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->stream));
}

static void cuda_zero(struct device *device, void *memory, size_t bytes)
{
    if (bytes > 0) CUDA_REQUIRE(cudaMemsetAsync(memory, 0, bytes, device->stream));
}

static void cuda_poison(struct device *device, void *memory, size_t bytes)
{
    if (bytes > 0) CUDA_REQUIRE(cudaMemsetAsync(memory, 0xff, bytes, device->stream));
}

/* -- queues ----------------------------------------------------------------------------------- */

static void require_healthy(cudaError_t error, const char *queue)
{
    REQUIRE(error == cudaSuccess, "work on the GPU's %s queue failed: %s (%s)", queue,
            cudaGetErrorString(error), cudaGetErrorName(error));
}

static const char *queue_name(int queue)
{
    return queue == QUEUE_COMPUTE ? "compute" : "exchange";
}

static void cuda_sync(struct device *device)
{
    for (int q = 0; q < QUEUES; q++)
        require_healthy(cudaStreamSynchronize(device->streams[q]), queue_name(q));
}

static void cuda_use(struct device *device, enum queue queue)
{
    device->stream = device->streams[queue];
}

/* The event may be recorded anew at once: a stream that waits for it keeps what it stood for. */
static void cuda_follow(struct device *device, enum queue later, enum queue earlier)
{
    if (later == earlier) return;
    CUDA_REQUIRE(cudaEventRecord(device->events[earlier], device->streams[earlier]));
    CUDA_REQUIRE(cudaStreamWaitEvent(device->streams[later], device->events[earlier], 0));
}

static bool cuda_idle(struct device *device, enum queue queue)
{
    cudaError_t error = cudaStreamQuery(device->streams[queue]);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* no error: the launch that follows shall not take it for its own */
        return false;
    }
    require_healthy(error, queue_name(queue));
    return true;
}

static void *cuda_handle(struct device *device, enum queue queue)
{
    return (void *)device->streams[queue];
}

/* -- the table -------------------------------------------------------------------------------- */

static struct ops make_table()
{
    struct ops ops = {};
    ops.name = "cuda";
    ops.head_multiple = 8;
    ops.head_limit = 128;
    ops.head_fits = cuda_head_fits;
    ops.has_bfloat = true;
    ops.count = cuda_count;
    ops.open = cuda_open;
    ops.close = cuda_close;
    ops.describe = cuda_describe;
    ops.identity = cuda_identity;
    ops.alloc = cuda_alloc;
    ops.free = cuda_free;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.copy = cuda_copy;
    ops.zero = cuda_zero;
    ops.poison = cuda_poison;
    ops.sync = cuda_sync;
    ops.use = cuda_use;
    ops.follow = cuda_follow;
    ops.idle = cuda_idle;
    ops.handle = cuda_handle;
    ops.matmul = cuda_matmul;
    ops.bias = cuda_bias;
    ops.bias_grad = cuda_bias_grad;
    ops.gather_rows = cuda_gather_rows;
    ops.scatter_rows = cuda_scatter_rows;
    ops.rmsnorm = cuda_rmsnorm;
    ops.rmsnorm_grad = cuda_rmsnorm_grad;
    ops.rope = cuda_rope;
    ops.attention = cuda_attention;
    ops.attention_grad = cuda_attention_grad;
    ops.attention_workspace = cuda_attention_workspace;
    ops.swiglu = cuda_swiglu;
    ops.swiglu_grad = cuda_swiglu_grad;
    ops.head_statistics = cuda_head_statistics;
    ops.head_gradient = cuda_head_gradient;
    ops.head_sums = cuda_head_sums;
    ops.objective = cuda_objective;
    ops.sum_squares = cuda_sum_squares;
    ops.norm = cuda_norm;
    ops.adamw = cuda_adamw;
    ops.checksum = cuda_checksum;
    ops.sum_rows = cuda_sum_rows;
    return ops;
}

static const struct ops table = make_table();

extern "C" const struct ops *cuda_ops(void)
{
    return &table;
}
