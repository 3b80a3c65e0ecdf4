/* The table of operations: everything a backend must be able to do, and all the arithmetic the program has.
 *
 * Each declaration states its line of algebra, the shapes, and for each argument whether it is read (in),
 * overwritten (out), read and overwritten (inout) or added into (acc). All calls are queued on one of the
 * device's queues and return at once; only download() and sync() wait. Nothing here allocates but alloc().
 * Results do not depend on the number of threads, and no sum runs in an order that changes from run to run. A
 * shape that does not fit is a bug: REQUIRE.
 *
 * Matrices are f32 or bf16 (`cpu`: f32 alone). Where nothing else is said the matrices of one call have one
 * type, and a vector given as `const void *` has that type too; gradients of parameters (dweight, dbias, the
 * c of an accumulating matmul, the dx of scatter_rows) may be f32 while the rest is bf16. Sums are carried in
 * f32 or better and rounded once, when they are stored.
 *
 * Rows of a matrix stand for packed tokens. Linear layers store weights as Hugging Face does: [out, in]. */
#ifndef WPO_KERNELS_OPS_H
#define WPO_KERNELS_OPS_H

#include "kernels/objective.h"
#include "kernels/packing.h"
#include "kernels/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct device; /* a backend's own state: stream, threads, workspace */

/* What is queued on one queue runs in order; two queues run beside each other. `cpu` has but one. */
enum queue { QUEUE_COMPUTE, QUEUE_EXCHANGE, QUEUES };

struct attention_shape {
    int64_t heads, key_heads, head_size;
    int64_t window; /* a query at position p sees positions > p - window; 0: all before it */
    float scale;    /* 1 / sqrt(head_size) */
};

/* Columns of the statistics of one scored token; z are its logits, y its target. The sums are over the
 * vocabulary. */
enum head_statistic {
    HEAD_MAXIMUM,    /* m = max z */
    HEAD_LOG_SUM,    /* log s1, s1 = sum exp(z - m);  log max p = -log s1 */
    HEAD_LOGP,       /* z_y - m - log s1 */
    HEAD_LOG_SQUARE, /* log sum p^2 = log s2 - 2 log s1, s2 = sum exp(2(z - m)): m cancels */
    HEAD_ENTROPY,    /* log s1 - t1/s1, t1 = sum (z - m) exp(z - m) */
    HEAD_MEAN,       /* mean z */
    HEAD_HIT,        /* 1 if z_y = m */
    HEAD_SPARE,
    HEAD_STATISTICS /* = 8 floats, 32 bytes a token */
};

/* A contiguous run of parameters for the optimiser. f32 parameters are their own master; of bf16 parameters
 * the master is parameter and low together (kernels/bfloat.h). */
struct adamw_piece {
    void *parameter;         /* inout, [count] of settings->parameter_type */
    int16_t *low;            /* inout, [count]; NULL where parameters are f32 */
    void *moment, *variance; /* inout, [count] of settings->moment_type */
    const void *gradient;    /* in, [count] of settings->gradient_type */
    int64_t count;
    int64_t first; /* place of the first element in the model, for the random numbers */
    bool decay;
};

/* Decoupled weight decay (Loshchilov & Hutter 2019). With the scale of clipping, s = max_norm / (norm + 1e-6)
 * where norm > max_norm > 0 and else 1, g = s gradient:
 *   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
 *   p = p - rate (weight_decay p if decay) - rate (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + epsilon)
 * bf16 moments are rounded stochastically, by a hash of (seed, step, element): unbiased, and the same
 * whichever rank does it. */
struct adamw {
    double rate, beta_first, beta_second, epsilon, weight_decay;
    double max_norm; /* 0: no clipping */
    int64_t step;    /* 1 at the first update */
    uint64_t seed;
    enum dtype parameter_type, moment_type, gradient_type;
};

/* Groups whose objective is computed. All arrays are the device's. */
struct objective_groups {
    int64_t count;          /* G */
    const int64_t *segment; /* [G+1] group g's completions are segment[g] - segment[0] .. in sums and data */
    const int64_t *first;   /* [S+1] scored tokens of each */
    const int64_t *shared;  /* [S] how many of them are leading ones */
    bool prompts;           /* the last segment of each group is its prompt's own tokens */
};

struct ops {
    const char *name; /* "cpu", "cuda" */
    /* Head sizes that attention takes: multiples of head_multiple up to head_limit (0: any), on this device
     * up to head_fits() with its backward. */
    int64_t head_multiple, head_limit;
    int64_t (*head_fits)(struct device *device, enum dtype type); /* NULL: head_limit */
    bool has_bfloat;                                              /* computes in bf16 as well as in f32 */
    bool on_host; /* device memory is host memory, and ops are done when they return */

    /* -- the device and its memory ------------------------------------------------------------ */

    /* How many devices there are; where none, *why tells the reason in a sentence (static storage). */
    int (*count)(const char **why);
    /* Opens device `index`; threads > 0 fixes the number of CPU threads, 0 keeps the environment's. NULL on
     * failure, with the reason in *why (static storage). */
    struct device *(*open)(int index, int threads, const char **why);
    void (*close)(struct device *device);
    /* For people: name, memory, driver. Owned by the device. */
    const char *(*describe)(struct device *device);
    /* The hardware's own mark: no two devices of a host have the same, whatever index a process sees them
     * under. NULL for `cpu`. */
    void (*identity)(struct device *device, unsigned char mark[16]);
    void *(*alloc)(struct device *device,
                   size_t bytes); /* 64-byte aligned, not cleared; NULL when there is no room */
    void (*free)(struct device *device, void *memory);
    /* The host's memory may be changed as soon as it returns. */
    void (*upload)(struct device *device, void *to_device, const void *from_host, size_t bytes);
    void (*download)(struct device *device, void *to_host, const void *from_device, size_t bytes); /* waits */
    void (*copy)(struct device *device, void *to, const void *from, size_t bytes);
    void (*zero)(struct device *device, void *memory, size_t bytes);
    /* Every f32 in it becomes NaN: what is read before it is written shows. */
    void (*poison)(struct device *device, void *memory, size_t bytes);
    void (*sync)(struct device *device); /* waits for all queues */

    /* Ops are queued on this queue from now on. */
    void (*use)(struct device *device, enum queue queue);
    /* What is queued on `later` from now on starts after all that is queued on `earlier` so far. The host
     * does not wait. */
    void (*follow)(struct device *device, enum queue later, enum queue earlier);
    /* Whether all that was queued has run; never waits. */
    bool (*idle)(struct device *device, enum queue queue);
    /* The backend's own handle of a queue, for libraries that queue work themselves; NULL for `cpu`. */
    void *(*handle)(struct device *device, enum queue queue);

    /* -- linear algebra ----------------------------------------------------------------------- */

    /* c (out, or acc if accumulate) [m,n] = op(a) op(b), op = transpose where asked. a, b in, of one type; c
     * of that type or f32. c overlaps neither. */
    void (*matmul)(struct device *device, struct tensor c, struct tensor a, bool transpose_a, struct tensor b,
                   bool transpose_b, bool accumulate);

    /* y (inout) [N,C] = y + 1 bias^T;  bias (in) [C] */
    void (*bias)(struct device *device, struct tensor y, const void *bias);
    /* dbias (acc) [1,C] += column sums of dy (in) [N,C] */
    void (*bias_grad)(struct device *device, struct tensor dbias, struct tensor dy);

    /* -- embedding and rows ------------------------------------------------------------------- */

    /* y (out) [n,C]: row i = row index[i] of x (in). index (in) [n]; index[i] < 0 gives a row of zeros. The
     * embedding is this with x = its table. */
    void (*gather_rows)(struct device *device, struct tensor y, struct tensor x, const int64_t *index);
    /* dx (acc) [M,C]: row index[i] += row i of dy (in) [n,C], in order of i; index[i] < 0 is passed over. */
    void (*scatter_rows)(struct device *device, struct tensor dx, struct tensor dy, const int64_t *index);

    /* -- layers ------------------------------------------------------------------------------- */

    /* sum (out) = x (in) + r (in), y (out) = sum / sqrt(mean(sum^2) + epsilon) * weight; all [N,C], weight
     * (in) [C]. r.data NULL: sum is not written and may be NULL, y is the norm of x. sum may be x. */
    void (*rmsnorm)(struct device *device, struct tensor y, struct tensor sum, struct tensor x,
                    struct tensor r, const void *weight, float epsilon);
    /* With rstd = 1/sqrt(mean(x^2) + epsilon), per row:
     *   dx (acc) += rstd (dy*w - x rstd^2 mean(x*dy*w));  dweight (acc) [1,C] += sum over rows of dy x rstd.
     */
    void (*rmsnorm_grad)(struct device *device, struct tensor dx, struct tensor dweight, struct tensor dy,
                         struct tensor x, const void *weight, float epsilon);

    /* x (inout) [N, heads*D]: each head's halves (a, b) become (a cos - b sin, b cos + a sin), the angle of
     * pair j at position[n] being table row position[n]: D/2 cosines, then D/2 sines (in, f32 [positions,
     * D]). inverse turns the other way, which is the gradient. */
    void (*rope)(struct device *device, struct tensor x, int64_t heads, const int64_t *position,
                 const float *table, bool inverse);

    /* o (out) [N, H D] = softmax(scale q k^T + mask) v per head, over qkv (in) [N, (H + 2K) D] = q | k | v;
     * query head h reads key head h / (H/K). lse (out) f32 [N, H] = log sum exp of the scaled scores. The
     * mask is the packing's spans. */
    void (*attention)(struct device *device, struct tensor o, float *lse, struct tensor qkv,
                      struct packing packing, struct attention_shape shape);
    /* dqkv (out) from dout (in) [N, H D] and the forward's o, lse, qkv (in):
     *   p = exp(scale q k^T - lse);  dv = p^T do;  ds = p (do v^T - rowsum(do o));  dq = scale ds k;  dk =
     * scale ds^T q workspace (inout): attention_workspace() bytes. */
    void (*attention_grad)(struct device *device, struct tensor dqkv, struct tensor dout, struct tensor o,
                           const float *lse, struct tensor qkv, struct packing packing,
                           struct attention_shape shape, void *workspace);
    size_t (*attention_workspace)(struct device *device, int64_t tokens, struct attention_shape shape);

    /* y (out) [N,F] = silu(g) u, gate_up (in) [N,2F] = g | u, silu(g) = g / (1 + e^-g). */
    void (*swiglu)(struct device *device, struct tensor y, struct tensor gate_up);
    /* dgate_up (out; may be gate_up itself) [N,2F] = dy u silu'(g) | dy silu(g). */
    void (*swiglu_grad)(struct device *device, struct tensor dgate_up, struct tensor dy,
                        struct tensor gate_up);

    /* -- head and objective ------------------------------------------------------------------- */

    /* statistics (out) f32 [T, HEAD_STATISTICS] of logits (in) [T,V] and target (in) [T]: each logit is read
     * once. */
    void (*head_statistics)(struct device *device, float *statistics, struct tensor logits,
                            const int64_t *target);
    /* dlogits (out) [T,V]: dz = coefficient_t (onehot(target) - softmax(z)), coefficient (in) f32 [T], logits
     * (in) [T,V] = z. dlogits may be the logits' own memory, also where dlogits are bf16 and logits are f32,
     * if every row begins where the logits' row begins (the stride in bytes is the same). */
    void (*head_gradient)(struct device *device, struct tensor dlogits, struct tensor logits,
                          const float *statistics, const int64_t *target, const float *coefficient);
    /* Sums of completion s over its tokens first[s] .. first[s+1]-1 of statistics, in order, the first
     * shared[s] of which are its leading ones. sums (out) [S]. */
    void (*head_sums)(struct device *device, struct completion_sums *sums, const float *statistics,
                      const int64_t *first, const int64_t *shared, int64_t completions);
    /* objective_group() for each group: results (out) [G]; coefficient (out) f32 [T], of every token. sums,
     * data (in) [S] of the groups' completions; objective and facts are host memory. */
    void (*objective)(struct device *device, struct group_result *results, float *coefficient,
                      const struct completion_sums *sums, const struct completion_data *data,
                      struct objective_groups groups, const struct objective *objective,
                      const struct batch_facts *facts);

    /* -- optimiser ---------------------------------------------------------------------------- */

    /* result (out, device memory) = sum of squares of x (in) [1,n]; NaN and infinity show in it. */
    void (*sum_squares)(struct device *device, double *result, struct tensor x);
    /* norm (out, device memory) = sqrt(sum of squares[0..count-1] (in, device memory)), in order. */
    void (*norm)(struct device *device, double *norm, const double *squares, int64_t count);
    /* One update of all pieces (host memory, the same list every time; what they point to is the device's).
     * norm (in, device memory): of the whole gradient; where it is not finite nothing changes. */
    void (*adamw)(struct device *device, const struct adamw_piece *pieces, int64_t piece_count,
                  const struct adamw *settings, const double *norm);
    /* result (out, device memory) = sum mod 2^64 of checksum_word(bits of x_i, i) over x (in) [1,n], any type
     * (kernels/checksum.h): the same on every backend. */
    void (*checksum)(struct device *device, uint64_t *result, struct tensor x);
    /* y (out) [1,n] = sum over the rows of x (in) [R,n], in order. y may be a row of x. */
    void (*sum_rows)(struct device *device, struct tensor y, struct tensor x);
};

/* The backends. cuda_ops() is NULL in a build without CUDA. */
const struct ops *cpu_ops(void);
const struct ops *cuda_ops(void);

#ifdef __cplusplus
}
#endif

#endif
