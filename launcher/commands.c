#include "launcher/commands.h"

#include "kernels/ops.h"
#include "runtime/comm.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct command *const commands[] = {&command_prepare, &command_init,   &command_train,
                                                 &command_eval,    &command_export, &command_inspect};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

bool speaks(void)
{
    return comm_launched_rank() == 0;
}

static void print_overview(FILE *stream)
{
    fprintf(
        stream,
        "Usage: wpo COMMAND [words]\n\n"
        "Trains language models on preferences, from Hugging Face checkpoint to Hugging Face checkpoint.\n\n"
        "Commands:\n");
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(stream, "  %-10s%s\n", commands[i]->name, commands[i]->summary);
    fprintf(stream,
            "\nwpo COMMAND --help tells more; wpo --version names the version and what it was built with.\n\n"
            "Examples:\n"
            "  wpo prepare --model DIR --data pairs.jsonl --out groups.h5\n"
            "  mpirun -n 2 wpo train run.yaml\n"
            "  wpo export --run runs/first --out my-model\n");
}

void commands_help(FILE *stream, const struct command *command)
{
    fprintf(stream, "Usage: %s\n\n", command->usage);
    if (command->description) fprintf(stream, "%s\n\n", command->description);
    if (command->option_count > 0) {
        fprintf(stream, "Options:\n");
        options_print(stream, command->options, command->option_count);
        fputc('\n', stream);
    }
    fprintf(stream, "Examples:\n%s\n", command->examples);
}

static void print_version(void)
{
    const char *backends = cuda_ops() ? "cpu, cuda" : "cpu";
    printf("wpo %s\nbackends: %s\nbuilt with: MPI, parallel HDF5, oneDNN, jansson, libyaml, OpenSSL; "
           "compiler %s\n",
           WPO_VERSION, backends, __VERSION__);
}

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < COMMANDS; i++) {
        if (!strcmp(commands[i]->name, name)) return commands[i];
    }
    return NULL;
}

static int complain(const char *name, enum status status)
{
    if (speaks())
        fprintf(stderr, "wpo%s%s: %s\n", name ? " " : "", name ? name : "", status_sentence());
    else
        usleep(300000); /* mpirun ends all ranks as soon as one fails: the one that speaks goes first */
    fflush(stderr);
    return (int)status;
}

static int unknown(const char *name)
{
    const char *names[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++)
        names[i] = commands[i]->name;
    const char *nearest = nearest_word(name, names, COMMANDS);
    if (nearest) return complain(NULL, fail_usage("'%.60s' is no command (did you mean %s?)", name, nearest));
    return complain(NULL, fail_usage("'%.60s' is no command (see wpo --help)", name));
}

static bool is_help(const char *word)
{
    return !strcmp(word, "--help") || !strcmp(word, "-h");
}

static bool asks_help(const struct command *command, int argc, char **argv)
{
    for (int i = 0; command->options && i < argc && strcmp(argv[i], "--"); i++) {
        if (is_help(argv[i])) return true;
    }
    return false;
}

/* What was printed must have arrived; a reader that went away (`wpo inspect | head`) needs no sentence. */
static int finish(const char *name)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    if (errno == EPIPE) return 1;
    return complain(name, fail("standard output cannot be written: %s", strerror(errno)));
}

static int run(const struct command *command, int argc, char **argv)
{
    if (asks_help(command, argc, argv)) {
        if (speaks()) commands_help(stdout, command);
        return finish(command->name);
    }
    enum status status = command->run(argc, argv);
    fflush(stdout);
    if (status != STATUS_OK) return complain(command->name, status);
    return finish(command->name);
}

static int help(int argc, char **argv)
{
    if (argc == 0) {
        if (speaks()) print_overview(stdout);
        return finish(NULL);
    }
    const struct command *command = find(argv[0]);
    if (!command) return unknown(argv[0]);
    char *word = "--help";
    return run(command, 1, &word);
}

int commands_main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a closed terminal or pipe is an error of one write, not the end of a run */
    if (argc < 2) {
        if (speaks()) print_overview(stderr);
        return STATUS_USAGE;
    }
    const char *name = argv[1];
    if (is_help(name) || !strcmp(name, "help")) return help(argc - 2, argv + 2);
    if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        if (speaks()) print_version();
        return finish(NULL);
    }
    if (name[0] == '-') return complain(NULL, fail_usage("unknown option %.60s (see wpo --help)", name));
    const struct command *command = find(name);
    return command ? run(command, argc - 2, argv + 2) : unknown(name);
}
