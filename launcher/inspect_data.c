#include "launcher/inspect.h"
#include "runtime/groups.h"
#include "runtime/hdf.h"
#include "runtime/seal.h"

#include <stdlib.h>
#include <string.h>

struct lengths {
    int64_t least, most, sum;
};

static void page_lengths(struct page *page, const char *what, const struct lengths *lengths, int64_t count)
{
    const struct {
        const char *name;
        double value;
    } facts[] = {{"tokens", (double)lengths->sum},
                 {"shortest", (double)lengths->least},
                 {"mean", (double)lengths->sum / (double)count},
                 {"longest", (double)lengths->most}};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        char *key = text_format("%s_%s", what, facts[i].name);
        if (i == 2)
            page_number(page, key, facts[i].value);
        else
            page_integer(page, key, (int64_t)facts[i].value);
        free(key);
    }
}

static struct lengths lengths_of(const int64_t *offset, int64_t count)
{
    struct lengths lengths = {.least = INT64_MAX, .sum = offset[count]};
    for (int64_t i = 0; i < count; i++) {
        int64_t length = offset[i + 1] - offset[i];
        if (length < lengths.least) lengths.least = length;
        if (length > lengths.most) lengths.most = length;
    }
    return lengths;
}

/* The audit of `wpo prepare`: all of it as JSON, its whole numbers for people. */
static void page_summary(struct page *page, const char *text)
{
    struct json *json;
    if (page->json) {
        page_text(page, "summary", text);
    } else if (json_parse(&json, "summary", text, strlen(text)) == STATUS_OK) {
        static const char *const keys[] = {
            "rows",       "kept", "dropped", "truncated_rows", "identical_completions", "boundary_mismatches",
            "tied_scores"};
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            int64_t count;
            if (json_int_or(json_key(json_root(json), keys[i]), 0, INT64_MAX, -1, &count) == STATUS_OK &&
                count >= 0)
                page_integer(page, keys[i], count);
        }
        json_free(json);
    }
}

/* What `wpo prepare` noted about the source, where it is there. */
static enum status page_notes(struct page *page, const char *path)
{
    static const char *const keys[] = {"truncation",           "source", "source_sha256", "tokenizer_sha256",
                                       "chat_template_sha256", "summary"};
    struct hdf *file;
    TRY(hdf_open(&file, path));
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char *text;
        if (hdf_text(file, keys[i], &text) != STATUS_OK) continue;
        if (!strcmp(keys[i], "summary"))
            page_summary(page, text);
        else
            page_text(page, keys[i], text);
        free(text);
    }
    hdf_close(file);
    return STATUS_OK;
}

enum status inspect_groups(const char *path, struct page *page)
{
    struct groups groups;
    TRY(groups_open(&groups, path));
    struct lengths prompts = lengths_of(groups.prompt_offset, groups.group_count);
    struct lengths completions = lengths_of(groups.completion_offset, groups.completion_count);
    struct lengths sizes = lengths_of(groups.first, groups.group_count);
    page_text(page, "what", "groups file");
    page_text(page, "path", path);
    page_flag(page, "verified", true);
    page_text(page, "sha256", groups.fingerprint);
    page_text(page, "kind", groups.kind);
    if (*groups.form) page_text(page, "form", groups.form);
    page_integer(page, "groups", groups.group_count);
    page_integer(page, "completions", groups.completion_count);
    page_integer(page, "smallest_group", sizes.least);
    page_integer(page, "largest_group", sizes.most);
    page_lengths(page, "prompt", &prompts, groups.group_count);
    page_lengths(page, "completion", &completions, groups.completion_count);
    page_integer(page, "vocabulary", groups.vocabulary);
    page_integer(page, "max_length", groups.max_length);
    page_flag(page, "scores", groups.score != NULL);
    page_flag(page, "labels", groups.label != NULL);
    groups_close(&groups);
    return page_notes(page, path);
}

/* Every column has the same length and can be read, which checks the checksum of each chunk. */
static enum status check_scores(struct hdf *file, const char *path, int64_t *count)
{
    static const struct {
        const char *name;
        enum hdf_type type;
    } columns[] = {{"/tokens", HDF_LONG},
                   {"/row", HDF_LONG},
                   {"/completion", HDF_LONG},
                   {"/logp", HDF_DOUBLE},
                   {"/entropy", HDF_DOUBLE},
                   {"/reference", HDF_DOUBLE},
                   {"/weight/none", HDF_DOUBLE},
                   {"/weight/unaligned", HDF_DOUBLE},
                   {"/weight/sampled", HDF_DOUBLE},
                   {"/weight/greedy", HDF_DOUBLE},
                   {"/log_weight/none", HDF_DOUBLE},
                   {"/log_weight/unaligned", HDF_DOUBLE},
                   {"/log_weight/sampled", HDF_DOUBLE},
                   {"/log_weight/greedy", HDF_DOUBLE}};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        void *values;
        int64_t length;
        TRY(hdf_read_all(file, columns[i].name, columns[i].type, &values, &length));
        free(values);
        if (i == 0) *count = length;
        if (length != *count)
            return fail("%s: dataset %s has %lld elements, and /tokens %lld", path, columns[i].name,
                        (long long)length, (long long)*count);
    }
    return STATUS_OK;
}

enum status inspect_scores(const char *path, struct page *page)
{
    char hex[HASH_HEX], *groups = NULL;
    struct hdf *file;
    int64_t count = 0;
    TRY(seal_check(path, "wpo-scores", "make it with `wpo eval --per-completion`", hex));
    TRY(hdf_open(&file, path));
    enum status status = check_scores(file, path, &count);
    if (status == STATUS_OK) status = hdf_text(file, "groups_sha256", &groups);
    hdf_close(file);
    TRY(status);
    page_text(page, "what", "scores file");
    page_text(page, "path", path);
    page_flag(page, "verified", true);
    page_text(page, "sha256", hex);
    page_integer(page, "completions", count);
    page_text(page, "groups_sha256", groups);
    free(groups);
    return STATUS_OK;
}
