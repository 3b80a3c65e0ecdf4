#include "kernels/require.h"
#include "runtime/files.h"
#include "runtime/pretrained.h"
#include "runtime/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What belongs to a model beside its weights and its config. */
static const char *const companions[] = {
    "tokenizer.json",      "tokenizer.model",    "tokenizer_config.json",  "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json", "vocab.json",
    "merges.txt",          "added_tokens.json",
};
enum { COMPANION_COUNT = sizeof companions / sizeof companions[0] };

/* -- config.json and tokenizer files ---------------------------------------------------------- */

/* Transformers 4 calls the key torch_dtype, Transformers 5 dtype; whichever is there is kept up. */
static void set_dtype(struct json_value root, const char *dtype)
{
    bool newer = json_key(root, "dtype").node != NULL;
    if (newer) json_put_text(root, "dtype", dtype);
    if (!newer || json_key(root, "torch_dtype").node) json_put_text(root, "torch_dtype", dtype);
}

static enum status save_config(const struct pretrained_output *output, const char *folder)
{
    struct json *json;
    if (output->config_text) {
        TRY(json_parse(&json, "config.json", output->config_text, strlen(output->config_text)));
    } else {
        REQUIRE(output->source, "a model is saved without any config.json");
        char *from = files_join(output->source, "config.json");
        enum status read = json_read(&json, from, JSON_SMALL);
        free(from);
        TRY(read);
    }
    enum status status = json_as_object(json_root(json));
    if (status == STATUS_OK) {
        set_dtype(json_root(json), safetensors_torch_dtype(output->type));
        char *text = json_text(json, 2), *to = files_join(folder, "config.json");
        status = files_write(to, text, strlen(text));
        free(text);
        free(to);
    }
    json_free(json);
    return status;
}

static enum status copy_open(int descriptor, int64_t size, const char *from, const char *to)
{
    enum { PART = 1 << 20 };
    struct file_writer writer;
    TRY(files_create(&writer, to, size));
    char *bytes = allocate(PART, 1);
    enum status status = STATUS_OK;
    for (int64_t done = 0; done < size && status == STATUS_OK; done += PART) {
        size_t part = (size_t)(size - done < PART ? size - done : PART);
        status = files_read_at(descriptor, bytes, part, done, from);
        if (status == STATUS_OK) status = files_add(&writer, bytes, part);
    }
    free(bytes);
    if (status == STATUS_OK) return files_finish(&writer);
    files_abandon(&writer);
    return status;
}

static enum status copy_companion(const char *source, const char *folder, const char *name)
{
    char *from = files_join(source, name), *to = files_join(folder, name);
    enum status status = STATUS_OK;
    if (files_exists(from)) {
        int descriptor;
        int64_t size;
        status = files_open(&descriptor, &size, from);
        if (status == STATUS_OK) {
            status = copy_open(descriptor, size, from, to);
            close(descriptor);
        }
    }
    free(from);
    free(to);
    return status;
}

enum status pretrained_copy_texts(const char *source, const char *folder, bool config)
{
    if (config) TRY(copy_companion(source, folder, "config.json"));
    for (int i = 0; i < COMPANION_COUNT; i++)
        TRY(copy_companion(source, folder, companions[i]));
    return STATUS_OK;
}

/* -- weights ---------------------------------------------------------------------------------- */

struct shards {
    int64_t *first; /* [count + 1]: shard s holds tensors first[s] .. first[s+1]-1 */
    int64_t count, bytes;
};

/* What a tensor takes in a file, its line of the header included. */
static int64_t stored_bytes(const struct parameter *parameter, enum dtype type)
{
    return parameter->count * (int64_t)dtype_bytes(type) + (int64_t)sizeof parameter->name + 128;
}

/* Fills one shard after another in the order of the table. */
static struct shards divide(const struct pretrained_output *output)
{
    const struct params *params = output->params;
    struct shards shards = {.first = allocate(params->count + 1, sizeof *shards.first)};
    int64_t used = 0;
    for (int64_t i = 0; i < params->count; i++) {
        int64_t bytes = stored_bytes(&params->list[i], output->type);
        if (i == 0 || used + bytes > output->shard_bytes) {
            shards.first[shards.count++] = i;
            used = 0;
        }
        used += bytes;
        shards.bytes += params->list[i].count * (int64_t)dtype_bytes(output->type);
    }
    shards.first[shards.count] = params->count;
    return shards;
}

static void name_shard(char name[64], const struct shards *shards, int64_t shard)
{
    if (shards->count == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05lld-of-%05lld.safetensors", (long long)shard + 1,
                 (long long)shards->count);
}

static enum status save_shard(const struct pretrained_output *output, const struct shards *shards,
                              int64_t shard, const char *folder)
{
    int64_t first = shards->first[shard], count = shards->first[shard + 1] - first;
    struct safetensors_source *sources = allocate(count, sizeof *sources);
    for (int64_t i = 0; i < count; i++) {
        const struct parameter *parameter = &output->params->list[first + i];
        sources[i] = (struct safetensors_source){parameter->name, output->flat + parameter->offset,
                                                 parameter->rows, parameter->cols, parameter->vector};
    }
    char name[64];
    name_shard(name, shards, shard);
    char *path = files_join(folder, name);
    enum status status = safetensors_write(path, sources, count, output->type);
    free(path);
    free(sources);
    return status;
}

static enum status save_index(const struct pretrained_output *output, const struct shards *shards,
                              const char *folder)
{
    struct json *json = json_new();
    json_put_int(json_put_object(json_root(json), "metadata"), "total_size", shards->bytes);
    struct json_value map = json_put_object(json_root(json), "weight_map");
    for (int64_t shard = 0; shard < shards->count; shard++) {
        char name[64];
        name_shard(name, shards, shard);
        for (int64_t i = shards->first[shard]; i < shards->first[shard + 1]; i++)
            json_put_text(map, output->params->list[i].name, name);
    }
    char *text = json_text(json, 2), *path = files_join(folder, "model.safetensors.index.json");
    enum status status = files_write(path, text, strlen(text));
    free(path);
    free(text);
    json_free(json);
    return status;
}

static enum status save_weights(const struct pretrained_output *output, const char *folder)
{
    struct shards shards = divide(output);
    enum status status = STATUS_OK;
    for (int64_t shard = 0; shard < shards.count && status == STATUS_OK; shard++)
        status = save_shard(output, &shards, shard, folder);
    if (status == STATUS_OK && shards.count > 1) status = save_index(output, &shards, folder);
    free(shards.first);
    return status;
}

/* -- the folder ------------------------------------------------------------------------------- */

static enum status fill_folder(const struct pretrained_output *output, const char *folder)
{
    TRY(save_config(output, folder));
    if (output->source) TRY(pretrained_copy_texts(output->source, folder, false));
    TRY(save_weights(output, folder));
    return files_sync_folder(folder);
}

/* "out/" and "out" are the same folder. */
static char *without_slashes(const char *folder)
{
    char *path = text_copy(folder);
    for (size_t length = strlen(path); length > 1 && path[length - 1] == '/'; length--)
        path[length - 1] = 0;
    return path;
}

static enum status save_beside(const struct pretrained_output *output, const char *folder)
{
    if (files_exists(folder)) return fail("%s: exists already; choose another name or remove it", folder);
    char *temporary = files_temporary(folder);
    enum status status = STATUS_OK;
    if (mkdir(temporary, 0777) !=
        0) { /* readable by others where the umask allows: a model is made to be shared */
        status = fail("%s: cannot make the folder: %s", temporary, strerror(errno));
    } else {
        status = fill_folder(output, temporary);
        if (status == STATUS_OK) status = files_rename(temporary, folder);
        if (status != STATUS_OK) {
            char *sentence = text_copy(status_sentence());
            files_remove_tree(temporary);
            status_sentence_set(sentence);
            free(sentence);
        }
    }
    free(temporary);
    return status;
}

enum status pretrained_save(const struct pretrained_output *output, const char *folder)
{
    char *path = without_slashes(folder);
    enum status status = save_beside(output, path);
    free(path);
    return status;
}
