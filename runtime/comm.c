#include "runtime/comm.h"

#include "kernels/require.h"
#include "runtime/watch.h"

#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* -- start and end ---------------------------------------------------------------------------- */

static long environment_number(const char *name)
{
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 10) : -1;
}

int comm_launched_rank(void)
{
    /* The launcher nearest to the process first: mpirun may run inside a job of srun. */
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "MV2_COMM_WORLD_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        long rank = environment_number(names[i]);
        if (rank >= 0) return (int)rank;
    }
    return 0;
}

/* Launchers that MPI was not built for start N programs that each believe to be alone. */
static enum status check_launcher(const struct comm *comm)
{
    static const struct {
        const char *size, *launcher, *advice;
    } launchers[] = {
        {"OMPI_COMM_WORLD_SIZE", "mpirun", "use the mpirun of the Open MPI that this program was built with"},
        {"SLURM_STEP_NUM_TASKS", "srun", "use srun --mpi=pmix, or mpirun inside the job"},
        {"PMI_SIZE", "another MPI's launcher",
         "use the mpirun of the Open MPI that this program was built with"},
        {"WORLD_SIZE", "a torch launcher", "use mpirun, or unset WORLD_SIZE"},
    };
    for (size_t i = 0; comm->size == 1 && i < sizeof launchers / sizeof *launchers; i++) {
        long size = environment_number(launchers[i].size);
        if (size > 1)
            return fail("%s started %ld processes (%s) but MPI sees only one; %s", launchers[i].launcher,
                        size, launchers[i].size, launchers[i].advice);
        if (size == 1) break; /* the launcher nearest to us says one: an outer one may say more */
    }
    return STATUS_OK;
}

enum status comm_open(struct comm *comm)
{
    int provided;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &comm->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &comm->size);
    MPI_Comm local;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &local);
    MPI_Comm_rank(local, &comm->local_rank);
    MPI_Comm_size(local, &comm->local_size);
    MPI_Comm_free(&local);
    if (gethostname(comm->host, sizeof comm->host) != 0) snprintf(comm->host, sizeof comm->host, "unknown");
    comm->host[sizeof comm->host - 1] = 0;

    char name[128];
    snprintf(name, sizeof name, "wpo: rank %d on %s", comm->rank, comm->host);
    fatal_name_set(comm->size > 1 ? name : "wpo");
    fatal_handler_set(comm_abort);
    return check_launcher(comm);
}

void comm_close(struct comm *comm)
{
    (void)comm;
    watch_close();
    fatal_handler_set(NULL);
    MPI_Finalize();
}

_Noreturn void comm_abort(int exit_code)
{
    alarm(10); /* SIGALRM ends the process if MPI_Abort itself hangs */
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

/* -- small collectives ------------------------------------------------------------------------ */

/* All ranks take the sentence of the first that has the worst status. */
static void agree_on_sentence(struct comm *comm, int status, int worst)
{
    int candidate = status == worst ? comm->rank : INT_MAX, first;
    MPI_Allreduce(&candidate, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    int failed = status != STATUS_OK, failures;
    MPI_Allreduce(&failed, &failures, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);

    char sentence[2048] = "";
    if (comm->rank == first) {
        if (failures < comm->size)
            snprintf(sentence, sizeof sentence, "rank %d on %s: %s", comm->rank, comm->host,
                     status_sentence());
        else
            snprintf(sentence, sizeof sentence, "%s", status_sentence());
    }
    MPI_Bcast(sentence, sizeof sentence, MPI_CHAR, first, MPI_COMM_WORLD);
    status_sentence_set(sentence);
}

enum status comm_agree(struct comm *comm, enum status mine)
{
    int status = (int)mine, worst;
    watch_enter("agreement on status");
    MPI_Allreduce(&status, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    if (worst != STATUS_OK) agree_on_sentence(comm, status, worst);
    watch_leave();
    return (enum status)worst;
}

/* MPI_Allreduce may add in any order that suits the network; gathering and adding in rank order may not. */
static void combine(struct comm *comm, const char *what, double *values, int64_t count,
                    void (*into)(double *sum, double value))
{
    REQUIRE(count > 0 && count < INT_MAX / comm->size, "%lld values are too many for one reduction",
            (long long)count);
    double *all = allocate(count * comm->size, sizeof *all);
    watch_enter(what);
    MPI_Allgather(values, (int)count, MPI_DOUBLE, all, (int)count, MPI_DOUBLE, MPI_COMM_WORLD);
    watch_leave();
    for (int64_t i = 0; i < count; i++) {
        values[i] = all[i];
        for (int r = 1; r < comm->size; r++)
            into(&values[i], all[r * count + i]);
    }
    free(all);
}

static void into_sum(double *sum, double value)
{
    *sum += value;
}

static void into_minimum(double *sum, double value)
{
    if (value < *sum) *sum = value;
}

static void into_maximum(double *sum, double value)
{
    if (value > *sum) *sum = value;
}

void comm_sum(struct comm *comm, double *values, int64_t count)
{
    combine(comm, "sum of metrics", values, count, into_sum);
}

void comm_minimum(struct comm *comm, double *values, int64_t count)
{
    combine(comm, "minimum of metrics", values, count, into_minimum);
}

void comm_maximum(struct comm *comm, double *values, int64_t count)
{
    combine(comm, "maximum of metrics", values, count, into_maximum);
}

/* MPI counts with int; larger messages go in pieces. */
static const size_t largest_message = (size_t)1 << 30;

void comm_merge(struct comm *comm, double *values, int64_t count)
{
    (void)comm;
    watch_enter("merging of scores");
    for (int64_t done = 0; done < count; done += 1 << 24) {
        int piece = count - done < 1 << 24 ? (int)(count - done) : 1 << 24;
        MPI_Allreduce(MPI_IN_PLACE, values + done, piece, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    }
    watch_leave();
}

void comm_broadcast(struct comm *comm, void *bytes, size_t count, int root)
{
    (void)comm;
    watch_enter("broadcast");
    for (size_t done = 0; done < count; done += largest_message) {
        size_t piece = count - done < largest_message ? count - done : largest_message;
        MPI_Bcast((char *)bytes + done, (int)piece, MPI_BYTE, root, MPI_COMM_WORLD);
    }
    watch_leave();
}

void comm_gather_all(struct comm *comm, void *all, const void *mine, size_t count)
{
    REQUIRE(count < largest_message / (size_t)comm->size, "%zu bytes are too many to gather", count);
    bool in_place = mine == (const char *)all + (size_t)comm->rank * count;
    watch_enter("gathering from all ranks");
    MPI_Allgather(in_place ? MPI_IN_PLACE : mine, (int)count, MPI_BYTE, all, (int)count, MPI_BYTE,
                  MPI_COMM_WORLD);
    watch_leave();
}

void comm_barrier(struct comm *comm)
{
    (void)comm;
    watch_enter("barrier");
    MPI_Barrier(MPI_COMM_WORLD);
    watch_leave();
}

bool comm_any(struct comm *comm, bool mine)
{
    (void)comm;
    int flag = mine, any;
    watch_enter("agreement on stopping");
    MPI_Allreduce(&flag, &any, 1, MPI_INT, MPI_LOR, MPI_COMM_WORLD);
    watch_leave();
    return any != 0;
}

/* -- shares of a vector ----------------------------------------------------------------------- */

void comm_share(int64_t count, int size, int rank, int64_t *first, int64_t *length)
{
    int64_t each = (count + size - 1) / size;
    each = (each + 15) / 16 * 16; /* 64 bytes of f32: shares begin on cache lines */
    int64_t begin = each * rank < count ? each * rank : count;
    int64_t end = begin + each < count ? begin + each : count;
    *first = begin;
    *length = end - begin;
}

struct reduction {
    struct comm *comm;
    float *vector;
    int64_t count, first, length; /* of the vector; of this rank's share */
    float *received;              /* [size - 1][length]: this share as the other ranks have it */
    MPI_Request *requests;        /* 2 (size - 1) */
    int request_count;
    bool started;
};

int64_t reduction_room(const struct comm *comm, int64_t count)
{
    int64_t first, length;
    comm_share(count, comm->size, comm->rank, &first, &length);
    return (comm->size - 1) * length;
}

struct reduction *reduction_create(struct comm *comm, float *vector, int64_t count, float *received)
{
    struct reduction *reduction = allocate(1, sizeof *reduction);
    *reduction = (struct reduction){.comm = comm, .vector = vector, .count = count, .received = received};
    comm_share(count, comm->size, comm->rank, &reduction->first, &reduction->length);
    int64_t first, longest; /* share 0 is the longest */
    comm_share(count, comm->size, 0, &first, &longest);
    REQUIRE(longest < INT_MAX, "a bucket of %lld parameters is too large for %d ranks", (long long)count,
            comm->size);
    reduction->requests = allocate(2 * (comm->size - 1), sizeof(MPI_Request));
    return reduction;
}

void reduction_free(struct reduction *reduction)
{
    if (!reduction) return;
    REQUIRE(!reduction->started, "a reduction is freed while it runs");
    free(reduction->requests);
    free(reduction);
}

void reduction_start(struct reduction *reduction)
{
    struct comm *comm = reduction->comm;
    REQUIRE(!reduction->started, "a reduction is started twice");
    reduction->request_count = 0;
    reduction->started = true;
    int slot = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) continue;
        MPI_Irecv(reduction->received + slot++ * reduction->length, (int)reduction->length, MPI_FLOAT, r, 0,
                  MPI_COMM_WORLD, &reduction->requests[reduction->request_count++]);
    }
    for (int i = 1; i < comm->size; i++) { /* each rank begins with its neighbour, not all with rank 0 */
        int r = (comm->rank + i) % comm->size;
        int64_t first, length;
        comm_share(reduction->count, comm->size, r, &first, &length);
        MPI_Isend(reduction->vector + first, (int)length, MPI_FLOAT, r, 0, MPI_COMM_WORLD,
                  &reduction->requests[reduction->request_count++]);
    }
}

void reduction_progress(struct reduction *reduction)
{
    int done;
    if (reduction->started)
        MPI_Testall(reduction->request_count, reduction->requests, &done, MPI_STATUSES_IGNORE);
}

void reduction_finish(struct reduction *reduction)
{
    struct comm *comm = reduction->comm;
    REQUIRE(reduction->started, "a reduction is finished before it started");
    watch_enter("gradient reduction");
    MPI_Waitall(reduction->request_count, reduction->requests, MPI_STATUSES_IGNORE);
    watch_leave();
    reduction->started = false;
    if (comm->size == 1) return;
    float *share = reduction->vector + reduction->first;
    int64_t length = reduction->length;
    const float *received = reduction->received;
    int size = comm->size, rank = comm->rank;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < length; i++) {
        float sum = 0;
        for (int r = 0, slot = 0; r < size; r++)
            sum += r == rank ? share[i] : received[slot++ * length + i];
        share[i] = sum;
    }
}

/* MPI counts with int: in elements, not in bytes, a bucket is small enough. */
static MPI_Datatype type_of_size(size_t element)
{
    REQUIRE(element == 2 || element == 4 || element == 8, "no vector has elements of %zu bytes", element);
    return element == 2 ? MPI_INT16_T : element == 4 ? MPI_INT32_T : MPI_INT64_T;
}

void comm_share_all(struct comm *comm, void *vector, int64_t count, size_t element)
{
    MPI_Datatype type = type_of_size(element);
    if (comm->size == 1) return;
    int *counts = allocate(comm->size, sizeof *counts), *offsets = allocate(comm->size, sizeof *offsets);
    REQUIRE(count < INT_MAX, "a bucket of %lld parameters is too large for one message", (long long)count);
    for (int r = 0; r < comm->size; r++) {
        int64_t first, length;
        comm_share(count, comm->size, r, &first, &length);
        counts[r] = (int)length;
        offsets[r] = (int)first;
    }
    watch_enter("parameter exchange");
    MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, vector, counts, offsets, type, MPI_COMM_WORLD);
    watch_leave();
    free(counts);
    free(offsets);
}
