#include "launcher/commands.h"
#include "launcher/keys.h"
#include "launcher/progress.h"
#include "runtime/evaluate.h"
#include "runtime/files.h"
#include "runtime/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct eval_options {
    struct settings settings;
    struct loss_lists losses;
    char *per_completion;
    bool json;
};

/* clang-format off */
static const struct option options[] = {
    {"model", OPTION_TEXT, KEY(struct eval_options, model_name_or_path), NULL, 0, 0, NULL, "DIR",
     "the model: a Hugging Face folder", true, false},
    {"data", OPTION_TEXT, KEY(struct eval_options, eval_file), NULL, 0, 0, NULL, "FILE",
     "the groups to evaluate on, from wpo prepare", true, false},
    {"reference", OPTION_TEXT, KEY(struct eval_options, ref_model_name_or_path), NULL, 0, 0, NULL, "DIR",
     "the reference model; without it there are no rewards", false, false},
    {"per_completion", OPTION_TEXT, offsetof(struct eval_options, per_completion), NULL, 0, 0, NULL, "FILE",
     "write a record per completion: out.h5 or out.jsonl", false, false},
    {"json", OPTION_FLAG, offsetof(struct eval_options, json), "false", 0, 0, NULL, NULL,
     "print one JSON object, and nothing else, on standard output", false, false},
    KEYS_OBJECTIVE(struct eval_options),
    KEY_EVAL_BATCH(struct eval_options),
    KEYS_MACHINE(struct eval_options),
};
/* clang-format on */

static bool ends_in(const char *text, const char *ending)
{
    size_t length = strlen(text), tail = strlen(ending);
    return length > tail && !strcmp(text + length - tail, ending);
}

/* Shows before the work begins that its results can be kept. */
static enum status check_output(const char *path)
{
    if (!path) return STATUS_OK;
    if (!ends_in(path, ".h5") && !ends_in(path, ".jsonl")) {
        return fail_usage("--per_completion is '%.200s', but it must end in .h5 or .jsonl", path);
    }
    char *folder = files_parent(path);
    enum status status = STATUS_OK;
    if (!files_is_folder(folder)) {
        status = fail("%s: the folder for --per_completion does not exist", folder);
    } else if (access(folder, W_OK) != 0) {
        status = fail("%s: the folder for --per_completion is not writable", folder);
    }
    free(folder);
    return status;
}

static void print_json(const struct evaluation *evaluation)
{
    struct json *json = json_new();
    struct json_value root = json_root(json);
    json_put_int(root, "groups", evaluation->dataset.groups.group_count);
    json_put_int(root, "completions", evaluation->dataset.groups.completion_count);
    for (int64_t i = 0; i < evaluation->metric_count; i++) {
        const struct metric *metric = &evaluation->metrics[i];
        if (isfinite(metric->value)) json_put_number(root, metric->name, metric->value);
    }
    char *text = json_text(json, 0);
    printf("%s\n", text);
    free(text);
    json_free(json);
}

static void print_table(const struct evaluation *evaluation)
{
    size_t width = strlen("completions");
    for (int64_t i = 0; i < evaluation->metric_count; i++) {
        size_t length = strlen(evaluation->metrics[i].name);
        if (length > width) width = length;
    }
    printf("%-*s  %lld\n", (int)width, "groups", (long long)evaluation->dataset.groups.group_count);
    printf("%-*s  %lld\n", (int)width, "completions", (long long)evaluation->dataset.groups.completion_count);
    for (int64_t i = 0; i < evaluation->metric_count; i++) {
        char number[32];
        const struct metric *metric = &evaluation->metrics[i];
        if (!isfinite(metric->value)) continue;
        printf("%-*s  %s\n", (int)width, metric->name, progress_number(number, metric->value));
    }
}

static enum status publish(const struct evaluation *evaluation, const struct eval_options *chosen)
{
    if (chosen->per_completion) TRY(evaluation_write(evaluation, chosen->per_completion));
    if (chosen->json) {
        print_json(evaluation);
    } else {
        print_table(evaluation);
    }
    return STATUS_OK;
}

static enum status evaluate(struct comm *comm, const struct eval_options *chosen)
{
    TRY(comm_agree(comm, check_output(chosen->per_completion)));
    struct progress_log log;
    TRY(progress_open(&log, NULL, false, false, STDERR_FILENO));
    struct report report = comm->rank == 0 ? progress_report(&log) : progress_silence();
    struct evaluation evaluation = {0};
    enum status status = evaluate_run(comm, &chosen->settings, &report, &evaluation);
    progress_close(&log);
    if (status != STATUS_OK) return status;
    status = comm_agree(comm, comm->rank == 0 ? publish(&evaluation, chosen) : STATUS_OK);
    evaluation_free(&evaluation);
    return status;
}

static enum status check_reference(const struct eval_options *chosen)
{
    const struct settings *settings = &chosen->settings;
    if (!settings->ref_model_name_or_path || objective_uses_reference(&settings->objective)) return STATUS_OK;
    return fail_usage("--reference has no effect with loss_type %s, which has no reference; remove it",
                      chosen->losses.loss_type);
}

static enum status run(int argc, char **argv)
{
    struct eval_options chosen = {0};
    bool given[OPTION_COUNT(options)];
    TRY(options_parse_given(options, OPTION_COUNT(options), &chosen, given, argc, argv));
    const struct given all = {options, OPTION_COUNT(options), given};
    enum status status = keys_check_objective(&chosen.settings, &chosen.losses, &all, "");
    if (status == STATUS_OK) status = check_reference(&chosen);
    if (status == STATUS_OK) status = keys_check_device(&chosen.settings, "");
    if (status == STATUS_OK) {
        struct comm comm;
        status = comm_open(&comm);
        if (status == STATUS_OK) status = evaluate(&comm, &chosen);
        comm_close(&comm);
    }
    options_free(options, OPTION_COUNT(options), &chosen);
    return status;
}

const struct command command_eval = {
    .name = "eval",
    .summary = "log-probabilities, weights and the metrics of training for a model on groups",
    .usage = "[mpirun -n R] wpo eval --model DIR --data groups.h5 [options]",
    .description = "The same kernels, batches and names of metrics as in training; rewards need --reference.",
    .options = options,
    .option_count = OPTION_COUNT(options),
    .examples = "  wpo eval --model my-model --data test.h5\n"
                "  mpirun -n 2 wpo eval --model my-model --reference base --data test.h5 --json\n"
                "  wpo eval --model base --data test.h5 --per-completion scores.jsonl",
    .run = run,
};
