/* Tiny models of every kind, a text of groups, and the whole path from one to the other on a device. */
#ifndef WPO_TESTS_UNIT_ORACLE_RIG_H
#define WPO_TESTS_UNIT_ORACLE_RIG_H

#include "runtime/head.h"
#include "tests/unit/oracle_lab.h"
#include "tests/unit/oracle_model.h"

enum { KINDS = 4, GROUPS = 5, PAIR = 2, COMPLETIONS = GROUPS * PAIR, VOCABULARY = 37 };
enum { SEGMENTS = COMPLETIONS + GROUPS }; /* where prompts are scored: each behind its pair */

/* Llama with long-context scaling and heads wider than C / H; Mistral with a window; Qwen2 with biases and a
 * tied head; Llama with linear scaling, tied. */
struct config rig_config(const struct lab *lab, int kind);

/* A groups file in memory. */
struct rig_text {
    struct groups groups;
    int32_t prompt[256], completion[128];
    int64_t prompt_offset[COMPLETIONS + 1], completion_offset[COMPLETIONS + 1], first[COMPLETIONS + 1];
    int64_t row[COMPLETIONS];
};

/* GROUPS pairs of odd lengths, some of one token. */
void rig_text(struct rig_text *text);
/* The same completions, each with a copy of its prompt, nothing shared: group s holds completion s. */
void rig_text_separate(struct rig_text *separate, const struct rig_text *text);

/* Parameters large enough that every part matters: exact in lab->type; freed by lab_release. */
double *rig_parameters(struct lab *lab, const struct params *params);

/* Reference log-probabilities near what such a model says, so that margins are small but not 0. */
void rig_reference(double reference[COMPLETIONS]);

struct rig {
    struct lab *lab;
    struct params params;
    struct config config;
    struct arena arena;
    struct batch batch;
    struct model model;
    struct head head;
};

/* For batches of all these groups. */
void rig_open(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
              const struct groups *groups, const double *flat, size_t logits_bytes);
/* The same, with prompts scored. */
void rig_open_prompts(struct rig *rig, struct lab *lab, const struct config *config, enum model_mode mode,
                      const struct groups *groups, const double *flat, size_t logits_bytes);
void rig_close(struct rig *rig);

struct rig_outcome {
    struct completion_sums sums[SEGMENTS];
    struct group_result results[COMPLETIONS];
    float *gradients;                 /* [total]; freed by lab_release */
    int64_t bucket[16], bucket_count; /* announced as ready, in order */
};

/* objective_group() of a pair, its prompt's sums behind those of its completions if they are scored.
 * reference [PAIR], or NULL. scale: of groups and of tokens. */
struct group_result rig_objective(const struct objective *objective, const struct completion_sums *sums,
                                  const double *reference, double scale, bool prompt);

/* Forward and backward from gradients of zero; scale multiplies every loss. reference: of the members'
 * completions in order, or NULL. */
struct rig_outcome rig_train(struct rig *rig, const struct groups *groups, const int64_t *members,
                             int64_t count, const struct objective *objective, const double *reference,
                             double scale);
void rig_score(struct rig *rig, const struct groups *groups, const int64_t *members, int64_t count,
               struct completion_sums *sums);

/* Of all completions of the text, by the oracle. */
void rig_truth(struct completion_sums *sums, const double *flat, const struct params *params,
               const struct config *config, const struct rig_text *text);

/* The same as it stands in a batch where prompts are scored, with the leading tokens of each pair. */
void rig_truth_prompts(struct completion_sums sums[SEGMENTS], const double *flat, const struct params *params,
                       const struct config *config, const struct rig_text *text);

/* Largest difference as a multiple of the bound (oracle_rig.c says where it comes from). got[s] is compared
 * with want[index[s]], index NULL: with want[s]. */
double rig_sums_worst(const struct lab *lab, const struct completion_sums *got,
                      const struct completion_sums *want, const int64_t *index, int64_t count);
double rig_gradients_worst(const struct rig *rig, const float *got, const float *want);
double rig_token_bound(const struct lab *lab);
double rig_gradient_bound(const struct lab *lab);

#endif
