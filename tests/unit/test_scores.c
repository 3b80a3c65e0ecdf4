/* What evaluation writes per completion: both forms hold the same numbers, exactly. */
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "runtime/hdf.h"
#include "runtime/json.h"
#include "runtime/seal.h"
#include "tests/check.h"
#include "tests/unit/scratch.h"

enum { COMPLETIONS = 3 };

static int64_t first[3] = {0, 2, 3}, rows[2] = {4, 1LL << 40};
static struct completion_record records[COMPLETIONS];

static struct evaluation evaluation_of(void)
{
    for (int c = 0; c < COMPLETIONS; c++) {
        records[c].sums = (struct completion_sums){.logp = -1.0 / 3 - c, .entropy = 0.1 * c, .count = 5 + c};
        records[c].reference = c == 1 ? (double)NAN : -0.7 * c;
        for (int w = 0; w < WEIGHTING_COUNT; w++)
            records[c].log_weight[w] = -0.3 * w - c;
    }
    struct evaluation evaluation = {.completions = records};
    evaluation.dataset.groups =
        (struct groups){.group_count = 2, .completion_count = COMPLETIONS, .first = first, .row = rows};
    memset(evaluation.dataset.groups.fingerprint, 'a', 64);
    return evaluation;
}

static double *column(struct hdf *file, const char *name)
{
    void *values;
    int64_t length = 0;
    CHECK(hdf_read_all(file, name, HDF_DOUBLE, &values, &length) == STATUS_OK && length == COMPLETIONS);
    return values;
}

static void check_hdf(void)
{
    struct evaluation evaluation = evaluation_of();
    const char *path = scratch_path("scores.h5");
    char hex[HASH_HEX], *text;
    CHECK(evaluation_write(&evaluation, path) == STATUS_OK);
    CHECK(seal_check(path, "wpo-scores", "", hex) == STATUS_OK);
    struct hdf *file;
    CHECK(hdf_open(&file, path) == STATUS_OK);
    double *logp = column(file, "/logp"), *reference = column(file, "/reference");
    double *log_weight = column(file, "/log_weight/greedy"), *weight = column(file, "/weight/greedy");
    for (int c = 0; c < COMPLETIONS; c++) {
        CHECK(logp[c] == records[c].sums.logp && log_weight[c] == records[c].log_weight[WEIGHTING_GREEDY]);
        CHECK(weight[c] == exp(log_weight[c]));
        CHECK(c == 1 ? isnan(reference[c]) : reference[c] == records[c].reference);
    }
    int64_t row[COMPLETIONS], place[COMPLETIONS], tokens[COMPLETIONS];
    CHECK(hdf_read(file, "/row", HDF_LONG, row, 0, COMPLETIONS) == STATUS_OK);
    CHECK(hdf_read(file, "/completion", HDF_LONG, place, 0, COMPLETIONS) == STATUS_OK);
    CHECK(hdf_read(file, "/tokens", HDF_LONG, tokens, 0, COMPLETIONS) == STATUS_OK);
    CHECK(row[0] == 4 && row[1] == 4 && row[2] == 1LL << 40 && place[0] == 0 && place[1] == 1 &&
          place[2] == 0);
    CHECK(tokens[0] == 5 && tokens[2] == 7);
    CHECK(hdf_text(file, "groups_sha256", &text) == STATUS_OK &&
          !strcmp(text, evaluation.dataset.groups.fingerprint));
    free(text);
    free(logp);
    free(reference);
    free(log_weight);
    free(weight);
    hdf_close(file);
    CHECK(evaluation_write(&evaluation, path) == STATUS_OK); /* over an older one */
}

static double number(struct json_value value)
{
    double result = (double)NAN;
    CHECK(json_as_number(value, &result) == STATUS_OK);
    return result;
}

static void check_lines(void)
{
    struct evaluation evaluation = evaluation_of();
    const char *path = scratch_path("scores.jsonl");
    char *text;
    size_t bytes;
    CHECK(evaluation_write(&evaluation, path) == STATUS_OK);
    CHECK(files_read(&text, &bytes, path, 1 << 20) == STATUS_OK);
    int lines = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1, lines++) {
        struct json *json;
        CHECK(json_parse(&json, "line", line, (size_t)(end - line)) == STATUS_OK);
        struct json_value root = json_root(json), weights = json_key(root, "weights");
        CHECK(number(json_key(root, "logp")) == records[lines].sums.logp);
        CHECK(number(json_key(root, "entropy")) == records[lines].sums.entropy);
        CHECK(number(json_key(root, "row")) == (double)rows[lines / 2]);
        CHECK(number(json_key(root, "completion")) == lines % 2);
        CHECK(number(json_key(root, "tokens")) == 5 + lines);
        CHECK(number(json_key(weights, "sampled")) == exp(records[lines].log_weight[WEIGHTING_SAMPLED]));
        CHECK(json_count(root) == 7 && json_count(weights) == WEIGHTING_COUNT);
        CHECK(json_present(json_key(root, "reference")) == (lines != 1)); /* NaN is null */
        json_free(json);
    }
    CHECK(lines == COMPLETIONS);
    free(text);
    CHECK(evaluation_write(&evaluation, scratch_path("nowhere/scores.jsonl")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "nowhere");
}

int main(void)
{
    scratch_begin();
    check_hdf();
    check_lines();
    return check_result();
}
