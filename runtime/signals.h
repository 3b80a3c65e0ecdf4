/* Requests to stop: SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGXCPU set a flag that every long phase polls. */
#ifndef WPO_RUNTIME_SIGNALS_H
#define WPO_RUNTIME_SIGNALS_H

#include <stdbool.h>

void signals_install(void);
/* Whether this process was asked to stop; ranks must agree (comm_any) before they act on it. */
bool signals_pending(void);

#endif
