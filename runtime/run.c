#include "runtime/run.h"

#include "runtime/clock.h"
#include "runtime/files.h"
#include "runtime/pretrained.h"
#include "runtime/selection.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void run_note(const struct run *run, const char *format, ...)
{
    if (run->comm->rank != 0 || !run->report->note) return;
    char sentence[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    run->report->note(run->report->context, sentence);
}

/* -- opening ---------------------------------------------------------------------------------- */

static void note_dropped(const struct run *run, const struct dataset *dataset)
{
    if (dataset->dropped)
        run_note(run, "%s: min_margin %g leaves out %lld of %lld pairs", dataset->groups.path,
                 run->settings->min_margin, (long long)dataset->dropped,
                 (long long)(dataset->dropped + dataset->groups.group_count));
}

static enum status open_data(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(dataset_open(&run->train, settings->train_file, settings, run->comm));
    if (!settings->eval_file) return STATUS_OK;
    TRY(dataset_open(&run->eval, settings->eval_file, settings, run->comm));
    run->has_eval = true;
    return STATUS_OK;
}

/* A resumed run keeps the global batch, the seed and the data it began with, whatever the number of ranks. */
static enum status check_resumed(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(checkpoint_state_read(&run->state, run->checkpoint));
    if (settings->global_batch_size > 0 && settings->global_batch_size != run->state.global_batch)
        return fail("%s: the run was started with a global batch of %lld, and global_batch_size is %lld now; "
                    "a resumed "
                    "run keeps its batch",
                    run->checkpoint, (long long)run->state.global_batch,
                    (long long)settings->global_batch_size);
    if (settings->seed != run->state.seed)
        return fail("%s: the run was started with seed %llu, and seed is %llu now; a resumed run keeps its "
                    "order of data",
                    run->checkpoint, (unsigned long long)run->state.seed, (unsigned long long)settings->seed);
    if (strcmp(run->train.groups.fingerprint, run->state.data_fingerprint) != 0)
        return fail("%s: the run was started on other data than %s; resume with the same train_file",
                    run->checkpoint, settings->train_file);
    return STATUS_OK;
}

static enum status plan_steps(struct run *run)
{
    const struct settings *settings = run->settings;
    int64_t batch = run->checkpoint ? run->state.global_batch : settings->global_batch_size;
    if (batch <= 0)
        batch =
            settings->per_device_train_batch_size * settings->gradient_accumulation_steps * run->comm->size;
    if (batch < run->comm->size)
        return fail("a global batch of %lld groups leaves ranks idle: start at most %lld ranks, or raise "
                    "global_batch_size",
                    (long long)batch, (long long)batch);
    dataset_plan(&run->train, batch, settings->seed, true);
    if (run->has_eval)
        dataset_plan(&run->eval, settings->per_device_eval_batch_size * run->comm->size, 0, false);
    int64_t per_epoch = order_steps_per_epoch(&run->train.order);
    run->total_steps = settings->max_steps > 0
                           ? settings->max_steps
                           : (int64_t)ceil(settings->num_train_epochs * (double)per_epoch);
    run->state.global_batch = batch;
    run->state.seed = settings->seed;
    run->state.world = run->comm->size;
    return STATUS_OK;
}

static enum status open_engine(struct run *run)
{
    const struct settings *settings = run->settings;
    struct batch_limits limits =
        dataset_measure(&run->train, settings, settings->per_device_train_batch_size);
    if (run->has_eval)
        limits = batch_limits_union(
            limits, dataset_measure(&run->eval, settings, settings->per_device_eval_batch_size));
    trainer_limits(&limits, &run->train.groups, run->state.global_batch);
    enum model_mode mode = settings->gradient_checkpointing ? MODEL_RECOMPUTE : MODEL_TRAIN;
    struct engine *e = &run->engine;
    TRY(engine_open(e, run->comm, settings, mode, limits));
    TRY(engine_check_groups(e, &run->train.groups));
    if (run->has_eval) TRY(engine_check_groups(e, &run->eval.groups));
    optimiser_open(&run->optimiser, &e->arena, run->comm, e->exchange, &e->model,
                   (struct optimiser_options){.zero_stage = settings->zero_stage,
                                              .moment_type = settings->moment_dtype,
                                              .seed = settings->seed});
    if (settings->sync_ref_model) follower_open(&run->follower, &e->arena, &e->model);
    TRY(engine_place(e));
    optimiser_prepare(&run->optimiser);
    run->optimiser.reference = run->follower.parameters;
    char *table = arena_table(&e->arena), *device = engine_describe(e);
    run_note(run, "device: %s", device);
    free(device);
    run_note(run, "memory per rank: %.1f MiB planned (%s)", (double)e->arena.bytes / 0x1p20, table);
    free(table);
    return STATUS_OK;
}

/* -- models ---------------------------------------------------------------------------------- */

/* Reads the starting policy into engine and optimiser. */
static enum status load_policy(struct run *run, const char *folder, char fingerprint[65])
{
    float *values = NULL;
    enum status status = engine_load(&run->engine, folder, fingerprint, &values);
    if (status == STATUS_OK) optimiser_put(&run->optimiser, values);
    free(values);
    return status;
}

/* Leaves the starting policy in the engine. */
static enum status load_models(struct run *run)
{
    const struct settings *settings = run->settings;
    const char *policy = settings->model_name_or_path;
    const char *reference = settings->ref_model_name_or_path ? settings->ref_model_name_or_path : policy;
    char fingerprint[65];
    run->has_reference = objective_uses_reference(&settings->objective);
    if (run->has_reference) {
        TRY(load_policy(run, reference, fingerprint));
        TRY(run_reference(run, fingerprint));
        if (settings->sync_ref_model) follower_take(&run->follower);
    }
    if (!run->has_reference || strcmp(reference, policy) != 0)
        TRY(load_policy(run, policy, run->state.model_fingerprint));
    else
        memcpy(run->state.model_fingerprint, fingerprint, sizeof fingerprint);
    snprintf(run->state.reference_fingerprint, sizeof run->state.reference_fingerprint, "%s",
             run->has_reference ? fingerprint : "");
    run->policy_is_reference = run->has_reference && !strcmp(run->state.model_fingerprint, fingerprint);
    return STATUS_OK;
}

/* No checkpoint may stand where the run will save. "auto" took the newest that verifies, so those after it
 * are damaged and are set aside; after one that was chosen by name they may be good, and are left to their
 * owner. */
static enum status clear_the_way(const struct run *run)
{
    char **names;
    int64_t count;
    const char *folder = run->settings->output_dir;
    enum status status = STATUS_OK;
    TRY(files_list(&names, &count, folder));
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        long long step;
        int length = 0;
        if (sscanf(names[i], "checkpoint-%lld%n", &step, &length) != 1 || names[i][length] ||
            step <= run->state.step)
            continue;
        char *from = files_join(folder, names[i]), *to = text_format("%s.damaged", from);
        if (strcmp(run->settings->resume_from_checkpoint, "auto") != 0)
            status = fail("%s was saved after %s; move it away, or resume in another output_dir", from,
                          run->checkpoint);
        else
            status = files_rename(from, to);
        if (status == STATUS_OK) run_note(run, "set aside as damaged: %s", to);
        free(from);
        free(to);
    }
    files_names_free(names, count);
    return status;
}

static enum status load_checkpoint(struct run *run)
{
    char fingerprint[65], reference[65];
    memcpy(fingerprint, run->state.model_fingerprint, sizeof fingerprint);
    memcpy(reference, run->state.reference_fingerprint, sizeof reference);
    checkpoint_state_free(&run->state);
    TRY(comm_agree(run->comm, optimiser_stage_room(&run->optimiser)));
    TRY(checkpoint_load(run->comm, run->checkpoint, &run->engine.params, &run->state, run->optimiser.pieces,
                        run->optimiser.piece_count));
    if (strcmp(fingerprint, run->state.model_fingerprint) != 0)
        return fail(
            "%s: the run was started from another model than %s; resume with the same model_name_or_path",
            run->checkpoint, run->settings->model_name_or_path);
    if (strcmp(reference, run->state.reference_fingerprint) != 0)
        return fail("%s: the run was started against another reference model; resume with the "
                    "ref_model_name_or_path and loss_type that it began with",
                    run->checkpoint);
    optimiser_stage_in(&run->optimiser);
    TRY(comm_agree(run->comm, run->comm->rank == 0 ? clear_the_way(run) : STATUS_OK));
    if (run->settings->sync_ref_model) TRY(run_reference_again(run));
    run_note(run, "resumed from %s: step %lld of %lld, written by %lld ranks", run->checkpoint,
             (long long)run->state.step, (long long)run->total_steps, (long long)run->state.world);
    return engine_same_parameters(&run->engine, "after loading the checkpoint");
}

/* The texts that go into every checkpoint. */
static enum status collect_texts(struct run *run)
{
    free(run->state.run_file);
    free(run->state.config);
    run->state.config = NULL;
    run->state.run_file = text_copy(run->run_file);
    memcpy(run->state.data_fingerprint, run->train.groups.fingerprint, sizeof run->state.data_fingerprint);
    run->state.world = run->comm->size;
    char *path = files_join(run->settings->model_name_or_path, "config.json");
    size_t bytes;
    enum status status = files_read(&run->state.config, &bytes, path, 1 << 20);
    free(path);
    return status;
}

/* What is trained, defaults included: run files of other programs name it by other means than loss_type. */
static void note_objective(const struct run *run)
{
    const struct objective *o = &run->settings->objective;
    char *names = selection_losses(o);
    if (o->term_count == 1 && o->terms[0].type == LOSS_SFT)
        run_note(run, "objective: sft");
    else
        run_note(run, "objective: %s, beta %g, weighting %s", names, o->beta, weighting_name(o->weighting));
    free(names);
}

enum status run_open(struct run *run)
{
    const struct settings *settings = run->settings;
    TRY(comm_agree(run->comm, open_data(run)));
    TRY(groups_same(&run->train.groups, run->comm));
    if (run->has_eval) TRY(groups_same(&run->eval.groups, run->comm));
    note_dropped(run, &run->train);
    if (run->has_eval) note_dropped(run, &run->eval);
    if (settings->resume_from_checkpoint)
        TRY(checkpoint_find(run->comm, settings->output_dir, settings->resume_from_checkpoint,
                            &run->checkpoint));
    if (run->checkpoint) TRY(comm_agree(run->comm, check_resumed(run)));
    TRY(plan_steps(run));
    TRY(open_engine(run));
    TRY(load_models(run));
    if (run->checkpoint) TRY(load_checkpoint(run));
    TRY(comm_agree(run->comm, collect_texts(run)));
    run->trainer = (struct trainer){.engine = &run->engine,
                                    .optimiser = &run->optimiser,
                                    .dataset = &run->train,
                                    .micro = settings->per_device_train_batch_size,
                                    .total_steps = run->total_steps,
                                    .running = {run->state.reward_steps, run->state.reward_mean}};
    trainer_open(&run->trainer, settings->log_pairs);
    tally_clear(&run->window);
    note_objective(run);
    int ranks = run->comm->size;
    run_note(run, "training: %lld groups, %lld a step, %lld step%s, %d rank%s, %lld parameters",
             (long long)run->train.groups.group_count, (long long)run->state.global_batch,
             (long long)run->total_steps, run->total_steps == 1 ? "" : "s", ranks, ranks == 1 ? "" : "s",
             (long long)config_parameters(&run->engine.config));
    return STATUS_OK;
}

void run_close(struct run *run)
{
    trainer_close(&run->trainer);
    if (run->engine.arena.ops) optimiser_close(&run->optimiser);
    engine_close(&run->engine);
    dataset_close(&run->train);
    dataset_close(&run->eval);
    checkpoint_state_free(&run->state);
    free(run->checkpoint);
}
