/* bench_step --model DIR --data groups.h5 [--pairs N] [--steps N] [--warmup N] [--threads N] [--recompute
 * 0|1]
 *            [--logits_megabytes N] [--device cpu|cuda] [--dtype float32|bfloat16] [--gradient_dtype ..]
 *            [--moment_dtype ..] [--random 0|1]
 *
 * Times whole training steps on one rank and prints one JSON object: tokens per second, the FLOP rate of the
 * step, and the memory planned and used; on a CPU also the share of the matrix library's own rate, measured
 * between the steps, and where the time goes by operation (a GPU does its work after the call returns).
 * Reference log-probabilities are computed before, and not timed, as in training. With --random 1 the model
 * folder needs only its config.json: weights are made up, and the reference is 0. */
#include "tests/trial.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* -- a table of operations that times another ------------------------------------------------- */

enum op {
    OP_MATMUL,
    OP_HEAD_MATMUL,
    OP_BIAS,
    OP_ROWS,
    OP_RMSNORM,
    OP_RMSNORM_GRAD,
    OP_ROPE,
    OP_ATTENTION,
    OP_ATTENTION_GRAD,
    OP_SWIGLU,
    OP_SWIGLU_GRAD,
    OP_HEAD,
    OP_MEMORY,
    OP_OPTIMISER,
    OP_COUNT
};
static const char *const op_names[OP_COUNT] = {
    "matmul",    "head_matmul",    "bias",   "rows",        "rmsnorm",      "rmsnorm_grad", "rope",
    "attention", "attention_grad", "swiglu", "swiglu_grad", "head_kernels", "zero_copy",    "adamw_norm"};

static const struct ops *inner;
static double op_seconds[OP_COUNT], flops;
static int64_t vocabulary;

#define TIMED(op, call)                                                                                      \
    do {                                                                                                     \
        double timed_start = omp_get_wtime();                                                                \
        call;                                                                                                \
        op_seconds[op] += omp_get_wtime() - timed_start;                                                     \
    } while (0)

static void timed_matmul(struct device *d, struct tensor c, struct tensor a, bool ta, struct tensor b,
                         bool tb, bool acc)
{
    int64_t k = ta ? a.rows : a.cols;
    bool head = c.rows == vocabulary || c.cols == vocabulary || k == vocabulary;
    flops += 2.0 * (double)c.rows * (double)c.cols * (double)k;
    TIMED(head ? OP_HEAD_MATMUL : OP_MATMUL, inner->matmul(d, c, a, ta, b, tb, acc));
}

/* Pairs of query and key that the mask lets through, times the matrix products over them (2 or 5). */
static double attention_flops(struct packing packing, struct attention_shape shape, double products)
{
    double pairs = 0;
    for (int64_t s = 0; s < packing.span_count; s++) {
        double n = (double)packing.spans[s].count;
        pairs += n * (double)packing.spans[s].prefix_count + n * (n + 1) / 2;
    }
    return products * 2 * pairs * (double)(shape.heads * shape.head_size);
}

static void timed_attention(struct device *d, struct tensor o, float *lse, struct tensor qkv,
                            struct packing packing, struct attention_shape shape)
{
    flops += attention_flops(packing, shape, 2);
    TIMED(OP_ATTENTION, inner->attention(d, o, lse, qkv, packing, shape));
}

static void timed_attention_grad(struct device *d, struct tensor dqkv, struct tensor dout, struct tensor o,
                                 const float *lse, struct tensor qkv, struct packing packing,
                                 struct attention_shape shape, void *workspace)
{
    flops += attention_flops(packing, shape, 5);
    TIMED(OP_ATTENTION_GRAD, inner->attention_grad(d, dqkv, dout, o, lse, qkv, packing, shape, workspace));
}

static void timed_bias(struct device *d, struct tensor y, const void *bias)
{
    TIMED(OP_BIAS, inner->bias(d, y, bias));
}

static void timed_bias_grad(struct device *d, struct tensor dbias, struct tensor dy)
{
    TIMED(OP_BIAS, inner->bias_grad(d, dbias, dy));
}

static void timed_gather(struct device *d, struct tensor y, struct tensor x, const int64_t *index)
{
    TIMED(OP_ROWS, inner->gather_rows(d, y, x, index));
}

static void timed_scatter(struct device *d, struct tensor dx, struct tensor dy, const int64_t *index)
{
    TIMED(OP_ROWS, inner->scatter_rows(d, dx, dy, index));
}

static void timed_rmsnorm(struct device *d, struct tensor y, struct tensor sum, struct tensor x,
                          struct tensor r, const void *weight, float epsilon)
{
    TIMED(OP_RMSNORM, inner->rmsnorm(d, y, sum, x, r, weight, epsilon));
}

static void timed_rmsnorm_grad(struct device *d, struct tensor dx, struct tensor dweight, struct tensor dy,
                               struct tensor x, const void *weight, float epsilon)
{
    TIMED(OP_RMSNORM_GRAD, inner->rmsnorm_grad(d, dx, dweight, dy, x, weight, epsilon));
}

static void timed_rope(struct device *d, struct tensor x, int64_t heads, const int64_t *position,
                       const float *table, bool inverse)
{
    TIMED(OP_ROPE, inner->rope(d, x, heads, position, table, inverse));
}

static void timed_swiglu(struct device *d, struct tensor y, struct tensor gate_up)
{
    TIMED(OP_SWIGLU, inner->swiglu(d, y, gate_up));
}

static void timed_swiglu_grad(struct device *d, struct tensor dgate_up, struct tensor dy,
                              struct tensor gate_up)
{
    TIMED(OP_SWIGLU_GRAD, inner->swiglu_grad(d, dgate_up, dy, gate_up));
}

static void timed_statistics(struct device *d, float *statistics, struct tensor logits, const int64_t *target)
{
    TIMED(OP_HEAD, inner->head_statistics(d, statistics, logits, target));
}

static void timed_gradient(struct device *d, struct tensor dlogits, struct tensor logits,
                           const float *statistics, const int64_t *target, const float *coefficient)
{
    TIMED(OP_HEAD, inner->head_gradient(d, dlogits, logits, statistics, target, coefficient));
}

static void timed_copy(struct device *d, void *to, const void *from, size_t bytes)
{
    TIMED(OP_MEMORY, inner->copy(d, to, from, bytes));
}

static void timed_zero(struct device *d, void *memory, size_t bytes)
{
    TIMED(OP_MEMORY, inner->zero(d, memory, bytes));
}

static void timed_squares(struct device *d, double *result, struct tensor x)
{
    TIMED(OP_OPTIMISER, inner->sum_squares(d, result, x));
}

static void timed_adamw(struct device *d, const struct adamw_piece *pieces, int64_t count,
                        const struct adamw *settings, const double *norm)
{
    TIMED(OP_OPTIMISER, inner->adamw(d, pieces, count, settings, norm));
}

static const struct ops *timed_ops(const struct ops *ops)
{
    static struct ops timed;
    inner = ops;
    timed = *ops;
    timed.matmul = timed_matmul;
    timed.attention = timed_attention;
    timed.attention_grad = timed_attention_grad;
    timed.bias = timed_bias;
    timed.bias_grad = timed_bias_grad;
    timed.gather_rows = timed_gather;
    timed.scatter_rows = timed_scatter;
    timed.rmsnorm = timed_rmsnorm;
    timed.rmsnorm_grad = timed_rmsnorm_grad;
    timed.rope = timed_rope;
    timed.swiglu = timed_swiglu;
    timed.swiglu_grad = timed_swiglu_grad;
    timed.head_statistics = timed_statistics;
    timed.head_gradient = timed_gradient;
    timed.copy = timed_copy;
    timed.zero = timed_zero;
    timed.sum_squares = timed_squares;
    timed.adamw = timed_adamw;
    return &timed;
}

/* -- the matrix library's own rate ------------------------------------------------------------ */

enum { ROWS = 1024, COLS = 2048, INNER = 2048 };

/* FLOP/s of one sgemm, the library choosing its threads. */
static double library_rate(float *a, float *b, float *c)
{
    double start = omp_get_wtime();
    int calls = 0;
    do {
        dnnl_sgemm('N', 'T', ROWS, COLS, INNER, 1, a, INNER, b, INNER, 0, c, COLS);
        calls++;
    } while (omp_get_wtime() - start < 0.2);
    return 2.0 * ROWS * COLS * INNER * calls / (omp_get_wtime() - start);
}

/* -- the run ---------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, int count, double q)
{
    qsort(values, (size_t)count, sizeof *values, ascending);
    return values[(int)(q * (count - 1) + 0.5)];
}

struct options {
    const char *model, *data;
    int64_t pairs, steps, warmup;
    bool random;
};

static enum dtype dtype_of(const char *name)
{
    return !strcmp(name, "bfloat16") ? DTYPE_BFLOAT : DTYPE_FLOAT;
}

static struct options parse(int argc, char **argv, struct settings *s)
{
    struct options o = {.pairs = 1, .steps = 7, .warmup = 2};
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--model"))
            o.model = value;
        else if (!strcmp(key, "--data"))
            o.data = value;
        else if (!strcmp(key, "--pairs"))
            o.pairs = atoll(value);
        else if (!strcmp(key, "--steps"))
            o.steps = atoll(value);
        else if (!strcmp(key, "--warmup"))
            o.warmup = atoll(value);
        else if (!strcmp(key, "--threads"))
            s->threads = atoll(value);
        else if (!strcmp(key, "--recompute"))
            s->gradient_checkpointing = atoi(value) != 0;
        else if (!strcmp(key, "--logits_megabytes"))
            s->logits_megabytes = atoll(value);
        else if (!strcmp(key, "--device"))
            s->device = argv[i + 1];
        else if (!strcmp(key, "--dtype"))
            s->dtype = dtype_of(value) == DTYPE_BFLOAT ? WANTED_BFLOAT : WANTED_FLOAT;
        else if (!strcmp(key, "--gradient_dtype"))
            s->gradient_dtype = dtype_of(value);
        else if (!strcmp(key, "--moment_dtype"))
            s->moment_dtype = dtype_of(value);
        else if (!strcmp(key, "--random"))
            o.random = atoi(value) != 0;
        else
            DIE("unknown option %s", key);
    }
    REQUIRE(o.model && o.data && o.steps > 0,
            "usage: bench_step --model DIR --data groups.h5 [--pairs N] [--steps N]");
    return o;
}

/* What only a device that is done when an op returns can tell. */
static void print_shares(const double *seconds, double *rates, int steps, double median)
{
    double rate = quantile(rates, steps, 0.5), other = 0, mean = 0;
    printf(" \"sgemm_gflop_per_second\": %.1f, \"share_of_sgemm\": %.4f,\n \"seconds_by_operation\": {",
           rate / 1e9, flops / (double)steps / median / rate);
    for (int i = 0; i < OP_COUNT; i++) {
        printf("\"%s\": %.4f, ", op_names[i], op_seconds[i] / steps);
        other += op_seconds[i] / steps;
    }
    for (int i = 0; i < steps; i++)
        mean += seconds[i] / steps;
    printf("\"rest\": %.4f},\n \"head_other_than_matmul_share\": %.4f,\n", mean - other,
           op_seconds[OP_HEAD] / steps / mean);
}

static void print_result(const struct engine *e, const struct options *o, double *seconds, double *rates,
                         const struct tally *tally, double loss)
{
    int steps = (int)o->steps;
    double median = quantile(seconds, steps, 0.5);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    char *table = arena_table(&e->arena), *device = engine_describe(e);
    printf("{\"device\": \"%s\", \"threads\": %d, \"parameters\": %lld, \"pairs\": %lld, \"steps\": %d,\n",
           device, e->threads, (long long)config_parameters(&e->config), (long long)o->pairs, steps);
    printf(" \"step_seconds\": {\"median\": %.4f, \"p20\": %.4f, \"p80\": %.4f},\n", median,
           quantile(seconds, steps, 0.2), quantile(seconds, steps, 0.8));
    printf(" \"loss\": %.9g, \"tokens_per_second\": %.1f, \"packed_tokens_per_second\": %.1f,\n", loss,
           tally->sum[TALLY_TOKENS] / median, tally->sum[TALLY_PACKED] / median);
    printf(" \"gflop_per_step\": %.2f, \"gflop_per_second\": %.1f,\n", flops / (double)steps / 1e9,
           flops / (double)steps / median / 1e9);
    if (e->ops->on_host) print_shares(seconds, rates, steps, median);
    printf(" \"planned_mib\": %.1f, \"peak_rss_mib\": %.1f, \"arena\": \"%s\"}\n",
           (double)e->arena.bytes / 0x1p20, (double)usage.ru_maxrss / 1024, table);
    free(table);
    free(device);
}

int main(int argc, char **argv)
{
    char device[] = "cpu";
    struct settings s = {.objective = {.beta = 0.1, .weighting = WEIGHTING_SAMPLED, .weight_clamp = true},
                         .learning_rate = 1e-6,
                         .adam_beta1 = 0.9,
                         .adam_beta2 = 0.999,
                         .adam_epsilon = 1e-8,
                         .max_grad_norm = 1,
                         .lr_scheduler_type = SCHEDULE_CONSTANT,
                         .logits_megabytes = 256,
                         .device = device};
    struct options o = parse(argc, argv, &s);
    s.model_name_or_path = text_copy(o.model);
    struct trial trial;
    trial_open(&trial, &s, o.data, o.random ? NULL : o.model, o.pairs, o.pairs);
    struct engine *e = &trial.engine;

    float *a = allocate(ROWS * INNER, sizeof *a), *b = allocate(COLS * INNER, sizeof *b),
          *c = allocate(ROWS * COLS, sizeof *c);
    for (int64_t i = 0; i < ROWS * INNER; i++)
        a[i] = (float)(i % 13) - 6;
    for (int64_t i = 0; i < COLS * INNER; i++)
        b[i] = (float)(i % 11) - 5;
    double *seconds = allocate(o.steps, sizeof *seconds), *rates = allocate(o.steps, sizeof *rates),
           first_loss = 0;
    struct step_result result;
    vocabulary = e->config.vocabulary;
    e->ops = e->model.ops = timed_ops(e->ops);
    for (int64_t step = 0; step < o.warmup + o.steps; step++) {
        if (step == o.warmup) {
            memset(op_seconds, 0, sizeof op_seconds);
            flops = 0;
        }
        double start = omp_get_wtime();
        must(train_step(&trial.trainer, step, &result));
        double end = omp_get_wtime();
        if (step == 0) first_loss = tally_loss(&result.tally, &s.objective);
        if (step < o.warmup) continue;
        seconds[step - o.warmup] = end - start;
        if (e->ops->on_host) rates[step - o.warmup] = library_rate(a, b, c);
    }
    print_result(e, &o, seconds, rates, &result.tally, first_loss);
    e->ops = e->model.ops = inner;
    trial_close(&trial);
    free(a);
    free(b);
    free(c);
    free(seconds);
    free(rates);
    return 0;
}
