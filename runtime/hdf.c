#include "runtime/hdf.h"

#include "runtime/files.h"
#include "runtime/seal.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Chunks are the unit of the checksum and of memory while reading. */
static const int64_t chunk_elements = 1 << 18;
static const size_t text_limit = 1 << 24;

struct hdf {
    hid_t id;
    char *path;
    int64_t bytes; /* of the file; nothing in it can be larger */
    char *image;   /* of a file that is being written */
    size_t image_bytes;
    size_t user_block;
};

/* Before anything else: no plug-ins (a way to load code), no work at exit (it crashes after a failed write),
 * and no error stacks on standard error. */
static void library_start(void)
{
    static bool started;
    if (started) return;
    started = true;
    H5dont_atexit();
    H5PLset_loading_state(0);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static hid_t file_type(enum hdf_type type)
{
    switch (type) {
    case HDF_BYTE:
        return H5T_STD_I8LE;
    case HDF_INT:
        return H5T_STD_I32LE;
    case HDF_LONG:
        return H5T_STD_I64LE;
    case HDF_FLOAT:
        return H5T_IEEE_F32LE;
    case HDF_DOUBLE:
        break;
    }
    return H5T_IEEE_F64LE;
}

static const char *type_name(enum hdf_type type)
{
    static const char *const names[] = {"int8", "int32", "int64", "float32", "float64"};
    return names[type];
}

/* -- reading ---------------------------------------------------------------------------------- */

enum status hdf_open(struct hdf **file, const char *path)
{
    library_start();
    *file = NULL;
    int descriptor;
    int64_t bytes;
    TRY(files_open(&descriptor, &bytes, path));
    close(descriptor);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7)
    H5Pset_file_locking(access, 0,
                        1); /* file systems without locks exist, and nobody writes into these files */
#endif
    hid_t id = H5Fopen(path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    if (id < 0) return fail("%s: the HDF5 library cannot open it; it is no HDF5 file or is damaged", path);
    *file = allocate(1, sizeof **file);
    **file = (struct hdf){.id = id, .path = text_copy(path), .bytes = bytes};
    return STATUS_OK;
}

void hdf_close(struct hdf *file)
{
    if (!file) return;
    if (file->id >= 0) H5Fclose(file->id);
    free(file->image);
    free(file->path);
    free(file);
}

/* Follows hard links only, one step at a time: a soft or external link could lead out of the file. */
static enum status check_links(struct hdf *file, const char *name, bool *missing)
{
    *missing = false;
    char step[512];
    for (size_t i = 1, length = strlen(name); i <= length; i++) {
        if (name[i] != '/' && name[i]) continue;
        if (i >= sizeof step) return fail("%s: the name %s is too long", file->path, name);
        memcpy(step, name, i);
        step[i] = 0;
        H5L_info_t link;
        if (H5Lexists(file->id, step, H5P_DEFAULT) <= 0) {
            *missing = true;
            return STATUS_OK;
        }
        if (H5Lget_info(file->id, step, &link, H5P_DEFAULT) < 0)
            return fail("%s: %s cannot be read; the file is damaged", file->path, step);
        if (link.type != H5L_TYPE_HARD)
            return fail("%s: %s is a link to another place; only data in the file itself is read", file->path,
                        step);
    }
    return STATUS_OK;
}

bool hdf_has(struct hdf *file, const char *name)
{
    bool missing;
    return check_links(file, name, &missing) != STATUS_OK || !missing;
}

/* How the dataset is stored, before anything follows from it: external files and virtual datasets would read
 * other files, and filters other than the checksum would run other code. */
static enum status check_storage(struct hdf *file, const char *name, hid_t dataset, int64_t *chunk)
{
    hid_t creation = H5Dget_create_plist(dataset);
    enum status status = STATUS_OK;
    hsize_t size = 0;
    unsigned flags, config;
    size_t parameters = 0;
    if (creation < 0)
        status = fail("%s: dataset %s cannot be read; the file is damaged", file->path, name);
    else if (H5Pget_external_count(creation) != 0 || H5Pget_layout(creation) == H5D_VIRTUAL)
        status = fail("%s: dataset %s lies in other files; only data in the file itself is read", file->path,
                      name);
    else if (H5Pget_layout(creation) != H5D_CHUNKED || H5Pget_chunk(creation, 1, &size) != 1)
        status = fail("%s: dataset %s is not stored in one-dimensional chunks", file->path, name);
    else if (H5Pget_nfilters(creation) != 1 || H5Pget_filter2(creation, 0, &flags, &parameters, NULL, 0, NULL,
                                                              &config) != H5Z_FILTER_FLETCHER32)
        status =
            fail("%s: dataset %s must have the Fletcher-32 checksum and no other filter", file->path, name);
    if (creation >= 0) H5Pclose(creation);
    *chunk = size > (hsize_t)file->bytes ? INT64_MAX : (int64_t)size;
    return status;
}

static enum status check_shape(struct hdf *file, const char *name, hid_t dataset, enum hdf_type type,
                               int64_t chunk, int64_t *length)
{
    hid_t stored = H5Dget_type(dataset), space = H5Dget_space(dataset);
    hsize_t extent = 0;
    bool same = stored >= 0 && H5Tequal(stored, file_type(type)) > 0;
    bool line = space >= 0 && H5Sget_simple_extent_ndims(space) == 1 &&
                H5Sget_simple_extent_dims(space, &extent, NULL) == 1;
    if (stored >= 0) H5Tclose(stored);
    if (space >= 0) H5Sclose(space);
    if (!same)
        return fail("%s: dataset %s is not of type %s, little-endian", file->path, name, type_name(type));
    if (!line) return fail("%s: dataset %s does not have one dimension", file->path, name);
    if (extent == 0) return fail("%s: dataset %s is empty", file->path, name);
    hsize_t size = H5Tget_size(file_type(type)), most = (hsize_t)file->bytes / size;
    if (extent > most || (hsize_t)chunk > most || H5Dget_storage_size(dataset) < extent * size)
        return fail("%s: dataset %s claims %llu elements, more than the file holds", file->path, name,
                    (unsigned long long)extent);
    *length = (int64_t)extent;
    return STATUS_OK;
}

static enum status open_dataset(struct hdf *file, const char *name, enum hdf_type type, hid_t *dataset,
                                int64_t *length)
{
    bool missing;
    TRY(check_links(file, name, &missing));
    if (missing) return fail("%s: dataset %s is missing", file->path, name);
    H5O_info_t about;
    if (H5Oget_info_by_name2(file->id, name, &about, H5O_INFO_BASIC, H5P_DEFAULT) < 0 ||
        about.type != H5O_TYPE_DATASET)
        return fail("%s: %s is not a dataset", file->path, name);
    *dataset = H5Dopen2(file->id, name, H5P_DEFAULT);
    if (*dataset < 0) return fail("%s: dataset %s cannot be opened; the file is damaged", file->path, name);
    int64_t chunk;
    enum status status = check_storage(file, name, *dataset, &chunk);
    if (status == STATUS_OK) status = check_shape(file, name, *dataset, type, chunk, length);
    if (status != STATUS_OK) H5Dclose(*dataset);
    return status;
}

enum status hdf_length(struct hdf *file, const char *name, enum hdf_type type, int64_t *length)
{
    hid_t dataset;
    TRY(open_dataset(file, name, type, &dataset, length));
    H5Dclose(dataset);
    return STATUS_OK;
}

enum status hdf_read(struct hdf *file, const char *name, enum hdf_type type, void *values, int64_t first,
                     int64_t count)
{
    hid_t dataset;
    int64_t length;
    TRY(open_dataset(file, name, type, &dataset, &length));
    enum status status = STATUS_OK;
    if (first < 0 || count < 1 || first > length || count > length - first) {
        status = fail("%s: dataset %s has %lld elements, not those from %lld to %lld", file->path, name,
                      (long long)length, (long long)first, (long long)(first + count));
    } else {
        hsize_t start = (hsize_t)first, size = (hsize_t)count;
        hid_t inside = H5Dget_space(dataset), memory = H5Screate_simple(1, &size, NULL);
        if (H5Sselect_hyperslab(inside, H5S_SELECT_SET, &start, NULL, &size, NULL) < 0 ||
            H5Dread(dataset, file_type(type), memory, inside, H5P_DEFAULT, values) < 0)
            status = fail("%s: dataset %s cannot be read; the file is damaged", file->path, name);
        H5Sclose(inside);
        H5Sclose(memory);
    }
    H5Dclose(dataset);
    return status;
}

enum status hdf_read_all(struct hdf *file, const char *name, enum hdf_type type, void **values,
                         int64_t *length)
{
    *values = NULL;
    TRY(hdf_length(file, name, type, length));
    *values = allocate(*length, H5Tget_size(file_type(type)));
    enum status status = hdf_read(file, name, type, *values, 0, *length);
    if (status == STATUS_OK) return STATUS_OK;
    free(*values);
    *values = NULL;
    return status;
}

static enum status open_attribute(struct hdf *file, const char *key, hid_t *attribute, hid_t *type)
{
    if (H5Aexists(file->id, key) <= 0) return fail("%s: attribute %s is missing", file->path, key);
    *attribute = H5Aopen(file->id, key, H5P_DEFAULT);
    if (*attribute < 0) return fail("%s: attribute %s cannot be read; the file is damaged", file->path, key);
    *type = H5Aget_type(*attribute);
    hid_t space = H5Aget_space(*attribute);
    bool single = *type >= 0 && space >= 0 && H5Sget_simple_extent_npoints(space) == 1;
    if (space >= 0) H5Sclose(space);
    if (single) return STATUS_OK;
    if (*type >= 0) H5Tclose(*type);
    H5Aclose(*attribute);
    return fail("%s: attribute %s is not one value", file->path, key);
}

enum status hdf_text(struct hdf *file, const char *key, char **text)
{
    hid_t attribute, type;
    *text = NULL;
    TRY(open_attribute(file, key, &attribute, &type));
    enum status status = STATUS_OK;
    size_t size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || size > text_limit) {
        status = fail("%s: attribute %s is not a string of fixed length", file->path, key);
    } else {
        *text = allocate((long long)size + 1, 1);
        if (H5Aread(attribute, type, *text) < 0)
            status = fail("%s: attribute %s cannot be read; the file is damaged", file->path, key);
    }
    H5Tclose(type);
    H5Aclose(attribute);
    if (status == STATUS_OK) return STATUS_OK;
    free(*text);
    *text = NULL;
    return status;
}

enum status hdf_integer(struct hdf *file, const char *key, int64_t *value)
{
    hid_t attribute, type;
    TRY(open_attribute(file, key, &attribute, &type));
    enum status status = STATUS_OK;
    if (H5Tequal(type, H5T_STD_I64LE) <= 0)
        status = fail("%s: attribute %s is not of type int64, little-endian", file->path, key);
    else if (H5Aread(attribute, H5T_NATIVE_INT64, value) < 0)
        status = fail("%s: attribute %s cannot be read; the file is damaged", file->path, key);
    H5Tclose(type);
    H5Aclose(attribute);
    return status;
}

/* -- writing ---------------------------------------------------------------------------------- */

/* The library's in-memory driver asks these for memory, so that the image outlives the close of the file:
 * only then is it complete. (An image taken from an open file has a superblock whose checksum does not
 * match.) */
static void *image_resize(void *memory, size_t bytes, H5FD_file_image_op_t when, void *context)
{
    (void)when;
    struct hdf *file = context;
    char *larger = realloc(memory, bytes);
    if (!larger) return NULL;
    file->image = larger;
    file->image_bytes = bytes;
    return larger;
}

static void *image_allocate(size_t bytes, H5FD_file_image_op_t when, void *context)
{
    return image_resize(NULL, bytes, when, context);
}

static herr_t image_keep(void *memory, H5FD_file_image_op_t when, void *context)
{
    (void)memory, (void)when, (void)context;
    return 0;
}

static void *image_context(void *context)
{
    return context;
}

static herr_t image_context_free(void *context)
{
    (void)context;
    return 0;
}

static void *image_copy(void *to, const void *from, size_t bytes, H5FD_file_image_op_t when, void *context)
{
    (void)when, (void)context;
    return memcpy(to, from, bytes);
}

enum status hdf_create(struct hdf **file, size_t user_block)
{
    library_start();
    *file = allocate(1, sizeof **file);
    (*file)->user_block = user_block;
    (*file)->path = text_copy("(file in memory)");
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE);
    H5FD_file_image_callbacks_t callbacks = {image_allocate, image_copy,         image_resize, image_keep,
                                             image_context,  image_context_free, *file};
    /* The oldest format that has checksums on its own structures and virtual datasets. */
    bool set = H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
               H5Pset_fapl_core(access, (size_t)1 << 22, 0) >= 0 &&
               H5Pset_fclose_degree(access, H5F_CLOSE_STRONG) >= 0 &&
               H5Pset_file_image_callbacks(access, &callbacks) >= 0 &&
               H5Pset_userblock(creation, user_block) >= 0 && H5Pset_obj_track_times(creation, 0) >= 0;
    (*file)->id = set ? H5Fcreate("image", H5F_ACC_TRUNC, creation, access) : -1;
    H5Pclose(creation);
    H5Pclose(access);
    if ((*file)->id >= 0) return STATUS_OK;
    hdf_close(*file);
    *file = NULL;
    return fail("the HDF5 library cannot make a file in memory");
}

static enum status fail_memory(const char *name)
{
    return fail("the HDF5 library cannot store %s in memory; the host may have too little of it", name);
}

/* Creates a dataset, and the groups on the way to it. Objects carry no times: the same content is the same
 * bytes. */
static hid_t create_dataset(struct hdf *file, const char *name, hid_t type, hid_t space, hid_t creation)
{
    hid_t untimed = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_obj_track_times(untimed, 0);
    H5Pset_obj_track_times(creation, 0);
    for (const char *slash = strchr(name + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        char step[512];
        snprintf(step, sizeof step, "%.*s", (int)(slash - name), name);
        if (H5Lexists(file->id, step, H5P_DEFAULT) > 0) continue;
        hid_t group = H5Gcreate2(file->id, step, H5P_DEFAULT, untimed, H5P_DEFAULT);
        if (group >= 0) H5Gclose(group);
    }
    H5Pclose(untimed);
    return H5Dcreate2(file->id, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
}

enum status hdf_add(struct hdf *file, const char *name, enum hdf_type type, const void *values, int64_t count)
{
    int64_t chunks = (count + chunk_elements - 1) / chunk_elements;
    hsize_t size = (hsize_t)count,
            chunk = (hsize_t)((count + chunks - 1) / chunks); /* little of the last is waste */
    hid_t space = H5Screate_simple(1, &size, NULL), creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(creation, 1, &chunk);
    H5Pset_fletcher32(creation);
    hid_t dataset = create_dataset(file, name, file_type(type), space, creation);
    bool written =
        dataset >= 0 && H5Dwrite(dataset, file_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0;
    if (dataset >= 0) H5Dclose(dataset);
    H5Pclose(creation);
    H5Sclose(space);
    return written ? STATUS_OK : fail_memory(name);
}

static enum status put(struct hdf *file, const char *name, const char *key, hid_t type, hid_t space,
                       const void *value)
{
    hid_t attribute =
        H5Acreate_by_name(file->id, name, key, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    bool written = attribute >= 0 && H5Awrite(attribute, type, value) >= 0;
    if (attribute >= 0) H5Aclose(attribute);
    H5Sclose(space);
    return written ? STATUS_OK : fail_memory(key);
}

enum status hdf_put_text(struct hdf *file, const char *name, const char *key, const char *text)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, strlen(text) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    enum status status = put(file, name, key, type, H5Screate(H5S_SCALAR), text);
    H5Tclose(type);
    return status;
}

enum status hdf_put_integer(struct hdf *file, const char *name, const char *key, int64_t value)
{
    return put(file, name, key, H5T_STD_I64LE, H5Screate(H5S_SCALAR), &value);
}

enum status hdf_put_integers(struct hdf *file, const char *name, const char *key, const int64_t *values,
                             int64_t count)
{
    hsize_t size = (hsize_t)count;
    return put(file, name, key, H5T_STD_I64LE, H5Screate_simple(1, &size, NULL), values);
}

/* Shows elements first .. first + count - 1 of the part in a box of the tensor: row, column, rows, columns.
 */
static bool map_box(hid_t creation, hid_t view, bool vector, const struct hdf_part *part, int64_t first,
                    const int64_t box[4])
{
    hsize_t start[2] = {(hsize_t)box[0], (hsize_t)box[1]}, size[2] = {(hsize_t)box[2], (hsize_t)box[3]};
    hsize_t all = (hsize_t)part->count, from = (hsize_t)first, count = size[0] * size[1];
    int skip = vector ? 1 : 0;
    hid_t source = H5Screate_simple(1, &all, NULL);
    bool done = H5Sselect_hyperslab(source, H5S_SELECT_SET, &from, NULL, &count, NULL) >= 0 &&
                H5Sselect_hyperslab(view, H5S_SELECT_SET, start + skip, NULL, size + skip, NULL) >= 0 &&
                H5Pset_virtual(creation, view, part->file, part->name, source) >= 0;
    H5Sclose(source);
    return done;
}

/* A range of a flattened matrix is at most three boxes: the end of a row, whole rows, the start of a row. */
static bool map_part(hid_t creation, hid_t view, int64_t cols, bool vector, const struct hdf_part *part)
{
    int64_t first = 0;
    while (first < part->count) {
        int64_t at = part->offset + first, left = part->count - first, row = at / cols, col = at % cols;
        int64_t wide = left < cols - col ? left : cols - col;
        int64_t box[4] = {row, col, 1, wide};
        if (col == 0 && left >= cols) box[2] = left / cols;
        if (!map_box(creation, view, vector, part, first, box)) return false;
        first += box[2] * box[3];
    }
    return true;
}

enum status hdf_add_view(struct hdf *file, const char *name, int64_t rows, int64_t cols, bool vector,
                         const struct hdf_part *parts, int64_t count)
{
    hsize_t size[2] = {(hsize_t)rows, (hsize_t)cols};
    hid_t space = vector ? H5Screate_simple(1, size + 1, NULL) : H5Screate_simple(2, size, NULL);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    bool done = true;
    for (int64_t i = 0; done && i < count; i++)
        done = map_part(creation, space, cols, vector, &parts[i]);
    H5Sselect_all(space);
    hid_t dataset = done ? create_dataset(file, name, H5T_IEEE_F32LE, space, creation) : -1;
    if (dataset >= 0) H5Dclose(dataset);
    H5Pclose(creation);
    H5Sclose(space);
    return dataset >= 0 ? STATUS_OK : fail_memory(name);
}

enum status hdf_finish(struct hdf *file, char **image, size_t *bytes)
{
    bool closed = H5Fclose(file->id) >= 0;
    file->id = -1;
    /* The superblock says where the file ends; the memory goes on to the driver's next step. */
    const size_t field = file->user_block + 28;
    uint64_t end = 0;
    if (closed && file->image && file->image_bytes >= field + sizeof end)
        memcpy(&end, file->image + field, sizeof end);
    enum status status = STATUS_OK;
    *image = NULL;
    if (end < field || end > file->image_bytes) {
        status = fail_memory("the file");
    } else {
        *image = file->image;
        *bytes = (size_t)end;
        file->image = NULL;
    }
    hdf_close(file);
    return status;
}

enum status hdf_finish_sealed(struct hdf *file, const char *format, const char *path)
{
    char *image;
    size_t bytes;
    TRY(hdf_finish(file, &image, &bytes));
    seal_write(image, bytes, format);
    enum status status = files_replace(path, image, bytes);
    free(image);
    return status;
}
