#include "launcher/inspect.h"
#include "runtime/files.h"
#include "runtime/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Manifest, sizes, SHA-256 of every file. After a failure nothing needs to be freed. */
static enum status verify(struct manifest *manifest, const char *folder)
{
    TRY(manifest_read(manifest, folder));
    enum status status = STATUS_OK;
    for (int64_t f = 0; f < manifest->file_count && status == STATUS_OK; f++)
        status = manifest_check_file(manifest, f, folder, true);
    if (status != STATUS_OK) manifest_free(manifest);
    return status;
}

static void page_tensors(struct page *page, const struct manifest *manifest)
{
    struct json_value list = page_list(page, "tensors");
    for (int64_t t = 0; t < manifest->tensor_count; t++) {
        const struct manifest_tensor *tensor = &manifest->tensors[t];
        char detail[64];
        if (tensor->vector)
            snprintf(detail, sizeof detail, "[%lld]", (long long)tensor->cols);
        else
            snprintf(detail, sizeof detail, "[%lld, %lld]", (long long)tensor->rows, (long long)tensor->cols);
        struct json_value row = page_row(page, list, tensor->name, detail);
        if (!page->json) continue;
        struct json_value shape = json_put_list(row, "shape");
        if (!tensor->vector) json_put_int(shape, NULL, tensor->rows);
        json_put_int(shape, NULL, tensor->cols);
    }
}

enum status inspect_checkpoint(const char *folder, struct page *page)
{
    struct manifest manifest;
    TRY(verify(&manifest, folder));
    const struct checkpoint_state *state = &manifest.state;
    int64_t bytes = 0, elements = 0;
    for (int64_t f = 0; f < manifest.file_count; f++)
        bytes += manifest.files[f].bytes;
    for (int64_t t = 0; t < manifest.tensor_count; t++)
        elements += manifest.tensors[t].rows * manifest.tensors[t].cols;
    page_text(page, "what", "checkpoint");
    page_text(page, "path", folder);
    page_flag(page, "verified", true);
    page_integer(page, "step", state->step);
    page_integer(page, "world", state->world);
    page_integer(page, "global_batch", state->global_batch);
    page_integer(page, "tokens", state->tokens);
    char *seed = text_format("%llu", (unsigned long long)state->seed);
    page_text(page, "seed", seed);
    free(seed);
    page_text(page, "model_fingerprint", state->model_fingerprint);
    page_text(page, "reference_fingerprint", state->reference_fingerprint);
    page_text(page, "data_fingerprint", state->data_fingerprint);
    page_flag(page, "optimizer", manifest.optimizer);
    page_integer(page, "bytes", bytes);
    page_integer(page, "parameters", elements);
    page_integer(page, "tensor_count", manifest.tensor_count);
    page_tensors(page, &manifest);
    manifest_free(&manifest);
    return STATUS_OK;
}

/* -- run folders ------------------------------------------------------------------------------ */

/* "checkpoint-12", and not "checkpoint-12.part". */
static bool is_checkpoint(const char *name)
{
    static const char head[] = "checkpoint-";
    const char *digits = name + sizeof head - 1;
    return !strncmp(name, head, sizeof head - 1) && *digits && strspn(digits, "0123456789") == strlen(digits);
}

static bool is_shard(const char *name)
{
    return !strncmp(name, "shard-", 6);
}

static bool is_run_file(const char *name)
{
    return !strcmp(name, "run.yaml") || is_checkpoint(name);
}

static bool holds(const char *folder, bool (*matches)(const char *name))
{
    char **names;
    int64_t count;
    if (files_list(&names, &count, folder) != STATUS_OK) return false;
    bool found = false;
    for (int64_t i = 0; i < count; i++)
        found |= matches(names[i]);
    files_names_free(names, count);
    return found;
}

bool inspect_is_run(const char *folder)
{
    return holds(folder, is_run_file);
}

bool inspect_is_shards(const char *folder)
{
    return holds(folder, is_shard);
}

/* One row; true if it verifies. */
static bool page_checkpoint(struct page *page, struct json_value list, const char *run, const char *name)
{
    struct manifest manifest;
    char *folder = files_join(run, name), *detail;
    bool good = verify(&manifest, folder) == STATUS_OK;
    if (good)
        detail = text_format("verified: step %lld, written by %lld ranks", (long long)manifest.state.step,
                             (long long)manifest.state.world);
    else
        detail = text_format("rejected: %s", status_sentence());
    struct json_value row = page_row(page, list, name, detail);
    if (page->json) {
        json_put_bool(row, "verified", good);
        if (good) json_put_int(row, "step", manifest.state.step);
        if (good) json_put_int(row, "world", manifest.state.world);
        if (!good) json_put_text(row, "why", status_sentence());
    }
    if (good) manifest_free(&manifest);
    free(detail);
    free(folder);
    return good;
}

static int by_step(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;
    size_t first = strlen(x), second = strlen(y);
    return first != second ? (first < second ? -1 : 1) : strcmp(x, y);
}

enum status inspect_run(const char *folder, struct page *page)
{
    char **names;
    int64_t count, all = 0, good = 0;
    TRY(files_list(&names, &count, folder));
    qsort(names, (size_t)count, sizeof *names, by_step);
    page_text(page, "what", "run folder");
    page_text(page, "path", folder);
    struct json_value list = page_list(page, "checkpoints");
    for (int64_t i = 0; i < count; i++) {
        if (!is_checkpoint(names[i])) continue;
        all++;
        good += page_checkpoint(page, list, folder, names[i]);
    }
    files_names_free(names, count);
    page_flag(page, "verified", all && good == all);
    if (!all) return fail("%s holds no checkpoint", folder);
    if (good < all)
        return fail("%s: %lld of %lld checkpoints do not verify", folder, (long long)(all - good),
                    (long long)all);
    return STATUS_OK;
}
