/* What evaluation knows of each completion, as a file: HDF5 with a seal, or JSON lines. docs/formats.md. */
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "runtime/hdf.h"
#include "runtime/seal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double logp_of(const struct completion_record *record)
{
    return record->sums.logp;
}

static double entropy_of(const struct completion_record *record)
{
    return record->sums.entropy;
}

static double reference_of(const struct completion_record *record)
{
    return record->reference;
}

/* -- HDF5 ------------------------------------------------------------------------------------- */

static enum status add_column(struct hdf *file, const char *name, const struct evaluation *evaluation,
                              double (*value)(const struct completion_record *record), double *column)
{
    int64_t count = evaluation->dataset.groups.completion_count;
    for (int64_t c = 0; c < count; c++)
        column[c] = value(&evaluation->completions[c]);
    return hdf_add(file, name, HDF_DOUBLE, column, count);
}

static enum status add_weights(struct hdf *file, const struct evaluation *evaluation, double *column)
{
    int64_t count = evaluation->dataset.groups.completion_count;
    for (int w = 0; w < WEIGHTING_COUNT; w++) {
        char name[64];
        for (int64_t c = 0; c < count; c++)
            column[c] = evaluation->completions[c].log_weight[w];
        snprintf(name, sizeof name, "/log_weight/%s", weighting_name((enum weighting)w));
        TRY(hdf_add(file, name, HDF_DOUBLE, column, count));
        for (int64_t c = 0; c < count; c++)
            column[c] = exp(column[c]);
        snprintf(name, sizeof name, "/weight/%s", weighting_name((enum weighting)w));
        TRY(hdf_add(file, name, HDF_DOUBLE, column, count));
    }
    return STATUS_OK;
}

/* Which completion a record is: source row, place in its group, tokens. */
static enum status add_places(struct hdf *file, const struct evaluation *evaluation, int64_t *column)
{
    const struct groups *groups = &evaluation->dataset.groups;
    int64_t count = groups->completion_count;
    for (int64_t c = 0; c < count; c++)
        column[c] = evaluation->completions[c].sums.count;
    TRY(hdf_add(file, "/tokens", HDF_LONG, column, count));
    for (int64_t g = 0; g < groups->group_count; g++)
        for (int64_t c = groups->first[g]; c < groups->first[g + 1]; c++)
            column[c] = groups->row[g];
    TRY(hdf_add(file, "/row", HDF_LONG, column, count));
    for (int64_t g = 0; g < groups->group_count; g++)
        for (int64_t c = groups->first[g]; c < groups->first[g + 1]; c++)
            column[c] = c - groups->first[g];
    return hdf_add(file, "/completion", HDF_LONG, column, count);
}

static enum status fill(struct hdf *file, const struct evaluation *evaluation, double *column, int64_t *whole)
{
    TRY(hdf_put_text(file, "/", "format", "wpo-scores"));
    TRY(hdf_put_integer(file, "/", "version", SEAL_VERSION));
    TRY(hdf_put_text(file, "/", "groups_sha256", evaluation->dataset.groups.fingerprint));
    TRY(add_places(file, evaluation, whole));
    TRY(add_column(file, "/logp", evaluation, logp_of, column));
    TRY(add_column(file, "/entropy", evaluation, entropy_of, column));
    TRY(add_column(file, "/reference", evaluation, reference_of, column));
    return add_weights(file, evaluation, column);
}

static enum status write_hdf(const struct evaluation *evaluation, const char *path)
{
    struct hdf *file;
    TRY(hdf_create(&file, SEAL_BYTES));
    double *column = allocate(evaluation->dataset.groups.completion_count, sizeof *column);
    int64_t *whole = allocate(evaluation->dataset.groups.completion_count, sizeof *whole);
    enum status status = fill(file, evaluation, column, whole);
    free(column);
    free(whole);
    if (status == STATUS_OK) return hdf_finish_sealed(file, "wpo-scores", path);
    hdf_close(file);
    return status;
}

/* -- JSON lines ------------------------------------------------------------------------------- */

/* 17 digits read back to the same double. JSON has no NaN and no infinity. */
static void print_number(FILE *stream, const char *key, double value)
{
    if (isfinite(value))
        fprintf(stream, "\"%s\":%.17g", key, value);
    else
        fprintf(stream, "\"%s\":null", key);
}

static void print_record(FILE *stream, const struct completion_record *record, int64_t row,
                         int64_t completion)
{
    fprintf(stream, "{\"row\":%lld,\"completion\":%lld,\"tokens\":%lld,", (long long)row,
            (long long)completion, (long long)record->sums.count);
    print_number(stream, "logp", record->sums.logp);
    fputc(',', stream);
    print_number(stream, "reference", record->reference);
    fputc(',', stream);
    print_number(stream, "entropy", record->sums.entropy);
    fputs(",\"weights\":{", stream);
    for (int w = 0; w < WEIGHTING_COUNT; w++) {
        if (w) fputc(',', stream);
        print_number(stream, weighting_name((enum weighting)w), exp(record->log_weight[w]));
    }
    fputs("}}\n", stream);
}

static enum status write_lines(const struct evaluation *evaluation, const char *path)
{
    const struct groups *groups = &evaluation->dataset.groups;
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    if (!stream) return fail("%s: out of memory", path);
    for (int64_t g = 0; g < groups->group_count; g++)
        for (int64_t c = groups->first[g]; c < groups->first[g + 1]; c++)
            print_record(stream, &evaluation->completions[c], groups->row[g], c - groups->first[g]);
    enum status status =
        fclose(stream) == 0 ? files_replace(path, text, bytes) : fail("%s: out of memory", path);
    free(text);
    return status;
}

enum status evaluation_write(const struct evaluation *evaluation, const char *path)
{
    const char *ending = strrchr(files_name(path), '.');
    return ending && !strcmp(ending, ".h5") ? write_hdf(evaluation, path) : write_lines(evaluation, path);
}
