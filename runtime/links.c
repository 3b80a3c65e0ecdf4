#include "runtime/links.h"

#include "runtime/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

static const double connect_seconds = 20, join_seconds = 60, hello_seconds = 1;

static int milliseconds(double seconds)
{
    return seconds <= 0 ? 0 : (int)(seconds * 1000) + 1;
}

/* -- this host's address ---------------------------------------------------------------------- */

struct endpoint {
    struct sockaddr_storage address;
    socklen_t length; /* 0: does not listen */
};

struct token {
    unsigned char bytes[16];
};

/* The first message on a link. */
struct hello {
    struct token token;
    int32_t rank;
};

static void address_text(char *text, size_t size, const struct endpoint *endpoint)
{
    char host[64] = "?", port[16] = "?";
    getnameinfo((const struct sockaddr *)&endpoint->address, endpoint->length, host, sizeof host, port,
                sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(text, size, "%s port %s", host, port);
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)address)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

/* Only addresses that other hosts can use as they stand. */
static bool is_usable(const struct sockaddr *address)
{
    if (!address) return false;
    if (address->sa_family == AF_INET) return true;
    return address->sa_family == AF_INET6 &&
           !IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)(const void *)address)->sin6_addr);
}

static void endpoint_set(struct endpoint *endpoint, const struct sockaddr *address)
{
    endpoint->length =
        address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    memcpy(&endpoint->address, address, endpoint->length);
}

/* The address of an interface by name, IPv4 first; without a name that of any but the loopback. */
static bool interface_address(struct endpoint *endpoint, const char *name)
{
    struct ifaddrs *all;
    if (getifaddrs(&all) != 0) return false;
    for (int pass = 0; pass < 2 && !endpoint->length; pass++) {
        for (struct ifaddrs *i = all; i && !endpoint->length; i = i->ifa_next) {
            if (!is_usable(i->ifa_addr) || !(i->ifa_flags & IFF_UP)) continue;
            if (name ? strcmp(i->ifa_name, name) != 0 : is_loopback(i->ifa_addr)) continue;
            if (i->ifa_addr->sa_family == (pass ? AF_INET6 : AF_INET)) endpoint_set(endpoint, i->ifa_addr);
        }
    }
    freeifaddrs(all);
    return endpoint->length > 0;
}

/* Some systems give the host's own name an address of the loopback, which is of no use to others. */
static bool name_address(struct endpoint *endpoint, const char *host)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *all;
    if (getaddrinfo(host, NULL, &hints, &all) != 0) return false;
    for (struct addrinfo *i = all; i && !endpoint->length; i = i->ai_next)
        if (is_usable(i->ai_addr) && !is_loopback(i->ai_addr)) endpoint_set(endpoint, i->ai_addr);
    freeaddrinfo(all);
    return endpoint->length > 0;
}

static enum status find_address(struct endpoint *endpoint, const struct comm *comm)
{
    const char *interface = getenv("WPO_INTERFACE");
    *endpoint = (struct endpoint){0};
    if (comm->local_size == comm->size) {
        struct sockaddr_in loopback = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        endpoint_set(endpoint, (const struct sockaddr *)&loopback);
        return STATUS_OK;
    }
    if (interface && *interface) {
        if (interface_address(endpoint, interface)) return STATUS_OK;
        return fail("WPO_INTERFACE names %s, and this host has no such network interface with an address; "
                    "`ip address` lists them",
                    interface);
    }
    if (name_address(endpoint, comm->host) || interface_address(endpoint, NULL)) return STATUS_OK;
    return fail("this host has no address on a network for the watchdog; name an interface with the "
                "environment variable WPO_INTERFACE, or do without by ddp_timeout: 0");
}

/* -- meeting ---------------------------------------------------------------------------------- */

static enum status start_listening(int *listener, struct endpoint *endpoint, const struct comm *comm)
{
    TRY(find_address(endpoint, comm));
    *listener = socket(endpoint->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*listener < 0 || bind(*listener, (struct sockaddr *)&endpoint->address, endpoint->length) != 0 ||
        listen(*listener, comm->size + 8) != 0 ||
        getsockname(*listener, (struct sockaddr *)&endpoint->address, &endpoint->length) != 0) {
        int reason = errno;
        char text[96];
        address_text(text, sizeof text, endpoint);
        return fail("the watchdog cannot listen on %s: %s; name another interface with the environment "
                    "variable WPO_INTERFACE, or do without by ddp_timeout: 0",
                    text, strerror(reason));
    }
    return STATUS_OK;
}

static bool connect_within(int socket, const struct endpoint *to, double seconds)
{
    if (connect(socket, (const struct sockaddr *)&to->address, to->length) == 0) return true;
    if (errno != EINPROGRESS) return false;
    struct pollfd wait = {.fd = socket, .events = POLLOUT};
    int ready;
    do
        ready = poll(&wait, 1, milliseconds(seconds));
    while (ready < 0 && errno == EINTR);
    int reason = 0;
    socklen_t size = sizeof reason;
    if (ready > 0) getsockopt(socket, SOL_SOCKET, SO_ERROR, &reason, &size);
    errno = ready > 0 ? reason : ETIMEDOUT;
    return errno == 0;
}

static void link_begin(struct link *link, int socket)
{
    int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    link->socket = socket;
}

static enum status reach(struct link *link, int hub, const struct endpoint *to, const struct hello *hello)
{
    int socket_made = socket(to->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_made >= 0 && connect_within(socket_made, to, connect_seconds) &&
        send(socket_made, hello, sizeof *hello, MSG_NOSIGNAL) == (ssize_t)sizeof *hello) {
        link_begin(link, socket_made);
        return STATUS_OK;
    }
    int reason = errno;
    char text[96];
    address_text(text, sizeof text, to);
    if (socket_made >= 0) close(socket_made);
    return fail("the watchdog of rank %d does not answer on %s: %s; name the network between the hosts with "
                "the environment variable WPO_INTERFACE, or do without by ddp_timeout: 0",
                hub, text, strerror(reason));
}

/* The rank that a stranger proves to be, or -1. All bytes are compared, so that the time tells nothing. */
static int greet(int socket, const struct token *token)
{
    struct hello hello;
    size_t have = 0;
    double end = clock_seconds() + hello_seconds;
    while (have < sizeof hello && clock_seconds() < end) {
        struct pollfd wait = {.fd = socket, .events = POLLIN};
        if (poll(&wait, 1, milliseconds(end - clock_seconds())) <= 0) continue;
        ssize_t got = recv(socket, (char *)&hello + have, sizeof hello - have, 0);
        if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return -1;
        if (got > 0) have += (size_t)got;
    }
    unsigned differ = 0;
    for (size_t i = 0; have == sizeof hello && i < sizeof *token; i++)
        differ |= hello.token.bytes[i] ^ token->bytes[i];
    return have == sizeof hello && !differ ? hello.rank : -1;
}

static enum status welcome(struct link *links, int listener, const struct comm *comm,
                           const struct token *token)
{
    int missing = comm->size - 1 - comm->rank;
    double end = clock_seconds() + join_seconds;
    while (missing > 0 && clock_seconds() < end) {
        struct pollfd wait = {.fd = listener, .events = POLLIN};
        if (poll(&wait, 1, milliseconds(end - clock_seconds())) <= 0) continue;
        int socket_taken = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (socket_taken < 0 && (errno == EMFILE || errno == ENFILE))
            return fail(
                "too few file descriptors for links to %d ranks; raise `ulimit -n`, or do without the "
                "watchdog by ddp_timeout: 0",
                comm->size);
        if (socket_taken < 0) continue;
        int rank = greet(socket_taken, token);
        if (rank <= comm->rank || rank >= comm->size || links[rank].socket >= 0) {
            close(socket_taken);
            continue;
        }
        link_begin(&links[rank], socket_taken);
        missing--;
    }
    if (!missing) return STATUS_OK;
    return fail("%d ranks did not reach the watchdog within %.0f s; name the network between the hosts with "
                "the environment variable WPO_INTERFACE, or do without by ddp_timeout: 0",
                missing, join_seconds);
}

/* Links to the hubs below this rank; those above it come by themselves. */
static enum status reach_hubs(struct link *links, const struct comm *comm, int hubs,
                              const struct endpoint *endpoints, const struct token *token)
{
    struct hello hello = {*token, comm->rank};
    for (int hub = 0; hub < hubs && hub < comm->rank; hub++)
        TRY(reach(&links[hub], hub, &endpoints[hub], &hello));
    return STATUS_OK;
}

enum status links_open(struct link *links, struct comm *comm, int hubs)
{
    struct endpoint mine = {0}, *endpoints = allocate(comm->size, sizeof *endpoints);
    struct token token = {0};
    int listener = -1;
    for (int r = 0; r < comm->size; r++)
        links[r] = (struct link){.socket = -1};
    enum status status = STATUS_OK;
    if (comm->rank < hubs) status = start_listening(&listener, &mine, comm);
    if (comm->rank == 0 && getrandom(&token, sizeof token, 0) != (ssize_t)sizeof token)
        status = fail("the system gives no random numbers: %s", strerror(errno));
    status = comm_agree(comm, status);
    comm_broadcast(comm, &token, sizeof token, 0);
    comm_gather_all(comm, endpoints, &mine, sizeof mine);
    if (status == STATUS_OK) status = comm_agree(comm, reach_hubs(links, comm, hubs, endpoints, &token));
    if (status == STATUS_OK)
        status = comm_agree(comm, comm->rank < hubs ? welcome(links, listener, comm, &token) : STATUS_OK);
    if (listener >= 0) close(listener);
    free(endpoints);
    if (status != STATUS_OK) links_close(links, comm->size);
    return status;
}

void links_close(struct link *links, int size)
{
    for (int r = 0; r < size; r++) {
        if (links[r].socket >= 0) close(links[r].socket);
        links[r].socket = -1;
    }
}

/* -- records ---------------------------------------------------------------------------------- */

void links_wait(const struct link *links, int size, int wake, double seconds)
{
    struct pollfd *list = allocate(size + 1, sizeof *list);
    nfds_t count = 0;
    list[count++] = (struct pollfd){.fd = wake, .events = POLLIN};
    for (int r = 0; r < size; r++)
        if (links[r].socket >= 0) list[count++] = (struct pollfd){.fd = links[r].socket, .events = POLLIN};
    poll(list, count, milliseconds(seconds)); /* a signal or an error only ends the wait earlier */
    free(list);
}

static void link_end(struct link *link)
{
    close(link->socket);
    link->socket = -1;
}

bool link_receive(struct link *link, void *record)
{
    while (link->socket >= 0) {
        ssize_t got = recv(link->socket, link->in + link->have, LINK_RECORD - link->have, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
        if (got <= 0) {
            link_end(link);
            return false;
        }
        link->have += (size_t)got;
        if (link->have < LINK_RECORD) continue;
        memcpy(record, link->in, LINK_RECORD);
        link->have = 0;
        return true;
    }
    return false;
}

/* True when nothing is left. Of a link that is broken nothing is left either: receiving will find it so. */
static bool link_push(struct link *link)
{
    while (link->unsent > 0) {
        ssize_t sent = send(link->socket, link->out + LINK_RECORD - link->unsent, link->unsent,
                            MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return false;
        link->unsent = sent < 0 ? 0 : link->unsent - (size_t)sent;
    }
    return true;
}

void link_send(struct link *link, const void *record)
{
    if (link->socket < 0 || !link_push(link)) return;
    memcpy(link->out, record, LINK_RECORD);
    link->unsent = LINK_RECORD;
    link_push(link);
}

void links_finish(struct link *links, int size, double seconds)
{
    double end = clock_seconds() + seconds;
    unsigned char record[LINK_RECORD];
    for (int r = 0; r < size; r++)
        if (links[r].socket >= 0) shutdown(links[r].socket, SHUT_WR);
    for (;;) {
        int open = 0;
        for (int r = 0; r < size; r++) {
            while (link_receive(&links[r], record))
                ;
            open += links[r].socket >= 0;
        }
        if (!open || clock_seconds() >= end) break;
        links_wait(links, size, -1, end - clock_seconds());
    }
    links_close(links, size);
}
