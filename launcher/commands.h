/* The commands of `wpo`. Each command_*.c defines one; main.c finds it by name, prints its help, runs it,
 * prints the sentence of a failure as `wpo NAME: SENTENCE` and turns the status into the exit code. */
#ifndef WPO_LAUNCHER_COMMANDS_H
#define WPO_LAUNCHER_COMMANDS_H

#include "launcher/options.h"

struct command {
    const char *name;
    const char *summary;     /* one line for `wpo --help` */
    const char *usage;       /* the lines after "Usage: ", without a newline at the end */
    const char *description; /* a paragraph, or NULL; no newline at the end */
    const struct option
        *options; /* what help lists; NULL: the command reads its words, --help too, by itself */
    int64_t option_count;
    const char *examples; /* lines, two spaces in front of each, without a newline at the end */
    /* argv holds the words after the command's name; `--help` and `-h` never get here. Opens and closes MPI
     * itself if it needs it. Prints results on standard output; a failure's sentence is left to main. */
    enum status (*run)(int argc, char **argv);
};

extern const struct command command_prepare, command_init, command_train, command_eval, command_export,
    command_inspect;

/* All of the program but main(): finds the command, prints help, runs it. Returns the exit code. */
int commands_main(int argc, char **argv);

/* The page of `wpo NAME --help`. */
void commands_help(FILE *stream, const struct command *command);

/* True on the one process that prints: rank 0 as the launcher's environment variables tell it, or a process
 * that was not launched by one. Works before MPI starts. */
bool speaks(void);

#endif
