/* The parameter table: one list per model that drives layout, initialisation, decay, buckets, checkpoints and
 * names.
 *
 * All parameters of a model stand in one flat vector, in the order of the table. Matrices that are multiplied
 * together (q, k, v; gate, up) are neighbours, so that one matrix product serves them. The vector is cut into
 * buckets: the embedding, one per layer, and the final norm with the head. A bucket starts at a multiple of
 * PARAMS_ALIGNMENT elements; the gaps belong to nothing and hold zeros. */
#ifndef WPO_RUNTIME_PARAMS_H
#define WPO_RUNTIME_PARAMS_H

#include "runtime/config.h"

enum { PARAMS_ALIGNMENT = 64 };

enum parameter_init { INIT_NORMAL, INIT_ONES, INIT_ZEROS };

struct parameter {
    char name[112]; /* Hugging Face's tensor name */
    int64_t rows;   /* 1 for a vector */
    int64_t cols;   /* Hugging Face's shape is [rows, cols], or [cols] for a vector */
    bool vector;
    int64_t offset; /* elements, in the flat vector */
    int64_t count;  /* rows * cols */
    int64_t bucket;
    bool decay; /* weight decay applies: not for norms and biases */
    enum parameter_init init;
};

struct bucket {
    int64_t offset, count; /* elements; count includes the gap at the end, so buckets tile the flat vector */
};

struct params {
    struct parameter *list;
    int64_t count;
    struct bucket *buckets; /* 0: embedding; 1 + l: layer l; 1 + L: final norm and head */
    int64_t bucket_count;
    int64_t total; /* elements of the flat vector, gaps included */
};

/* Indices into the table. */
enum layer_parameter {
    LAYER_NORM,
    LAYER_QUERY,
    LAYER_KEY,
    LAYER_VALUE,
    LAYER_OUTPUT,
    LAYER_MLP_NORM,
    LAYER_GATE,
    LAYER_UP,
    LAYER_DOWN,
    LAYER_QUERY_BIAS,
    LAYER_KEY_BIAS,
    LAYER_VALUE_BIAS /* the last three only with qkv_bias */
};

/* Allocates; params_free releases. */
void params_layout(struct params *params, const struct config *config);
void params_free(struct params *params);

const struct parameter *params_embedding(const struct params *params);
const struct parameter *params_layer(const struct params *params, const struct config *config, int64_t layer,
                                     enum layer_parameter which);
const struct parameter *params_final_norm(const struct params *params, const struct config *config);
/* The embedding itself when the model is tied. */
const struct parameter *params_head(const struct params *params, const struct config *config);
/* NULL when there is none of that name. */
const struct parameter *params_find(const struct params *params, const char *name);

/* Fills the flat f32 vector with normal(0, initializer_range) for matrices, ones for norms, zeros for biases.
 * Element i of the tensor depends on seed, the tensor's index and i alone. */
void params_initialise(const struct params *params, const struct config *config, uint64_t seed, float *flat);

#endif
