/* Files of lines that grow while a run goes on: log.txt, metrics.jsonl, pairs.jsonl. A full disk must not end
 * a run: a line that cannot be written is dropped whole, and the next one is tried again. Local to rank 0. */
#ifndef WPO_LAUNCHER_JOURNAL_H
#define WPO_LAUNCHER_JOURNAL_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

struct journal {
    int descriptor; /* -1: not open; writing does nothing */
    int64_t size;   /* bytes of whole lines */
    bool warned;
    char *path;
};

/* Opens the file, empty, or to go on with: then a last line without an end, left by a run that was killed, is
 * cut off. */
enum status journal_open(struct journal *journal, const char *path, bool append);
void journal_close(struct journal *journal);

/* Adds the line and a newline with one write. Returns false on failure; *why (out) is then the reason to show
 * to the user, or NULL if one was shown before. */
bool journal_add(struct journal *journal, const char *line, const char **why);

/* Cuts the file off before the first line for which `later` says so. */
void journal_rewind(struct journal *journal, bool (*later)(const void *context, const char *line),
                    const void *context);

#endif
