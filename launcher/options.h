/* One table describes the options of a command: it drives parsing, defaults, ranges, checks, help and
 * documentation. The keys of a run file use the same table (launcher/runfile.h).
 *
 * On the command line an option is `--name value` or `--name=value`; dashes and underscores in a name are the
 * same. A flag may stand alone, or take true or false; `--no-name` turns it off. A word without dashes goes
 * to the next positional option; after `--` every word does. */
#ifndef WPO_LAUNCHER_OPTIONS_H
#define WPO_LAUNCHER_OPTIONS_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The kind decides the type of the field. */
enum option_kind {
    OPTION_TEXT,    /* char *, a copy that options_free releases; NULL if not given and without default */
    OPTION_LIST,    /* the same; one value or several with commas between, which the command takes apart */
    OPTION_INTEGER, /* int64_t or uint64_t */
    OPTION_NUMBER,  /* double; never NaN or infinite */
    OPTION_FLAG,    /* bool */
    OPTION_CHOICE,  /* an enum: the index of the word in `choices` */
};

struct option {
    const char *name; /* with underscores */
    enum option_kind kind;
    size_t offset;           /* of the field in the command's struct: offsetof() */
    const char *fallback;    /* the default, as text; NULL: none, the field stays zero; "by other_option":
                              * the command fills it in */
    double minimum, maximum; /* of numbers, inclusive; both 0: no limits but those of the type */
    const char *choices;     /* "none|sampled|greedy", in the order of the enum */
    const char *argument;    /* what help calls the value, "DIR"; NULL: from the kind */
    const char *meaning;     /* one line; NULL hides the option from help */
    bool required;
    bool positional;
};

/* The number of entries of an option table. */
#define OPTION_COUNT(table) ((int64_t)(sizeof(table) / sizeof((table)[0])))

/* Fills `fields` (the command's struct, zeroed or not: every described field is set) from defaults and words.
 * Errors are STATUS_USAGE: an unknown option (with the nearest known one), a value that is missing, malformed
 * or outside its range, an option that is given twice or not at all. After an error nothing needs to be
 * freed. */
enum status options_parse(const struct option *options, int64_t count, void *fields, int argc, char **argv);
/* The same, and says which options were given: given (out) [count]. */
enum status options_parse_given(const struct option *options, int64_t count, void *fields, bool *given,
                                int argc, char **argv);
/* Every described field to its default, or to zero. */
void options_default(const struct option *options, int64_t count, void *fields);
void options_free(const struct option *options, int64_t count, void *fields);

/* Whether the command decides the default by another option. */
bool option_is_decided(const struct option *option);

/* Sets one field from text. `where` opens the sentence of a failure: "--beta", "run.yaml:12: beta". */
enum status option_set(const struct option *option, void *fields, const char *text, const char *where);
/* The value of a field as text that option_set reads back to the same value; to be freed. NULL for a NULL
 * text. */
char *option_text(const struct option *option, const void *fields);

/* The words of a command line, one after the other. */
struct words {
    int argc;
    char **argv;
    int at;
    bool bare; /* "--" has passed: no word is a name any more */
};
struct word {
    const char *text;  /* as it stands */
    bool named;        /* begins with a dash and is not a number */
    char name[96];     /* without dashes in front, with underscores for those inside */
    const char *value; /* what follows '=', or NULL */
};
/* False at the end. */
bool words_next(struct words *words, struct word *word);
/* Finds the value of a named word: after its '=', or the next word, which a flag takes only if it is true or
 * false. */
enum status words_value(struct words *words, struct word *word, bool flag);
/* The option that the word names; for `no_flag` that flag, with the value "false". NULL if there is none. */
const struct option *options_match(const struct option *options, int64_t count, struct word *word);

/* NULL when there is none of that name. Dashes equal underscores; `length` bytes of name count. */
const struct option *options_find(const struct option *options, int64_t count, const char *name,
                                  size_t length);
/* The candidate that is nearest to the word by edit distance, or NULL if none is near enough to be meant. */
const char *nearest_word(const char *word, const char *const *candidates, int64_t count);

/* The table of options for people: name, argument, meaning, default. */
void options_print(FILE *stream, const struct option *options, int64_t count);

#endif
