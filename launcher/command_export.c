#include "launcher/commands.h"
#include "launcher/model_output.h"
#include "launcher/runfile.h"
#include "runtime/checkpoint.h"
#include "runtime/files.h"

#include <stdio.h>
#include <stdlib.h>

struct export_options {
    char *run, *out, *max_shard_size;
    int64_t step;
    enum dtype dtype;
};

static const struct option options[] = {
    {.name = "run",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct export_options, run),
     .argument = "DIR",
     .meaning = "the run folder (output_dir of the training)",
     .required = true},
    {.name = "out",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct export_options, out),
     .argument = "DIR",
     .meaning = "the model folder to make; it must not exist",
     .required = true},
    {.name = "step",
     .kind = OPTION_INTEGER,
     .offset = offsetof(struct export_options, step),
     .fallback = "-1",
     .minimum = -1,
     .maximum = 9e15,
     .argument = "N",
     .meaning = "export checkpoint-N; -1: the newest one that verifies"},
    {.name = "dtype",
     .kind = OPTION_CHOICE,
     .offset = offsetof(struct export_options, dtype),
     .fallback = "float32",
     .choices = MODEL_DTYPES,
     .meaning = "of the stored tensors; float32 keeps every bit of the training"},
    {.name = "max_shard_size",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct export_options, max_shard_size),
     .fallback = "5GB",
     .argument = "SIZE",
     .meaning = "a larger model becomes several files with an index"},
};

/* Training keeps a copy of config and tokenizer files in <run>/model; before that, the starting model has
 * them. NULL when both are gone. To be freed. */
static char *find_companions(const char *run, const char *run_file)
{
    char *copy = files_join(run, "model"), *starting = NULL;
    if (files_is_folder(copy)) return copy;
    free(copy);
    if (runfile_text_value(run_file, "model_name_or_path", &starting) != STATUS_OK) return NULL;
    if (starting && files_is_folder(starting)) return starting;
    free(starting);
    return NULL;
}

static enum status write_model(const struct export_options *chosen, const struct checkpoint_state *state,
                               const struct config *config, const struct params *params, const float *flat,
                               const char *folder)
{
    struct pretrained_output output = {
        .flat = flat, .params = params, .config_text = state->config, .type = chosen->dtype};
    TRY(model_output_size(chosen->max_shard_size, &output.shard_bytes));
    char *source = find_companions(chosen->run, state->run_file);
    output.source = source;
    enum status status = pretrained_save(&output, chosen->out);
    if (status == STATUS_OK) {
        model_output_note(chosen->out, config, chosen->dtype, folder);
        if (!source)
            fprintf(stderr,
                    "wpo export: the starting model's folder is gone, so no tokenizer files were copied; put "
                    "them into %s\n",
                    chosen->out);
    }
    free(source);
    return status;
}

static enum status export_checkpoint(struct comm *comm, const struct export_options *chosen,
                                     const char *folder)
{
    struct checkpoint_state state = {0};
    struct config config;
    TRY(checkpoint_state_read(&state, folder));
    enum status status = config_parse(&config, folder, state.config);
    if (status == STATUS_OK) {
        struct params params;
        params_layout(&params, &config);
        float *flat = allocate(params.total, sizeof *flat);
        struct checkpoint_piece piece = {.count = params.total, .parameter = flat};
        checkpoint_state_free(&state);
        state = (struct checkpoint_state){0};
        status = checkpoint_load(comm, folder, &params, &state, &piece, 1);
        if (status == STATUS_OK) status = write_model(chosen, &state, &config, &params, flat, folder);
        free(flat);
        params_free(&params);
    }
    checkpoint_state_free(&state);
    return status;
}

static enum status export_run(struct comm *comm, const struct export_options *chosen)
{
    int64_t bytes;
    TRY(model_output_size(chosen->max_shard_size, &bytes));
    if (comm->size > 1) return fail_usage("export is work for one process; start it without mpirun");
    if (!files_is_folder(chosen->run)) return fail("%s: no such run folder", chosen->run);
    TRY(model_output_check(chosen->out));
    char *wanted = chosen->step < 0 ? text_copy("auto")
                                    : text_format("%s/checkpoint-%lld", chosen->run, (long long)chosen->step);
    char *found = NULL;
    enum status status = STATUS_OK;
    if (chosen->step >= 0 && !files_is_folder(wanted))
        status = fail("%s: no such checkpoint; wpo inspect %s lists those of the run", wanted, chosen->run);
    if (status == STATUS_OK) status = checkpoint_find(comm, chosen->run, wanted, &found);
    if (status == STATUS_OK && !found) status = fail("%s: no checkpoint is in this run folder", chosen->run);
    if (status == STATUS_OK) status = export_checkpoint(comm, chosen, found);
    free(found);
    free(wanted);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct export_options chosen = {0};
    struct comm comm;
    TRY(options_parse(options, OPTION_COUNT(options), &chosen, argc, argv));
    enum status status = comm_open(&comm);
    if (status == STATUS_OK) {
        status = export_run(&comm, &chosen);
        comm_close(&comm);
    }
    options_free(options, OPTION_COUNT(options), &chosen);
    return status;
}

const struct command command_export = {
    .name = "export",
    .summary = "turn a checkpoint into a Hugging Face model folder",
    .usage = "wpo export --run DIR --out DIR [--step N] [--dtype float32|bfloat16|float16]",
    .description =
        "Writes config.json, the weights as safetensors, and the tokenizer files of the starting model. "
        "The\nfolder loads in Transformers, in vLLM and in wpo itself.",
    .options = options,
    .option_count = OPTION_COUNT(options),
    .examples = "  wpo export --run runs/first --out models/aligned\n"
                "  wpo export --run runs/first --step 200 --out models/step-200 --dtype bfloat16",
    .run = run,
};
