/* Errors at the edges: files, options, the network, other people's data.
 *
 * A function that can fail for a reason outside the program returns enum status. It records one sentence for
 * a tired operator: what is wrong, where (file, field, row), and what to do about it. main() prints it once
 * and turns the status into the exit code. */
#ifndef WPO_RUNTIME_STATUS_H
#define WPO_RUNTIME_STATUS_H

#include <stdbool.h>

enum status {
    STATUS_OK = 0,
    STATUS_BAD = 1,      /* bad input or a failed system call: exit code 1 */
    STATUS_USAGE = 2,    /* the command line or the run file: exit code 2 */
    STATUS_STOPPED = 75, /* a signal asked the run to stop, and it can be resumed: exit code 75 */
};

/* Records the sentence (at most 2047 bytes, no newline, no full stop needed) and returns STATUS_BAD /
 * STATUS_USAGE. */
enum status fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
enum status fail_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));
enum status fail_stopped(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The sentence of the latest failure of this process; "" if there was none. */
const char *status_sentence(void);
void status_sentence_set(const char *sentence);

/* Passes a failure on to the caller. */
#define TRY(expression)                                                                                      \
    do {                                                                                                     \
        enum status try_status = (expression);                                                               \
        if (try_status != STATUS_OK) return try_status;                                                      \
    } while (0)

/* Memory for host structures, cleared. Running out of it ends all ranks with a sentence that says how much
 * was asked. count * size is checked for overflow. Release with free(). */
void *allocate(long long count, unsigned long size);
char *text_copy(const char *text);
/* Formatted text, to be released with free(). */
char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
