#include "runtime/checkpoint.h"
#include "runtime/files.h"
#include "runtime/hdf.h"
#include "runtime/manifest.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* -- saving: what goes where ------------------------------------------------------------------ */

/* The part of the tensor that the run offset .. offset + count - 1 of the flat vector covers; false: none. */
static bool overlap(const struct parameter *tensor, int64_t offset, int64_t count,
                    struct manifest_extent *extent)
{
    int64_t first = offset > tensor->offset ? offset : tensor->offset;
    int64_t end =
        offset + count < tensor->offset + tensor->count ? offset + count : tensor->offset + tensor->count;
    extent->offset = first - tensor->offset;
    extent->count = end - first;
    return first < end;
}

static enum status check_values(const struct params *params, const struct checkpoint_state *state,
                                const struct checkpoint_piece *piece)
{
    struct manifest_extent extent;
    for (int64_t t = 0; t < params->count; t++) {
        const struct parameter *tensor = &params->list[t];
        if (!overlap(tensor, piece->offset, piece->count, &extent)) continue;
        for (int kind = 0; kind < MANIFEST_KINDS; kind++) {
            if (!manifest_values(piece, kind)) continue;
            const float *values =
                manifest_values(piece, kind) + (tensor->offset + extent.offset - piece->offset);
            for (int64_t i = 0; i < extent.count; i++)
                if (!isfinite(values[i]))
                    return fail(
                        "checkpoint of step %lld not written: the %s of tensor %s holds %s at element %lld",
                        (long long)state->step, manifest_kinds[kind], tensor->name,
                        isnan(values[i]) ? "NaN" : "an infinity", (long long)(extent.offset + i));
        }
    }
    return STATUS_OK;
}

static enum status check_pieces(const struct params *params, const struct checkpoint_state *state,
                                const struct checkpoint_piece *pieces, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const struct checkpoint_piece *piece = &pieces[i];
        if (piece->offset < 0 || piece->count < 0 || piece->count > params->total - piece->offset)
            return fail("checkpoint of step %lld not written: piece %lld lies outside the parameters",
                        (long long)state->step, (long long)i);
        TRY(check_values(params, state, piece));
    }
    return STATUS_OK;
}

/* Every rank learns the pieces of all, and so fills the same manifest. */
static enum status plan(struct comm *comm, struct manifest *manifest, const struct params *params,
                        const struct checkpoint_piece *pieces, int64_t count)
{
    double most = (double)count, bare[2] = {0, 0};
    for (int64_t i = 0; i < count; i++) {
        bare[0] += !pieces[i].moment || !pieces[i].variance;
        bare[1] += !pieces[i].reference;
    }
    comm_maximum(comm, &most, 1);
    comm_sum(comm, bare, 2);
    manifest->optimizer = bare[0] == 0;
    manifest->reference = bare[1] == 0;
    int64_t room = (int64_t)most, (*mine)[2] = allocate(room, sizeof *mine);
    int64_t(*all)[2] = allocate(room * comm->size, sizeof *all);
    for (int64_t i = 0; i < count; i++)
        mine[i][0] = pieces[i].offset, mine[i][1] = pieces[i].count;
    comm_gather_all(comm, all, mine, (size_t)room * sizeof *mine);

    /* A tensor is cut in two by each border between pieces. */
    struct manifest_extent *extents = allocate(params->count + 2 * room * comm->size + 1, sizeof *extents);
    manifest->extents = extents;
    int64_t used = 0, limit = params->count + 2 * room * comm->size + 1;
    for (int64_t i = 0; i < room * comm->size; i++)
        for (int64_t t = 0; t < params->count && used < limit; t++)
            if (overlap(&params->list[t], all[i][0], all[i][1], &extents[used])) {
                extents[used].tensor = t;
                extents[used++].file = i / room;
            }
    manifest->extent_count = used;
    free(mine);
    free(all);
    return manifest_tile(manifest, "checkpoint not written");
}

static void describe(struct manifest *manifest, struct comm *comm, const struct params *params,
                     const struct checkpoint_state *state)
{
    *manifest =
        (struct manifest){.state = *state, .tensor_count = params->count, .file_count = comm->size + 1};
    manifest->state.world = comm->size;
    manifest->state.run_file = text_copy(state->run_file ? state->run_file : "");
    manifest->state.config = text_copy(state->config ? state->config : "");
    manifest->tensors = allocate(params->count, sizeof *manifest->tensors);
    for (int64_t t = 0; t < params->count; t++) {
        const struct parameter *tensor = &params->list[t];
        manifest->tensors[t] =
            (struct manifest_tensor){.rows = tensor->rows, .cols = tensor->cols, .vector = tensor->vector};
        snprintf(manifest->tensors[t].name, sizeof manifest->tensors[t].name, "%s", tensor->name);
    }
    manifest->files = allocate(manifest->file_count, sizeof *manifest->files);
    for (int64_t f = 0; f < manifest->file_count; f++)
        manifest_file_name(manifest->files[f].name, f, comm->size);
}

/* -- saving: files ---------------------------------------------------------------------------- */

static enum status add_extent(struct hdf *file, const struct params *params, const struct manifest *manifest,
                              const struct manifest_extent *extent, const struct checkpoint_piece *piece)
{
    const struct parameter *tensor = &params->list[extent->tensor];
    int64_t shape[2] = {tensor->rows, tensor->cols}, from = tensor->offset + extent->offset - piece->offset;
    for (int kind = 0; kind < MANIFEST_KINDS; kind++) {
        if (!manifest_has(manifest, kind)) continue;
        char *name = manifest_dataset(kind, tensor->name, extent->offset);
        enum status status =
            hdf_add(file, name, HDF_FLOAT, manifest_values(piece, kind) + from, extent->count);
        if (status == STATUS_OK) status = hdf_put_integer(file, name, "offset", extent->offset);
        if (status == STATUS_OK)
            status = hdf_put_integers(file, name, "shape", shape + tensor->vector, tensor->vector ? 1 : 2);
        free(name);
        TRY(status);
    }
    return STATUS_OK;
}

static enum status add_header(struct hdf *file, const char *format, const struct manifest *manifest,
                              int64_t rank)
{
    TRY(hdf_put_text(file, "/", "format", format));
    TRY(hdf_put_integer(file, "/", "version", 1));
    TRY(hdf_put_integer(file, "/", "step", manifest->state.step));
    TRY(hdf_put_integer(file, "/", "world", manifest->state.world));
    return rank < 0 ? STATUS_OK : hdf_put_integer(file, "/", "rank", rank);
}

static enum status fill_shard(struct hdf *file, struct comm *comm, const struct params *params,
                              const struct manifest *manifest, const struct checkpoint_piece *pieces,
                              int64_t count)
{
    TRY(add_header(file, "wpo-checkpoint-shard", manifest, comm->rank));
    for (int64_t e = 0; e < manifest->extent_count; e++) {
        const struct manifest_extent *extent = &manifest->extents[e];
        if (extent->file != comm->rank) continue;
        int64_t at = params->list[extent->tensor].offset + extent->offset, i = 0;
        while (i < count && (at < pieces[i].offset || at >= pieces[i].offset + pieces[i].count))
            i++;
        TRY(add_extent(file, params, manifest, extent, &pieces[i]));
    }
    return STATUS_OK;
}

/* The virtual datasets of one kind; the extents are sorted by tensor. */
static enum status add_views(struct hdf *file, const struct manifest *manifest, int kind)
{
    struct hdf_part *parts = allocate(manifest->extent_count, sizeof *parts);
    enum status status = STATUS_OK;
    for (int64_t first = 0, end; status == STATUS_OK && first < manifest->extent_count; first = end) {
        int64_t t = manifest->extents[first].tensor;
        const struct manifest_tensor *tensor = &manifest->tensors[t];
        for (end = first; end < manifest->extent_count && manifest->extents[end].tensor == t; end++) {
            const struct manifest_extent *extent = &manifest->extents[end];
            parts[end] = (struct hdf_part){.file = manifest->files[extent->file].name,
                                           .name = manifest_dataset(kind, tensor->name, extent->offset),
                                           .offset = extent->offset,
                                           .count = extent->count};
        }
        char *name = text_format("/%s/%s", manifest_kinds[kind], tensor->name);
        status =
            hdf_add_view(file, name, tensor->rows, tensor->cols, tensor->vector, parts + first, end - first);
        free(name);
    }
    for (int64_t e = 0; e < manifest->extent_count; e++)
        free((char *)(uintptr_t)parts[e].name);
    free(parts);
    return status;
}

static enum status fill_master(struct hdf *file, const struct manifest *manifest)
{
    TRY(add_header(file, "wpo-checkpoint-master", manifest, -1));
    for (int kind = 0; kind < MANIFEST_KINDS; kind++)
        if (manifest_has(manifest, kind)) TRY(add_views(file, manifest, kind));
    return STATUS_OK;
}

/* What the disk gives back, not what the page cache still holds, where the kernel can be talked into it. */
static enum status read_back(const char *path, const char *hash)
{
    int descriptor;
    int64_t size;
    char found[HASH_HEX];
    TRY(files_open(&descriptor, &size, path));
    posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    enum status status = hash_file(found, descriptor, 0, path);
    close(descriptor);
    if (status == STATUS_OK && strcmp(found, hash))
        return fail(
            "%s reads back with another SHA-256 than it was written with: the storage is not to be trusted",
            path);
    return status;
}

/* Closes the image, writes it, fsyncs, reads it back; size and SHA-256 go into the manifest. */
static enum status store(struct hdf *file, const char *folder, struct manifest_file *entry)
{
    char *image;
    size_t bytes;
    TRY(hdf_finish(file, &image, &bytes));
    entry->bytes = (int64_t)bytes;
    hash_bytes(entry->hash, image, bytes);
    char *path = files_join(folder, entry->name);
    enum status status = files_write(path, image, bytes);
    free(image);
    if (status == STATUS_OK) status = read_back(path, entry->hash);
    free(path);
    return status;
}

static enum status store_shard(struct comm *comm, const char *part, const struct params *params,
                               struct manifest *manifest, const struct checkpoint_piece *pieces,
                               int64_t count)
{
    struct hdf *file;
    TRY(hdf_create(&file, 0));
    enum status status = fill_shard(file, comm, params, manifest, pieces, count);
    if (status == STATUS_OK) return store(file, part, &manifest->files[comm->rank]);
    hdf_close(file);
    return status;
}

static enum status store_master(const char *part, struct manifest *manifest)
{
    struct hdf *file;
    TRY(hdf_create(&file, 0));
    enum status status = fill_master(file, manifest);
    if (status == STATUS_OK) return store(file, part, &manifest->files[manifest->file_count - 1]);
    hdf_close(file);
    return status;
}

/* -- saving: the commit ----------------------------------------------------------------------- */

static enum status start_folder(struct comm *comm, const char *folder, const char *part)
{
    if (comm->rank != 0) return STATUS_OK;
    if (files_exists(folder)) return fail("%s exists already; nothing is written over it", folder);
    if (files_exists(part)) TRY(files_remove_tree(part)); /* of a run that was killed */
    return files_make_folder(part);
}

/* Rank 0, when every shard is on disk. */
static enum status commit(struct manifest *manifest, const char *part, const char *folder)
{
    TRY(store_master(part, manifest));
    char *text = manifest_text(manifest), *path = files_join(part, "manifest.json");
    enum status status = files_write(path, text, strlen(text));
    free(text);
    free(path);
    TRY(status);
    TRY(files_sync_folder(part));
    return files_rename(part, folder);
}

static enum status save_into(struct comm *comm, const struct params *params, struct manifest *manifest,
                             const struct checkpoint_piece *pieces, int64_t count, const char *folder,
                             const char *part)
{
    TRY(comm_agree(comm, start_folder(comm, folder, part)));
    enum status status = comm_agree(comm, store_shard(comm, part, params, manifest, pieces, count));
    if (status == STATUS_OK) {
        struct manifest_file mine = manifest->files[comm->rank], *all = allocate(comm->size, sizeof *all);
        comm_gather_all(comm, all, &mine, sizeof mine);
        memcpy(manifest->files, all, (size_t)comm->size * sizeof *all);
        free(all);
        status = comm_agree(comm, comm->rank == 0 ? commit(manifest, part, folder) : STATUS_OK);
    }
    if (status != STATUS_OK && comm->rank == 0) {
        char *sentence = text_copy(status_sentence());
        files_remove_tree(part);
        status_sentence_set(sentence);
        free(sentence);
    }
    return comm_agree(comm, status);
}

enum status checkpoint_save(struct comm *comm, const char *run, const struct params *params,
                            const struct checkpoint_state *state, const struct checkpoint_piece *pieces,
                            int64_t piece_count)
{
    TRY(comm_agree(comm, check_pieces(params, state, pieces, piece_count)));
    struct manifest manifest;
    describe(&manifest, comm, params, state);
    enum status status = comm_agree(comm, plan(comm, &manifest, params, pieces, piece_count));
    if (status == STATUS_OK) {
        char *folder = text_format("%s/checkpoint-%lld", run, (long long)state->step);
        char *part = text_format("%s.part", folder);
        status = save_into(comm, params, &manifest, pieces, piece_count, folder, part);
        free(folder);
        free(part);
    }
    manifest_free(&manifest);
    return status;
}
