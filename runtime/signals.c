#include "runtime/signals.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t pending;

static void note_signal(int number)
{
    (void)number;
    pending = 1;
}

static void stop_signals(sigset_t *set)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGXCPU};
    sigemptyset(set);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(set, numbers[i]);
}

/* The matrix library's kernels use the stack pointer as a general register while they run, so a handler that
 * runs in the middle of one writes its frame over the heap. The signals are therefore blocked in this thread
 * and in all that it starts from now on, and asked for; the handler is for threads that others started
 * before, which compute nothing. */
void signals_install(void)
{
    sigset_t set;
    stop_signals(&set);
    for (int number = 1; number < NSIG; number++) {
        if (sigismember(&set, number) != 1) continue;
        struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART, .sa_mask = set};
        sigaction(number, &action, NULL);
    }
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

bool signals_pending(void)
{
    sigset_t set, waiting;
    stop_signals(&set);
    sigpending(&waiting);
    sigandset(&waiting, &waiting, &set);
    return pending != 0 || !sigisemptyset(&waiting);
}
