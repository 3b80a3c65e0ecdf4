#include "launcher/commands.h"
#include "launcher/inspect.h"
#include "runtime/files.h"
#include "runtime/seal.h"

#include <stdlib.h>
#include <string.h>

struct inspect_options {
    char *path;
    bool json;
};

static const struct option options[] = {
    {.name = "path",
     .kind = OPTION_TEXT,
     .offset = offsetof(struct inspect_options, path),
     .argument = "FILE|DIR",
     .meaning =
         "a groups file, a scores file, a safetensors file, a checkpoint, a run folder or a model folder",
     .required = true,
     .positional = true},
    {.name = "json",
     .kind = OPTION_FLAG,
     .offset = offsetof(struct inspect_options, json),
     .meaning = "print one JSON object"},
};

static bool holds(const char *folder, const char *name)
{
    char *path = files_join(folder, name);
    bool found = files_exists(path);
    free(path);
    return found;
}

static enum status inspect_folder(const char *path, struct page *page)
{
    if (holds(path, "manifest.json")) return inspect_checkpoint(path, page);
    if (holds(path, "config.json")) return inspect_model(path, page);
    if (inspect_is_run(path)) return inspect_run(path, page);
    if (inspect_is_shards(path))
        return fail("%s is a checkpoint without a manifest: it was never finished, and nothing reads it",
                    path);
    return fail("%s is no checkpoint (manifest.json), no model (config.json) and no run folder", path);
}

static enum status inspect(const char *path, struct page *page)
{
    if (!files_exists(path)) return fail("%s does not exist", path);
    if (files_is_folder(path)) return inspect_folder(path, page);
    char format[32];
    seal_format(format, path);
    if (!strcmp(format, "wpo-scores")) return inspect_scores(path, page);
    const char *ending = strrchr(files_name(path), '.');
    if (ending && !strcmp(ending, ".safetensors")) return inspect_safetensors(path, page);
    return inspect_groups(path, page);
}

static enum status run(int argc, char **argv)
{
    struct inspect_options chosen = {0};
    TRY(options_parse(options, OPTION_COUNT(options), &chosen, argc, argv));
    enum status status = STATUS_OK;
    if (speaks()) {
        struct page page;
        page_open(&page, chosen.json);
        status = inspect(chosen.path, &page);
        page_close(&page);
    }
    options_free(options, OPTION_COUNT(options), &chosen);
    return status;
}

const struct command command_inspect = {
    .name = "inspect",
    .summary = "tell what a groups file, checkpoint, run or model holds, and verify it",
    .usage = "wpo inspect FILE|DIR [--json]",
    .description =
        "Every checksum, size, offset, token id and number is checked. The exit code is 0 only if all of\n"
        "it is right; otherwise one sentence says what is not.",
    .options = options,
    .option_count = OPTION_COUNT(options),
    .examples = "  wpo inspect groups.h5\n"
                "  wpo inspect runs/first --json\n"
                "  wpo inspect runs/first/checkpoint-200",
    .run = run,
};
