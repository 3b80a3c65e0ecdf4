#include "launcher/keys.h"

#include <string.h>
#include <strings.h>

/* limits: both 0 means none */
#define UP_TO    0, 1e12
#define FROM_ONE 1, 1e12

/* clang-format off */
const struct option run_keys[] = {
    {"model_name_or_path", OPTION_TEXT, KEY(struct runfile, model_name_or_path), NULL, 0, 0, NULL, "DIR",
     "the model to train: a local Hugging Face folder", true, false},
    {"ref_model_name_or_path", OPTION_TEXT, KEY(struct runfile, ref_model_name_or_path), NULL, 0, 0, NULL, "DIR",
     "the reference model; not given: the model as it is before training", false, false},
    {"train_file", OPTION_TEXT, KEY(struct runfile, train_file), NULL, 0, 0, NULL, "FILE",
     "the groups to train on, from wpo prepare", true, false},
    {"eval_file", OPTION_TEXT, KEY(struct runfile, eval_file), NULL, 0, 0, NULL, "FILE",
     "the groups to evaluate on", false, false},
    {"output_dir", OPTION_TEXT, KEY(struct runfile, output_dir), NULL, 0, 0, NULL, "DIR",
     "the run folder: run.yaml, log.txt, metrics.jsonl, checkpoints", true, false},
    {"overwrite_output_dir", OPTION_FLAG, offsetof(struct runfile, overwrite_output_dir), "false", 0, 0, NULL, NULL,
     "start anew in a run folder that is not empty; the old run's files are removed", false, false},

    KEYS_OBJECTIVE(struct runfile),
    {"sync_ref_model", OPTION_FLAG, KEY(struct runfile, sync_ref_model), "false", 0, 0, NULL, NULL,
     "the reference follows the policy (TR-DPO)", false, false},
    {"ref_model_mixup_alpha", OPTION_NUMBER, KEY(struct runfile, ref_model_mixup_alpha), "0.6", 0, 1, NULL, NULL,
     "share of the policy in the reference that follows it; above 0", false, false},
    {"ref_model_sync_steps", OPTION_INTEGER, KEY(struct runfile, ref_model_sync_steps), "512", FROM_ONE, NULL, NULL,
     "steps after which it follows", false, false},

    {"learning_rate", OPTION_NUMBER, KEY(struct runfile, learning_rate), "1e-6", 0, 1, NULL, NULL,
     "the highest learning rate of the schedule", false, false},
    {"weight_decay", OPTION_NUMBER, KEY(struct runfile, weight_decay), "0", 0, 100, NULL, NULL,
     "decoupled weight decay of AdamW; not applied to norms and biases", false, false},
    {"adam_beta1", OPTION_NUMBER, KEY(struct runfile, adam_beta1), "0.9", 0, 1, NULL, NULL,
     "decay of the first moment; below 1", false, false},
    {"adam_beta2", OPTION_NUMBER, KEY(struct runfile, adam_beta2), "0.999", 0, 1, NULL, NULL,
     "decay of the second moment; below 1", false, false},
    {"adam_epsilon", OPTION_NUMBER, KEY(struct runfile, adam_epsilon), "1e-8", 0, 1, NULL, NULL,
     "added to the root of the second moment; above 0", false, false},
    {"max_grad_norm", OPTION_NUMBER, KEY(struct runfile, max_grad_norm), "1", 0, 1e12, NULL, NULL,
     "gradients are scaled down to this global norm; 0: no clipping", false, false},
    {"on_nonfinite", OPTION_CHOICE, KEY(struct runfile, on_nonfinite), "stop", 0, 0, "stop|skip", NULL,
     "what a loss or gradient that is not finite does: end the run, or pass over the step; no parameter changes", false,
     false},
    {"lr_scheduler_type", OPTION_CHOICE, offsetof(struct runfile, schedule), "linear", 0, 0,
     "linear|cosine|constant|constant_with_warmup", NULL,
     "the learning rate after the warm-up: down to 0 on a line or half a cosine, or constant", false, false},
    {"warmup_ratio", OPTION_NUMBER, KEY(struct runfile, warmup_ratio), "0", 0, 1, NULL, NULL,
     "share of the steps in which the learning rate rises from 0", false, false},
    {"warmup_steps", OPTION_INTEGER, KEY(struct runfile, warmup_steps), "0", UP_TO, NULL, NULL,
     "the same as a number of steps", false, false},

    {"num_train_epochs", OPTION_NUMBER, KEY(struct runfile, num_train_epochs), "3", 0, 1e6, NULL, NULL,
     "times that the data is gone through; above 0, may be a fraction", false, false},
    {"max_steps", OPTION_INTEGER, KEY(struct runfile, max_steps), "-1", -1, 1e12, NULL, NULL,
     "optimiser steps; above 0 it wins over num_train_epochs", false, false},
    {"per_device_train_batch_size", OPTION_INTEGER, KEY(struct runfile, per_device_train_batch_size), "8", 1, 1e6,
     NULL, NULL, "groups (pairs) that a rank takes through the model at a time", false, false},
    {"gradient_accumulation_steps", OPTION_INTEGER, KEY(struct runfile, gradient_accumulation_steps), "1", 1, 1e6,
     NULL, NULL, "such batches per rank and step", false, false},
    {"global_batch_size", OPTION_INTEGER, KEY(struct runfile, global_batch_size), "0", 0, 1e9, NULL, NULL,
     "groups (pairs) per step over all ranks; 0: per_device_train_batch_size x gradient_accumulation_steps x ranks",
     false, false},
    {"seed", OPTION_INTEGER, KEY(struct runfile, seed), "42", 0, 0x1p63, NULL, NULL,
     "decides the order of the data", false, false},

    {"gradient_checkpointing", OPTION_FLAG, KEY(struct runfile, gradient_checkpointing), "false", 0, 0, NULL, NULL,
     "compute activations again in the backward pass instead of keeping them", false, false},
    {"zero_stage", OPTION_INTEGER, KEY(struct runfile, zero_stage), "1", 0, 1, NULL, NULL,
     "1: the optimiser's state is shared out over the ranks; 0: every rank holds all of it", false, false},
    {"gradient_dtype", OPTION_CHOICE, KEY(struct runfile, gradient_dtype), "float32", 0, 0, "float32|bfloat16", NULL,
     "of the parameters' gradients, accumulated and summed over ranks in it; bfloat16 halves their memory", false, false},
    {"moment_dtype", OPTION_CHOICE, KEY(struct runfile, moment_dtype), "float32", 0, 0, "float32|bfloat16", NULL,
     "of AdamW's moments; bfloat16 is rounded stochastically and saves 4 bytes a parameter", false, false},
    {"gradient_reduction", OPTION_CHOICE, KEY(struct runfile, gradient_reduction), "library", 0, 0, "library|ordered",
     NULL, "ordered: gradients are added in rank order whatever the network is; on a CPU always", false, false},
    KEYS_MACHINE(struct runfile),

    {"logging_steps", OPTION_INTEGER, KEY(struct runfile, logging_steps), "10", FROM_ONE, NULL, NULL,
     "steps between records of metrics", false, false},
    {"log_pairs", OPTION_FLAG, KEY(struct runfile, log_pairs), "false", 0, 0, NULL, NULL,
     "write a line per pair and step to pairs.jsonl", false, false},
    {"hash_steps", OPTION_INTEGER, KEY(struct runfile, hash_steps), "100", UP_TO, NULL, NULL,
     "steps between checks that all ranks hold the same parameters; 0: only at load and save", false, false},
    {"eval_strategy", OPTION_CHOICE, KEY(struct runfile, eval_strategy), "no", 0, 0, "no|steps|epoch", NULL,
     "when to evaluate; not given: steps with eval_steps, epoch with eval_file alone, else no", false, false},
    {"eval_steps", OPTION_INTEGER, KEY(struct runfile, eval_steps), NULL, FROM_ONE, NULL, NULL,
     "steps between evaluations", false, false},
    KEY_EVAL_BATCH(struct runfile),
    {"save_strategy", OPTION_CHOICE, KEY(struct runfile, save_strategy), "steps", 0, 0, "no|steps|epoch", NULL,
     "when to write a checkpoint", false, false},
    {"save_steps", OPTION_INTEGER, KEY(struct runfile, save_steps), "500", FROM_ONE, NULL, NULL,
     "steps between checkpoints", false, false},
    {"save_total_limit", OPTION_INTEGER, KEY(struct runfile, save_total_limit), NULL, UP_TO, NULL, NULL,
     "checkpoints to keep; null or 0: all", false, false},
    {"resume_from_checkpoint", OPTION_TEXT, KEY(struct runfile, resume_from_checkpoint), NULL, 0, 0, NULL,
     "auto|DIR|false", "auto (or true): go on from the newest checkpoint of output_dir, if there is one; or from this one",
     false, false},
};
/* clang-format on */

static const char *const aliases[][2] = {
    {"cpo_alpha", "rpo_alpha"},
    {"dpo_beta", "beta"},
    {"dpo_label_smoothing", "label_smoothing"},
    {"evaluation_strategy", "eval_strategy"},
    {"kto_chosen_weight", "desirable_weight"},
    {"kto_desirable_weight", "desirable_weight"},
    {"kto_rejected_weight", "undesirable_weight"},
    {"kto_undesirable_weight", "undesirable_weight"},
    {"lr", "learning_rate"},
    {"micro_batch_size", "per_device_train_batch_size"},
    {"model", "model_name_or_path"},
    {"pref_beta", "beta"},
    {"pref_ftx", "rpo_alpha"},
    {"pref_loss", "loss_type"},
    {"ref_model", "ref_model_name_or_path"},
    {"ref_policy_kl_penalty", "beta"},
    {"reference_policy_kl_penalty", "beta"},
    {"rl_beta", "beta"},
    {"sft_weight", "rpo_alpha"},
    {"torch_dtype", "dtype"},
    {"use_weighting", "weighting"},
    {"weight_alignment", "weighting"},
};

const char *key_alias(const char *name)
{
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++) {
        if (!strcmp(name, aliases[i][0])) return aliases[i][1];
    }
    return NULL;
}

bool words_hold(const char *words, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = words; at;) {
        size_t span = strcspn(at, "|");
        if (span == length && !strncasecmp(at, word, span)) return true;
        at = at[span] ? at + span + 1 : NULL;
    }
    return false;
}

/* "a|b|c" for a table cell of Markdown: `a`, `b`, `c`. */
static void print_words(FILE *stream, const char *words)
{
    for (const char *at = words; at;) {
        size_t span = strcspn(at, "|");
        fprintf(stream, "%s`%.*s`", at == words ? "" : ", ", (int)span, at);
        at = at[span] ? at + span + 1 : NULL;
    }
}

static void print_type(FILE *stream, const struct option *key)
{
    if (key->choices) {
        print_words(stream, key->choices);
        return;
    }
    bool limits = key->minimum != 0 || key->maximum != 0;
    switch (key->kind) {
    case OPTION_LIST:
        if (!strchr(key->argument, '|')) {
            fprintf(stream, "list of numbers");
            break;
        } /* fall through */
    case OPTION_TEXT:
        if (key->argument && strchr(key->argument, '|')) {
            print_words(stream, key->argument);
        } else {
            fprintf(stream, "path");
        }
        break;
    case OPTION_FLAG:
        fprintf(stream, "`true`, `false`");
        break;
    case OPTION_INTEGER:
    case OPTION_NUMBER:
    case OPTION_CHOICE:
        fprintf(stream, key->kind == OPTION_INTEGER ? "whole number" : "number");
        if (limits && key->maximum >= 1e9) fprintf(stream, ", from %.10g", key->minimum);
        if (limits && key->maximum < 1e9) fprintf(stream, ", %.10g to %.10g", key->minimum, key->maximum);
        break;
    }
}

static void print_number_cell(FILE *stream, double value, bool shown)
{
    if (shown) {
        fprintf(stream, " %g |", value);
    } else {
        fprintf(stream, " |");
    }
}

/* What each loss is trained on, its defaults of the keys that go by loss_type, and the keys that it takes. */
static void print_losses(FILE *stream)
{
    static const char *const shapes[] = {"pairs", "any, of which the first completion",
                                         "labelled completions, or pairs", "ranked groups"};
    static const unsigned traits[] = {TRAIT_DIVERGENCE, TRAIT_MARGIN};
    fprintf(stream,
            "\n| loss | groups | reference | `beta` | `label_smoothing` | `gamma_beta_ratio` | `rpo_alpha` | "
            "`weighting` | `f_divergence_type` | `length_alpha`, `reward_margin_beta` |\n"
            "|---|---|---|---|---|---|---|---|---|---|\n");
    for (int i = 0; i < LOSS_COUNT; i++) {
        struct loss_kind kind = loss_kind((enum loss_type)i);
        struct objective o = objective_of((enum loss_type)i, WEIGHTING_NONE);
        fprintf(stream, "| `%s` | %s%s |%s |", kind.name, shapes[kind.shape],
                kind.traits & TRAIT_SCORES ? " with scores" : "",
                kind.traits & TRAIT_REFERENCE ? " yes" : "");
        print_number_cell(stream, o.beta, i != LOSS_SFT);
        print_number_cell(stream, o.label_smoothing, kind.traits & TRAIT_SMOOTHING);
        print_number_cell(stream, o.gamma_beta_ratio, i == LOSS_SIMPO);
        print_number_cell(stream, o.rpo_alpha, i != LOSS_SFT && kind.shape != GROUP_LABELLED);
        fprintf(stream, "%s |", kind.traits & TRAIT_UNWEIGHTED ? "" : " yes");
        for (int t = 0; t < 2; t++)
            fprintf(stream, "%s |", kind.traits & traits[t] ? " yes" : "");
        fprintf(stream, "\n");
    }
}

void keys_print(FILE *stream)
{
    fprintf(stream, "| key | type | default | meaning |\n|---|---|---|---|\n");
    for (int64_t i = 0; i < RUN_KEYS; i++) {
        const struct option *key = &run_keys[i];
        fprintf(stream, "| `%s` | ", key->name);
        print_type(stream, key);
        if (key->required) {
            fprintf(stream, " | required");
        } else {
            fprintf(stream, " | `%s`", key->fallback ? key->fallback : "null");
        }
        fprintf(stream, " | %s |\n", key->meaning);
    }
    print_losses(stream);
    fprintf(stream, "\n| other name | read as |\n|---|---|\n");
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++) {
        fprintf(stream, "| `%s` | `%s` |\n", aliases[i][0], aliases[i][1]);
    }
    fprintf(stream, "\n| key of other trainers | accepted without effect | what wpo does |\n|---|---|---|\n");
    const struct foreign_key *foreign = foreign_keys;
    for (; foreign->name; foreign++) {
        fprintf(stream, "| `%s` | ", foreign->name);
        if (!strcmp(foreign->accepted, "*")) {
            fprintf(stream, "any value");
        } else if (!*foreign->accepted) {
            fprintf(stream, "`null` only");
        } else {
            print_words(stream, foreign->accepted);
        }
        fprintf(stream, " | %s |\n", foreign->instead);
    }
}
