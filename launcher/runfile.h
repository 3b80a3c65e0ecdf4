/* Run files: YAML, with the key names of TRL and Transformers, one `key: value` a line. Every key can be
 * given or overridden on the command line. The table of keys is in keys.c; runfile.c is the only file that
 * knows YAML. */
#ifndef WPO_LAUNCHER_RUNFILE_H
#define WPO_LAUNCHER_RUNFILE_H

#include "launcher/options.h"
#include "runtime/settings.h"

/* The keys that take a list, with commas between. What they say stands in settings.objective once they are
 * checked, and they are then written in one way: "sigmoid,sft". */
struct loss_lists {
    char *loss_type, *loss_weights; /* weights NULL: 1 each */
};

struct runfile {
    struct settings settings;
    struct loss_lists losses;
    bool overwrite_output_dir;
    int schedule; /* the word of lr_scheduler_type: constant_with_warmup is one of its own */
    char *text;   /* the resolved run file: every key, defaults included; reads back to the same settings */
    char *notes[64]; /* sentences for the user: aliases that were read, keys without effect */
    int64_t note_count;
};

/* Reads, resolves and checks. The words are those after `wpo train`: the run file's path, and `--key value`
 * and so on (see options.h), which win over the file. Errors are STATUS_USAGE and name file, line and key;
 * after one, nothing needs to be freed. */
enum status runfile_read(struct runfile *runfile, int argc, char **argv);
void runfile_free(struct runfile *runfile);

/* One scalar of a resolved run file; *value is to be freed, and NULL for null. A missing key is an error. */
enum status runfile_text_value(const char *text, const char *key, char **value);

/* Calls back with "learning_rate: 1e-06 -> 2e-06" for every key whose value differs between two resolved run
 * files, but for those that say how to start (resume_from_checkpoint, overwrite_output_dir). */
enum status runfile_differences(const char *before, const char *after,
                                void (*each)(void *context, const char *sentence), void *context);

#endif
