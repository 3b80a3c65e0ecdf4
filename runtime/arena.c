#include "runtime/arena.h"

#include "kernels/require.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

void arena_open(struct arena *arena, const struct ops *ops, struct device *device)
{
    *arena = (struct arena){.ops = ops, .device = device};
}

void arena_close(struct arena *arena)
{
    if (arena->memory) arena->ops->free(arena->device, arena->memory);
    free(arena->wishes);
    *arena = (struct arena){0};
}

void arena_want(struct arena *arena, const char *name, void **where, int64_t count, size_t size)
{
    if (arena->count == arena->capacity) {
        arena->capacity = arena->capacity ? 2 * arena->capacity : 64;
        struct arena_wish *larger = realloc(arena->wishes, (size_t)arena->capacity * sizeof *larger);
        REQUIRE(larger, "out of memory for a table of %lld entries", (long long)arena->capacity);
        arena->wishes = larger;
    }
    size_t bytes, rounded;
    REQUIRE(count >= 0 && !__builtin_mul_overflow((size_t)count, size, &bytes) &&
                !__builtin_add_overflow(bytes, (size_t)ALIGNMENT - 1, &rounded),
            "the size of %s overflows", name);
    arena->wishes[arena->count++] = (struct arena_wish){name, rounded / ALIGNMENT * ALIGNMENT, where};
}

enum status arena_place(struct arena *arena)
{
    REQUIRE(!arena->memory, "an arena is placed twice");
    size_t total = 0;
    for (int64_t i = 0; i < arena->count; i++)
        REQUIRE(!__builtin_add_overflow(total, arena->wishes[i].bytes, &total), "the memory plan overflows");
    arena->memory = arena->ops->alloc(arena->device, total ? total : ALIGNMENT);
    if (!arena->memory) {
        char *table = arena_table(arena);
        enum status status =
            fail("%.1f MiB of memory were asked for and are not there (%s); lower "
                 "per_device_train_batch_size or logits_megabytes, set gradient_checkpointing: true, "
                 "or use more ranks",
                 (double)total / 0x1p20, table);
        free(table);
        return status;
    }
    arena->bytes = total;
    char *next = arena->memory;
    for (int64_t i = 0; i < arena->count; i++) {
        *arena->wishes[i].where = next;
        next += arena->wishes[i].bytes;
    }
    arena->ops->poison(arena->device, arena->memory, total);
    return STATUS_OK;
}

static int larger_first(const void *a, const void *b)
{
    size_t x = ((const struct arena_wish *)a)->bytes, y = ((const struct arena_wish *)b)->bytes;
    return (x < y) - (x > y);
}

char *arena_table(const struct arena *arena)
{
    struct arena_wish *rows = allocate(arena->count, sizeof *rows);
    int64_t count = 0;
    for (int64_t i = 0; i < arena->count; i++) {
        int64_t row = 0;
        while (row < count && strcmp(rows[row].name, arena->wishes[i].name) != 0)
            row++;
        if (row == count) rows[count++] = (struct arena_wish){.name = arena->wishes[i].name};
        rows[row].bytes += arena->wishes[i].bytes;
    }
    qsort(rows, (size_t)count, sizeof *rows, larger_first);
    char *table = text_copy("");
    for (int64_t i = 0; i < count; i++) {
        if (i && (double)rows[i].bytes < 0.05 * 0x1p20) break; /* it and the rest would read 0.0 */
        char *longer = text_format("%s%s%s %.1f MiB", table, i ? ", " : "", rows[i].name,
                                   (double)rows[i].bytes / 0x1p20);
        free(table);
        table = longer;
    }
    free(rows);
    return table;
}
