/* The whole transformer in double, one sequence at a time, by name of tensor: no packing, no sharing, no
 * chunks. */
#ifndef WPO_TESTS_UNIT_ORACLE_MODEL_H
#define WPO_TESTS_UNIT_ORACLE_MODEL_H

#include "kernels/objective.h"
#include "runtime/params.h"

/* Sums over the completion that follows the prompt. flat [params->total]. */
struct completion_sums oracle_model_sums(const double *flat, const struct params *params,
                                         const struct config *config, const int32_t *prompt,
                                         int64_t prompt_count, const int32_t *completion, int64_t count);

/* Angle per position of pair j of a head, with the scaling of long contexts. */
double oracle_model_frequency(const struct config *config, int64_t pair);

#endif
