/* The transformer of the Llama family: forward and backward over a packed batch. The head is in
 * runtime/head.h. */
#ifndef WPO_RUNTIME_MODEL_H
#define WPO_RUNTIME_MODEL_H

#include "runtime/arena.h"
#include "runtime/batch.h"
#include "runtime/params.h"

/* f32 throughout, or bf16 parameters and activations; gradients of parameters may stay f32 then, so that
 * accumulation over micro-batches and ranks loses nothing. */
struct precision {
    enum dtype compute; /* parameters, activations and their gradients */
    enum dtype gradient;
};

/* What backward needs of one layer. Names follow forward's lines. */
struct layer_activations {
    void *norm;      /* [N, C] */
    void *qkv;       /* [N, (H+2K) D] after the rotation */
    void *attention; /* [N, H D] */
    float *lse;      /* [N, H] */
    void *middle;    /* [N, C] the residual stream between attention and MLP */
    void *mlp_norm;  /* [N, C] */
    void *gate_up;   /* [N, 2F] */
    void *product;   /* [N, F] */
};

enum model_mode {
    MODEL_SCORE,     /* forward only: one layer's activations, no gradients */
    MODEL_TRAIN,     /* every layer's activations are kept */
    MODEL_RECOMPUTE, /* each layer's input is kept, the rest computed again in backward
                        (gradient_checkpointing) */
};

struct model {
    const struct config *config;
    const struct params *params;
    const struct ops *ops;
    struct device *device;
    enum model_mode mode;
    struct precision precision;
    void *parameters; /* [params->total], device */
    void *gradients;  /* [params->total], device; NULL with MODEL_SCORE */
    void **stream; /* [L+1] pointers to [N, C]: the residual stream before each layer, and after the last */
    struct layer_activations *layers; /* [L]; all the same memory unless MODEL_TRAIN */
    void *branch;                     /* [N, C] what a branch adds to the stream */
    void *dstream;                    /* [N, C] gradient of the stream */
    void *dnorm;                      /* [N, C] */
    void *dqkv;                       /* [N, (H+2K) D] */
    void *dattention;                 /* [N, H D] */
    void *dproduct;                   /* [N, F] */
    void *workspace;                  /* of attention_grad */
    float *rope_table;                /* [positions, D] */
    int64_t rope_positions;
};

/* Wishes for parameters, gradients and activations of batches within the limits. config and params are kept.
 */
void model_open(struct model *model, struct arena *arena, const struct config *config,
                const struct params *params, struct precision precision, enum model_mode mode,
                struct batch_limits limits);
/* After arena_place: fills the tables. */
void model_prepare(struct model *model);
void model_close(struct model *model);

/* Rows of the stream after the last layer, before the final norm: [N, C]. */
struct tensor model_forward(struct model *model, const struct batch *batch);

/* Called when the gradient of a bucket is complete; NULL: not interested. */
struct bucket_listener {
    void (*ready)(void *context, int64_t bucket);
    void *context;
};

/* The gradient of the stream after the last layer, [N, C], to be filled before model_backward. */
struct tensor model_dstream(struct model *model, const struct batch *batch);

/* Adds to the gradients of all parameters below the final norm, given model_dstream. After a layer is done
 * the listener hears of its bucket, and at the end of the embedding's. */
void model_backward(struct model *model, const struct batch *batch, struct bucket_listener listener);

/* Views of parameters and of their gradients: neighbouring matrices of `rows` rows in all as one; a norm's or
 * bias's values as ops take them, and their gradients [1, cols]. */
struct tensor model_matrix(const struct model *model, const struct parameter *parameter, int64_t rows);
struct tensor model_matrix_gradient(const struct model *model, const struct parameter *parameter,
                                    int64_t rows);
const void *model_vector(const struct model *model, const struct parameter *parameter);
struct tensor model_vector_gradient(const struct model *model, const struct parameter *parameter,
                                    int64_t cols);
/* Elements offset .. offset + count - 1 of the flat vectors, [1, count]. */
struct tensor model_run(const struct model *model, int64_t offset, int64_t count);
struct tensor model_run_gradient(const struct model *model, int64_t offset, int64_t count);

/* From f32 (host, [params->total]) to the device's parameters, rounded as masters are (kernels/bfloat.h). */
void model_put(struct model *model, const float *flat);

/* Inverse frequencies of the rotation, [D/2], doubles (tests compare them). */
void model_rope_frequencies(const struct config *config, double *frequency);

#endif
