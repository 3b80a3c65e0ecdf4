/* The keys and values of a YAML file, as text. The only file that knows the YAML library is keyfile.c.
 *
 * The file is one mapping of keys to single values or lists of them. What a run file has no use for is
 * refused with file and line: several documents, anchors and aliases (so that no small text unfolds into a
 * large one), tags, keys that are no words. */
#ifndef WPO_LAUNCHER_KEYFILE_H
#define WPO_LAUNCHER_KEYFILE_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

enum keyfile_shape {
    KEYFILE_ONE,    /* one value, or a list of one */
    KEYFILE_LIST,   /* a list of several single values: value holds them with commas between */
    KEYFILE_NESTED, /* a mapping, or a list of more than single values: value is NULL */
};

struct keyfile_entry {
    char *key;
    char *value; /* NULL: null, an empty list or mapping */
    enum keyfile_shape shape;
    int64_t line;
};

struct keyfile {
    struct keyfile_entry *list;
    int64_t count, capacity;
};

/* Local. `name` opens every complaint: "run.yaml:12: ...". Errors are STATUS_USAGE; nothing is to be freed
 * then. */
enum status keyfile_read(struct keyfile *file, const char *name, const char *text, size_t bytes);
void keyfile_free(struct keyfile *file);

/* Text as a double-quoted YAML scalar that reads back to the same bytes; to be freed. NULL if it is not
 * UTF-8, or holds control characters. */
char *keyfile_quoted(const char *text);

#endif
