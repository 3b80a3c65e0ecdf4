#include "runtime/json.h"

#include "kernels/require.h"
#include "runtime/files.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct json {
    json_t *root;
    char *name;
};

/* -- reading ---------------------------------------------------------------------------------- */

/* The library recurses for every level and takes some hundred bytes for every value, so both are bounded
 * before it sees the text. */
static enum status check_bounds(const char *name, const char *text, size_t bytes)
{
    int depth = 0, values = 0;
    bool inside = false; /* a string */
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (inside) {
            if (c == '\\')
                i++;
            else if (c == '"')
                inside = false;
        } else if (c == '"') {
            inside = true;
        } else if (c == '{' || c == '[') {
            values++;
            if (++depth > JSON_DEPTH) return fail("%s: JSON nested deeper than %d levels", name, JSON_DEPTH);
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',' && ++values > JSON_VALUES) {
            return fail("%s: JSON with more than %d values", name, JSON_VALUES);
        }
    }
    return STATUS_OK;
}

enum status json_parse(struct json **json, const char *name, const char *text, size_t bytes)
{
    *json = NULL;
    TRY(check_bounds(name, text, bytes));
    json_error_t error;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return fail("%s: not valid JSON at line %d, column %d: %s", name, error.line, error.column,
                    error.text);
    *json = allocate(1, sizeof **json);
    **json = (struct json){root, text_copy(name)};
    return STATUS_OK;
}

enum status json_read(struct json **json, const char *path, size_t limit)
{
    *json = NULL;
    char *text;
    size_t bytes;
    TRY(files_read(&text, &bytes, path, limit));
    enum status status = json_parse(json, path, text, bytes);
    free(text);
    return status;
}

void json_free(struct json *json)
{
    if (!json) return;
    json_decref(json->root);
    free(json->name);
    free(json);
}

const char *json_name(const struct json *json)
{
    return json->name;
}

struct json_value json_root(const struct json *json)
{
    return (struct json_value){json, json->root, ""};
}

static void append(char *path, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void append(char *path, size_t size, const char *format, ...)
{
    size_t used = strlen(path);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path + used, size - used, format, arguments);
    va_end(arguments);
}

static struct json_value child(struct json_value parent, const char *key, json_t *node)
{
    parent.node = node;
    append(parent.path, sizeof parent.path, "%s%s", parent.path[0] ? "." : "", key);
    return parent;
}

struct json_value json_key(struct json_value object, const char *key)
{
    return child(object, key, json_object_get(object.node, key));
}

struct json_value json_item(struct json_value list, int64_t index)
{
    json_t *node = index < 0 ? NULL : json_array_get(list.node, (size_t)index);
    list.node = node;
    append(list.path, sizeof list.path, "[%lld]", (long long)index);
    return list;
}

int64_t json_count(struct json_value value)
{
    return (int64_t)(json_is_object((json_t *)value.node) ? json_object_size(value.node)
                                                          : json_array_size(value.node));
}

bool json_present(struct json_value value)
{
    return value.node && !json_is_null((json_t *)value.node);
}

enum status json_fail(struct json_value value, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return fail("%s: %s %s", value.json->name, value.path[0] ? value.path : "the JSON text", text);
}

static enum status wrong_type(struct json_value value, const char *wanted)
{
    static const char *const names[] = {"an object", "a list", "a text", "an integer",
                                        "a number",  "true",   "false",  "null"};
    if (!value.node) return json_fail(value, "is missing (it must be %s)", wanted);
    return json_fail(value, "must be %s, but it is %s", wanted, names[json_typeof((json_t *)value.node)]);
}

enum status json_as_int(struct json_value value, int64_t minimum, int64_t maximum, int64_t *result)
{
    if (!json_is_integer((json_t *)value.node)) return wrong_type(value, "an integer");
    int64_t number = json_integer_value(value.node);
    if (number < minimum || number > maximum)
        return json_fail(value, "is %lld, but it must be from %lld to %lld", (long long)number,
                         (long long)minimum, (long long)maximum);
    *result = number;
    return STATUS_OK;
}

enum status json_as_number(struct json_value value, double *result)
{
    if (!json_is_number((json_t *)value.node)) return wrong_type(value, "a number");
    *result = json_number_value(value.node);
    return STATUS_OK;
}

enum status json_as_bool(struct json_value value, bool *result)
{
    if (!json_is_boolean((json_t *)value.node)) return wrong_type(value, "true or false");
    *result = json_is_true((json_t *)value.node);
    return STATUS_OK;
}

enum status json_as_text(struct json_value value, const char **result)
{
    if (!json_is_string((json_t *)value.node)) return wrong_type(value, "a text");
    *result = json_string_value(value.node);
    return STATUS_OK;
}

enum status json_as_object(struct json_value value)
{
    return json_is_object((json_t *)value.node) ? STATUS_OK : wrong_type(value, "an object");
}

enum status json_as_list(struct json_value value)
{
    return json_is_array((json_t *)value.node) ? STATUS_OK : wrong_type(value, "a list");
}

enum status json_int_or(struct json_value value, int64_t minimum, int64_t maximum, int64_t otherwise,
                        int64_t *result)
{
    *result = otherwise;
    return json_present(value) ? json_as_int(value, minimum, maximum, result) : STATUS_OK;
}

enum status json_number_or(struct json_value value, double otherwise, double *result)
{
    *result = otherwise;
    return json_present(value) ? json_as_number(value, result) : STATUS_OK;
}

enum status json_bool_or(struct json_value value, bool otherwise, bool *result)
{
    *result = otherwise;
    return json_present(value) ? json_as_bool(value, result) : STATUS_OK;
}

enum status json_only(struct json_value object, const char *const *keys)
{
    TRY(json_as_object(object));
    for (struct json_member member = json_first(object); member.name; member = json_next(member)) {
        const char *const *key = keys;
        while (*key && strcmp(*key, member.name) != 0)
            key++;
        if (!*key) return json_fail(member.value, "is not known here");
    }
    return STATUS_OK;
}

static struct json_member member_at(struct json_value object, void *cursor)
{
    struct json_member member = {.object = object, .cursor = cursor};
    if (!cursor) return member;
    member.name = json_object_iter_key(cursor);
    member.value = child(object, member.name, json_object_iter_value(cursor));
    return member;
}

struct json_member json_first(struct json_value object)
{
    return member_at(object, json_object_iter(object.node));
}

struct json_member json_next(struct json_member member)
{
    return member_at(member.object, json_object_iter_next(member.object.node, member.cursor));
}

/* -- writing ---------------------------------------------------------------------------------- */

struct json *json_new(void)
{
    struct json *json = allocate(1, sizeof *json);
    *json = (struct json){json_object(), text_copy("new document")};
    REQUIRE(json->root, "out of memory for a JSON document");
    return json;
}

static struct json_value put(struct json_value at, const char *key, json_t *node)
{
    REQUIRE(node, "out of memory for a JSON value");
    if (key)
        REQUIRE(json_object_set_new_nocheck(at.node, key, node) == 0, "JSON member %s needs an object", key);
    else
        REQUIRE(json_array_append_new(at.node, node) == 0, "a JSON list was expected");
    return key ? child(at, key, node) : json_item(at, json_count(at) - 1);
}

void json_put_int(struct json_value at, const char *key, int64_t value)
{
    put(at, key, json_integer(value));
}

void json_put_number(struct json_value at, const char *key, double value)
{
    put(at, key, isfinite(value) ? json_real(value) : json_null());
}

void json_put_bool(struct json_value at, const char *key, bool value)
{
    put(at, key, json_boolean(value));
}

struct json_value json_put_object(struct json_value at, const char *key)
{
    return put(at, key, json_object());
}

struct json_value json_put_list(struct json_value at, const char *key)
{
    return put(at, key, json_array());
}

void json_remove(struct json_value object, const char *key)
{
    json_object_del(object.node, key);
}

/* Length of the UTF-8 sequence at `text`, as the library accepts it; 0 if it is none. */
static size_t sequence_length(const unsigned char *text)
{
    size_t length = text[0] < 0x80 ? 1 : text[0] < 0xc2 ? 0 : text[0] < 0xe0 ? 2 : text[0] < 0xf0 ? 3 : 4;
    if (text[0] > 0xf4) return 0;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xc0) != 0x80) return 0; /* a NUL ends the walk here too */
    if (text[0] == 0xe0 && text[1] < 0xa0) return 0;
    if (text[0] == 0xed && text[1] > 0x9f) return 0;
    if (text[0] == 0xf0 && text[1] < 0x90) return 0;
    if (text[0] == 0xf4 && text[1] > 0x8f) return 0;
    return length;
}

void json_put_text(struct json_value at, const char *key, const char *value)
{
    char *clean = allocate((long long)strlen(value) * 3 + 1, 1), *end = clean;
    while (*value) {
        size_t length = sequence_length((const unsigned char *)value);
        memcpy(end, length ? value : "\xef\xbf\xbd", length ? length : 3);
        end += length ? length : 3;
        value += length ? length : 1;
    }
    *end = 0;
    put(at, key, json_string(clean));
    free(clean);
}

/* The shortest decimal that reads back to the same double, and that still reads as a real number. */
static void print_real(FILE *file, double value)
{
    char text[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    fprintf(file, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}

static void print_key(FILE *file, const char *key)
{
    json_t *node = json_string_nocheck(key);
    REQUIRE(node && json_dumpf(node, file, JSON_ENCODE_ANY) == 0, "out of memory for JSON text");
    json_decref(node);
}

static void print_break(FILE *file, int indent, int level)
{
    if (indent) fprintf(file, "\n%*s", indent * level, "");
}

static void print_node(FILE *file, json_t *node, int indent, int level)
{
    if (json_is_object(node) && json_object_size(node)) {
        const char *key, *comma = "";
        json_t *value;
        fputc('{', file);
        json_object_foreach(node, key, value)
        {
            fputs(comma, file);
            print_break(file, indent, level + 1);
            print_key(file, key);
            fputs(": ", file);
            print_node(file, value, indent, level + 1);
            comma = indent ? "," : ", ";
        }
        print_break(file, indent, level);
        fputc('}', file);
    } else if (json_is_array(node) && json_array_size(node)) {
        fputc('[', file);
        for (size_t i = 0; i < json_array_size(node); i++) {
            fputs(i ? indent ? "," : ", " : "", file);
            print_break(file, indent, level + 1);
            print_node(file, json_array_get(node, i), indent, level + 1);
        }
        print_break(file, indent, level);
        fputc(']', file);
    } else if (json_is_real(node)) {
        print_real(file, json_real_value(node));
    } else {
        REQUIRE(json_dumpf(node, file, JSON_ENCODE_ANY) == 0, "out of memory for JSON text");
    }
}

char *json_text(const struct json *json, int indent)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    REQUIRE(file, "out of memory for JSON text");
    print_node(file, json->root, indent, 0);
    if (indent) fputc('\n', file);
    REQUIRE(fclose(file) == 0, "out of memory for JSON text");
    return text;
}
