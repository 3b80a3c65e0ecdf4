/* The manifest of a checkpoint: what stands in its files, and the SHA-256 of each. The format is in
 * docs/formats.md. */
#ifndef WPO_RUNTIME_MANIFEST_H
#define WPO_RUNTIME_MANIFEST_H

#include "runtime/checkpoint.h"
#include "runtime/hash.h"

/* Elements offset .. offset + count - 1 of one flattened tensor, which one shard holds. */
struct manifest_extent {
    int64_t tensor; /* index in the manifest's list */
    int64_t offset, count;
    int64_t file; /* index in the manifest's list */
};

struct manifest_tensor {
    char name[112];
    int64_t rows, cols; /* rows is 1 for a vector */
    bool vector;
};

struct manifest_file {
    char name[64];
    int64_t bytes;
    char hash[HASH_HEX];
};

struct manifest {
    struct checkpoint_state state;
    bool optimizer; /* moment and variance are there too */
    bool reference; /* and the parameters of a reference that follows the policy */
    struct manifest_tensor *tensors;
    int64_t tensor_count;
    struct manifest_file *files; /* shards 0 .. world - 1, then the master */
    int64_t file_count;
    struct manifest_extent *extents; /* by tensor and offset; they tile every tensor */
    int64_t extent_count;
    char hash[HASH_HEX]; /* the manifest's own */
};

/* Reads and checks <folder>/manifest.json: its own SHA-256, every key, the names and sizes, and that the
 * extents tile every tensor. The files themselves are not touched. After a failure nothing needs to be freed.
 */
enum status manifest_read(struct manifest *manifest, const char *folder);
/* As text, its own SHA-256 at the end; to be freed. */
char *manifest_text(const struct manifest *manifest);
void manifest_free(struct manifest *manifest);

/* Sorts the extents and checks that they tile every tensor: no hole, no overlap. */
enum status manifest_tile(struct manifest *manifest, const char *where);

/* "parameter", "moment", "variance", "reference" */
enum { MANIFEST_KINDS = 4 };
extern const char *const manifest_kinds[MANIFEST_KINDS];
static inline bool manifest_has(const struct manifest *manifest, int kind)
{
    return kind == 0 || (kind == 3 ? manifest->reference : manifest->optimizer);
}
/* The dataset of a shard with the elements of a tensor from `offset` on: "/moment/model.norm.weight:0"; to be
 * freed. */
char *manifest_dataset(int kind, const char *tensor, int64_t offset);
static inline float *manifest_values(const struct checkpoint_piece *piece, int kind)
{
    float *const values[MANIFEST_KINDS] = {piece->parameter, piece->moment, piece->variance,
                                           piece->reference};
    return values[kind];
}

void manifest_file_name(char name[64], int64_t file, int64_t world);

/* Local. The file has the size and the SHA-256 that the manifest says; without `content`, the size alone. */
enum status manifest_check_file(const struct manifest *manifest, int64_t file, const char *folder,
                                bool content);

#endif
