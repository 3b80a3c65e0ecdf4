/* A training run without files of its own: for programs that time one step or look at its gradients. */
#ifndef WPO_TESTS_TRIAL_H
#define WPO_TESTS_TRIAL_H

#include "kernels/bfloat.h"
#include "kernels/require.h"
#include "runtime/evaluate.h"
#include "runtime/step.h"

#include <stdlib.h>
#include <string.h>

struct trial {
    struct comm comm;
    struct dataset dataset;
    struct engine engine;
    struct optimiser optimiser;
    struct trainer trainer;
};

static inline void must(enum status status)
{
    REQUIRE(status == STATUS_OK, "%s", status_sentence());
}

static inline void trial_load(struct trial *trial, const char *folder)
{
    char fingerprint[65];
    float *values = NULL;
    must(engine_load(&trial->engine, folder, fingerprint, &values));
    optimiser_put(&trial->optimiser, values);
    free(values);
}

/* Weights of a plausible size without a file, the same every 16M elements. */
static inline void trial_make_up(struct trial *trial)
{
    enum { PIECE = 16 << 20 };
    struct model *model = &trial->engine.model;
    size_t size = dtype_bytes(model->precision.compute);
    char *piece = allocate(PIECE, sizeof(float));
    uint64_t state = 1;
    for (int64_t i = 0; i < PIECE; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float value = 0.03f * ((float)(state >> 40) / 0x1p23f - 1);
        struct bfloat half = bfloat_round(value);
        memcpy(piece + (size_t)i * size, size == sizeof value ? (void *)&value : (void *)&half, size);
    }
    for (int64_t first = 0; first < model->params->total; first += PIECE) {
        int64_t count = model->params->total - first < PIECE ? model->params->total - first : PIECE;
        model->ops->upload(model->device, model_run(model, first, count).data, piece, (size_t)count * size);
    }
    free(piece);
}

/* Steps of `batch` groups of the file in micro-batches of `micro`. reference_model: folder; the reference's
 * log-probabilities of all groups are computed with it, and settings->model_name_or_path is loaded then.
 * NULL: made-up weights, and a reference of 0. */
static inline void trial_open(struct trial *trial, const struct settings *settings, const char *data,
                              const char *reference_model, int64_t batch, int64_t micro)
{
    struct engine *e = &trial->engine;
    must(comm_open(&trial->comm));
    must(dataset_open(&trial->dataset, data, settings, &trial->comm));
    if (batch <= 0) batch = trial->dataset.groups.group_count;
    struct batch_limits limits = dataset_measure(&trial->dataset, settings, micro);
    trainer_limits(&limits, &trial->dataset.groups, batch);
    must(engine_open(e, &trial->comm, settings,
                     settings->gradient_checkpointing ? MODEL_RECOMPUTE : MODEL_TRAIN, limits));
    optimiser_open(&trial->optimiser, &e->arena, &trial->comm, e->exchange, &e->model,
                   (struct optimiser_options){.zero_stage = 1, .moment_type = settings->moment_dtype});
    must(engine_place(e));
    optimiser_prepare(&trial->optimiser);
    dataset_plan(&trial->dataset, batch, 42, false);

    if (reference_model) {
        trial_load(trial, reference_model);
        must(dataset_reference(e, &trial->dataset, 0, order_steps_per_epoch(&trial->dataset.order), micro,
                               NULL));
        trial_load(trial, settings->model_name_or_path);
    } else {
        trial_make_up(trial);
    }

    trial->trainer = (struct trainer){.engine = e,
                                      .optimiser = &trial->optimiser,
                                      .dataset = &trial->dataset,
                                      .micro = micro,
                                      .total_steps = 1};
    trainer_open(&trial->trainer, false);
}

static inline void trial_close(struct trial *trial)
{
    trainer_close(&trial->trainer);
    optimiser_close(&trial->optimiser);
    engine_close(&trial->engine);
    dataset_close(&trial->dataset);
    comm_close(&trial->comm);
}

#endif
