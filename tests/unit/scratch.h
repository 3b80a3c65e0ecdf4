/* A folder of its own for a test that writes files; removed at the end. */
#ifndef WPO_TESTS_SCRATCH_H
#define WPO_TESTS_SCRATCH_H

#include "runtime/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char scratch_folder[512];

static inline void scratch_end(void)
{
    files_remove_tree(scratch_folder);
}

static inline void scratch_begin(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(scratch_folder, sizeof scratch_folder, "%s/wpo-test-XXXXXX", base && *base ? base : "/tmp");
    if (!mkdtemp(scratch_folder)) {
        perror(scratch_folder);
        exit(1);
    }
    atexit(scratch_end);
}

/* The path of a name in the folder; good until the fourth call after this one. */
static inline const char *scratch_path(const char *name)
{
    static char paths[4][1024];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", scratch_folder, name);
    return path;
}

/* Writes or overwrites a file. */
static inline const char *scratch_write(const char *name, const void *bytes, size_t count)
{
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, count, file) != count || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
    return path;
}

static inline const char *scratch_text(const char *name, const char *text)
{
    return scratch_write(name, text, strlen(text));
}

#endif
