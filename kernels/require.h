/* Ending the program when something that cannot happen has happened.
 *
 * Edges (files, options, the network) return `enum status` (runtime/status.h). The middle, where only a bug
 * can be the cause, uses REQUIRE and DIE: one line on standard error that says who and why, then the end of
 * all ranks through the handler that the communication layer installs. */
#ifndef WPO_KERNELS_REQUIRE_H
#define WPO_KERNELS_REQUIRE_H

#ifdef __cplusplus
extern "C" {
#define FATAL_NORETURN [[noreturn]]
#else
#define FATAL_NORETURN _Noreturn
#endif

/* Called once after the line is printed, with the exit code. Must not return. NULL means _exit(code). */
void fatal_handler_set(void (*handler)(int exit_code));

/* The words that open every fatal line, for instance "rank 3 on node7". Copied; at most 127 bytes. */
void fatal_name_set(const char *name);

FATAL_NORETURN void fatal(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#define DIE(...) fatal(__FILE__, __LINE__, __VA_ARGS__)
#define REQUIRE(condition, ...)                                                                              \
    do {                                                                                                     \
        if (!(condition)) fatal(__FILE__, __LINE__, __VA_ARGS__);                                            \
    } while (0)

#endif
