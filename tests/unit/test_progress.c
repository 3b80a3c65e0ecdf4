#include "launcher/progress.h"
#include "tests/check.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static char *content(const char *name)
{
    char *text;
    size_t bytes;
    CHECK(files_read(&text, &bytes, scratch_path(name), 1 << 20) == STATUS_OK);
    return text;
}

static int screen(void)
{
    return open(scratch_path("screen"), O_RDWR | O_CREAT | O_TRUNC, 0600);
}

static void record(struct progress_log *log, int64_t step, double loss, bool evaluation)
{
    struct report report = progress_report(log);
    struct metric metrics[] = {{evaluation ? "eval_loss" : "loss", loss},
                               {evaluation ? "eval_rewards/margins" : "rewards/margins", NAN}};
    report.metrics(report.context, step, metrics, 2);
}

static void test_numbers(void)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.69314718, "0.6931"}, {1e-6, "1e-06"},  {0, "0"},          {-0.25, "-0.25"},
                 {1234.4, "1234"},       {9999.4, "9999"}, {12345, "12.35k"}, {2.5e6, "2.5M"},
                 {-4.2e10, "-42G"},      {NAN, "nan"},     {999960, "1M"}};
    char text[32];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *got = progress_number(text, cases[i].value);
        CHECK_TEXT(got, cases[i].text);
        CHECK(strlen(got) == strlen(cases[i].text) || got[0] == '-');
    }
    CHECK(!strcmp(progress_duration(text, 9.4), "9 s") && !strcmp(progress_duration(text, 245), "4:05"));
    CHECK(!strcmp(progress_duration(text, 3723), "1:02:03") && !strcmp(progress_duration(text, NAN), "?"));
}

static void test_line(void)
{
    struct progress progress = {"train", 120, 1000, 0.6512, 0.1234, 0.625, 0.7101, 12345};
    char line[512], longest[512];
    progress_line(longest, sizeof longest, &progress, 75, 500);
    CHECK(!strcmp(longest, "train 120/1000  loss 0.6512  margin 0.1234  accuracy 0.625  weight 0.7101  "
                           "tokens/s 12.35k  ETA 1:15"));
    for (int columns = 0; columns < 120; columns++) {
        progress_line(line, sizeof line, &progress, 75, columns);
        CHECK((int)strlen(line) <= columns);
    }
    progress = (struct progress){"reference", 3, 7, NAN, NAN, NAN, NAN, 0};
    progress_line(line, sizeof line, &progress, NAN, 79);
    CHECK(!strcmp(line, "reference 3/7"));
}

static void test_files_of_a_run(void)
{
    struct progress_log log;
    int output = screen();
    CHECK(progress_open(&log, scratch_folder, false, true, output) == STATUS_OK && !log.live);
    struct report report = progress_report(&log);
    report.note(report.context, "a note");
    report.progress(report.context, &(struct progress){"train", 1, 30, 0.5, 0, 0, 1, 10});
    record(&log, 10, 1.0 / 3, false);
    record(&log, 10, 0.25, true);
    record(&log, 20, 0.125, false);
    report.pair(report.context, &(struct pair_record){20, 7, 0.5, 0.25, -1, -2, -3, NAN, -5, 4, 6});
    progress_close(&log);
    close(output);

    char *metrics = content("metrics.jsonl"), *text = content("log.txt"), *pairs = content("pairs.jsonl"),
         *shown = content("screen");
    CHECK(!strncmp(metrics, "{\"step\": 10, \"time\": ", 21));
    const char *loss = strstr(metrics, "\"loss\": ");
    CHECK(loss && strtod(loss + 8, NULL) == 1.0 / 3); /* to the bit */
    CHECK_TEXT(metrics, "\"eval_loss\": 0.25}\n");
    CHECK(!strstr(metrics, "margins") && !strstr(metrics, "null"));
    CHECK_TEXT(text, "Z a note\n");
    CHECK_TEXT(text, "Z step 10/30  loss 0.3333");
    CHECK(!strncmp(shown, "a note\nstep 10/30  loss 0.3333", 30));
    CHECK_TEXT(shown, "\neval at step 10  loss 0.25\n");
    CHECK(!strchr(shown, '\r'));
    CHECK(!strcmp(pairs, "{\"step\": 20, \"row\": 7, \"loss\": 0.5, \"weight\": 0.25, \"margin\": -1.0, "
                         "\"logps/chosen\": -2.0, \"logps/rejected\": -3.0, \"ref_logps/rejected\": -5.0, "
                         "\"lengths/chosen\": 4, \"lengths/rejected\": 6}\n"));
    free(metrics);
    free(text);
    free(pairs);
    free(shown);
}

/* What an objective has besides its loss. */
static void test_metrics_of_an_objective(void)
{
    struct progress_log log;
    int output = screen();
    CHECK(progress_open(&log, NULL, false, false, output) == STATUS_OK);
    struct report report = progress_report(&log);
    report.metrics(report.context, 30,
                   (const struct metric[]){{"kl", 0.5}, {"loss", 1}, {"nll_loss", 2.25}, {"entropy", 4}}, 4);
    progress_close(&log);
    close(output);
    char *shown = content("screen");
    CHECK(!strcmp(shown, "step 30  loss 1  nll 2.25  kl 0.5\n"));
    free(shown);
}

static int lines_of(const char *name)
{
    char *text = content(name);
    int count = 0;
    for (const char *at = text; *at; at++)
        count += *at == '\n';
    free(text);
    return count;
}

/* The run before wrote records of steps 10 (training, evaluation) and 20, and half a line of step 30. */
static void test_resume(void)
{
    FILE *file = fopen(scratch_path("metrics.jsonl"), "a");
    fputs("{\"step\": 30, \"lo", file);
    fclose(file);
    struct progress_log log;
    int output = screen();
    CHECK(progress_open(&log, scratch_folder, true, true, output) == STATUS_OK);
    CHECK(lines_of("metrics.jsonl") == 3);
    record(&log, 10, 0.75, true); /* evaluated again after loading: the training record of the step stays */
    CHECK(lines_of("metrics.jsonl") == 2);
    record(&log, 20, 0.875, false);
    struct report report = progress_report(&log);
    report.pair(report.context, &(struct pair_record){.step = 15});
    report.pair(report.context, &(struct pair_record){.step = 15, .row = 1});
    progress_close(&log);
    close(output);
    CHECK(lines_of("metrics.jsonl") == 3 && lines_of("pairs.jsonl") == 2);
    char *metrics = content("metrics.jsonl");
    CHECK_TEXT(metrics, "0.75");
    CHECK_TEXT(metrics, "0.875");
    CHECK(!strstr(metrics, "0.125") && !strstr(metrics, "\"lo\n"));
    free(metrics);
    CHECK(progress_open(&log, scratch_folder, false, false, STDERR_FILENO) == STATUS_OK);
    progress_close(&log);
    CHECK(lines_of("metrics.jsonl") == 0);
}

/* A device that is always full: the line is dropped, the reason told once. */
static void test_full_disk(void)
{
    const char *why;
    struct journal journal = {.descriptor = open("/dev/full", O_WRONLY), .path = text_copy("/dev/full")};
    if (journal.descriptor < 0) {
        free(journal.path);
        return;
    }
    CHECK(!journal_add(&journal, "line", &why) && why && strstr(why, "No space"));
    CHECK(!journal_add(&journal, "line", &why) && !why && journal.size == 0);
    journal_close(&journal);
    CHECK(journal_add(&journal, "line", &why) && !why);

    struct progress_log log;
    int output = screen();
    CHECK(progress_open(&log, NULL, false, false, output) == STATUS_OK);
    log.metrics = (struct journal){.descriptor = open("/dev/full", O_WRONLY), .path = text_copy("/dev/full")};
    record(&log, 1, 0.5, false);
    record(&log, 2, 0.5, false);
    progress_close(&log);
    close(output);
    char *shown = content("screen");
    char *warning = strstr(shown, "warning: /dev/full cannot be written: No space left on device");
    CHECK(warning && !strstr(warning + 1, "warning"));
    CHECK_TEXT(shown, "step 2");
    free(shown);
    /* A closed screen does not end anything either. */
    CHECK(progress_open(&log, NULL, false, false, -1) == STATUS_OK);
    progress_note(&log, "lost");
    progress_close(&log);
}

static void test_refused(void)
{
    struct journal journal;
    CHECK(journal_open(&journal, scratch_folder, false) == STATUS_BAD);
    CHECK(mkfifo(scratch_path("pipe"), 0600) == 0);
    CHECK(journal_open(&journal, scratch_path("pipe"), true) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "not a regular file");
    CHECK(journal_open(&journal, scratch_path("no/where"), true) == STATUS_BAD);
    struct progress_log log;
    CHECK(progress_open(&log, scratch_path("none"), false, false, 2) == STATUS_BAD);
}

int main(void)
{
    scratch_begin();
    test_numbers();
    test_line();
    test_files_of_a_run();
    test_metrics_of_an_objective();
    test_resume();
    test_full_disk();
    test_refused();
    return check_result();
}
