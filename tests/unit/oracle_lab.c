#include "tests/unit/oracle_lab.h"

const struct ops *lab_backend(int index)
{
    static const struct ops *(*const backends[])(void) = {cpu_ops};
    return index < (int)(sizeof backends / sizeof backends[0]) ? backends[index]() : NULL;
}

bool lab_open(struct lab *lab, const struct ops *ops, int threads)
{
    const char *why = "";
    memset(lab, 0, sizeof *lab);
    lab->ops = ops;
    lab->threads = threads;
    lab->device = ops->open(0, threads, &why);
    if (!lab->device) fprintf(stderr, "%s does not open: %s\n", ops->name, why);
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
    void *memory = lab->ops->alloc(lab->device, bytes);
    REQUIRE(memory && lab->device_count < 8192, "the test has no device memory");
    return lab->device_owned[lab->device_count++] = memory;
}

double *lab_doubles(struct lab *lab, int64_t count)
{
    return host_memory(lab, count, sizeof(double));
}

double lab_round(double value)
{
    volatile float rounded = (float)value;
    return rounded;
}

double *lab_randoms(struct lab *lab, int64_t count, unsigned long long seed, double scale)
{
    double *values = lab_doubles(lab, count);
    unsigned long long state = seed * 0x1234567u + 99;
    for (int64_t i = 0; i < count; i++)
        values[i] = lab_round(scale * check_uniform(&state));
    return values;
}

void *lab_array(struct lab *lab, const void *host, size_t bytes)
{
    void *memory = device_memory(lab, bytes);
    lab->ops->upload(lab->device, memory, host, bytes);
    lab->ops->sync(lab->device);
    return memory;
}

/* A number that no op would write, another in every place. */
static float canary(int64_t i)
{
    return -1.5e30f - 1e25f * (float)(i % 1021);
}

struct lab_matrix lab_matrix(struct lab *lab, int64_t rows, int64_t cols, int64_t margin)
{
    int64_t stride = margin > 0 ? cols + 2 * margin + 2 : cols, edge = stride > 16 ? stride : 16;
    struct lab_matrix matrix = {.lab = lab, .total = rows * stride + 2 * edge, .first = edge};
    matrix.memory = device_memory(lab, (size_t)matrix.total * sizeof(float));
    matrix.before = host_memory(lab, matrix.total, sizeof(float));
    matrix.view = tensor_of(matrix.memory + edge, DTYPE_FLOAT, rows, stride);
    matrix.view = tensor_cols(matrix.view, margin, cols);
    matrix.first += margin;
    return matrix;
}

static void place(struct lab_matrix *matrix, const double *values, float value)
{
    struct tensor view = matrix->view;
    for (int64_t i = 0; i < matrix->total; i++)
        matrix->before[i] = canary(i);
    for (int64_t r = 0; r < view.rows; r++)
        for (int64_t c = 0; c < view.cols; c++)
            matrix->before[matrix->first + r * view.stride + c] =
                values ? (float)values[r * view.cols + c] : value;
    matrix->lab->ops->upload(matrix->lab->device, matrix->memory, matrix->before,
                             (size_t)matrix->total * sizeof(float));
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

static float *read_back(const struct lab_matrix *matrix)
{
    size_t bytes = (size_t)matrix->total * sizeof(float);
    float *now = malloc(bytes);
    REQUIRE(now, "the test has no memory");
    matrix->lab->ops->download(matrix->lab->device, now, matrix->memory, bytes);
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
    float *now = read_back(matrix);
    int64_t broken = 0;
    for (int64_t i = 0; i < matrix->total; i++) {
        int64_t at = i - matrix->first, row = at / view.stride, col = at % view.stride;
        if (at >= 0 && row < view.rows && col < view.cols)
            values[row * view.cols + col] = now[i];
        else if (memcmp(&now[i], &matrix->before[i], sizeof now[i]) != 0 && !broken++)
            fprintf(stderr, "%s [%lld,%lld]: memory outside the view changed, %lld elements from its start\n",
                    label, (long long)view.rows, (long long)view.cols, (long long)at);
    }
    lab_note(matrix->lab, label, now, (size_t)matrix->total * sizeof(float));
    free(now);
    return broken == 0;
}

bool lab_unchanged(struct lab_matrix *matrix)
{
    float *now = read_back(matrix);
    bool same = memcmp(now, matrix->before, (size_t)matrix->total * sizeof(float)) == 0;
    free(now);
    return same;
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
