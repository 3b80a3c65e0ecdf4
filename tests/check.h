/* What a test in C needs. A test is a main() that returns check_result(). Every failed check prints file, line and
 * the values; a skip is visible to CTest (exit 77). */
#ifndef WPO_TESTS_CHECK_H
#define WPO_TESTS_CHECK_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_failures;
static long check_count;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        check_count++;                                                                                                 \
        if (!(condition)) {                                                                                            \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);                              \
        }                                                                                                              \
    } while (0)

/* |got - want| <= tolerance; NaN fails. Say beside the call where the tolerance comes from. */
#define CHECK_NEAR(got, want, tolerance)                                                                               \
    do {                                                                                                               \
        double check_got = (got), check_want = (want), check_tolerance = (tolerance);                                  \
        check_count++;                                                                                                 \
        if (!(fabs(check_got - check_want) <= check_tolerance)) {                                                      \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s is %.17g, not %.17g (difference %.3g > %.3g)\n", __FILE__, __LINE__, #got,      \
                    check_got, check_want, fabs(check_got - check_want), check_tolerance);                             \
        }                                                                                                              \
    } while (0)

/* The text holds the part. */
#define CHECK_TEXT(text, part)                                                                                         \
    do {                                                                                                               \
        const char *check_text = (text), *check_part = (part);                                                         \
        check_count++;                                                                                                 \
        if (!strstr(check_text, check_part)) {                                                                         \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: \"%s\" is not in \"%s\"\n", __FILE__, __LINE__, check_part, check_text);           \
        }                                                                                                              \
    } while (0)

#define SKIP(...)                                                                                                      \
    do {                                                                                                               \
        printf("skipped: " __VA_ARGS__);                                                                               \
        printf("\n");                                                                                                  \
        exit(77);                                                                                                      \
    } while (0)

static inline int check_result(void)
{
    printf("%ld checks, %d failed\n", check_count, check_failures);
    return check_failures || !check_count ? 1 : 0;
}

/* The folder of real inputs that tests may read, or NULL: WPO_TEST_DATA. */
static inline const char *test_data(void)
{
    const char *folder = getenv("WPO_TEST_DATA");
    return folder && *folder ? folder : NULL;
}

/* Numbers that tests feed in: uniform in [-1, 1), from a counter. */
static inline double check_uniform(unsigned long long *state)
{
    unsigned long long z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

#endif
