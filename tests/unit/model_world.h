/* A small model with known values, for tests of model folders. */
#ifndef WPO_TESTS_MODEL_WORLD_H
#define WPO_TESTS_MODEL_WORLD_H

#include "runtime/pretrained.h"
#include "scratch.h"
#include "tests/check.h"

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

static inline struct world world_open(bool tied)
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

static inline void world_close(struct world *world)
{
    params_free(&world->params);
    free(world->flat);
    free(world->back);
    free(world->text);
}

static inline char *read_text(const char *folder, const char *name)
{
    char *path = files_join(folder, name), *text = NULL;
    size_t bytes;
    if (files_read(&text, &bytes, path, 1 << 20) != STATUS_OK) text = text_copy("");
    free(path);
    return text;
}

/* The folder that scratch files lie in holds these many entries: nothing half-made stays behind. */
static inline int64_t entries(void)
{
    char **names;
    int64_t count;
    CHECK(files_list(&names, &count, scratch_folder) == STATUS_OK);
    files_names_free(names, count);
    return count;
}

static inline enum status reload(struct world *world, const char *folder)
{
    memset(world->back, 0xff, (size_t)world->params.total * sizeof(float));
    return pretrained_load(world->back, &world->params, &world->config, folder);
}

static inline bool same(const struct world *world)
{
    return memcmp(world->flat, world->back, (size_t)world->params.total * sizeof(float)) == 0;
}

#endif
