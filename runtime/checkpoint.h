/* Checkpoints: a folder <run>/checkpoint-<step>/ with one HDF5 shard per rank, a master file whose virtual
 * datasets show each tensor whole, and a manifest with the SHA-256 of every file. The format and the commit
 * are in docs/formats.md. Tensors are stored by their global coordinates, so that any number of ranks reads
 * any checkpoint. */
#ifndef WPO_RUNTIME_CHECKPOINT_H
#define WPO_RUNTIME_CHECKPOINT_H

#include "runtime/comm.h"
#include "runtime/params.h"

/* A run of the flat parameter vector, with its optimiser state. moment and variance may both be NULL, and so
 * may reference: the parameters of a reference that follows the policy. */
struct checkpoint_piece {
    int64_t offset, count;                            /* elements of the flat vector */
    float *parameter, *moment, *variance, *reference; /* f32 [count]; read by save, filled by load */
};

/* Everything else that a run needs to go on. Strings are owned by the struct and released by
 * checkpoint_state_free. */
struct checkpoint_state {
    int64_t step;         /* optimiser steps done */
    int64_t world;        /* ranks that wrote it */
    int64_t global_batch; /* groups per step */
    uint64_t seed;
    int64_t tokens;       /* trained on so far */
    int64_t reward_steps; /* steps of the running mean of rewards; 0: the objective has none */
    double reward_mean;
    char model_fingerprint[65];     /* of the starting model */
    char reference_fingerprint[65]; /* of the reference model; "": the objective uses none */
    char data_fingerprint[65];      /* of the training groups */
    char *run_file;                 /* the whole resolved run file (YAML) */
    char *config;                   /* the model's config.json, verbatim */
};

void checkpoint_state_free(struct checkpoint_state *state);

/* Collective. Writes <run>/checkpoint-<step>/ and returns after it is complete and durable: every rank writes
 * its pieces (ascending, disjoint, together covering every tensor) into checkpoint-<step>.part/, fsyncs,
 * reads back and compares the SHA-256; ranks agree; rank 0 writes master and manifest, fsyncs, renames
 * without replacing, fsyncs the run folder. Any failure on any rank is the same status on all, the part
 * folder is removed, and older checkpoints stay. */
enum status checkpoint_save(struct comm *comm, const char *run, const struct params *params,
                            const struct checkpoint_state *state, const struct checkpoint_piece *pieces,
                            int64_t piece_count);

/* Collective. Finds the newest checkpoint of the run folder that verifies, or verifies the one named by
 * `path` ("auto" for the newest). *found (out) is its folder, to be freed, or NULL when the run folder holds
 * none at all. Checkpoints that do not verify are passed over with a warning that says why; if all fail, that
 * is an error. */
enum status checkpoint_find(struct comm *comm, const char *run, const char *path, char **found);

/* Collective. Reads the state, and fills every piece from whatever ranks wrote it. Every hash is checked
 * before the HDF5 library opens a file. */
enum status checkpoint_load(struct comm *comm, const char *folder, const struct params *params,
                            struct checkpoint_state *state, const struct checkpoint_piece *pieces,
                            int64_t piece_count);

/* Local. The manifest alone, verified, without tensors. */
enum status checkpoint_state_read(struct checkpoint_state *state, const char *folder);

/* Collective. Deletes all but the newest `keep` complete checkpoints and any stale .part folder; keep >= 1.
 * Only called after a newer one is complete. */
enum status checkpoint_prune(struct comm *comm, const char *run, int64_t keep);

#endif
