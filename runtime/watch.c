#include "runtime/watch.h"

#include "kernels/require.h"
#include "runtime/clock.h"
#include "runtime/links.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Rank 0 judges; rank 1 is there for the case that rank 0 is the one that does not answer. */
enum { HUBS = 2 };

static const double linger_seconds = 0.2; /* in which a verdict leaves this host */

enum kind { KIND_STATUS = 1, KIND_VERDICT, KIND_GOODBYE };

/* Where a rank is. Times are durations, because hosts have different clocks. */
struct record {
    uint32_t kind;
    int32_t rank;
    int64_t number;  /* collectives entered so far */
    double elapsed;  /* seconds since it entered or left the latest */
    uint32_t inside; /* it has not left it */
    char what[60];   /* the latest collective */
    char host[64];
    char sentence[800]; /* of a verdict */
};
_Static_assert(sizeof(struct record) <= LINK_RECORD, "a record fits a link's");

static struct {
    bool open;
    struct comm *comm;
    double seconds, period;
    pthread_t thread;
    int wake; /* event: the main thread wants an end */

    pthread_mutex_t lock; /* the main thread's place */
    const char *what;
    int64_t number;
    bool inside;
    double since;

    struct link *links; /* [ranks]; from here on the thread's */
    struct record *seen;
    double *heard; /* when the latest record came */
    bool *gone;    /* said goodbye */
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .what = "start"};

/* -- the main thread's side ------------------------------------------------------------------- */

static void place(const char *what, bool inside)
{
    if (!watch.open) return;
    pthread_mutex_lock(&watch.lock);
    if (what) watch.what = what;
    watch.number += inside;
    watch.inside = inside;
    watch.since = clock_seconds();
    pthread_mutex_unlock(&watch.lock);
}

void watch_enter(const char *what)
{
    place(what, true);
}

void watch_leave(void)
{
    place(NULL, false);
}

/* -- telling ---------------------------------------------------------------------------------- */

static void send_to_all(const struct record *record)
{
    unsigned char bytes[LINK_RECORD] = {0};
    memcpy(bytes, record, sizeof *record);
    for (int r = 0; r < watch.comm->size; r++)
        link_send(&watch.links[r], bytes);
}

/* This rank's own record is seen as the others' are. */
static void tell(enum kind kind)
{
    struct record *mine = &watch.seen[watch.comm->rank];
    pthread_mutex_lock(&watch.lock);
    mine->kind = (uint32_t)kind;
    mine->number = watch.number;
    mine->inside = watch.inside;
    mine->elapsed = clock_seconds() - watch.since;
    snprintf(mine->what, sizeof mine->what, "%s", watch.what);
    pthread_mutex_unlock(&watch.lock);
    watch.heard[mine->rank] = clock_seconds();
    send_to_all(mine);
}

/* The main thread may be stuck in MPI or in a driver, so nothing is asked of it. The launcher ends ranks that
 * do not hear this. */
static _Noreturn void end_run(const char *sentence)
{
    struct record verdict = {.kind = KIND_VERDICT, .rank = watch.comm->rank};
    char line[sizeof verdict.sentence + 16];
    snprintf(verdict.sentence, sizeof verdict.sentence, "%s", sentence);
    int length = snprintf(line, sizeof line, "wpo: %s\n", verdict.sentence);
    if (write(STDERR_FILENO, line, (size_t)length) < 0) _exit(1);
    send_to_all(&verdict);
    links_finish(watch.links, watch.comm->size, linger_seconds);
    _exit(1);
}

static void hear(int rank, const unsigned char *bytes)
{
    struct record record;
    memcpy(&record, bytes, sizeof record);
    if (record.kind == KIND_VERDICT) _exit(1); /* who sent it has said why */
    if (record.kind == KIND_GOODBYE) watch.gone[rank] = true;
    record.what[sizeof record.what - 1] = record.host[sizeof record.host - 1] = 0;
    watch.seen[rank] = record;
    watch.heard[rank] = clock_seconds();
}

static void hear_all(void)
{
    unsigned char bytes[LINK_RECORD];
    for (int r = 0; r < watch.comm->size; r++)
        while (link_receive(&watch.links[r], bytes))
            hear(r, bytes);
}

/* -- judging ---------------------------------------------------------------------------------- */

/* A rank that is stopped, or cut off: nothing of it has come for this long. */
static void judge_silence(int rank, double patience)
{
    const struct record *seen = &watch.seen[rank];
    double silent = clock_seconds() - watch.heard[rank];
    if (watch.gone[rank] || silent <= patience) return;
    char sentence[sizeof seen->sentence];
    snprintf(sentence, sizeof sentence,
             "rank %d on %s has not answered for %.0f s (last seen %s: %s, number %" PRId64
             "): it is stopped or cut off from the network; the run ends",
             rank, seen->host, silent, seen->inside ? "in" : "after", seen->what, seen->number);
    end_run(sentence);
}

/* Those behind all others: `last` is the first of them. Of several those count that are not even waiting. */
static bool is_behind(int rank, int last)
{
    const struct record *seen = &watch.seen[rank], *other = &watch.seen[last];
    return !watch.gone[rank] && seen->number == other->number && seen->inside == other->inside;
}

static int last_of_all(void)
{
    int last = -1;
    for (int r = 0; r < watch.comm->size; r++) {
        const struct record *seen = &watch.seen[r], *other = &watch.seen[last < 0 ? 0 : last];
        if (watch.gone[r]) continue;
        if (last < 0 || seen->number < other->number ||
            (seen->number == other->number && other->inside && !seen->inside))
            last = r;
    }
    return last;
}

/* "rank 3 on node7 and rank 4 on node8 are" */
static void name_behind(char *text, size_t size, int last)
{
    enum { NAMED = 4 };
    int count = 0, named = 0;
    size_t used = 0;
    for (int r = 0; r < watch.comm->size; r++)
        count += is_behind(r, last);
    for (int r = last; r < watch.comm->size && named < NAMED; r++) {
        if (!is_behind(r, last)) continue;
        named++;
        used += (size_t)snprintf(text + used, size - used, "%srank %d on %s",
                                 named == 1       ? ""
                                 : named == count ? " and "
                                                  : ", ",
                                 r, watch.seen[r].host);
    }
    if (count > named)
        used += (size_t)snprintf(text + used, size - used, " and %d more ranks", count - named);
    snprintf(text + used, size - used, count == 1 ? " is" : " are");
}

static _Noreturn void end_for_stuck(int last, int first, int waiting)
{
    const struct record *stuck = &watch.seen[last], *waits = &watch.seen[first];
    char sentence[sizeof stuck->sentence], others[32], names[400];
    name_behind(names, sizeof names, last);
    snprintf(others, sizeof others, waiting == 1 ? "rank %d has" : "%d ranks have",
             waiting == 1 ? first : waiting);
    snprintf(sentence, sizeof sentence,
             "%s stuck (last seen %s: %s, number %" PRId64 "): %s waited for %.0f s in: %s, number %" PRId64
             "; the run ends (raise ddp_timeout if it was only slow)",
             names, stuck->inside ? "in" : "after", stuck->what, stuck->number, others, waits->elapsed,
             waits->what, waits->number);
    end_run(sentence);
}

/* Each rank's own account of how long it has waited counts, not the age of that account: it may have moved on
 * since. */
static void judge_stuck(void)
{
    int last = last_of_all(), first = -1, waiting = 0, within = 0, present = 0;
    if (last < 0) return;
    const struct record *stuck = &watch.seen[last];
    for (int r = 0; r < watch.comm->size; r++) {
        const struct record *seen = &watch.seen[r];
        if (watch.gone[r]) continue;
        present++;
        bool ahead = seen->number > stuck->number, late = seen->elapsed > watch.seconds;
        within += seen->inside && !ahead && late;
        waiting += seen->inside && ahead;
        if (seen->inside && ahead && late && first < 0) first = r;
    }
    if (first >= 0) end_for_stuck(last, first, waiting);
    if (within < present) return;
    char sentence[sizeof stuck->sentence];
    snprintf(sentence, sizeof sentence,
             "all %d ranks have been in the same collective for %.0f s without an end: %s, number %" PRId64
             ": the network or a device hangs; the run ends (raise ddp_timeout if it was only slow)",
             present, stuck->elapsed, stuck->what, stuck->number);
    end_run(sentence);
}

/* Rank 1 takes the word if rank 0 is silent; if it does not either, the next ones do, one after the other. */
static void judge(void)
{
    int rank = watch.comm->rank, size = watch.comm->size;
    if (rank > 0) {
        double turn = rank == 1 ? 0 : 0.3 + 0.4 * (rank - 2) / (size - 2);
        judge_silence(0, watch.seconds * (1 + turn));
        return;
    }
    for (int r = 1; r < size; r++)
        judge_silence(r, watch.seconds);
    judge_stuck();
}

/* -- the thread ------------------------------------------------------------------------------- */

/* Time in which this process did not run counts for nobody: a job that is suspended as a whole, as batch
 * systems do, goes on as if nothing had been. */
static void forgive(double seconds)
{
    pthread_mutex_lock(&watch.lock);
    watch.since += seconds;
    pthread_mutex_unlock(&watch.lock);
    for (int r = 0; r < watch.comm->size; r++)
        watch.heard[r] += seconds;
}

/* Looks around a few times in each period, and not at every message: there may be a thousand ranks. What has
 * come is always heard before anybody is judged. */
static void *run_watch(void *unused)
{
    (void)unused;
    double latest = clock_seconds(), next = latest;
    for (uint64_t asked; read(watch.wake, &asked, sizeof asked) < 0;) {
        double now = clock_seconds();
        if (now - latest > 2 * watch.period) forgive(now - latest);
        latest = now;
        hear_all();
        if (now >= next) {
            tell(KIND_STATUS);
            judge();
            next = now + watch.period;
        }
        links_wait(NULL, 0, watch.wake, watch.period / 8);
    }
    tell(KIND_GOODBYE);
    return NULL;
}

/* Signals are the main thread's. */
static enum status start_thread(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&watch.thread, NULL, run_watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed ? fail("the watchdog's thread does not start: %s", strerror(failed)) : STATUS_OK;
}

static void meet_all(struct comm *comm)
{
    char(*hosts)[sizeof comm->host] = allocate(comm->size, sizeof *hosts);
    comm_gather_all(comm, hosts, comm->host, sizeof comm->host);
    watch.since = clock_seconds();
    for (int r = 0; r < comm->size; r++) {
        struct record *seen = &watch.seen[r];
        *seen = (struct record){.rank = r, .what = "start"};
        snprintf(seen->host, sizeof seen->host, "%s", hosts[r]);
        watch.heard[r] = watch.since;
    }
    free(hosts);
}

static enum status prepare(struct comm *comm)
{
    int size = comm->size;
    watch.links = allocate(size, sizeof *watch.links);
    watch.seen = allocate(size, sizeof *watch.seen);
    watch.heard = allocate(size, sizeof *watch.heard);
    watch.gone = allocate(size, sizeof *watch.gone);
    TRY(links_open(watch.links, comm, HUBS < size ? HUBS : size));
    meet_all(comm);
    watch.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return comm_agree(comm, watch.wake < 0 ? fail("out of file descriptors for the watchdog") : STATUS_OK);
}

/* The thread says goodbye to all and ends. */
static void stop_thread(void)
{
    uint64_t ask = 1;
    if (write(watch.wake, &ask, sizeof ask) == (ssize_t)sizeof ask) pthread_join(watch.thread, NULL);
    links_finish(watch.links, watch.comm->size, 0);
}

static void release(void)
{
    if (watch.links) links_close(watch.links, watch.comm->size);
    if (watch.wake >= 0) close(watch.wake);
    free(watch.links);
    free(watch.seen);
    free(watch.heard);
    free(watch.gone);
    watch.links = NULL, watch.seen = NULL, watch.heard = NULL, watch.gone = NULL;
}

enum status watch_open(struct comm *comm, double seconds)
{
    REQUIRE(!watch.open, "the watchdog is opened twice");
    if (seconds <= 0 || comm->size == 1) return STATUS_OK;
    watch.comm = comm;
    watch.seconds = seconds;
    watch.period = seconds < 8 ? seconds / 8 : 1;
    watch.number = 0;
    watch.inside = false;
    watch.what = "start";
    watch.wake = -1;
    enum status status = prepare(comm);
    if (status == STATUS_OK) {
        enum status mine = start_thread();
        status = comm_agree(comm, mine);
        if (status != STATUS_OK && mine == STATUS_OK) stop_thread();
    }
    watch.open = status == STATUS_OK;
    if (status != STATUS_OK) release();
    return status;
}

void watch_close(void)
{
    if (!watch.open) return;
    watch.open = false;
    stop_thread();
    release();
}
