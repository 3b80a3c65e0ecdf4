/* A model on a device, ready for batches: what training and evaluation both stand on. */
#ifndef WPO_RUNTIME_ENGINE_H
#define WPO_RUNTIME_ENGINE_H

#include "runtime/exchange.h"
#include "runtime/head.h"
#include "runtime/order.h"
#include "runtime/report.h"
#include "runtime/settings.h"

struct engine {
    struct comm *comm;
    const struct settings *settings;
    const struct ops *ops;
    struct device *device;
    struct exchange *exchange;
    struct precision precision;
    int threads; /* of this rank; 0: as the environment says */
    struct config config;
    struct params params;
    struct arena arena;
    struct batch batch;
    struct model model;
    struct head head;
    uint64_t *checksum; /* device */
    const char *no_gpu; /* with device: auto, why it is not a GPU; NULL where that was not in question */
};

/* Collective. Opens the device that settings->device names and the way between the ranks' devices, starts the
 * watchdog, reads the model's config, and measures memory for batches within the limits. Wish for more, then
 * call engine_place. */
enum status engine_open(struct engine *engine, struct comm *comm, const struct settings *settings,
                        enum model_mode mode, struct batch_limits limits);
/* Collective. Allocates everything. */
enum status engine_place(struct engine *engine);
void engine_close(struct engine *engine);

/* Collective. Reads a model folder into the parameters of every rank; a failure on one is a failure on all.
 * Its shape must be the engine's. fingerprint (out) identifies its values. values (out, may be NULL): the
 * parameters as f32, [params.total], to be freed by the caller. */
enum status engine_load(struct engine *engine, const char *folder, char fingerprint[65], float **values);

/* Collective. The part of engine_open that chooses and opens the device, and the way between the ranks'
 * devices. */
enum status engine_open_device(struct engine *engine);

/* For people: "cuda 0 (NVIDIA H200, ...) in bfloat16". To be freed. */
char *engine_describe(const struct engine *engine);

/* Collective. Whether all ranks hold the same parameters; if not, an error that names the ranks that differ
 * from rank 0. */
enum status engine_same_parameters(struct engine *engine, const char *when);

/* The token ids of the groups must be the model's. */
enum status engine_check_groups(const struct engine *engine, const struct groups *groups);

/* Collective. Sums of every completion of steps first .. first+steps-1 of the order, without gradients, in
 * the same micro-batches as training would form; a group that comes again in a later epoch is not scored
 * again. sums (out) [S] on every rank, zero where a completion was not visited. prompts (out) [G]: of the
 * prompts' own tokens where the engine's batches score them; may be NULL. A signal ends it with
 * STATUS_STOPPED. report may be NULL. */
enum status engine_score(struct engine *engine, struct order *order, int64_t first, int64_t steps,
                         int64_t micro, const struct report *report, const char *phase,
                         struct completion_sums *sums, struct completion_sums *prompts);

/* Collective. Sums of every completion of the groups that members[count] names, computed by the ranks in
 * shares and held by all: sums (out) [S], written for those completions alone. */
void engine_score_members(struct engine *engine, const struct groups *groups, const int64_t *members,
                          int64_t count, int64_t micro, struct completion_sums *sums);

/* Collective. All ranks must have opened the same groups. */
enum status groups_same(const struct groups *groups, struct comm *comm);

#endif
