#include "launcher/commands.h"
#include "launcher/keys.h"
#include "launcher/progress.h"
#include "launcher/run_folder.h"
#include "runtime/files.h"
#include "runtime/train.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What rank 0 alone found out, for all: the same status and sentence, without naming a rank. */
static enum status from_root(struct comm *comm, enum status mine)
{
    char sentence[2048] = "";
    int status = (int)mine;
    if (comm->rank == 0) snprintf(sentence, sizeof sentence, "%s", status_sentence());
    comm_broadcast(comm, &status, sizeof status, 0);
    comm_broadcast(comm, sentence, sizeof sentence, 0);
    if (status != STATUS_OK) status_sentence_set(sentence);
    return (enum status)status;
}

/* Rank 0's part of a run: its folder and what the folder had before. */
struct opening {
    const struct runfile *runfile;
    struct progress_log log;
    char *before; /* run.yaml of the run that is resumed, or NULL */
};

static enum status write_folder(void *context)
{
    struct opening *opening = context;
    return run_folder_write(opening->runfile, opening->before, &opening->log);
}

/* The folder, its files, the notes. A new run writes run.yaml at once, so that the folder can be told from
 * others; a resumed one keeps what it finds until nothing can refuse it any more. */
static enum status open_folder(struct opening *opening)
{
    const struct settings *settings = &opening->runfile->settings;
    struct progress_log *log = &opening->log;
    TRY(run_folder_make(opening->runfile, &opening->before));
    TRY(progress_open(log, settings->output_dir, settings->resume_from_checkpoint != NULL,
                      settings->log_pairs, STDERR_FILENO));
    char *sentence = text_format("wpo %s: run folder %s", WPO_VERSION, settings->output_dir);
    progress_record(log, sentence);
    free(sentence);
    for (int64_t i = 0; i < opening->runfile->note_count; i++)
        progress_note(log, opening->runfile->notes[i]);
    enum status status = opening->before ? STATUS_OK : write_folder(opening);
    if (status != STATUS_OK) progress_close(log);
    return status;
}

static enum status train_in(struct comm *comm, struct opening *opening)
{
    const struct runfile *runfile = opening->runfile;
    TRY(from_root(comm, comm->rank == 0 ? open_folder(opening) : STATUS_OK));
    struct report report = comm->rank == 0 ? progress_report(&opening->log) : progress_silence();
    if (opening->before) {
        report.opened = write_folder;
        report.opening = opening;
    }
    enum status status = train_run(comm, &runfile->settings, runfile->text, &report);
    if (comm->rank == 0) {
        if (status != STATUS_OK) {
            char *sentence = text_format("stopped: %s", status_sentence());
            progress_record(&opening->log, sentence);
            free(sentence);
        }
        progress_close(&opening->log);
    }
    return status;
}

static enum status train(struct comm *comm, const struct runfile *runfile)
{
    struct opening opening = {.runfile = runfile};
    enum status status = train_in(comm, &opening);
    free(opening.before);
    return status;
}

static enum status run(int argc, char **argv)
{
    if (argc == 1 && !strcmp(argv[0], "--help-keys")) {
        if (speaks()) keys_print(stdout);
        return STATUS_OK;
    }
    struct runfile runfile;
    TRY(runfile_read(&runfile, argc, argv));
    struct comm comm;
    enum status status = comm_open(&comm);
    if (status == STATUS_OK) status = train(&comm, &runfile);
    comm_close(&comm);
    runfile_free(&runfile);
    return status;
}

const struct command command_train = {
    .name = "train",
    .summary = "train a model as a run file says",
    .usage = "[mpirun -n R] wpo train run.yaml [--key value ...]\n       wpo train --help-keys",
    .description =
        "The run file holds `key: value` lines under the names of TRL and Transformers. Every key can be "
        "given\n"
        "on the command line too, and wins there. --help-keys prints the reference of all keys, of other\n"
        "names for them, and of other trainers' keys that are known.",
    .options = run_keys,
    .option_count = RUN_KEYS,
    .examples = "  mpirun -n 2 wpo train run.yaml\n"
                "  mpirun -n 4 wpo train run.yaml --learning_rate 5e-7 --output_dir runs/second\n"
                "  mpirun -n 4 wpo train run.yaml --resume_from_checkpoint auto",
    .run = run,
};
