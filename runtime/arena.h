/* Device memory by lifetime: wishes are measured first, then placed in one allocation. The table of wishes is
 * what a run prints, and what it says when the memory is not there. */
#ifndef WPO_RUNTIME_ARENA_H
#define WPO_RUNTIME_ARENA_H

#include "kernels/ops.h"
#include "runtime/status.h"

struct arena_wish {
    const char *name; /* static storage; wishes of one name are one row of the table */
    size_t bytes;
    void **where;
};

struct arena {
    const struct ops *ops;
    struct device *device;
    struct arena_wish *wishes;
    int64_t count, capacity;
    void *memory;
    size_t bytes; /* of the whole, after arena_place */
};

void arena_open(struct arena *arena, const struct ops *ops, struct device *device);
void arena_close(struct arena *arena);

/* Asks for count * size bytes; *where is set by arena_place, 64-byte aligned. */
void arena_want(struct arena *arena, const char *name, void **where, int64_t count, size_t size);

/* Allocates and sets every pointer. The memory starts as NaN in every f32, so that what is read before it is
 * written shows. Without room: an error with the table's largest rows. */
enum status arena_place(struct arena *arena);

/* "parameters 512.3 MiB, gradients ..." in order of size; to be freed. */
char *arena_table(const struct arena *arena);

#endif
