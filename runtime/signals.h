/* Requests to stop: SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGXCPU, which every long phase polls for. */
#ifndef WPO_RUNTIME_SIGNALS_H
#define WPO_RUNTIME_SIGNALS_H

#include <stdbool.h>

/* To be called before the first parallel region. */
void signals_install(void);
/* Whether this process was asked to stop; ranks must agree (comm_any) before they act on it. */
bool signals_pending(void);

#endif
