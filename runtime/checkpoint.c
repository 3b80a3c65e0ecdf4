#include "runtime/checkpoint.h"

#include "runtime/files.h"
#include "runtime/hdf.h"
#include "runtime/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void checkpoint_state_free(struct checkpoint_state *state)
{
    free(state->run_file);
    free(state->config);
    *state = (struct checkpoint_state){0};
}

enum status checkpoint_state_read(struct checkpoint_state *state, const char *folder)
{
    struct manifest manifest;
    *state = (struct checkpoint_state){0};
    TRY(manifest_read(&manifest, folder));
    *state = manifest.state;
    manifest.state = (struct checkpoint_state){0};
    manifest_free(&manifest);
    return STATUS_OK;
}

/* -- verifying -------------------------------------------------------------------------------- */

/* Ranks that see different manifests see different folders: a file system out of step, or local disks. */
static enum status same_manifest(const struct comm *comm, const char *folder, const char *mine,
                                 const char *all)
{
    for (int r = 0; r < comm->size; r++)
        if (memcmp(all + r * HASH_HEX, mine, HASH_HEX))
            return fail(
                "%s: rank 0 and rank %d see different manifests; the folder must be on a shared file system",
                folder, r);
    return STATUS_OK;
}

/* Collective. Manifest, sizes and SHA-256; the files are shared out over the ranks. After a failure nothing
 * needs to be freed. */
static enum status verify(struct comm *comm, struct manifest *manifest, const char *folder)
{
    TRY(comm_agree(comm, manifest_read(manifest, folder)));
    char *all = allocate(comm->size, HASH_HEX);
    comm_gather_all(comm, all, manifest->hash, HASH_HEX);
    enum status status = comm_agree(comm, same_manifest(comm, folder, all, all));
    free(all);
    for (int content = 0; content < 2 && status == STATUS_OK; content++) {
        for (int64_t f = comm->rank; f < manifest->file_count && status == STATUS_OK; f += comm->size)
            status = manifest_check_file(manifest, f, folder, content);
        status = comm_agree(comm, status);
    }
    if (status != STATUS_OK) manifest_free(manifest);
    return status;
}

/* -- finding ---------------------------------------------------------------------------------- */

/* The step of a name "checkpoint-<step><ending>", -1 for any other name. */
static int64_t step_of(const char *name, const char *ending)
{
    static const char head[] = "checkpoint-";
    if (strncmp(name, head, sizeof head - 1)) return -1;
    const char *digits = name + sizeof head - 1;
    size_t length = strspn(digits, "0123456789");
    if (!length || length > 18 || (digits[0] == '0' && length > 1) || strcmp(digits + length, ending))
        return -1;
    return strtoll(digits, NULL, 10);
}

static int newest_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x > y ? -1 : x < y;
}

/* The steps of the folder's checkpoints, newest first. */
static enum status list_steps(int64_t **steps, int64_t *count, const char *run)
{
    char **names;
    int64_t name_count;
    *steps = NULL;
    *count = 0;
    if (!files_exists(run)) return STATUS_OK;
    TRY(files_list(&names, &name_count, run));
    *steps = allocate(name_count, sizeof **steps);
    for (int64_t i = 0; i < name_count; i++)
        if (step_of(names[i], "") >= 0) (*steps)[(*count)++] = step_of(names[i], "");
    files_names_free(names, name_count);
    qsort(*steps, (size_t)*count, sizeof **steps, newest_first);
    return STATUS_OK;
}

static char *folder_of(const char *run, int64_t step)
{
    return text_format("%s/checkpoint-%lld", run, (long long)step);
}

static enum status find_newest(struct comm *comm, const char *run, const int64_t *steps, int64_t count,
                               char **found)
{
    struct manifest manifest;
    char *first = NULL; /* the sentence about the newest */
    for (int64_t i = 0; i < count && !*found; i++) {
        char *folder = folder_of(run, steps[i]);
        if (verify(comm, &manifest, folder) == STATUS_OK) {
            manifest_free(&manifest);
            *found = folder;
            continue;
        }
        if (comm->rank == 0) fprintf(stderr, "warning: %s is passed over: %s\n", folder, status_sentence());
        if (!first) first = text_copy(status_sentence());
        free(folder);
    }
    enum status status = STATUS_OK;
    if (!*found && first)
        status = fail("%s: none of %lld checkpoints verifies; the newest: %s", run, (long long)count, first);
    free(first);
    return status;
}

enum status checkpoint_find(struct comm *comm, const char *run, const char *path, char **found)
{
    *found = NULL;
    if (path && strcmp(path, "auto")) {
        struct manifest manifest;
        TRY(verify(comm, &manifest, path));
        manifest_free(&manifest);
        *found = text_copy(path);
        return STATUS_OK;
    }
    int64_t *steps = NULL, count = 0;
    TRY(comm_agree(comm, comm->rank == 0 ? list_steps(&steps, &count, run) : STATUS_OK));
    comm_broadcast(comm, &count, sizeof count, 0);
    if (comm->rank != 0) steps = allocate(count, sizeof *steps);
    comm_broadcast(comm, steps, (size_t)count * sizeof *steps, 0);
    enum status status = find_newest(comm, run, steps, count, found);
    free(steps);
    return status;
}

/* -- loading ---------------------------------------------------------------------------------- */

static enum status check_tensor(const struct manifest_tensor *tensor, const struct params *params,
                                const char *folder)
{
    const struct parameter *own = params_find(params, tensor->name);
    if (!own) return fail("%s holds a tensor %s, which the model does not have", folder, tensor->name);
    if (own->rows != tensor->rows || own->cols != tensor->cols || own->vector != tensor->vector)
        return fail("%s: tensor %s has shape [%lld, %lld], and in the model [%lld, %lld]", folder,
                    tensor->name, (long long)tensor->rows, (long long)tensor->cols, (long long)own->rows,
                    (long long)own->cols);
    return STATUS_OK;
}

/* The same tensors as the model's, each once. */
static enum status check_tensors(const struct manifest *manifest, const struct params *params,
                                 const char *folder)
{
    bool *seen = allocate(params->count, sizeof *seen);
    enum status status = STATUS_OK;
    for (int64_t t = 0; t < manifest->tensor_count && status == STATUS_OK; t++) {
        const char *name = manifest->tensors[t].name;
        status = check_tensor(&manifest->tensors[t], params, folder);
        if (status != STATUS_OK) break;
        int64_t own = params_find(params, name) - params->list;
        if (seen[own]) status = fail("%s holds tensor %s twice", folder, name);
        seen[own] = true;
    }
    for (int64_t t = 0; t < params->count && status == STATUS_OK; t++)
        if (!seen[t]) status = fail("%s has no tensor %s", folder, params->list[t].name);
    free(seen);
    return status;
}

static enum status check_pieces(const struct manifest *manifest, const struct params *params,
                                const char *folder, const struct checkpoint_piece *pieces, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const struct checkpoint_piece *piece = &pieces[i];
        if (piece->offset < 0 || piece->count < 0 || piece->count > params->total - piece->offset)
            return fail("%s: piece %lld to fill lies outside the parameters", folder, (long long)i);
        if (!manifest->optimizer && (piece->moment || piece->variance))
            return fail("%s holds no optimiser state; training cannot go on from it", folder);
        if (!manifest->reference && piece->reference)
            return fail(
                "%s holds no reference that follows the policy; resume with sync_ref_model as the run "
                "began",
                folder);
        if (manifest->reference && piece->moment && !piece->reference)
            return fail("%s holds a reference that follows the policy; resume with sync_ref_model: true, as "
                        "the run began",
                        folder);
    }
    return STATUS_OK;
}

/* A shard says itself which one it is. */
static enum status open_shard(struct hdf **file, const struct manifest *manifest, const char *folder,
                              int64_t shard)
{
    char *path = files_join(folder, manifest->files[shard].name);
    int64_t step = 0, world = 0, rank = 0;
    enum status status = hdf_open(file, path);
    if (status == STATUS_OK) status = hdf_integer(*file, "step", &step);
    if (status == STATUS_OK) status = hdf_integer(*file, "world", &world);
    if (status == STATUS_OK) status = hdf_integer(*file, "rank", &rank);
    if (status == STATUS_OK &&
        (step != manifest->state.step || world != manifest->state.world || rank != shard))
        status = fail("%s is the shard of rank %lld of %lld at step %lld, not of this place", path,
                      (long long)rank, (long long)world, (long long)step);
    if (status != STATUS_OK) {
        hdf_close(*file);
        *file = NULL;
    }
    free(path);
    return status;
}

/* Copies what one extent and one piece have in common. */
static enum status read_common(struct hdf *file, const struct manifest_extent *extent, const char *tensor,
                               int64_t extent_at, const struct checkpoint_piece *piece, const char *where)
{
    int64_t extent_end = extent_at + extent->count, piece_end = piece->offset + piece->count, length;
    int64_t first = extent_at > piece->offset ? extent_at : piece->offset;
    int64_t end = extent_end < piece_end ? extent_end : piece_end;
    for (int kind = 0; kind < MANIFEST_KINDS && first < end; kind++) {
        float *values = manifest_values(piece, kind);
        if (!values) continue;
        char *name = manifest_dataset(kind, tensor, extent->offset);
        enum status status = hdf_length(file, name, HDF_FLOAT, &length);
        if (status == STATUS_OK && length != extent->count)
            status = fail("%s: dataset %s has %lld elements, and the manifest says %lld", where, name,
                          (long long)length, (long long)extent->count);
        if (status == STATUS_OK)
            status = hdf_read(file, name, HDF_FLOAT, values + (first - piece->offset), first - extent_at,
                              end - first);
        free(name);
        TRY(status);
    }
    return STATUS_OK;
}

static bool meets(int64_t at, int64_t count, const struct checkpoint_piece *pieces, int64_t piece_count)
{
    for (int64_t i = 0; i < piece_count; i++)
        if (at < pieces[i].offset + pieces[i].count && pieces[i].offset < at + count) return true;
    return false;
}

/* One shard at a time, and only those that hold something for this rank. */
static enum status read_shard(const struct manifest *manifest, const char *folder, int64_t shard,
                              const struct params *params, const struct checkpoint_piece *pieces,
                              int64_t count)
{
    struct hdf *file = NULL;
    enum status status = STATUS_OK;
    for (int64_t e = 0; e < manifest->extent_count && status == STATUS_OK; e++) {
        const struct manifest_extent *extent = &manifest->extents[e];
        if (extent->file != shard) continue;
        const char *tensor = manifest->tensors[extent->tensor].name;
        int64_t at = params_find(params, tensor)->offset + extent->offset;
        if (!meets(at, extent->count, pieces, count)) continue;
        if (!file) status = open_shard(&file, manifest, folder, shard);
        for (int64_t i = 0; i < count && status == STATUS_OK; i++)
            status = read_common(file, extent, tensor, at, &pieces[i], manifest->files[shard].name);
    }
    hdf_close(file);
    return status;
}

static enum status read_pieces(const struct manifest *manifest, const char *folder,
                               const struct params *params, const struct checkpoint_piece *pieces,
                               int64_t count)
{
    TRY(check_tensors(manifest, params, folder));
    TRY(check_pieces(manifest, params, folder, pieces, count));
    /* The gaps between tensors hold zeros. */
    for (int64_t i = 0; i < count; i++)
        for (int kind = 0; kind < MANIFEST_KINDS; kind++)
            if (manifest_values(&pieces[i], kind))
                memset(manifest_values(&pieces[i], kind), 0, (size_t)pieces[i].count * sizeof(float));
    for (int64_t shard = 0; shard < manifest->state.world; shard++)
        TRY(read_shard(manifest, folder, shard, params, pieces, count));
    return STATUS_OK;
}

enum status checkpoint_load(struct comm *comm, const char *folder, const struct params *params,
                            struct checkpoint_state *state, const struct checkpoint_piece *pieces,
                            int64_t piece_count)
{
    struct manifest manifest;
    *state = (struct checkpoint_state){0};
    TRY(verify(comm, &manifest, folder));
    enum status status = comm_agree(comm, read_pieces(&manifest, folder, params, pieces, piece_count));
    if (status == STATUS_OK) {
        *state = manifest.state;
        manifest.state = (struct checkpoint_state){0};
    }
    manifest_free(&manifest);
    return status;
}

/* -- pruning ---------------------------------------------------------------------------------- */

/* Manifest and sizes, without reading the tensors. */
static bool is_complete(const char *folder)
{
    struct manifest manifest;
    if (manifest_read(&manifest, folder) != STATUS_OK) return false;
    bool complete = true;
    for (int64_t f = 0; f < manifest.file_count && complete; f++)
        complete = manifest_check_file(&manifest, f, folder, false) == STATUS_OK;
    manifest_free(&manifest);
    return complete;
}

/* Away with the name first: a kill in between leaves a .trash folder, never half a checkpoint. */
static enum status remove_checkpoint(const char *folder)
{
    char *trash = text_format("%s.trash", folder);
    enum status status = files_remove_tree(trash);
    if (status == STATUS_OK) status = files_rename(folder, trash);
    if (status == STATUS_OK) status = files_remove_tree(trash);
    free(trash);
    return status;
}

static enum status remove_leftovers(const char *run)
{
    char **names;
    int64_t count;
    TRY(files_list(&names, &count, run));
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        if (step_of(names[i], ".part") < 0 && step_of(names[i], ".trash") < 0) continue;
        char *path = files_join(run, names[i]);
        status = files_remove_tree(path);
        free(path);
    }
    files_names_free(names, count);
    return status;
}

/* What is older than the `keep` newest complete ones goes. If there are not that many, nothing does. */
static enum status prune(const char *run, int64_t keep)
{
    int64_t *steps, count, complete = 0;
    TRY(list_steps(&steps, &count, run));
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        char *folder = folder_of(run, steps[i]);
        if (complete >= keep)
            status = remove_checkpoint(folder);
        else if (is_complete(folder))
            complete++;
        free(folder);
    }
    free(steps);
    return status == STATUS_OK ? remove_leftovers(run) : status;
}

enum status checkpoint_prune(struct comm *comm, const char *run, int64_t keep)
{
    enum status status = STATUS_OK;
    if (comm->rank == 0)
        status = keep >= 1 ? prune(run, keep) : fail("at least one checkpoint has to be kept");
    return comm_agree(comm, status);
}
