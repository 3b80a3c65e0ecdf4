/* Model folders: what is saved loads again, and broken or hostile folders are refused by name. */
#include "runtime/pretrained.h"
#include "runtime/safetensors.h"
#include "scratch.h"
#include "tests/check.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const char config_text[] =
    "{\n  \"zeta\": [1, 2.5e-07],\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": "
    "\"llama\",\n"
    "  \"torch_dtype\": \"float64\",\n  \"hidden_size\": 14,\n  \"intermediate_size\": 13,\n"
    "  \"num_hidden_layers\": 2,\n  \"num_attention_heads\": 7,\n  \"num_key_value_heads\": 1,\n"
    "  \"vocab_size\": 33,\n  \"max_position_embeddings\": 77,\n  \"tie_word_embeddings\": %s,\n  \"alpha\": "
    "null\n}\n";

/* A small model with values that every dtype holds exactly. */
struct world {
    struct config config;
    struct params params;
    float *flat, *back;
    char *text;
};

static struct world world_open(bool tied)
{
    struct world world = {.text = text_format(config_text, tied ? "true" : "false")};
    CHECK(config_parse(&world.config, "config.json", world.text) == STATUS_OK);
    params_layout(&world.params, &world.config);
    world.flat = allocate(world.params.total, sizeof(float));
    world.back = allocate(world.params.total, sizeof(float));
    unsigned long long state = 5;
    for (int64_t p = 0; p < world.params.count; p++)
        for (int64_t i = 0; i < world.params.list[p].count; i++)
            world.flat[world.params.list[p].offset + i] = (float)rint(64 * check_uniform(&state)) / 32;
    return world;
}

static void world_close(struct world *world)
{
    params_free(&world->params);
    free(world->flat);
    free(world->back);
    free(world->text);
}

static char *read_text(const char *folder, const char *name)
{
    char *path = files_join(folder, name), *text = NULL;
    size_t bytes;
    if (files_read(&text, &bytes, path, 1 << 20) != STATUS_OK) text = text_copy("");
    free(path);
    return text;
}

/* The folder that scratch files lie in holds these many entries: nothing half-made stays behind. */
static int64_t entries(void)
{
    char **names;
    int64_t count;
    CHECK(files_list(&names, &count, scratch_folder) == STATUS_OK);
    files_names_free(names, count);
    return count;
}

static enum status reload(struct world *world, const char *folder)
{
    memset(world->back, 0xff, (size_t)world->params.total * sizeof(float));
    return pretrained_load(world->back, &world->params, &world->config, folder);
}

static bool same(const struct world *world)
{
    return memcmp(world->flat, world->back, (size_t)world->params.total * sizeof(float)) == 0;
}

/* -- saving -------------------------------------------------------------------------------------------- */

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

/* -- loading ------------------------------------------------------------------------------------------- */

/* A folder under construction: the tensors of the model, to be changed before they are written. */
struct draft {
    struct safetensors_source sources[64];
    int64_t count;
};

static struct draft draft_of(const struct world *world)
{
    struct draft draft = {.count = world->params.count};
    for (int64_t i = 0; i < draft.count; i++) {
        const struct parameter *parameter = &world->params.list[i];
        draft.sources[i] = (struct safetensors_source){parameter->name, world->flat + parameter->offset,
                                                       parameter->rows, parameter->cols, parameter->vector};
    }
    return draft;
}

static const char *draft_write(const struct draft *draft, int64_t first, int64_t count, const char *name)
{
    const char *folder = scratch_path("draft");
    mkdir(folder, 0777);
    char *path = files_join(folder, name);
    CHECK(safetensors_write(path, draft->sources + first, count, DTYPE_FLOAT) == STATUS_OK);
    free(path);
    return folder;
}

static void load_fails(struct world *world, const char *part, const char *other)
{
    CHECK(reload(world, scratch_path("draft")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), part);
    CHECK_TEXT(status_sentence(), other);
    files_remove_tree(scratch_path("draft"));
}

static void check_broken_tensors(void)
{
    struct world world = world_open(false), tied = world_open(true);
    struct draft draft = draft_of(&world);
    int64_t all = draft.count;

    draft_write(&draft, 0, all - 1, "model.safetensors");
    load_fails(&world, "tensor lm_head.weight is missing", "tie_word_embeddings");
    draft_write(&draft, 3, all - 3, "model.safetensors");
    load_fails(&world, "3 of the 21 tensors", "the first is model.embed_tokens.weight");

    draft.sources[4].name = "model.layers.0.self_attn.v_proj.lora_A.weight";
    draft_write(&draft, 0, all, "model.safetensors");
    load_fails(&world, "model.safetensors: tensor model.layers.0.self_attn.v_proj.lora_A.weight is not part",
               "");

    draft = draft_of(&world);
    for (int64_t i = 0; i + 1 < all; i++)
        draft.sources[i].name += 6; /* without "model." */
    draft_write(&draft, 0, all - 1, "model.safetensors");
    load_fails(&world, "tensor embed_tokens.weight lacks the prefix \"model.\"", "AutoModelForCausalLM");

    draft = draft_of(&world);
    draft.sources[2].rows = 7, draft.sources[2].cols = 28;
    draft_write(&draft, 0, all, "model.safetensors");
    load_fails(&world, "tensor model.layers.0.self_attn.q_proj.weight has the shape [7, 28]", "[14, 14]");
    draft = draft_of(&world);
    draft.sources[1].vector = false;
    draft_write(&draft, 0, all, "model.safetensors");
    load_fails(&world, "tensor model.layers.0.input_layernorm.weight has the shape [1, 14]", "asks for [14]");

    /* NaN cannot be written, so it is put into the file: 4 bytes from the end, the last element of the head.
     */
    draft = draft_of(&world);
    draft_write(&draft, 0, all, "model.safetensors");
    FILE *stream = fopen(scratch_path("draft/model.safetensors"), "r+b");
    CHECK(stream && fseek(stream, -4, SEEK_END) == 0 && fwrite("\0\0\xc0\x7f", 1, 4, stream) == 4 &&
          fclose(stream) == 0);
    load_fails(&world, "tensor lm_head.weight holds NaN at element 461", "model.safetensors");

    /* Rotary tables are passed over; a repeated head of a tied model must equal the embedding. */
    draft = draft_of(&tied);
    all = draft.count;
    draft.sources[all] =
        (struct safetensors_source){"model.layers.0.self_attn.rotary_emb.inv_freq", tied.flat, 1, 3, true};
    draft.sources[all + 1] = draft.sources[0];
    draft.sources[all + 1].name = "lm_head.weight";
    draft_write(&draft, 0, all + 2, "model.safetensors");
    CHECK(reload(&tied, scratch_path("draft")) == STATUS_OK && same(&tied));
    files_remove_tree(scratch_path("draft"));
    draft.sources[all + 1].values = tied.flat + 1;
    draft_write(&draft, 0, all + 2, "model.safetensors");
    load_fails(&tied, "tensor lm_head.weight differs from the embedding", "tie_word_embeddings");
    draft.sources[all + 1].rows = 14, draft.sources[all + 1].cols = 33;
    draft_write(&draft, 0, all + 2, "model.safetensors");
    load_fails(&tied, "tensor lm_head.weight has the shape [14, 33]", "[33, 14]");
    world_close(&world);
    world_close(&tied);
}

/* Two shards, the first with `first` tensors; the index maps tensor i to `names[i]`, NULL for where it is. */
static void write_sharded(const struct draft *draft, int64_t first, int64_t overlap, int64_t odd,
                          const char *name)
{
    draft_write(draft, 0, first, "one.safetensors");
    draft_write(draft, first - overlap, draft->count - first + overlap, "two.safetensors");
    char *text = text_copy("");
    for (int64_t i = 0; i < draft->count; i++) {
        const char *shard = i == odd ? name : i < first ? "one.safetensors" : "two.safetensors";
        char *longer = text_format("%s%s\"%s\": \"%s\"", text, i ? ", " : "", draft->sources[i].name, shard);
        free(text);
        text = longer;
    }
    char *index = text_format("{\"metadata\": {}, \"weight_map\": {%s}}", text);
    scratch_text("draft/model.safetensors.index.json", index);
    free(index);
    free(text);
}

static void check_broken_shards(void)
{
    struct world world = world_open(false);
    struct draft draft = draft_of(&world);
    write_sharded(&draft, 7, 0, -1, NULL);
    CHECK(reload(&world, scratch_path("draft")) == STATUS_OK && same(&world));
    files_remove_tree(scratch_path("draft"));

    static const char *const names[] = {"../draft/one.safetensors",
                                        "/etc/passwd.safetensors",
                                        ".hidden.safetensors",
                                        "..",
                                        "",
                                        "one.bin",
                                        "a/one.safetensors",
                                        ".safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        write_sharded(&draft, 7, 0, 3, names[i]);
        load_fails(&world, "index.json: weight_map.model.layers.0.self_attn.k_proj.weight is", "plain name");
    }
    write_sharded(&draft, 7, 0, 3, "one.safetensors\\u0000.safetensors");
    load_fails(&world, "model.safetensors.index.json: not valid JSON", "");
    write_sharded(&draft, 7, 0, 3, "three.safetensors");
    load_fails(&world, "one.safetensors: tensor model.layers.0.self_attn.k_proj.weight stands here",
               "three.safetensors");
    write_sharded(&draft, 7, 0, 3, "two.safetensors");
    load_fails(&world, "model.layers.0.self_attn.k_proj.weight stands here", "puts it into two.safetensors");
    write_sharded(&draft, 7, 1, -1, NULL);
    load_fails(&world, "two.safetensors: tensor model.layers.0.post_attention_layernorm.weight stands here",
               "one.safetensors");
    write_sharded(&draft, 7, 0, -1, NULL);
    unlink(scratch_path("draft/two.safetensors"));
    load_fails(&world, "two.safetensors", "");
    write_sharded(&draft, 7, 0, -1, NULL);
    unlink(scratch_path("draft/two.safetensors"));
    CHECK(mkfifo(scratch_path("draft/two.safetensors"), 0666) == 0);
    load_fails(&world, "two.safetensors", "");

    static const struct {
        const char *text, *part;
    } cases[] = {{"{}", "weight_map is missing"},
                 {"{\"weight_map\": []}", "weight_map must be an object"},
                 {"{\"weight_map\": {\"a\": 1}}", "weight_map.a must be a text"},
                 {"{\"weight_map\": {}}", "21 of the 21 tensors"},
                 {"{\"weight_map\": {\"a\": \"x.safetensors\", \"a\": \"y.safetensors\"}}", "duplicate"},
                 {"[", "not valid JSON"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        mkdir(scratch_path("draft"), 0777);
        scratch_text("draft/model.safetensors.index.json", cases[i].text);
        load_fails(&world, cases[i].part, scratch_path("draft"));
    }
    mkdir(scratch_path("draft"), 0777);
    load_fails(&world, "neither model.safetensors nor", scratch_path("draft"));
    mkdir(scratch_path("draft"), 0777);
    scratch_text("draft/pytorch_model.bin", "");
    load_fails(&world, "holds pytorch_model.bin", "safe_serialization");
    world_close(&world);
}

static void check_config(void)
{
    struct config config;
    CHECK(pretrained_config(&config, scratch_path("nowhere")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "nowhere: no such folder");
    CHECK(pretrained_config(&config, scratch_folder) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "config.json");
}

/* -- fingerprint and a real model ---------------------------------------------------------------------- */

static void check_fingerprint(void)
{
    struct world world = world_open(false);
    char one[65], two[65];
    pretrained_fingerprint(one, world.flat, &world.params);
    pretrained_fingerprint(two, world.flat, &world.params);
    CHECK(strlen(one) == 64 && !strcmp(one, two));
    int64_t last =
        world.params.list[world.params.count - 1].offset + world.params.list[world.params.count - 1].count;
    CHECK(last < world.params.total);
    world.flat[last] = 1; /* a gap belongs to nothing */
    pretrained_fingerprint(two, world.flat, &world.params);
    CHECK(!strcmp(one, two));
    world.flat[last - 1] += 1;
    pretrained_fingerprint(two, world.flat, &world.params);
    CHECK(strcmp(one, two) != 0);
    world.flat[last - 1] -= 1;
    world.params.list[2].name[0] = 'M';
    pretrained_fingerprint(two, world.flat, &world.params);
    CHECK(strcmp(one, two) != 0);
    world_close(&world);
}

/* A file that the program did not write: the Rust library made it. */
static void check_real(void)
{
    if (!test_data()) return;
    char *folder = files_join(test_data(), "stories260K");
    struct world world = {0};
    CHECK(pretrained_config(&world.config, folder) == STATUS_OK);
    params_layout(&world.params, &world.config);
    world.flat = allocate(world.params.total, sizeof(float));
    world.back = allocate(world.params.total, sizeof(float));
    CHECK(pretrained_load(world.flat, &world.params, &world.config, folder) == STATUS_OK);
    double square = 0;
    const struct parameter *embedding = params_embedding(&world.params);
    for (int64_t i = 0; i < embedding->count; i++)
        square += (double)world.flat[i] * (double)world.flat[i];
    CHECK(square > 1 && isfinite(square));

    struct pretrained_output output = {world.flat, &world.params, folder, NULL, DTYPE_FLOAT, 100000};
    CHECK(pretrained_save(&output, scratch_path("stories")) == STATUS_OK);
    CHECK(files_exists(scratch_path("stories/tokenizer.json")));
    CHECK(reload(&world, scratch_path("stories")) == STATUS_OK && same(&world));
    world_close(&world);
    free(folder);
}

int main(void)
{
    scratch_begin();
    check_round_trips();
    check_dtype_keys();
    for (int64_t limit = 1; limit < 3000; limit += 599)
        check_shards(limit);
    check_unsavable();
    check_broken_tensors();
    check_broken_shards();
    check_config();
    check_fingerprint();
    check_real();
    return check_result();
}
