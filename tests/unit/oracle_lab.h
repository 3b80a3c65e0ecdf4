/* The bench on which ops are tested: a device, matrices that stand inside a field of canaries, and a record
 * of every result, so that runs with other numbers of threads can be compared bit for bit. Works for every
 * backend. */
#ifndef WPO_TESTS_UNIT_ORACLE_LAB_H
#define WPO_TESTS_UNIT_ORACLE_LAB_H

#include "kernels/ops.h"
#include "kernels/require.h"
#include "tests/check.h"

/* Half a unit in the last place of 1: the relative error of one rounding to f32. */
#define LAB_UNIT 0x1p-24

struct lab_record {
    const char *label;
    uint64_t digest;
};

struct lab {
    const struct ops *ops;
    struct device *device;
    int threads;
    bool first; /* the first of the runs that are compared: work that no thread count changes is done here
                   alone */
    void *device_owned[8192], *host_owned[8192];
    int device_count, host_count;
    struct lab_record records[8192];
    int record_count;
};

/* A matrix in device memory. Around its view stand canaries: a row before and after, and `margin` columns
 * left and margin + 2 right when margin > 0. */
struct lab_matrix {
    struct lab *lab;
    struct tensor view;
    float *memory; /* on the device, [total] */
    float *before; /* on the host, what was uploaded last */
    int64_t total, first;
};

/* Backend number `index` of this build; NULL after the last. */
const struct ops *lab_backend(int index);

bool lab_open(struct lab *lab, const struct ops *ops, int threads);
void lab_close(struct lab *lab); /* releases all that was made through it */
/* Frees the matrices and arrays made since the marks, so that many cases fit. */
void lab_release(struct lab *lab);

/* To f32 and back. Not inlined: GCC 12.2 at -O2 drops such a pair of conversions when it vectorises a block.
 */
double lab_round(double value);
double *lab_doubles(struct lab *lab, int64_t count); /* host, zeros */
double *lab_randoms(struct lab *lab, int64_t count, unsigned long long seed,
                    double scale);                                /* host, exact in f32 */
void *lab_array(struct lab *lab, const void *host, size_t bytes); /* device copy */

struct lab_matrix lab_matrix(struct lab *lab, int64_t rows, int64_t cols, int64_t margin);
void lab_put(struct lab_matrix *matrix, const double *values); /* [rows * cols] */
void lab_fill(struct lab_matrix *matrix, float value);         /* NAN before an `out` argument */
/* Reads the view back, widened, and records its bits. False if a canary changed. */
bool lab_get(struct lab_matrix *matrix, double *values, const char *label);
bool lab_unchanged(struct lab_matrix *matrix);
void lab_note(struct lab *lab, const char *label, const void *bytes, size_t count);

/* Largest |got - want| / bound; a NaN, or any difference where the bound is 0, is infinite. *where (may be
 * NULL): its index. */
double lab_worst(const double *got, const double *want, const double *bound, int64_t count, int64_t *where);

#define LAB_GET(matrix, values) CHECK(lab_get(&(matrix), (values), #matrix))

/* Every element is within its bound. */
#define LAB_CLOSE(got, want, bound, count)                                                                   \
    do {                                                                                                     \
        int64_t lab_at = 0;                                                                                  \
        double lab_ratio = lab_worst((got), (want), (bound), (count), &lab_at);                              \
        check_count++;                                                                                       \
        if (!(lab_ratio <= 1)) {                                                                             \
            check_failures++;                                                                                \
            fprintf(stderr, "%s:%d: %s[%lld of %lld] is %.9g, not %.9g (%.3g times the bound %.3g)\n",       \
                    __FILE__, __LINE__, #got, (long long)lab_at, (long long)(count), (got)[lab_at],          \
                    (want)[lab_at], lab_ratio, (bound)[lab_at]);                                             \
        }                                                                                                    \
    } while (0)

/* The negative control: the comparison must notice that `want` is not the truth. */
#define LAB_DIFFERS(got, want, bound, count) CHECK(lab_worst((got), (want), (bound), (count), NULL) > 1)

/* Runs the body on every backend with 1, 2, 3 and again 1 threads: all results must have the same bits. */
static inline void lab_run(void (*body)(struct lab *))
{
    static const int threads[] = {1, 2, 3, 1};
    static struct lab first, other;
    for (int b = 0; lab_backend(b); b++) {
        for (int i = 0; i < 4; i++) {
            struct lab *lab = i ? &other : &first;
            CHECK(lab_open(lab, lab_backend(b), threads[i]));
            if (!lab->device) return;
            lab->first = i == 0;
            body(lab);
            CHECK(lab->record_count == first.record_count);
            int shown = 0;
            for (int r = 0; i && r < first.record_count && r < lab->record_count; r++) {
                bool same = first.records[r].digest == lab->records[r].digest;
                if (!same && shown++ < 20)
                    fprintf(stderr,
                            "%s: result %d (%s) has other bits with %d threads, run %d, than with 1\n",
                            lab->ops->name, r, first.records[r].label, threads[i], i);
                check_count++;
                check_failures += !same;
            }
            lab_close(lab);
        }
    }
}

#endif
