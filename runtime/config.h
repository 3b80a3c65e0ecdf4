/* The shape of a model, read from a Hugging Face config.json. */
#ifndef WPO_RUNTIME_CONFIG_H
#define WPO_RUNTIME_CONFIG_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

enum family { FAMILY_LLAMA, FAMILY_MISTRAL, FAMILY_QWEN };

/* ROPE_LLAMA is the rope_type "llama3": long wavelengths are stretched by `factor`, short ones kept, and
 * those in between blended. ROPE_LINEAR divides all positions by `factor`. */
enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA };

struct rope {
    enum rope_type type;
    double theta;
    double factor, low_frequency_factor, high_frequency_factor;
    int64_t original_positions;
};

struct config {
    enum family family;
    int64_t width;      /* C  hidden_size */
    int64_t layers;     /* L  num_hidden_layers */
    int64_t heads;      /* H  num_attention_heads */
    int64_t key_heads;  /* K  num_key_value_heads */
    int64_t head_size;  /* D  head_dim, or width / heads */
    int64_t hidden;     /* F  intermediate_size */
    int64_t vocabulary; /* V  vocab_size */
    int64_t positions;  /* max_position_embeddings */
    int64_t window;     /* sliding_window where it is in use, else 0 */
    double norm_epsilon;
    double initializer_range;
    struct rope rope;
    bool tied;     /* tie_word_embeddings */
    bool qkv_bias; /* Qwen2 */
};

/* Reads and checks a config.json. What the program does not implement (another architecture, activation, rope
 * type, biases elsewhere, mixed sliding windows) is an error that names it; so is every size that is missing,
 * not positive, does not divide as it must, or would overflow. Accepts Transformers' older keys (rope_theta,
 * rope_scaling, torch_dtype) and its newer ones (rope_parameters, dtype). */
enum status config_read(struct config *config, const char *path);
/* The same from text; `name` stands for the file in messages. */
enum status config_parse(struct config *config, const char *name, const char *text);

/* Number of trainable parameters. */
int64_t config_parameters(const struct config *config);

const char *family_name(enum family family); /* "llama", "mistral", "qwen2" */

#endif
