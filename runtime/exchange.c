#include "runtime/exchange.h"

#include "kernels/require.h"

#include <string.h>

enum status exchange_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                          struct device *device, struct exchange_options options)
{
    *exchange = NULL;
    if (!strcmp(ops->name, "cpu")) return exchange_host_open(exchange, comm, ops, device);
    REQUIRE(!strcmp(ops->name, "cuda"), "nothing exchanges memory of the %s backend", ops->name);
    return exchange_nccl_open(exchange, comm, ops, device, options);
}

/* The fillings differ in what follows their table. */
static const struct exchange_table *table_of(struct exchange *exchange)
{
    return (const struct exchange_table *)exchange;
}

void exchange_close(struct exchange *exchange)
{
    if (exchange) table_of(exchange)->close(exchange);
}

int64_t exchange_reduction_room(struct exchange *exchange, int64_t count)
{
    return table_of(exchange)->reduction_room(exchange, count);
}

struct reduction *exchange_reduction_create(struct exchange *exchange, struct tensor vector, float *received)
{
    REQUIRE(vector.rows == 1 && vector.type != DTYPE_HALF, "only one row of f32 or bf16 can be reduced");
    return table_of(exchange)->reduction_create(exchange, vector, received);
}

void exchange_reduction_free(struct exchange *exchange, struct reduction *reduction)
{
    table_of(exchange)->reduction_free(reduction);
}

void exchange_reduction_start(struct exchange *exchange, struct reduction *reduction)
{
    table_of(exchange)->reduction_start(reduction);
}

void exchange_reduction_progress(struct exchange *exchange, struct reduction *reduction)
{
    table_of(exchange)->reduction_progress(reduction);
}

void exchange_reduction_finish(struct exchange *exchange, struct reduction *reduction)
{
    table_of(exchange)->reduction_finish(reduction);
}

void exchange_share_all(struct exchange *exchange, struct tensor vector)
{
    REQUIRE(vector.rows == 1, "only one row can be shared");
    table_of(exchange)->share_all(exchange, vector);
}

void exchange_gather_doubles(struct exchange *exchange, double *all, int64_t count)
{
    table_of(exchange)->gather_doubles(exchange, all, count);
}

void exchange_wait(struct exchange *exchange)
{
    table_of(exchange)->wait(exchange);
}
