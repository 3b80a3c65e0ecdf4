/* Tiles of a packing: every row of every span once, the heaviest first, whatever the spans. */
#include "kernels/packing.h"
#include "tests/check.h"

enum { MOST_SPANS = 40, MOST_TILES = 400 };

struct plan {
    struct span spans[MOST_SPANS];
    int64_t group_spans[MOST_SPANS + 1], groups, tokens;
};

static int64_t span_count(const struct plan *plan)
{
    return plan->group_spans[plan->groups];
}

static void add_span(struct plan *plan, int64_t count, int64_t prefix_start, int64_t prefix_count)
{
    plan->spans[plan->group_spans[plan->groups + 1]++] =
        (struct span){plan->tokens, count, prefix_start, prefix_count, prefix_count};
    plan->tokens += count;
}

/* A prompt and its completions; counts end with -1. */
static void add_group(struct plan *plan, int64_t prompt, const int64_t *completions)
{
    int64_t start = plan->tokens;
    plan->group_spans[plan->groups + 1] = plan->group_spans[plan->groups];
    add_span(plan, prompt, 0, 0);
    for (; *completions >= 0; completions++)
        add_span(plan, *completions, start, prompt);
    plan->groups++;
}

static int64_t keys_seen(const struct plan *plan, const struct packing_tile *tile)
{
    const struct span *span = &plan->spans[tile->span];
    int64_t end = tile->first + PACKING_TILE < span->count ? tile->first + PACKING_TILE : span->count;
    return span->prefix_count + end;
}

/* Every tile stands for rows of its span and group; each row is in one tile; none is heavier than the one
 * before, and of equals the earlier rows come first. */
static bool holds(const struct plan *plan, const struct packing_tile *tiles, int64_t count)
{
    static unsigned char seen[MOST_TILES * PACKING_TILE];
    memset(seen, 0, sizeof seen);
    for (int64_t i = 0; i < count; i++) {
        const struct packing_tile *t = &tiles[i];
        if (t->span < 0 || t->span >= span_count(plan) || t->first < 0 || t->first % PACKING_TILE)
            return false;
        if (t->span < plan->group_spans[t->group] || t->span >= plan->group_spans[t->group + 1]) return false;
        const struct span *span = &plan->spans[t->span];
        if (t->first >= span->count) return false;
        for (int64_t r = t->first; r < t->first + PACKING_TILE && r < span->count; r++)
            if (seen[span->start + r]++) return false;
        if (i == 0) continue;
        int64_t before = keys_seen(plan, t - 1), now = keys_seen(plan, t);
        if (before < now) return false;
        if (before == now && (t[-1].span > t->span || (t[-1].span == t->span && t[-1].first >= t->first)))
            return false;
    }
    for (int64_t r = 0; r < plan->tokens; r++)
        if (!seen[r]) return false;
    return true;
}

static void try_plan(const struct plan *plan)
{
    struct packing_tile tiles[MOST_TILES];
    int64_t room = packing_tiles_room(plan->tokens, span_count(plan));
    CHECK(room < MOST_TILES);
    memset(tiles, 0x7f, sizeof tiles);
    int64_t count = packing_cut(tiles, plan->spans, plan->group_spans, plan->groups);
    CHECK(count <= room);
    CHECK(tiles[count].span == 0x7f7f7f7f); /* nothing is written behind the last */
    CHECK(holds(plan, tiles, count));
    if (count < 2) return;
    CHECK(!holds(plan, tiles, count - 1)); /* negative controls: one missing, one twice, two exchanged */
    struct packing_tile keep = tiles[0];
    tiles[0] = tiles[1];
    CHECK(!holds(plan, tiles, count));
    tiles[1] = keep;
    CHECK(!holds(plan, tiles, count));
}

#define GROUP(plan, prompt, ...) add_group(plan, prompt, (const int64_t[]){__VA_ARGS__, -1})

static void known_plan(void)
{
    struct plan plan = {0};
    GROUP(&plan, 130, 300, 1);
    GROUP(&plan, 128, 0, 129);
    try_plan(&plan);
    struct packing_tile tiles[16];
    int64_t count = packing_cut(tiles, plan.spans, plan.group_spans, plan.groups);
    /* keys: span 0 has 128, 130; 1 has 258, 386, 430; 2 has 131; 3 has 128; 4 nothing; 5 has 256, 257 */
    static const int32_t want[][3] = {{1, 0, 256}, {1, 0, 128}, {1, 0, 0}, {5, 1, 128}, {5, 1, 0},
                                      {2, 0, 0},   {0, 0, 128}, {0, 0, 0}, {3, 1, 0}};
    CHECK(count == 9);
    for (int i = 0; i < 9; i++)
        CHECK(tiles[i].span == want[i][0] && tiles[i].group == want[i][1] && tiles[i].first == want[i][2]);
}

int main(void)
{
    struct plan empty = {0};
    try_plan(&empty);
    known_plan();
    unsigned long long state = 1;
    for (int round = 0; round < 200; round++) {
        struct plan plan = {0};
        while (plan.groups < 1 + round % 9) {
            int64_t counts[4];
            int64_t completions = (int64_t)((check_uniform(&state) + 1) * 2); /* 0 .. 3 */
            for (int64_t i = 0; i < completions; i++)
                counts[i] = (int64_t)(exp2(4.5 * (check_uniform(&state) + 1))) - 1; /* 0 .. 511 */
            counts[completions] = -1;
            add_group(&plan, (int64_t)(exp2(4.5 * (check_uniform(&state) + 1))), counts);
        }
        try_plan(&plan);
    }
    return check_result();
}
