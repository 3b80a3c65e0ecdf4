/* TCP links between ranks, for short records that must arrive while MPI waits: the watchdog's.
 *
 * The first few ranks are hubs, and every rank has a link to every hub. Hubs listen on one address, and only
 * until all ranks are there; who does not know the run's random token is turned away. Records have one fixed
 * size. Nothing here waits unless a line says so. */
#ifndef WPO_RUNTIME_LINKS_H
#define WPO_RUNTIME_LINKS_H

#include "runtime/comm.h"

enum { LINK_RECORD = 1024 }; /* bytes of every record */

struct link {
    int socket; /* -1: none, or its other end is gone */
    size_t have, unsent;
    unsigned char in[LINK_RECORD], out[LINK_RECORD];
};

/* Collective; waits. links (out) [comm->size] by rank. On one host the address is the loopback's, otherwise
 * that of the interface which the environment variable WPO_INTERFACE names, otherwise that of the host's
 * name. Fails alike on all ranks. */
enum status links_open(struct link *links, struct comm *comm, int hubs);
void links_close(struct link *links, int size);

/* Waits until something arrives on a link or on the file descriptor `wake`, or `seconds` are over. */
void links_wait(const struct link *links, int size, int wake, double seconds);
/* Whether a whole record has come; it is then copied to record [LINK_RECORD]. */
bool link_receive(struct link *link, void *record);
/* Drops the record when earlier ones still wait to be sent. */
void link_send(struct link *link, const void *record);
/* Says that nothing more will be sent, and waits up to `seconds` until the other ends have read it all and
 * closed. */
void links_finish(struct link *links, int size, double seconds);

#endif
