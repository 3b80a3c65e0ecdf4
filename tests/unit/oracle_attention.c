/* Attention by the definition: for every query and every key, ask the mask.
 *
 * Bounds for f32, with u = LAB_UNIT, n visible keys, A = max_j scale sum_d |q_d k_jd|, R = max_j |s_j| +
 * |lse|: a score is within (D+4) u A, rounding it and its difference to lse costs 2 u R, and that much is the
 * relative error of p in numerator and denominator; sums of n terms add n u. So p is within a factor 1 + e of
 * the truth, e = 2 ((D+4) u A + 2 u R) + (n+16) u, and everything after that is sums of products, whose error
 * is carried term by term. An f32 exponential may give 0 below e^-87 = 2e-38; in sums of a thousand terms
 * with factors up to 60^3 that stays below TINY.
 *
 * In bf16 the products are exact and summed in f32 as above, with 2 u for u (oracle_lab.c says why). On
 * tensor cores p is rounded to bf16 before it meets v or dout, and ds before it meets k or q: each term of
 * those sums is off by w = LAB_UNIT_BFLOAT of itself. The p may be relative to the largest score so far
 * instead of lse, which changes no relative error. The row's sum may be of the rounded p or of the unrounded:
 * another w. o is rounded when it is stored, and the backward pass reads that rounded o in rowsum(do o).
 *
 * Those bounds are for the worst case, and hide a rounding too many. So there is `noise` as well: an error of
 * rounding spreads evenly over a unit of the last place and has a variance of at most w^2/3 of the square of
 * the number (half of that, were mantissas spread evenly in the logarithm), and roundings are independent.
 * One of o moves all ds of its query together. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

#define TINY 1e-30

static const struct span *span_of(const struct packing *packing, int64_t row, int64_t *index)
{
    for (int64_t s = 0; s < packing->span_count; s++) {
        const struct span *span = packing->spans + s;
        if (row >= span->start && row < span->start + span->count) {
            *index = s;
            return span;
        }
    }
    return NULL;
}

static int64_t group_of(const struct packing *packing, int64_t span)
{
    int64_t g = 0;
    while (packing->group_spans[g + 1] <= span)
        g++;
    return g;
}

bool oracle_sees(const struct packing *packing, int64_t window, int64_t query, int64_t key,
                 enum oracle_flaw flaw)
{
    int64_t query_span = 0, key_span = 0;
    const struct span *own = span_of(packing, query, &query_span), *other = span_of(packing, key, &key_span);
    if (!own || !other) return false;
    bool same = query_span == key_span && key <= query;
    bool prefix = key >= own->prefix_start && key < own->prefix_start + own->prefix_count;
    if (flaw == FLAW_NO_PREFIX) prefix = false;
    if (flaw == FLAW_SIBLING)
        prefix = key < query && group_of(packing, query_span) == group_of(packing, key_span) && !same;
    if (!same && !prefix) return false;
    if (window == 0 || flaw == FLAW_NO_WINDOW) return true;
    int64_t query_position =
        own->position + query - own->start + (flaw == FLAW_POSITION && own->prefix_count);
    int64_t key_position =
        same ? own->position + key - own->start + (flaw == FLAW_POSITION && own->prefix_count)
             : key - own->prefix_start;
    return key_position > query_position - window - (flaw == FLAW_WIDE_WINDOW);
}

/* What one query of one head sees. */
struct scene {
    int64_t *key; /* visible rows, ascending */
    double *p;
    int64_t count;
    double lse, lse_error;
    double error;  /* e above */
    double unit;   /* of an addition: u, or 2 u */
    double narrow; /* w where p and ds are rounded to bf16, else 0 */
};

static double dot(const double *a, const double *b, int64_t count, double *size)
{
    double sum = 0, absolute = 0;
    for (int64_t d = 0; d < count; d++) {
        sum += a[d] * b[d];
        absolute += fabs(a[d] * b[d]);
    }
    if (size) *size = absolute;
    return sum;
}

static const double *key_row(const double *qkv, const struct attention_shape *shape, int64_t row,
                             int64_t head)
{
    return qkv + row * (shape->heads + 2 * shape->key_heads) * shape->head_size +
           (shape->heads + head) * shape->head_size;
}

static int64_t key_head_of(const struct attention_shape *shape, int64_t head, enum oracle_flaw flaw)
{
    return flaw == FLAW_KEY_HEAD ? head % shape->key_heads : head / (shape->heads / shape->key_heads);
}

static void look(struct scene *scene, const double *qkv, const struct attention_shape *shape, int64_t query,
                 int64_t head, enum oracle_flaw flaw)
{
    int64_t width = (shape->heads + 2 * shape->key_heads) * shape->head_size, size = shape->head_size;
    const double *q = qkv + query * width + head * size;
    double maximum = -(double)INFINITY, sum = 0, largest = 0, reach = 0, scale = (double)shape->scale;
    for (int64_t j = 0; j < scene->count; j++) {
        double absolute;
        scene->p[j] = scale * dot(q, key_row(qkv, shape, scene->key[j], key_head_of(shape, head, flaw)), size,
                                  &absolute);
        maximum = fmax(maximum, scene->p[j]);
        largest = fmax(largest, scale * absolute);
        reach = fmax(reach, fabs(scene->p[j]));
    }
    for (int64_t j = 0; j < scene->count; j++)
        sum += exp(scene->p[j] - maximum);
    scene->lse = maximum + log(sum);
    for (int64_t j = 0; j < scene->count; j++)
        scene->p[j] = exp(scene->p[j] - scene->lse);
    double u = scene->unit, score = (double)(size + 4) * u * largest + 2 * u * (reach + fabs(scene->lse));
    scene->error = 2 * score + (double)(scene->count + 16) * u;
    scene->lse_error = score + (double)(scene->count + 16) * u;
}

static struct scene scene_open(int64_t tokens, enum dtype type)
{
    struct scene scene = {.unit = type == DTYPE_BFLOAT ? 2 * LAB_UNIT : LAB_UNIT,
                          .narrow = type == DTYPE_BFLOAT ? LAB_UNIT_BFLOAT : 0,
                          .key = calloc((size_t)tokens, sizeof(int64_t)),
                          .p = calloc((size_t)tokens, sizeof(double))};
    REQUIRE(scene.key && scene.p, "the test has no memory");
    return scene;
}

static void scene_close(struct scene *scene)
{
    free(scene->key);
    free(scene->p);
}

static void find_keys(struct scene *scene, const struct packing *packing, int64_t window, int64_t tokens,
                      int64_t query, enum oracle_flaw flaw)
{
    scene->count = 0;
    for (int64_t key = 0; key < tokens; key++)
        if (oracle_sees(packing, window, query, key, flaw)) scene->key[scene->count++] = key;
}

/* o (out) [D] of one query and head, and the sum of |terms|. */
static void combine(double *o, double *size, const struct scene *scene, const double *qkv,
                    const struct attention_shape *shape, int64_t key_head)
{
    for (int64_t d = 0; d < shape->head_size; d++) {
        o[d] = size[d] = 0;
        for (int64_t j = 0; j < scene->count; j++) {
            const double *v = key_row(qkv, shape, scene->key[j], shape->key_heads + key_head);
            o[d] += scene->p[j] * v[d];
            size[d] += scene->p[j] * fabs(v[d]);
        }
    }
}

/* How far o may be off as it is stored, from the sum of |terms|. */
static double mix_error(const struct scene *scene, double absolute, double o)
{
    double error =
        (scene->error + 2 * scene->narrow + (double)(scene->count + 4) * scene->unit) * absolute + TINY;
    return error + scene->narrow * (fabs(o) + error);
}

/* The variance of one element of o before it is stored, d being its place in the head. */
static double mix_noise(const struct scene *scene, const double *qkv, const struct attention_shape *shape,
                        int64_t key_head, int64_t d)
{
    double squares = 0;
    for (int64_t j = 0; j < scene->count; j++) {
        double term = scene->p[j] * key_row(qkv, shape, scene->key[j], shape->key_heads + key_head)[d];
        squares += term * term;
    }
    return squares * scene->narrow * scene->narrow / 3;
}

void oracle_attention(double *o, double *lse, double *o_bound, double *lse_bound, double *noise,
                      const double *qkv, int64_t tokens, const struct packing *packing,
                      const struct attention_shape *shape, enum oracle_flaw flaw, enum dtype type)
{
    struct scene scene = scene_open(tokens, type);
    int64_t heads = shape->heads, size = shape->head_size;
    double spare[1024];
    for (int64_t query = 0; query < tokens; query++) {
        find_keys(&scene, packing, shape->window, tokens, query, flaw);
        for (int64_t head = 0; head < heads; head++) {
            int64_t at = query * heads + head;
            look(&scene, qkv, shape, query, head, flaw);
            combine(o + at * size, spare, &scene, qkv, shape, key_head_of(shape, head, flaw));
            lse[at] = scene.lse;
            if (lse_bound) lse_bound[at] = scene.lse_error;
            for (int64_t d = 0; o_bound && d < size; d++)
                o_bound[at * size + d] = mix_error(&scene, spare[d], o[at * size + d]);
            for (int64_t d = 0; noise && d < size; d++)
                noise[at * size + d] = mix_noise(&scene, qkv, shape, key_head_of(shape, head, flaw), d) +
                                       scene.narrow * scene.narrow / 3 * o[at * size + d] * o[at * size + d];
        }
    }
    scene_close(&scene);
}

/* The gradients of one query and head, added in; counts [N] says how many terms each key's sums have, size
 * (as dqkv) their absolute values, bound the errors that the terms bring with them. */
static void add_gradients(double *dqkv, double *bound, double *sizes, double *counts, const double *go,
                          const double *qkv, const struct attention_shape *shape, const struct scene *scene,
                          int64_t query, int64_t head, int64_t key_head)
{
    int64_t size = shape->head_size, width = (shape->heads + 2 * shape->key_heads) * size;
    int64_t query_at = query * width + head * size;
    double u = scene->unit, w = scene->narrow, scale = (double)shape->scale, o[1024], absolute[1024],
           delta_size, delta_error = 0;
    combine(o, absolute, scene, qkv, shape, key_head);
    double delta = dot(go, o, size, &delta_size), n = (double)scene->count;
    for (int64_t d = 0; d < size; d++)
        delta_error += fabs(go[d]) * mix_error(scene, absolute[d], o[d]);
    delta_error += (double)(size + 2) * u * delta_size;
    for (int64_t j = 0; j < scene->count; j++) {
        int64_t k_at = scene->key[j] * width + (shape->heads + key_head) * size,
                v_at = k_at + shape->key_heads * size;
        double product_size, product = dot(go, qkv + v_at, size, &product_size), p = scene->p[j];
        double ds = p * (product - delta), ds_size = p * (fabs(product) + fabs(delta));
        double ds_error =
            ds_size * (scene->error + 4 * u) + p * ((double)(size + 2) * u * product_size + delta_error);
        ds_error += w * (fabs(ds) + ds_error);
        for (int64_t d = 0; d < size; d++) {
            double q = qkv[query_at + d], k = qkv[k_at + d];
            dqkv[query_at + d] += scale * ds * k;
            dqkv[k_at + d] += scale * ds * q;
            dqkv[v_at + d] += p * go[d];
            bound[query_at + d] += scale * (ds_error + (n + 4) * u * ds_size) * fabs(k);
            bound[k_at + d] += scale * ds_error * fabs(q);
            bound[v_at + d] += p * (scene->error + w) * fabs(go[d]);
            sizes[k_at + d] += scale * ds_size * fabs(q);
            sizes[v_at + d] += p * fabs(go[d]);
        }
        counts[scene->key[j] * shape->key_heads + key_head]++;
    }
}

/* The noise of one query and head's part of the gradients, added in. */
static void add_noise(double *noise, const double *go, const double *qkv, const struct attention_shape *shape,
                      const struct scene *scene, int64_t query, int64_t head, int64_t key_head)
{
    int64_t size = shape->head_size, width = (shape->heads + 2 * shape->key_heads) * size;
    int64_t query_at = query * width + head * size;
    double square = scene->narrow * scene->narrow / 3, scale = (double)shape->scale, o[1024], absolute[1024];
    combine(o, absolute, scene, qkv, shape, key_head);
    double delta = dot(go, o, size, NULL), delta_noise = 0, mixed[1024] = {0};
    for (int64_t d = 0; d < size; d++)
        delta_noise += square * go[d] * go[d] * o[d] * o[d];
    for (int64_t j = 0; j < scene->count; j++) {
        const double *v = key_row(qkv, shape, scene->key[j], shape->key_heads + key_head);
        double term = scene->p[j] * dot(go, v, size, NULL);
        delta_noise += square * term * term;
    }
    for (int64_t j = 0; j < scene->count; j++) {
        int64_t k_at = scene->key[j] * width + (shape->heads + key_head) * size,
                v_at = k_at + shape->key_heads * size;
        double p = scene->p[j], ds = scale * p * (dot(go, qkv + v_at, size, NULL) - delta);
        for (int64_t d = 0; d < size; d++) {
            double q = qkv[query_at + d], k = qkv[k_at + d];
            mixed[d] += scale * p * k;
            noise[query_at + d] += square * ds * ds * k * k;
            noise[k_at + d] += (square * ds * ds + scale * scale * p * p * delta_noise) * q * q;
            noise[v_at + d] += square * p * p * go[d] * go[d];
        }
    }
    for (int64_t d = 0; d < size; d++)
        noise[query_at + d] += delta_noise * mixed[d] * mixed[d];
}

void oracle_attention_grad(double *dqkv, double *bound, double *noise, const double *dout, const double *qkv,
                           int64_t tokens, const struct packing *packing, const struct attention_shape *shape,
                           enum oracle_flaw flaw, enum dtype type)
{
    struct scene scene = scene_open(tokens, type);
    int64_t heads = shape->heads, key_heads = shape->key_heads, size = shape->head_size;
    int64_t width = (heads + 2 * key_heads) * size;
    double *sizes = calloc((size_t)(tokens * width), sizeof *sizes);
    double *counts = calloc((size_t)(tokens * key_heads), sizeof *counts);
    REQUIRE(sizes && counts, "the test has no memory");
    memset(dqkv, 0, (size_t)(tokens * width) * sizeof *dqkv);
    memset(bound, 0, (size_t)(tokens * width) * sizeof *bound);
    if (noise) memset(noise, 0, (size_t)(tokens * width) * sizeof *noise);
    for (int64_t query = 0; query < tokens; query++) {
        find_keys(&scene, packing, shape->window, tokens, query, flaw);
        for (int64_t head = 0; head < heads; head++) {
            look(&scene, qkv, shape, query, head, flaw);
            add_gradients(dqkv, bound, sizes, counts, dout + (query * heads + head) * size, qkv, shape,
                          &scene, query, head, key_head_of(shape, head, flaw));
            if (noise)
                add_noise(noise, dout + (query * heads + head) * size, qkv, shape, &scene, query, head,
                          key_head_of(shape, head, flaw));
        }
    }
    for (int64_t i = 0; i < tokens * width; i++) {
        int64_t head = i % width / size - heads;
        if (head >= 0)
            bound[i] += (counts[i / width * key_heads + head % key_heads] + 4) * scene.unit * sizes[i];
        bound[i] += TINY;
        if (noise) noise[i] += scene.narrow * scene.narrow / 3 * dqkv[i] * dqkv[i];
    }
    lab_stored(type, bound, dqkv, tokens * width);
    free(sizes);
    free(counts);
    scene_close(&scene);
}
