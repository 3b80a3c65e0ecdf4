/* SHA-256 against the published vectors, and of files. */
#include "runtime/files.h"
#include "runtime/hash.h"
#include "tests/check.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <unistd.h>

static void check_vector(const char *text, size_t count, const char *want)
{
    char hex[HASH_HEX];
    hash_bytes(hex, text, count);
    CHECK(!strcmp(hex, want));
}

/* FIPS 180-4 examples: the empty message, one block, two blocks, a million times 'a'. */
static void check_vectors(void)
{
    check_vector("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_vector("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    const char *two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    check_vector(two, strlen(two), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    char *million = malloc(1000000), hex[HASH_HEX];
    memset(million, 'a', 1000000);
    check_vector(million, 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    /* The same in uneven parts. */
    struct hash *hash = hash_begin();
    for (size_t done = 0, part = 1; done < 1000000; done += part, part = part * 3 + 1) {
        if (part > 1000000 - done) part = 1000000 - done;
        hash_add(hash, million + done, part);
    }
    hash_end(hash, hex);
    CHECK(!strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
    free(million);
}

/* Sizes around the block of 1 MiB that files are read in, from several offsets. */
static void check_files(void)
{
    const size_t most = (1 << 20) + 7;
    char *bytes = malloc(most);
    unsigned long long state = 3;
    for (size_t i = 0; i < most; i++)
        bytes[i] = (char)(100 * check_uniform(&state));
    const size_t sizes[] = {0, 1, 511, 512, 513, (1 << 20) - 1, 1 << 20, most};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const char *path = scratch_write("bytes", bytes, sizes[s]);
        for (size_t offset = 0; offset <= 512 && offset <= sizes[s]; offset += 512) {
            char want[HASH_HEX], got[HASH_HEX];
            hash_bytes(want, bytes + offset, sizes[s] - offset);
            int descriptor = open(path, O_RDONLY);
            CHECK(hash_file(got, descriptor, (int64_t)offset, path) == STATUS_OK);
            CHECK(!strcmp(want, got));
            close(descriptor);
        }
    }
    char hex[HASH_HEX];
    CHECK(hash_file(hex, -1, 0, "nothing") == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "nothing");
    free(bytes);
}

int main(void)
{
    scratch_begin();
    check_vectors();
    check_files();
    return check_result();
}
