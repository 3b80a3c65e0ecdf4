#include "kernels/require.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void (*fatal_handler)(int);
static char fatal_name[128] = "wpo";

void fatal_handler_set(void (*handler)(int exit_code))
{
    fatal_handler = handler;
}

void fatal_name_set(const char *name)
{
    snprintf(fatal_name, sizeof fatal_name, "%s", name);
}

_Noreturn void fatal(const char *file, int line, const char *format, ...)
{
    char reason[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    const char *base = strrchr(file, '/');
    fflush(stdout);
    fprintf(stderr, "%s: %s (%s:%d)\n", fatal_name, reason, base ? base + 1 : file, line);
    fflush(stderr);
    if (fatal_handler) fatal_handler(1);
    _exit(1);
}
