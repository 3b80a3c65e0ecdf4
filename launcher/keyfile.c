#include "launcher/keyfile.h"

#include "kernels/require.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { DEEPEST = 8, ENTRIES = 1000 };

/* The parser hands out one event at a time; the reader owns the latest. */
struct reader {
    yaml_parser_t parser;
    yaml_event_t event;
    const char *name;
    const char *text;
    size_t bytes;
};

static int64_t line_of(const struct reader *reader)
{
    return (int64_t)reader->event.start_mark.line + 1;
}

/* A tab in that line is the usual reason for what the library says about its characters. */
static bool line_has_tab(const struct reader *reader, size_t line)
{
    const char *at = reader->text, *end = reader->text + reader->bytes;
    for (; line && at; line--) {
        at = memchr(at, '\n', (size_t)(end - at));
        if (at) at++;
    }
    if (!at) return false;
    const char *stop = memchr(at, '\n', (size_t)(end - at));
    return memchr(at, '\t', (size_t)((stop ? stop : end) - at)) != NULL;
}

static enum status library_fail(const struct reader *reader)
{
    const yaml_parser_t *parser = &reader->parser;
    const char *problem = parser->problem ? parser->problem : "unknown problem";
    if (parser->error == YAML_READER_ERROR) {
        int64_t line = 1;
        for (size_t i = 0; i < parser->problem_offset && i < reader->bytes; i++)
            line += reader->text[i] == '\n';
        return fail_usage("%s:%lld: not UTF-8 text (%s)", reader->name, (long long)line, problem);
    }
    REQUIRE(parser->error != YAML_MEMORY_ERROR, "out of memory while reading %s", reader->name);
    size_t line = parser->problem_mark.line;
    const char *hint = line_has_tab(reader, line)
                           ? "; indent with spaces, not with tabs"
                           : "; write one 'key: value' a line, with a space after the colon";
    return fail_usage("%s:%zu: not valid YAML: %s%s", reader->name, line + 1, problem, hint);
}

static bool marked(const yaml_event_t *event)
{
    switch (event->type) {
    case YAML_ALIAS_EVENT:
        return true;
    case YAML_SCALAR_EVENT:
        return event->data.scalar.anchor || event->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT:
        return event->data.sequence_start.anchor || event->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT:
        return event->data.mapping_start.anchor || event->data.mapping_start.tag;
    default:
        return false;
    }
}

static enum status next(struct reader *reader)
{
    yaml_event_delete(&reader->event);
    if (!yaml_parser_parse(&reader->parser, &reader->event)) return library_fail(reader);
    if (marked(&reader->event)) {
        return fail_usage(
            "%s:%lld: anchors (&), aliases (*) and tags (!) have no place in a run file; put text that "
            "begins with such a character in quotes",
            reader->name, (long long)line_of(reader));
    }
    return STATUS_OK;
}

static bool is_null(const yaml_event_t *event)
{
    if (event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (!strcmp((const char *)event->data.scalar.value, words[i])) return true;
    }
    return false;
}

static enum status scalar(struct reader *reader, const char *key, char **value)
{
    const yaml_event_t *event = &reader->event;
    if (strlen((const char *)event->data.scalar.value) != event->data.scalar.length) {
        return fail_usage("%s:%lld: %.60s holds a NUL character", reader->name, (long long)line_of(reader),
                          key);
    }
    *value = is_null(event) ? NULL : text_copy((const char *)event->data.scalar.value);
    return STATUS_OK;
}

struct items {
    FILE *stream; /* with commas between; nothing for null */
    int64_t count;
    bool known; /* one is not null */
};

/* A list or mapping, up to its end. */
static enum status nested_items(struct reader *reader, struct keyfile_entry *entry, struct items *items)
{
    bool list = reader->event.type == YAML_SEQUENCE_START_EVENT;
    char *value;
    for (int depth = 1; depth > 0;) {
        TRY(next(reader));
        switch (reader->event.type) {
        case YAML_SEQUENCE_START_EVENT:
        case YAML_MAPPING_START_EVENT:
            depth++;
            entry->shape = KEYFILE_NESTED;
            break;
        case YAML_SEQUENCE_END_EVENT:
        case YAML_MAPPING_END_EVENT:
            depth--;
            break;
        case YAML_SCALAR_EVENT:
            if (!list) entry->shape = KEYFILE_NESTED;
            TRY(scalar(reader, entry->key, &value));
            fprintf(items->stream, "%s%s", items->count++ ? "," : "", value ? value : "");
            items->known |= value != NULL;
            free(value);
            break;
        default:
            break;
        }
        if (depth > DEEPEST) {
            return fail_usage("%s:%lld: %.60s is nested too deeply; a key takes one value", reader->name,
                              (long long)line_of(reader), entry->key);
        }
    }
    return STATUS_OK;
}

static enum status nested(struct reader *reader, struct keyfile_entry *entry)
{
    char *text = NULL;
    size_t bytes;
    struct items items = {.stream = open_memstream(&text, &bytes)};
    REQUIRE(items.stream, "out of memory while reading %s", reader->name);
    enum status status = nested_items(reader, entry, &items);
    REQUIRE(fclose(items.stream) == 0, "out of memory while reading %s", reader->name);
    if (entry->shape == KEYFILE_ONE && items.count > 1) entry->shape = KEYFILE_LIST;
    if (status == STATUS_OK && entry->shape != KEYFILE_NESTED && items.known) {
        entry->value = text;
    } else {
        free(text);
    }
    return status;
}

static struct keyfile_entry *entry_new(struct keyfile *file)
{
    if (file->count == file->capacity) {
        file->capacity = file->capacity ? 2 * file->capacity : 64;
        struct keyfile_entry *list = allocate(file->capacity, sizeof *list);
        if (file->count) memcpy(list, file->list, (size_t)file->count * sizeof *list);
        free(file->list);
        file->list = list;
    }
    return &file->list[file->count++];
}

static enum status entry_read(struct reader *reader, struct keyfile *file)
{
    long long line = line_of(reader);
    if (reader->event.type != YAML_SCALAR_EVENT) {
        return fail_usage("%s:%lld: a key is expected here, not a list or mapping", reader->name, line);
    }
    const char *text = (const char *)reader->event.data.scalar.value;
    size_t length = reader->event.data.scalar.length;
    if (length == 0 || length > 95 || strlen(text) != length || strcspn(text, " \t\r\n") != length) {
        return fail_usage(
            "%s:%lld: '%.40s' is not a key; write one 'key: value' a line, with a space after the colon",
            reader->name, line, text);
    }
    if (file->count == ENTRIES) return fail_usage("%s:%lld: more than %d keys", reader->name, line, ENTRIES);
    struct keyfile_entry *entry = entry_new(file);
    entry->key = text_copy(text);
    entry->line = line;
    TRY(next(reader));
    if (reader->event.type == YAML_SCALAR_EVENT) return scalar(reader, entry->key, &entry->value);
    return nested(reader, entry);
}

static enum status read_all(struct reader *reader, struct keyfile *file)
{
    TRY(next(reader)); /* stream start */
    TRY(next(reader));
    if (reader->event.type == YAML_STREAM_END_EVENT) return fail_usage("%s: the file is empty", reader->name);
    TRY(next(reader)); /* after document start */
    if (reader->event.type != YAML_MAPPING_START_EVENT) {
        return fail_usage("%s:%lld: 'key: value' lines are expected; a space must follow the colon",
                          reader->name, (long long)line_of(reader));
    }
    TRY(next(reader));
    while (reader->event.type != YAML_MAPPING_END_EVENT) {
        TRY(entry_read(reader, file));
        TRY(next(reader));
    }
    TRY(next(reader)); /* document end */
    TRY(next(reader));
    if (reader->event.type != YAML_STREAM_END_EVENT) {
        return fail_usage("%s:%lld: a second document begins here; a run file is one", reader->name,
                          (long long)line_of(reader));
    }
    return STATUS_OK;
}

enum status keyfile_read(struct keyfile *file, const char *name, const char *text, size_t bytes)
{
    *file = (struct keyfile){0};
    struct reader reader = {.name = name, .text = text, .bytes = bytes};
    REQUIRE(yaml_parser_initialize(&reader.parser), "out of memory while reading %s", name);
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, bytes);
    enum status status = read_all(&reader, file);
    yaml_event_delete(&reader.event);
    yaml_parser_delete(&reader.parser);
    if (status != STATUS_OK) keyfile_free(file);
    return status;
}

void keyfile_free(struct keyfile *file)
{
    for (int64_t i = 0; i < file->count; i++) {
        free(file->list[i].key);
        free(file->list[i].value);
    }
    free(file->list);
    *file = (struct keyfile){0};
}

/* The next code point of UTF-8 text, or -1 if the bytes are not one in its shortest form. */
static int32_t decode(const unsigned char **at)
{
    const unsigned char *p = *at;
    static const int32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    int length = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (!length) return -1;
    int32_t code = length == 1 ? p[0] : p[0] & (0x7f >> length);
    for (int i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80) return -1;
        code = code << 6 | (p[i] & 0x3f);
    }
    if (code < smallest[length] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return -1;
    *at = p + length;
    return code;
}

char *keyfile_quoted(const char *text)
{
    char *result = allocate((long long)strlen(text) * 4 + 3, 1), *out = result;
    *out++ = '"';
    for (const unsigned char *at = (const unsigned char *)text, *start = at; *at; start = at) {
        int32_t code = decode(&at);
        if (code < 0x20 || code == 0x7f || (code >= 0x80 && code < 0xa0)) {
            free(result);
            return NULL;
        }
        /* What YAML takes for a line break, a byte order mark or no character is escaped. */
        if (code == 0x2028 || code == 0x2029 || code == 0xfeff || (code & 0xfffe) == 0xfffe) {
            out += sprintf(out, code > 0xffff ? "\\U%08x" : "\\u%04x", (unsigned)code);
            continue;
        }
        if (code == '"' || code == '\\') *out++ = '\\';
        memcpy(out, start, (size_t)(at - start));
        out += at - start;
    }
    *out++ = '"';
    *out = 0;
    return result;
}
