/* Where the groups of a packed batch stand, for the attention of every backend. */
#ifndef WPO_KERNELS_PACKING_H
#define WPO_KERNELS_PACKING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One run of tokens that attend to each other causally, and before that to the whole of a prefix run.
 * A prompt is a span without prefix; its completions are spans whose prefix is the prompt. Token i of the
 * span stands at position `position + i`, the prefix begins at position 0. */
struct span {
    int64_t start, count;
    int64_t prefix_start, prefix_count;
    int64_t position;
};

/* A piece of work for a kernel: rows first .. first + PACKING_TILE - 1 of a span, fewer at its end. */
enum { PACKING_TILE = 128 };
struct packing_tile {
    int32_t span, group; /* the group that the span belongs to */
    int32_t first;       /* within the span */
    int32_t spare;
};

/* All pointers are device memory (which is host memory for `cpu`). */
struct packing {
    const struct span *spans;
    const int64_t *group_spans; /* [groups + 1]: spans of group g are group_spans[g] .. group_spans[g+1]-1 */
    const struct packing_tile *tiles;
    int64_t span_count, group_count, tile_count;
    int64_t longest; /* tokens in the longest span plus its prefix */
};

/* Cuts spans (host memory) into tiles, those with most keys first so that the last to run are short; ties in
 * order of spans. tiles (out) has room for packing_tiles_room() entries; returns how many there are. */
int64_t packing_cut(struct packing_tile *tiles, const struct span *spans, const int64_t *group_spans,
                    int64_t group_count);
/* Tiles that any packing of `tokens` tokens in `spans` spans needs at most. */
int64_t packing_tiles_room(int64_t tokens, int64_t spans);

#ifdef __cplusplus
}
#endif

#endif
