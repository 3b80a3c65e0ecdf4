#include "launcher/options.h"

#include <stdlib.h>
#include <string.h>
/* Restricted edit distance: insert, delete, replace, swap neighbours. Words longer than this are not
 * compared. */
enum { LONGEST = 64 };

static int least(int a, int b)
{
    return a < b ? a : b;
}

static char plain(char c)
{
    if (c >= 'A' && c <= 'Z') return (char)(c - 'A' + 'a');
    return c == '-' ? '_' : c;
}

static int distance(const char *a, const char *b)
{
    int rows[3][LONGEST + 1];
    int n = (int)strlen(a), m = (int)strlen(b);
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= m; j++)
        last[j] = j;
    for (int i = 1; i <= n; i++) {
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int differs = plain(a[i - 1]) != plain(b[j - 1]);
            now[j] = least(least(last[j], now[j - 1]) + 1, last[j - 1] + differs);
            bool swapped =
                i > 1 && j > 1 && plain(a[i - 1]) == plain(b[j - 2]) && plain(a[i - 2]) == plain(b[j - 1]);
            if (swapped) now[j] = least(now[j], before[j - 2] + 1);
        }
        int *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[m];
}

const char *nearest_word(const char *word, const char *const *candidates, int64_t count)
{
    size_t length = strlen(word);
    if (!length || length > LONGEST) return NULL;
    const char *best = NULL;
    int limit = length < 3 ? 1 : (int)(length + 2) / 3, least_distance = limit + 1;
    for (int64_t i = 0; i < count; i++) {
        if (strlen(candidates[i]) > LONGEST) continue;
        bool opens = length >= 3 && !strncmp(word, candidates[i], length);
        int d = opens ? 1 : distance(word, candidates[i]);
        if (d < least_distance) {
            least_distance = d;
            best = candidates[i];
        }
    }
    return best;
}

static const char *argument_of(const struct option *option)
{
    if (option->argument) return option->argument;
    switch (option->kind) {
    case OPTION_TEXT:
    case OPTION_LIST:
        return option->choices ? option->choices : "TEXT";
    case OPTION_INTEGER:
        return "N";
    case OPTION_NUMBER:
        return "X";
    case OPTION_FLAG:
        return option->fallback && !strcmp(option->fallback, "true") ? "true|false" : "";
    case OPTION_CHOICE:
        return option->choices;
    }
    return "";
}

/* Breaks a long "--name a|b|c" behind its bars; returns the columns of the last line. */
static size_t print_left(FILE *stream, const char *left)
{
    enum { WIDEST = 100, INDENT = 6 };
    size_t column = 0;
    while (*left) {
        size_t part = strcspn(left, "|");
        part += left[part] == '|';
        if (column + part > WIDEST) column = (size_t)fprintf(stream, "\n%*s", INDENT, "") - 1;
        column += (size_t)fprintf(stream, "%.*s", (int)part, left);
        left += part;
    }
    return column;
}

/* Words from this column on, broken behind spaces, and the end of the line. */
static void print_right(FILE *stream, const char *right, int indent)
{
    enum { WIDEST = 110 };
    for (int column = indent; *right;) {
        int word = (int)strcspn(right, " ");
        if (column > indent && column + 1 + word > WIDEST) column = fprintf(stream, "\n%*s", indent, "") - 1;
        column += fprintf(stream, "%s%.*s", column > indent ? " " : "", word, right);
        right += word;
        right += strspn(right, " ");
    }
    fputc('\n', stream);
}

void options_print(FILE *stream, const struct option *options, int64_t count)
{
    enum { COLUMN = 34 };
    for (int64_t i = 0; i < count; i++) {
        const struct option *option = &options[i];
        if (!option->meaning) continue;
        const char *argument = argument_of(option);
        char *left = option->positional
                         ? text_format("  %s", option->argument ? option->argument : option->name)
                         : text_format("  --%s%s%s", option->name, *argument ? " " : "", argument);
        size_t column = print_left(stream, left);
        if (column >= COLUMN || strlen(left) > column) {
            fprintf(stream, "\n%*s", COLUMN, "");
        } else {
            fprintf(stream, "%*s", (int)(COLUMN - column), "");
        }
        bool shows_default =
            option->fallback && !(option->kind == OPTION_FLAG && !strcmp(option->fallback, "false"));
        char *right = text_format("%s%s%s%s%s", option->meaning, option->required ? " (required)" : "",
                                  shows_default ? " [" : "", shows_default ? option->fallback : "",
                                  shows_default ? "]" : "");
        print_right(stream, right, COLUMN);
        free(right);
        free(left);
    }
}
