/* Model folders that are written: complete, durable, of the right dtype, or not there at all. */
#include "model_world.h"
#include "runtime/safetensors.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static void check_config_copy(const char *folder, const char *dtype)
{
    char *text = read_text(folder, "config.json");
    char *line = text_format("  \"torch_dtype\": \"%s\",\n  \"hidden_size\": 14,\n", dtype);
    CHECK_TEXT(text, "{\n  \"zeta\": [\n    1,\n    2.5e-07\n  ],\n  \"architectures\": [");
    CHECK_TEXT(text, line);
    CHECK_TEXT(text, "\"alpha\": null\n}\n");
    free(line);
    free(text);
}

static void check_round_trips(void)
{
    static const char *const dtypes[] = {"float32", "bfloat16", "float16"};
    CHECK(mkdir(scratch_path("source"), 0777) == 0);
    scratch_text("source/tokenizer.json", "{\"t\": 1}");
    scratch_text("source/merges.txt", "");
    scratch_text("source/model.bin", "not copied");
    for (int i = 0; i < 6; i++) {
        struct world world = world_open(i % 2);
        enum dtype type = (enum dtype)(i / 2);
        scratch_text("source/config.json", world.text);
        struct pretrained_output output = {world.flat, &world.params, scratch_path("source"),
                                           NULL,       type,          1 << 20};
        const char *folder = scratch_path("out");
        CHECK(pretrained_save(&output, folder) == STATUS_OK);
        CHECK(entries() == 2);
        check_config_copy(folder, dtypes[type]);
        char *tokenizer = read_text(folder, "tokenizer.json"), *path = files_join(folder, "merges.txt");
        CHECK(!strcmp(tokenizer, "{\"t\": 1}") && files_exists(path));
        free(tokenizer);
        free(path);
        char **names;
        int64_t count;
        CHECK(files_list(&names, &count, folder) == STATUS_OK && count == 4);
        files_names_free(names, count);

        struct config config;
        CHECK(pretrained_config(&config, folder) == STATUS_OK &&
              !memcmp(&config, &world.config, sizeof config));
        CHECK(reload(&world, folder) == STATUS_OK && same(&world));

        CHECK(pretrained_save(&output, folder) == STATUS_BAD);
        CHECK_TEXT(status_sentence(), "exists already");
        CHECK(files_remove_tree(folder) == STATUS_OK);
        world_close(&world);
    }
}

static void check_dtype_keys(void)
{
    struct world world = world_open(true);
    static const struct {
        const char *before, *after, *absent;
    } cases[] = {{"\"dtype\": \"float64\"", "\"dtype\": \"bfloat16\"", "torch_dtype"},
                 {"\"other\": 1", "\"torch_dtype\": \"bfloat16\"", "\"dtype\""},
                 {"\"dtype\": 1, \"torch_dtype\": 2", "\"torch_dtype\": \"bfloat16\"", "2"}};
    for (size_t i = 0; i < 3; i++) {
        char *config = text_format("{%s}", cases[i].before);
        struct pretrained_output output = {world.flat, &world.params, NULL, config, DTYPE_BFLOAT, 1 << 20};
        const char *folder = scratch_path("keys/");
        CHECK(pretrained_save(&output, folder) == STATUS_OK);
        char *text = read_text(folder, "config.json");
        CHECK_TEXT(text, cases[i].after);
        CHECK(!strstr(text, cases[i].absent));
        free(text);
        free(config);
        files_remove_tree(folder);
    }
    world_close(&world);
}

/* A file is no larger than the limit, or holds one tensor. Returns its size. */
static int64_t check_shard(const char *folder, const char *name, int64_t limit)
{
    char *path = files_join(folder, name);
    struct safetensors file;
    struct stat information = {0};
    CHECK(stat(path, &information) == 0);
    CHECK(safetensors_open(&file, path) == STATUS_OK);
    CHECK(file.count == 1 || information.st_size <= limit);
    safetensors_close(&file);
    free(path);
    return information.st_size;
}

static void check_shards(int64_t limit)
{
    struct world world = world_open(false);
    struct pretrained_output output = {world.flat, &world.params, NULL, world.text, DTYPE_HALF, limit};
    const char *folder = scratch_path("shards");
    CHECK(pretrained_save(&output, folder) == STATUS_OK);
    char **names;
    int64_t count, bytes = 0;
    CHECK(files_list(&names, &count, folder) == STATUS_OK && count > 4);
    for (int64_t i = 0; i < count; i++) {
        if (strncmp(names[i], "model-", 6) != 0) continue;
        char *expected =
            text_format("model-%05lld-of-%05lld.safetensors", (long long)i, (long long)count - 2);
        CHECK(!strcmp(names[i], expected));
        bytes += check_shard(folder, names[i], limit);
        free(expected);
    }
    files_names_free(names, count);
    int64_t total = config_parameters(&world.config) * 2;
    char *index = read_text(folder, "model.safetensors.index.json");
    char *size = text_format("\"total_size\": %lld", (long long)total);
    CHECK_TEXT(index, size);
    CHECK(bytes > total);
    CHECK(reload(&world, folder) == STATUS_OK && same(&world));
    free(size);
    free(index);
    files_remove_tree(folder);
    world_close(&world);
}

static void check_unsavable(void)
{
    struct world world = world_open(false);
    struct pretrained_output output = {world.flat, &world.params, NULL, world.text, DTYPE_HALF, 2500};
    int64_t before = entries();
    world.flat[world.params.list[5].offset + 3] = 70000;
    CHECK(pretrained_save(&output, scratch_path("broken")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(),
               "tensor model.layers.0.self_attn.o_proj.weight: element 3 is 70000, too large");
    CHECK(entries() == before);
    world.flat[world.params.list[5].offset + 3] = 7;

    output.config_text = "{\"a\": 1, \"a\": 2}";
    CHECK(pretrained_save(&output, scratch_path("broken")) == STATUS_BAD);
    output.config_text = NULL;
    output.source = scratch_path("nowhere");
    CHECK(pretrained_save(&output, scratch_path("broken")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "nowhere/config.json");
    output.config_text = world.text;
    CHECK(pretrained_save(&output, scratch_path("absent/broken")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "absent");
    CHECK(entries() == before);

    /* A limit on file sizes stands for a full disk: the call that fails is the same write(). */
    struct rlimit limit, small;
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    small = limit;
    small.rlim_cur = 1000;
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    CHECK(pretrained_save(&output, scratch_path("broken")) == STATUS_BAD);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_TEXT(status_sentence(), ".safetensors");
    CHECK_TEXT(status_sentence(), "make room");
    CHECK(entries() == before);
    world_close(&world);
}

int main(void)
{
    scratch_begin();
    check_round_trips();
    check_dtype_keys();
    for (int64_t limit = 1; limit < 3000; limit += 599)
        check_shards(limit);
    check_unsavable();
    return check_result();
}
