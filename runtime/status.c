#include "runtime/status.h"

#include "kernels/require.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char sentence[2048];

static enum status record(enum status status, const char *format, va_list arguments)
{
    char text[sizeof sentence]; /* the arguments may point into the old sentence */
    vsnprintf(text, sizeof text, format, arguments);
    status_sentence_set(text);
    return status;
}

enum status fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    enum status status = record(STATUS_BAD, format, arguments);
    va_end(arguments);
    return status;
}

enum status fail_usage(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    enum status status = record(STATUS_USAGE, format, arguments);
    va_end(arguments);
    return status;
}

enum status fail_stopped(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    enum status status = record(STATUS_STOPPED, format, arguments);
    va_end(arguments);
    return status;
}

const char *status_sentence(void)
{
    return sentence;
}

/* Names from files may hold anything; a terminal must not see control characters. */
void status_sentence_set(const char *text)
{
    size_t n = 0;
    for (; text[n] && n + 1 < sizeof sentence; n++) {
        unsigned char c = (unsigned char)text[n];
        sentence[n] = c < 0x20 || c == 0x7f ? '?' : text[n];
    }
    sentence[n] = 0;
}

void *allocate(long long count, unsigned long size)
{
    size_t bytes;
    REQUIRE(count >= 0 && !__builtin_mul_overflow((size_t)count, size, &bytes),
            "a size of %lld x %lu bytes overflows", count, size);
    void *memory = calloc(bytes ? bytes : 1, 1);
    REQUIRE(memory, "out of memory: %zu bytes of host memory were asked for", bytes);
    return memory;
}

char *text_copy(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(allocate((long long)bytes, 1), text, bytes);
}

char *text_format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    REQUIRE(vasprintf(&text, format, arguments) >= 0, "out of memory while formatting a line");
    va_end(arguments);
    return text;
}
