#include "launcher/inspect.h"
#include "runtime/files.h"
#include "runtime/pretrained.h"
#include "runtime/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void page_tensor(struct page *page, struct json_value list, const struct safetensors_entry *entry)
{
    char detail[SAFETENSORS_DIMENSIONS * 24 + 32];
    int used = snprintf(detail, sizeof detail, "%s [", entry->stored);
    for (int d = 0; d < entry->dimensions; d++)
        used += snprintf(detail + used, sizeof detail - (size_t)used, "%s%lld", d ? ", " : "",
                         (long long)entry->shape[d]);
    snprintf(detail + used, sizeof detail - (size_t)used, "]");
    struct json_value row = page_row(page, list, entry->name, detail);
    if (!page->json) return;
    json_put_text(row, "dtype", entry->stored);
    struct json_value shape = json_put_list(row, "shape");
    for (int d = 0; d < entry->dimensions; d++)
        json_put_int(shape, NULL, entry->shape[d]);
}

/* All values of the dtypes that the program reads are finite. */
static enum status check_values(const struct safetensors *file, const struct safetensors_entry *entry)
{
    const int64_t block = 1 << 20;
    float *values = allocate(entry->count < block ? entry->count : block, sizeof *values);
    enum status status = STATUS_OK;
    for (int64_t first = 0; entry->readable && first < entry->count && status == STATUS_OK; first += block)
        status = safetensors_read(file, entry, first,
                                  entry->count - first < block ? entry->count - first : block, values);
    free(values);
    return status;
}

enum status inspect_safetensors(const char *path, struct page *page)
{
    struct safetensors file;
    TRY(safetensors_open(&file, path));
    enum status status = STATUS_OK;
    int64_t elements = 0;
    for (int64_t i = 0; i < file.count && status == STATUS_OK; i++) {
        elements += file.entries[i].count;
        status = check_values(&file, &file.entries[i]);
    }
    if (status == STATUS_OK) {
        page_text(page, "what", "safetensors file");
        page_text(page, "path", path);
        page_flag(page, "verified", true);
        page_integer(page, "elements", elements);
        page_integer(page, "tensor_count", file.count);
        struct json_value list = page_list(page, "tensors");
        for (int64_t i = 0; i < file.count; i++)
            page_tensor(page, list, &file.entries[i]);
    }
    safetensors_close(&file);
    return status;
}

/* The tensors of every safetensors file of the folder. They have been verified. */
static enum status page_files(struct page *page, const char *folder)
{
    char **names;
    int64_t count;
    TRY(files_list(&names, &count, folder));
    struct json_value list = page_list(page, "tensors");
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        const char *ending = strrchr(names[i], '.');
        if (!ending || strcmp(ending, ".safetensors")) continue;
        char *path = files_join(folder, names[i]);
        struct safetensors file;
        status = safetensors_open(&file, path);
        for (int64_t t = 0; status == STATUS_OK && t < file.count; t++)
            page_tensor(page, list, &file.entries[t]);
        if (status == STATUS_OK) safetensors_close(&file);
        free(path);
    }
    files_names_free(names, count);
    return status;
}

enum status inspect_model(const char *folder, struct page *page)
{
    struct config config;
    TRY(pretrained_config(&config, folder));
    struct params params;
    params_layout(&params, &config);
    float *flat = allocate(params.total, sizeof *flat);
    char fingerprint[65] = "";
    enum status status = pretrained_load(flat, &params, &config, folder);
    if (status == STATUS_OK) pretrained_fingerprint(fingerprint, flat, &params);
    free(flat);
    params_free(&params);
    TRY(status);
    page_text(page, "what", "model folder");
    page_text(page, "path", folder);
    page_flag(page, "verified", true);
    page_text(page, "fingerprint", fingerprint);
    page_text(page, "family", family_name(config.family));
    page_integer(page, "parameters", config_parameters(&config));
    page_integer(page, "hidden_size", config.width);
    page_integer(page, "num_hidden_layers", config.layers);
    page_integer(page, "num_attention_heads", config.heads);
    page_integer(page, "num_key_value_heads", config.key_heads);
    page_integer(page, "head_dim", config.head_size);
    page_integer(page, "intermediate_size", config.hidden);
    page_integer(page, "vocab_size", config.vocabulary);
    page_integer(page, "max_position_embeddings", config.positions);
    page_number(page, "rope_theta", config.rope.theta);
    page_flag(page, "tie_word_embeddings", config.tied);
    return page_files(page, folder);
}
