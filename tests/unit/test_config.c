/* config.json: what is read from it, and that whatever is not implemented is named. */
#include "runtime/config.h"
#include "scratch.h"
#include "tests/check.h"

#define LLAMA                                                                                                \
    "\"model_type\": \"llama\", \"hidden_size\": 28, \"intermediate_size\": 13, \"num_hidden_layers\": 3, "  \
    "\"num_attention_heads\": 14, \"num_key_value_heads\": 7, \"vocab_size\": 65, "                          \
    "\"max_position_embeddings\": 77"
#define MISTRAL                                                                                              \
    "\"architectures\": [\"MistralForCausalLM\"], \"hidden_size\": 28, \"intermediate_size\": 13, "          \
    "\"num_hidden_layers\": 3, \"num_attention_heads\": 14, \"num_key_value_heads\": 7, \"vocab_size\": "    \
    "65, "                                                                                                   \
    "\"max_position_embeddings\": 77"
#define QWEN                                                                                                 \
    "\"model_type\": \"qwen2\", \"hidden_size\": 28, \"intermediate_size\": 13, \"num_hidden_layers\": 3, "  \
    "\"num_attention_heads\": 14, \"num_key_value_heads\": 7, \"vocab_size\": 65, "                          \
    "\"max_position_embeddings\": 77"
#define LLAMA3_SCALING                                                                                       \
    "\"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "                                 \
    "\"original_max_position_embeddings\": 16"

static enum status parse(struct config *config, const char *members)
{
    char *text = text_format("{%s}", members);
    enum status status = config_parse(config, "config.json", text);
    free(text);
    return status;
}

static struct config accept(const char *members)
{
    struct config config;
    enum status status = parse(&config, members);
    CHECK(status == STATUS_OK);
    if (status != STATUS_OK) fprintf(stderr, "%s: %s\n", members, status_sentence());
    return config;
}

static void check_defaults(void)
{
    struct config config = accept(LLAMA);
    CHECK(config.family == FAMILY_LLAMA && config.width == 28 && config.layers == 3 && config.heads == 14);
    CHECK(config.key_heads == 7 && config.head_size == 2 && config.hidden == 13 && config.vocabulary == 65);
    CHECK(config.positions == 77 && config.window == 0 && config.norm_epsilon == 1e-6);
    CHECK(config.initializer_range == 0.02 && config.rope.type == ROPE_DEFAULT && config.rope.theta == 10000);
    CHECK(!config.tied && !config.qkv_bias);
    /* embedding and head 2*65*28; a layer: q, o 2*28*28, k, v 2*14*28, mlp 3*28*13, norms 2*28; last norm 28
     */
    CHECK(config_parameters(&config) ==
          2 * 65 * 28 + 3 * (2 * 28 * 28 + 2 * 14 * 28 + 3 * 28 * 13 + 2 * 28) + 28);

    config = accept(MISTRAL ", \"head_dim\": 6, \"tie_word_embeddings\": true");
    CHECK(config.family == FAMILY_MISTRAL && config.head_size == 6 && config.window == 4096 && config.tied);
    config = accept(MISTRAL ", \"sliding_window\": 5, \"head_dim\": null");
    CHECK(config.window == 5 && config.head_size == 2);
    config = accept(MISTRAL ", \"sliding_window\": null");
    CHECK(config.window == 0);
    config = accept(MISTRAL ", \"sliding_window\": 5, \"layer_types\": [\"sliding_attention\"]");
    CHECK(config.window == 5);

    config = accept(QWEN ", \"attention_bias\": true, \"sliding_window\": 5");
    CHECK(config.family == FAMILY_QWEN && config.qkv_bias && config.window == 0);
    config = accept(QWEN ", \"use_sliding_window\": true, \"sliding_window\": 5, \"max_window_layers\": 3");
    CHECK(config.window == 0);
    config =
        accept(QWEN ", \"use_sliding_window\": true, \"sliding_window\": null, \"max_window_layers\": 0");
    CHECK(config.window == 0);
}

static void check_rope(void)
{
    struct config config = accept(LLAMA ", \"rope_theta\": 500000, \"rope_scaling\": null");
    CHECK(config.rope.type == ROPE_DEFAULT && config.rope.theta == 500000);
    config = accept(LLAMA ", \"rope_theta\": 5e5, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}");
    CHECK(config.rope.type == ROPE_LINEAR && config.rope.theta == 500000 && config.rope.factor == 2);
    config = accept(
        LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"type\": \"llama3\", " LLAMA3_SCALING "}");
    CHECK(config.rope.type == ROPE_LLAMA && config.rope.factor == 8 && config.rope.low_frequency_factor == 1);
    CHECK(config.rope.high_frequency_factor == 4 && config.rope.original_positions == 16);
    config = accept(
        LLAMA
        ", \"rope_theta\": 3, \"rope_parameters\": {\"rope_theta\": 70000.0, \"rope_type\": \"llama3\", "
        "\"partial_rotary_factor\": 1.0, " LLAMA3_SCALING "}");
    CHECK(config.rope.type == ROPE_LLAMA && config.rope.theta == 70000 && config.rope.factor == 8);
    config = accept(LLAMA ", \"rope_theta\": 70000.0, \"rope_parameters\": {\"rope_type\": \"default\"}");
    CHECK(config.rope.type == ROPE_DEFAULT && config.rope.theta == 70000);
}

static void check_refusals(void)
{
    static const struct {
        const char *members, *part, *other;
    } cases[] = {
        {"", "model_type is missing", "qwen2"},
        {"\"model_type\": \"gpt2\"", "model_type is \"gpt2\", which is not supported", "llama"},
        {"\"architectures\": [\"Gemma2ForCausalLM\"]", "architectures[0] is \"Gemma2ForCausalLM\"", "llama"},
        {LLAMA ", \"architectures\": [\"LlamaForSequenceClassification\"]", "architectures[0]",
         "LlamaForCausalLM"},
        {LLAMA ", \"architectures\": [\"LlamaForCausalLM\", \"X\"]", "architectures", "more than one"},
        {LLAMA ", \"architectures\": \"LlamaForCausalLM\"", "architectures must be a list", ""},
        {"\"model_type\": 7", "model_type must be a text", ""},
        {LLAMA ", \"hidden_act\": \"gelu\"", "hidden_act is \"gelu\"", "silu"},
        {LLAMA ", \"attention_bias\": true", "attention_bias is true, which is not supported", ""},
        {MISTRAL ", \"attention_bias\": true", "attention_bias is true", ""},
        {LLAMA ", \"mlp_bias\": true", "mlp_bias is true, which is not supported", ""},
        {LLAMA ", \"mlp_bias\": 1", "mlp_bias must be true or false", ""},
        {LLAMA ", \"quantization_config\": {\"bits\": 4}", "quantization_config is given", "quantised"},
        {LLAMA ", \"partial_rotary_factor\": 0.5", "partial_rotary_factor is 0.5", ""},
        {LLAMA ", \"sliding_window\": 8", "sliding_window is not supported for llama", ""},
        {LLAMA ", \"hidden_size\": 28", "duplicate", ""},
        {LLAMA ", \"head_dim\": 3", "head_dim is 3", "even"},
        {LLAMA ", \"head_dim\": 0", "head_dim is 0", "from 2"},
        {LLAMA ", \"rms_norm_eps\": 0", "rms_norm_eps is 0", "above 0"},
        {LLAMA ", \"rms_norm_eps\": \"1e-6\"", "rms_norm_eps must be a number", ""},
        {LLAMA ", \"rms_norm_eps\": NaN", "not valid JSON", ""},
        {LLAMA ", \"initializer_range\": -0.02", "initializer_range is -0.02", ""},
        {LLAMA ", \"tie_word_embeddings\": \"no\"", "tie_word_embeddings must be true or false", ""},
        {MISTRAL ", \"sliding_window\": 0", "sliding_window is 0", ""},
        {MISTRAL ", \"sliding_window\": 5, \"layer_types\": [\"sliding_attention\", \"full_attention\"]",
         "layer_types[1] is \"full_attention\"", "sliding_attention"},
        {QWEN ", \"use_sliding_window\": true, \"sliding_window\": 5, \"max_window_layers\": 2",
         "use_sliding_window is true for layers 2 and on", "mixed"},
        {QWEN ", \"use_sliding_window\": true, \"max_window_layers\": 1", "use_sliding_window",
         "not supported"},
        {QWEN ", \"layer_types\": [\"sliding_attention\"]", "layer_types[0] is \"sliding_attention\"", ""},
        {LLAMA ", \"rope_theta\": 0", "rope_theta is 0", "above 0"},
        {LLAMA ", \"rope_theta\": 1e999", "not valid JSON", ""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}",
         "rope_scaling.type is \"dynamic\"", "default, linear and llama3"},
        {LLAMA ", \"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 2.0}",
         "rope_parameters.rope_type is \"yarn\"", "not supported"},
        {LLAMA ", \"rope_scaling\": {\"mrope_section\": [1, 2]}", "rope_scaling.mrope_section is not known",
         ""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"llama3\"}",
         "rope_scaling.type is \"linear\"", "llama3"},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\"}", "rope_scaling.factor is missing", ""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}", "rope_scaling.factor is 0.5",
         ""},
        {LLAMA ", \"rope_scaling\": [1]", "rope_scaling must be an object", ""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
               "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 16}",
         "rope_scaling.high_freq_factor is 4", "above low_freq_factor"},
        {LLAMA ", \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
               "\"high_freq_factor\": 4}",
         "rope_scaling.original_max_position_embeddings is missing", ""},
        {LLAMA
         ", \"original_max_position_embeddings\": 8, \"rope_scaling\": {\"type\": \"llama3\", " LLAMA3_SCALING
         "}",
         "original_max_position_embeddings stands outside", ""},
        {LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, \"rope_parameters\": {}",
         "rope_scaling", "both given"},
        {LLAMA ", \"rope_parameters\": {\"full_attention\": {\"rope_theta\": 1e4}}",
         "rope_parameters.full_attention is not known", ""},
        {LLAMA ", \"rope_parameters\": {\"partial_rotary_factor\": 0.25}",
         "rope_parameters.partial_rotary_factor", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        CHECK(parse(&config, cases[i].members) == STATUS_BAD);
        CHECK_TEXT(status_sentence(), "config.json: ");
        CHECK_TEXT(status_sentence(), cases[i].part);
        CHECK_TEXT(status_sentence(), cases[i].other);
    }
}

/* Each size in turn is missing, of another type, not positive, or too large for any product to be safe. */
static void check_sizes(void)
{
    static const char *const keys[] = {"hidden_size",         "intermediate_size", "num_hidden_layers",
                                       "num_attention_heads", "vocab_size",        "max_position_embeddings",
                                       "num_key_value_heads"};
    static const char *const values[] = {"0",      "-1",  "9223372036854775807", "4294967296", "28.0",
                                         "\"28\"", "[28]"};
    enum { KEYS = sizeof keys / sizeof keys[0], VALUES = sizeof values / sizeof values[0] };
    for (int key = 0; key < KEYS; key++)
        for (int value = -1; value < VALUES; value++) {
            char members[1024] = "\"model_type\": \"qwen2\"";
            for (int i = 0; i < KEYS; i++) {
                if (i == key && value < 0) continue;
                size_t used = strlen(members);
                snprintf(members + used, sizeof members - used, ", \"%s\": %s", keys[i],
                         i == key ? values[value] : "28");
            }
            struct config config;
            CHECK(parse(&config, members) == STATUS_BAD);
            CHECK_TEXT(status_sentence(), "config.json: ");
            CHECK_TEXT(status_sentence(), keys[key]);
        }
    struct config config;
    CHECK(parse(&config, "\"model_type\": \"llama\", \"hidden_size\": 30, \"intermediate_size\": 13, "
                         "\"num_hidden_layers\": 3, \"num_attention_heads\": 14, \"vocab_size\": 65, "
                         "\"max_position_embeddings\": 77") == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "num_attention_heads is 14, which does not divide hidden_size = 30");
    CHECK(parse(&config, "\"model_type\": \"llama\", \"hidden_size\": 28, \"intermediate_size\": 13, "
                         "\"num_hidden_layers\": 3, \"num_attention_heads\": 14, \"num_key_value_heads\": 4, "
                         "\"vocab_size\": 65, \"max_position_embeddings\": 77") == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "num_key_value_heads is 4, which does not divide");
}

static void check_files(void)
{
    struct config config;
    CHECK(config_read(&config, scratch_path("config.json")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), scratch_path("config.json"));
    CHECK(config_read(&config, scratch_text("config.json", "{" LLAMA "}")) == STATUS_OK &&
          config.width == 28);
    CHECK(config_read(&config, scratch_text("config.json", "[]")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "must be an object");
    char *large = allocate((1 << 20) + 2, 1);
    memset(large, ' ', (1 << 20) + 1);
    memcpy(large, "{" LLAMA "}", sizeof LLAMA + 1);
    CHECK(config_read(&config, scratch_text("config.json", large)) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "config.json");
    large[1 << 20] = 0;
    CHECK(config_read(&config, scratch_text("config.json", large)) == STATUS_OK);
    free(large);
}

/* The published sizes of published models. */
static void check_published(void)
{
    static const struct {
        const char *name;
        enum family family;
        int64_t parameters;
    } cases[] = {{"configs/Meta-Llama-3-8B-Instruct.config.json", FAMILY_LLAMA, 8030261248},
                 {"configs/Mistral-7B-v0.1.config.json", FAMILY_MISTRAL, 7241732096},
                 {"configs/Qwen2.5-7B-Instruct.config.json", FAMILY_QWEN, 7615616512},
                 {"stories260K/config.json", FAMILY_LLAMA, 260032}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] && test_data(); i++) {
        struct config config;
        char *path = files_join(test_data(), cases[i].name);
        CHECK(config_read(&config, path) == STATUS_OK);
        CHECK(config.family == cases[i].family && config_parameters(&config) == cases[i].parameters);
        free(path);
    }
}

int main(void)
{
    scratch_begin();
    CHECK(!strcmp(family_name(FAMILY_LLAMA), "llama") && !strcmp(family_name(FAMILY_QWEN), "qwen2"));
    check_defaults();
    check_rope();
    check_refusals();
    check_sizes();
    check_files();
    check_published();
    if (!test_data()) printf("WPO_TEST_DATA is not set: the published configurations were passed over\n");
    return check_result();
}
