/* Stacks and the switch between them: a handful of instructions on x86-64, where swapcontext() would ask the
 * kernel for the signal mask each time; the C library's contexts elsewhere. AddressSanitizer is told which
 * stack is in use. */
#include "emulator.h"
#include "fibers.h"

#include <stdlib.h>
#include <sys/mman.h>

#ifdef CUDA_ON_CPU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK_BYTES = 256 << 10, GUARD_BYTES = 4 << 10 };

/* -- the switch ---------------------------------------------------------------------------------- */

#ifndef CUDA_ON_CPU_UCONTEXT
/* What the calling convention keeps is pushed, the stack changed, and the other's popped. The jump instead of
 * a return lets the processor predict where it goes. */
extern "C" void cuda_on_cpu_switch(void **from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".type cuda_on_cpu_switch,@function\n"
        "cuda_on_cpu_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  popq %rcx\n"
        "  jmp *%rcx\n"
        ".size cuda_on_cpu_switch, .-cuda_on_cpu_switch\n");
#endif

#ifdef CUDA_ON_CPU_ASAN
static struct fiber *left_from; /* who switched last */

static void leave(struct fiber *from, struct fiber *to, bool ending)
{
    left_from = from;
    __sanitizer_start_switch_fiber(ending ? NULL : &from->fake_stack, to->bottom, to->bytes);
}

/* The program's own stack is learned when a fiber is entered from it. */
static void arrive(void *fake_stack)
{
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    left_from->bottom = (char *)bottom;
    left_from->bytes = bytes;
}

/* A fiber that ended in fiber_switch() never returned from it and a few others: what the sanitizer noted of
 * their frames, at the top of the stack, goes. */
static void clean(struct fiber *fiber)
{
    __asan_unpoison_memory_region(fiber->top - 4096, 4096);
}
#else
static void leave(struct fiber *, struct fiber *, bool) {}
static void arrive(void *) {}
static void clean(struct fiber *) {}
#endif

static void begin()
{
    arrive(NULL);
    fiber_main();
}

void fiber_switch(struct fiber *from, struct fiber *to, bool ending)
{
    leave(from, to, ending);
#ifndef CUDA_ON_CPU_UCONTEXT
    cuda_on_cpu_switch(&from->stack_pointer, to->stack_pointer);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrive(from->fake_stack);
}

/* -- stacks -------------------------------------------------------------------------------------- */

void fiber_create(struct fiber *fiber, unsigned number)
{
    if (fiber->bottom) return;
    void *memory = mmap(NULL, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, GUARD_BYTES, PROT_NONE) != 0)
        cuda_on_cpu_fail("no memory for the stack of thread %u", number);
    fiber->bottom = (char *)memory + GUARD_BYTES;
    fiber->bytes = STACK_BYTES;
    fiber->top = fiber->bottom + STACK_BYTES - number * 320 % 4096;
}

void fiber_start(struct fiber *fiber)
{
    clean(fiber);
#ifndef CUDA_ON_CPU_UCONTEXT
    /* Six registers, where to begin, and the return address that a function finds 8 bytes above a multiple
     * of 16. */
    void **frame = (void **)fiber->top - 8;
    for (int i = 0; i < 8; i++)
        frame[i] = NULL;
    frame[6] = (void *)begin;
    fiber->stack_pointer = frame;
#else
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->bottom;
    fiber->context.uc_stack.ss_size = (size_t)(fiber->top - fiber->bottom);
    fiber->context.uc_link = NULL;
    makecontext(&fiber->context, begin, 0);
#endif
}
