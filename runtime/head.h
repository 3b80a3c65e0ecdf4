/* The head: from the stream after the last layer to log-probabilities, and in the same pass to the loss and
 * the stream's gradient. At most one chunk of logits exists at a time; chunks hold whole groups, because a
 * group's loss needs all its tokens. */
#ifndef WPO_RUNTIME_HEAD_H
#define WPO_RUNTIME_HEAD_H

#include "runtime/model.h"

struct head {
    struct model *model;
    struct batch_limits limits;
    int64_t chunk;         /* rows of the logits buffer */
    void *hidden;          /* [T, C] the rows that predict, gathered from the stream */
    void *normed;          /* [T, C] */
    void *dhidden;         /* [T, C] */
    void *dnormed;         /* [T, C] */
    int64_t logits_stride; /* V rounded up: rows begin at multiples of 128 bytes, whatever V is */
    float *logits; /* [chunk, V] f32, whatever the model computes in: bf16 would be off by up to 2^-8 |z| */
    float *statistics;            /* [T, HEAD_STATISTICS] */
    float *coefficient;           /* [T] */
    struct completion_data *data; /* [S] device */
    struct completion_sums *sums; /* [S of a step] device: of the micro-batches since head_begin */
    struct group_result *results; /* [G of a step] device */
    int64_t completions, groups;  /* of them that are filled */
};

/* Wishes for memory; logits take up to logits_bytes, but room for 16 rows at least. */
void head_open(struct head *head, struct arena *arena, struct model *model, struct batch_limits limits,
               size_t logits_bytes);

/* Log-probabilities alone. sums (out) [S] host. */
void head_score(struct head *head, const struct batch *batch, struct tensor stream,
                struct completion_sums *sums);

/* Forgets the results so far; at the beginning of a step. */
void head_begin(struct head *head);

/* Log-probabilities, weights, loss and gradient in one pass: every group of the batch must have a size that
 * the objective takes. data [S] host, may be changed afterwards. Adds to the gradients of head and final
 * norm, fills model_dstream(), and appends sums [S] and results [G] to those of the step. Nothing waits for
 * the device. */
void head_train(struct head *head, const struct batch *batch, struct tensor stream,
                const struct objective *objective, const struct batch_facts *facts,
                const struct completion_data *data);

/* Waits for the sums and results of all micro-batches since head_begin, in their order: host arrays as long
 * as head->completions and head->groups. */
void head_take(struct head *head, struct completion_sums *sums, struct group_result *results);

#endif
