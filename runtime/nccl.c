/* The exchange between GPUs. Everything is queued on the stream of QUEUE_EXCHANGE, behind what QUEUE_COMPUTE
 * held at that time; the communicator does not block, so that a host never hangs inside the library and a
 * rank that fails, or that others wait for, ends the run with a sentence. Only this file knows NCCL.
 *
 * Sums. Without options.ordered they are the library's: reduce-scatter where all shares are alike, and
 * otherwise one reduce for each share, grouped, which moves the same bytes. bf16 is then rounded at every hop
 * of the ring. The order is that of the rings, so the bits depend on the machines, though not on the run.
 * With options.ordered each share goes to its owner as it is and ops->sum_rows() adds the ranks in order, in
 * f32: the same bytes again, and bits that depend on the number of ranks alone. */
#include "kernels/require.h"
#include "runtime/clock.h"
#include "runtime/exchange.h"
#include "runtime/watch.h"

#include <nccl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

struct exchange {
    struct exchange_table table;
    struct comm *comm;
    const struct ops *ops;
    struct device *device;
    struct exchange_options options;
    ncclComm_t nccl;
    cudaStream_t stream;
    const char *what; /* the latest collective */
    int64_t number;   /* collectives so far */
};

struct reduction {
    struct exchange *exchange;
    struct tensor vector;
    int64_t first, length; /* this rank's share */
    void *received;        /* [size][length], with options.ordered */
    bool started;
};

/* Sleeps for a hundredth of the wait so far: short waits stay short, long ones cost no processor. */
static void pause_after(double waited)
{
    double seconds = waited / 100 < 1e-3 ? waited / 100 : 1e-3;
    struct timespec t = {0, (long)(seconds * 1e9)};
    if (waited < 1e-4)
        sched_yield();
    else
        nanosleep(&t, NULL);
}

/* -- failure ---------------------------------------------------------------------------------- */

/* Ends all ranks. The communicator is given up first, so that no kernel spins on while the process ends. */
static _Noreturn void collapse(struct exchange *x, const char *why)
{
    fflush(stdout);
    fprintf(
        stderr,
        "wpo: rank %d on %s: %s in %s or just before it (collective %lld of the GPUs); NCCL_DEBUG=INFO in "
        "the environment makes NCCL tell more; the run ends\n",
        x->comm->rank, x->comm->host, why, x->what, (long long)x->number);
    fflush(stderr);
    alarm(10); /* in case the library hangs */
    if (x->nccl) ncclCommAbort(x->nccl);
    comm_abort(1);
}

static _Noreturn void collapse_with(struct exchange *x, ncclResult_t result)
{
    char why[768];
    const char *detail = ncclGetLastError(x->nccl);
    snprintf(why, sizeof why, "NCCL reports: %s%s%.500s%s", ncclGetErrorString(result),
             detail && *detail ? " (" : "", detail ? detail : "", detail && *detail ? ")" : "");
    collapse(x, why);
}

static ncclResult_t state_of(struct exchange *x)
{
    ncclResult_t state, result = ncclCommGetAsyncError(x->nccl, &state);
    return result == ncclSuccess ? state : result;
}

/* Later than the watchdog, which knows better who is to blame. */
static bool patience_ends(const struct exchange *x, double waited)
{
    return x->options.seconds > 0 && waited > 1.5 * x->options.seconds;
}

/* A collective is queued when the library's own thread has queued it; the first of a kind waits for the other
 * ranks, because it connects them. */
static void settle(struct exchange *x, ncclResult_t result)
{
    double begin = clock_seconds();
    while (result == ncclInProgress) {
        double waited = clock_seconds() - begin;
        if (patience_ends(x, waited)) collapse(x, "other ranks did not answer in time");
        pause_after(waited);
        result = state_of(x);
    }
    if (result != ncclSuccess) collapse_with(x, result);
}

/* Within a group everything but progress is an error. */
static void grouped(struct exchange *x, ncclResult_t result)
{
    if (result != ncclSuccess && result != ncclInProgress) collapse_with(x, result);
}

/* -- queueing --------------------------------------------------------------------------------- */

static void begin(struct exchange *x, const char *what)
{
    x->what = what;
    x->number++;
    watch_enter(what);
    x->ops->follow(x->device, QUEUE_EXCHANGE, QUEUE_COMPUTE);
}

static void end(void)
{
    watch_leave();
}

static void compute_follows(struct exchange *x)
{
    x->ops->follow(x->device, QUEUE_COMPUTE, QUEUE_EXCHANGE);
}

static void *element(struct tensor vector, int64_t index)
{
    return tensor_cols(vector, index, 0).data;
}

/* Whether all ranks' shares are as long as the first's. */
static bool even_shares(const struct exchange *x, int64_t count)
{
    int64_t first, length;
    comm_share(count, x->comm->size, 0, &first, &length);
    return length * x->comm->size == count;
}

/* -- reduction -------------------------------------------------------------------------------- */

static int64_t nccl_reduction_room(struct exchange *x, int64_t count)
{
    int64_t first, length;
    comm_share(count, x->comm->size, x->comm->rank, &first, &length);
    return x->options.ordered && x->comm->size > 1 ? x->comm->size * length : 0;
}

static struct reduction *nccl_reduction_create(struct exchange *x, struct tensor vector, float *received)
{
    struct reduction *reduction = allocate(1, sizeof *reduction);
    *reduction = (struct reduction){.exchange = x, .vector = vector, .received = received};
    comm_share(vector.cols, x->comm->size, x->comm->rank, &reduction->first, &reduction->length);
    return reduction;
}

static void nccl_reduction_free(struct reduction *reduction)
{
    free(reduction);
}

static ncclDataType_t library_type(enum dtype type)
{
    return type == DTYPE_FLOAT ? ncclFloat32 : ncclBfloat16;
}

/* Every share goes to its owner; there each rank's is a row, in order of ranks. */
static void send_shares(const struct reduction *reduction)
{
    struct exchange *x = reduction->exchange;
    struct tensor vector = reduction->vector,
                  rows = tensor_of(reduction->received, vector.type, x->comm->size, reduction->length);
    ncclDataType_t type = library_type(vector.type);
    int size = x->comm->size, rank = x->comm->rank;
    grouped(x, ncclGroupStart());
    for (int i = 1; i < size; i++) { /* each rank begins with its neighbour, not all with rank 0 */
        int to = (rank + i) % size, from = (rank + size - i) % size;
        int64_t first, length;
        comm_share(vector.cols, size, to, &first, &length);
        if (length > 0)
            grouped(x, ncclSend(element(vector, first), (size_t)length, type, to, x->nccl, x->stream));
        if (rows.cols > 0)
            grouped(x, ncclRecv(tensor_rows(rows, from, 1).data, (size_t)rows.cols, type, from, x->nccl,
                                x->stream));
    }
    settle(x, ncclGroupEnd());
}

static void add_rows(const struct reduction *reduction)
{
    struct exchange *x = reduction->exchange;
    struct tensor share = tensor_cols(reduction->vector, reduction->first, reduction->length);
    struct tensor rows = tensor_of(reduction->received, share.type, x->comm->size, share.cols);
    if (!share.cols) return;
    x->ops->use(x->device, QUEUE_EXCHANGE);
    x->ops->copy(x->device, tensor_rows(rows, x->comm->rank, 1).data, share.data,
                 (size_t)share.cols * dtype_bytes(share.type));
    x->ops->sum_rows(x->device, share, rows);
    x->ops->use(x->device, QUEUE_COMPUTE);
}

static void reduce_shares(const struct reduction *reduction)
{
    struct exchange *x = reduction->exchange;
    struct tensor vector = reduction->vector;
    ncclDataType_t type = library_type(vector.type);
    if (even_shares(x, vector.cols)) {
        settle(x, ncclReduceScatter(vector.data, element(vector, reduction->first), (size_t)reduction->length,
                                    type, ncclSum, x->nccl, x->stream));
        return;
    }
    grouped(x, ncclGroupStart());
    for (int r = 0; r < x->comm->size; r++) {
        int64_t first, length;
        comm_share(vector.cols, x->comm->size, r, &first, &length);
        void *share = element(vector, first);
        if (length > 0)
            grouped(x, ncclReduce(share, share, (size_t)length, type, ncclSum, r, x->nccl, x->stream));
    }
    settle(x, ncclGroupEnd());
}

static void nccl_reduction_start(struct reduction *reduction)
{
    struct exchange *x = reduction->exchange;
    REQUIRE(!reduction->started, "a reduction is started twice");
    reduction->started = true;
    if (x->comm->size == 1) return;
    begin(x, "gradient reduction");
    if (x->options.ordered) {
        send_shares(reduction);
        add_rows(reduction);
    } else {
        reduce_shares(reduction);
    }
    end();
}

/* The device needs no help. */
static void nccl_reduction_progress(struct reduction *reduction)
{
    (void)reduction;
}

static void nccl_reduction_finish(struct reduction *reduction)
{
    REQUIRE(reduction->started, "a reduction is finished before it started");
    reduction->started = false;
    if (reduction->exchange->comm->size > 1) compute_follows(reduction->exchange);
}

/* -- gathering -------------------------------------------------------------------------------- */

static void nccl_share_all(struct exchange *x, struct tensor vector)
{
    size_t bytes = dtype_bytes(vector.type);
    int64_t first, length;
    if (x->comm->size == 1) return;
    begin(x, "parameter exchange");
    if (even_shares(x, vector.cols)) {
        comm_share(vector.cols, x->comm->size, x->comm->rank, &first, &length);
        settle(x, ncclAllGather(element(vector, first), vector.data, (size_t)length * bytes, ncclUint8,
                                x->nccl, x->stream));
    } else {
        grouped(x, ncclGroupStart());
        for (int r = 0; r < x->comm->size; r++) {
            comm_share(vector.cols, x->comm->size, r, &first, &length);
            void *share = element(vector, first);
            if (length > 0)
                grouped(
                    x, ncclBroadcast(share, share, (size_t)length * bytes, ncclUint8, r, x->nccl, x->stream));
        }
        settle(x, ncclGroupEnd());
    }
    end();
    compute_follows(x);
}

static void nccl_gather_doubles(struct exchange *x, double *all, int64_t count)
{
    if (x->comm->size == 1 || !count) return;
    begin(x, "gathering of norms");
    settle(x,
           ncclAllGather(all + x->comm->rank * count, all, (size_t)count, ncclFloat64, x->nccl, x->stream));
    end();
    compute_follows(x);
}

/* -- waiting ---------------------------------------------------------------------------------- */

static bool device_idle(const struct exchange *x)
{
    return x->ops->idle(x->device, QUEUE_COMPUTE) && x->ops->idle(x->device, QUEUE_EXCHANGE);
}

/* A kernel that waits for a rank which never comes would let a plain sync() wait for ever. */
static void nccl_wait(struct exchange *x)
{
    if (x->comm->size > 1) {
        double begun = clock_seconds();
        watch_enter("end of the devices' work");
        for (bool done = false; !done;) {
            done = device_idle(x);
            ncclResult_t state = state_of(x);
            double waited = clock_seconds() - begun;
            if (state != ncclSuccess && state != ncclInProgress) collapse_with(x, state);
            if (!done && patience_ends(x, waited)) collapse(x, "the device did not finish in time");
            if (!done) pause_after(waited);
        }
        watch_leave();
    }
    x->ops->sync(x->device);
}

/* -- life ------------------------------------------------------------------------------------- */

/* The environment has the last word. */
static void set_environment(void)
{
    /* Sums in the switches are not the same from call to call, so the same run would end elsewhere. */
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    /* A port that all runs of a host share, for a service that nobody here asks. */
    setenv("NCCL_RAS_ENABLE", "0", 0);
}

static enum status identify(ncclUniqueId *id, struct comm *comm)
{
    ncclResult_t result = comm->rank == 0 ? ncclGetUniqueId(id) : ncclSuccess;
    TRY(comm_agree(comm,
                   result == ncclSuccess
                       ? STATUS_OK
                       : fail("NCCL does not start: %s (%s); NCCL_DEBUG=INFO in the environment makes it "
                              "tell more, and NCCL_SOCKET_IFNAME names the network to use",
                              ncclGetErrorString(result), ncclGetLastError(NULL))));
    comm_broadcast(comm, id, sizeof *id, 0);
    return STATUS_OK;
}

/* Sooner than the watchdog, which would not tell that it is NCCL's network that does not work. */
static enum status connect_ranks(struct exchange *x, ncclUniqueId id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    double begun = clock_seconds(), limit = 0.8 * x->options.seconds;
    x->what = "start of NCCL";
    watch_enter(x->what);
    ncclResult_t result = ncclCommInitRankConfig(&x->nccl, x->comm->size, id, x->comm->rank, &config);
    while (result == ncclInProgress && (limit <= 0 || clock_seconds() - begun < limit)) {
        pause_after(clock_seconds() - begun);
        result = state_of(x);
    }
    if (result != ncclSuccess && result != ncclInProgress) collapse_with(x, result);
    watch_leave();
    if (result == ncclSuccess) return STATUS_OK;
    return fail(
        "NCCL did not connect the ranks' GPUs within %.0f s; NCCL_DEBUG=INFO in the environment makes it "
        "tell more, and NCCL_SOCKET_IFNAME names the network to use",
        limit);
}

/* What is queued is done first; a rank that ends in order waits for the others no longer than it would in a
 * collective. */
static void disconnect(struct exchange *x)
{
    if (!x->nccl) return;
    x->ops->sync(x->device);
    double begun = clock_seconds();
    ncclResult_t result = ncclCommFinalize(x->nccl);
    while (result == ncclInProgress && !patience_ends(x, clock_seconds() - begun)) {
        pause_after(clock_seconds() - begun);
        result = state_of(x);
    }
    if (result == ncclSuccess)
        ncclCommDestroy(x->nccl);
    else
        ncclCommAbort(x->nccl);
}

static void nccl_close(struct exchange *x)
{
    disconnect(x);
    free(x);
}

static enum status open_communicator(struct exchange *x)
{
    ncclUniqueId id = {{0}};
    set_environment();
    TRY(identify(&id, x->comm));
    enum status status = comm_agree(x->comm, connect_ranks(x, id));
    if (status != STATUS_OK && x->nccl) ncclCommAbort(x->nccl);
    return status;
}

enum status exchange_nccl_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                               struct device *device, struct exchange_options options)
{
    struct exchange *x = allocate(1, sizeof *x);
    *x = (struct exchange){.table = {.close = nccl_close,
                                     .reduction_room = nccl_reduction_room,
                                     .reduction_create = nccl_reduction_create,
                                     .reduction_free = nccl_reduction_free,
                                     .reduction_start = nccl_reduction_start,
                                     .reduction_progress = nccl_reduction_progress,
                                     .reduction_finish = nccl_reduction_finish,
                                     .share_all = nccl_share_all,
                                     .gather_doubles = nccl_gather_doubles,
                                     .wait = nccl_wait},
                           .comm = comm,
                           .ops = ops,
                           .device = device,
                           .options = options,
                           .stream = ops->handle(device, QUEUE_EXCHANGE)};
    *exchange = NULL;
    enum status status = comm->size > 1 ? open_communicator(x) : STATUS_OK;
    if (status == STATUS_OK)
        *exchange = x;
    else
        free(x);
    return status;
}
