/* From the groups of a file to those that an objective trains on. What the objective needs and the data lacks
 * is refused here, before the first step, with the key and the file. */
#ifndef WPO_RUNTIME_SELECTION_H
#define WPO_RUNTIME_SELECTION_H

#include "runtime/groups.h"
#include "runtime/settings.h"

/* Local. Checks sizes, scores and labels; drops pairs below min_margin, and for sft all completions but the
 * chosen one; gives pairs labels where the objective takes labelled completions (the first is desirable).
 * What changes the groups changes their fingerprint. *dropped (out): groups that were left out. */
enum status selection_take(struct groups *groups, const struct settings *settings, int64_t *dropped);

/* Local. The losses as the run file names them, "sigmoid, sft"; to be freed. */
char *selection_losses(const struct objective *objective);

/* Local. Every prompt with the completions of the group before it, the first with those of the last, cut to
 * max_length: what a policy is unlikely to say, for KTO's estimate of its distance from the reference. The
 * pairing is one of the file, so that any batch and any number of ranks sees the same; prompts are not
 * compared, so neighbours with the same prompt do not mismatch. At least two groups. */
enum status selection_mismatch(struct groups *mismatched, const struct groups *groups);

#endif
