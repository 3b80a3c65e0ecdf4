/* SHA-256, the one checksum of the program. The only file that knows the cryptography library. */
#ifndef WPO_RUNTIME_HASH_H
#define WPO_RUNTIME_HASH_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

enum { HASH_HEX = 65 }; /* 64 lower-case hex digits and a zero */

struct hash; /* a running computation */

struct hash *hash_begin(void);
void hash_add(struct hash *hash, const void *bytes, size_t count);
void hash_end(struct hash *hash, char hex[HASH_HEX]); /* frees it */

void hash_bytes(char hex[HASH_HEX], const void *bytes, size_t count);
/* Of the bytes from `offset` to the end of an open file. */
enum status hash_file(char hex[HASH_HEX], int descriptor, int64_t offset, const char *path);

#endif
