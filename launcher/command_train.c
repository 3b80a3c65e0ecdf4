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

/* Rank 0's part before training: the folder, its files, the notes. */
static enum status open_folder(const struct runfile *runfile, struct progress_log *log)
{
    const struct settings *settings = &runfile->settings;
    char *before = NULL;
    TRY(run_folder_make(runfile, &before));
    bool resumes = settings->resume_from_checkpoint != NULL;
    enum status status =
        progress_open(log, settings->output_dir, resumes, settings->log_pairs, STDERR_FILENO);
    if (status != STATUS_OK) {
        free(before);
        return status;
    }
    char *opening = text_format("wpo %s: run folder %s", WPO_VERSION, settings->output_dir);
    progress_record(log, opening);
    free(opening);
    for (int64_t i = 0; i < runfile->note_count; i++)
        progress_note(log, runfile->notes[i]);
    status = run_folder_write(runfile, before, log);
    free(before);
    if (status != STATUS_OK) progress_close(log);
    return status;
}

static enum status train(struct comm *comm, const struct runfile *runfile)
{
    struct progress_log log = {0};
    TRY(from_root(comm, comm->rank == 0 ? open_folder(runfile, &log) : STATUS_OK));
    struct report report = comm->rank == 0 ? progress_report(&log) : progress_silence();
    enum status status = train_run(comm, &runfile->settings, runfile->text, &report);
    if (comm->rank == 0) {
        if (status != STATUS_OK) {
            char *sentence = text_format("stopped: %s", status_sentence());
            progress_record(&log, sentence);
            free(sentence);
        }
        progress_close(&log);
    }
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
