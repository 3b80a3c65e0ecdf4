#include "runtime/engine.h"

#include "kernels/require.h"
#include "runtime/hash.h"
#include "runtime/pretrained.h"
#include "runtime/signals.h"
#include "runtime/watch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -- life ------------------------------------------------------------------------------------- */

static enum status check_head_size(const struct engine *engine)
{
    const struct ops *ops = engine->ops;
    int64_t size = engine->config.head_size, limit = ops->head_limit;
    if (ops->head_fits) limit = ops->head_fits(engine->device, engine->precision.compute);
    if (!ops->head_limit || (size <= limit && size % ops->head_multiple == 0)) return STATUS_OK;
    return fail(
        "%s: the model's attention heads are %lld wide, and this device (%s) takes multiples of %lld up to "
        "%lld; set device: cpu",
        engine->settings->model_name_or_path, (long long)size, ops->describe(engine->device),
        (long long)ops->head_multiple, (long long)limit);
}

/* Every chunk of logits adds to the whole gradient of the head's matrix, so a fast device wants few of them.
 */
static size_t logits_bytes(const struct engine *engine)
{
    int64_t megabytes = engine->settings->logits_megabytes;
    if (!megabytes) megabytes = engine->ops->on_host ? 256 : 2048;
    return (size_t)megabytes << 20;
}

enum status engine_open(struct engine *engine, struct comm *comm, const struct settings *settings,
                        enum model_mode mode, struct batch_limits limits)
{
    *engine = (struct engine){.comm = comm, .settings = settings};
    TRY(comm_agree(comm, pretrained_config(&engine->config, settings->model_name_or_path)));
    TRY(watch_open(comm, (double)settings->ddp_timeout));
    TRY(engine_open_device(engine));
    TRY(check_head_size(engine));
    if (limits.longest > engine->config.positions)
        return fail(
            "a sequence of %lld tokens is longer than the model's max_position_embeddings %lld; prepare the "
            "data with a smaller --max_length",
            (long long)limits.longest, (long long)engine->config.positions);
    params_layout(&engine->params, &engine->config);
    arena_open(&engine->arena, engine->ops, engine->device);
    arena_want(&engine->arena, "batch", (void **)&engine->checksum, 1, sizeof *engine->checksum);
    batch_open(&engine->batch, &engine->arena, limits);
    model_open(&engine->model, &engine->arena, &engine->config, &engine->params, engine->precision, mode,
               limits);
    head_open(&engine->head, &engine->arena, &engine->model, limits, logits_bytes(engine));
    return STATUS_OK;
}

enum status engine_place(struct engine *engine)
{
    TRY(comm_agree(engine->comm, arena_place(&engine->arena)));
    model_prepare(&engine->model);
    return STATUS_OK;
}

void engine_close(struct engine *engine)
{
    if (engine->arena.ops) {
        batch_close(&engine->batch);
        model_close(&engine->model);
        arena_close(&engine->arena);
        params_free(&engine->params);
    }
    exchange_close(engine->exchange);
    if (engine->device) engine->ops->close(engine->device);
    watch_close();
    *engine = (struct engine){0};
}

/* -- parameters ------------------------------------------------------------------------------- */

/* Everything that the mathematics of the model depends on besides its weights. */
static bool same_model(const struct config *a, const struct config *b)
{
    return a->family == b->family && a->width == b->width && a->layers == b->layers && a->heads == b->heads &&
           a->key_heads == b->key_heads && a->head_size == b->head_size && a->hidden == b->hidden &&
           a->vocabulary == b->vocabulary && a->tied == b->tied && a->qkv_bias == b->qkv_bias &&
           a->window == b->window && a->norm_epsilon == b->norm_epsilon && a->rope.type == b->rope.type &&
           a->rope.theta == b->rope.theta && a->rope.factor == b->rope.factor &&
           a->rope.low_frequency_factor == b->rope.low_frequency_factor &&
           a->rope.high_frequency_factor == b->rope.high_frequency_factor &&
           a->rope.original_positions == b->rope.original_positions;
}

/* The same weights under another rotation, window or epsilon are another model. */
static void add_config(char fingerprint[65], const struct config *c)
{
    char *text = text_format("%s %lld %.17g %d %.17g %.17g %.17g %.17g %lld", fingerprint,
                             (long long)c->window, c->norm_epsilon, (int)c->rope.type, c->rope.theta,
                             c->rope.factor, c->rope.low_frequency_factor, c->rope.high_frequency_factor,
                             (long long)c->rope.original_positions);
    hash_bytes(fingerprint, text, strlen(text));
    free(text);
}

static enum status read_model(struct engine *engine, const char *folder, float *flat, char fingerprint[65])
{
    struct config config;
    TRY(pretrained_config(&config, folder));
    if (!same_model(&config, &engine->config))
        return fail("%s: this model has another shape, rope, window or rms_norm_eps than %s, so one "
                    "cannot be the other's reference",
                    folder, engine->settings->model_name_or_path);
    TRY(pretrained_load(flat, &engine->params, &engine->config, folder));
    pretrained_fingerprint(fingerprint, flat, &engine->params);
    add_config(fingerprint, &config);
    return STATUS_OK;
}

enum status engine_load(struct engine *engine, const char *folder, char fingerprint[65], float **values)
{
    float *flat = allocate(engine->params.total, sizeof *flat);
    enum status status = comm_agree(engine->comm, read_model(engine, folder, flat, fingerprint));
    if (status == STATUS_OK) {
        model_put(&engine->model, flat);
        status = engine_same_parameters(engine, "after loading the model");
    }
    if (values)
        *values = flat;
    else
        free(flat);
    return status;
}

enum status engine_same_parameters(struct engine *engine, const char *when)
{
    struct comm *comm = engine->comm;
    if (comm->size == 1) return STATUS_OK;
    struct tensor whole = model_run(&engine->model, 0, engine->params.total);
    uint64_t mine, *all = allocate(comm->size, sizeof mine);
    engine->ops->checksum(engine->device, engine->checksum, whole);
    engine->ops->download(engine->device, &mine, engine->checksum, sizeof mine);
    comm_gather_all(comm, all, &mine, sizeof mine);
    int differing = 0, first = 0;
    for (int r = comm->size - 1; r > 0; r--) {
        if (all[r] == all[0]) continue;
        differing++;
        first = r;
    }
    free(all);
    if (!differing) return STATUS_OK;
    return fail("the parameters of %d of %d ranks differ from rank 0's %s, first those of rank %d; the run "
                "ends so that "
                "no wrong model is saved: check that rank's host, and resume from the last checkpoint",
                differing, comm->size, when, first);
}

enum status engine_check_groups(const struct engine *engine, const struct groups *groups)
{
    if (groups->vocabulary > engine->config.vocabulary)
        return fail("%s: the data was prepared for a vocabulary of %lld and the model has %lld; run `wpo "
                    "prepare` with "
                    "this model",
                    groups->path, (long long)groups->vocabulary, (long long)engine->config.vocabulary);
    return STATUS_OK;
}

enum status groups_same(const struct groups *groups, struct comm *comm)
{
    size_t size = sizeof groups->fingerprint;
    char *all = allocate(comm->size, size);
    comm_gather_all(comm, all, groups->fingerprint, size);
    int differing = 0;
    for (int r = comm->size - 1; r > 0; r--)
        if (memcmp(all, all + (size_t)r * size, size) != 0) differing = r;
    free(all);
    if (!differing) return STATUS_OK;
    return fail(
        "%s: rank %d reads another file under this name than rank 0; put the data on a file system that all "
        "hosts share",
        groups->path, differing);
}

/* -- scoring ---------------------------------------------------------------------------------- */

static void score_micro_batch(struct engine *engine, const struct groups *groups, const int64_t *members,
                              int64_t count, struct completion_sums *scratch, struct completion_sums *sums,
                              struct completion_sums *prompts)
{
    struct batch *batch = &engine->batch;
    batch_pack(batch, groups, members, count);
    head_score(&engine->head, batch, model_forward(&engine->model, batch), scratch);
    for (int64_t s = 0; s < batch->completions; s++)
        if (batch->completion[s] >= 0) sums[batch->completion[s]] = scratch[s];
    for (int64_t g = 0; prompts && batch->limits.prompts && g < batch->groups; g++)
        prompts[batch->group[g]] = scratch[batch->host.segment[g + 1] - 1];
}

/* Every completion was scored by one rank; the others hold zeros. sums [count]. */
static void merge_sums(struct engine *engine, struct completion_sums *sums, int64_t count)
{
    enum { FIELDS = 8 };
    double *values = allocate(count * FIELDS, sizeof *values);
    for (int64_t s = 0; s < count; s++) {
        const struct completion_sums *c = &sums[s];
        memcpy(values + s * FIELDS,
               (double[FIELDS]){c->logp, c->square, c->maximum, c->entropy, c->logits, c->hits, c->leading,
                                (double)c->count},
               FIELDS * sizeof *values);
    }
    comm_merge(engine->comm, values, count * FIELDS);
    for (int64_t s = 0; s < count; s++) {
        const double *v = values + s * FIELDS;
        sums[s] = (struct completion_sums){v[0], v[1], v[2], v[3], v[4], v[5], v[6], (int64_t)v[7]};
    }
    free(values);
}

void engine_score_members(struct engine *engine, const struct groups *groups, const int64_t *members,
                          int64_t count, int64_t micro, struct completion_sums *sums)
{
    struct share share = {0};
    int64_t total = 0, at = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = groups->first[members[i]], size = groups->first[members[i] + 1] - first;
        memset(sums + first, 0, (size_t)size * sizeof *sums);
        total += size;
    }
    struct completion_sums *scratch = allocate(engine->batch.limits.completions, sizeof *scratch),
                           *merged = allocate(total, sizeof *merged);
    share_of_step(&share, groups, members, count, engine->comm->rank, engine->comm->size, micro);
    for (int64_t m = 0; m < share_micro_batches(&share); m++) {
        int64_t members_count;
        const int64_t *micro_batch = share_micro_batch(&share, m, &members_count);
        score_micro_batch(engine, groups, micro_batch, members_count, scratch, sums, NULL);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t s = groups->first[members[i]]; s < groups->first[members[i] + 1]; s++)
            merged[at++] = sums[s];
    merge_sums(engine, merged, total);
    at = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t s = groups->first[members[i]]; s < groups->first[members[i] + 1]; s++)
            sums[s] = merged[at++];
    free(merged);
    free(scratch);
    share_free(&share);
}

/* Those of members[count] that are not marked in seen [G]: into fresh, and marked. Two ranks must not score
 * one group, whose shares differ between epochs: merging adds. */
static int64_t take_unseen(int64_t *fresh, bool *seen, const int64_t *members, int64_t count)
{
    int64_t taken = 0;
    for (int64_t i = 0; i < count; i++) {
        if (seen[members[i]]) continue;
        seen[members[i]] = true;
        fresh[taken++] = members[i];
    }
    return taken;
}

/* Steps from `first` on after which every group was seen: what is left of an epoch, and a whole one. */
static int64_t steps_to_see_all(const struct order *order, int64_t first)
{
    int64_t per_epoch = order_steps_per_epoch(order), into = first % per_epoch;
    return into ? 2 * per_epoch - into : per_epoch;
}

static void report_scored(const struct report *report, const char *phase, int64_t done, int64_t total)
{
    struct progress progress = {.phase = phase,
                                .done = done,
                                .total = total,
                                .loss = NAN,
                                .margin = NAN,
                                .accuracy = NAN,
                                .weight = NAN,
                                .tokens_per_second = NAN};
    report->progress(report->context, &progress);
}

enum status engine_score(struct engine *engine, struct order *order, int64_t first, int64_t steps,
                         int64_t micro, const struct report *report, const char *phase,
                         struct completion_sums *sums, struct completion_sums *prompts)
{
    struct comm *comm = engine->comm;
    const struct groups *groups = order->groups;
    struct share share = {0};
    struct completion_sums *scratch = allocate(engine->batch.limits.completions, sizeof *scratch);
    int64_t *fresh = allocate(groups->group_count, sizeof *fresh), all = steps_to_see_all(order, first);
    bool stop = false, *seen = allocate(groups->group_count, sizeof *seen);
    if (steps > all) steps = all;
    memset(sums, 0, (size_t)groups->completion_count * sizeof *sums);
    if (prompts) memset(prompts, 0, (size_t)groups->group_count * sizeof *prompts);
    for (int64_t step = 0; step < steps && !stop; step++) {
        int64_t count, members_count;
        const int64_t *members = order_step(order, first + step, &count);
        count = take_unseen(fresh, seen, members, count);
        share_of_step(&share, groups, fresh, count, comm->rank, comm->size, micro);
        for (int64_t m = 0; m < share_micro_batches(&share) && !signals_pending(); m++) {
            const int64_t *micro_batch = share_micro_batch(&share, m, &members_count);
            score_micro_batch(engine, groups, micro_batch, members_count, scratch, sums, prompts);
        }
        stop = comm_any(comm, signals_pending());
        if (report && report->progress && comm->rank == 0) report_scored(report, phase, step + 1, steps);
    }
    merge_sums(engine, sums, groups->completion_count);
    if (prompts) merge_sums(engine, prompts, groups->group_count);
    share_free(&share);
    free(seen);
    free(fresh);
    free(scratch);
    if (stop)
        return fail_stopped("stopped by a signal during the phase '%s'; start it again to go on", phase);
    return STATUS_OK;
}
