/* Reference log-probabilities are data: computed once, before the first step, by the same kernels in the same
 * micro-batches as training's, kept in a file with the fingerprints of model and data, and refused when they
 * differ. */
#ifndef WPO_RUNTIME_REFERENCE_H
#define WPO_RUNTIME_REFERENCE_H

#include "runtime/groups.h"
#include "runtime/hash.h"

/* What log-probabilities belong to. */
struct reference_key {
    char model[HASH_HEX]; /* pretrained_fingerprint() of the reference model */
    char data[HASH_HEX];  /* groups.fingerprint */
    char backend[48];     /* policy and reference come from the same kernels and the same ld_alpha */
};

/* Local. logp (out) [S], NaN where the file knows none. *found (out) is false when there is no such file. A
 * file that is damaged or belongs to something else is an error that says what to delete. */
enum status reference_read(double *logp, bool *found, const struct groups *groups,
                           const struct reference_key *key, const char *path);
/* Local. Replaces the file as a whole. */
enum status reference_write(const double *logp, const struct groups *groups, const struct reference_key *key,
                            const char *path);

#endif
