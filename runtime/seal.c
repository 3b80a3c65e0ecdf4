#include "runtime/seal.h"

#include "runtime/files.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void seal_write(char *image, size_t bytes, const char *format)
{
    char hex[HASH_HEX];
    hash_bytes(hex, image + SEAL_BYTES, bytes - SEAL_BYTES);
    memset(image, 0, SEAL_BYTES);
    snprintf(image, SEAL_BYTES, "%s %d sha256=%s bytes=%zu\n", format, SEAL_VERSION, hex, bytes);
}

/* What a file without a seal looks like, in words. */
static const char *describe(const char *head, size_t count)
{
    static const char magic[] = "\211HDF\r\n\032\n";
    if (!count) return "an empty file";
    if (count >= 8 && !memcmp(head, magic, 8)) return "an HDF5 file of another program";
    if (count >= 4 && !memcmp(head, "PAR1", 4)) return "a Parquet file";
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)head[i];
        if (c < 9 || (c > 13 && c < 32) || c == 127) return "a binary file of another kind";
    }
    return "a text file";
}

/* The fields of the line. True only if printing them again gives the same bytes, zeros behind them included.
 */
static bool parse(const char head[SEAL_BYTES + 1], char format[32], int *version, char hex[HASH_HEX],
                  int64_t *bytes)
{
    long long size;
    if (sscanf(head, "%31[a-z-] %d sha256=%64[0-9a-f] bytes=%lld", format, version, hex, &size) != 4)
        return false;
    *bytes = size;
    char again[SEAL_BYTES] = "";
    snprintf(again, sizeof again, "%s %d sha256=%s bytes=%lld\n", format, *version, hex, size);
    return strlen(hex) == 64 && !memcmp(again, head, SEAL_BYTES);
}

void seal_format(char format[32], const char *path)
{
    char head[SEAL_BYTES + 1] = "", hex[HASH_HEX];
    int descriptor, version;
    int64_t size, bytes;
    format[0] = 0;
    if (files_open(&descriptor, &size, path) != STATUS_OK) return;
    if (size < SEAL_BYTES || files_read_at(descriptor, head, SEAL_BYTES, 0, path) != STATUS_OK ||
        !parse(head, format, &version, hex, &bytes))
        format[0] = 0;
    close(descriptor);
}

static enum status check_line(const char *path, const char *head, int64_t size, const char *format,
                              const char *advice, char hex[HASH_HEX])
{
    char found[32];
    int version;
    int64_t bytes;
    size_t length = strlen(format);
    if (size < SEAL_BYTES || !parse(head, found, &version, hex, &bytes)) {
        if (!strncmp(head, format, length) && head[length] == ' ')
            return fail("%s is damaged: its first %d bytes are not those of a %s file; %s", path,
                        (int)(size < SEAL_BYTES ? size : SEAL_BYTES), format, advice);
        return fail("%s is %s, not a %s file; %s", path,
                    describe(head, (size_t)(size < SEAL_BYTES ? size : SEAL_BYTES)), format, advice);
    }
    if (strcmp(found, format)) return fail("%s is a %s file, not a %s file; %s", path, found, format, advice);
    if (version != SEAL_VERSION)
        return fail("%s has version %d of the %s format, and this program reads version %d; %s", path,
                    version, format, SEAL_VERSION, advice);
    if (size != bytes)
        return fail("%s has %lld bytes but was written with %lld: it is %s; %s", path, (long long)size,
                    (long long)bytes, size < bytes ? "truncated" : "damaged", advice);
    return STATUS_OK;
}

enum status seal_check(const char *path, const char *format, const char *advice, char hex[HASH_HEX])
{
    char head[SEAL_BYTES + 1] = "", written[HASH_HEX];
    int descriptor;
    int64_t size;
    TRY(files_open(&descriptor, &size, path));
    enum status status =
        files_read_at(descriptor, head, (size_t)(size < SEAL_BYTES ? size : SEAL_BYTES), 0, path);
    if (status == STATUS_OK) status = check_line(path, head, size, format, advice, written);
    if (status == STATUS_OK) status = hash_file(hex, descriptor, SEAL_BYTES, path);
    close(descriptor);
    if (status == STATUS_OK && strcmp(hex, written))
        return fail("%s is damaged: its content does not have the SHA-256 that stands in it; %s", path,
                    advice);
    return status;
}
