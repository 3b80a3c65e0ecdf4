#include "launcher/model_output.h"

#include "runtime/files.h"
#include "runtime/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status model_output_size(const char *text, int64_t *bytes)
{
    static const struct {
        const char *name;
        int64_t bytes;
    } units[] = {
        {"", 1},          {"B", 1},         {"KB", 1000},     {"MB", 1000000}, {"GB", 1000000000},
        {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30},
    };
    char *end = NULL;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    bool valid = errno == 0 && number > 0 && text[0] >= '0' && text[0] <= '9';
    for (size_t i = 0; valid && i < sizeof units / sizeof units[0]; i++)
        if (strcmp(end, units[i].name) == 0 &&
            !__builtin_mul_overflow((int64_t)number, units[i].bytes, bytes))
            return STATUS_OK;
    return fail_usage("--max_shard_size is '%.60s', but it must be a size such as 5GB, 200MB or 64KiB", text);
}

enum status model_output_check(const char *folder)
{
    if (files_exists(folder)) return fail("%s: exists already; choose another name or remove it", folder);
    char *parent = files_parent(folder);
    enum status status =
        files_is_folder(parent) ? STATUS_OK : fail("%s: no such folder to put the model into", parent);
    free(parent);
    return status;
}

void model_output_note(const char *folder, const struct config *config, enum dtype type, const char *from)
{
    printf("%s: %s model with %lld parameters in %s%s%s\n", folder, family_name(config->family),
           (long long)config_parameters(config), safetensors_torch_dtype(type), from ? ", from " : "",
           from ? from : "");
}
