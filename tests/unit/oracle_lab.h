/* The bench on which ops are tested: a device, matrices that stand inside a field of canaries, and a record
 * of every result, so that runs of one body can be compared bit for bit. A body runs for every backend that
 * has a device here and for every type that the backend computes in. */
#ifndef WPO_TESTS_UNIT_ORACLE_LAB_H
#define WPO_TESTS_UNIT_ORACLE_LAB_H

#include "kernels/ops.h"
#include "kernels/require.h"
#include "tests/check.h"

/* Half a unit in the last place of 1: the relative error of one rounding to f32, and to bf16 with its 8
 * significant bits. */
#define LAB_UNIT        0x1p-24
#define LAB_UNIT_BFLOAT 0x1p-8

struct lab_record {
    const char *label;
    uint64_t digest;
};

struct lab {
    const struct ops *ops;
    struct device *device;
    int threads;
    enum dtype type; /* of the matrices that lab_matrix() makes */
    double unit;     /* LAB_UNIT or LAB_UNIT_BFLOAT, by type */
    double sum_unit; /* error of one addition in a sum of products: see lab_open() */
    bool first; /* the first of the runs that are compared: work that no repetition changes is done here alone
                 */
    bool slow;  /* fewer shapes, not weaker ones: an emulated device, or as WPO_SHORT (0 or 1) says */
    void *device_owned[8192], *host_owned[8192];
    int device_count, host_count;
    struct lab_record records[8192];
    int record_count;
};

/* A matrix in device memory. Around its view stand canaries: a row before and after, and `margin` columns
 * left and margin + 2 right when margin > 0. An odd margin gives rows that begin at no multiple of 16 bytes.
 */
struct lab_matrix {
    struct lab *lab;
    struct tensor view;
    void *memory;          /* on the device, [bytes] */
    unsigned char *before; /* on the host, what was uploaded last */
    size_t bytes, first;   /* first: where the view begins */
};

/* Backend number `index` of this build, without those that the environment's WPO_TEST_BACKEND (a name)
 * leaves out; NULL after the last. */
const struct ops *lab_backend(int index);

bool lab_open(struct lab *lab, const struct ops *ops, int threads, enum dtype type);
void lab_close(struct lab *lab); /* releases all that was made through it */
/* Frees the matrices and arrays made since the marks, so that many cases fit. */
void lab_release(struct lab *lab);
/* Opens the backend's first device to see whether it is there, and prints what will be tested. */
bool lab_present(const struct ops *ops);

/* To f32 and back. Not inlined: GCC 12.2 at -O2 drops such a pair of conversions when it vectorises a block.
 */
double lab_round(double value);
/* To the type and back: f32, or bf16 by way of f32. */
double lab_round_to(enum dtype type, double value);
double *lab_doubles(struct lab *lab, int64_t count);   /* host, zeros */
int64_t *lab_integers(struct lab *lab, int64_t count); /* host, zeros */
double *lab_randoms(struct lab *lab, int64_t count, unsigned long long seed,
                    double scale);                                /* host, exact in lab->type */
void *lab_array(struct lab *lab, const void *host, size_t bytes); /* device copy */

struct lab_matrix lab_matrix(struct lab *lab, int64_t rows, int64_t cols, int64_t margin); /* lab->type */
struct lab_matrix lab_floats(struct lab *lab, int64_t rows, int64_t cols, int64_t margin); /* f32 */
struct lab_matrix lab_typed(struct lab *lab, enum dtype type, int64_t rows, int64_t cols, int64_t margin);
/* The same memory seen through another view, which begins where the matrix's begins. */
struct lab_matrix lab_alias(const struct lab_matrix *matrix, struct tensor view);
/* values [rows * cols] must be exact in the matrix's type. */
void lab_put(struct lab_matrix *matrix, const double *values);
void lab_fill(struct lab_matrix *matrix, float value); /* NAN before an `out` argument */
/* Reads the view back, widened, and records its bits. False if a canary changed. */
bool lab_get(struct lab_matrix *matrix, double *values, const char *label);
bool lab_unchanged(struct lab_matrix *matrix);
void lab_note(struct lab *lab, const char *label, const void *bytes, size_t count);

/* A result that f32 arithmetic gives within its bound is rounded once more when it is stored in bf16: adds
 * that to the bounds. Nothing for f32, whose bounds hold the last rounding already. */
void lab_stored(enum dtype type, double *bound, const double *want, int64_t count);

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
            fprintf(stderr,                                                                                  \
                    "%s:%d: %s, %s: %s[%lld of %lld] is %.9g, not %.9g (%.3g times the bound %.3g)\n",       \
                    __FILE__, __LINE__, lab->ops->name, lab_type_name(lab->type), #got, (long long)lab_at,   \
                    (long long)(count), (got)[lab_at], (want)[lab_at], lab_ratio, (bound)[lab_at]);          \
        }                                                                                                    \
    } while (0)

/* The negative control: the comparison must notice that `want` is not the truth. */
#define LAB_DIFFERS(got, want, bound, count) CHECK(lab_worst((got), (want), (bound), (count), NULL) > 1)

static inline const char *lab_type_name(enum dtype type)
{
    return type == DTYPE_FLOAT ? "f32" : "bf16";
}

/* Every result of this run has the bits that it had in the first. */
static inline void lab_compare(const struct lab *lab, const struct lab *first, int run)
{
    int shown = 0;
    CHECK(lab->record_count == first->record_count);
    for (int r = 0; r < first->record_count && r < lab->record_count; r++) {
        bool same = first->records[r].digest == lab->records[r].digest;
        if (!same && shown++ < 20)
            fprintf(stderr,
                    "%s, %s: result %d (%s) has other bits in run %d (%d threads) than in the first\n",
                    lab->ops->name, lab_type_name(lab->type), r, first->records[r].label, run, lab->threads);
        check_count++;
        check_failures += !same;
    }
}

/* Runs the body on one backend with one type: on the CPU with 1, 2, 3 and again 1 threads, elsewhere twice.
 * All results must have the same bits. */
static inline void lab_run_backend(void (*body)(struct lab *), const struct ops *ops, enum dtype type)
{
    static const int threads[] = {1, 2, 3, 1};
    static struct lab first, other;
    bool cpu = strcmp(ops->name, "cpu") == 0;
    for (int i = 0; i < (cpu ? 4 : 2); i++) {
        struct lab *lab = i ? &other : &first;
        CHECK(lab_open(lab, ops, cpu ? threads[i] : 0, type));
        if (!lab->device) return;
        lab->first = i == 0;
        body(lab);
        if (i) lab_compare(lab, &first, i);
        lab_close(lab);
    }
}

/* On every backend, in f32 and where the backend has it in bf16. */
static inline void lab_run(void (*body)(struct lab *))
{
    for (int b = 0; lab_backend(b); b++) {
        const struct ops *ops = lab_backend(b);
        if (!lab_present(ops)) continue;
        lab_run_backend(body, ops, DTYPE_FLOAT);
        if (ops->has_bfloat) lab_run_backend(body, ops, DTYPE_BFLOAT);
    }
}

/* For bodies that know no other type than f32. */
static inline void lab_run_float(void (*body)(struct lab *))
{
    for (int b = 0; lab_backend(b); b++)
        if (lab_present(lab_backend(b))) lab_run_backend(body, lab_backend(b), DTYPE_FLOAT);
}

#endif
