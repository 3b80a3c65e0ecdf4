/* Ranks that meet again and again under the watchdog, for tests that stop or delay one of them:
 *
 *   tool_watch SECONDS LIFE MODE [RANK]
 *
 * SECONDS is the watchdog's limit. For LIFE seconds the ranks sum numbers 100 times a second. Rank 0 first
 * prints "pid RANK PID" for each. MODE: run; slow (RANK takes 0.7 SECONDS before every sum); away (RANK stays
 * outside after 20 sums); hang (all ranks enter something that does not end). With TOOL_APART set the ranks
 * behave as if they were on several hosts; with TOOL_LATE the last one comes so many seconds late. */
#include "kernels/require.h"
#include "runtime/clock.h"
#include "runtime/comm.h"
#include "runtime/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void rest(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

static void print_pids(struct comm *comm)
{
    int64_t mine = getpid(), *all = allocate(comm->size, sizeof *all);
    comm_gather_all(comm, all, &mine, sizeof mine);
    for (int r = 0; comm->rank == 0 && r < comm->size; r++)
        printf("pid %d %lld\n", r, (long long)all[r]);
    fflush(stdout);
    free(all);
}

static void meet(struct comm *comm, double seconds, double life, const char *mode, int chosen)
{
    double end = clock_seconds() + life;
    for (int turn = 0;; turn++) {
        double values[2] = {comm->rank, clock_seconds() < end};
        comm_minimum(comm, values, 2);
        if (values[1] == 0) return;
        if (!strcmp(mode, "slow") && comm->rank == chosen) rest(0.7 * seconds);
        if (!strcmp(mode, "away") && comm->rank == chosen && turn == 20) rest(1000);
        if (!strcmp(mode, "hang") && turn == 20) {
            watch_enter("a test of patience");
            rest(1000);
        }
        rest(0.01);
    }
}

int main(int argc, char **argv)
{
    struct comm comm;
    REQUIRE(argc >= 4, "usage: tool_watch SECONDS LIFE MODE [RANK]");
    double seconds = strtod(argv[1], NULL);
    enum status status = comm_open(&comm);
    if (getenv("TOOL_APART")) comm.local_size = 1;
    if (getenv("TOOL_LATE") && comm.rank == comm.size - 1) rest(strtod(getenv("TOOL_LATE"), NULL));
    if (status == STATUS_OK) status = watch_open(&comm, seconds);
    if (status == STATUS_OK) {
        print_pids(&comm);
        meet(&comm, seconds, strtod(argv[2], NULL), argv[3], argc > 4 ? atoi(argv[4]) : -1);
        watch_close();
    } else if (comm.rank == 0) {
        fprintf(stderr, "%s\n", status_sentence());
    }
    comm_close(&comm);
    return (int)status;
}
