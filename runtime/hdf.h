/* HDF5, as narrow as the program needs it. The only file that knows the HDF5 library is hdf.c.
 *
 * Files are written as an image in memory, so that the library never meets a full disk, and are read
 * strictly: only what is asked for by name is touched, only hard links are followed, and only one kind of
 * dataset is read: one-dimensional, chunked, with a Fletcher-32 checksum and no other filter, all of it
 * stored in the file itself, and of exactly the type asked for, little-endian. Plug-ins are off. Whoever
 * opens a file has checked its SHA-256 before. Names are paths inside the file, "/prompt/tokens". Every error
 * is a sentence that names file and dataset. */
#ifndef WPO_RUNTIME_HDF_H
#define WPO_RUNTIME_HDF_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

enum hdf_type { HDF_BYTE, HDF_INT, HDF_LONG, HDF_FLOAT, HDF_DOUBLE }; /* int8 int32 int64 f32 f64 */

struct hdf;

/* -- reading ---------------------------------------------------------------------------------- */

enum status hdf_open(struct hdf **file, const char *path);
void hdf_close(struct hdf *file); /* NULL is allowed */
bool hdf_has(struct hdf *file, const char *name);
/* Checks the dataset; *length (out) >= 1 in elements. */
enum status hdf_length(struct hdf *file, const char *name, enum hdf_type type, int64_t *length);
/* Elements first .. first + count - 1 into values, which has room for them. */
enum status hdf_read(struct hdf *file, const char *name, enum hdf_type type, void *values, int64_t first,
                     int64_t count);
/* The whole dataset; *values (out) is to be freed, NULL after a failure. */
enum status hdf_read_all(struct hdf *file, const char *name, enum hdf_type type, void **values,
                         int64_t *length);
/* Root attributes: a fixed-length string (*text to be freed), an int64. */
enum status hdf_text(struct hdf *file, const char *key, char **text);
enum status hdf_integer(struct hdf *file, const char *key, int64_t *value);

/* -- writing ---------------------------------------------------------------------------------- */

/* An empty file in memory; its first user_block bytes (0, or 512) are zeros that HDF5 leaves alone. */
enum status hdf_create(struct hdf **file, size_t user_block);
/* Adds a dataset, and the groups on the way to it; count >= 1. */
enum status hdf_add(struct hdf *file, const char *name, enum hdf_type type, const void *values,
                    int64_t count);
/* Attributes of the dataset `name`, or of the file itself for "/". */
enum status hdf_put_text(struct hdf *file, const char *name, const char *key, const char *text);
enum status hdf_put_integer(struct hdf *file, const char *name, const char *key, int64_t value);
enum status hdf_put_integers(struct hdf *file, const char *name, const char *key, const int64_t *values,
                             int64_t count);

/* Elements offset .. offset + count - 1 of a flattened tensor are the whole of a one-dimensional dataset of
 * another file, which stands in the same folder. */
struct hdf_part {
    const char *file, *name;
    int64_t offset, count;
};
/* Adds a virtual f32 dataset [rows, cols], or [cols] for a vector (rows 1), that shows the parts as one
 * tensor. */
enum status hdf_add_view(struct hdf *file, const char *name, int64_t rows, int64_t cols, bool vector,
                         const struct hdf_part *parts, int64_t count);

/* Closes the file and hands over its bytes, to be freed. After a failure the file is gone as well. */
enum status hdf_finish(struct hdf *file, char **image, size_t *bytes);
/* hdf_finish, seal (runtime/seal.h; the file was created with a user block of SEAL_BYTES) and files_replace.
 */
enum status hdf_finish_sealed(struct hdf *file, const char *format, const char *path);

#endif
