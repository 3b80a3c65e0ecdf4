#include "runtime/groups.h"

#include "runtime/hdf.h"
#include "runtime/seal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char advice[] = "make a groups file with `wpo prepare`";

/* -- reading ---------------------------------------------------------------------------------- */

/* A dataset whose length follows from another one. */
static enum status read_exactly(struct hdf *file, const char *path, const char *name, enum hdf_type type,
                                int64_t count, const char *reason, void **values)
{
    int64_t length;
    TRY(hdf_length(file, name, type, &length));
    if (length != count)
        return fail("%s: dataset %s has %lld elements, but %s asks for %lld", path, name, (long long)length,
                    reason, (long long)count);
    return hdf_read_all(file, name, type, values, &length);
}

/* Files of other programs may not say what their groups of three are. */
static enum status read_form(struct groups *groups, struct hdf *file)
{
    char *text;
    if (hdf_text(file, "form", &text) != STATUS_OK) return STATUS_OK;
    bool known = !strcmp(text, "pair") || !strcmp(text, "ranked") || !strcmp(text, "sampled");
    if (known) snprintf(groups->form, sizeof groups->form, "%s", text);
    enum status status = known ? STATUS_OK
                               : fail("%s: attribute form is '%s', not pair, ranked or sampled; %s",
                                      groups->path, text, advice);
    free(text);
    return status;
}

static enum status read_attributes(struct groups *groups, struct hdf *file)
{
    char *text;
    TRY(hdf_text(file, "format", &text));
    bool known = !strcmp(text, "wpo-groups");
    free(text);
    if (!known) return fail("%s: attribute format is not wpo-groups; %s", groups->path, advice);
    int64_t version;
    TRY(hdf_integer(file, "version", &version));
    if (version != SEAL_VERSION)
        return fail("%s: attribute version is %lld, and this program reads version %d; %s", groups->path,
                    (long long)version, SEAL_VERSION, advice);
    TRY(hdf_integer(file, "vocabulary", &groups->vocabulary));
    TRY(hdf_integer(file, "max_length", &groups->max_length));
    if (groups->vocabulary < 1 || groups->vocabulary > INT32_MAX)
        return fail("%s: attribute vocabulary is %lld, not a number of token ids", groups->path,
                    (long long)groups->vocabulary);
    if (groups->max_length < 2 || groups->max_length > INT32_MAX)
        return fail("%s: attribute max_length is %lld, not a number of tokens", groups->path,
                    (long long)groups->max_length);
    TRY(hdf_text(file, "kind", &text));
    known = !strcmp(text, "preference") || !strcmp(text, "prompt-completion") || !strcmp(text, "unpaired");
    if (known) snprintf(groups->kind, sizeof groups->kind, "%s", text);
    enum status status =
        known ? STATUS_OK
              : fail("%s: attribute kind is '%s', not preference, prompt-completion or unpaired",
                     groups->path, text);
    free(text);
    return status == STATUS_OK ? read_form(groups, file) : status;
}

static enum status read_datasets(struct groups *groups, struct hdf *file)
{
    const char *path = groups->path;
    void *values;
    int64_t length;
    TRY(hdf_read_all(file, "/group/first", HDF_LONG, &values, &length));
    groups->first = values;
    groups->group_count = length - 1;
    if (length < 2)
        return fail("%s: dataset /group/first has %lld elements: the file holds no group", path,
                    (long long)length);
    groups->completion_count = groups->first[groups->group_count];
    int64_t prompts = groups->group_count, completions = groups->completion_count;
    if (completions < prompts || completions == INT64_MAX)
        return fail(
            "%s: dataset /group/first ends with %lld for %lld groups; each has at least one completion", path,
            (long long)completions, (long long)prompts);
    TRY(read_exactly(file, path, "/group/row", HDF_LONG, prompts, "/group/first", &values));
    groups->row = values;
    TRY(read_exactly(file, path, "/prompt/offset", HDF_LONG, prompts + 1, "/group/first", &values));
    groups->prompt_offset = values;
    TRY(read_exactly(file, path, "/completion/offset", HDF_LONG, completions + 1, "/group/first", &values));
    groups->completion_offset = values;
    TRY(read_exactly(file, path, "/prompt/tokens", HDF_INT, groups->prompt_offset[prompts], "/prompt/offset",
                     &values));
    groups->prompt_tokens = values;
    TRY(read_exactly(file, path, "/completion/tokens", HDF_INT, groups->completion_offset[completions],
                     "/completion/offset", &values));
    groups->completion_tokens = values;
    if (hdf_has(file, "/completion/score")) {
        TRY(read_exactly(file, path, "/completion/score", HDF_FLOAT, completions, "/group/first", &values));
        groups->score = values;
    }
    if (hdf_has(file, "/completion/label")) {
        TRY(read_exactly(file, path, "/completion/label", HDF_BYTE, completions, "/group/first", &values));
        groups->label = values;
    }
    return STATUS_OK;
}

/* -- checks ----------------------------------------------------------------------------------- */

/* Starts at 0 and grows by at least one each time. Its end is the length of what it divides: already checked.
 */
static enum status check_offsets(const struct groups *groups, const char *name, const int64_t *offset,
                                 int64_t count, const char *empty)
{
    if (offset[0] != 0)
        return fail("%s: dataset %s starts with %lld, not 0", groups->path, name, (long long)offset[0]);
    for (int64_t i = 0; i < count; i++) {
        if (offset[i + 1] == offset[i])
            return fail("%s: dataset %s: %s %lld is empty", groups->path, name, empty, (long long)i);
        if (offset[i + 1] < offset[i])
            return fail("%s: dataset %s falls from %lld to %lld at index %lld", groups->path, name,
                        (long long)offset[i], (long long)offset[i + 1], (long long)(i + 1));
    }
    return STATUS_OK;
}

static enum status check_tokens(const struct groups *groups, const char *name, const int32_t *tokens,
                                int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= groups->vocabulary)
            return fail("%s: dataset %s: token id %d at index %lld is outside the vocabulary of %lld",
                        groups->path, name, tokens[i], (long long)i, (long long)groups->vocabulary);
    return STATUS_OK;
}

static enum status check_group(const struct groups *groups, int64_t g)
{
    int64_t size = groups->first[g + 1] - groups->first[g];
    if (groups->row[g] < 0)
        return fail("%s: dataset /group/row holds %lld at index %lld", groups->path,
                    (long long)groups->row[g], (long long)g);
    if (!strcmp(groups->kind, "preference") && size < 2)
        return fail("%s: dataset /group/first: group %lld has one completion; a preference has two or more",
                    groups->path, (long long)g);
    int64_t prompt = groups->prompt_offset[g + 1] - groups->prompt_offset[g];
    for (int64_t c = groups->first[g]; c < groups->first[g + 1]; c++) {
        int64_t length = prompt + groups->completion_offset[c + 1] - groups->completion_offset[c];
        if (length > groups->max_length)
            return fail(
                "%s: dataset /completion/offset: completion %lld with its prompt has %lld tokens, more than "
                "max_length %lld",
                groups->path, (long long)c, (long long)length, (long long)groups->max_length);
    }
    return STATUS_OK;
}

static enum status check_marks(const struct groups *groups)
{
    if (!strcmp(groups->kind, "unpaired") && !groups->label)
        return fail("%s: dataset /completion/label is missing, and unpaired data needs it", groups->path);
    for (int64_t c = 0; c < groups->completion_count; c++) {
        if (groups->score && isinf(groups->score[c]))
            return fail("%s: dataset /completion/score is infinite at index %lld", groups->path,
                        (long long)c);
        if (groups->label && groups->label[c] != 0 && groups->label[c] != 1)
            return fail("%s: dataset /completion/label is %d at index %lld, not 0 or 1", groups->path,
                        groups->label[c], (long long)c);
    }
    return STATUS_OK;
}

static enum status check(const struct groups *groups)
{
    int64_t prompts = groups->group_count, completions = groups->completion_count;
    TRY(check_offsets(groups, "/group/first", groups->first, prompts, "group"));
    TRY(check_offsets(groups, "/prompt/offset", groups->prompt_offset, prompts, "prompt"));
    TRY(check_offsets(groups, "/completion/offset", groups->completion_offset, completions, "completion"));
    TRY(check_tokens(groups, "/prompt/tokens", groups->prompt_tokens, groups->prompt_offset[prompts]));
    TRY(check_tokens(groups, "/completion/tokens", groups->completion_tokens,
                     groups->completion_offset[completions]));
    for (int64_t g = 0; g < prompts; g++)
        TRY(check_group(groups, g));
    return check_marks(groups);
}

/* -- opening ---------------------------------------------------------------------------------- */

enum status groups_open(struct groups *groups, const char *path)
{
    *groups = (struct groups){.path = text_copy(path)};
    struct hdf *file = NULL;
    enum status status = seal_check(path, "wpo-groups", advice, groups->fingerprint);
    if (status == STATUS_OK) status = hdf_open(&file, path);
    if (status == STATUS_OK) status = read_attributes(groups, file);
    if (status == STATUS_OK) status = read_datasets(groups, file);
    hdf_close(file);
    if (status == STATUS_OK) status = check(groups);
    if (status != STATUS_OK) groups_close(groups);
    return status;
}

void groups_close(struct groups *groups)
{
    free(groups->prompt_tokens);
    free(groups->prompt_offset);
    free(groups->completion_tokens);
    free(groups->completion_offset);
    free(groups->first);
    free(groups->row);
    free(groups->score);
    free(groups->label);
    free(groups->path);
    *groups = (struct groups){0};
}
