#include "runtime/manifest.h"

#include "runtime/files.h"
#include "runtime/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MANIFEST_VERSION = 1, WORLD_MOST = 1 << 20, TENSORS_MOST = 1 << 20 };

const char *const manifest_kinds[MANIFEST_KINDS] = {"parameter", "moment", "variance", "reference"};

char *manifest_dataset(int kind, const char *tensor, int64_t offset)
{
    return text_format("/%s/%s:%lld", manifest_kinds[kind], tensor, (long long)offset);
}

void manifest_file_name(char name[64], int64_t file, int64_t world)
{
    if (file == world)
        snprintf(name, 64, "master.h5");
    else
        snprintf(name, 64, "shard-%05lld-of-%05lld.h5", (long long)file, (long long)world);
}

void manifest_free(struct manifest *manifest)
{
    checkpoint_state_free(&manifest->state);
    free(manifest->tensors);
    free(manifest->files);
    free(manifest->extents);
    *manifest = (struct manifest){0};
}

/* -- tiling ----------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
    const struct manifest_extent *x = a, *y = b;
    if (x->tensor != y->tensor) return x->tensor < y->tensor ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

enum status manifest_tile(struct manifest *manifest, const char *where)
{
    if (manifest->extent_count)
        qsort(manifest->extents, (size_t)manifest->extent_count, sizeof *manifest->extents, by_place);
    int64_t next = 0;
    for (int64_t t = 0; t < manifest->tensor_count; t++) {
        const struct manifest_tensor *tensor = &manifest->tensors[t];
        int64_t done = 0, count = tensor->rows * tensor->cols;
        for (; next < manifest->extent_count && manifest->extents[next].tensor == t; next++) {
            if (manifest->extents[next].offset != done) break;
            done += manifest->extents[next].count;
        }
        if (next < manifest->extent_count && manifest->extents[next].tensor == t)
            return fail("%s: the pieces of tensor %s %s at element %lld", where, tensor->name,
                        manifest->extents[next].offset < done ? "overlap" : "leave a hole", (long long)done);
        if (done != count)
            return fail("%s: the pieces of tensor %s end at element %lld of %lld", where, tensor->name,
                        (long long)done, (long long)count);
    }
    return STATUS_OK;
}

/* -- writing ---------------------------------------------------------------------------------- */

static void put_state(struct json_value root, const struct checkpoint_state *state)
{
    json_put_int(root, "step", state->step);
    json_put_int(root, "world", state->world);
    json_put_int(root, "global_batch", state->global_batch);
    char *seed = text_format("%llu", (unsigned long long)state->seed); /* JSON's integers end at 2^63 */
    json_put_text(root, "seed", seed);
    free(seed);
    json_put_int(root, "tokens", state->tokens);
    if (state->reward_steps) {
        json_put_int(root, "reward_steps", state->reward_steps);
        json_put_number(root, "reward_mean", state->reward_mean);
    }
    json_put_text(root, "model_fingerprint", state->model_fingerprint);
    json_put_text(root, "reference_fingerprint", state->reference_fingerprint);
    json_put_text(root, "data_fingerprint", state->data_fingerprint);
    json_put_text(root, "run_file", state->run_file ? state->run_file : "");
    json_put_text(root, "config", state->config ? state->config : "");
}

static void put_files(struct json_value root, const struct manifest *manifest)
{
    struct json_value files = json_put_list(root, "files");
    for (int64_t f = 0; f < manifest->file_count; f++) {
        struct json_value file = json_put_object(files, NULL);
        json_put_text(file, "name", manifest->files[f].name);
        json_put_int(file, "bytes", manifest->files[f].bytes);
        json_put_text(file, "sha256", manifest->files[f].hash);
    }
}

static void put_tensors(struct json_value root, const struct manifest *manifest)
{
    struct json_value tensors = json_put_list(root, "tensors");
    int64_t next = 0;
    for (int64_t t = 0; t < manifest->tensor_count; t++) {
        const struct manifest_tensor *tensor = &manifest->tensors[t];
        struct json_value object = json_put_object(tensors, NULL);
        json_put_text(object, "name", tensor->name);
        struct json_value shape = json_put_list(object, "shape");
        if (!tensor->vector) json_put_int(shape, NULL, tensor->rows);
        json_put_int(shape, NULL, tensor->cols);
        struct json_value pieces = json_put_list(object, "pieces");
        for (; next < manifest->extent_count && manifest->extents[next].tensor == t; next++) {
            struct json_value piece = json_put_list(pieces, NULL);
            json_put_int(piece, NULL, manifest->extents[next].file);
            json_put_int(piece, NULL, manifest->extents[next].offset);
            json_put_int(piece, NULL, manifest->extents[next].count);
        }
    }
}

/* The last member is the SHA-256 of all bytes before this. */
static const char tail_format[] = ",\n \"sha256\": \"%s\"\n}\n";

char *manifest_text(const struct manifest *manifest)
{
    struct json *json = json_new();
    struct json_value root = json_root(json);
    json_put_text(root, "format", "wpo-checkpoint");
    json_put_int(root, "version", MANIFEST_VERSION);
    put_state(root, &manifest->state);
    json_put_bool(root, "optimizer", manifest->optimizer);
    if (manifest->reference) json_put_bool(root, "reference", true);
    put_files(root, manifest);
    put_tensors(root, manifest);
    char *body = json_text(json, 1), hex[HASH_HEX];
    json_free(json);
    size_t length = strlen(body);
    while (length && strchr("\n}", body[length - 1]))
        length--;
    body[length] = 0;
    hash_bytes(hex, body, length);
    char *tail = text_format(tail_format, hex), *text = text_format("%s%s", body, tail);
    free(body);
    free(tail);
    return text;
}

/* -- reading ---------------------------------------------------------------------------------- */

static enum status check_own_hash(const char *path, const char *text, size_t bytes, char hex[HASH_HEX])
{
    size_t tail = sizeof tail_format - 1 - 2 + HASH_HEX - 1; /* without the %s */
    if (bytes <= tail) return fail("%s is truncated", path);
    hash_bytes(hex, text, bytes - tail);
    char *expected = text_format(tail_format, hex);
    bool same = !memcmp(expected, text + bytes - tail, tail);
    free(expected);
    return same ? STATUS_OK : fail("%s is damaged: it does not end with its own SHA-256", path);
}

static enum status copy_hash(struct json_value value, char hex[HASH_HEX])
{
    const char *text;
    TRY(json_as_text(value, &text));
    size_t length = strlen(text);
    if ((length != 64 && length != 0) || strspn(text, "0123456789abcdef") != length)
        return json_fail(value, "is not a SHA-256");
    memcpy(hex, text, length + 1);
    return STATUS_OK;
}

static enum status copy_text(struct json_value value, char **copy)
{
    const char *text;
    TRY(json_as_text(value, &text));
    *copy = text_copy(text);
    return STATUS_OK;
}

static enum status read_state(struct json_value root, struct checkpoint_state *state)
{
    TRY(json_as_int(json_key(root, "step"), 0, INT64_MAX, &state->step));
    TRY(json_as_int(json_key(root, "world"), 1, WORLD_MOST, &state->world));
    TRY(json_as_int(json_key(root, "global_batch"), 0, INT64_MAX, &state->global_batch));
    TRY(json_as_int(json_key(root, "tokens"), 0, INT64_MAX, &state->tokens));
    if (json_present(json_key(root, "reward_steps"))) {
        TRY(json_as_int(json_key(root, "reward_steps"), 1, INT64_MAX, &state->reward_steps));
        TRY(json_as_number(json_key(root, "reward_mean"), &state->reward_mean));
    }
    const char *seed;
    TRY(json_as_text(json_key(root, "seed"), &seed));
    errno = 0;
    state->seed = strtoull(seed, NULL, 10);
    if (errno || !*seed || strspn(seed, "0123456789") != strlen(seed))
        return json_fail(json_key(root, "seed"), "is not a whole number");
    TRY(copy_hash(json_key(root, "model_fingerprint"), state->model_fingerprint));
    TRY(copy_hash(json_key(root, "reference_fingerprint"), state->reference_fingerprint));
    TRY(copy_hash(json_key(root, "data_fingerprint"), state->data_fingerprint));
    TRY(copy_text(json_key(root, "run_file"), &state->run_file));
    return copy_text(json_key(root, "config"), &state->config);
}

/* Names are those that follow from the world: nothing in the file can lead out of the folder. */
static enum status read_files(struct json_value root, struct manifest *manifest)
{
    struct json_value files = json_key(root, "files");
    TRY(json_as_list(files));
    int64_t world = manifest->state.world, count = json_count(files);
    if (count != world + 1)
        return json_fail(files, "names %lld files, not a shard for each of %lld ranks and a master",
                         (long long)count, (long long)world);
    manifest->files = allocate(count, sizeof *manifest->files);
    manifest->file_count = count;
    for (int64_t f = 0; f < count; f++) {
        struct json_value object = json_item(files, f);
        struct manifest_file *file = &manifest->files[f];
        const char *name;
        TRY(json_only(object, (const char *const[]){"name", "bytes", "sha256", NULL}));
        TRY(json_as_text(json_key(object, "name"), &name));
        manifest_file_name(file->name, f, world);
        if (strcmp(name, file->name)) return json_fail(json_key(object, "name"), "is not %s", file->name);
        TRY(json_as_int(json_key(object, "bytes"), 1, INT64_MAX, &file->bytes));
        TRY(copy_hash(json_key(object, "sha256"), file->hash));
        if (!file->hash[0]) return json_fail(json_key(object, "sha256"), "is empty");
    }
    return STATUS_OK;
}

static enum status read_pieces(struct json_value pieces, struct manifest *manifest, int64_t t, int64_t *room)
{
    TRY(json_as_list(pieces));
    const struct manifest_tensor *tensor = &manifest->tensors[t];
    int64_t elements = tensor->rows * tensor->cols, count = json_count(pieces);
    if (manifest->extent_count + count > *room) {
        *room = 2 * (manifest->extent_count + count);
        struct manifest_extent *grown = allocate(*room, sizeof *grown);
        if (manifest->extent_count)
            memcpy(grown, manifest->extents, (size_t)manifest->extent_count * sizeof *grown);
        free(manifest->extents);
        manifest->extents = grown;
    }
    for (int64_t p = 0; p < count; p++) {
        struct json_value piece = json_item(pieces, p);
        struct manifest_extent *extent = &manifest->extents[manifest->extent_count];
        extent->tensor = t;
        if (json_count(piece) != 3) return json_fail(piece, "is not [file, offset, count]");
        TRY(json_as_int(json_item(piece, 0), 0, manifest->state.world - 1, &extent->file));
        TRY(json_as_int(json_item(piece, 1), 0, elements - 1, &extent->offset));
        TRY(json_as_int(json_item(piece, 2), 1, elements - extent->offset, &extent->count));
        manifest->extent_count++;
    }
    return STATUS_OK;
}

static enum status read_tensor(struct json_value object, struct manifest_tensor *tensor)
{
    const char *name;
    TRY(json_only(object, (const char *const[]){"name", "shape", "pieces", NULL}));
    TRY(json_as_text(json_key(object, "name"), &name));
    if (!*name || strlen(name) >= sizeof tensor->name || strchr(name, '/'))
        return json_fail(json_key(object, "name"), "is not the name of a tensor");
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    struct json_value shape = json_key(object, "shape");
    int64_t dimensions = json_count(shape), count;
    if (dimensions != 1 && dimensions != 2) return json_fail(shape, "does not have one or two dimensions");
    tensor->vector = dimensions == 1;
    tensor->rows = 1;
    if (!tensor->vector) TRY(json_as_int(json_item(shape, 0), 1, INT64_MAX, &tensor->rows));
    TRY(json_as_int(json_item(shape, dimensions - 1), 1, INT64_MAX, &tensor->cols));
    if (__builtin_mul_overflow(tensor->rows, tensor->cols, &count) || count > INT64_MAX / 16)
        return json_fail(shape, "is too large");
    return STATUS_OK;
}

static enum status read_tensors(struct json_value root, struct manifest *manifest)
{
    struct json_value tensors = json_key(root, "tensors");
    TRY(json_as_list(tensors));
    int64_t count = json_count(tensors), room = 0;
    if (count < 1 || count > TENSORS_MOST) return json_fail(tensors, "has %lld tensors", (long long)count);
    manifest->tensors = allocate(count, sizeof *manifest->tensors);
    manifest->tensor_count = count;
    for (int64_t t = 0; t < count; t++) {
        struct json_value object = json_item(tensors, t);
        TRY(read_tensor(object, &manifest->tensors[t]));
        TRY(read_pieces(json_key(object, "pieces"), manifest, t, &room));
    }
    return STATUS_OK;
}

static enum status read_root(struct json_value root, struct manifest *manifest, const char *path)
{
    static const char *const keys[] = {"format",
                                       "version",
                                       "step",
                                       "world",
                                       "global_batch",
                                       "seed",
                                       "tokens",
                                       "reward_steps",
                                       "reward_mean",
                                       "config",
                                       "model_fingerprint",
                                       "reference_fingerprint",
                                       "data_fingerprint",
                                       "run_file",
                                       "files",
                                       "optimizer",
                                       "reference",
                                       "tensors",
                                       "sha256",
                                       NULL};
    const char *format;
    int64_t version;
    TRY(json_as_text(json_key(root, "format"), &format));
    if (strcmp(format, "wpo-checkpoint")) return json_fail(json_key(root, "format"), "is not wpo-checkpoint");
    TRY(json_as_int(json_key(root, "version"), 0, INT64_MAX, &version));
    if (version != MANIFEST_VERSION)
        return json_fail(json_key(root, "version"), "is %lld, and this program reads version %d",
                         (long long)version, MANIFEST_VERSION);
    TRY(json_only(root, keys));
    TRY(read_state(root, &manifest->state));
    TRY(json_as_bool(json_key(root, "optimizer"), &manifest->optimizer));
    if (json_present(json_key(root, "reference")))
        TRY(json_as_bool(json_key(root, "reference"), &manifest->reference));
    TRY(read_files(root, manifest));
    TRY(read_tensors(root, manifest));
    return manifest_tile(manifest, path);
}

enum status manifest_read(struct manifest *manifest, const char *folder)
{
    *manifest = (struct manifest){0};
    char *path = files_join(folder, "manifest.json"), *text = NULL;
    size_t bytes;
    struct json *json = NULL;
    enum status status = files_read(&text, &bytes, path, JSON_MEDIUM);
    if (status == STATUS_OK) status = check_own_hash(path, text, bytes, manifest->hash);
    if (status == STATUS_OK) status = json_parse(&json, path, text, bytes);
    if (status == STATUS_OK) status = read_root(json_root(json), manifest, path);
    json_free(json);
    free(text);
    free(path);
    if (status != STATUS_OK) manifest_free(manifest);
    return status;
}

/* -- files ------------------------------------------------------------------------------------ */

enum status manifest_check_file(const struct manifest *manifest, int64_t file, const char *folder,
                                bool content)
{
    const struct manifest_file *expected = &manifest->files[file];
    char *path = files_join(folder, expected->name), hex[HASH_HEX];
    int descriptor = -1;
    int64_t size;
    enum status status = files_open(&descriptor, &size, path);
    if (status == STATUS_OK && size != expected->bytes)
        status = fail("%s has %lld bytes, and the manifest says %lld: it is %s", path, (long long)size,
                      (long long)expected->bytes,
                      size < expected->bytes ? "truncated" : "not the file that was written");
    if (status == STATUS_OK && content) status = hash_file(hex, descriptor, 0, path);
    if (status == STATUS_OK && content && strcmp(hex, expected->hash))
        status = fail("%s is damaged or from elsewhere: its SHA-256 is not the manifest's", path);
    if (descriptor >= 0) close(descriptor);
    free(path);
    return status;
}
