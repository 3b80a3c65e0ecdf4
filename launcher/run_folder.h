/* The run folder, output_dir: made, checked and filled with what is known before the first step. Local to
 * rank 0. */
#ifndef WPO_LAUNCHER_RUN_FOLDER_H
#define WPO_LAUNCHER_RUN_FOLDER_H

#include "launcher/progress.h"
#include "launcher/runfile.h"

/* Checks that the inputs are there, then makes the folder, shows that it can be written, and removes an old
 * run if overwrite_output_dir says so. Refuses a folder with anything in it unless the run resumes or
 * overwrites. *before (out) is the run.yaml that a resumed run finds, to be freed, or NULL. */
enum status run_folder_make(const struct runfile *runfile, char **before);

/* Writes run.yaml, notes which keys differ from `before` (may be NULL), and copies the model's config.json
 * and tokenizer files to model/. */
enum status run_folder_write(const struct runfile *runfile, const char *before, struct progress_log *log);

#endif
