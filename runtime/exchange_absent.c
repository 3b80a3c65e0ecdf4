/* In place of runtime/nccl.c in a build without CUDA. */
#include "runtime/exchange.h"

enum status exchange_nccl_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                               struct device *device, struct exchange_options options)
{
    (void)comm, (void)ops, (void)device, (void)options;
    *exchange = NULL;
    return fail(
        "this build has no CUDA backend, so it cannot exchange memory of GPUs; build with CUDA, or use "
        "device: cpu");
}
