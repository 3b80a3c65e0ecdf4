#include "runtime/reference.h"

#include "runtime/files.h"
#include "runtime/hdf.h"
#include "runtime/seal.h"

#include <stdlib.h>
#include <string.h>

static const char format[] = "wpo-reference";
static const char advice[] = "delete it, and the run computes it again";
static const char model_advice[] =
    "go on with the ref_model_name_or_path that the run began with, or delete it to begin with this one";

static enum status check_key(struct hdf *file, const char *path, const char *name, const char *wanted,
                             const char *what_to_do)
{
    char *text;
    TRY(hdf_text(file, name, &text));
    bool same = !strcmp(text, wanted), hash = strlen(wanted) > 32;
    int shown = hash ? 12 : 32;
    const char *more = hash ? "..." : "";
    enum status status =
        same ? STATUS_OK
             : fail("%s: these reference log-probabilities belong to another %s (%.*s%s, not %.*s%s); %s",
                    path, name, shown, text, more, shown, wanted, more, what_to_do);
    free(text);
    return status;
}

static enum status read_file(double *logp, struct hdf *file, const struct groups *groups,
                             const struct reference_key *key, const char *path)
{
    TRY(check_key(file, path, "model", key->model, model_advice));
    TRY(check_key(file, path, "data", key->data, advice));
    TRY(check_key(file, path, "backend", key->backend, advice));
    int64_t length;
    TRY(hdf_length(file, "/logp", HDF_DOUBLE, &length));
    if (length != groups->completion_count)
        return fail("%s: %lld log-probabilities for %lld completions; %s", path, (long long)length,
                    (long long)groups->completion_count, advice);
    return hdf_read(file, "/logp", HDF_DOUBLE, logp, 0, length);
}

enum status reference_read(double *logp, bool *found, const struct groups *groups,
                           const struct reference_key *key, const char *path)
{
    *found = files_exists(path);
    if (!*found) return STATUS_OK;
    char hex[HASH_HEX];
    struct hdf *file;
    TRY(seal_check(path, format, advice, hex));
    TRY(hdf_open(&file, path));
    enum status status = read_file(logp, file, groups, key, path);
    hdf_close(file);
    return status;
}

static enum status fill_file(struct hdf *file, const double *logp, const struct groups *groups,
                             const struct reference_key *key)
{
    TRY(hdf_put_text(file, "/", "model", key->model));
    TRY(hdf_put_text(file, "/", "data", key->data));
    TRY(hdf_put_text(file, "/", "backend", key->backend));
    return hdf_add(file, "/logp", HDF_DOUBLE, logp, groups->completion_count);
}

enum status reference_write(const double *logp, const struct groups *groups, const struct reference_key *key,
                            const char *path)
{
    struct hdf *file;
    TRY(hdf_create(&file, SEAL_BYTES));
    enum status status = fill_file(file, logp, groups, key);
    if (status != STATUS_OK) {
        hdf_close(file);
        return status;
    }
    return hdf_finish_sealed(file, format, path);
}
