/* The settings of a run, under the names of TRL and Transformers. The launcher fills this from YAML and the
 * command line; the runtime only reads it. Text fields are owned by the struct. */
#ifndef WPO_RUNTIME_SETTINGS_H
#define WPO_RUNTIME_SETTINGS_H

#include "kernels/objective.h"
#include "kernels/tensor.h"
#include "runtime/status.h"

enum schedule { SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_CONSTANT };
enum wanted_dtype { WANTED_AUTO, WANTED_FLOAT, WANTED_BFLOAT };
enum reduction_order { REDUCTION_LIBRARY, REDUCTION_ORDERED }; /* of the network library, or by rank */
enum on_nonfinite { NONFINITE_STOP, NONFINITE_SKIP };
enum when { WHEN_NO, WHEN_STEPS, WHEN_EPOCH };

struct settings {
    /* model and data */
    char *model_name_or_path;
    char *ref_model_name_or_path; /* NULL: the starting model */
    char *train_file;             /* groups.h5 */
    char *eval_file;              /* NULL: none */
    char *output_dir;

    /* objective */
    struct objective objective; /* loss_type and every key that belongs to it */
    bool has_min_margin;
    double min_margin;            /* pairs whose scores differ by less are left out */
    bool sync_ref_model;          /* TR-DPO: the reference follows the policy ... */
    double ref_model_mixup_alpha; /* ... to this share ... */
    int64_t ref_model_sync_steps; /* ... every so many steps */

    /* optimiser */
    enum on_nonfinite on_nonfinite; /* what a loss or gradient that is not finite does */
    double learning_rate, weight_decay, adam_beta1, adam_beta2, adam_epsilon, max_grad_norm;
    enum schedule lr_scheduler_type;
    double warmup_ratio;
    int64_t warmup_steps; /* > 0 wins over warmup_ratio */

    /* length and batch; a batch counts groups (pairs) */
    double num_train_epochs;
    int64_t max_steps; /* > 0 wins over num_train_epochs */
    int64_t per_device_train_batch_size, per_device_eval_batch_size, gradient_accumulation_steps;
    int64_t global_batch_size; /* 0: per_device * accumulation * ranks */
    uint64_t seed;

    /* memory and machine */
    bool gradient_checkpointing;
    int64_t zero_stage;       /* 0 or 1 */
    int64_t logits_megabytes; /* memory that one chunk of logits may take; 0: as suits the device */
    int64_t threads;          /* per rank; 0: share the host's cores */
    char *device;             /* auto, cpu, cuda */
    enum wanted_dtype dtype;  /* of parameters and activations; auto: bf16 on cuda, f32 on cpu */
    enum dtype gradient_dtype, moment_dtype; /* f32 or bf16 */
    enum reduction_order gradient_reduction;
    int64_t ddp_timeout; /* seconds that ranks wait for one that does not come; 0: forever */

    /* logging, evaluation, checkpoints */
    int64_t logging_steps;
    enum when eval_strategy;
    int64_t eval_steps;
    enum when save_strategy;
    int64_t save_steps, save_total_limit; /* limit 0: keep all */
    char *resume_from_checkpoint;         /* NULL: start anew; "auto"; or a folder */
    bool log_pairs;                       /* a line per pair and step in pairs.jsonl */
    int64_t hash_steps; /* compare the ranks' parameters every so many steps; 0: only at load and save */
};

#endif
