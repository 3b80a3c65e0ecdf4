/* Collectives over device memory: gradients to their sum, shards to the whole. Two fillings: MPI where device
 * memory is host memory (runtime/exchange_host.c over runtime/comm.h), NCCL on GPUs (runtime/nccl.c).
 *
 * Unless a line says "local", a call is collective: every rank makes it, in the same order. With NCCL all of
 * them are queued on QUEUE_EXCHANGE behind what QUEUE_COMPUTE holds so far and return at once; where a line
 * says "compute follows", ops queued on QUEUE_COMPUTE afterwards see the result. On hosts they are done when
 * they return. */
#ifndef WPO_RUNTIME_EXCHANGE_H
#define WPO_RUNTIME_EXCHANGE_H

#include "kernels/ops.h"
#include "runtime/comm.h"

struct exchange; /* holds a struct exchange_table first */
struct reduction;

struct exchange_table {
    void (*close)(struct exchange *exchange);
    int64_t (*reduction_room)(struct exchange *exchange, int64_t count);
    struct reduction *(*reduction_create)(struct exchange *exchange, struct tensor vector, float *received);
    void (*reduction_free)(struct reduction *reduction);
    void (*reduction_start)(struct reduction *reduction);
    void (*reduction_progress)(struct reduction *reduction);
    void (*reduction_finish)(struct reduction *reduction);
    void (*share_all)(struct exchange *exchange, struct tensor vector);
    void (*gather_doubles)(struct exchange *exchange, double *all, int64_t count);
    void (*wait)(struct exchange *exchange);
};

/* ordered: gradients are added in rank order whatever the network does (each share is sent to its owner and
 * added there), instead of by the library's own reduce-scatter, whose order is that of its rings. Always so
 * on hosts. Sums of bf16 are then made in f32 and rounded once, while the library rounds them at every hop.
 * seconds: how long a rank may wait for the others (runtime/watch.h), <= 0 for ever. */
struct exchange_options {
    bool ordered;
    double seconds;
};

/* The filling for this backend: by ops->name. */
enum status exchange_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                          struct device *device, struct exchange_options options);
void exchange_close(struct exchange *exchange);

/* The sum over ranks of one vector per rank, each rank receiving its own share, comm_share()
 * (reduce-scatter). The object is made once per vector and used every step. vector (inout, device) [1,count]
 * f32 or bf16: after finish the caller's share of it holds the sum, and the rest is undefined. start queues,
 * progress moves along what is queued (local, cheap, nothing unless started), finish: compute follows.
 * received: reduction_room() floats of device memory, owned by the caller, kept until reduction_free. */
int64_t exchange_reduction_room(struct exchange *exchange, int64_t count); /* local; may be 0 */
struct reduction *exchange_reduction_create(struct exchange *exchange, struct tensor vector,
                                            float *received);                         /* local */
void exchange_reduction_free(struct exchange *exchange, struct reduction *reduction); /* local */
void exchange_reduction_start(struct exchange *exchange, struct reduction *reduction);
void exchange_reduction_progress(struct exchange *exchange, struct reduction *reduction); /* local */
void exchange_reduction_finish(struct exchange *exchange, struct reduction *reduction);

/* Every rank's share, comm_share(), of vector (inout, device) [1,count], any type, to all ranks (all-gather),
 * in place; compute follows. */
void exchange_share_all(struct exchange *exchange, struct tensor vector);

/* all (inout, device) [size * count]: rank r has filled all[r * count ..], afterwards all of it is there;
 * compute follows. */
void exchange_gather_doubles(struct exchange *exchange, double *all, int64_t count);

/* Waits until the device has done all that is queued, and ends all ranks if a collective does not finish in
 * time or reports an error. Local, but meant for the end of a step. */
void exchange_wait(struct exchange *exchange);

/* The filling of hosts. */
enum status exchange_host_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                               struct device *device);
/* The NCCL filling; NULL with a reason in a build without CUDA. */
enum status exchange_nccl_open(struct exchange **exchange, struct comm *comm, const struct ops *ops,
                               struct device *device, struct exchange_options options);

#endif
