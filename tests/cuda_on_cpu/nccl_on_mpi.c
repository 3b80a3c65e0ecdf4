/* NCCL's collectives on host memory, over MPI: see nccl.h. */
#include "kernels/bfloat.h"
#include "kernels/require.h"
#include "tests/cuda_on_cpu/nccl.h"

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { UNIQUE = 0x6e63636c, POLLS = 2, GROUP_LIMIT = 4096 };

struct ncclComm {
    MPI_Comm mpi;
    int rank, size;
    ncclResult_t error; /* what was ordered */
    bool error_shows;
    int polls; /* answers of ncclInProgress that are still to come */
    bool hangs;
    long collectives, fail_at, hang_at;
    cudaStream_t stream; /* of the first call: there is one for all */
    bool finalized;
};

enum call { CALL_SEND, CALL_RECEIVE, CALL_REDUCE, CALL_REDUCE_SCATTER, CALL_ALL_GATHER, CALL_BROADCAST };

struct queued {
    enum call call;
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    int peer; /* or root */
    ncclComm_t comm;
};

static struct queued group[GROUP_LIMIT];
static int group_count, group_depth;

/* -- life ------------------------------------------------------------------------------------- */

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess       ? "no error"
           : result == ncclInProgress  ? "operation in progress"
           : result == ncclRemoteError ? "remote process exited or there was a network error"
                                       : "invalid usage";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return comm && comm->error ? "a fault that was ordered" : "";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    int mark = UNIQUE;
    memset(id, 0, sizeof *id);
    memcpy(id, &mark, sizeof mark);
    return ncclSuccess;
}

static long environment_number(const char *name)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    int mark, size, mine;
    memcpy(&mark, &id, sizeof mark);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_rank(MPI_COMM_WORLD, &mine);
    REQUIRE(mark == UNIQUE && ranks == size && rank == mine,
            "a communicator of NCCL begins with rank 0's identity");
    REQUIRE(config->blocking == 0, "the communicator must not block");
    *comm = calloc(1, sizeof **comm);
    REQUIRE(*comm, "out of memory");
    **comm = (struct ncclComm){.rank = rank,
                               .size = ranks,
                               .polls = POLLS,
                               .fail_at = environment_number("CUDA_ON_CPU_NCCL_FAIL"),
                               .hang_at = environment_number("CUDA_ON_CPU_NCCL_HANG")};
    MPI_Comm_dup(MPI_COMM_WORLD, &(*comm)->mpi);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state)
{
    bool busy = comm->hangs || comm->polls > 0;
    *state = busy ? ncclInProgress : comm->error_shows ? comm->error : ncclSuccess;
    if (comm->polls > 0) comm->polls--;
    if (!busy && comm->error)
        comm->error_shows = true; /* what goes wrong on the way shows when all is queued */
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    REQUIRE(!comm->finalized && !group_depth, "a communicator is finalized once, outside groups");
    comm->finalized = true;
    comm->polls = POLLS;
    MPI_Barrier(comm->mpi);
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    REQUIRE(comm->finalized && comm->polls == 0, "a communicator is finalized before it is destroyed");
    MPI_Comm_free(&comm->mpi);
    free(comm);
    return ncclSuccess;
}

/* Local, so MPI's communicator stays. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    free(comm);
    return ncclSuccess;
}

/* -- carrying out ------------------------------------------------------------------------------ */

static int bytes_of(size_t count, ncclDataType_t type)
{
    size_t each = type == ncclUint8 ? 1 : type == ncclBfloat16 ? 2 : type == ncclFloat32 ? 4 : 8;
    REQUIRE(count <= INT_MAX / each, "%zu elements are too many for the emulation", count);
    return (int)(count * each);
}

static void *room(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    REQUIRE(memory, "out of memory");
    return memory;
}

/* to = the sum of `size` rows of `count`; bf16 is rounded after every addition, as it is when it travels a
 * ring. */
static void add_rows(void *to, const void *rows, size_t count, ncclDataType_t type, int size)
{
    REQUIRE(type == ncclFloat32 || type == ncclBfloat16, "sums are of f32 or bf16");
    for (size_t i = 0; i < count; i++) {
        if (type == ncclFloat32) {
            const float *x = rows;
            float sum = x[i];
            for (int r = 1; r < size; r++)
                sum += x[(size_t)r * count + i];
            ((float *)to)[i] = sum;
        } else {
            const struct bfloat *x = rows;
            struct bfloat sum = x[i];
            for (int r = 1; r < size; r++)
                sum = bfloat_round(bfloat_widen(sum) + bfloat_widen(x[(size_t)r * count + i]));
            ((struct bfloat *)to)[i] = sum;
        }
    }
}

static void reduce(const struct queued *q)
{
    struct ncclComm *comm = q->comm;
    int bytes = bytes_of(q->count, q->type);
    void *rows = comm->rank == q->peer ? room((size_t)bytes * (size_t)comm->size) : NULL;
    MPI_Gather(q->from, bytes, MPI_BYTE, rows, bytes, MPI_BYTE, q->peer, comm->mpi);
    if (rows) add_rows(q->to, rows, q->count, q->type, comm->size);
    free(rows);
}

static void reduce_scatter(const struct queued *q)
{
    struct ncclComm *comm = q->comm;
    int bytes = bytes_of(q->count, q->type);
    void *rows = room((size_t)bytes * (size_t)comm->size);
    MPI_Alltoall(q->from, bytes, MPI_BYTE, rows, bytes, MPI_BYTE, comm->mpi);
    add_rows(q->to, rows, q->count, q->type, comm->size);
    free(rows);
}

static void all_gather(const struct queued *q)
{
    int bytes = bytes_of(q->count, q->type);
    bool in_place = q->from == (char *)q->to + (size_t)bytes * (size_t)q->comm->rank;
    MPI_Allgather(in_place ? MPI_IN_PLACE : q->from, bytes, MPI_BYTE, q->to, bytes, MPI_BYTE, q->comm->mpi);
}

static void broadcast(const struct queued *q)
{
    int bytes = bytes_of(q->count, q->type);
    if (q->comm->rank == q->peer && q->from != q->to) memcpy(q->to, q->from, (size_t)bytes);
    MPI_Bcast(q->to, bytes, MPI_BYTE, q->peer, q->comm->mpi);
}

/* Messages between two ranks first, because they wait for each other. */
static void carry_out(void)
{
    MPI_Request requests[GROUP_LIMIT];
    int count = 0;
    for (int i = 0; i < group_count; i++) {
        const struct queued *q = &group[i];
        if (q->call == CALL_SEND)
            MPI_Isend(q->from, bytes_of(q->count, q->type), MPI_BYTE, q->peer, 0, q->comm->mpi,
                      &requests[count++]);
        if (q->call == CALL_RECEIVE)
            MPI_Irecv(q->to, bytes_of(q->count, q->type), MPI_BYTE, q->peer, 0, q->comm->mpi,
                      &requests[count++]);
    }
    MPI_Waitall(count, requests, MPI_STATUSES_IGNORE);
    for (int i = 0; i < group_count; i++) {
        if (group[i].call == CALL_REDUCE) reduce(&group[i]);
        if (group[i].call == CALL_REDUCE_SCATTER) reduce_scatter(&group[i]);
        if (group[i].call == CALL_ALL_GATHER) all_gather(&group[i]);
        if (group[i].call == CALL_BROADCAST) broadcast(&group[i]);
    }
}

ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    REQUIRE(group_depth > 0, "a group ends that did not begin");
    if (--group_depth > 0 || group_count == 0) return ncclSuccess;
    struct ncclComm *comm = group[0].comm;
    long number = ++comm->collectives;
    bool last = comm->rank == comm->size - 1;
    comm->polls = POLLS;
    comm->hangs = last && number == comm->hang_at;
    if (!comm->hangs) carry_out();
    if (last && number == comm->fail_at) comm->error = ncclRemoteError;
    group_count = 0;
    return ncclInProgress;
}

static ncclResult_t queue(struct queued queued, cudaStream_t stream)
{
    struct ncclComm *comm = queued.comm;
    REQUIRE(comm->polls == 0 && !comm->hangs, "the collective before this one has not been seen to succeed");
    REQUIRE(stream && (!comm->stream || comm->stream == stream), "all collectives are queued on one stream");
    REQUIRE(group_count < GROUP_LIMIT, "the group is too large for the emulation");
    comm->stream = stream;
    ncclGroupStart();
    group[group_count++] = queued;
    return ncclGroupEnd();
}

/* -- the calls --------------------------------------------------------------------------------- */

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    REQUIRE(group_depth > 0, "a lone send would wait for ever");
    return queue((struct queued){CALL_SEND, from, NULL, count, type, peer, comm}, stream);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    REQUIRE(group_depth > 0, "a lone receive would wait for ever");
    return queue((struct queued){CALL_RECEIVE, NULL, to, count, type, peer, comm}, stream);
}

ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream)
{
    REQUIRE(op == ncclSum, "sums alone are emulated");
    return queue((struct queued){CALL_REDUCE, from, to, count, type, root, comm}, stream);
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t each, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream)
{
    REQUIRE(op == ncclSum, "sums alone are emulated");
    return queue((struct queued){CALL_REDUCE_SCATTER, from, to, each, type, 0, comm}, stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t each, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    return queue((struct queued){CALL_ALL_GATHER, from, to, each, type, 0, comm}, stream);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    return queue((struct queued){CALL_BROADCAST, from, to, count, type, root, comm}, stream);
}
