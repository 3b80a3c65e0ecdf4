#include "launcher/inspect.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void page_open(struct page *page, bool json)
{
    *page = (struct page){.json = json ? json_new() : NULL};
    if (json) page->root = json_root(page->json);
}

void page_close(struct page *page)
{
    if (page->json && json_count(page->root)) {
        char *text = json_text(page->json, 2);
        fputs(text, stdout);
        free(text);
    }
    json_free(page->json);
    fflush(stdout);
}

/* Text from files may hold anything; a terminal must not see control characters. */
static void print_clean(const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        putchar(c < 0x20 || c == 0x7f ? '?' : *text);
    }
}

void page_text(struct page *page, const char *key, const char *value)
{
    if (page->json) {
        json_put_text(page->root, key, value);
        return;
    }
    printf("%-24s ", key);
    print_clean(value);
    putchar('\n');
}

void page_integer(struct page *page, const char *key, int64_t value)
{
    if (page->json)
        json_put_int(page->root, key, value);
    else
        printf("%-24s %lld\n", key, (long long)value);
}

void page_number(struct page *page, const char *key, double value)
{
    if (page->json)
        json_put_number(page->root, key, value);
    else if (isfinite(value))
        printf("%-24s %.6g\n", key, value);
}

void page_flag(struct page *page, const char *key, bool value)
{
    if (page->json)
        json_put_bool(page->root, key, value);
    else
        printf("%-24s %s\n", key, value ? "yes" : "no");
}

struct json_value page_list(struct page *page, const char *key)
{
    if (page->json) return json_put_list(page->root, key);
    printf("%s\n", key);
    return (struct json_value){0};
}

struct json_value page_row(struct page *page, struct json_value list, const char *name, const char *detail)
{
    if (page->json) {
        struct json_value row = json_put_object(list, NULL);
        json_put_text(row, "name", name);
        return row;
    }
    printf("  ");
    print_clean(name);
    printf("  ");
    print_clean(detail);
    putchar('\n');
    return (struct json_value){0};
}
