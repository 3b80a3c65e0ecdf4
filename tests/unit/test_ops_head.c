/* The head: statistics of a token from its logits, their gradient in place and apart. What follows from them:
 * test_ops_objective.c. */
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_ops.h"

/* What the logits look like. */
enum looks {
    LOOKS_RANDOM,
    LOOKS_RISING,   /* every logit is a new maximum */
    LOOKS_EQUAL,    /* all the same: entropy log V, every token is a hit */
    LOOKS_TARGET,   /* the target at 80, the others at -80 */
    LOOKS_OTHER,    /* another token at 80, the target at -80 */
    LOOKS_FAR,      /* around 1e4 */
    LOOKS_WIDE,     /* from -1e4 to 1e4 */
    LOOKS_PAIR,     /* two tokens tie at the top */
    LOOKS_NEGATIVE, /* all far below 0: a maximum that starts at 0 is wrong */
    LOOKS_MASKED,   /* two of three at -1e30, the first third of all among them */
    LOOKS_COUNT
};

static double draw_logit(enum looks looks, double z, int64_t v, int64_t target, int64_t vocabulary)
{
    int64_t other = (target + 1) % vocabulary;
    switch (looks) {
    case LOOKS_RISING:
        return 0.01 * (double)v + z * 1e-4;
    case LOOKS_EQUAL:
        return 0.5;
    case LOOKS_TARGET:
        return v == target ? 80 : -80;
    case LOOKS_OTHER:
        return v == other ? 80 : -80;
    case LOOKS_FAR:
        return 1e4 + z;
    case LOOKS_PAIR:
        return v == target || v == other ? 9 : z;
    case LOOKS_NEGATIVE:
        return z - 900;
    case LOOKS_MASKED:
        return v < vocabulary / 3 || (v % 2 && v != target) ? -1e30 : z;
    case LOOKS_RANDOM:
    case LOOKS_WIDE:
    case LOOKS_COUNT:
        break;
    }
    return z;
}

static double *draw_logits(struct lab *lab, enum dtype type, enum looks looks, const int64_t *target,
                           int64_t tokens, int64_t vocabulary)
{
    double *z = lab_randoms(lab, tokens * vocabulary, 20 + looks, looks == LOOKS_WIDE ? 1e4 : 6);
    for (int64_t i = 0; i < tokens * vocabulary; i++)
        z[i] =
            lab_round_to(type, draw_logit(looks, z[i], i % vocabulary, target[i / vocabulary], vocabulary));
    return z;
}

struct logp_loss {
    double *z, *statistics;
    int64_t target, vocabulary;
};

static double logp_loss(void *context)
{
    struct logp_loss *l = context;
    oracle_head_statistics(l->statistics, NULL, l->z, &l->target, 1, l->vocabulary);
    return l->statistics[HEAD_LOGP];
}

/* d logp / d z, and how far f32 may be off: p = exp(z - m - log s1) is within (e1 + u |z - m| + 8 u) of
 * itself, e1 being the bound of log s1; then one subtraction and one product. An exponential below e^-87 may
 * be 0. */
static void logit_gradient(double *dz, double *bound, double *z, double e1, int64_t target,
                           int64_t vocabulary, double coefficient, bool derive)
{
    double statistics[HEAD_STATISTICS];
    struct logp_loss loss = {z, statistics, target, vocabulary};
    logp_loss(&loss);
    for (int64_t v = 0; v < vocabulary; v++) {
        double d = z[v] - statistics[HEAD_MAXIMUM], p = exp(d - statistics[HEAD_LOG_SUM]);
        double exact = (v == target ? 1 : 0) - p, error = e1 + LAB_UNIT * (fabs(d) + 8);
        dz[v] = coefficient * (derive ? oracle_derivative(logp_loss, &loss, &z[v]) : exact);
        bound[v] = fabs(coefficient) * (error * p + 2 * LAB_UNIT * (p + (v == target)) + 1e-37);
        if (derive) bound[v] += 1e-9 * fabs(coefficient); /* of the five-point rule, where z is of size 10 */
    }
}

struct head_case {
    int64_t tokens, vocabulary, margin;
    enum looks looks;
    enum dtype logits_type, gradient_type;
    bool in_place;
    int64_t *target, *on_device;
    double *z, *coefficient, *statistics, *bound; /* statistics: the device's; bound: theirs */
    struct lab_matrix mz, ms, mc;
};

static void head_draw(struct lab *lab, struct head_case *h)
{
    h->target = lab_integers(lab, h->tokens);
    for (int64_t t = 0; t < h->tokens; t++) /* both ends of the vocabulary among them */
        h->target[t] = t % 3 == 2 ? h->vocabulary - 1 : t * 31 % h->vocabulary;
    h->z = draw_logits(lab, h->logits_type, h->looks, h->target, h->tokens, h->vocabulary);
    h->coefficient = lab_randoms(lab, h->tokens, 40, 0.1);
    if (h->tokens > 2) h->coefficient[1] = 0;
    h->statistics = lab_doubles(lab, h->tokens * HEAD_STATISTICS);
    h->bound = lab_doubles(lab, h->tokens * HEAD_STATISTICS);
    h->on_device = lab_array(lab, h->target, (size_t)h->tokens * sizeof *h->target);
    h->mz = lab_typed(lab, h->logits_type, h->tokens, h->vocabulary, h->margin);
    h->ms = lab_floats(lab, h->tokens, HEAD_STATISTICS, 0);
    h->mc = lab_floats(lab, 1, h->tokens, 0);
    lab_put(&h->mz, h->z);
    lab_put(&h->mc, h->coefficient);
    lab_fill(&h->ms, NAN);
}

static void head_check_statistics(struct lab *lab, struct head_case *h)
{
    int64_t count = h->tokens * HEAD_STATISTICS;
    double *want = lab_doubles(lab, count), *got = lab_doubles(lab, count), *unused = lab_doubles(lab, count);
    oracle_head_statistics(want, h->bound, h->z, h->target, h->tokens, h->vocabulary);
    memcpy(got, h->statistics, (size_t)count * sizeof *got);
    for (int64_t t = 0; t < h->tokens; t++) { /* what stands in the spare column is nobody's business */
        double *s = got + t * HEAD_STATISTICS, *b = h->bound + t * HEAD_STATISTICS;
        s[HEAD_SPARE] = 0;
        /* probabilities are at most 1, the most likely token at least 1/V */
        CHECK(s[HEAD_LOGP] <= -s[HEAD_LOG_SUM] && s[HEAD_LOG_SUM] >= 0);
        CHECK(s[HEAD_LOG_SQUARE] <= -s[HEAD_LOG_SUM] + b[HEAD_LOG_SQUARE]);
        CHECK(s[HEAD_ENTROPY] >= -b[HEAD_ENTROPY]);
    }
    LAB_CLOSE(got, want, h->bound, count);

    /* Negative control: the next token as target. */
    int64_t truth = h->target[0], other = (truth + 1) % h->vocabulary;
    h->target[0] = other;
    oracle_head_statistics(want, unused, h->z, h->target, h->tokens, h->vocabulary);
    if (fabs(h->z[truth] - h->z[other]) > 1e-2) LAB_DIFFERS(got, want, h->bound, count);
    h->target[0] = truth;
}

static void head_check_gradient(struct lab *lab, struct head_case *h, const double *dz)
{
    int64_t count = h->tokens * h->vocabulary, vocabulary = h->vocabulary;
    double *want = lab_doubles(lab, count), *bound = lab_doubles(lab, count);
    bool derive = (h->looks == LOOKS_RANDOM || h->looks == LOOKS_PAIR) && vocabulary <= 65;
    for (int64_t t = 0; t < h->tokens; t++)
        logit_gradient(want + t * vocabulary, bound + t * vocabulary, h->z + t * vocabulary,
                       h->bound[t * HEAD_STATISTICS + HEAD_LOG_SUM], h->target[t], vocabulary,
                       h->coefficient[t], derive);
    lab_stored(h->gradient_type, bound, want, count);
    LAB_CLOSE(dz, want, bound, count);
    /* Negative control: the next token as target. */
    logit_gradient(want, bound, h->z, h->bound[HEAD_LOG_SUM], (h->target[0] + 1) % vocabulary, vocabulary,
                   h->coefficient[0], false);
    lab_stored(h->gradient_type, bound, want, vocabulary);
    LAB_DIFFERS(dz, want, bound, count);
}

/* Where dlogits stand: apart, or over the logits, every row beginning where the logits' row begins. */
static struct lab_matrix head_gradient_matrix(struct lab *lab, struct head_case *h)
{
    struct tensor view = h->mz.view;
    if (!h->in_place) {
        struct lab_matrix apart =
            lab_typed(lab, h->gradient_type, h->tokens, h->vocabulary, h->margin ? h->margin + 2 : 0);
        lab_fill(&apart, NAN);
        return apart;
    }
    view.type = h->gradient_type;
    view.stride = view.stride * (int64_t)dtype_bytes(h->logits_type) / (int64_t)dtype_bytes(h->gradient_type);
    return lab_alias(&h->mz, view);
}

static void try_head_case(struct lab *lab, struct head_case h)
{
    head_draw(lab, &h);
    lab->ops->head_statistics(lab->device, h.ms.view.data, h.mz.view, h.on_device);
    LAB_GET(h.ms, h.statistics);
    CHECK(lab_unchanged(&h.mz));
    lab_put(&h.ms, h.statistics); /* an input from here on */
    struct lab_matrix mdz = head_gradient_matrix(lab, &h);
    double *dz = lab_doubles(lab, h.tokens * h.vocabulary);
    lab->ops->head_gradient(lab->device, mdz.view, h.mz.view, h.ms.view.data, h.on_device, h.mc.view.data);
    LAB_GET(mdz, dz);
    CHECK(lab_unchanged(&h.ms) && lab_unchanged(&h.mc));
    CHECK(h.in_place || lab_unchanged(&h.mz));
    if (lab->first) {
        head_check_statistics(lab, &h);
        head_check_gradient(lab, &h, dz);
    }
    lab_release(lab);
}

/* f32 logits whose gradient is f32; with bf16 also bf16 logits, and f32 logits whose gradient is bf16.
 * `which` says whether in place (1), apart (0) or both (2). */
static void try_head(struct lab *lab, int64_t tokens, int64_t vocabulary, int64_t margin, enum looks looks,
                     int which)
{
    for (int in_place = which == 1; in_place <= (which > 0); in_place++)
        for (enum dtype logits = DTYPE_FLOAT; logits <= lab->type; logits++)
            try_head_case(lab, (struct head_case){.tokens = tokens,
                                                  .vocabulary = vocabulary,
                                                  .margin = margin,
                                                  .looks = looks,
                                                  .logits_type = logits,
                                                  .gradient_type = lab->type,
                                                  .in_place = in_place});
}

/* No tokens: nothing happens. */
static void try_nothing(struct lab *lab)
{
    struct lab_matrix z = lab_matrix(lab, 0, 65, 0), s = lab_floats(lab, 0, HEAD_STATISTICS, 0);
    int64_t *target = lab_array(lab, "", 0);
    lab_fill(&z, 0);
    lab_fill(&s, 0);
    lab->ops->head_statistics(lab->device, s.view.data, z.view, target);
    lab->ops->head_gradient(lab->device, z.view, z.view, s.view.data, target, s.view.data);
    CHECK(lab_unchanged(&z) && lab_unchanged(&s));
    lab_release(lab);
}

static void all(struct lab *lab)
{
    static const int64_t vocabularies[] = {7, 65, 1000}, rows[] = {1, 7, 13, 65};
    for (int v = 0; v < 3; v++)
        for (int r = 0; r < (lab->slow ? 3 : 4); r++)
            for (int64_t margin = 0; margin < 4; margin += 3)
                for (enum looks looks = LOOKS_RANDOM; looks < LOOKS_COUNT; looks++)
                    if (looks == LOOKS_RANDOM || r == v)
                        try_head(lab, rows[r], vocabularies[v], margin, looks,
                                 looks == LOOKS_RANDOM ? 2 : (int)(looks + margin) % 2);
    for (enum looks looks = LOOKS_RISING; looks < LOOKS_COUNT; looks++)
        try_head(lab, 3, lab->slow ? 3003 : 6007, 3, looks, (int)looks % 2);
    try_head(lab, lab->slow ? 2 : 7, 32003, 0, LOOKS_RANDOM, 2);
    try_head(lab, 2, 151936, 0, LOOKS_RANDOM, 1);
    try_head(lab, 3, 151936, 8, LOOKS_MASKED, 0);
    try_head(lab, 1, 151936, 0, LOOKS_EQUAL, 1);
    try_nothing(lab);
}

int main(void)
{
    lab_run(all);
    return check_result();
}
