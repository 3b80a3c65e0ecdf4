/* The ranks: one process, one rank, one device. The only file that knows MPI is comm.c. While a call waits
 * for other ranks the watchdog knows it (runtime/watch.h).
 *
 * Unless a line says "local", a call is collective: every rank makes it, in the same order. */
#ifndef WPO_RUNTIME_COMM_H
#define WPO_RUNTIME_COMM_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

struct comm {
    int rank, size;
    int local_rank, local_size; /* on this host */
    char host[64];
};

/* Local, and works before MPI starts: the rank that the launcher's environment variables tell, 0 without a
 * launcher. */
int comm_launched_rank(void);

/* Starts MPI, names the rank for fatal lines, and makes DIE end all ranks. A rank count that environment
 * variables (of Slurm, Open MPI, torch) contradict is an error that says how to launch. */
enum status comm_open(struct comm *comm);
/* Ends the watchdog and MPI. Local when the process is about to exit after an agreed error. */
void comm_close(struct comm *comm);
/* Local. Ends all ranks at once with this exit code; a timer makes sure. */
_Noreturn void comm_abort(int exit_code);

/* A status that one rank may see alone is agreed on before the next collective: all ranks get the worst, and
 * as the sentence that of the first rank that has it, opened by "rank 3 on node7: " unless all ranks failed
 * alike. */
enum status comm_agree(struct comm *comm, enum status mine);

/* Sums over ranks, in rank order, in place; the same bits everywhere. */
void comm_sum(struct comm *comm, double *values, int64_t count);
void comm_minimum(struct comm *comm, double *values, int64_t count);
void comm_maximum(struct comm *comm, double *values, int64_t count);
/* Sums, where every value is zero on all ranks but one: no order of adding can change a bit. */
void comm_merge(struct comm *comm, double *values, int64_t count);
void comm_broadcast(struct comm *comm, void *bytes, size_t count, int root);
/* all (out) [size * count] bytes, by rank. mine may be its own place in all. */
void comm_gather_all(struct comm *comm, void *all, const void *mine, size_t count);
void comm_barrier(struct comm *comm);
/* True on all ranks if it is on any. */
bool comm_any(struct comm *comm, bool mine);

/* The part of a vector of `count` elements that rank `rank` owns: first .. first + length - 1. Local. */
void comm_share(int64_t count, int size, int rank, int64_t *first, int64_t *length);

/* The sum over ranks of one vector per rank, each rank receiving its own share (reduce-scatter). The object
 * is made once per vector and used every step. start queues, progress moves along what is queued, finish
 * waits: the caller's share of vector (inout, f32 [count]) then holds the sum, added in rank order whatever
 * the network does, and the rest is as it was. */
struct reduction;
/* Local. Floats that a reduction of `count` needs to receive into. */
int64_t reduction_room(const struct comm *comm, int64_t count);
/* Local. received: reduction_room() floats, owned by the caller, kept until reduction_free. */
struct reduction *reduction_create(struct comm *comm, float *vector, int64_t count, float *received);
void reduction_free(struct reduction *reduction); /* local */
void reduction_start(struct reduction *reduction);
void reduction_progress(struct reduction *reduction); /* local; cheap; does nothing unless started */
void reduction_finish(struct reduction *reduction);

/* Every rank's share of vector (inout) [count], elements of 2, 4 or 8 bytes, to all ranks (all-gather), in
 * place. */
void comm_share_all(struct comm *comm, void *vector, int64_t count, size_t element);

#endif
