#include "launcher/commands.h"
#include "launcher/model_output.h"
#include "runtime/files.h"
#include "runtime/json.h"

#include <stdlib.h>

struct init_options {
    char *config, *out, *max_shard_size;
    uint64_t seed;
    enum dtype dtype;
};

static const struct option options[] = {
    {.name = "config",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct init_options, config),
     .argument = "FILE",
     .meaning = "a config.json, or the folder that holds one; tokenizer files beside it are copied",
     .required = true},
    {.name = "out",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct init_options, out),
     .argument = "DIR",
     .meaning = "the model folder to make; it must not exist",
     .required = true},
    {.name = "seed",
     .kind = OPTION_INTEGER,
     .offset = offsetof(struct init_options, seed),
     .fallback = "42",
     .maximum = 9e15,
     .meaning = "of the random weights; the same seed gives the same weights everywhere"},
    {.name = "dtype",
     .kind = OPTION_CHOICE,
     .offset = offsetof(struct init_options, dtype),
     .fallback = "float32",
     .choices = MODEL_DTYPES,
     .meaning = "of the stored tensors"},
    {.name = "max_shard_size",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct init_options, max_shard_size),
     .fallback = "5GB",
     .argument = "SIZE",
     .meaning = "a larger model becomes several files with an index"},
};

static enum status write_model(const struct init_options *chosen, const char *path, const char *folder,
                               int64_t shard_bytes)
{
    struct config config;
    char *text;
    size_t bytes;
    TRY(config_read(&config, path));
    TRY(model_output_check(chosen->out));
    TRY(files_read(&text, &bytes, path, JSON_SMALL));
    struct params params;
    params_layout(&params, &config);
    float *flat = allocate(params.total, sizeof *flat);
    params_initialise(&params, &config, chosen->seed, flat);
    struct pretrained_output output = {.flat = flat,
                                       .params = &params,
                                       .source = folder,
                                       .config_text = text,
                                       .type = chosen->dtype,
                                       .shard_bytes = shard_bytes};
    enum status status = pretrained_save(&output, chosen->out);
    if (status == STATUS_OK) model_output_note(chosen->out, &config, chosen->dtype, NULL);
    free(text);
    free(flat);
    params_free(&params);
    return status;
}

static enum status init(const struct init_options *chosen)
{
    int64_t shard_bytes;
    TRY(model_output_size(chosen->max_shard_size, &shard_bytes));
    bool is_folder = files_is_folder(chosen->config);
    char *path = is_folder ? files_join(chosen->config, "config.json") : text_copy(chosen->config);
    char *folder = files_parent(path);
    enum status status = write_model(chosen, path, folder, shard_bytes);
    free(folder);
    free(path);
    return status;
}

static enum status run(int argc, char **argv)
{
    struct init_options chosen = {0};
    TRY(options_parse(options, OPTION_COUNT(options), &chosen, argc, argv));
    enum status status = speaks() ? init(&chosen) : STATUS_OK; /* one process writes */
    options_free(options, OPTION_COUNT(options), &chosen);
    return status;
}

const struct command command_init = {
    .name = "init",
    .summary = "make a model with random weights, as a Hugging Face folder",
    .usage = "wpo init --config FILE --out DIR [--seed S] [--dtype float32|bfloat16|float16]",
    .description =
        "Matrices are drawn from a normal distribution with the deviation initializer_range of the\n"
        "configuration, norms are ones, biases zeros. For training from scratch, tests and benchmarks.",
    .options = options,
    .option_count = OPTION_COUNT(options),
    .examples = "  wpo init --config config.json --seed 1 --out models/small\n"
                "  wpo init --config models/known/config.json --out models/fresh --dtype bfloat16",
    .run = run,
};
