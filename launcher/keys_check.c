#include "kernels/ops.h"
#include "launcher/keys.h"

#include <stdlib.h>
#include <string.h>

bool is_given(const struct given *given, const char *name)
{
    const struct option *option = options_find(given->options, given->count, name, strlen(name));
    return option && given->list[option - given->options];
}

enum status keys_check_device(const struct settings *settings, const char *where)
{
    if (!strcmp(settings->device, "cuda") && !cuda_ops())
        return fail_usage(
            "%sdevice is cuda, but this wpo was built without CUDA; build it where nvcc is found, or set "
            "device to cpu",
            where);
    if (!strcmp(settings->device, "cpu") && settings->dtype == WANTED_BFLOAT)
        return fail_usage("%sdtype is bfloat16, but device cpu computes in float32; set dtype to auto",
                          where);
    if (settings->dtype == WANTED_FLOAT && settings->gradient_dtype == DTYPE_BFLOAT)
        return fail_usage(
            "%sgradient_dtype is bfloat16, but dtype is float32; set both to bfloat16 or leave both", where);
    return STATUS_OK;
}

static enum status check_optimiser(const struct settings *settings, const char *where)
{
    if (settings->adam_beta1 >= 1) return fail_usage("%sadam_beta1 is 1, but it must be below 1", where);
    if (settings->adam_beta2 >= 1) return fail_usage("%sadam_beta2 is 1, but it must be below 1", where);
    if (settings->adam_epsilon <= 0) return fail_usage("%sadam_epsilon is 0, but it must be above 0", where);
    return STATUS_OK;
}

static enum status check_schedule(struct runfile *runfile, const char *where)
{
    struct settings *settings = &runfile->settings;
    bool with_warmup = runfile->schedule > (int)SCHEDULE_CONSTANT;
    settings->lr_scheduler_type = with_warmup ? SCHEDULE_CONSTANT : (enum schedule)runfile->schedule;
    bool warms = settings->warmup_ratio > 0 || settings->warmup_steps > 0;
    if (settings->warmup_ratio > 0 && settings->warmup_steps > 0) {
        return fail_usage("%swarmup_ratio and warmup_steps are both given; keep one of them", where);
    }
    if (runfile->schedule == (int)SCHEDULE_CONSTANT && warms) {
        return fail_usage(
            "%slr_scheduler_type constant has no warm-up; set it to constant_with_warmup, or remove "
            "%s",
            where, settings->warmup_steps > 0 ? "warmup_steps" : "warmup_ratio");
    }
    return STATUS_OK;
}

static enum status check_length(const struct settings *settings, const char *where)
{
    if (settings->num_train_epochs <= 0) {
        return fail_usage("%snum_train_epochs is 0, but it must be above 0", where);
    }
    if (settings->max_steps == 0) {
        return fail_usage("%smax_steps is 0; give a number of steps, or -1 to go by num_train_epochs", where);
    }
    if (settings->global_batch_size > 0 && settings->gradient_accumulation_steps > 1) {
        return fail_usage(
            "%sglobal_batch_size and gradient_accumulation_steps are both given, and each decides the "
            "other; keep one of them",
            where);
    }
    return STATUS_OK;
}

static enum status check_evaluation(struct runfile *runfile, const struct given *given, const char *where)
{
    struct settings *settings = &runfile->settings;
    bool asked = is_given(given, "eval_strategy");
    if (!asked && settings->eval_file)
        settings->eval_strategy = settings->eval_steps ? WHEN_STEPS : WHEN_EPOCH;
    if (!settings->eval_file && settings->eval_strategy != WHEN_NO) {
        return fail_usage("%seval_strategy asks for evaluation, but there is no eval_file; give one, or set "
                          "eval_strategy to no",
                          where);
    }
    if (!settings->eval_file && settings->eval_steps && !asked) {
        return fail_usage("%seval_steps is given, but no eval_file", where);
    }
    if (settings->eval_strategy == WHEN_STEPS && !settings->eval_steps) {
        return fail_usage("%seval_strategy steps needs eval_steps", where);
    }
    if (settings->eval_strategy != WHEN_STEPS && settings->eval_steps) {
        runfile_note(runfile, "eval_steps has no effect: eval_strategy is %s",
                     settings->eval_strategy == WHEN_NO ? "no" : "epoch");
    }
    if (settings->eval_file && settings->eval_strategy == WHEN_NO) {
        runfile_note(runfile, "eval_file is not used: eval_strategy is no");
    }
    return STATUS_OK;
}

static enum status check_saving(struct runfile *runfile, const char *where)
{
    struct settings *settings = &runfile->settings;
    if (settings->save_strategy != WHEN_STEPS && settings->save_steps != 500) {
        runfile_note(runfile, "save_steps has no effect: save_strategy is %s",
                     settings->save_strategy == WHEN_NO ? "no" : "epoch");
    }
    if (settings->resume_from_checkpoint && runfile->overwrite_output_dir) {
        return fail_usage(
            "%sresume_from_checkpoint and overwrite_output_dir exclude each other: one goes on with a "
            "run, the other removes it",
            where);
    }
    return STATUS_OK;
}

enum status keys_check(struct runfile *runfile, const bool *given, const char *where)
{
    const struct given all = {run_keys, RUN_KEYS, given};
    TRY(keys_check_loss(runfile, &all, where));
    TRY(check_optimiser(&runfile->settings, where));
    TRY(check_schedule(runfile, where));
    TRY(check_length(&runfile->settings, where));
    TRY(check_evaluation(runfile, &all, where));
    TRY(check_saving(runfile, where));
    return keys_check_device(&runfile->settings, where);
}
