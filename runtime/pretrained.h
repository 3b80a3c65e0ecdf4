/* A Hugging Face model folder: config.json, model.safetensors (single, or sharded with an index), tokenizer
 * files. */
#ifndef WPO_RUNTIME_PRETRAINED_H
#define WPO_RUNTIME_PRETRAINED_H

#include "kernels/tensor.h"
#include "runtime/params.h"

/* Reads <folder>/config.json. */
enum status pretrained_config(struct config *config, const char *folder);

/* Reads every tensor of the table from the folder's safetensors (F32, BF16 or F16; widened to f32) into flat
 * [params->total]. Missing tensors, unexpected ones, other shapes or dtypes and non-finite values are errors
 * that name file and tensor. A stored head that a tied model repeats is accepted if it equals the embedding.
 */
enum status pretrained_load(float *flat, const struct params *params, const struct config *config,
                            const char *folder);

/* What pretrained_save writes. */
struct pretrained_output {
    const float *flat; /* [params->total] */
    const struct params *params;
    const char *source;      /* folder whose config.json and tokenizer files are copied; NULL: none */
    const char *config_text; /* a config.json to write instead of the source's; NULL: the source's */
    enum dtype type;         /* of the stored tensors; written to config.json too */
    int64_t
        shard_bytes; /* a file grows no larger than this, unless one tensor does: then sharded, with index */
};

/* Writes a folder that Transformers loads: built under a temporary name beside `folder`, fsynced, then
 * renamed, so that nothing half-written stands under the final name. Refuses a folder that exists. */
enum status pretrained_save(const struct pretrained_output *output, const char *folder);

/* Copies what belongs to a model beside its weights (tokenizer, chat template, generation defaults; its
 * config.json too, if asked) as far as it exists, into a folder that holds none of it. */
enum status pretrained_copy_texts(const char *source, const char *folder, bool config);

/* SHA-256, as 64 hex digits and a zero, over names, shapes and f32 values of all parameters in table order.
 */
void pretrained_fingerprint(char hex[65], const float *flat, const struct params *params);

#endif
