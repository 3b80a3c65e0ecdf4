/* The keys of a run file: names, types, ranges, defaults, aliases, and the keys of other trainers that wpo
 * knows of. The one table drives parsing, checks, `wpo train --help`, the resolved run file and
 * docs/runfile.md. */
#ifndef WPO_LAUNCHER_KEYS_H
#define WPO_LAUNCHER_KEYS_H

#include "launcher/runfile.h"

#include <math.h>

/* Rows that `wpo eval` shares. `fields` is a struct with members `struct settings settings` and `struct
 * loss_lists losses`. The columns: name, kind, field, default, minimum, maximum, choices, argument, meaning,
 * required, positional. */
/* clang-format off */
#define KEY(fields, member) offsetof(fields, settings.member)
#define NO_LIMIT INFINITY
#define LOSS_NAME(id, name, function, shape, statistic, beta, traits) "|" name
#define LOSS_NAMES (&("" LOSSES(LOSS_NAME))[1])
#define KEYS_OBJECTIVE(fields) \
    {"loss_type", OPTION_LIST, offsetof(fields, losses.loss_type), "sigmoid", 0, 0, NULL, LOSS_NAMES, \
     "the loss, or a list of losses of pairs (and sft) to add up, such as sigmoid,sft", false, false}, \
    {"loss_weights", OPTION_LIST, offsetof(fields, losses.loss_weights), NULL, 0, 0, NULL, "X,X", \
     "a factor for each loss of the list; not given: 1 each", false, false}, \
    {"beta", OPTION_NUMBER, KEY(fields, objective.beta), "by loss_type", 0, 1000, NULL, NULL, \
     "how strongly the policy is held to the reference; above 0", false, false}, \
    {"label_smoothing", OPTION_NUMBER, KEY(fields, objective.label_smoothing), "by loss_type", 0, 0.5, NULL, NULL, \
     "share of pairs taken to be labelled the wrong way round; below 0.5", false, false}, \
    {"weighting", OPTION_CHOICE, KEY(fields, objective.weighting), "by loss_type", 0, 0, \
     "none|unaligned|sampled|greedy", NULL, \
     "WPO's weight of a completion; not given: sampled with sigmoid alone, else none", false, false}, \
    {"weight_sides", OPTION_CHOICE, KEY(fields, objective.weight_sides), "both", 0, 0, "both|chosen|rejected", NULL, \
     "the completions of a pair whose weights are multiplied", false, false}, \
    {"weight_clamp", OPTION_FLAG, KEY(fields, objective.weight_clamp), "true", 0, 0, NULL, NULL, \
     "a product of weights is at most 1, as in the authors' code", false, false}, \
    {"gamma_beta_ratio", OPTION_NUMBER, KEY(fields, objective.gamma_beta_ratio), "by loss_type", 0, NO_LIMIT, NULL, NULL, \
     "simpo: the target margin gamma, divided by beta", false, false}, \
    {"rpo_alpha", OPTION_NUMBER, KEY(fields, objective.rpo_alpha), "by loss_type", 0, NO_LIMIT, NULL, NULL, \
     "factor of a likelihood term: the mean over the tokens of all chosen completions of a step", false, false}, \
    {"nll_on_prompt", OPTION_FLAG, KEY(fields, objective.nll_on_prompt), "false", 0, 0, NULL, NULL, \
     "likelihood terms (rpo_alpha, sft) count the prompt's tokens too, as TRL's ORPO does", false, false}, \
    {"desirable_weight", OPTION_NUMBER, KEY(fields, objective.desirable_weight), "1", 0, NO_LIMIT, NULL, NULL, \
     "losses of labelled completions: factor of the desirable ones; above 0", false, false}, \
    {"undesirable_weight", OPTION_NUMBER, KEY(fields, objective.undesirable_weight), "1", 0, NO_LIMIT, NULL, NULL, \
     "the same of the undesirable ones", false, false}, \
    {"ld_alpha", OPTION_NUMBER, KEY(fields, objective.ld_alpha), "1", 0, 1, NULL, NULL, \
     "how much tokens behind the length of a pair's shorter completion count (LD-DPO)", false, false}, \
    {"length_alpha", OPTION_NUMBER, KEY(fields, objective.length_alpha), "0", 0, NO_LIMIT, NULL, NULL, \
     "times the chosen completion's tokens less the rejected one's, added to the margin", false, false}, \
    {"f_divergence_type", OPTION_CHOICE, KEY(fields, objective.f_divergence_type), "reverse_kl", 0, 0, \
     "reverse_kl|forward_kl|js_divergence|alpha_divergence", NULL, \
     "the divergence from the reference that rewards follow from (f-DPO)", false, false}, \
    {"f_alpha_divergence_coef", OPTION_NUMBER, KEY(fields, objective.f_alpha_divergence_coef), "0.5", 0, 0, NULL, NULL, \
     "alpha of alpha_divergence; not 1", false, false}, \
    {"reward_margin_beta", OPTION_NUMBER, KEY(fields, objective.reward_margin_beta), "0", 0, NO_LIMIT, NULL, NULL, \
     "times the data's score of the chosen completion less the rejected one's, taken off the margin", false, false}, \
    {"min_margin", OPTION_NUMBER, KEY(fields, min_margin), NULL, 0, NO_LIMIT, NULL, NULL, \
     "pairs whose scores differ by less are left out", false, false}, \
    {"optimism_alpha", OPTION_NUMBER, KEY(fields, objective.optimism_alpha), "0", 0, NO_LIMIT, NULL, NULL, \
     "SELM: factor of a term on the third completion of a group (sampled), drawn from the policy", false, false}, \
    {"vpo_alpha", OPTION_NUMBER, KEY(fields, objective.vpo_alpha), "0", 0, NO_LIMIT, NULL, NULL, \
     "VPO: factor of the value regulariser, on the chosen completion", false, false}, \
    {"score_type", OPTION_CHOICE, KEY(fields, objective.score_type), "reward", 0, 0, "reward|probability", NULL, \
     "sppo: what the data's scores are: rewards, or probabilities to win against the policy", false, false}, \
    {"discopop_tau", OPTION_NUMBER, KEY(fields, objective.discopop_tau), "0.05", 0, 1, NULL, NULL, \
     "discopop: temperature of its modulation; above 0", false, false}, \
    {"reference_free", OPTION_FLAG, KEY(fields, objective.reference_free), "false", 0, 0, NULL, NULL, \
     "the reference's log-probabilities count as 0", false, false}
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

enum { RUN_KEYS = 68 }; /* as many as the table has rows: a test checks that none is missing */
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

/* Which options of a table were given. */
struct given {
    const struct option *options;
    int64_t count;
    const bool *list; /* [count] */
};
/* False for a name that the table does not have. */
bool is_given(const struct given *given, const char *name);

/* What the single ranges cannot see: pairs of options that exclude each other, and defaults that depend on
 * other keys. given [RUN_KEYS]: keys that were given; where opens the sentence ("run.yaml: " or "").
 * Errors are STATUS_USAGE. */
enum status keys_check(struct runfile *runfile, const bool *given, const char *where);
/* The parts of it that concern the objective, in keys_objective.c: the first is for `wpo eval` too, and fills
 * in settings->objective from the lists and by its defaults; the other comes after it. */
enum status keys_check_objective(struct settings *settings, struct loss_lists *losses,
                                 const struct given *given, const char *where);
enum status keys_check_loss(struct runfile *runfile, const struct given *given, const char *where);
/* The losses and their weights from the lists, which are then written in one way; in keys_losses.c. */
enum status losses_read(struct objective *objective, struct loss_lists *losses, const char *where);
enum status keys_check_device(const struct settings *settings, const char *where);

/* Keeps a sentence among runfile->notes, unless there are too many. */
void runfile_note(struct runfile *runfile, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints the reference tables of docs/runfile.md. */
void keys_print(FILE *stream);

#endif
