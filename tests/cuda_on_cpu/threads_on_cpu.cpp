/* The threads of a block, one fiber each, and what they do together: barriers and the collectives of a warp.
 *
 * A turn is one pass over the runnable lanes of one warp, in drawn order: each runs until it waits for others
 * or returns, and then switches straight to the next. After a turn either the same warp goes on, and so runs
 * ahead of the others as far as barriers let it, or another is drawn; which of the two is more likely is
 * drawn for each block. A missing barrier shows when one warp is far ahead, a missing __syncwarp when lanes
 * run in another order. */
#include "emulator.h"
#include "fibers.h"
#include "kernels/require.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

/* Lanes that wait for each other in one collective. */
struct gathering {
    const struct cuda_on_cpu_operation *operation;
    const char *file;
    int line;
    uint32_t mask, arrived;
};

struct warp {
    uint32_t exists, ready, done;
    int open_count;
    struct gathering open[LANES];
    void *arguments[LANES];
};

struct cuda_on_cpu_thread *cuda_on_cpu_here;
struct uint3 blockIdx;
struct dim3 blockDim, gridDim;

static struct cuda_on_cpu_thread threads[MOST_THREADS];
static struct fiber fibers[MOST_THREADS], host;
static struct warp warps[MOST_WARPS];

static struct {
    const char *kernel;
    void (*body)(void *);
    void *argument;
    unsigned threads, alive;
    uint32_t runnable; /* warps with a ready lane, as far as known */
    int linger;        /* of 16 turns, how many stay with the warp */
    struct gathering barrier;
    unsigned waiting; /* threads at the barrier */
    int votes;
    struct cuda_on_cpu_votes result;
} block;

/* The turn: lanes of `warp` that were ready when it began, in the order (i * step + first) mod 32. */
static struct {
    unsigned warp, i, step, first;
    uint32_t lanes;
    bool leave; /* the next turn is any warp's */
} turn;

uint64_t draw()
{
    static uint64_t state;
    if (state == 0) {
        const char *seed = getenv("CUDA_ON_CPU_SEED");
        state = (seed && *seed ? strtoull(seed, NULL, 10) : 1) * 0x9e3779b97f4a7c15u | 1;
    }
    state ^= state << 13; /* xorshift64, Marsaglia 2003 */
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1du >> 32;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void cuda_on_cpu_fail(const char *format, ...)
{
    char reason[512], where[256] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    if (cuda_on_cpu_here)
        snprintf(where, sizeof where, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): ", block.kernel,
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    else if (block.kernel)
        snprintf(where, sizeof where, "kernel %s: ", block.kernel);
    fatal(__FILE__, __LINE__, "CUDA on the CPU: %s%s", where, reason);
}

/* -- turns ------------------------------------------------------------------------------------- */

/* The barriers of some warps: who has come to each and who of them waits, by warp, since it last opened. */
static struct named_barrier {
    unsigned came, threads;
    uint32_t arrived[MOST_WARPS], waiting[MOST_WARPS];
    const char *name, *file;
    int line;
} named[16];

/* If threads wait at the barrier of some warps. */
static void fail_named_deadlock()
{
    for (int i = 0; i < 16; i++)
        if (named[i].came > 0)
            cuda_on_cpu_fail(
                "nothing can go on: %u of %u threads have come to %s at %s:%d, barrier %d, and %u "
                "threads wait at the barrier of the block",
                named[i].came, named[i].threads, named[i].name, base_name(named[i].file), named[i].line, i,
                block.waiting);
}

[[noreturn]] static void fail_deadlock()
{
    for (unsigned w = 0; w * LANES < block.threads; w++)
        if (warps[w].open_count > 0) {
            const struct gathering &g = warps[w].open[0];
            cuda_on_cpu_here = &threads[w * LANES + (unsigned)__builtin_ctz(g.arrived)];
            cuda_on_cpu_fail(
                "nothing can go on: lanes %08x of warp %u wait in %s at %s:%d for lanes %08x, and %u "
                "threads wait at a barrier",
                g.arrived, w, g.operation->name, base_name(g.file), g.line, g.mask & ~g.arrived,
                block.waiting);
        }
    fail_named_deadlock();
    cuda_on_cpu_fail("nothing can go on: %u threads of %u wait at the barrier at %s:%d", block.waiting,
                     block.threads, base_name(block.barrier.file), block.barrier.line);
}

static void start_turn()
{
    uint64_t number = draw();
    bool stay = !turn.leave && warps[turn.warp].ready && (int)(number & 15) < block.linger;
    turn.leave = false;
    if (!stay) {
        uint32_t runnable = block.runnable;
        uint64_t warp_count = (block.threads + LANES - 1) / LANES;
        for (;;) {
            if (runnable == 0) fail_deadlock();
            unsigned turned = (unsigned)((number >> 19) * warp_count >> 13); /* the upper 13 of 32 bits */
            uint32_t rotated = turned ? runnable >> turned | runnable << (32 - turned) : runnable;
            turn.warp = ((unsigned)__builtin_ctz(rotated) + turned) & 31;
            if (warps[turn.warp].ready) break;
            runnable &= ~(1u << turn.warp);
        }
        block.runnable = runnable;
    }
    turn.i = 0;
    turn.step = (unsigned)(number >> 9 & 31) | 1;
    turn.first = (unsigned)(number >> 14 & 31);
    turn.lanes = warps[turn.warp].ready;
}

/* The thread that runs has to wait, or has returned: on to the next. */
static void pass_on(bool ending)
{
    struct fiber *from = &fibers[cuda_on_cpu_here->number];
    while (turn.lanes == 0)
        start_turn();
    unsigned lane;
    do
        lane = (turn.i++ * turn.step + turn.first) & 31;
    while (!(turn.lanes >> lane & 1));
    turn.lanes &= ~(1u << lane);
    unsigned next = turn.warp * LANES + lane;
    cuda_on_cpu_here = &threads[next];
    if (from != &fibers[next]) fiber_switch(from, &fibers[next], ending);
}

static void finish_thread()
{
    struct warp *w = &warps[cuda_on_cpu_here->warp];
    uint32_t bit = 1u << cuda_on_cpu_here->lane;
    for (int i = 0; i < w->open_count; i++)
        if (w->open[i].mask & bit)
            cuda_on_cpu_fail("returns while lanes %08x of its warp wait for it in %s at %s:%d",
                             w->open[i].arrived, w->open[i].operation->name, base_name(w->open[i].file),
                             w->open[i].line);
    if (block.waiting > 0)
        cuda_on_cpu_fail("returns while %u of %u threads wait for it at the %s at %s:%d", block.waiting,
                         block.threads, block.barrier.operation->name, base_name(block.barrier.file),
                         block.barrier.line);
    w->ready &= ~bit;
    w->done |= bit;
    copies_forget(cuda_on_cpu_here->number);
}

/* Where every fiber begins; it never returns. */
void fiber_main()
{
    block.body(block.argument);
    finish_thread();
    if (--block.alive > 0) pass_on(true);
    struct fiber *from = &fibers[cuda_on_cpu_here->number];
    fiber_switch(from, &host, true);
    abort();
}

/* -- barriers and collectives ------------------------------------------------------------------- */

struct cuda_on_cpu_votes cuda_on_cpu_barrier(int vote, const char *name, const char *file, int line)
{
    static struct cuda_on_cpu_operation operation;
    if (!cuda_on_cpu_here) cuda_on_cpu_fail("%s outside a kernel", name);
    if (block.alive < block.threads)
        cuda_on_cpu_fail("waits at the %s at %s:%d, but %u of the block's %u threads have returned", name,
                         base_name(file), line, block.threads - block.alive, block.threads);
    if (block.waiting == 0) {
        operation.name = name;
        block.barrier = {&operation, file, line, 0, 0};
        block.votes = 0;
    } else if (block.barrier.line != line ||
               (block.barrier.file != file && strcmp(block.barrier.file, file) != 0))
        cuda_on_cpu_fail("comes to the %s at %s:%d while %u threads wait at the %s at %s:%d", name,
                         base_name(file), line, block.waiting, operation.name, base_name(block.barrier.file),
                         block.barrier.line);
    block.votes += vote;
    struct warp *w = &warps[cuda_on_cpu_here->warp];
    w->ready &= ~(1u << cuda_on_cpu_here->lane);
    if (++block.waiting == block.threads) {
        block.waiting = 0;
        block.result = {block.votes, (int)block.threads};
        for (unsigned i = 0; i * LANES < block.threads; i++) {
            warps[i].ready = warps[i].exists;
            block.runnable |= 1u << i;
        }
        turn.lanes = 0;
    }
    pass_on(false);
    return block.result;
}

static void require_named(const struct named_barrier &b, int id, int count, const char *name,
                          const char *file, int line)
{
    if (id < 1 || id > 15 || count < LANES || count % LANES || (unsigned)count > block.threads)
        cuda_on_cpu_fail("%s at %s:%d of barrier %d for %d threads: ids are 1 to 15, and whole warps of the "
                         "block take part",
                         name, base_name(file), line, id, count);
    if (b.came > 0 && b.threads != (unsigned)count)
        cuda_on_cpu_fail("%s at %s:%d of barrier %d for %d threads, while %u wait for %u in %s at %s:%d",
                         name, base_name(file), line, id, count, b.came, b.threads, b.name, base_name(b.file),
                         b.line);
    if (b.arrived[cuda_on_cpu_here->warp] >> cuda_on_cpu_here->lane & 1)
        cuda_on_cpu_fail("%s at %s:%d of barrier %d a second time, while %u of %u threads have come", name,
                         base_name(file), line, id, b.came, b.threads);
}

/* The last thread has come: who waits goes on. */
static void open_named(struct named_barrier &b)
{
    b.came = 0;
    for (unsigned i = 0; i * LANES < block.threads; i++) {
        warps[i].ready |= b.waiting[i];
        if (b.waiting[i]) block.runnable |= 1u << i;
        b.arrived[i] = b.waiting[i] = 0;
    }
}

static void run_nothing(void **, uint32_t) {}

void cuda_on_cpu_named_barrier(int id, int count, bool wait, const char *file, int line)
{
    static struct cuda_on_cpu_operation arrive = {"barrier_arrive", run_nothing},
                                        sync = {"barrier_wait", run_nothing};
    const struct cuda_on_cpu_operation *operation = wait ? &sync : &arrive;
    if (!cuda_on_cpu_here) cuda_on_cpu_fail("%s outside a kernel", operation->name);
    cuda_on_cpu_together(operation, 0xffffffffu, NULL, file, line); /* a warp comes as one */
    struct named_barrier &b = named[id & 15];
    require_named(b, id, count, operation->name, file, line);
    if (b.came == 0) {
        b.threads = (unsigned)count;
        b.name = operation->name;
        b.file = file;
        b.line = line;
    }
    struct warp *w = &warps[cuda_on_cpu_here->warp];
    uint32_t bit = 1u << cuda_on_cpu_here->lane;
    b.arrived[cuda_on_cpu_here->warp] |= bit;
    if (wait) {
        b.waiting[cuda_on_cpu_here->warp] |= bit;
        w->ready &= ~bit;
    }
    if (++b.came == b.threads) open_named(b);
    turn.leave = true; /* also where it need not wait: what it does next may come late */
    pass_on(false);
}

/* After a block: all barriers must have opened. */
static void check_named()
{
    for (int i = 0; i < 16; i++)
        if (named[i].came > 0)
            cuda_on_cpu_fail("the block has ended with %u of %u threads in %s at %s:%d, barrier %d",
                             named[i].came, named[i].threads, named[i].name, base_name(named[i].file),
                             named[i].line, i);
}

[[noreturn]] static void fail_mask(const struct warp *w, const char *name, uint32_t mask, const char *file,
                                   int line)
{
    uint32_t self = 1u << cuda_on_cpu_here->lane;
    if (!(mask & self))
        cuda_on_cpu_fail("lane %u calls %s at %s:%d with mask %08x, in which it is not",
                         cuda_on_cpu_here->lane, name, base_name(file), line, mask);
    if (mask & ~w->exists)
        cuda_on_cpu_fail("%s at %s:%d with mask %08x, but the warp has lanes %08x alone", name,
                         base_name(file), line, mask, w->exists);
    cuda_on_cpu_fail("%s at %s:%d with mask %08x, but lanes %08x have returned", name, base_name(file), line,
                     mask, w->done & mask);
}

/* The collective that this lane joins, which others may have opened. */
static struct gathering *join(struct warp *w, const struct cuda_on_cpu_operation *operation, uint32_t mask,
                              const char *file, int line)
{
    for (int i = 0; i < w->open_count; i++) {
        struct gathering *g = &w->open[i];
        if (!(g->mask & mask)) continue;
        if (g->mask == mask && g->operation == operation && g->line == line &&
            (g->file == file || strcmp(g->file, file) == 0))
            return g;
        cuda_on_cpu_fail("%s at %s:%d with mask %08x, while lanes %08x wait in %s at %s:%d with mask %08x",
                         operation->name, base_name(file), line, mask, g->arrived, g->operation->name,
                         base_name(g->file), g->line, g->mask);
    }
    w->open[w->open_count] = {operation, file, line, mask, 0};
    return &w->open[w->open_count++];
}

void cuda_on_cpu_together(const struct cuda_on_cpu_operation *operation, uint32_t mask, void *argument,
                          const char *file, int line)
{
    if (!cuda_on_cpu_here) cuda_on_cpu_fail("%s outside a kernel", operation->name);
    struct warp *w = &warps[cuda_on_cpu_here->warp];
    unsigned lane = cuda_on_cpu_here->lane;
    if (!(mask >> lane & 1) || mask & (~w->exists | w->done)) fail_mask(w, operation->name, mask, file, line);
    struct gathering *g = join(w, operation, mask, file, line);
    w->arguments[lane] = argument;
    w->ready &= ~(1u << lane);
    g->arrived |= 1u << lane;
    if (g->arrived == mask) {
        operation->run(w->arguments, mask);
        *g = w->open[--w->open_count];
        w->ready |= mask;
        block.runnable |= 1u << cuda_on_cpu_here->warp;
    }
    pass_on(false);
}

void cuda_on_cpu_require_width(int width)
{
    if (width < 1 || width > LANES || (width & (width - 1)))
        cuda_on_cpu_fail("a shuffle of width %d: it must be a power of two up to 32", width);
}

void cuda_on_cpu_run_shuffle(void **arguments, uint32_t mask)
{
    for (uint32_t left = mask; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        struct cuda_on_cpu_shuffle *s = (struct cuda_on_cpu_shuffle *)arguments[lane];
        if (!(mask >> s->source & 1))
            cuda_on_cpu_fail("in a shuffle with mask %08x lane %d reads lane %d, which takes no part", mask,
                             lane, s->source);
        s->result = ((struct cuda_on_cpu_shuffle *)arguments[s->source])->value;
    }
}

void cuda_on_cpu_run_ballot(void **arguments, uint32_t mask)
{
    uint32_t lanes = 0;
    for (uint32_t left = mask; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        if (((struct cuda_on_cpu_vote *)arguments[lane])->value) lanes |= 1u << lane;
    }
    for (uint32_t left = mask; left; left &= left - 1)
        ((struct cuda_on_cpu_vote *)arguments[__builtin_ctz(left)])->lanes = lanes;
}

void cuda_on_cpu_run_match(void **arguments, uint32_t mask)
{
    for (uint32_t left = mask; left; left &= left - 1) {
        struct cuda_on_cpu_vote *mine = (struct cuda_on_cpu_vote *)arguments[__builtin_ctz(left)];
        mine->lanes = 0;
        for (uint32_t other = mask; other; other &= other - 1) {
            int lane = __builtin_ctz(other);
            if (((struct cuda_on_cpu_vote *)arguments[lane])->value == mine->value) mine->lanes |= 1u << lane;
        }
    }
}

template <class T, class FUNCTION> static void reduce(void **arguments, uint32_t mask, FUNCTION combine)
{
    T result = 0;
    bool first = true;
    for (uint32_t left = mask; left; left &= left - 1) {
        T value = (T)((struct cuda_on_cpu_reduction *)arguments[__builtin_ctz(left)])->value;
        result = first ? value : combine(result, value);
        first = false;
    }
    for (uint32_t left = mask; left; left &= left - 1)
        ((struct cuda_on_cpu_reduction *)arguments[__builtin_ctz(left)])->result = (uint32_t)result;
}

void cuda_on_cpu_run_add(void **arguments, uint32_t mask)
{
    reduce<uint32_t>(arguments, mask, [](uint32_t a, uint32_t b) { return a + b; });
}

void cuda_on_cpu_run_min(void **arguments, uint32_t mask)
{
    reduce<uint32_t>(arguments, mask, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}

void cuda_on_cpu_run_max(void **arguments, uint32_t mask)
{
    reduce<uint32_t>(arguments, mask, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}

void cuda_on_cpu_run_min_signed(void **arguments, uint32_t mask)
{
    reduce<int32_t>(arguments, mask, [](int32_t a, int32_t b) { return a < b ? a : b; });
}

void cuda_on_cpu_run_max_signed(void **arguments, uint32_t mask)
{
    reduce<int32_t>(arguments, mask, [](int32_t a, int32_t b) { return a > b ? a : b; });
}

/* -- launches ------------------------------------------------------------------------------------ */

static void require_launch(const void *function, struct dim3 grid, struct dim3 shape, size_t shared_bytes)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        cuda_on_cpu_fail("a grid of (%u,%u,%u) blocks cannot be launched", grid.x, grid.y, grid.z);
    size_t count = (size_t)shape.x * shape.y * shape.z;
    if (count == 0 || shape.x > MOST_THREADS || shape.y > MOST_THREADS || shape.z > 64 ||
        count > MOST_THREADS)
        cuda_on_cpu_fail("a block of (%u,%u,%u) threads cannot be launched", shape.x, shape.y, shape.z);
    if (shared_bytes > shared_limit())
        cuda_on_cpu_fail("%zu bytes of dynamic shared memory, and the device has %zu", shared_bytes,
                         shared_limit());
    if (shared_bytes > shared_allowed(function))
        cuda_on_cpu_fail("%zu bytes of dynamic shared memory, and cudaFuncSetAttribute allowed %zu",
                         shared_bytes, shared_allowed(function));
}

static void run_block(struct dim3 shape)
{
    shared_fill();
    block.alive = block.threads;
    block.waiting = 0;
    static const int lingers[] = {0, 8, 16};
    block.linger = lingers[draw() % 3];
    block.runnable = 0;
    for (unsigned w = 0; w * LANES < block.threads; w++) {
        unsigned left = block.threads - w * LANES;
        warps[w].exists = warps[w].ready = left >= LANES ? 0xffffffffu : (1u << left) - 1;
        warps[w].done = 0;
        warps[w].open_count = 0;
        block.runnable |= 1u << w;
    }
    for (unsigned t = 0; t < block.threads; t++) {
        threads[t].index = {t % shape.x, t / shape.x % shape.y, t / shape.x / shape.y};
        threads[t].number = t;
        threads[t].lane = t % LANES;
        threads[t].warp = t / LANES;
        fiber_start(&fibers[t]);
    }
    turn.warp = (unsigned)(draw() % ((block.threads + LANES - 1) / LANES));
    turn.lanes = 0;
    turn.leave = false;
    start_turn();
    unsigned lane = (unsigned)__builtin_ctz(turn.lanes);
    turn.lanes &= ~(1u << lane);
    cuda_on_cpu_here = &threads[turn.warp * LANES + lane];
    fiber_switch(&host, &fibers[cuda_on_cpu_here->number], false);
    shared_check();
    cuda_on_cpu_here = NULL;
    check_named();
}

void cuda_on_cpu_run(const char *kernel, const void *function, struct dim3 grid, struct dim3 shape,
                     size_t shared_bytes, cudaStream_t, void (*body)(void *), void *argument)
{
    if (cuda_on_cpu_here) cuda_on_cpu_fail("launches %s", kernel);
    block.kernel = kernel;
    block.body = body;
    block.argument = argument;
    require_launch(function, grid, shape, shared_bytes);
    block.threads = shape.x * shape.y * shape.z;
    gridDim = grid;
    blockDim = shape;
    for (unsigned t = 0; t < block.threads; t++)
        fiber_create(&fibers[t], t);
    shared_open(shared_bytes);
    uint64_t count = (uint64_t)grid.x * grid.y * grid.z;
    static std::vector<uint32_t> order;
    order.resize((size_t)count);
    for (uint64_t i = 0; i < count; i++) { /* shuffled as it is filled: Durstenfeld, inside out */
        uint64_t j = draw() % (i + 1);
        order[i] = order[j];
        order[j] = (uint32_t)i;
    }
    for (uint32_t b : order) {
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block(shape);
    }
    shared_close();
    block.kernel = NULL;
}
