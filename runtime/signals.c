#include "runtime/signals.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t pending;

static void note_signal(int number)
{
    (void)number;
    pending = 1;
}

void signals_install(void)
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGXCPU};
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
}

bool signals_pending(void)
{
    return pending != 0;
}
