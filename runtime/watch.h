/* The watchdog: finds the rank that the others wait for, and ends the run with a sentence that names it.
 *
 * A thread on every rank tells rank 0 each second over TCP where its rank is: in which collective, the
 * how-manieth, since when. mpirun notices a process that dies; it does not notice one that is stopped, hangs
 * in a file system, or sits behind a cut link, and neither does a collective that waits for it. Rank 0
 * judges; should it be the one that is silent, rank 1 does, and then the others. Time in which a rank's own
 * process did not run is not counted, so that a job may be suspended as a whole. */
#ifndef WPO_RUNTIME_WATCH_H
#define WPO_RUNTIME_WATCH_H

#include "runtime/status.h"

struct comm;

/* Collective. seconds: how long a rank may wait in a collective while another has not entered it, and how
 * long one may be silent; <= 0 or one rank: no watchdog. The run then ends within twice that time on every
 * rank, with exit code 1 and one line from the rank that noticed, one of rank 3 on node7 has not answered for
 * 600 s (last seen in: gradient reduction, number 812): it is ... rank 3 on node7 is stuck (last seen after:
 * sum of metrics, number 811): 3 ranks have waited for 600 s in: ... all 4 ranks have been in the same
 * collective for 600 s without an end: ... The links between hosts are those of runtime/links.h. */
enum status watch_open(struct comm *comm, double seconds);
/* Local; does nothing when it is not open. This rank is not missed any more. */
void watch_close(void);

/* Local, cheap, from the main thread. This rank waits in a collective from now on: `what` (static storage)
 * says in which. Every rank makes these calls in the same order, as it makes collectives. Calls without
 * watch_open do nothing. */
void watch_enter(const char *what);
void watch_leave(void);

#endif
