#include "runtime/hash.h"

#include "kernels/require.h"
#include "runtime/files.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>

struct hash {
    EVP_MD_CTX *context;
};

struct hash *hash_begin(void)
{
    struct hash *hash = allocate(1, sizeof *hash);
    hash->context = EVP_MD_CTX_new();
    REQUIRE(hash->context && EVP_DigestInit_ex(hash->context, EVP_sha256(), NULL) == 1,
            "SHA-256 is not available");
    return hash;
}

void hash_add(struct hash *hash, const void *bytes, size_t count)
{
    REQUIRE(EVP_DigestUpdate(hash->context, bytes, count) == 1, "SHA-256 failed");
}

void hash_end(struct hash *hash, char hex[HASH_HEX])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    REQUIRE(EVP_DigestFinal_ex(hash->context, digest, &length) == 1 && length == 32, "SHA-256 failed");
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    EVP_MD_CTX_free(hash->context);
    free(hash);
}

void hash_bytes(char hex[HASH_HEX], const void *bytes, size_t count)
{
    struct hash *hash = hash_begin();
    hash_add(hash, bytes, count);
    hash_end(hash, hex);
}

enum status hash_file(char hex[HASH_HEX], int descriptor, int64_t offset, const char *path)
{
    int64_t size;
    TRY(files_size(&size, descriptor, path));
    const int64_t room = 1 << 20;
    char *block = allocate(room, 1);
    struct hash *hash = hash_begin();
    enum status status = STATUS_OK;
    while (status == STATUS_OK && offset < size) {
        int64_t part = size - offset < room ? size - offset : room;
        status = files_read_at(descriptor, block, (size_t)part, offset, path);
        if (status == STATUS_OK) hash_add(hash, block, (size_t)part);
        offset += part;
    }
    hash_end(hash, hex);
    free(block);
    return status;
}
