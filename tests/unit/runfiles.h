/* Run files of a few lines, for the tests of what is read from them. */
#ifndef WPO_TESTS_UNIT_RUNFILES_H
#define WPO_TESTS_UNIT_RUNFILES_H

#include "launcher/keys.h"
#include "tests/check.h"

#include <unistd.h>

static char path[] = "/tmp/wpo-runfile-XXXXXX";
static const char basis[] = "model_name_or_path: m\ntrain_file: t.h5\noutput_dir: o\n";

static inline void write_bytes(const char *bytes, size_t count)
{
    FILE *file = fopen(path, "w");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) exit(1);
}

/* The basis and some lines, with words of a command line. */
static inline enum status read_run(struct runfile *runfile, const char *lines, const char *line)
{
    char text[4096], copy[512], *words[32] = {path};
    snprintf(text, sizeof text, "%s%s", basis, lines);
    write_bytes(text, strlen(text));
    int count = 1;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        words[count++] = word;
    status_sentence_set("");
    return runfile_read(runfile, count, words);
}

static inline void check_fails(const char *lines, const char *line, const char *sentence)
{
    struct runfile runfile;
    enum status status = read_run(&runfile, lines, line);
    CHECK(status == STATUS_USAGE);
    CHECK_TEXT(status_sentence(), sentence);
    CHECK(!strchr(status_sentence(), '\n'));
    if (status == STATUS_OK) runfile_free(&runfile);
}

#endif
