/* Every op of kernels/ops.h once more, in double, by the shortest loops that can be written. The gradients
 * are not here but for attention: tests take them from oracle_derivative() of these. All arrays are dense,
 * row-major. */
#ifndef WPO_TESTS_UNIT_ORACLE_OPS_H
#define WPO_TESTS_UNIT_ORACLE_OPS_H

#include "kernels/ops.h"

/* d loss / d *x by the five-point rule, error h^4 f''''' / 30 + 2e-16 |f| / h with h = 1e-3 max(1, |*x|):
 * about 1e-12 for the functions here. *x is put back. */
double oracle_derivative(double (*loss)(void *context), void *context, double *x);

/* c (out) [m,n] = op(a) op(b), size (out) [m,n] = the same of absolute values. */
void oracle_matmul(double *c, double *size, const double *a, bool transpose_a, const double *b,
                   bool transpose_b, int64_t m, int64_t n, int64_t k);

/* sum (out) may be NULL, r may be NULL. */
void oracle_rmsnorm(double *y, double *sum, const double *x, const double *r, const double *weight,
                    int64_t rows, int64_t cols, double epsilon);
void oracle_rope(double *x, int64_t rows, int64_t heads, int64_t head_size, const int64_t *position,
                 const double *table, bool inverse);
void oracle_swiglu(double *y, const double *gate_up, int64_t rows, int64_t hidden);

/* What a negative control gets wrong about attention. */
enum oracle_flaw {
    FLAW_NONE,
    FLAW_NO_WINDOW,   /* window ignored */
    FLAW_WIDE_WINDOW, /* one position too many */
    FLAW_NO_PREFIX,
    FLAW_SIBLING,  /* sees everything before it in its group */
    FLAW_POSITION, /* the span stands one position later */
    FLAW_KEY_HEAD, /* query head h reads key head h mod K */
};

/* True if the token in row `query` sees the one in row `key`: the mask, spelt out. */
bool oracle_sees(const struct packing *packing, int64_t window, int64_t query, int64_t key,
                 enum oracle_flaw flaw);

/* o [N, H D], lse [N, H] from qkv [N, (H + 2K) D]; bounds (out, same shapes, may be NULL): what a computation
 * of this type in any order of summation may differ by, see oracle_attention.c. noise (out, may be NULL): the
 * variance of each result that the roundings to bf16 may cause. */
void oracle_attention(double *o, double *lse, double *o_bound, double *lse_bound, double *noise,
                      const double *qkv, int64_t tokens, const struct packing *packing,
                      const struct attention_shape *shape, enum oracle_flaw flaw, enum dtype type);
void oracle_attention_grad(double *dqkv, double *bound, double *noise, const double *dout, const double *qkv,
                           int64_t tokens, const struct packing *packing, const struct attention_shape *shape,
                           enum oracle_flaw flaw, enum dtype type);

/* statistics (out) [T, HEAD_STATISTICS], bound (out, may be NULL) the same shape. HEAD_SPARE is 0 in both. */
void oracle_head_statistics(double *statistics, double *bound, const double *logits, const int64_t *target,
                            int64_t tokens, int64_t vocabulary);

/* One AdamW step of one piece. size (inout) [count]: the first moment of |g|, from which bounds are made. */
void oracle_adamw(double *parameter, double *moment, double *variance, double *size, const double *gradient,
                  int64_t count, bool decay, const struct adamw *settings, double norm);

#endif
