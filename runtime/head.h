/* The head: from the stream after the last layer to log-probabilities, and in the same pass to the loss and
 * the stream's gradient. At most one chunk of logits exists at a time; chunks hold whole groups, because a
 * group's loss needs all its tokens. */
#ifndef WPO_RUNTIME_HEAD_H
#define WPO_RUNTIME_HEAD_H

#include "runtime/model.h"

struct head {
    struct model *model;
    struct batch_limits limits;
    int64_t chunk;                /* rows of the logits buffer */
    float *hidden;                /* [T, C] the rows that predict, gathered from the stream */
    float *normed;                /* [T, C] */
    float *dhidden;               /* [T, C] */
    float *dnormed;               /* [T, C] */
    float *logits;                /* [chunk, V] */
    float *statistics;            /* [T, HEAD_STATISTICS] */
    float *coefficient;           /* [T] */
    struct completion_sums *sums; /* [S] device */
    struct group_result *results; /* [G] device */
    double *reference;            /* [S] device */
};

/* Wishes for memory; logits take up to logits_bytes, but room for 16 rows at least. */
void head_open(struct head *head, struct arena *arena, struct model *model, struct batch_limits limits,
               size_t logits_bytes);

/* Log-probabilities alone. sums (out) [S] host. */
void head_score(struct head *head, const struct batch *batch, struct tensor stream,
                struct completion_sums *sums);

/* Log-probabilities, weights, loss and gradient in one pass: every group of the batch must have the
 * objective's size. reference [S] host, nats. scale multiplies every loss (1 / groups or tokens of the global
 * batch). Adds to the gradients of head and final norm, fills model_dstream(), and gives back sums [S] and
 * results [G] on the host. */
void head_train(struct head *head, const struct batch *batch, struct tensor stream,
                const struct objective *objective, const double *reference, double scale,
                struct completion_sums *sums, struct group_result *results);

#endif
