#include "runtime/batch.h"

#include "kernels/require.h"
#include "runtime/order.h"

#include <stdlib.h>
#include <string.h>

static int64_t maximum(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int descending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* The sum of the `count` largest values: no choice of groups needs more. Sorts. */
static int64_t sum_of_largest(int64_t *values, int64_t length, int64_t count)
{
    qsort(values, (size_t)length, sizeof *values, descending);
    int64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += values[i];
    return sum;
}

struct batch_limits batch_measure(const struct groups *groups, int64_t micro, bool prompts)
{
    int64_t all = groups->group_count, count = micro < all ? micro : all;
    struct batch_limits limits = {.groups = count, .prompts = prompts};
    int64_t *packed = allocate(all, sizeof *packed), *scored = allocate(all, sizeof *scored);
    int64_t *completions = allocate(all, sizeof *completions);
    for (int64_t g = 0; g < all; g++) {
        packed[g] = group_packed_tokens(groups, g);
        scored[g] = group_scored_tokens(groups, g);
        completions[g] = groups->first[g + 1] - groups->first[g];
        int64_t prompt = groups->prompt_offset[g + 1] - groups->prompt_offset[g];
        if (prompts) scored[g] += prompt - 1;
        if (prompts) completions[g]++;
        for (int64_t s = groups->first[g]; s < groups->first[g + 1]; s++)
            limits.longest = maximum(limits.longest, prompt + groups->completion_offset[s + 1] -
                                                         groups->completion_offset[s]);
    }
    limits.tokens = sum_of_largest(packed, all, count);
    limits.scored = sum_of_largest(scored, all, count);
    limits.group_scored = scored[0];
    limits.completions = sum_of_largest(completions, all, count);
    free(packed);
    free(scored);
    free(completions);
    return limits;
}

struct batch_limits batch_limits_union(struct batch_limits a, struct batch_limits b)
{
    return (struct batch_limits){
        .groups = maximum(a.groups, b.groups),
        .completions = maximum(a.completions, b.completions),
        .tokens = maximum(a.tokens, b.tokens),
        .scored = maximum(a.scored, b.scored),
        .longest = maximum(a.longest, b.longest),
        .group_scored = maximum(a.group_scored, b.group_scored),
        .prompts = a.prompts || b.prompts,
        .step_groups = maximum(a.step_groups, b.step_groups),
        .step_completions = maximum(a.step_completions, b.step_completions),
    };
}

void batch_open(struct batch *batch, struct arena *arena, struct batch_limits limits)
{
    *batch = (struct batch){.ops = arena->ops, .device = arena->device, .limits = limits};
    batch->group = allocate(limits.groups, sizeof(int64_t));
    batch->completion = allocate(limits.completions, sizeof(int64_t));
    struct {
        void **host, **device;
        int64_t count;
        size_t size;
    } arrays[] = {
        {(void **)&batch->host.id, (void **)&batch->on_device.id, limits.tokens, sizeof(int64_t)},
        {(void **)&batch->host.position, (void **)&batch->on_device.position, limits.tokens, sizeof(int64_t)},
        {(void **)&batch->host.span, (void **)&batch->on_device.span, limits.groups + limits.completions,
         sizeof(struct span)},
        {(void **)&batch->host.group_span, (void **)&batch->on_device.group_span, limits.groups + 1,
         sizeof(int64_t)},
        {(void **)&batch->host.tile, (void **)&batch->on_device.tile,
         packing_tiles_room(limits.tokens, limits.groups + limits.completions), sizeof(struct packing_tile)},
        {(void **)&batch->host.source, (void **)&batch->on_device.source, limits.scored, sizeof(int64_t)},
        {(void **)&batch->host.target, (void **)&batch->on_device.target, limits.scored, sizeof(int64_t)},
        {(void **)&batch->host.first, (void **)&batch->on_device.first, limits.completions + 1,
         sizeof(int64_t)},
        {(void **)&batch->host.shared, (void **)&batch->on_device.shared, limits.completions,
         sizeof(int64_t)},
        {(void **)&batch->host.segment, (void **)&batch->on_device.segment, limits.groups + 1,
         sizeof(int64_t)},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        *arrays[i].host = allocate(arrays[i].count, arrays[i].size);
        arena_want(arena, "batch", arrays[i].device, arrays[i].count, arrays[i].size);
    }
}

void batch_close(struct batch *batch)
{
    void *owned[] = {batch->host.id,     batch->host.position, batch->host.span,   batch->host.group_span,
                     batch->host.source, batch->host.target,   batch->host.first,  batch->group,
                     batch->host.tile,   batch->host.segment,  batch->host.shared, batch->completion};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    *batch = (struct batch){0};
}

/* Appends a run of tokens as a span; returns the row of its first token. */
static int64_t pack_span(struct batch *batch, const int32_t *tokens, int64_t count, struct span prefix)
{
    int64_t start = batch->tokens, position = prefix.prefix_count;
    REQUIRE(start + count <= batch->limits.tokens, "a batch is larger than was measured");
    for (int64_t i = 0; i < count; i++) {
        batch->host.id[start + i] = tokens[i];
        batch->host.position[start + i] = position + i;
    }
    prefix.start = start;
    prefix.count = count;
    prefix.position = position;
    batch->host.span[batch->spans++] = prefix;
    batch->tokens += count;
    return start;
}

static void end_segment(struct batch *batch, int64_t completion, int64_t scored)
{
    REQUIRE(batch->completions < batch->limits.completions && batch->scored + scored <= batch->limits.scored,
            "a batch is larger than was measured");
    batch->completion[batch->completions] = completion;
    batch->host.shared[batch->completions++] = scored;
    batch->scored += scored;
    batch->host.first[batch->completions] = batch->scored;
}

static void pack_completion(struct batch *batch, const struct groups *groups, int64_t s, struct span prompt)
{
    const int32_t *tokens = groups->completion_tokens + groups->completion_offset[s];
    int64_t count = groups->completion_offset[s + 1] - groups->completion_offset[s];
    int64_t start = pack_span(batch, tokens, count - 1,
                              (struct span){.prefix_start = prompt.start, .prefix_count = prompt.count});
    for (int64_t i = 0; i < count; i++) {
        batch->host.source[batch->scored + i] = i ? start + i - 1 : prompt.start + prompt.count - 1;
        batch->host.target[batch->scored + i] = tokens[i];
    }
    batch->longest = maximum(batch->longest, prompt.count + count);
    end_segment(batch, s, count);
}

/* Of a pair's two completions, the tokens that both have; a third one is none of the pair. */
static void mark_shared(struct batch *batch, int64_t begin, int64_t completions)
{
    int64_t *shared = batch->host.shared + begin;
    if (completions < 2) return;
    shared[0] = shared[1] = shared[0] < shared[1] ? shared[0] : shared[1];
}

static void score_prompt(struct batch *batch, struct span prompt)
{
    for (int64_t i = 0; i + 1 < prompt.count; i++) {
        batch->host.source[batch->scored + i] = prompt.start + i;
        batch->host.target[batch->scored + i] = batch->host.id[prompt.start + i + 1];
    }
    end_segment(batch, -1, prompt.count - 1);
}

void batch_pack(struct batch *batch, const struct groups *groups, const int64_t *members, int64_t count)
{
    REQUIRE(count <= batch->limits.groups, "a batch has more groups than was measured");
    batch->groups = batch->completions = batch->tokens = batch->scored = batch->spans = batch->longest = 0;
    batch->host.first[0] = batch->host.group_span[0] = batch->host.segment[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t g = members[i], offset = groups->prompt_offset[g];
        pack_span(batch, groups->prompt_tokens + offset, groups->prompt_offset[g + 1] - offset,
                  (struct span){0});
        struct span prompt = batch->host.span[batch->spans - 1];
        for (int64_t s = groups->first[g]; s < groups->first[g + 1]; s++)
            pack_completion(batch, groups, s, prompt);
        mark_shared(batch, batch->host.segment[batch->groups], groups->first[g + 1] - groups->first[g]);
        if (batch->limits.prompts) score_prompt(batch, prompt);
        batch->group[batch->groups++] = g;
        batch->host.group_span[batch->groups] = batch->spans;
        batch->host.segment[batch->groups] = batch->completions;
    }
    batch->tiles = packing_cut(batch->host.tile, batch->host.span, batch->host.group_span, batch->groups);
    struct {
        void *to;
        const void *from;
        size_t bytes;
    } copies[] = {
        {batch->on_device.id, batch->host.id, (size_t)batch->tokens * sizeof(int64_t)},
        {batch->on_device.position, batch->host.position, (size_t)batch->tokens * sizeof(int64_t)},
        {batch->on_device.span, batch->host.span, (size_t)batch->spans * sizeof(struct span)},
        {batch->on_device.group_span, batch->host.group_span, (size_t)(batch->groups + 1) * sizeof(int64_t)},
        {batch->on_device.tile, batch->host.tile, (size_t)batch->tiles * sizeof(struct packing_tile)},
        {batch->on_device.source, batch->host.source, (size_t)batch->scored * sizeof(int64_t)},
        {batch->on_device.target, batch->host.target, (size_t)batch->scored * sizeof(int64_t)},
        {batch->on_device.first, batch->host.first, (size_t)(batch->completions + 1) * sizeof(int64_t)},
        {batch->on_device.shared, batch->host.shared, (size_t)batch->completions * sizeof(int64_t)},
        {batch->on_device.segment, batch->host.segment, (size_t)(batch->groups + 1) * sizeof(int64_t)},
    };
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++)
        batch->ops->upload(batch->device, copies[i].to, copies[i].from, copies[i].bytes);
}

struct packing batch_packing(const struct batch *batch)
{
    return (struct packing){.spans = batch->on_device.span,
                            .group_spans = batch->on_device.group_span,
                            .tiles = batch->on_device.tile,
                            .tile_count = batch->tiles,
                            .span_count = batch->spans,
                            .group_count = batch->groups,
                            .longest = batch->longest};
}
