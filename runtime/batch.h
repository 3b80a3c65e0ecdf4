/* A packed batch: groups side by side, without padding, each prompt once.
 *
 *   tokens:   p p p p | a a a | b b | q q q | c c ...        prompt, completions; next group
 *   spans:    one for each run; a completion's span has its prompt as prefix
 *   scored:   every token of every completion, predicted by the row before it: the prompt's last row for the
 * first token of each completion. A completion's last token predicts nothing and is not packed. Where prompts
 * are scored as well, a prompt's own tokens but its first stand behind those of its completions, as one
 * completion more of the group: a segment. */
#ifndef WPO_RUNTIME_BATCH_H
#define WPO_RUNTIME_BATCH_H

#include "kernels/ops.h"
#include "runtime/arena.h"
#include "runtime/groups.h"

/* The largest batch that may come. */
struct batch_limits {
    int64_t groups, completions, tokens, scored;
    int64_t longest;      /* tokens in a prompt with one completion */
    int64_t group_scored; /* scored tokens of the largest group */
    bool prompts;         /* are scored; groups, completions and scored tokens include them */
    /* Of all micro-batches of one step on one rank, whose results are read together; 0: of one micro-batch.
     */
    int64_t step_groups, step_completions;
};

/* Host and device hold the same arrays; the device's are for the kernels. */
struct batch_arrays {
    int64_t *id;               /* [N] token */
    int64_t *position;         /* [N] in its sequence */
    struct span *span;         /* [spans] */
    int64_t *group_span;       /* [G+1] */
    struct packing_tile *tile; /* [tiles] work of the attention kernels */
    int64_t *source;           /* [T] row that predicts scored token t */
    int64_t *target;           /* [T] its token */
    int64_t *first;            /* [S+1] scored tokens of completion s: first[s] .. first[s+1]-1 */
    int64_t *shared;           /* [S] of a pair's two completions, the tokens of the shorter; else all */
    int64_t *segment;          /* [G+1] completions of group g of this batch, its prompt last if scored */
};

struct batch {
    const struct ops *ops;
    struct device *device;
    struct batch_limits limits;
    struct batch_arrays host, on_device;
    int64_t groups, completions, tokens, scored, spans, tiles, longest; /* G S N T */
    int64_t *group;                                                     /* [G] index in the groups file */
    int64_t *completion; /* [S] index in the groups file; -1: a prompt */
};

/* What any micro-batch of up to `micro` groups can need. Batches of every two limits fit the larger of both.
 */
struct batch_limits batch_measure(const struct groups *groups, int64_t micro, bool prompts);
struct batch_limits batch_limits_union(struct batch_limits a, struct batch_limits b);

/* Wishes for the device arrays; they are there after arena_place. */
void batch_open(struct batch *batch, struct arena *arena, struct batch_limits limits);
void batch_close(struct batch *batch);

/* Packs these groups and sends them to the device. */
void batch_pack(struct batch *batch, const struct groups *groups, const int64_t *members, int64_t count);

struct packing batch_packing(const struct batch *batch);

#endif
