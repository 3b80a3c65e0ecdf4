#include "launcher/commands.h"
#include "launcher/options.h"
#include "tests/check.h"

#include <math.h>

enum color { RED, GREEN, BLUE };

struct chosen {
    char *file, *name;
    int64_t count;
    uint64_t seed;
    double rate;
    bool quiet, clamp;
    enum color color;
    char *list;
    double open;
};

static const struct option table[] = {
    {"file", OPTION_TEXT, offsetof(struct chosen, file), NULL, 0, 0, NULL, "FILE", "read", true, true},
    {"name", OPTION_TEXT, offsetof(struct chosen, name), "x", 0, 0, NULL, NULL, "name", false, false},
    {"count", OPTION_INTEGER, offsetof(struct chosen, count), "-3", -5, 7, NULL, NULL, "count", false, false},
    {"seed", OPTION_INTEGER, offsetof(struct chosen, seed), "42", 0, 0x1p63, NULL, NULL, "seed", false,
     false},
    {"learning_rate", OPTION_NUMBER, offsetof(struct chosen, rate), "1e-6", 0, 1, NULL, NULL, "rate", false,
     false},
    {"quiet", OPTION_FLAG, offsetof(struct chosen, quiet), "false", 0, 0, NULL, NULL, "quiet", false, false},
    {"clamp", OPTION_FLAG, offsetof(struct chosen, clamp), "true", 0, 0, NULL, NULL, "clamp", false, false},
    {"color", OPTION_CHOICE, offsetof(struct chosen, color), "green", 0, 0, "red|green|blue", NULL, "color",
     false, false},
    {"list", OPTION_LIST, offsetof(struct chosen, list), NULL, 0, 0, NULL,
     "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth", "list",
     false, false},
    {"open", OPTION_NUMBER, offsetof(struct chosen, open), "by color", 1, INFINITY, NULL, NULL, "open", false,
     false},
};

static enum status parse(struct chosen *chosen, const char *line)
{
    static char copy[512];
    char *words[32];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        words[count++] = word;
    return options_parse(table, OPTION_COUNT(table), chosen, count, words);
}

static void test_defaults(void)
{
    struct chosen chosen;
    memset(&chosen, 0x5a, sizeof chosen);
    CHECK(parse(&chosen, "in.h5") == STATUS_OK);
    CHECK(!strcmp(chosen.file, "in.h5") && !strcmp(chosen.name, "x"));
    CHECK(chosen.count == -3 && chosen.seed == 42 && chosen.rate == 1e-6);
    CHECK(!chosen.quiet && chosen.clamp && chosen.color == GREEN);
    CHECK(!chosen.list &&
          chosen.open == 0); /* which another option decides, so that its range does not count */
    options_free(table, OPTION_COUNT(table), &chosen);
    CHECK(!chosen.file && !chosen.name);
}

static void test_values(void)
{
    struct chosen chosen;
    CHECK(parse(&chosen, "--count -5 --learning-rate=5e-7 --quiet in --no-clamp --color blue --name=a=b") ==
          STATUS_OK);
    CHECK(chosen.count == -5 && chosen.rate == 5e-7 && chosen.quiet && !chosen.clamp && chosen.color == BLUE);
    CHECK(!strcmp(chosen.name, "a=b") && !strcmp(chosen.file, "in"));
    options_free(table, OPTION_COUNT(table), &chosen);
    CHECK(parse(&chosen, "in --list first,second --open 1e9") == STATUS_OK);
    CHECK(!strcmp(chosen.list, "first,second") && chosen.open == 1e9);
    char *list = option_text(&table[8], &chosen);
    CHECK(!strcmp(list, "first,second"));
    free(list);
    options_free(table, OPTION_COUNT(table), &chosen);
    CHECK(parse(&chosen, "--quiet false --clamp=off --seed 9223372036854775807 -- --in") == STATUS_OK);
    CHECK(!chosen.quiet && !chosen.clamp && chosen.seed == INT64_MAX && !strcmp(chosen.file, "--in"));
    options_free(table, OPTION_COUNT(table), &chosen);
}

static void test_errors(void)
{
    static const char *const cases[][2] = {
        {"", "file is missing"},
        {"a b", "'b' is one word too many"},
        {"a --learning_rat 1", "unknown option --learning_rat (did you mean --learning_rate?)"},
        {"a --zzzzzz=1", "unknown option --zzzzzz (see --help)"},
        {"a --count", "--count needs a value"},
        {"a --count --quiet", "--count needs a value"},
        {"a --count 12abc", "--count is '12abc', which is not a whole number"},
        {"a --count 1e3", "not a whole number"},
        {"a --count=", "not a whole number"},
        {"a --count -", "not a whole number"},
        {"a --count 8", "--count is 8, but it must be from -5 to 7"},
        {"a --count -6", "from -5 to 7"},
        {"a --seed 9223372036854775808", "too large"},
        {"a --seed -1", "--seed is -1"},
        {"a --learning_rate 1e99", "from 0 to 1"},
        {"a --learning_rate 1e999", "too large"},
        {"a --learning_rate nan", "not a number"},
        {"a --learning_rate inf", "not a number"},
        {"a --learning_rate 0x1p3", "not a number"},
        {"a --learning_rate .", "not a number"},
        {"a --learning_rate=", "not a number"},
        {"a --quiet=maybe", "must be true or false"},
        {"a --open 0.5", "--open is 0.5, but it must be at least 1"},
        {"a --list=", "--list is empty"},
        {"a --color blu", "(did you mean blue?)"},
        {"a --color red|green", "must be one of red|green|blue"},
        {"a --name=", "--name is empty"},
        {"a --count 1 --count 1", "--count is given twice"},
        {"a --quiet --no-quiet", "given twice"},
        {"a --no-count", "unknown option --no-count"},
        {"--file a", "unknown option --file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct chosen chosen;
        status_sentence_set("");
        CHECK(parse(&chosen, cases[i][0]) == STATUS_USAGE);
        CHECK_TEXT(status_sentence(), cases[i][1]);
    }
}

/* Every value comes back from its text, to the bit. */
static void test_text(void)
{
    static const double values[] = {0, 1e-6, 5e-7, 0.1, 1.0 / 3, 0x1p-40, 0.99999999999999989};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct chosen chosen = {.rate = values[i]}, other = {0};
        char *text = option_text(&table[4], &chosen);
        CHECK(option_set(&table[4], &other, text, "rate") == STATUS_OK && other.rate == values[i]);
        free(text);
    }
    struct chosen chosen = {.rate = 1e-6, .color = BLUE};
    char *rate = option_text(&table[4], &chosen), *color = option_text(&table[7], &chosen);
    CHECK(!strcmp(rate, "1e-06") && !strcmp(color, "blue"));
    CHECK(option_text(&table[0], &chosen) == NULL);
    free(rate);
    free(color);
}

static void test_nearest(void)
{
    static const char *const words[] = {"beta", "learning_rate", "per_device_train_batch_size", "seed"};
    static const char *const cases[][2] = {{"bata", "beta"},
                                           {"btea", "beta"},
                                           {"learningrate", "learning_rate"},
                                           {"Learning-Rate", "learning_rate"},
                                           {"per_device_batch_size", "per_device_train_batch_size"},
                                           {"learn", "learning_rate"},
                                           {"xyz", NULL},
                                           {"", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *nearest = nearest_word(cases[i][0], words, 4);
        CHECK(nearest ? cases[i][1] && !strcmp(nearest, cases[i][1]) : !cases[i][1]);
    }
}

static void test_help(void)
{
    char *text;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    options_print(stream, table, OPTION_COUNT(table));
    fclose(stream);
    CHECK_TEXT(text, "  FILE ");
    CHECK_TEXT(text, "read (required)");
    CHECK_TEXT(text, "--learning_rate X");
    CHECK_TEXT(text, "[1e-6]");
    CHECK_TEXT(text, "--clamp true|false");
    CHECK_TEXT(text, "[by color]");
    /* A long choice is broken behind its bars, and nothing of it is lost. */
    CHECK_TEXT(text, "|twelfth|\n      thirteenth\n                                  list\n");
    for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        CHECK(strcspn(line, "\n") <= 100);
    free(text);
}

int main(void)
{
    test_defaults();
    test_values();
    test_errors();
    test_text();
    test_nearest();
    test_help();
    return check_result();
}
