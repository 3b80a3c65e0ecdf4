/* The keys of a run file: names, types, ranges, defaults, aliases, and the keys of other trainers that wpo
 * knows of. The one table drives parsing, checks, `wpo train --help`, the resolved run file and
 * docs/runfile.md. */
#ifndef WPO_LAUNCHER_KEYS_H
#define WPO_LAUNCHER_KEYS_H

#include "launcher/runfile.h"

#include <math.h>

/* Rows that `wpo eval` shares. `fields` is a struct with a member `struct settings settings`. The columns:
 * name, kind, field, default, minimum, maximum, choices, argument, meaning, required, positional. */
/* clang-format off */
#define KEY(fields, member) offsetof(fields, settings.member)
#define KEYS_OBJECTIVE(fields) \
    {"loss_type", OPTION_CHOICE, KEY(fields, objective.loss_type), "sigmoid", 0, 0, "sigmoid|sft", NULL, \
     "sigmoid: DPO's logistic loss on pairs; sft: likelihood of single completions", false, false}, \
    {"beta", OPTION_NUMBER, KEY(fields, objective.beta), "0.1", 0, 1000, NULL, NULL, \
     "how strongly the policy is held to the reference; above 0", false, false}, \
    {"label_smoothing", OPTION_NUMBER, KEY(fields, objective.label_smoothing), "0", 0, 0.5, NULL, NULL, \
     "share of pairs taken to be labelled the wrong way round; below 0.5", false, false}, \
    {"weighting", OPTION_CHOICE, KEY(fields, objective.weighting), "sampled", 0, 0, \
     "none|unaligned|sampled|greedy", NULL, \
     "WPO's weight of a pair; none is plain DPO, and the default for sft", false, false}, \
    {"weight_sides", OPTION_CHOICE, KEY(fields, objective.weight_sides), "both", 0, 0, "both|chosen|rejected", NULL, \
     "the completions whose weights are multiplied", false, false}, \
    {"weight_clamp", OPTION_FLAG, KEY(fields, objective.weight_clamp), "true", 0, 0, NULL, NULL, \
     "a pair's weight is at most 1, as in the authors' code", false, false}
#define KEYS_MACHINE(fields) \
    {"logits_megabytes", OPTION_INTEGER, KEY(fields, logits_megabytes), "0", 0, 1e6, NULL, NULL, \
     "memory that one chunk of logits may take; 0: 256 on a CPU, 2048 on a GPU", false, false}, \
    {"threads", OPTION_INTEGER, KEY(fields, threads), "0", 0, 4096, NULL, NULL, \
     "CPU threads of a rank; 0: the ranks of a host share its cores", false, false}, \
    {"device", OPTION_TEXT, KEY(fields, device), "auto", 0, 0, "auto|cpu|cuda", NULL, \
     "auto: cuda where this build and the host have it, else cpu", false, false}, \
    {"dtype", OPTION_CHOICE, KEY(fields, dtype), "auto", 0, 0, "auto|float32|bfloat16", NULL, \
     "of parameters and activations; auto: bfloat16 on cuda, float32 on cpu. Masters are float32 always", false, false}, \
    {"ddp_timeout", OPTION_INTEGER, KEY(fields, ddp_timeout), "600", 0, 1e7, NULL, NULL, \
     "seconds that ranks wait for one that does not come before the run ends; 0: forever", false, false}
#define KEY_EVAL_BATCH(fields) \
    {"per_device_eval_batch_size", OPTION_INTEGER, KEY(fields, per_device_eval_batch_size), "8", 1, 1e6, NULL, NULL, \
     "groups (pairs) that a rank evaluates at a time", false, false}
/* clang-format on */

enum { RUN_KEYS = 48 }; /* as many as the table has rows: a test checks that none is missing */
extern const struct option run_keys[RUN_KEYS];

/* Other names of a key, read with a note. NULL when the name is none. */
const char *key_alias(const char *name);

/* A key of TRL, Transformers or their kin that wpo does not have. It is read without effect where its value
 * asks for what wpo does anyway, and refused otherwise. */
struct foreign_key {
    const char *name;     /* "hub_*": every name that begins so */
    const char *accepted; /* "false|none"; "*": any value; "": none. Null is accepted always */
    const char *instead;  /* what wpo does: completes "KEY is VALUE, but " */
};
extern const struct foreign_key foreign_keys[]; /* ends with a NULL name */
const struct foreign_key *key_foreign(const char *name);
bool key_accepts(const struct foreign_key *foreign, const char *value);

/* "a|b" holds the word; case does not count. */
bool words_hold(const char *words, const char *word);

/* What the single ranges cannot see: pairs of options that exclude each other, and defaults that depend on
 * other keys. given [RUN_KEYS]: keys that were given; where opens the sentence ("run.yaml: " or "").
 * Errors are STATUS_USAGE. */
enum status keys_check(struct runfile *runfile, const bool *given, const char *where);
/* The part of it that concerns the objective; for `wpo eval` too. */
enum status keys_check_objective(struct objective *objective, bool weighting_given, const char *where);
enum status keys_check_device(const struct settings *settings, const char *where);

/* Keeps a sentence among runfile->notes, unless there are too many. */
void runfile_note(struct runfile *runfile, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints the reference tables of docs/runfile.md. */
void keys_print(FILE *stream);

#endif
