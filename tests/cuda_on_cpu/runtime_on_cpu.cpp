/* The host's side of the CUDA runtime: devices, memory, streams. Work is done when the call returns. */
#include "emulator.h"

#include <map>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct CUstream_st {
    unsigned flags;
};

struct CUevent_st {
    bool recorded;
    double seconds;
};

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int current_device;

static cudaError_t tell(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

/* -- the device ---------------------------------------------------------------------------------- */

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int device_count()
{
    const char *value = setting("CUDA_ON_CPU_DEVICES");
    return value ? atoi(value) : 1;
}

/* 90 for "9.0" and for "90". */
static int capability()
{
    const char *value = setting("CUDA_ON_CPU_CAPABILITY");
    if (!value) return 90;
    const char *point = strchr(value, '.');
    return point ? 10 * atoi(value) + atoi(point + 1) : atoi(value);
}

static size_t memory_limit()
{
    const char *value = setting("CUDA_ON_CPU_MEMORY");
    if (!value) return (size_t)8 << 30;
    char *unit = NULL;
    size_t bytes = strtoull(value, &unit, 10);
    return *unit == 'G' ? bytes << 30 : *unit == 'M' ? bytes << 20 : *unit == 'K' ? bytes << 10 : bytes;
}

/* As the CUDA programming guide's table of capabilities has it. */
size_t shared_limit()
{
    switch (capability()) {
    case 80:
    case 87:
        return 163 << 10;
    case 86:
    case 89:
    case 120:
        return 99 << 10;
    default:
        return capability() < 80 ? 96 << 10 : 227 << 10;
    }
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_count();
    return tell(*count > 0 ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= device_count()) return tell(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    if (device < 0 || device >= device_count()) return tell(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = MOST_THREADS;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = SHARED_FREE;
        break;
    case cudaDevAttrWarpSize:
        *value = LANES;
        break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
        *value = 1000000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = 4;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *value = 64;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 1 << 20;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = capability() / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = capability() % 10;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)shared_limit() + 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)shared_limit();
        break;
    default:
        return tell(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    if (device < 0 || device >= device_count()) return tell(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof *properties);
    snprintf(properties->name, sizeof properties->name, "emulated");
    const char *first = setting("CUDA_ON_CPU_FIRST");
    properties->uuid.bytes[0] = (char)(device + (first ? atoi(first) : 0));
    properties->totalGlobalMem = memory_limit();
    properties->sharedMemPerBlock = SHARED_FREE;
    properties->sharedMemPerBlockOptin = shared_limit();
    properties->sharedMemPerMultiprocessor = shared_limit() + 1024;
    properties->major = capability() / 10;
    properties->minor = capability() % 10;
    properties->multiProcessorCount = 4;
    properties->warpSize = LANES;
    properties->maxThreadsPerBlock = MOST_THREADS;
    properties->regsPerBlock = 65536;
    properties->l2CacheSize = 1 << 20;
    properties->memoryBusWidth = 64;
    properties->pciBusID = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device)
{
    if (device < 0 || device >= device_count()) return tell(cudaErrorInvalidDevice);
    snprintf(text, (size_t)bytes, "0000:%02X:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    return cudaSuccess;
}

cudaError_t cudaDeviceReset(void)
{
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* -- errors -------------------------------------------------------------------------------------- */

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError", "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};

const char *cudaGetErrorString(cudaError_t error)
{
    for (const auto &e : errors)
        if (e.error == error) return e.text;
    return "unknown error";
}

const char *cudaGetErrorName(cudaError_t error)
{
    for (const auto &e : errors)
        if (e.error == error) return e.name;
    return "cudaErrorUnknown";
}

/* -- memory -------------------------------------------------------------------------------------- */

static std::mutex memory_lock;
static std::map<uintptr_t, size_t> device_memory, pinned_memory;
static size_t used;

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    std::lock_guard<std::mutex> guard(memory_lock);
    *total_bytes = memory_limit();
    *free_bytes = *total_bytes > used ? *total_bytes - used : 0;
    return cudaSuccess;
}

/* Both ends of an allocation are guarded: what is read there is NaN, what is written there shows when it is
 * freed. AddressSanitizer does it better. */
#ifdef CUDA_ON_CPU_ASAN
static const size_t GUARD = 0;
#else
static const size_t GUARD = 256;
#endif

static void *reserve(std::map<uintptr_t, size_t> &owner, size_t alignment, size_t bytes)
{
    void *memory = NULL;
    size_t before = GUARD > 0 ? alignment : 0;
    if (posix_memalign(&memory, alignment, before + bytes + GUARD) != 0) return NULL;
    memset(memory, 0xff, before + bytes + GUARD);
    uintptr_t address = (uintptr_t)memory + before;
    owner[address] = bytes;
    return (void *)address;
}

static cudaError_t release(std::map<uintptr_t, size_t> &owner, size_t alignment, void *memory, size_t *bytes)
{
    auto found = owner.find((uintptr_t)memory);
    if (found == owner.end()) return tell(cudaErrorInvalidValue);
    *bytes = found->second;
    for (unsigned char *p = (unsigned char *)memory - GUARD; p < (unsigned char *)memory; p++)
        if (*p != 0xff)
            cuda_on_cpu_fail("an allocation of %zu bytes was written to before its beginning", *bytes);
    unsigned char *end = (unsigned char *)memory + *bytes;
    for (unsigned char *p = end; p < end + GUARD; p++)
        if (*p != 0xff)
            cuda_on_cpu_fail("an allocation of %zu bytes was written to %d bytes after its end", *bytes,
                             (int)(p - end));
    owner.erase(found);
    free((char *)memory - (GUARD > 0 ? alignment : 0));
    return cudaSuccess;
}

enum { DEVICE_ALIGN = 256, HOST_ALIGN = 4096 };

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    std::lock_guard<std::mutex> guard(memory_lock);
    *memory = NULL;
    if (bytes == 0) return cudaSuccess;
    if (bytes > memory_limit() || used > memory_limit() - bytes) return tell(cudaErrorMemoryAllocation);
    *memory = reserve(device_memory, DEVICE_ALIGN, bytes);
    if (!*memory) return tell(cudaErrorMemoryAllocation);
    used += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    if (!memory) return cudaSuccess;
    std::lock_guard<std::mutex> guard(memory_lock);
    size_t bytes = 0;
    cudaError_t error = release(device_memory, DEVICE_ALIGN, memory, &bytes);
    used -= bytes;
    return error;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    std::lock_guard<std::mutex> guard(memory_lock);
    *memory = reserve(pinned_memory, HOST_ALIGN, bytes ? bytes : 1);
    return tell(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    return cudaHostAlloc(memory, bytes, 0);
}

cudaError_t cudaFreeHost(void *memory)
{
    if (!memory) return cudaSuccess;
    std::lock_guard<std::mutex> guard(memory_lock);
    size_t bytes = 0;
    return release(pinned_memory, HOST_ALIGN, memory, &bytes);
}

/* All of it lies in one allocation of the device (1), none of it does (0), or it runs out of one (-1). */
static int on_device(const void *memory, size_t bytes)
{
    std::lock_guard<std::mutex> guard(memory_lock);
    uintptr_t address = (uintptr_t)memory;
    auto after = device_memory.upper_bound(address);
    if (after != device_memory.begin()) {
        auto before = std::prev(after);
        size_t inside = address - before->first;
        if (inside < before->second) return bytes <= before->second - inside ? 1 : -1;
    }
    return 0;
}

/* A real device refuses, or crashes on, memory that is not where the kind of the copy says. */
static bool fits(const void *memory, size_t bytes, bool device)
{
    return on_device(memory, bytes) == (device ? 1 : 0);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t)
{
    if (bytes == 0) return cudaSuccess;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind != cudaMemcpyDefault && (!fits(to, bytes, to_device) || !fits(from, bytes, from_device)))
        return tell(cudaErrorInvalidValue);
    if (kind == cudaMemcpyDefault && (on_device(to, bytes) < 0 || on_device(from, bytes) < 0))
        return tell(cudaErrorInvalidValue);
    memmove(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (width > to_pitch || width > from_pitch) return tell(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = cudaMemcpyAsync((char *)to + row * to_pitch,
                                            (const char *)from + row * from_pitch, width, kind, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t)
{
    if (bytes == 0) return cudaSuccess;
    if (!fits(memory, bytes, true)) return tell(cudaErrorInvalidValue);
    memset(memory, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return cudaMemsetAsync(memory, value, bytes, NULL);
}

cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    if (width > pitch) return tell(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = cudaMemsetAsync((char *)memory + row * pitch, value, width, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

/* -- streams and events -------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    *stream = (cudaStream_t)calloc(1, sizeof **stream);
    if (!*stream) return tell(cudaErrorMemoryAllocation);
    (*stream)->flags = flags;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, 0, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t event, unsigned)
{
    return tell(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = (cudaEvent_t)calloc(1, sizeof **event);
    return tell(*event ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, 0);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t)
{
    if (!event) return tell(cudaErrorInvalidResourceHandle);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->recorded = true;
    event->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    return tell(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return tell(event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    if (!from || !to || !from->recorded || !to->recorded) return tell(cudaErrorInvalidResourceHandle);
    *milliseconds = (float)(1e3 * (to->seconds - from->seconds));
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}
