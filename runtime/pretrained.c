#include "runtime/pretrained.h"

#include "runtime/files.h"
#include "runtime/hash.h"
#include "runtime/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status pretrained_config(struct config *config, const char *folder)
{
    char *path = files_join(folder, "config.json");
    enum status status =
        files_is_folder(folder)
            ? config_read(config, path)
            : fail("%s: no such folder; a model is a folder with config.json and model.safetensors", folder);
    free(path);
    return status;
}

/* -- loading ---------------------------------------------------------------------------------- */

/* What is known while a folder's files are read one after another. */
struct loading {
    float *flat;
    const struct params *params;
    const struct config *config;
    const char *folder;
    struct json *index; /* NULL: one file holds all */
    const char *shard;  /* the name of the file in hand */
    bool *seen;         /* [params->count] */
    bool repeated_head; /* a tied model's file holds lm_head.weight too; it is checked last */
};

static const char head_name[] = "lm_head.weight";

/* Rotary tables that older Transformers stored; they follow from the configuration. */
static bool is_known_buffer(const char *name)
{
    static const char suffix[] = ".rotary_emb.inv_freq";
    size_t length = strlen(name), tail = sizeof suffix - 1;
    return length > tail && strcmp(name + length - tail, suffix) == 0;
}

static enum status check_shape(const struct safetensors *file, const struct safetensors_entry *entry,
                               const struct parameter *parameter)
{
    const int64_t *shape = entry->shape;
    if (parameter->vector
            ? entry->dimensions == 1 && shape[0] == parameter->cols
            : entry->dimensions == 2 && shape[0] == parameter->rows && shape[1] == parameter->cols)
        return STATUS_OK;
    char text[SAFETENSORS_DIMENSIONS * 24] = "";
    size_t used = 0;
    for (int i = 0; i < entry->dimensions; i++)
        used +=
            (size_t)snprintf(text + used, sizeof text - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (parameter->vector)
        return fail("%s: tensor %s has the shape [%s], but config.json asks for [%lld]", file->path,
                    entry->name, text, (long long)parameter->cols);
    return fail("%s: tensor %s has the shape [%s], but config.json asks for [%lld, %lld]", file->path,
                entry->name, text, (long long)parameter->rows, (long long)parameter->cols);
}

/* A tensor that stands in another file than the index says would be read from neither with certainty. */
static enum status check_index(const struct loading *loading, const struct safetensors *file,
                               const char *name)
{
    if (!loading->index) return STATUS_OK;
    const char *shard;
    struct json_value value = json_key(json_key(json_root(loading->index), "weight_map"), name);
    TRY(json_as_text(value, &shard));
    if (strcmp(shard, loading->shard) == 0) return STATUS_OK;
    return fail("%s: tensor %s stands here, but %s puts it into %s", file->path, name,
                json_name(loading->index), shard);
}

static enum status unexpected(const struct safetensors *file, const char *name, const struct params *params)
{
    char *prefixed = text_format("model.%s", name);
    bool bare = params_find(params, prefixed) != NULL;
    free(prefixed);
    if (bare)
        return fail(
            "%s: tensor %s lacks the prefix \"model.\": this is a base model without its head; save it with "
            "AutoModelForCausalLM",
            file->path, name);
    return fail("%s: tensor %s is not part of the model that config.json describes", file->path, name);
}

static enum status load_tensor(struct loading *loading, const struct safetensors *file,
                               const struct safetensors_entry *entry)
{
    if (is_known_buffer(entry->name)) return STATUS_OK;
    TRY(check_index(loading, file, entry->name));
    const struct params *params = loading->params;
    if (loading->config->tied && strcmp(entry->name, head_name) == 0) {
        loading->repeated_head = true;
        return check_shape(file, entry, params_embedding(params));
    }
    const struct parameter *parameter = params_find(params, entry->name);
    if (!parameter) return unexpected(file, entry->name, params);
    bool *seen = &loading->seen[parameter - params->list];
    if (*seen) return fail("%s: tensor %s stands in two files of the model", file->path, entry->name);
    *seen = true;
    TRY(check_shape(file, entry, parameter));
    return safetensors_read(file, entry, 0, entry->count, loading->flat + parameter->offset);
}

static enum status compare_head(struct loading *loading, const struct safetensors *file,
                                const struct safetensors_entry *entry)
{
    enum { PART = 1 << 16 };
    const float *embedding = loading->flat + params_embedding(loading->params)->offset;
    float *values = allocate(PART, sizeof *values);
    enum status status = STATUS_OK;
    for (int64_t first = 0; first < entry->count && status == STATUS_OK; first += PART) {
        int64_t count = entry->count - first < PART ? entry->count - first : PART;
        status = safetensors_read(file, entry, first, count, values);
        for (int64_t i = 0; i < count && status == STATUS_OK; i++)
            if (values[i] != embedding[first + i])
                status = fail(
                    "%s: tensor %s differs from the embedding, though config.json says tie_word_embeddings; "
                    "one of the two is wrong",
                    file->path, head_name);
    }
    free(values);
    return status;
}

static enum status visit_entries(struct loading *loading, const struct safetensors *file, bool heads)
{
    for (int64_t i = 0; i < file->count; i++) {
        if (!heads)
            TRY(load_tensor(loading, file, &file->entries[i]));
        else if (strcmp(file->entries[i].name, head_name) == 0)
            TRY(compare_head(loading, file, &file->entries[i]));
    }
    return STATUS_OK;
}

/* heads: only compare a tied model's repeated head. */
static enum status visit_file(struct loading *loading, const char *name, bool heads)
{
    char *path = files_join(loading->folder, name);
    struct safetensors file;
    loading->shard = name;
    enum status status = safetensors_open(&file, path);
    if (status == STATUS_OK) {
        status = visit_entries(loading, &file, heads);
        safetensors_close(&file);
    }
    free(path);
    return status;
}

/* A shard's name comes from a file, so it must not lead out of the folder. */
static enum status check_shard_name(struct json_value value)
{
    const char *name;
    TRY(json_as_text(value, &name));
    size_t length = strlen(name);
    if (name[0] == '.' || strchr(name, '/') || length < 13 || strcmp(name + length - 12, ".safetensors") != 0)
        return json_fail(value, "is \"%s\", but it must be the plain name of a .safetensors file beside it",
                         name);
    return STATUS_OK;
}

static enum status check_map(struct json_value map)
{
    TRY(json_as_object(map));
    for (struct json_member member = json_first(map); member.name; member = json_next(member))
        TRY(check_shard_name(member.value));
    return STATUS_OK;
}

/* Shards in the order in which the index first names them. */
static enum status visit_shards(struct loading *loading, bool heads)
{
    struct json_value map = json_key(json_root(loading->index), "weight_map");
    TRY(check_map(map));
    int64_t count = 0;
    const char **shards = allocate(json_count(map), sizeof *shards);
    enum status status = STATUS_OK;
    for (struct json_member member = json_first(map); member.name && status == STATUS_OK;
         member = json_next(member)) {
        const char *name = "";
        status = json_as_text(member.value, &name);
        int64_t i = 0;
        while (i < count && strcmp(shards[i], name) != 0)
            i++;
        if (i < count) continue;
        shards[count++] = name;
        status = visit_file(loading, name, heads);
    }
    free(shards);
    return status;
}

static enum status check_complete(const struct loading *loading)
{
    int64_t missing = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < loading->params->count; i++) {
        if (loading->seen[i]) continue;
        if (!missing++) first = loading->params->list[i].name;
    }
    if (!missing) return STATUS_OK;
    if (missing == 1 && strcmp(first, head_name) == 0)
        return fail("%s: tensor %s is missing, though config.json does not say tie_word_embeddings",
                    loading->folder, head_name);
    return fail("%s: %lld of the %lld tensors that config.json describes are missing, the first is %s",
                loading->folder, (long long)missing, (long long)loading->params->count, first);
}

static enum status visit(struct loading *loading, bool heads)
{
    return loading->index ? visit_shards(loading, heads) : visit_file(loading, "model.safetensors", heads);
}

/* Like Transformers, the single file wins over an index. */
static enum status find_index(struct loading *loading)
{
    char *single = files_join(loading->folder, "model.safetensors");
    char *index = files_join(loading->folder, "model.safetensors.index.json");
    char *pickle = files_join(loading->folder, "pytorch_model.bin");
    char *pickles = files_join(loading->folder, "pytorch_model.bin.index.json");
    enum status status = STATUS_OK;
    if (!files_exists(single)) {
        if (files_exists(index))
            status = json_read(&loading->index, index, JSON_MEDIUM);
        else if (files_exists(pickle) || files_exists(pickles))
            status = fail("%s: holds pytorch_model.bin but no model.safetensors; save it again with "
                          "safe_serialization=True",
                          loading->folder);
        else
            status = fail("%s: neither model.safetensors nor model.safetensors.index.json is there",
                          loading->folder);
    }
    free(single);
    free(index);
    free(pickle);
    free(pickles);
    return status;
}

enum status pretrained_load(float *flat, const struct params *params, const struct config *config,
                            const char *folder)
{
    struct loading loading = {.flat = flat, .params = params, .config = config, .folder = folder};
    loading.seen = allocate(params->count, sizeof *loading.seen);
    memset(flat, 0, (size_t)params->total * sizeof *flat); /* the gaps between buckets */
    enum status status = find_index(&loading);
    if (status == STATUS_OK) status = visit(&loading, false);
    if (status == STATUS_OK) status = check_complete(&loading);
    if (status == STATUS_OK && loading.repeated_head) status = visit(&loading, true);
    json_free(loading.index);
    free(loading.seen);
    return status;
}

void pretrained_fingerprint(char hex[HASH_HEX], const float *flat, const struct params *params)
{
    struct hash *hash = hash_begin();
    for (int64_t i = 0; i < params->count; i++) {
        const struct parameter *parameter = &params->list[i];
        char shape[sizeof parameter->name + 64];
        int length = snprintf(shape, sizeof shape, "%s [%lld, %lld]\n", parameter->name,
                              (long long)parameter->rows, (long long)parameter->cols);
        hash_add(hash, shape, (size_t)length);
        hash_add(hash, flat + parameter->offset, (size_t)parameter->count * sizeof *flat);
    }
    hash_end(hash, hex);
}
