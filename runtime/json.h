/* JSON in and out. The only file that knows the JSON library is json.c.
 *
 * Reading is strict: an object or a list at the top, no duplicate keys, no NaN or infinity, no NUL inside
 * strings, integers exact in 64 bits, at most JSON_DEPTH levels and JSON_VALUES values, a size cap, nothing
 * after the end. Access goes in two steps, and every complaint names file and key, so that a caller only
 * passes it on:
 *
 *     struct json *json;
 *     TRY(json_read(&json, path, JSON_SMALL));
 *     struct json_value root = json_root(json);
 *     int64_t layers;
 *     enum status status = json_as_int(json_key(root, "num_hidden_layers"), 1, 1024, &layers);
 *     ...
 *     json_free(json);
 */
#ifndef WPO_RUNTIME_JSON_H
#define WPO_RUNTIME_JSON_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

enum { JSON_DEPTH = 16, JSON_VALUES = 1 << 22 };

/* Size caps, bytes. */
enum {
    JSON_SMALL = 1 << 20,   /* config.json and the like */
    JSON_MEDIUM = 64 << 20, /* model.safetensors.index.json */
    JSON_LARGE = 100000000  /* the header of a safetensors file */
};

struct json; /* a document */

/* A value inside a document, passed by value; valid as long as the document. It may stand for a value that is
 * absent: then json_as_*() complains that it is missing. */
struct json_value {
    const struct json *json;
    void *node;    /* NULL: absent */
    char path[96]; /* for messages: "rope_scaling.factor", "files[3].name" */
};

/* -- reading ---------------------------------------------------------------------------------- */

/* Reads a whole regular file of at most `limit` bytes. Release with json_free(). *json is
 * NULL after a failure. */
enum status json_read(struct json **json, const char *path, size_t limit);
/* Parses text; `name` stands for the file in messages. */
enum status json_parse(struct json **json, const char *name, const char *text, size_t bytes);
void json_free(struct json *json); /* NULL is allowed */

const char *json_name(const struct json *json); /* the file's name */
struct json_value json_root(const struct json *json);

/* A member of an object: absent if there is none, or if `object` is no object. */
struct json_value json_key(struct json_value object, const char *key);
/* An element of a list: absent beyond its end. */
struct json_value json_item(struct json_value list, int64_t index);
/* Elements of a list, members of an object, else 0. */
int64_t json_count(struct json_value value);

/* Neither absent nor null. */
bool json_present(struct json_value value);

/* Each fails, naming file and key, if the value is absent or of another type. */
enum status json_as_int(struct json_value value, int64_t minimum, int64_t maximum, int64_t *result);
enum status json_as_number(struct json_value value, double *result); /* integers count; always finite */
enum status json_as_bool(struct json_value value, bool *result);
enum status json_as_text(struct json_value value, const char **result); /* owned by the document */
enum status json_as_object(struct json_value value);
enum status json_as_list(struct json_value value);

/* The same with a default where the key is absent or null. */
enum status json_int_or(struct json_value value, int64_t minimum, int64_t maximum, int64_t otherwise,
                        int64_t *result);
enum status json_number_or(struct json_value value, double otherwise, double *result);
enum status json_bool_or(struct json_value value, bool otherwise, bool *result);

/* Fails if the object has a member that is not in the NULL-terminated list. */
enum status json_only(struct json_value object, const char *const *keys);

/* Walks an object's members in the order of the file:
 *     for (struct json_member m = json_first(object); m.name; m = json_next(m)) ... m.name, m.value */
struct json_member {
    const char *name; /* NULL: past the last; owned by the document */
    struct json_value value;
    struct json_value object;
    void *cursor;
};
struct json_member json_first(struct json_value object);
struct json_member json_next(struct json_member member);

/* A complaint about a value that has the right type: "<file>: <key> <what is wrong>". */
enum status json_fail(struct json_value value, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* -- writing ---------------------------------------------------------------------------------- */

/* A new document that holds an empty object, to be filled through json_root(). A document that was read may
 * be changed in the same way. */
struct json *json_new(void);

/* `at` is an object: sets the member `key` (in its old place if there is one, else at the end). `at` is a
 * list: `key` is NULL and the value is appended. Text must be UTF-8: other bytes become U+FFFD. A number that
 * is not finite becomes null, since JSON has none; it reads back to the same double otherwise. */
void json_put_int(struct json_value at, const char *key, int64_t value);
void json_put_number(struct json_value at, const char *key, double value);
void json_put_bool(struct json_value at, const char *key, bool value);
void json_put_text(struct json_value at, const char *key, const char *value);
struct json_value json_put_object(struct json_value at, const char *key);
struct json_value json_put_list(struct json_value at, const char *key);
void json_remove(struct json_value object, const char *key);

/* The document as text, to be freed. indent 0: one line without a newline, for JSON lines; else that many
 * spaces a level, and a newline at the end. Members keep their order. */
char *json_text(const struct json *json, int indent);

#endif
