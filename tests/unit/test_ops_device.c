/* The device: its memory, its queues, what it says of itself. */
#include "tests/unit/oracle_lab.h"

static void try_memory(struct lab *lab)
{
    const struct ops *ops = lab->ops;
    static const size_t sizes[] = {1, 63, 64, 65, 4097};
    for (int s = 0; s < 5; s++) {
        size_t bytes = sizes[s];
        unsigned char host[4097], back[4097];
        for (size_t i = 0; i < bytes; i++)
            host[i] = (unsigned char)(i * 31 + 7);
        char *a = ops->alloc(lab->device, bytes), *b = ops->alloc(lab->device, bytes);
        CHECK(a && b && (uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0);
        ops->upload(lab->device, a, host, bytes);
        ops->zero(lab->device, b, bytes);
        ops->copy(lab->device, b, a, bytes - 1);
        ops->download(lab->device, back, b, bytes);
        CHECK(memcmp(back, host, bytes - 1) == 0 && back[bytes - 1] == 0);
        ops->download(lab->device, back, a, bytes);
        CHECK(memcmp(back, host, bytes) == 0);
        ops->free(lab->device, a);
        ops->free(lab->device, b);
    }
#ifndef __SANITIZE_ADDRESS__ /* which ends the program when so much is asked for */
    CHECK(ops->alloc(lab->device, (size_t)1 << 60) == NULL);
#endif
    ops->free(lab->device, NULL);
}

static void try_poison(struct lab *lab)
{
    float some[9];
    char *memory = lab->ops->alloc(lab->device, sizeof some);
    lab->ops->zero(lab->device, memory, sizeof some);
    lab->ops->poison(lab->device, memory, 7 * sizeof *some);
    lab->ops->download(lab->device, some, memory, sizeof some);
    for (int i = 0; i < 9; i++)
        CHECK(i < 7 ? isnan(some[i]) : some[i] == 0);
    lab->ops->free(lab->device, memory);
}

/* More than any memory through which a backend passes what it uploads, in pieces that follow each other at
 * once; and the host's memory changes as soon as upload() is back. */
static void try_uploads(struct lab *lab)
{
    enum { BYTES = (20 << 20) + 5, SMALL = 1021, PIECES = 300 };
    unsigned char *host = malloc(BYTES), *back = malloc(BYTES);
    REQUIRE(host && back, "the test has no memory");
    char *memory = lab->ops->alloc(lab->device, BYTES);
    for (int64_t i = 0; i < BYTES; i++)
        host[i] = (unsigned char)((uint64_t)i * 0x9e3779b97f4a7c15u >> 56);
    lab->ops->upload(lab->device, memory, host, BYTES);
    for (int64_t i = 0; i < BYTES; i++)
        host[i] ^= 0x55;
    for (int64_t i = 0; i < PIECES; i++)
        lab->ops->upload(lab->device, memory + i * SMALL, host + i * SMALL, SMALL);
    memset(host, 0, PIECES * SMALL);
    lab->ops->download(lab->device, back, memory, BYTES);
    int64_t wrong = 0;
    for (int64_t i = 0; i < BYTES; i++) {
        unsigned char once = (unsigned char)((uint64_t)i * 0x9e3779b97f4a7c15u >> 56);
        wrong += back[i] != (i < PIECES * SMALL ? once ^ 0x55 : once);
    }
    CHECK(wrong == 0);
    lab->ops->free(lab->device, memory);
    free(host);
    free(back);
}

/* Work that goes from one queue to the other and back: each copy must see the one before. */
static void try_queues(struct lab *lab)
{
    enum { LINKS = 9, BYTES = 300007 };
    const struct ops *ops = lab->ops;
    unsigned char *host = malloc(BYTES), *back = malloc(BYTES);
    REQUIRE(host && back, "the test has no memory");
    memset(host, 0x5a, BYTES);
    char *links[LINKS];
    for (int i = 0; i < LINKS; i++) {
        links[i] = ops->alloc(lab->device, BYTES);
        ops->zero(lab->device, links[i], BYTES);
    }
    ops->sync(lab->device);
    ops->upload(lab->device, links[0], host, BYTES);
    for (int i = 1; i < LINKS; i++) {
        enum queue here = i % 2 ? QUEUE_EXCHANGE : QUEUE_COMPUTE,
                   before = QUEUE_COMPUTE + QUEUE_EXCHANGE - here;
        ops->follow(lab->device, here, before);
        ops->use(lab->device, here);
        ops->copy(lab->device, links[i], links[i - 1], BYTES);
    }
    ops->use(lab->device, QUEUE_COMPUTE);
    ops->sync(lab->device);
    CHECK(ops->idle(lab->device, QUEUE_COMPUTE) && ops->idle(lab->device, QUEUE_EXCHANGE));
    ops->download(lab->device, back, links[LINKS - 1], BYTES);
    CHECK(memcmp(back, host, BYTES) == 0);
    for (int i = 0; i < LINKS; i++)
        ops->free(lab->device, links[i]);
    free(host);
    free(back);
}

static void try_words(struct lab *lab)
{
    const struct ops *ops = lab->ops;
    const char *why = NULL;
    bool cpu = strcmp(ops->name, "cpu") == 0;
    CHECK(ops->name && *ops->name);
    CHECK(strlen(ops->describe(lab->device)) > 3);
    CHECK(ops->count(&why) >= 1);
    CHECK(ops->open(ops->count(&why), 0, &why) == NULL && why && *why); /* one number too high */
    CHECK(ops->open(-1, 0, &why) == NULL);
    CHECK((ops->handle(lab->device, QUEUE_COMPUTE) == NULL) == cpu);
    CHECK(cpu || ops->handle(lab->device, QUEUE_COMPUTE) != ops->handle(lab->device, QUEUE_EXCHANGE));
    CHECK(ops->head_multiple >= 0 && ops->head_limit >= 0);
}

static void all(struct lab *lab)
{
    try_memory(lab);
    try_poison(lab);
    try_uploads(lab);
    try_queues(lab);
    try_words(lab);
}

int main(void)
{
    lab_run_float(all);
    return check_result();
}
