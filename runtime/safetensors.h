/* The safetensors format: 8 bytes (little-endian length of the header), a JSON header, the tensors' bytes. */
#ifndef WPO_RUNTIME_SAFETENSORS_H
#define WPO_RUNTIME_SAFETENSORS_H

#include "kernels/tensor.h"
#include "runtime/json.h"

enum { SAFETENSORS_DIMENSIONS = 8 };

struct safetensors_entry {
    const char *name;   /* owned by the file's header */
    const char *stored; /* the dtype's name in the file */
    bool readable;      /* F32, BF16 or F16: then `type` says which */
    enum dtype type;
    int dimensions;
    int64_t shape[SAFETENSORS_DIMENSIONS];
    int64_t count;      /* elements */
    int64_t begin, end; /* bytes in the file */
};

/* An open file. Entries stand in the order of their bytes. */
struct safetensors {
    char *path;
    int descriptor;
    struct json *header;
    struct safetensors_entry *entries;
    int64_t count;
};

/* Opens a file and checks all of its header: length, strict JSON, known dtypes, sizes that fit their shapes
 * without overflow, and tensors that tile the rest of the file without overlap, hole or excess. Local, like
 * all here. */
enum status safetensors_open(struct safetensors *file, const char *path);
void safetensors_close(struct safetensors *file); /* a zeroed struct is allowed */

/* Reads elements first .. first+count-1, widened to f32, into values [count]. Another dtype than F32, BF16 or
 * F16 and a value that is not finite are errors that name the tensor. Reads by pread: a file that shrinks is
 * an error too. */
enum status safetensors_read(const struct safetensors *file, const struct safetensors_entry *entry,
                             int64_t first, int64_t count, float *values);

/* A tensor to be written. */
struct safetensors_source {
    const char *name;
    const float *values; /* [rows * cols] */
    int64_t rows, cols;
    bool vector; /* the shape is [cols] */
};

/* Writes a new file, fsynced, with values rounded to the nearest (ties to even) of `type`. A value that is
 * not finite, or becomes infinite in `type`, is an error that names the tensor. Nothing is left of the file
 * after a failure. */
enum status safetensors_write(const char *path, const struct safetensors_source *sources, int64_t count,
                              enum dtype type);

/* "F32", "BF16", "F16"; and as config.json names them: "float32", "bfloat16", "float16". */
const char *safetensors_dtype(enum dtype type);
const char *safetensors_torch_dtype(enum dtype type);

#endif
