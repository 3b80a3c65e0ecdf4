#include "launcher/progress.h"

#include "runtime/clock.h"
#include "runtime/files.h"
#include "runtime/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 512 };
static const double redraw_seconds = 0.1, speak_seconds = 60;

/* -- numbers for people ----------------------------------------------------------------------- */

const char *progress_number(char text[32], double value)
{
    static const char *const suffixes[] = {"", "k", "M", "G", "T"};
    int suffix = 0;
    if (fabs(value) >= 9999.5 && fabs(value) < 9.9995e14) {
        while (fabs(value) >= 999.95 && suffix < 4) {
            value /= 1000;
            suffix++;
        }
    }
    snprintf(text, 32, "%.4g%s", value, suffixes[suffix]);
    return text;
}

const char *progress_duration(char text[32], double seconds)
{
    long long whole = seconds < 1e12 && seconds > 0 ? (long long)(seconds + 0.5) : 0;
    if (!(seconds < 1e12)) {
        snprintf(text, 32, "?");
    } else if (whole < 60) {
        snprintf(text, 32, "%lld s", whole);
    } else if (whole < 3600) {
        snprintf(text, 32, "%lld:%02lld", whole / 60, whole % 60);
    } else {
        snprintf(text, 32, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    }
    return text;
}

/* -- the screen ------------------------------------------------------------------------------- */

/* A screen that went away is no reason to stop. */
static void screen_write(const struct progress_log *log, const char *text)
{
    size_t left = strlen(text);
    while (left > 0) {
        ssize_t wrote = write(log->screen, text, left);
        if (wrote <= 0) return;
        text += wrote;
        left -= (size_t)wrote;
    }
}

static int screen_columns(const struct progress_log *log)
{
    struct winsize size;
    if (ioctl(log->screen, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

static void screen_print(struct progress_log *log, const char *line)
{
    char *text = text_format("%s%s\n", log->shown ? "\r\033[K" : "", line);
    screen_write(log, text);
    free(text);
    log->shown = false;
}

static void append(char *text, size_t room, int columns, const char *part)
{
    size_t used = strlen(text);
    if (used + strlen(part) > (size_t)columns || used + strlen(part) >= room) return;
    memcpy(text + used, part, strlen(part) + 1);
}

static void append_number(char *text, size_t room, int columns, const char *name, double value)
{
    if (!isfinite(value)) return;
    char number[32], part[64];
    snprintf(part, sizeof part, "  %s %s", name, progress_number(number, value));
    append(text, room, columns, part);
}

void progress_line(char *text, size_t room, const struct progress *progress, double seconds_left, int columns)
{
    char part[64], number[32];
    *text = 0;
    snprintf(part, sizeof part, "%.20s %lld/%lld", progress->phase, (long long)progress->done,
             (long long)progress->total);
    append(text, room, columns, part);
    append_number(text, room, columns, "loss", progress->loss);
    append_number(text, room, columns, "margin", progress->margin);
    append_number(text, room, columns, "accuracy", progress->accuracy);
    append_number(text, room, columns, "weight", progress->weight);
    if (progress->tokens_per_second > 0) {
        append_number(text, room, columns, "tokens/s", progress->tokens_per_second);
    }
    if (isfinite(seconds_left)) {
        snprintf(part, sizeof part, "  ETA %s", progress_duration(number, seconds_left));
        append(text, room, columns, part);
    }
}

/* By the mean pace of this phase. NaN: not known yet. */
static double seconds_left(const struct progress_log *log, double time)
{
    const struct progress *p = &log->latest;
    int64_t done = p->done - log->phase_first;
    if (!p->phase || done <= 0 || p->total <= p->done) return NAN;
    return (time - log->phase_start) / (double)done * (double)(p->total - p->done);
}

static void draw(struct progress_log *log, double time)
{
    char line[LINE];
    progress_line(line, sizeof line, &log->latest, seconds_left(log, time), screen_columns(log) - 1);
    char *text = text_format("\r\033[K%s", line);
    screen_write(log, text);
    free(text);
    log->shown = true;
    log->drawn = time;
}

/* -- files ------------------------------------------------------------------------------------ */

static void add_line(struct progress_log *log, struct journal *journal, const char *line)
{
    const char *why;
    journal_add(journal, line, &why);
    if (!why) return;
    char *warning =
        text_format("warning: %s cannot be written: %s; the run goes on, and lines are missing there until "
                    "it can",
                    journal->path, why);
    if (journal == &log->log) {
        screen_print(log, warning);
    } else {
        progress_note(log, warning);
    }
    free(warning);
}

void progress_record(struct progress_log *log, const char *sentence)
{
    time_t seconds = time(NULL);
    struct tm utc;
    char stamp[32] = "";
    if (gmtime_r(&seconds, &utc)) strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    char *line = text_format("%s %s", stamp, sentence);
    add_line(log, &log->log, line);
    free(line);
}

void progress_note(struct progress_log *log, const char *sentence)
{
    screen_print(log, sentence);
    progress_record(log, sentence);
}

/* A record begins {"step": N. Records of one step are training's or evaluation's. */
struct place {
    int64_t step;
    bool evaluation;
};

static bool is_evaluation(const char *line)
{
    return strstr(line, "\"eval_") != NULL;
}

static bool made_again(const void *context, const char *line)
{
    const struct place *place = context;
    const char *digits = line + strcspn(line, "0123456789");
    int64_t step = strtoll(digits, NULL, 10);
    return step > place->step || (step == place->step && is_evaluation(line) == place->evaluation);
}

static void add_json(struct progress_log *log, struct journal *journal, struct json *json)
{
    char *line = json_text(json, 0);
    add_line(log, journal, line);
    free(line);
    json_free(json);
}

/* -- the report ------------------------------------------------------------------------------- */

static void report_note(void *context, const char *sentence)
{
    progress_note(context, sentence);
}

static bool new_phase(const struct progress_log *log, const struct progress *progress)
{
    const char *before = log->latest.phase;
    return !before || strcmp(before, progress->phase) || progress->done < log->latest.done;
}

static void report_progress(void *context, const struct progress *progress)
{
    struct progress_log *log = context;
    double time = clock_seconds();
    if (new_phase(log, progress)) {
        /* The first call of a phase comes when one piece is done, whose seconds are not known. */
        log->phase_start = time;
        log->phase_first = progress->done;
        log->spoken = time;
    }
    log->latest = *progress;
    bool last = progress->done >= progress->total;
    if (log->live) {
        if (last || time - log->drawn >= redraw_seconds) draw(log, time);
    } else if (strcmp(progress->phase, "train") && time - log->spoken >= speak_seconds) {
        char line[LINE];
        progress_line(line, sizeof line, progress, seconds_left(log, time), LINE - 1);
        screen_print(log, line);
        log->spoken = time;
    }
}

/* What a line for people shows of a record, and what it is called there. */
static const char *const shown_metrics[][2] = {
    {"loss", "loss"},
    {"rewards/margins", "margin"},
    {"rewards/accuracies", "accuracy"},
    {"weights/mean", "weight"},
    {"nll_loss", "nll"},
    {"kl", "kl"},
    {"mean_token_accuracy", "token accuracy"},
    {"learning_rate", "learning rate"},
    {"grad_norm", "gradient norm"},
    {"tokens_per_second", "tokens/s"},
};

static double metric_value(const struct metric *metrics, int64_t count, const char *prefix, const char *name)
{
    size_t length = strlen(prefix);
    for (int64_t i = 0; i < count; i++) {
        if (!strncmp(metrics[i].name, prefix, length) && !strcmp(metrics[i].name + length, name)) {
            return metrics[i].value;
        }
    }
    return NAN;
}

static char *record_line(const struct progress_log *log, int64_t step, const struct metric *metrics,
                         int64_t count, bool evaluation)
{
    char text[LINE], part[64];
    snprintf(text, sizeof text, "%sstep %lld", evaluation ? "eval at " : "", (long long)step);
    bool training = !evaluation && log->latest.phase && !strcmp(log->latest.phase, "train");
    if (training) {
        snprintf(part, sizeof part, "/%lld", (long long)log->latest.total);
        append(text, sizeof text, LINE - 1, part);
    }
    for (size_t i = 0; i < sizeof shown_metrics / sizeof shown_metrics[0]; i++) {
        double value = metric_value(metrics, count, evaluation ? "eval_" : "", shown_metrics[i][0]);
        append_number(text, sizeof text, LINE - 1, shown_metrics[i][1], value);
    }
    double left = training ? seconds_left(log, clock_seconds()) : NAN;
    if (isfinite(left)) {
        char number[32];
        snprintf(part, sizeof part, "  ETA %s", progress_duration(number, left));
        append(text, sizeof text, LINE - 1, part);
    }
    return text_copy(text);
}

static void report_metrics(void *context, int64_t step, const struct metric *metrics, int64_t count)
{
    struct progress_log *log = context;
    bool evaluation = count > 0 && !strncmp(metrics[0].name, "eval_", 5);
    if (!log->metrics_rewound) {
        journal_rewind(&log->metrics, made_again, &(struct place){step, evaluation});
        log->metrics_rewound = true;
    }
    struct json *json = json_new();
    json_put_int(json_root(json), "step", step);
    json_put_number(json_root(json), "time", clock_seconds() - log->start);
    for (int64_t i = 0; i < count; i++) {
        if (!isnan(metrics[i].value)) json_put_number(json_root(json), metrics[i].name, metrics[i].value);
    }
    add_json(log, &log->metrics, json);
    char *line = record_line(log, step, metrics, count, evaluation);
    progress_record(log, line);
    if (!log->live || evaluation) screen_print(log, line);
    free(line);
}

static void report_pair(void *context, const struct pair_record *pair)
{
    struct progress_log *log = context;
    if (!log->pairs_rewound) {
        journal_rewind(&log->pairs, made_again, &(struct place){pair->step, false});
        log->pairs_rewound = true;
    }
    struct json *json = json_new();
    struct json_value root = json_root(json);
    json_put_int(root, "step", pair->step);
    json_put_int(root, "row", pair->row);
    const struct metric numbers[] = {
        {"loss", pair->loss},
        {"weight", pair->weight},
        {"margin", pair->margin},
        {"logps/chosen", pair->logp_chosen},
        {"logps/rejected", pair->logp_rejected},
        {"ref_logps/chosen", pair->reference_chosen},
        {"ref_logps/rejected", pair->reference_rejected},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (!isnan(numbers[i].value)) json_put_number(root, numbers[i].name, numbers[i].value);
    }
    json_put_int(root, "lengths/chosen", pair->length_chosen);
    json_put_int(root, "lengths/rejected", pair->length_rejected);
    add_json(log, &log->pairs, json);
}

struct report progress_report(struct progress_log *log)
{
    return (struct report){.context = log,
                           .note = report_note,
                           .progress = report_progress,
                           .metrics = report_metrics,
                           .pair = report_pair};
}

/* -- opening ---------------------------------------------------------------------------------- */

static enum status open_journal(struct journal *journal, const char *folder, const char *name, bool append)
{
    char *path = files_join(folder, name);
    enum status status = journal_open(journal, path, append);
    free(path);
    return status;
}

enum status progress_open(struct progress_log *log, const char *folder, bool append, bool pairs, int screen)
{
    const char *terminal = getenv("TERM");
    bool redraws = terminal && *terminal && strcmp(terminal, "dumb");
    *log = (struct progress_log){
        .screen = screen, .live = isatty(screen) == 1 && redraws, .start = clock_seconds()};
    log->log.descriptor = log->metrics.descriptor = log->pairs.descriptor = -1;
    log->metrics_rewound = log->pairs_rewound = !append;
    if (!folder) return STATUS_OK;
    enum status status = open_journal(&log->log, folder, "log.txt", append);
    if (status == STATUS_OK) status = open_journal(&log->metrics, folder, "metrics.jsonl", append);
    if (status == STATUS_OK && pairs) status = open_journal(&log->pairs, folder, "pairs.jsonl", append);
    if (status != STATUS_OK) progress_close(log);
    return status;
}

void progress_close(struct progress_log *log)
{
    if (log->shown) screen_write(log, "\n");
    log->shown = false;
    journal_close(&log->log);
    journal_close(&log->metrics);
    journal_close(&log->pairs);
}

static void silent_note(void *context, const char *sentence)
{
    (void)context, (void)sentence;
}

static void silent_progress(void *context, const struct progress *progress)
{
    (void)context, (void)progress;
}

static void silent_metrics(void *context, int64_t step, const struct metric *metrics, int64_t count)
{
    (void)context, (void)step, (void)metrics, (void)count;
}

static void silent_pair(void *context, const struct pair_record *pair)
{
    (void)context, (void)pair;
}

struct report progress_silence(void)
{
    return (struct report){
        .note = silent_note, .progress = silent_progress, .metrics = silent_metrics, .pair = silent_pair};
}
