#include "launcher/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The bytes up to the last newline. */
static int64_t whole_lines(int descriptor, int64_t size)
{
    char part[4096];
    while (size > 0) {
        int64_t first = size > (int64_t)sizeof part ? size - (int64_t)sizeof part : 0;
        ssize_t got = pread(descriptor, part, (size_t)(size - first), first);
        if (got <= 0) return size;
        const char *newline = memrchr(part, '\n', (size_t)got);
        if (newline) return first + (newline - part) + 1;
        size = first;
    }
    return 0;
}

static enum status start(struct journal *journal)
{
    struct stat stat;
    if (fstat(journal->descriptor, &stat) != 0) {
        return fail("%s: cannot be examined: %s", journal->path, strerror(errno));
    }
    if (!S_ISREG(stat.st_mode)) return fail("%s: not a regular file; move it away", journal->path);
    journal->size = whole_lines(journal->descriptor, stat.st_size);
    if (ftruncate(journal->descriptor, journal->size) != 0) {
        return fail("%s: cannot be cut off after its last whole line: %s", journal->path, strerror(errno));
    }
    return STATUS_OK;
}

enum status journal_open(struct journal *journal, const char *path, bool append)
{
    int flags = O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | (append ? 0 : O_TRUNC);
    *journal = (struct journal){.descriptor = open(path, flags, 0666)};
    if (journal->descriptor < 0) return fail("%s: cannot be opened for writing: %s", path, strerror(errno));
    journal->path = text_copy(path);
    enum status status = start(journal);
    if (status != STATUS_OK) journal_close(journal);
    return status;
}

void journal_close(struct journal *journal)
{
    if (journal->descriptor >= 0) close(journal->descriptor);
    free(journal->path);
    *journal = (struct journal){.descriptor = -1};
}

/* All of the bytes, or none: what a short write left behind is cut off again. */
static bool write_whole(struct journal *journal, const char *bytes, size_t count)
{
    size_t done = 0;
    while (done < count) {
        ssize_t wrote = write(journal->descriptor, bytes + done, count - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) {
            int reason = wrote < 0 ? errno : ENOSPC;
            bool cut = ftruncate(journal->descriptor, journal->size) == 0;
            errno = reason;
            return cut && false;
        }
        done += (size_t)wrote;
    }
    journal->size += (int64_t)count;
    return true;
}

bool journal_add(struct journal *journal, const char *line, const char **why)
{
    *why = NULL;
    if (journal->descriptor < 0) return true;
    char *bytes = text_format("%s\n", line);
    bool written = write_whole(journal, bytes, strlen(bytes));
    int reason = errno;
    free(bytes);
    if (!written && !journal->warned) {
        journal->warned = true;
        *why = strerror(reason);
    }
    return written;
}

void journal_rewind(struct journal *journal, bool (*later)(const void *context, const char *line),
                    const void *context)
{
    FILE *file = journal->descriptor < 0 ? NULL : fopen(journal->path, "r");
    if (!file) return;
    char *line = NULL;
    size_t room = 0;
    int64_t at = 0;
    ssize_t length;
    while ((length = getline(&line, &room, file)) > 0) {
        if (later(context, line)) {
            if (ftruncate(journal->descriptor, at) == 0) journal->size = at;
            break;
        }
        at += length;
    }
    free(line);
    fclose(file);
}
