/* The CUDA runtime on the CPU: kernels run without a GPU and without the CUDA toolkit.
 *
 * This file stands before the toolkit's of the same name on the include path. A kernel file is compiled as
 * C++:
 *
 *   g++ -std=c++17 -O2 -g -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -D_GNU_SOURCE \
 *       -Itests/cuda_on_cpu -I. -x c++ -c kernels/cuda/rows.cu -o rows.o
 *
 * and a test in C with the kernels it needs, from the root of the tree (for the sanitizers add
 * -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer to both lines and run with
 * ASAN_OPTIONS=detect_leaks=0):
 *
 *   gcc -std=c17 -O2 -g -D_GNU_SOURCE -I. -c kernels/require.c kernels/packing.c my_test.c
 *   g++ -std=c++17 -O2 -g -fno-strict-aliasing -Wall -Wextra -Wno-unknown-pragmas -Itests/cuda_on_cpu -I. \
 *       require.o packing.o my_test.o -x c++ kernels/cuda/rows.cu \
 *       tests/cuda_on_cpu/{threads,fibers,shared,runtime,ptx,gemm}_on_cpu.cpp -o my_test
 *
 * With CMake: ninja emulated_test_unit_ops_layers, or emulated_... of any tests/unit/test_ops_*.c and
 * test_model*.c.
 *
 * What a kernel may rely on, and what ends the process with one sentence:
 *
 * Threads of a block run one at a time, each on a stack of its own, in an order drawn anew at every turn
 * (CUDA_ON_CPU_SEED=n draws another); blocks run one after another, in drawn order. A launch is done when it
 * returns.
 *
 * __shared__ arrays (of fixed size; write __align__(16), not alignas) and SHARED_DYNAMIC are filled with NaN
 * (bytes 0xff) before each block, memory of cudaMalloc when it is allocated. Dynamic shared memory above 48
 * KiB must be allowed by cudaFuncSetAttribute first.
 *
 * All threads of a block reach the same __syncthreads(), all lanes of a mask the same collective, or the
 * process ends. Lanes that have returned take no part in anything any more: let whole warps return, or none.
 *
 * A shuffle from a lane outside its mask, a misaligned ldmatrix or cp.async, an address that is not in shared
 * memory where one must be: the process ends. cp.async fills its target with NaN when it is issued, and with
 * the data when it is waited for.
 *
 * Accesses out of bounds and misaligned ones are found by the sanitizers. Without them, what is read beyond
 * device memory is NaN, and what is written there is noticed when it is freed.
 *
 * The device: CUDA_ON_CPU_DEVICES (1), of which the first is number CUDA_ON_CPU_FIRST (0) of the machine,
 * CUDA_ON_CPU_CAPABILITY (9.0), CUDA_ON_CPU_MEMORY (8G; K, M, G).
 * The first part is C as well; kernels are C++. */
#ifndef WPO_CUDA_ON_CPU_CUDA_RUNTIME_H
#define WPO_CUDA_ON_CPU_CUDA_RUNTIME_H

#define CUDA_ON_CPU 1

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CUDART_VERSION 13000

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999
};
typedef enum cudaError cudaError_t;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};

#define cudaStreamDefault      0x00
#define cudaStreamNonBlocking  0x01
#define cudaEventDefault       0x00
#define cudaEventBlockingSync  0x01
#define cudaEventDisableTiming 0x02
#define cudaHostAllocDefault   0x00
#define cudaHostAllocPortable  0x01
#define cudaHostAllocMapped    0x02

enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

struct cudaDeviceProp {
    char name[256];
    struct {
        char bytes[16];
    } uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
    int major, minor, multiProcessorCount, warpSize, maxThreadsPerBlock, regsPerBlock, l2CacheSize,
        ECCEnabled;
    int memoryBusWidth, pciBusID, pciDeviceID, pciDomainID;
};

enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, maxDynamicSharedSizeBytes;
};

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaDeviceReset(void);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);

cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);

cudaError_t cudaMalloc(void **memory, size_t bytes);
cudaError_t cudaFree(void *memory);
cudaError_t cudaMallocHost(void **memory, size_t bytes);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemset(void *memory, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream);

cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaEventDestroy(cudaEvent_t event);

#ifdef __cplusplus
}
#include "device_on_cpu.h"
#endif

#endif
