#include "launcher/options.h"

#include "kernels/require.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* -- one value -------------------------------------------------------------------------------- */

_Static_assert(sizeof(enum option_kind) == sizeof(int), "an enum is stored as an int");

static void *field_of(const struct option *option, void *fields)
{
    return (char *)fields + option->offset;
}

static bool limited(const struct option *option)
{
    return option->minimum != 0 || option->maximum != 0;
}

/* Which end of a number's range is open, as its meaning says: ", above 0", ", below 0.5", or "". */
static char *open_end(const struct option *option)
{
    const char *end = option->kind == OPTION_NUMBER ? strstr(option->meaning, "; above ") : NULL;
    if (!end && option->kind == OPTION_NUMBER) end = strstr(option->meaning, "; below ");
    return end ? text_format(", %.*s", (int)strcspn(end + 2, ","), end + 2) : text_copy("");
}

static enum status check_range(const struct option *option, double value, const char *text, const char *where)
{
    if (!limited(option) || (value >= option->minimum && value <= option->maximum)) return STATUS_OK;
    char *range = isinf(option->maximum)
                      ? text_format("at least %.10g", option->minimum)
                      : text_format("from %.10g to %.10g", option->minimum, option->maximum);
    char *open = open_end(option);
    enum status status = fail_usage("%s is %.60s, but it must be %s%s", where, text, range, open);
    free(range);
    free(open);
    return status;
}

static enum status integer_set(const struct option *option, void *field, const char *text, const char *where)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (!*digits || digits[strspn(digits, "0123456789")]) {
        return fail_usage("%s is '%.60s', which is not a whole number", where, text);
    }
    errno = 0;
    int64_t value = strtoll(text, NULL, 10);
    if (errno) return fail_usage("%s is %.60s, which is too large", where, text);
    TRY(check_range(option, (double)value, text, where));
    memcpy(field, &value, sizeof value);
    return STATUS_OK;
}

/* Decimal numbers only: "5e-7" as well as "1e-6" (which YAML 1.1 takes for text), but not "0x1p3", "inf" or
 * "1_000". */
static enum status number_set(const struct option *option, void *field, const char *text, const char *where)
{
    char *end = NULL;
    double value = NAN;
    if (*text && !text[strspn(text, "+-.0123456789eE")]) value = strtod(text, &end);
    if (!end || *end || end == text) return fail_usage("%s is '%.60s', which is not a number", where, text);
    if (!isfinite(value)) return fail_usage("%s is %.60s, which is too large", where, text);
    TRY(check_range(option, value, text, where));
    memcpy(field, &value, sizeof value);
    return STATUS_OK;
}

/* 1 or 0; -1 for any other word. */
static int truth(const char *text)
{
    static const char *const words[2][4] = {{"false", "no", "off", "0"}, {"true", "yes", "on", "1"}};
    for (int value = 0; value < 2; value++) {
        for (int i = 0; i < 4; i++) {
            if (!strcasecmp(text, words[value][i])) return value;
        }
    }
    return -1;
}

/* The index of the word in "none|sampled|greedy", or -1. */
static int choice_index(const char *choices, const char *text)
{
    size_t length = strlen(text);
    int index = 0;
    for (const char *at = choices; at; index++) {
        const char *bar = strchr(at, '|');
        size_t span = bar ? (size_t)(bar - at) : strlen(at);
        if (span == length && !strncmp(at, text, span)) return index;
        at = bar ? bar + 1 : NULL;
    }
    return -1;
}

static char *choice_word(const char *choices, int index)
{
    const char *at = choices;
    for (; index > 0 && at; index--) {
        at = strchr(at, '|');
        if (at) at++;
    }
    return at ? text_format("%.*s", (int)strcspn(at, "|"), at) : text_copy("?");
}

static enum status choice_fail(const struct option *option, const char *text, const char *where)
{
    char *words[32] = {0};
    int64_t count = 0;
    for (const char *at = option->choices; at && count < 32; count++) {
        words[count] = text_format("%.*s", (int)strcspn(at, "|"), at);
        at = strchr(at, '|');
        if (at) at++;
    }
    const char *nearest = nearest_word(text, (const char *const *)words, count);
    enum status status =
        fail_usage("%s is '%.60s', but it must be one of %s%s%s%s", where, text, option->choices,
                   nearest ? " (did you mean " : "", nearest ? nearest : "", nearest ? "?)" : "");
    for (int64_t i = 0; i < count; i++)
        free(words[i]);
    return status;
}

static enum status text_set(const struct option *option, void *field, const char *text, const char *where)
{
    if (!*text) return fail_usage("%s is empty", where);
    if (option->choices && choice_index(option->choices, text) < 0) return choice_fail(option, text, where);
    char *copy = text_copy(text), *old;
    memcpy(&old, field, sizeof old);
    free(old);
    memcpy(field, &copy, sizeof copy);
    return STATUS_OK;
}

enum status option_set(const struct option *option, void *fields, const char *text, const char *where)
{
    void *field = field_of(option, fields);
    switch (option->kind) {
    case OPTION_TEXT:
    case OPTION_LIST:
        return text_set(option, field, text, where);
    case OPTION_INTEGER:
        return integer_set(option, field, text, where);
    case OPTION_NUMBER:
        return number_set(option, field, text, where);
    case OPTION_FLAG: {
        int value = truth(text);
        if (value < 0) return fail_usage("%s is '%.60s', but it must be true or false", where, text);
        *(bool *)field = value == 1;
        return STATUS_OK;
    }
    case OPTION_CHOICE: {
        int index = choice_index(option->choices, text);
        if (index < 0) return choice_fail(option, text, where);
        memcpy(field, &index, sizeof index);
        return STATUS_OK;
    }
    }
    return STATUS_OK;
}

/* The shortest decimal text that reads back as the same double. */
static char *number_text(double value)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    return text_copy(text);
}

char *option_text(const struct option *option, const void *fields)
{
    const void *field = (const char *)fields + option->offset;
    switch (option->kind) {
    case OPTION_TEXT:
    case OPTION_LIST: {
        char *text;
        memcpy(&text, field, sizeof text);
        return text ? text_copy(text) : NULL;
    }
    case OPTION_INTEGER: {
        int64_t value;
        memcpy(&value, field, sizeof value);
        return text_format("%" PRId64, value);
    }
    case OPTION_NUMBER: {
        double value;
        memcpy(&value, field, sizeof value);
        return number_text(value);
    }
    case OPTION_FLAG:
        return text_copy(*(const bool *)field ? "true" : "false");
    case OPTION_CHOICE: {
        int index;
        memcpy(&index, field, sizeof index);
        return choice_word(option->choices, index);
    }
    }
    return NULL;
}

/* -- defaults --------------------------------------------------------------------------------- */

static size_t field_bytes(enum option_kind kind)
{
    switch (kind) {
    case OPTION_TEXT:
    case OPTION_LIST:
        return sizeof(char *);
    case OPTION_INTEGER:
        return sizeof(int64_t);
    case OPTION_NUMBER:
        return sizeof(double);
    case OPTION_FLAG:
        return sizeof(bool);
    case OPTION_CHOICE:
        return sizeof(int);
    }
    return 0;
}

bool option_is_decided(const struct option *option)
{
    return option->fallback && !strncmp(option->fallback, "by ", 3);
}

void options_default(const struct option *options, int64_t count, void *fields)
{
    for (int64_t i = 0; i < count; i++)
        memset(field_of(&options[i], fields), 0, field_bytes(options[i].kind));
    for (int64_t i = 0; i < count; i++) {
        const char *fallback = option_is_decided(&options[i]) ? NULL : options[i].fallback;
        REQUIRE(!fallback || option_set(&options[i], fields, fallback, options[i].name) == STATUS_OK,
                "the default of an option is wrong: %s", status_sentence());
    }
}

void options_free(const struct option *options, int64_t count, void *fields)
{
    for (int64_t i = 0; i < count; i++) {
        if (options[i].kind != OPTION_TEXT && options[i].kind != OPTION_LIST) continue;
        char *text, *none = NULL;
        memcpy(&text, field_of(&options[i], fields), sizeof text);
        free(text);
        memcpy(field_of(&options[i], fields), &none, sizeof none);
    }
}

/* -- words of the command line ---------------------------------------------------------------- */

bool words_next(struct words *words, struct word *word)
{
    if (words->at >= words->argc) return false;
    const char *text = words->argv[words->at++];
    *word = (struct word){.text = text};
    if (!words->bare && !strcmp(text, "--")) {
        words->bare = true;
        return words_next(words, word);
    }
    if (words->bare || text[0] != '-' || text[1] == 0 || isdigit((unsigned char)text[1])) return true;
    word->named = true;
    text += text[1] == '-' ? 2 : 1;
    size_t length = strcspn(text, "=");
    if (text[length] == '=') word->value = text + length + 1;
    snprintf(word->name, sizeof word->name, "%.*s", (int)length, text);
    for (char *c = word->name; *c; c++) {
        if (*c == '-') *c = '_';
    }
    return true;
}

enum status words_value(struct words *words, struct word *word, bool flag)
{
    if (word->value) return STATUS_OK;
    const char *following = words->at < words->argc ? words->argv[words->at] : NULL;
    if (flag) {
        bool taken = following && truth(following) >= 0;
        word->value = taken ? following : "true";
        words->at += taken;
        return STATUS_OK;
    }
    if (!following || !strncmp(following, "--", 2)) return fail_usage("%s needs a value", word->text);
    word->value = following;
    words->at++;
    return STATUS_OK;
}

const struct option *options_find(const struct option *options, int64_t count, const char *name,
                                  size_t length)
{
    for (int64_t i = 0; i < count; i++) {
        const char *known = options[i].name;
        size_t at = 0;
        while (at < length && (name[at] == '-' ? '_' : name[at]) == known[at] && known[at])
            at++;
        if (at == length && !known[at]) return &options[i];
    }
    return NULL;
}

static const struct option *find_flag_off(const struct option *options, int64_t count, const char *name)
{
    if (strncmp(name, "no_", 3)) return NULL;
    const struct option *option = options_find(options, count, name + 3, strlen(name + 3));
    return option && option->kind == OPTION_FLAG ? option : NULL;
}

const struct option *options_match(const struct option *options, int64_t count, struct word *word)
{
    const struct option *option = options_find(options, count, word->name, strlen(word->name));
    if (option) return option;
    option = find_flag_off(options, count, word->name);
    if (option && !word->value) {
        word->value = "false";
        return option;
    }
    return NULL;
}

static enum status unknown(const struct option *options, int64_t count, const struct word *word)
{
    const char **names = allocate(count + 1, sizeof *names);
    int64_t known = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!options[i].positional) names[known++] = options[i].name;
    }
    const char *nearest = nearest_word(word->name, names, known);
    free(names);
    int shown = (int)strcspn(word->text, "=");
    if (nearest) return fail_usage("unknown option %.*s (did you mean --%s?)", shown, word->text, nearest);
    return fail_usage("unknown option %.*s (see --help)", shown, word->text);
}

static const struct option *next_positional(const struct option *options, int64_t count, const bool *given)
{
    for (int64_t i = 0; i < count; i++) {
        if (options[i].positional && !given[i]) return &options[i];
    }
    return NULL;
}

static enum status set_word(const struct option *option, void *fields, bool *given, const struct word *word)
{
    char where[160];
    snprintf(where, sizeof where, "%s%s", option->positional ? "" : "--", option->name);
    if (*given) return fail_usage("%s is given twice", where);
    *given = true;
    return option_set(option, fields, word->value, where);
}

static enum status parse(const struct option *options, int64_t count, void *fields, bool *given,
                         struct words words)
{
    struct word word;
    while (words_next(&words, &word)) {
        const struct option *option;
        if (word.named) {
            option = options_match(options, count, &word);
            if (!option || option->positional) return unknown(options, count, &word);
            TRY(words_value(&words, &word, option->kind == OPTION_FLAG));
        } else {
            option = next_positional(options, count, given);
            if (!option) return fail_usage("'%.200s' is one word too many (see --help)", word.text);
            word.value = word.text;
        }
        TRY(set_word(option, fields, &given[option - options], &word));
    }
    for (int64_t i = 0; i < count; i++) {
        if (!options[i].required || given[i]) continue;
        return fail_usage("%s%s is missing (see --help)", options[i].positional ? "" : "--", options[i].name);
    }
    return STATUS_OK;
}

enum status options_parse_given(const struct option *options, int64_t count, void *fields, bool *given,
                                int argc, char **argv)
{
    options_default(options, count, fields);
    memset(given, 0, (size_t)count * sizeof *given);
    enum status status = parse(options, count, fields, given, (struct words){argc, argv, 0, false});
    if (status != STATUS_OK) options_free(options, count, fields);
    return status;
}

enum status options_parse(const struct option *options, int64_t count, void *fields, int argc, char **argv)
{
    bool *given = allocate(count, sizeof *given);
    enum status status = options_parse_given(options, count, fields, given, argc, argv);
    free(given);
    return status;
}
