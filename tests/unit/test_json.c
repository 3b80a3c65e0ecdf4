/* JSON: what is refused, and that what is written reads back. */
#include "runtime/json.h"
#include "scratch.h"
#include "tests/check.h"

#include <math.h>

static void refuse(const char *text, const char *part)
{
    struct json *json;
    CHECK(json_parse(&json, "some.json", text, strlen(text)) == STATUS_BAD);
    CHECK(!json);
    CHECK_TEXT(status_sentence(), "some.json");
    CHECK_TEXT(status_sentence(), part);
}

static void check_refusals(void)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "not valid JSON"},
        {"{\"a\": 1", "line 1"},
        {"{\"a\": 1} x", "end of file expected"},
        {"{\"a\": 1, \"b\": 2, \"a\": 3}", "duplicate"},
        {"{\"a\": NaN}", "not valid JSON"},
        {"{\"a\": Infinity}", "not valid JSON"},
        {"{\"a\": -Infinity}", "not valid JSON"},
        {"{\"a\": 1e999}", "overflow"},
        {"{\"a\": 9223372036854775808}", "too big integer"},
        {"{\"a\": 01}", "not valid JSON"},
        {"{\"a\": \"\\u0000\"}", "not allowed"},
        {"{\"a\": \"\xff\"}", "not valid JSON"},
        {"{\"a\": \"\xed\xa0\x80\"}", "not valid JSON"},
        {"{\"a\": '1'}", "not valid JSON"},
        {"\"text\"", "not valid JSON"},
        {"[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", "deeper than 16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(cases[i].text, cases[i].part);

    size_t deep = 1 << 20;
    char *brackets = allocate((long long)deep + 1, 1);
    memset(brackets, '[', deep);
    refuse(brackets, "deeper than 16");
    free(brackets);

    /* Two bytes a value: more values than are accepted, in less text than is accepted. */
    size_t many = 2 * ((size_t)JSON_VALUES + 3);
    char *list = allocate((long long)many + 2, 1);
    for (size_t i = 0; i < many; i += 2)
        memcpy(list + i, i ? ",1" : "[1", 2);
    list[many] = ']';
    refuse(list, "values");
    free(list);

    struct json *json;
    const char zero[] = "{\"a\": 1}\0{}";
    CHECK(json_parse(&json, "zero", zero, sizeof zero - 1) == STATUS_BAD);
}

static void check_files(void)
{
    struct json *json;
    CHECK(json_read(&json, scratch_path("absent.json"), JSON_SMALL) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "absent.json");
    CHECK(json_read(&json, scratch_folder, JSON_SMALL) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), scratch_folder);
    CHECK(json_read(&json, "/dev/zero", JSON_SMALL) == STATUS_BAD);
    const char *path = scratch_text("ten.json", "{\"a\": 12}\n");
    CHECK(json_read(&json, path, 9) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "ten.json");
    CHECK(json_read(&json, path, 10) == STATUS_OK);
    json_free(json);
    json_free(NULL);
}

static const char sample[] =
    "{\"big\": 9007199254740993, \"low\": -9223372036854775808, \"pi\": 3.25, \"yes\": true,"
    " \"none\": null, \"text\": \"caf\\u00e9\", \"list\": [1, {\"in\": 7}], \"empty\": {}}";

static void check_getters(void)
{
    struct json *json;
    CHECK(json_parse(&json, "s.json", sample, strlen(sample)) == STATUS_OK);
    if (!json) return;
    struct json_value root = json_root(json);
    int64_t whole = 0;
    double number = 0;
    bool yes = false;
    const char *text = "";
    CHECK(json_as_int(json_key(root, "big"), 0, INT64_MAX, &whole) == STATUS_OK && whole == 9007199254740993);
    CHECK(json_as_int(json_key(root, "low"), INT64_MIN, 0, &whole) == STATUS_OK && whole == INT64_MIN);
    CHECK(json_as_number(json_key(root, "pi"), &number) == STATUS_OK && number == 3.25);
    CHECK(json_as_number(json_item(json_key(root, "list"), 0), &number) == STATUS_OK && number == 1);
    CHECK(json_as_bool(json_key(root, "yes"), &yes) == STATUS_OK && yes);
    CHECK(json_as_text(json_key(root, "text"), &text) == STATUS_OK && !strcmp(text, "caf\xc3\xa9"));
    CHECK(json_as_int(json_key(json_item(json_key(root, "list"), 1), "in"), 7, 7, &whole) == STATUS_OK &&
          whole == 7);
    CHECK(json_int_or(json_key(root, "none"), 0, 9, 5, &whole) == STATUS_OK && whole == 5);
    CHECK(json_int_or(json_key(root, "absent"), 0, 9, 6, &whole) == STATUS_OK && whole == 6);
    CHECK(json_number_or(json_key(root, "absent"), 0.5, &number) == STATUS_OK && number == 0.5);
    CHECK(json_bool_or(json_key(root, "absent"), true, &yes) == STATUS_OK && yes);
    CHECK(!json_present(json_key(root, "none")) && json_key(root, "none").node &&
          !json_key(root, "absent").node);
    CHECK(json_count(root) == 8 && json_count(json_key(root, "list")) == 2 &&
          json_count(json_key(root, "pi")) == 0);

    const char *names[] = {"big", "low", "pi", "yes", "none", "text", "list", "empty", NULL};
    int64_t at = 0;
    for (struct json_member member = json_first(root); member.name; member = json_next(member))
        CHECK(at < 8 && !strcmp(member.name, names[at++]));
    CHECK(at == 8 && json_only(root, names) == STATUS_OK);
    CHECK(!json_first(json_key(root, "empty")).name && !json_first(json_key(root, "absent")).name);

    CHECK(json_as_int(json_key(root, "absent"), 0, 1, &whole) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "s.json: absent is missing (it must be an integer)");
    CHECK(json_as_int(json_key(root, "pi"), 0, 9, &whole) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "s.json: pi must be an integer, but it is a number");
    CHECK(json_as_int(json_key(root, "big"), 0, 9, &whole) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "s.json: big is 9007199254740993, but it must be from 0 to 9");
    CHECK(json_as_text(json_key(json_item(json_key(root, "list"), 1), "in"), &text) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "s.json: list[1].in must be a text");
    CHECK(json_as_bool(json_key(root, "none"), &yes) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "null");
    CHECK(json_as_object(json_key(root, "list")) == STATUS_BAD && json_as_list(root) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "the JSON text must be a list");
    names[5] = "other";
    CHECK(json_only(root, names) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "s.json: text is not known here");
    json_free(json);
}

/* A key may be longer than the room for messages. */
static void check_long_key(void)
{
    char text[4096], key[2048];
    memset(key, 'k', sizeof key - 1);
    key[sizeof key - 1] = 0;
    snprintf(text, sizeof text, "{\"%s\": {\"%.1000s\": [true]}}", key, key);
    struct json *json;
    CHECK(json_parse(&json, "long", text, strlen(text)) == STATUS_OK);
    if (!json) return;
    int64_t whole;
    struct json_value inner = json_first(json_first(json_root(json)).value).value;
    CHECK(json_as_int(json_item(inner, 0), 0, 1, &whole) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "kkkk");
    json_free(json);
}

static void check_writer(void)
{
    struct json *json = json_new();
    struct json_value root = json_root(json);
    json_put_int(root, "step", 9007199254740993);
    json_put_number(root, "rate", 1e-5);
    json_put_number(root, "whole", 500000);
    json_put_number(root, "lost", (double)NAN);
    json_put_bool(root, "on", true);
    json_put_text(root, "bad\"key", "a\xff\n\xc3\xa9\xe2\x82");
    struct json_value list = json_put_list(root, "list");
    json_put_int(list, NULL, 1);
    json_put_text(json_put_object(list, NULL), "in", "x");
    json_put_list(root, "none");
    json_put_int(root, "step", 4);
    json_put_int(root, "gone", 1);
    json_remove(root, "gone");
    json_remove(root, "never");
    char *text = json_text(json, 0);
    const char *wanted = "{\"step\": 4, \"rate\": 1e-05, \"whole\": 500000.0, \"lost\": null, \"on\": true, "
                         "\"bad\\\"key\": \"a\xef\xbf\xbd\\n\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\", "
                         "\"list\": [1, {\"in\": \"x\"}], \"none\": []}";
    CHECK_TEXT(text, wanted);
    CHECK(strlen(text) == strlen(wanted));
    char *indented = json_text(json, 2);
    CHECK_TEXT(indented, "{\n  \"step\": 4,\n");
    CHECK_TEXT(indented,
               "  \"list\": [\n    1,\n    {\n      \"in\": \"x\"\n    }\n  ],\n  \"none\": []\n}\n");
    json_free(json);

    CHECK(json_parse(&json, "again", indented, strlen(indented)) == STATUS_OK);
    char *again = json ? json_text(json, 0) : text_copy("");
    CHECK(!strcmp(again, text));
    json_free(json);
    free(again);
    free(indented);
    free(text);
}

/* Doubles survive the trip, bit for bit. */
static void check_doubles(void)
{
    unsigned long long state = 1;
    struct json *json = json_new();
    struct json_value list = json_put_list(json_root(json), "x");
    double values[65];
    for (int i = 0; i < 65; i++) {
        values[i] = ldexp(check_uniform(&state), 16 * (i - 32));
        json_put_number(list, NULL, values[i]);
    }
    char *text = json_text(json, 0);
    json_free(json);
    CHECK(json_parse(&json, "doubles", text, strlen(text)) == STATUS_OK);
    for (int i = 0; json && i < 65; i++) {
        double back = 0;
        CHECK(json_as_number(json_item(json_key(json_root(json), "x"), i), &back) == STATUS_OK);
        CHECK(back == values[i]);
    }
    json_free(json);
    free(text);
}

int main(void)
{
    scratch_begin();
    check_refusals();
    check_files();
    check_getters();
    check_long_key();
    check_writer();
    check_doubles();
    return check_result();
}
