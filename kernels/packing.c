#include "kernels/packing.h"

#include <stdbool.h>
#include <stdlib.h>

int64_t packing_tiles_room(int64_t tokens, int64_t spans)
{
    return tokens / PACKING_TILE + spans;
}

/* Keys that the last query of a tile sees: the work is about this many times its rows. */
static int64_t keys_of(const struct packing_tile *tile, const struct span *spans)
{
    const struct span *span = &spans[tile->span];
    int64_t end = tile->first + PACKING_TILE;
    return span->prefix_count + (end < span->count ? end : span->count);
}

int64_t packing_cut(struct packing_tile *tiles, const struct span *spans, const int64_t *group_spans,
                    int64_t group_count)
{
    int64_t count = 0;
    for (int64_t g = 0; g < group_count; g++)
        for (int64_t s = group_spans[g]; s < group_spans[g + 1]; s++)
            for (int64_t first = 0; first < spans[s].count; first += PACKING_TILE)
                tiles[count++] =
                    (struct packing_tile){.span = (int32_t)s, .group = (int32_t)g, .first = (int32_t)first};
    /* Heaviest first, by a stable merge of halves: the order must not depend on a library's sort. */
    struct packing_tile *other = malloc((size_t)(count ? count : 1) * sizeof *other);
    if (!other) return count; /* only the balance is lost */
    for (int64_t width = 1; width < count; width *= 2) {
        for (int64_t low = 0; low < count; low += 2 * width) {
            int64_t middle = low + width < count ? low + width : count;
            int64_t high = low + 2 * width < count ? low + 2 * width : count;
            for (int64_t i = low, j = middle, k = low; k < high; k++) {
                bool left =
                    j >= high || (i < middle && keys_of(&tiles[i], spans) >= keys_of(&tiles[j], spans));
                other[k] = left ? tiles[i++] : tiles[j++];
            }
        }
        for (int64_t k = 0; k < count; k++)
            tiles[k] = other[k];
    }
    free(other);
    return count;
}
