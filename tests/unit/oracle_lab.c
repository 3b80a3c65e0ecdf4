#include "tests/unit/oracle_lab.h"

#include "kernels/bfloat.h"

const struct ops *lab_backend(int index)
{
    static const struct ops *(*const backends[])(void) = {cpu_ops, cuda_ops};
    const char *only = getenv("WPO_TEST_BACKEND");
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        const struct ops *ops = backends[i]();
        if (!ops || (only && *only && strcmp(only, ops->name) != 0)) continue;
        if (index-- == 0) return ops;
    }
    return NULL;
}

bool lab_present(const struct ops *ops)
{
    const char *why = "no reason given";
    if (ops->count(&why) == 0) {
        printf("%s: no device (%s): not tested\n", ops->name, why);
        return false;
    }
    struct device *device = ops->open(0, 0, &why);
    CHECK(device != NULL);
    if (!device) {
        fprintf(stderr, "%s does not open: %s\n", ops->name, why);
        return false;
    }
    printf("%s: %s, f32%s\n", ops->name, ops->describe(device), ops->has_bfloat ? " and bf16" : "");
    fflush(stdout);
    ops->close(device);
    return true;
}

/* A sum of products adds with one rounding a term, except on tensor cores, which the bf16 products may use:
 * they cut instead of rounding, which costs twice as much. */
bool lab_open(struct lab *lab, const struct ops *ops, int threads, enum dtype type)
{
    const char *why = "", *quick = getenv("WPO_SHORT");
    memset(lab, 0, sizeof *lab);
    lab->ops = ops;
    lab->threads = threads;
    lab->type = type;
    lab->unit = type == DTYPE_BFLOAT ? LAB_UNIT_BFLOAT : LAB_UNIT;
    lab->sum_unit = type == DTYPE_BFLOAT ? 2 * LAB_UNIT : LAB_UNIT;
    lab->device = ops->open(0, threads, &why);
    if (!lab->device)
        fprintf(stderr, "%s does not open: %s\n", ops->name, why);
    else
        lab->slow = quick && *quick ? strcmp(quick, "0") != 0
                                    : strstr(ops->describe(lab->device), "emulated") != NULL;
    return lab->device != NULL;
}

void lab_release(struct lab *lab)
{
    lab->ops->sync(lab->device);
    for (int i = 0; i < lab->device_count; i++)
        lab->ops->free(lab->device, lab->device_owned[i]);
    for (int i = 0; i < lab->host_count; i++)
        free(lab->host_owned[i]);
    lab->device_count = lab->host_count = 0;
}

void lab_close(struct lab *lab)
{
    lab_release(lab);
    lab->ops->close(lab->device);
    lab->device = NULL;
}

static void *host_memory(struct lab *lab, int64_t count, size_t size)
{
    void *memory = calloc(count > 0 ? (size_t)count : 1, size);
    REQUIRE(memory && lab->host_count < 8192, "the test has no memory");
    return lab->host_owned[lab->host_count++] = memory;
}

static void *device_memory(struct lab *lab, size_t bytes)
{
    void *memory = lab->ops->alloc(lab->device, bytes ? bytes : 1);
    REQUIRE(memory && lab->device_count < 8192, "the test has no device memory");
    return lab->device_owned[lab->device_count++] = memory;
}

double *lab_doubles(struct lab *lab, int64_t count)
{
    return host_memory(lab, count, sizeof(double));
}

int64_t *lab_integers(struct lab *lab, int64_t count)
{
    return host_memory(lab, count, sizeof(int64_t));
}

double lab_round(double value)
{
    volatile float rounded = (float)value;
    return rounded;
}

double lab_round_to(enum dtype type, double value)
{
    float rounded = (float)lab_round(value);
    return (double)(type == DTYPE_BFLOAT ? bfloat_widen(bfloat_round(rounded)) : rounded);
}

double *lab_randoms(struct lab *lab, int64_t count, unsigned long long seed, double scale)
{
    double *values = lab_doubles(lab, count);
    unsigned long long state = seed * 0x1234567u + 99;
    for (int64_t i = 0; i < count; i++)
        values[i] = lab_round_to(lab->type, scale * check_uniform(&state));
    return values;
}

void *lab_array(struct lab *lab, const void *host, size_t bytes)
{
    void *memory = device_memory(lab, bytes);
    lab->ops->upload(lab->device, memory, host, bytes);
    lab->ops->sync(lab->device);
    return memory;
}

/* -- matrices --------------------------------------------------------------------------------- */

/* A number that no op would write, another in each of 1016 places that follow each other; exact in bf16. */
static float canary(int64_t i)
{
    return -ldexpf((float)(128 + i % 127), 90 + (int)(i / 127 % 8));
}

static void store(unsigned char *to, enum dtype type, float value)
{
    struct bfloat narrow = bfloat_round(value);
    if (type == DTYPE_BFLOAT)
        memcpy(to, &narrow, sizeof narrow);
    else
        memcpy(to, &value, sizeof value);
}

static double load(const unsigned char *from, enum dtype type)
{
    struct bfloat narrow;
    float value;
    if (type == DTYPE_FLOAT) {
        memcpy(&value, from, sizeof value);
        return (double)value;
    }
    memcpy(&narrow, from, sizeof narrow);
    return (double)bfloat_widen(narrow);
}

struct lab_matrix lab_typed(struct lab *lab, enum dtype type, int64_t rows, int64_t cols, int64_t margin)
{
    int64_t stride = margin > 0 ? cols + 2 * margin + 2 : cols, edge = stride > 32 ? stride : 32;
    edge = (edge + 31) / 32 * 32; /* rows of a matrix without margin begin where memory is aligned */
    int64_t total = rows * stride + 2 * edge;
    size_t size = dtype_bytes(type);
    struct lab_matrix matrix = {
        .lab = lab, .bytes = (size_t)total * size, .first = (size_t)(edge + margin) * size};
    matrix.memory = device_memory(lab, matrix.bytes);
    matrix.before = host_memory(lab, total, size);
    matrix.view = tensor_of((char *)matrix.memory + (size_t)edge * size, type, rows, stride);
    matrix.view = tensor_cols(matrix.view, margin, cols);
    return matrix;
}

struct lab_matrix lab_matrix(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    return lab_typed(lab, lab->type, rows, cols, margin);
}

struct lab_matrix lab_floats(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    return lab_typed(lab, DTYPE_FLOAT, rows, cols, margin);
}

struct lab_matrix lab_alias(const struct lab_matrix *matrix, struct tensor view)
{
    struct lab_matrix other = *matrix;
    REQUIRE(view.data == matrix->view.data, "an alias begins where the matrix does");
    other.view = view;
    return other;
}

/* Where element (r, 0) stands in the matrix's memory. */
static size_t row_at(const struct lab_matrix *matrix, int64_t r)
{
    return matrix->first + (size_t)(r * matrix->view.stride) * dtype_bytes(matrix->view.type);
}

static void place(struct lab_matrix *matrix, const double *values, float value)
{
    struct tensor view = matrix->view;
    size_t size = dtype_bytes(view.type);
    for (size_t i = 0; i < matrix->bytes / size; i++)
        store(matrix->before + i * size, view.type, canary((int64_t)i));
    for (int64_t r = 0; r < view.rows; r++)
        for (int64_t c = 0; c < view.cols; c++) {
            double wanted = values ? values[r * view.cols + c] : (double)value;
            REQUIRE(isnan(wanted) || lab_round_to(view.type, wanted) == wanted,
                    "%.17g is no number of the matrix's type", wanted);
            store(matrix->before + row_at(matrix, r) + (size_t)c * size, view.type, (float)wanted);
        }
    matrix->lab->ops->upload(matrix->lab->device, matrix->memory, matrix->before, matrix->bytes);
    matrix->lab->ops->sync(matrix->lab->device);
}

void lab_put(struct lab_matrix *matrix, const double *values)
{
    place(matrix, values, 0);
}

void lab_fill(struct lab_matrix *matrix, float value)
{
    place(matrix, NULL, value);
}

static unsigned char *read_back(const struct lab_matrix *matrix)
{
    unsigned char *now = malloc(matrix->bytes);
    REQUIRE(now, "the test has no memory");
    matrix->lab->ops->download(matrix->lab->device, now, matrix->memory, matrix->bytes);
    return now;
}

void lab_note(struct lab *lab, const char *label, const void *bytes, size_t count)
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++)
        digest = (digest ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    REQUIRE(lab->record_count < 8192, "too many results to record");
    lab->records[lab->record_count++] = (struct lab_record){label, digest};
}

bool lab_get(struct lab_matrix *matrix, double *values, const char *label)
{
    struct tensor view = matrix->view;
    size_t size = dtype_bytes(view.type), width = (size_t)view.cols * size;
    unsigned char *now = read_back(matrix);
    lab_note(matrix->lab, label, now, matrix->bytes);
    for (int64_t r = 0; r < view.rows; r++) {
        unsigned char *row = now + row_at(matrix, r);
        for (int64_t c = 0; c < view.cols; c++)
            values[r * view.cols + c] = load(row + (size_t)c * size, view.type);
        memcpy(row, matrix->before + row_at(matrix, r), width); /* what is left must be as it was */
    }
    size_t broken = 0;
    while (broken < matrix->bytes && now[broken] == matrix->before[broken])
        broken++;
    free(now);
    if (broken == matrix->bytes) return true;
    fprintf(stderr, "%s [%lld,%lld]: memory outside the view changed, %lld bytes from its start\n", label,
            (long long)view.rows, (long long)view.cols, (long long)broken - (long long)matrix->first);
    return false;
}

bool lab_unchanged(struct lab_matrix *matrix)
{
    unsigned char *now = read_back(matrix);
    bool same = memcmp(now, matrix->before, matrix->bytes) == 0;
    free(now);
    return same;
}

/* -- comparing -------------------------------------------------------------------------------- */

/* The smallest bf16 is 2^-133: below it the error is absolute. */
void lab_stored(enum dtype type, double *bound, const double *want, int64_t count)
{
    for (int64_t i = 0; type == DTYPE_BFLOAT && i < count; i++)
        bound[i] += LAB_UNIT_BFLOAT * (fabs(want[i]) + bound[i]) + 0x1p-133;
}

double lab_worst(const double *got, const double *want, const double *bound, int64_t count, int64_t *where)
{
    double worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double difference = fabs(got[i] - want[i]), ratio = difference / bound[i];
        if (got[i] == want[i]) ratio = 0;
        if (isnan(ratio)) ratio = (double)INFINITY;
        if (ratio > worst) {
            worst = ratio;
            if (where) *where = i;
        }
    }
    return worst;
}
