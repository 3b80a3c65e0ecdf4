/* What the files of the emulator share. */
#ifndef WPO_CUDA_ON_CPU_EMULATOR_H
#define WPO_CUDA_ON_CPU_EMULATOR_H

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_ON_CPU_ASAN      1
#define CUDA_ON_CPU_UNCHECKED __attribute__((no_sanitize_address, noinline))
#else
#define CUDA_ON_CPU_UNCHECKED __attribute__((noinline))
#endif

enum { LANES = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / LANES, SHARED_FREE = 48 << 10 };

/* The numbers that orders are drawn from: the same in every run, unless CUDA_ON_CPU_SEED says otherwise. */
uint64_t draw();

/* -- shared memory, shared_on_cpu.cpp ---------------------------------------------------------- */

void shared_open(size_t dynamic_bytes); /* of one launch */
void shared_fill();                     /* NaN everywhere, before each block */
void shared_check();                    /* that nothing was written beyond, after each block */
void shared_close();
bool shared_holds(const void *address, size_t bytes);
size_t shared_limit();                       /* dynamic, bytes a block of this device may ask for */
size_t shared_allowed(const void *function); /* what cudaFuncSetAttribute allowed for the kernel */

/* -- copies under way, ptx_on_cpu.cpp ----------------------------------------------------------- */

void copies_forget(unsigned thread);

#endif
