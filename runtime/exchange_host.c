/* The exchange where device memory is host memory: over MPI, and done when a call returns. */
#include "kernels/require.h"
#include "runtime/exchange.h"

#include <stdlib.h>

struct exchange {
    struct exchange_table table;
    struct comm *comm;
    const struct ops *ops;
    struct device *device;
};

static void host_close(struct exchange *exchange)
{
    free(exchange);
}

static int64_t host_reduction_room(struct exchange *exchange, int64_t count)
{
    return reduction_room(exchange->comm, count);
}

static struct reduction *host_reduction_create(struct exchange *exchange, struct tensor vector,
                                               float *received)
{
    REQUIRE(vector.type == DTYPE_FLOAT, "hosts reduce f32 alone");
    return reduction_create(exchange->comm, vector.data, vector.cols, received);
}

static void host_share_all(struct exchange *exchange, struct tensor vector)
{
    comm_share_all(exchange->comm, vector.data, vector.cols, dtype_bytes(vector.type));
}

static void host_gather_doubles(struct exchange *exchange, double *all, int64_t count)
{
    struct comm *comm = exchange->comm;
    comm_gather_all(comm, all, all + comm->rank * count, (size_t)count * sizeof *all);
}

static void host_wait(struct exchange *exchange)
{
    exchange->ops->sync(exchange->device);
}

enum status exchange_host_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                               struct device *device)
{
    *exchange = allocate(1, sizeof **exchange);
    **exchange = (struct exchange){.table = {.close = host_close,
                                             .reduction_room = host_reduction_room,
                                             .reduction_create = host_reduction_create,
                                             .reduction_free = reduction_free,
                                             .reduction_start = reduction_start,
                                             .reduction_progress = reduction_progress,
                                             .reduction_finish = reduction_finish,
                                             .share_all = host_share_all,
                                             .gather_doubles = host_gather_doubles,
                                             .wait = host_wait},
                                   .comm = comm,
                                   .ops = ops,
                                   .device = device};
    return STATUS_OK;
}
