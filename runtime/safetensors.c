#include "runtime/safetensors.h"

#include "kernels/bfloat.h"
#include "runtime/files.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 }; /* elements that are converted at a time */

static const struct {
    const char *name, *torch;
    int bits;
} formats[] = {
    [DTYPE_FLOAT] = {"F32", "float32", 32},
    [DTYPE_BFLOAT] = {"BF16", "bfloat16", 16},
    [DTYPE_HALF] = {"F16", "float16", 16},
    /* known, so that their sizes can be checked, but not read */
    {"F64", NULL, 64},
    {"I64", NULL, 64},
    {"U64", NULL, 64},
    {"C64", NULL, 64},
    {"I32", NULL, 32},
    {"U32", NULL, 32},
    {"I16", NULL, 16},
    {"U16", NULL, 16},
    {"I8", NULL, 8},
    {"U8", NULL, 8},
    {"BOOL", NULL, 8},
    {"F8_E4M3", NULL, 8},
    {"F8_E5M2", NULL, 8},
    {"F8_E8M0", NULL, 8},
    {"F6_E2M3", NULL, 6},
    {"F6_E3M2", NULL, 6},
    {"F4", NULL, 4},
};
enum { FORMAT_COUNT = sizeof formats / sizeof formats[0] };

const char *safetensors_dtype(enum dtype type)
{
    return formats[type].name;
}

const char *safetensors_torch_dtype(enum dtype type)
{
    return formats[type].torch;
}

/* -- the numbers ------------------------------------------------------------------------------ */

/* Exact: every half is a float. */
static float widen_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float small = (float)fraction * 0x1p-24f;
    return sign ? -small : small;
}

static uint16_t narrow_half(float value)
{
    uint32_t bits = float_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more */
    if (magnitude < 0x38800000) /* below 2^-14: a multiple of 2^-24; adding 1/2 has the float unit round it */
        return (uint16_t)(sign | (float_bits(float_of_bits(magnitude) + 0.5f) - 0x3f000000));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - 0x38000000) >> 13);
}

/* -- reading ---------------------------------------------------------------------------------- */

static enum status read_dtype(struct safetensors_entry *entry, struct json_value value, int64_t *bits)
{
    TRY(json_as_text(value, &entry->stored));
    for (int i = 0; i < FORMAT_COUNT; i++) {
        if (strcmp(entry->stored, formats[i].name) != 0) continue;
        entry->readable = formats[i].torch != NULL;
        entry->type = entry->readable ? (enum dtype)i : DTYPE_FLOAT;
        *bits = formats[i].bits;
        return STATUS_OK;
    }
    return json_fail(value, "is \"%s\", which is no known dtype", entry->stored);
}

static enum status read_shape(struct safetensors_entry *entry, struct json_value shape)
{
    TRY(json_as_list(shape));
    int64_t dimensions = json_count(shape);
    if (dimensions > SAFETENSORS_DIMENSIONS)
        return json_fail(shape, "has %lld dimensions, but at most %d are accepted", (long long)dimensions,
                         SAFETENSORS_DIMENSIONS);
    entry->dimensions = (int)dimensions;
    entry->count = 1;
    for (int64_t i = 0; i < dimensions; i++) {
        TRY(json_as_int(json_item(shape, i), 0, INT64_MAX, &entry->shape[i]));
        if (__builtin_mul_overflow(entry->count, entry->shape[i], &entry->count))
            return json_fail(shape, "has more elements than 64 bits can count");
    }
    return STATUS_OK;
}

/* `room` bytes of tensors begin at `start` of the file. */
static enum status read_entry(struct safetensors_entry *entry, struct json_member member, int64_t start,
                              int64_t room)
{
    static const char *const known[] = {"dtype", "shape", "data_offsets", NULL};
    int64_t bits = 0, total;
    entry->name = member.name;
    TRY(json_only(member.value, known));
    TRY(read_dtype(entry, json_key(member.value, "dtype"), &bits));
    TRY(read_shape(entry, json_key(member.value, "shape")));
    struct json_value offsets = json_key(member.value, "data_offsets");
    TRY(json_as_list(offsets));
    if (json_count(offsets) != 2) return json_fail(offsets, "must hold two numbers");
    TRY(json_as_int(json_item(offsets, 0), 0, room, &entry->begin));
    TRY(json_as_int(json_item(offsets, 1), entry->begin, room, &entry->end));
    if (__builtin_mul_overflow(entry->count, bits, &total) || total % 8 != 0 ||
        total / 8 != entry->end - entry->begin)
        return json_fail(offsets,
                         "span %lld bytes, which is not the size of the tensor's %lld elements of %s",
                         (long long)(entry->end - entry->begin), (long long)entry->count, entry->stored);
    entry->begin += start;
    entry->end += start;
    return STATUS_OK;
}

static int by_bytes(const void *left, const void *right)
{
    const struct safetensors_entry *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    return a->end < b->end ? -1 : a->end > b->end;
}

/* Every byte behind the header belongs to one tensor. */
static enum status check_tiling(const struct safetensors *file, int64_t start, int64_t size)
{
    int64_t end = start;
    for (int64_t i = 0; i < file->count; i++) {
        const struct safetensors_entry *entry = &file->entries[i];
        if (entry->begin != end)
            return fail(
                "%s: %s.data_offsets begin at byte %lld, where the tensor before it ends at %lld; the file "
                "is damaged",
                file->path, entry->name, (long long)(entry->begin - start), (long long)(end - start));
        end = entry->end;
    }
    if (end == size) return STATUS_OK;
    return fail("%s: %lld bytes at the end belong to no tensor of the header; the file is damaged",
                file->path, (long long)(size - end));
}

static enum status read_header(struct safetensors *file, int64_t size, int64_t *start)
{
    unsigned char prefix[8];
    if (size < 8)
        return fail("%s: too short for a safetensors file: %lld bytes", file->path, (long long)size);
    TRY(files_read_at(file->descriptor, prefix, sizeof prefix, 0, file->path));
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | prefix[i];
    if (length > JSON_LARGE || (int64_t)length > size - 8)
        return fail(
            "%s: the header's length is given as %llu bytes, but the file has %lld and at most %d are "
            "accepted; it is truncated or no safetensors file",
            file->path, (unsigned long long)length, (long long)size, JSON_LARGE);
    char *text = allocate((long long)length + 1, 1);
    enum status status = files_read_at(file->descriptor, text, length, 8, file->path);
    if (status == STATUS_OK && text[0] != '{')
        status = fail("%s: the header does not begin with {", file->path);
    if (status == STATUS_OK) status = json_parse(&file->header, file->path, text, length);
    free(text);
    *start = 8 + (int64_t)length;
    return status;
}

static enum status check_metadata(struct json_value metadata)
{
    const char *text;
    TRY(json_as_object(metadata));
    for (struct json_member member = json_first(metadata); member.name; member = json_next(member))
        TRY(json_as_text(member.value, &text));
    return STATUS_OK;
}

static enum status read_all(struct safetensors *file, int64_t size)
{
    int64_t start = 0;
    TRY(read_header(file, size, &start));
    struct json_value root = json_root(file->header);
    file->entries = allocate(json_count(root), sizeof *file->entries);
    for (struct json_member member = json_first(root); member.name; member = json_next(member)) {
        if (strcmp(member.name, "__metadata__") == 0)
            TRY(check_metadata(member.value));
        else
            TRY(read_entry(&file->entries[file->count++], member, start, size - start));
    }
    qsort(file->entries, (size_t)file->count, sizeof *file->entries, by_bytes);
    return check_tiling(file, start, size);
}

enum status safetensors_open(struct safetensors *file, const char *path)
{
    memset(file, 0, sizeof *file);
    int64_t size;
    TRY(files_open(&file->descriptor, &size, path));
    file->path = text_copy(path);
    enum status status = read_all(file, size);
    if (status != STATUS_OK) safetensors_close(file);
    return status;
}

void safetensors_close(struct safetensors *file)
{
    if (file->path) close(file->descriptor);
    json_free(file->header);
    free(file->entries);
    free(file->path);
    memset(file, 0, sizeof *file);
}

static enum status check_finite(const struct safetensors *file, const struct safetensors_entry *entry,
                                int64_t first, int64_t count, const float *values)
{
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return fail("%s: tensor %s holds %s at element %lld; the checkpoint is broken", file->path,
                        entry->name, isnan(values[i]) ? "NaN" : "an infinity", (long long)(first + i));
    return STATUS_OK;
}

static enum status read_chunk(const struct safetensors *file, const struct safetensors_entry *entry,
                              int64_t first, int64_t count, float *values, uint16_t *narrow)
{
    int64_t bytes = (int64_t)dtype_bytes(entry->type);
    void *target = narrow ? (void *)narrow : (void *)values;
    TRY(files_read_at(file->descriptor, target, (size_t)(count * bytes), entry->begin + first * bytes,
                      file->path));
    for (int64_t i = 0; narrow && i < count; i++)
        values[i] =
            entry->type == DTYPE_HALF ? widen_half(narrow[i]) : bfloat_widen((struct bfloat){narrow[i]});
    return check_finite(file, entry, first, count, values);
}

enum status safetensors_read(const struct safetensors *file, const struct safetensors_entry *entry,
                             int64_t first, int64_t count, float *values)
{
    if (!entry->readable)
        return fail("%s: tensor %s is stored as %s; only F32, BF16 and F16 are supported", file->path,
                    entry->name, entry->stored);
    uint16_t *narrow = entry->type == DTYPE_FLOAT ? NULL : allocate(CHUNK, sizeof *narrow);
    enum status status = STATUS_OK;
    for (int64_t done = 0; done < count && status == STATUS_OK; done += CHUNK) {
        int64_t part = count - done < CHUNK ? count - done : CHUNK;
        status = read_chunk(file, entry, first + done, part, values + done, narrow);
    }
    free(narrow);
    return status;
}

/* -- writing ---------------------------------------------------------------------------------- */

static char *make_header(const struct safetensors_source *sources, int64_t count, enum dtype type)
{
    struct json *json = json_new();
    struct json_value root = json_root(json);
    json_put_text(json_put_object(root, "__metadata__"), "format", "pt");
    int64_t offset = 0;
    for (int64_t i = 0; i < count; i++) {
        struct json_value entry = json_put_object(root, sources[i].name);
        json_put_text(entry, "dtype", safetensors_dtype(type));
        struct json_value shape = json_put_list(entry, "shape"),
                          offsets = json_put_list(entry, "data_offsets");
        if (!sources[i].vector) json_put_int(shape, NULL, sources[i].rows);
        json_put_int(shape, NULL, sources[i].cols);
        json_put_int(offsets, NULL, offset);
        offset += sources[i].rows * sources[i].cols * (int64_t)dtype_bytes(type);
        json_put_int(offsets, NULL, offset);
    }
    char *text = json_text(json, 0);
    json_free(json);
    return text;
}

/* Padded with spaces, so that the tensors begin at a multiple of 8 bytes. */
static enum status add_header(struct file_writer *writer, const char *header)
{
    size_t length = strlen(header), padded = (length + 7) / 8 * 8;
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++)
        prefix[i] = (unsigned char)(padded >> 8 * i);
    TRY(files_add(writer, prefix, sizeof prefix));
    TRY(files_add(writer, header, length));
    return files_add(writer, "       ", padded - length);
}

static enum status narrow_chunk(uint16_t *narrow, const float *values, int64_t first, int64_t count,
                                enum dtype type, const struct safetensors_source *source)
{
    for (int64_t i = 0; i < count; i++) {
        float value = values[i], back = value;
        if (type == DTYPE_BFLOAT) {
            narrow[i] = bfloat_round(value).bits;
            back = bfloat_widen((struct bfloat){narrow[i]});
        }
        if (type == DTYPE_HALF) back = widen_half(narrow[i] = narrow_half(value));
        if (!isfinite(value))
            return fail("tensor %s holds %s at element %lld, so it cannot be saved as a model", source->name,
                        isnan(value) ? "NaN" : "an infinity", (long long)(first + i));
        if (!isfinite(back))
            return fail("tensor %s: element %lld is %g, too large for %s; choose bfloat16 or float32",
                        source->name, (long long)(first + i), (double)value, safetensors_torch_dtype(type));
    }
    return STATUS_OK;
}

static enum status add_tensor(struct file_writer *writer, const struct safetensors_source *source,
                              enum dtype type, uint16_t *narrow)
{
    int64_t count = source->rows * source->cols;
    for (int64_t first = 0; first < count; first += CHUNK) {
        int64_t part = count - first < CHUNK ? count - first : CHUNK;
        const float *values = source->values + first;
        TRY(narrow_chunk(narrow, values, first, part, type, source));
        const void *bytes = type == DTYPE_FLOAT ? (const void *)values : (const void *)narrow;
        TRY(files_add(writer, bytes, (size_t)part * dtype_bytes(type)));
    }
    return STATUS_OK;
}

enum status safetensors_write(const char *path, const struct safetensors_source *sources, int64_t count,
                              enum dtype type)
{
    char *header = make_header(sources, count, type);
    int64_t expected = 16 + (int64_t)strlen(header);
    for (int64_t i = 0; i < count; i++)
        expected += sources[i].rows * sources[i].cols * (int64_t)dtype_bytes(type);
    uint16_t *narrow = allocate(CHUNK, sizeof *narrow);
    struct file_writer writer;
    enum status status = files_create(&writer, path, expected);
    if (status == STATUS_OK) {
        status = add_header(&writer, header);
        for (int64_t i = 0; i < count && status == STATUS_OK; i++)
            status = add_tensor(&writer, &sources[i], type, narrow);
        if (status == STATUS_OK)
            status = files_finish(&writer);
        else
            files_abandon(&writer);
    }
    free(narrow);
    free(header);
    return status;
}
