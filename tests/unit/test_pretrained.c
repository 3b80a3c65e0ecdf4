/* Model folders that are read: broken and hostile ones are refused by name. */
#include "model_world.h"
#include "runtime/safetensors.h"

#include <sys/stat.h>
#include <unistd.h>

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
    check_broken_tensors();
    check_broken_shards();
    check_config();
    check_fingerprint();
    check_real();
    return check_result();
}
