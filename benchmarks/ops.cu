/* bench_ops [--small] [--samples N] [--only WORD] [--out FILE] [--device N]
 *
 * Every operation of the CUDA backend by itself, on random data, at the sizes of an 8-billion-parameter Llama
 * over 16384 packed tokens (--small: a few rows, to see that it runs). Two yardsticks are measured first and
 * everything is held to them: a large device copy, in bytes read plus bytes written, and a large bf16 matrix
 * product. For each row: the bytes it cannot avoid moving or the FLOPs it must do, the median time over N
 * samples between CUDA events after three that do not count, the rate, the time its roofline allows and the
 * share of it reached. Prints a table to standard error and one JSON object to FILE (standard output without
 * it). Exits with 77 where there is no device. */
#include "benchmarks/ops_bench.cuh"

/* -- yardsticks ------------------------------------------------------------------------------- */

static void product(struct bench *b, const char *name, enum dtype type, enum dtype result, int64_t m,
                    int64_t n, int64_t k, bool transpose_a, bool transpose_b, bool accumulate,
                    bool yardstick = false)
{
    if (!wanted(b, name) && !yardstick) return;
    struct tensor a = matrix(b, type, transpose_a ? k : m, transpose_a ? m : k);
    struct tensor w = matrix(b, type, transpose_b ? n : k, transpose_b ? k : n, 0.02f);
    struct tensor c = matrix(b, result, m, n);
    auto call = [=] { b->ops->matmul(b->device, c, a, transpose_a, w, transpose_b, accumulate); };
    if (yardstick) warm_up(b, call);
    struct timing t = measure(b, b->samples, call);
    double flops = 2.0 * (double)m * (double)n * (double)k;
    if (yardstick) b->product_rate = flops / t.median;
    report(b, name, by({m, n, k}) + (accumulate ? ", added" : ""), {0, flops, 0}, t);
    release(b);
}

static void yardsticks(struct bench *b)
{
    size_t bytes = b->size.copy_bytes;
    struct tensor from = matrix(b, DTYPE_FLOAT, 1, (int64_t)(bytes / 4)),
                  to = matrix(b, DTYPE_FLOAT, 1, (int64_t)(bytes / 4));
    warm_up(b, [=] { b->ops->copy(b->device, to.data, from.data, bytes); });
    struct timing t = measure(b, b->samples, [=] { b->ops->copy(b->device, to.data, from.data, bytes); });
    b->copy_rate = 2.0 * (double)bytes / t.median;
    report(b, "copy", "the yardstick of bytes", {2.0 * (double)bytes, 0, 0}, t);
    release(b);
    int64_t n = b->size.side;
    product(b, "product", DTYPE_BFLOAT, DTYPE_BFLOAT, n, n, n, false, true, false, true);
}

static void products(struct bench *b)
{
    const struct sizes s = b->size;
    int64_t n = s.tokens, c = s.width, f = s.hidden, qkv = (s.heads + 2 * s.key_heads) * s.head_size;
    const enum dtype bf = DTYPE_BFLOAT, fl = DTYPE_FLOAT;
    product(b, "product qkv", bf, bf, n, qkv, c, false, true, false);
    product(b, "product out", bf, bf, n, c, s.heads * s.head_size, false, true, false);
    product(b, "product gate_up", bf, bf, n, 2 * f, c, false, true, false);
    product(b, "product gate_up, to the input", bf, bf, n, c, 2 * f, false, false, false);
    product(b, "product gate_up, to the weight", bf, bf, 2 * f, c, n, true, false, true);
    product(b, "product down", bf, bf, n, c, f, false, true, false);
    product(b, "product head, f32 logits", bf, fl, s.chunk, s.vocabulary, c, false, true, false);
    product(b, "product head, to the weight, f32", bf, fl, s.vocabulary, c, s.chunk, true, false, true);
}

/* -- element by element ----------------------------------------------------------------------- */

static void layers(struct bench *b)
{
    const struct sizes s = b->size;
    const struct ops *ops = b->ops;
    struct device *d = b->device;
    const enum dtype bf = DTYPE_BFLOAT;
    int64_t n = s.tokens, c = s.width, f = s.hidden, rotated = (s.heads + s.key_heads) * s.head_size;
    double nc = 2.0 * (double)(n * c), nf = 2.0 * (double)(n * f); /* bytes of such a matrix in bf16 */
    struct tensor x = matrix(b, bf, n, c), r = matrix(b, bf, n, c), y = matrix(b, bf, n, c),
                  dx = matrix(b, bf, n, c);
    struct tensor weight = matrix(b, bf, 1, c), dweight = matrix(b, DTYPE_FLOAT, 1, c);
    run(b, "rmsnorm with residual", by({n, c}), {4 * nc, 0, 0.85},
        [&] { ops->rmsnorm(d, y, dx, x, r, weight.data, 1e-5f); });
    struct tensor none = x;
    none.data = NULL;
    run(b, "rmsnorm", by({n, c}), {2 * nc, 0, 0.85},
        [&] { ops->rmsnorm(d, y, none, x, none, weight.data, 1e-5f); });
    run(b, "rmsnorm_grad", by({n, c}), {4 * nc, 0, 0.85},
        [&] { ops->rmsnorm_grad(d, dx, dweight, y, x, weight.data, 1e-5f); });
    run(b, "bias", by({n, c}), {2 * nc, 0, 0.85}, [&] { ops->bias(d, y, weight.data); });
    run(b, "bias_grad", by({n, c}), {nc, 0, 0.85}, [&] { ops->bias_grad(d, dweight, y); });

    int64_t table_rows = std::max(n, s.vocabulary);
    int64_t *index = array(b, places(n, table_rows));
    struct tensor table = matrix(b, bf, table_rows, c), dtable = matrix(b, DTYPE_FLOAT, table_rows, c);
    run(b, "gather_rows", by({n, c}) + " of " + std::to_string(table_rows), {2 * nc, 0, 0.85},
        [&] { ops->gather_rows(d, y, table, index); });
    run(b, "scatter_rows, f32 sums", by({n, c}) + " to " + std::to_string(table_rows), {5 * nc, 0, 0.85},
        [&] { ops->scatter_rows(d, dtable, x, index); });

    struct tensor qk = matrix(b, bf, n, rotated), angles = matrix(b, DTYPE_FLOAT, s.span, s.head_size);
    int64_t *position = array(b, places(n, s.span));
    run(b, "rope", by({n, s.heads + s.key_heads, s.head_size}), {4.0 * (double)(n * rotated), 0, 0.85},
        [&] { ops->rope(d, qk, s.heads + s.key_heads, position, (const float *)angles.data, false); });
    release(b);

    struct tensor gate_up = matrix(b, bf, n, 2 * f), out = matrix(b, bf, n, f),
                  dgate_up = matrix(b, bf, n, 2 * f);
    run(b, "swiglu", by({n, f}), {3 * nf, 0, 0.85}, [&] { ops->swiglu(d, out, gate_up); });
    run(b, "swiglu_grad", by({n, f}), {5 * nf, 0, 0.85},
        [&] { ops->swiglu_grad(d, dgate_up, out, gate_up); });
    release(b);
}

/* -- head ------------------------------------------------------------------------------------- */

struct head {
    struct tensor x, w, dx, dw, logits, dlogits;
    float *statistics, *coefficient;
    int64_t *target;
    struct objective_groups of;
    struct completion_sums *sums;
    struct group_result *results;
    struct completion_data *data;
    int64_t groups, completions;
};

static struct head head_open(struct bench *b)
{
    const struct sizes s = b->size;
    const enum dtype bf = DTYPE_BFLOAT;
    struct head h;
    int64_t rows = s.chunk, v = s.vocabulary, all = rows * s.chunks;
    h.groups = std::max<int64_t>(rows / 1024, 1), h.completions = 2 * h.groups;
    h.x = matrix(b, bf, all, s.width), h.w = matrix(b, bf, v, s.width, 0.05f);
    h.dx = matrix(b, bf, all, s.width), h.dw = matrix(b, DTYPE_FLOAT, v, s.width);
    h.logits = matrix(b, DTYPE_FLOAT, rows, v);
    h.dlogits = h.logits; /* bf16 in the place of f32: same rows, same stride in bytes */
    h.dlogits.type = bf, h.dlogits.stride = 2 * v;
    h.statistics = (float *)room(b, (size_t)rows * HEAD_STATISTICS * sizeof(float));
    h.coefficient = (float *)room(b, (size_t)rows * sizeof(float));
    h.target = array(b, places(rows, v));
    std::vector<int64_t> first, segment, shared((size_t)h.completions, rows / h.completions);
    for (int64_t i = 0; i <= h.completions; i++)
        first.push_back(i * rows / h.completions);
    for (int64_t g = 0; g <= h.groups; g++)
        segment.push_back(2 * g);
    h.of = {h.groups, array(b, segment), array(b, first), array(b, shared), false};
    h.data = array(b, std::vector<struct completion_data>((size_t)h.completions, {-100.0, 0, 0}));
    h.sums = (struct completion_sums *)room(b, (size_t)h.completions * sizeof *h.sums);
    h.results = (struct group_result *)room(b, (size_t)h.groups * sizeof *h.results);
    return h;
}

/* Coefficients of a chunk, from the statistics of its tokens. */
static void head_objective(struct bench *b, const struct head *h)
{
    struct objective wpo = objective_of(LOSS_SIGMOID, WEIGHTING_SAMPLED);
    struct batch_facts facts = {0.125, 0.125, 0, 0, {1, 1}};
    b->ops->head_sums(b->device, h->sums, h->statistics, h->of.first, h->of.shared, h->completions);
    b->ops->objective(b->device, h->results, h->coefficient, h->sums, h->data, h->of, &wpo, &facts);
}

/* The chunks of one pass over the head: three products, and between them the objective unless `bare`. */
static void head_pass(struct bench *b, const struct head *h, bool bare)
{
    const struct ops *ops = b->ops;
    struct device *d = b->device;
    int64_t rows = b->size.chunk;
    for (int64_t i = 0; i < b->size.chunks; i++) {
        struct tensor x = tensor_rows(h->x, i * rows, rows), dx = tensor_rows(h->dx, i * rows, rows);
        ops->matmul(d, h->logits, x, false, h->w, true, false);
        if (!bare) {
            ops->head_statistics(d, h->statistics, h->logits, h->target);
            head_objective(b, h);
            ops->head_gradient(d, h->dlogits, h->logits, h->statistics, h->target, h->coefficient);
        }
        ops->matmul(d, dx, h->dlogits, false, h->w, false, false);
        ops->matmul(d, h->dw, h->dlogits, true, x, false, true);
    }
}

static void head(struct bench *b)
{
    const struct sizes s = b->size;
    const struct ops *ops = b->ops;
    struct device *d = b->device;
    struct head h = head_open(b);
    double logits = (double)(s.chunk * s.vocabulary), flops = 6.0 * logits * (double)(s.chunks * s.width);
    struct tensor half = matrix(b, DTYPE_BFLOAT, s.chunk, s.vocabulary, 8),
                  out = matrix(b, DTYPE_BFLOAT, s.chunk, s.vocabulary);
    ops->head_statistics(d, h.statistics, h.logits, h.target);
    head_objective(b, &h);
    run(b, "head_statistics, f32 logits", by({s.chunk, s.vocabulary}), {4 * logits, 0, 0.90},
        [&] { ops->head_statistics(d, h.statistics, h.logits, h.target); });
    run(b, "head_gradient, f32 to bf16", by({s.chunk, s.vocabulary}), {6 * logits, 0, 0.90},
        [&] { ops->head_gradient(d, out, h.logits, h.statistics, h.target, h.coefficient); });
    run(b, "head_statistics, bf16 logits", by({s.chunk, s.vocabulary}), {2 * logits, 0, 0.90},
        [&] { ops->head_statistics(d, h.statistics, half, h.target); });
    run(b, "head_gradient, bf16 to bf16", by({s.chunk, s.vocabulary}), {4 * logits, 0, 0.90},
        [&] { ops->head_gradient(d, out, half, h.statistics, h.target, h.coefficient); });
    run(b, "head_sums and objective", by({h.groups, 2, s.chunk / h.completions}),
        {(double)s.chunk * 36, 0, 0}, [&] { head_objective(b, &h); });
    double bare = run(b, "head, bare products", by({h.x.rows, s.width, s.vocabulary}), {0, flops, 0},
                      [&] { head_pass(b, &h, true); });
    double whole = run(b, "head, whole", by({h.x.rows, s.width, s.vocabulary}),
                       {10 * logits * (double)s.chunks, flops, 0.90}, [&] { head_pass(b, &h, false); });
    b->head_over_products = bare > 0 && whole > 0 ? whole / bare : 0;
    release(b);
}

/* -- attention -------------------------------------------------------------------------------- */

/* `groups` prompts of `prompt` tokens, each with `completions` completions of `each` tokens that share it. */
static struct packing pack(struct bench *b, int64_t groups, int64_t prompt, int64_t completions, int64_t each,
                           double *couples)
{
    std::vector<struct span> spans;
    std::vector<int64_t> group_spans = {0};
    int64_t at = 0;
    *couples = 0; /* of a query and a key that it sees */
    for (int64_t g = 0; g < groups; g++) {
        int64_t start = at;
        spans.push_back({start, prompt, 0, 0, 0});
        *couples += (double)prompt * (double)(prompt + 1) / 2;
        at += prompt;
        for (int64_t i = 0; i < completions; i++, at += each) {
            spans.push_back({at, each, start, prompt, prompt});
            *couples += (double)each * ((double)prompt + (double)(each + 1) / 2);
        }
        group_spans.push_back((int64_t)spans.size());
    }
    std::vector<struct packing_tile> tiles((size_t)packing_tiles_room(at, (int64_t)spans.size()));
    struct packing p;
    p.span_count = (int64_t)spans.size(), p.group_count = groups;
    p.tile_count = packing_cut(tiles.data(), spans.data(), group_spans.data(), groups);
    p.longest = prompt + (completions ? each : 0);
    p.spans = array(b, spans), p.group_spans = array(b, group_spans), p.tiles = array(b, tiles);
    return p;
}

static void attention(struct bench *b, const char *what, int64_t groups, int64_t prompt, int64_t completions,
                      int64_t each, int64_t head_size)
{
    const struct sizes s = b->size;
    const struct ops *ops = b->ops;
    struct device *d = b->device;
    const enum dtype bf = DTYPE_BFLOAT;
    int64_t n = groups * (prompt + completions * each), out = s.heads * head_size;
    struct attention_shape shape = {s.heads, s.key_heads, head_size, 0, 1 / sqrtf((float)head_size)};
    double couples;
    struct packing packing = pack(b, groups, prompt, completions, each, &couples);
    struct tensor qkv = matrix(b, bf, n, (s.heads + 2 * s.key_heads) * head_size),
                  dqkv = matrix(b, bf, n, qkv.cols);
    struct tensor o = matrix(b, bf, n, out), dout = matrix(b, bf, n, out);
    float *lse = (float *)matrix(b, DTYPE_FLOAT, n, s.heads).data;
    void *workspace = room(b, ops->attention_workspace(d, n, shape) + 64);
    double flops = 4 * couples * (double)out;
    std::string forward = std::string("attention, ") + what,
                backward = std::string("attention_grad, ") + what;
    std::string sides = by({n, s.heads, head_size}) + " of " + by({groups, prompt});
    if (completions) sides += " + " + by({completions, each});
    /* 400 and 300 TFLOP/s at head size 128, of a product's 790 */
    double aim = head_size == 128 ? 1 : 0;
    ops->attention(d, o, lse, qkv, packing, shape); /* the gradient needs a true lse */
    run(b, forward.c_str(), sides, {0, flops, aim * 0.50},
        [&] { ops->attention(d, o, lse, qkv, packing, shape); });
    run(b, backward.c_str(), sides, {0, 2.5 * flops, aim * 0.38},
        [&] { ops->attention_grad(d, dqkv, dout, o, lse, qkv, packing, shape, workspace); });
    release(b);
}

static void attentions(struct bench *b)
{
    int64_t span = b->size.span, groups = b->size.tokens / span;
    for (int64_t head_size = 128; head_size >= 64; head_size /= 2) {
        std::string size = std::to_string(head_size);
        attention(b, ("causal, D=" + size).c_str(), groups, span, 0, 0, head_size);
        attention(b, ("shared prefix, D=" + size).c_str(), groups, span / 2, 2, span / 4, head_size);
        attention(b, ("short pairs, D=" + size).c_str(), groups * 4, span / 8, 2, span / 16, head_size);
    }
}

/* -- optimiser -------------------------------------------------------------------------------- */

static void update(struct bench *b, const char *name, enum dtype moment_type, double bytes)
{
    const enum dtype bf = DTYPE_BFLOAT;
    int64_t n = b->size.parameters;
    struct tensor p = matrix(b, bf, 1, n, 0.02f), low = matrix(b, bf, 1, n), g = matrix(b, bf, 1, n, 1e-3f);
    struct tensor m = matrix(b, moment_type, 1, n, 1e-4f), v = matrix(b, moment_type, 1, n, 0);
    struct adamw settings;
    memset(&settings, 0, sizeof settings);
    settings.rate = 1e-6, settings.beta_first = 0.9, settings.beta_second = 0.999, settings.epsilon = 1e-8;
    settings.max_norm = 1, settings.step = 1, settings.seed = 42;
    settings.parameter_type = bf, settings.gradient_type = bf, settings.moment_type = moment_type;
    double *norm = array(b, std::vector<double>(1, 1.5));
    std::vector<struct adamw_piece> pieces; /* as many as a model of 32 layers has */
    for (int64_t i = 0, first = 0; i < 256; i++) {
        int64_t end = n * (i + 1) / 256 / 8 * 8, unit = (int64_t)dtype_bytes(moment_type);
        struct adamw_piece piece;
        memset(&piece, 0, sizeof piece);
        piece.parameter = (char *)p.data + 2 * first, piece.low = (int16_t *)low.data + first;
        piece.moment = (char *)m.data + unit * first, piece.variance = (char *)v.data + unit * first;
        piece.gradient = (const char *)g.data + 2 * first;
        piece.count = end - first, piece.first = first, piece.decay = true;
        if (piece.count > 0) pieces.push_back(piece);
        first = end;
    }
    run(b, name, by({n}), {bytes * (double)n, 0, 0.90},
        [&] { b->ops->adamw(b->device, pieces.data(), (int64_t)pieces.size(), &settings, norm); });
    release(b);
}

static void optimiser(struct bench *b)
{
    const struct ops *ops = b->ops;
    struct device *d = b->device;
    int64_t n = b->size.parameters;
    update(b, "adamw, f32 moments", DTYPE_FLOAT, 26);
    update(b, "adamw, bf16 moments", DTYPE_BFLOAT, 18);
    struct tensor g = matrix(b, DTYPE_BFLOAT, 1, n), f = matrix(b, DTYPE_FLOAT, 1, n);
    double *result = (double *)room(b, 64);
    run(b, "sum_squares, bf16", by({n}), {2.0 * (double)n, 0, 0.85}, [&] { ops->sum_squares(d, result, g); });
    run(b, "sum_squares, f32", by({n}), {4.0 * (double)n, 0, 0.85}, [&] { ops->sum_squares(d, result, f); });
    run(b, "zero", by({n}), {4.0 * (double)n, 0, 0}, [&] { ops->zero(d, f.data, (size_t)n * 4); });
    struct tensor rows = tensor_of(f.data, DTYPE_FLOAT, 8, n / 8), sum = matrix(b, DTYPE_FLOAT, 1, n / 8);
    run(b, "sum_rows of 8", by({8, n / 8}), {4.5 * (double)n, 0, 0.85}, [&] { ops->sum_rows(d, sum, rows); });
    release(b);
}

/* -- the program ------------------------------------------------------------------------------ */

static void write_result(const struct bench *b, const char *path)
{
    FILE *file = path ? fopen(path, "w") : stdout;
    REQUIRE(file, "%s cannot be written", path);
    fprintf(file,
            "{\"device\": \"%s\", \"copy_gigabytes_per_second\": %.5g, \"product_teraflops\": %.5g, "
            "\"samples\": %d,\n"
            " \"head_over_products\": %.4f, \"rows\": [%s\n ]}\n",
            b->ops->describe(b->device), b->copy_rate / 1e9, b->product_rate / 1e12, b->samples,
            b->head_over_products, b->rows.c_str());
    if (path) REQUIRE(fclose(file) == 0, "%s cannot be written", path);
}

int main(int argc, char **argv)
{
    struct bench b = {};
    const char *out = NULL, *why = "this build has no CUDA backend";
    int index = 0;
    b.size = full, b.samples = 21;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--small"))
            b.size = small;
        else if (!strcmp(argv[i], "--samples") && more)
            b.samples = std::max(1, atoi(argv[++i]));
        else if (!strcmp(argv[i], "--only") && more)
            b.only = argv[++i];
        else if (!strcmp(argv[i], "--out") && more)
            out = argv[++i];
        else if (!strcmp(argv[i], "--device") && more)
            index = atoi(argv[++i]);
        else
            DIE("usage: bench_ops [--small] [--samples N] [--only WORD] [--out FILE] [--device N]");
    }
    b.ops = cuda_ops();
    if (b.ops && b.ops->count(&why) > index) b.device = b.ops->open(index, 0, &why);
    if (!b.device) {
        fprintf(stderr, "skipped: %s\n", why);
        return 77;
    }
    yardsticks(&b);
    products(&b);
    layers(&b);
    head(&b);
    attentions(&b);
    optimiser(&b);
    write_result(&b, out);
    b.ops->close(b.device);
    return 0;
}
