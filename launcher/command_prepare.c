#include "launcher/commands.h"
#include "runtime/files.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One word per rank that a launcher started, or 1. */
static long launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *size = getenv(names[i]);
        if (size && *size) return strtol(size, NULL, 10);
    }
    return 1;
}

static const char *text_or(const char *name, const char *otherwise)
{
    const char *text = getenv(name);
    return text && *text ? text : otherwise;
}

static enum status start(const char *home, const char *python, const char *script, int argc, char **argv)
{
    if (!files_exists(script)) {
        return fail("%s is missing; set WPO_HOME to the folder that holds wpo's sources (now: %s)", script,
                    home);
    }
    if (access(python, X_OK) != 0) {
        return fail(
            "there is no Python at %s: run %s/launcher/setup, or set WPO_PYTHON to a Python that has the "
            "packages of launcher/text/requirements.txt",
            python, home);
    }
    char **words = allocate(argc + 3, sizeof *words);
    words[0] = text_copy(python);
    words[1] = text_copy(script);
    for (int i = 0; i < argc; i++)
        words[i + 2] = argv[i];
    signal(SIGPIPE, SIG_DFL);
    execv(python, words);
    enum status status = fail("%s cannot be started: %s", python, strerror(errno));
    free(words[0]);
    free(words[1]);
    free(words);
    return status;
}

static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return true;
    }
    return false;
}

/* The text tool is a program of its own, in Python; this process becomes it. It prints its own help, too, and
 * the page below stands in where it cannot run. */
static enum status run(int argc, char **argv)
{
    bool help = asks_help(argc, argv);
    if (launched() > 1) {
        if (!help)
            return fail_usage("prepare uses the cores of one machine by itself; start it without mpirun");
        if (!speaks()) return STATUS_OK;
    }
    const char *home = text_or("WPO_HOME", WPO_SOURCE_DIR);
    char *own = files_join(home, ".venv/bin/python"), *script = files_join(home, "launcher/text/prepare.py");
    enum status status = start(home, text_or("WPO_PYTHON", own), script, argc, argv);
    free(own);
    free(script);
    if (help) {
        commands_help(stdout, &command_prepare);
        printf("\nNot the whole page: %s\n", status_sentence());
        return STATUS_OK;
    }
    return status;
}

const struct command command_prepare = {
    .name = "prepare",
    .summary = "turn JSONL or Parquet and a model's chat template into a groups file",
    .usage = "wpo prepare --model DIR --data FILE --out groups.h5 [options]",
    .description = "Tokenises prompts and completions in TRL's formats with the model's own tokenizer and "
                   "chat template.",
    .examples = "  wpo prepare --model DIR --data pairs.jsonl --out groups.h5\n"
                "  wpo prepare --model DIR --data pairs.parquet --max-length 1024 --out groups.h5",
    .run = run,
};
