/* What `init` and `export` share: the options of the model folder that they write. */
#ifndef WPO_LAUNCHER_MODEL_OUTPUT_H
#define WPO_LAUNCHER_MODEL_OUTPUT_H

#include "runtime/pretrained.h"

/* In the order of enum dtype. */
#define MODEL_DTYPES "float32|bfloat16|float16"

/* "5GB", "200MB", "64KiB", "1000000": units of 1000 or, with an i, of 1024. */
enum status model_output_size(const char *text, int64_t *bytes);

/* Checks before the work begins that the folder can be made: it is not there, its parent is. */
enum status model_output_check(const char *folder);

/* One line on standard output; `from` is the checkpoint, or NULL. */
void model_output_note(const char *folder, const struct config *config, enum dtype type, const char *from);

#endif
