/* What a person sees of a run, and what stays of it in its folder. On a terminal one live line is redrawn;
 * elsewhere every record is a plain line. log.txt holds notes and lines with the time, metrics.jsonl one JSON
 * object a record, pairs.jsonl one per pair and step. Local to rank 0; nothing here ever fails a run that has
 * begun. */
#ifndef WPO_LAUNCHER_PROGRESS_H
#define WPO_LAUNCHER_PROGRESS_H

#include "launcher/journal.h"
#include "runtime/report.h"

struct progress_log {
    int screen; /* file descriptor, mostly standard error */
    bool live;  /* it is a terminal that can redraw a line */
    bool shown; /* a live line stands on it */
    struct journal log, metrics, pairs;
    bool metrics_rewound, pairs_rewound; /* records of the abandoned end of an earlier run were cut off */
    double start;                        /* seconds of a clock that never goes back */
    double drawn, spoken; /* when the live line was drawn; when a plain line told how a phase goes */
    struct progress latest;
    double phase_start;
    int64_t phase_first; /* what was done when the phase was first seen */
};

/* folder NULL: no files. append: go on with the files of an earlier run; its records that the new run makes
 * again are cut off when the first one comes. pairs: open pairs.jsonl. After an error nothing is to be
 * closed. */
enum status progress_open(struct progress_log *log, const char *folder, bool append, bool pairs, int screen);
void progress_close(struct progress_log *log);

/* The report that writes here; valid as long as the log. */
struct report progress_report(struct progress_log *log);
/* A report that says nothing, for the ranks that do not print. */
struct report progress_silence(void);

/* A sentence on the screen and in log.txt. */
void progress_note(struct progress_log *log, const char *sentence);
/* In log.txt alone. */
void progress_record(struct progress_log *log, const char *sentence);

/* A number for people, with four significant digits: 0.6931, 1e-06, 12.34k. text [32] */
const char *progress_number(char text[32], double value);
/* A duration: 9 s, 4:05, 1:02:03. text [32] */
const char *progress_duration(char text[32], double seconds);

/* The live line, in at most `columns` characters: parts that do not fit are left out, the later ones first.
 */
void progress_line(char *text, size_t room, const struct progress *progress, double seconds_left,
                   int columns);

#endif
