/* The exchange of every backend of this build: sums in the order of ranks, shares of all lengths, all types.
 * ranks: 1 2 3 4
 * It is the victim of tests/faults/test_nccl.py as well. */
#include "kernels/bfloat.h"
#include "kernels/require.h"
#include "runtime/exchange.h"
#include "runtime/watch.h"
#include "tests/check.h"

enum { LONGEST = 4099, VECTORS = 3, ROUNDS = 2, WAIT = 10 /* seconds, for a rank that others wait for */ };

/* Fewer than the ranks, primes, multiples of 16 that leave the last ranks with less or nothing, even shares.
 */
static const int64_t counts[] = {1, 2, 3, 5, 16, 17, 31, 48, 64, 97, 192, 1009, 3072, LONGEST};
enum { COUNTS = sizeof counts / sizeof *counts };

struct bench {
    struct comm comm;
    const struct ops *ops;
    struct device *device;
    struct exchange *exchange;
    bool ordered, wide; /* wide: values whose sum depends on the order; else small integers, exact in bf16 */
    enum dtype type;
};

/* What rank r holds at place i of a vector. */
static float value_at(const struct bench *b, int rank, int64_t vector, int64_t round, int64_t i)
{
    unsigned long long state =
        ((unsigned long long)((i * VECTORS + vector) * ROUNDS + round) * 64 + (unsigned)rank) * 977;
    double x = check_uniform(&state), y = check_uniform(&state);
    float value = b->wide ? (float)ldexp(x, (int)(12 * y)) : (float)(int)(16 * x);
    return b->type == DTYPE_BFLOAT ? bfloat_widen(bfloat_round(value)) : value;
}

static void put(const struct bench *b, struct tensor vector, int64_t number, int64_t round)
{
    struct bfloat *halves = allocate(vector.cols, sizeof *halves);
    float *floats = allocate(vector.cols, sizeof *floats);
    for (int64_t i = 0; i < vector.cols; i++) {
        floats[i] = value_at(b, b->comm.rank, number, round, i);
        halves[i] = bfloat_round(floats[i]);
    }
    b->ops->upload(b->device, vector.data, b->type == DTYPE_FLOAT ? (void *)floats : halves,
                   (size_t)vector.cols * dtype_bytes(b->type));
    free(halves);
    free(floats);
}

static void get(const struct bench *b, float *values, struct tensor vector)
{
    if (b->type == DTYPE_FLOAT) {
        b->ops->download(b->device, values, vector.data, (size_t)vector.cols * sizeof *values);
        return;
    }
    struct bfloat *halves = allocate(vector.cols, sizeof *halves);
    b->ops->download(b->device, halves, vector.data, (size_t)vector.cols * sizeof *halves);
    for (int64_t i = 0; i < vector.cols; i++)
        values[i] = bfloat_widen(halves[i]);
    free(halves);
}

/* -- reduction -------------------------------------------------------------------------------- */

/* Tolerance. In rank order, in f32 and rounded to the vector's type at the end, the sum has one value, and it
 * is that of a double when the values are small integers (at most 4 x 16). In any other order each of the R -
 * 1 additions errs by half a unit of what has been added so far, which is at most the sum of magnitudes: (R -
 * 1) u sum |x|, (1 + u)^(R - 2) < 1.02 for u = 2^-8; u is 2^-24 or, where bf16 is rounded on the way, 2^-8 (8
 * significant bits, to nearest: 2^-9; doubled, because a library may round the f32 sum of parts again). */
static void check_sum(const struct bench *b, float got, int64_t vector, int64_t round, int64_t i)
{
    float in_order = 0;
    double exact = 0, magnitude = 0;
    for (int r = 0; r < b->comm.size; r++) {
        float x = value_at(b, r, vector, round, i);
        in_order += x;
        exact += x;
        magnitude += fabs(x);
    }
    if (b->type == DTYPE_BFLOAT) in_order = bfloat_widen(bfloat_round(in_order));
    double unit = b->type == DTYPE_FLOAT ? 0x1p-24 : 0x1p-8;
    if (!b->wide) CHECK_NEAR(got, exact, 0);
    if (b->wide && b->ordered) CHECK(!memcmp(&got, &in_order, sizeof got));
    if (b->wide && !b->ordered) CHECK_NEAR(got, exact, 1.02 * (b->comm.size - 1) * unit * magnitude);
}

static void check_share(const struct bench *b, struct tensor vector, int64_t number, int64_t round)
{
    int64_t first, length;
    float *values = allocate(vector.cols, sizeof *values);
    get(b, values, vector);
    comm_share(vector.cols, b->comm.size, b->comm.rank, &first, &length);
    for (int64_t i = first; i < first + length; i++)
        check_sum(b, values[i], number, round, i);
    free(values);
}

/* Several reductions are under way at once, and are finished in another order than they were started in. */
static void test_reduction(const struct bench *b, int64_t count)
{
    struct tensor vectors[VECTORS];
    struct reduction *reductions[VECTORS];
    float *received[VECTORS];
    for (int64_t v = 0; v < VECTORS; v++) {
        size_t bytes = (size_t)exchange_reduction_room(b->exchange, count) * sizeof(float);
        received[v] = b->ops->alloc(b->device, bytes ? bytes : 64);
        vectors[v] =
            tensor_of(b->ops->alloc(b->device, (size_t)count * dtype_bytes(b->type)), b->type, 1, count);
        b->ops->poison(b->device, received[v], bytes ? bytes : 64);
        reductions[v] = exchange_reduction_create(b->exchange, vectors[v], received[v]);
    }
    for (int64_t round = 0; round < ROUNDS; round++) {
        for (int64_t v = 0; v < VECTORS; v++) {
            put(b, vectors[v], v, round);
            exchange_reduction_start(b->exchange, reductions[v]);
            for (int64_t w = 0; w < VECTORS; w++) /* before their start this does nothing */
                exchange_reduction_progress(b->exchange, reductions[w]);
        }
        for (int64_t v = VECTORS - 1; v >= 0; v--)
            exchange_reduction_finish(b->exchange, reductions[v]);
        exchange_wait(b->exchange);
        for (int64_t v = 0; v < VECTORS; v++)
            check_share(b, vectors[v], v, round);
    }
    for (int64_t v = 0; v < VECTORS; v++) {
        exchange_reduction_free(b->exchange, reductions[v]);
        b->ops->free(b->device, vectors[v].data);
        b->ops->free(b->device, received[v]);
    }
}

/* The wide values show a wrong order: on three ranks and more, most sums change when it is turned round. */
static void test_values(struct bench *b)
{
    int changed = 0;
    b->wide = true;
    b->type = DTYPE_FLOAT;
    for (int64_t i = 0; i < 1000; i++) {
        float up = 0, down = 0;
        for (int r = 0; r < b->comm.size; r++) {
            up += value_at(b, r, 0, 0, i);
            down += value_at(b, b->comm.size - 1 - r, 0, 0, i);
        }
        changed += up != down;
    }
    CHECK(b->comm.size < 3 || changed > 200);
}

/* -- gathering -------------------------------------------------------------------------------- */

static unsigned char byte_at(size_t i)
{
    return (unsigned char)(i * 31 + i / 251 * 7 + 5);
}

/* Every rank knows its share alone; the rest is filled with what no share holds everywhere. */
static void test_share_all(const struct bench *b, int64_t count, enum dtype type)
{
    size_t element = dtype_bytes(type), bytes = (size_t)count * element;
    unsigned char *host = allocate((long long)bytes, 1);
    int64_t first, length;
    comm_share(count, b->comm.size, b->comm.rank, &first, &length);
    memset(host, 0xa5 + b->comm.rank, bytes);
    for (size_t i = (size_t)first * element; i < (size_t)(first + length) * element; i++)
        host[i] = byte_at(i);
    /* Canaries: what stands before and after the vector stays. */
    unsigned char *memory = b->ops->alloc(b->device, bytes + 128), ends[64];
    b->ops->poison(b->device, memory, bytes + 128);
    b->ops->upload(b->device, memory + 64, host, bytes);
    exchange_share_all(b->exchange, tensor_of(memory + 64, type, 1, count));
    exchange_wait(b->exchange);
    b->ops->download(b->device, host, memory + 64, bytes);
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i++)
        wrong += host[i] != byte_at(i);
    CHECK(wrong == 0);
    for (int end = 0; end < 2; end++) {
        b->ops->download(b->device, ends, memory + (end ? bytes + 64 : 0), sizeof ends);
        for (size_t i = 0; i < sizeof ends / 4 * 4; i++)
            wrong += ends[i] != ends[0];
    }
    CHECK(wrong == 0);
    b->ops->free(b->device, memory);
    free(host);
}

static void test_gather_doubles(const struct bench *b, int64_t count)
{
    int64_t total = count * b->comm.size;
    double *host = allocate(total, sizeof *host);
    for (int64_t i = 0; i < total; i++)
        host[i] = i / count == b->comm.rank ? 1.0 / (double)(i + 3) : -1;
    size_t bytes = (size_t)total * sizeof *host;
    double *memory = b->ops->alloc(b->device, bytes);
    b->ops->upload(b->device, memory, host, bytes);
    exchange_gather_doubles(b->exchange, memory, count);
    exchange_wait(b->exchange);
    b->ops->download(b->device, host, memory, bytes);
    for (int64_t i = 0; i < total; i++)
        CHECK(host[i] == 1.0 / (double)(i + 3));
    b->ops->free(b->device, memory);
    free(host);
}

/* -- backends --------------------------------------------------------------------------------- */

static void test_all(struct bench *b)
{
    for (int c = 0; c < COUNTS; c++) {
        for (int types = 0; types <= b->ops->has_bfloat; types++) {
            b->type = types ? DTYPE_BFLOAT : DTYPE_FLOAT;
            for (int wide = 0; wide < 2; wide++) {
                b->wide = wide;
                test_reduction(b, counts[c]);
            }
        }
        test_share_all(b, counts[c], DTYPE_FLOAT);
        test_share_all(b, counts[c], DTYPE_BFLOAT);
        test_share_all(b, counts[c], DTYPE_HALF);
        test_gather_doubles(b, 1 + c * 3);
    }
}

static void test_backend(struct bench *b, const struct ops *ops, bool ordered)
{
    const char *why = "";
    b->ops = ops;
    int count = ops->count(&why);
    b->device = ops->open(count > 0 ? b->comm.local_rank % count : 0, 1, &why);
    REQUIRE(b->device, "the %s device does not open: %s", ops->name, why);
    b->ordered = ordered || !strcmp(ops->name, "cpu");
    struct exchange_options options = {.ordered = ordered, .seconds = WAIT};
    enum status status = exchange_open(&b->exchange, &b->comm, ops, b->device, options);
    REQUIRE(status == STATUS_OK, "%s", status_sentence());
    test_values(b);
    test_all(b);
    exchange_close(b->exchange);
    ops->close(b->device);
}

/* One GPU for each rank of a host, or the backend is left out on all ranks. */
static bool takes_part(struct bench *b, const struct ops *ops)
{
    const char *why, *only = getenv("WPO_TEST_BACKEND");
    bool enough = ops && (!strcmp(ops->name, "cpu") || ops->count(&why) >= b->comm.local_size);
    bool wanted = ops && (!only || !*only || !strcmp(only, ops->name));
    return !comm_any(&b->comm, !enough || !wanted);
}

int main(void)
{
    struct bench bench = {0};
    setenv("CUDA_ON_CPU_DEVICES", "4", 0);
    REQUIRE(comm_open(&bench.comm) == STATUS_OK, "%s", status_sentence());
    REQUIRE(watch_open(&bench.comm, WAIT) == STATUS_OK, "%s", status_sentence());
    const struct ops *const backends[] = {cpu_ops(), cuda_ops()};
    bool tested = false;
    for (int i = 0; i < 2; i++) {
        if (!takes_part(&bench, backends[i])) continue;
        for (int ordered = 0; ordered < 2; ordered++)
            test_backend(&bench, backends[i], ordered);
        if (bench.comm.rank == 0) printf("exchanged by %s\n", backends[i]->name);
        tested = true;
    }
    watch_close();
    comm_close(&bench.comm);
    if (!tested) SKIP("no backend with a device for every rank");
    return check_result();
}
