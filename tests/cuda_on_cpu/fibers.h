/* A stack for each thread of a block, and the switch from one to another. */
#ifndef WPO_CUDA_ON_CPU_FIBERS_H
#define WPO_CUDA_ON_CPU_FIBERS_H

#include <stddef.h>

/* May be defined on x86-64 as well. */
#if !defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT 1
#endif

#ifdef CUDA_ON_CPU_UCONTEXT
#include <ucontext.h>
#endif

struct fiber {
    void *stack_pointer; /* where it goes on, x86-64 */
    char *bottom, *top;  /* of its stack; NULL: none yet, or the program's own */
    size_t bytes;
    void *fake_stack; /* AddressSanitizer's */
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t context;
#endif
};

/* Gives it a stack if it has none. number: of the thread, by which stacks begin at different places within a
 * page, so that they do not all want the same lines of the cache. */
void fiber_create(struct fiber *fiber, unsigned number);
/* It begins with fiber_main() when it is switched to next. */
void fiber_start(struct fiber *fiber);
/* Runs `to` until something switches back to `from`, which never happens if it is ending. */
void fiber_switch(struct fiber *from, struct fiber *to, bool ending);

void fiber_main();

#endif
