/* Training: the whole run from files to checkpoints. */
#ifndef WPO_RUNTIME_TRAIN_H
#define WPO_RUNTIME_TRAIN_H

#include "runtime/comm.h"
#include "runtime/report.h"
#include "runtime/settings.h"

/* Collective. Trains as the settings say; the run folder exists already, and is empty unless the run resumes.
 * `run_file` is the resolved run file as text: it goes into every checkpoint. */
enum status train_run(struct comm *comm, const struct settings *settings, const char *run_file,
                      const struct report *report);

#endif
