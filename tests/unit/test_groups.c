/* Groups files: a good one reads back as it was written; every damage and every wrong number is refused with
 * a sentence that names the file and the dataset. Files of other shapes (links, filters, types) are in
 * faults/test_groups_hostile. */
#include "runtime/files.h"
#include "runtime/groups.h"
#include "runtime/hdf.h"
#include "runtime/seal.h"
#include "tests/check.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <unistd.h>

/* Three groups of 2, 1 and 3 completions, small enough to be listed. */
struct content {
    const char *format, *kind;
    int64_t version, vocabulary, max_length;
    int32_t prompt_tokens[6], completion_tokens[11];
    int64_t prompt_offset[4], completion_offset[7], first[4], row[3];
    float score[6];
    int8_t label[6];
    bool with_score, with_label;
    const char *without; /* a dataset to leave out */
};

static struct content good(void)
{
    return (struct content){.format = "wpo-groups",
                            .kind = "prompt-completion",
                            .version = 1,
                            .vocabulary = 100,
                            .max_length = 7,
                            .prompt_tokens = {1, 2, 3, 4, 5, 99},
                            .completion_tokens = {10, 11, 12, 13, 14, 15, 16, 17, 18, 0, 20},
                            .prompt_offset = {0, 1, 3, 6},
                            .completion_offset = {0, 1, 2, 4, 5, 7, 11},
                            .first = {0, 2, 3, 6},
                            .row = {0, 5, 1000000000000},
                            .score = {1, 2, 3, 4, 5, (float)NAN},
                            .label = {0, 1, 1, 0, 0, 1},
                            .with_score = true,
                            .with_label = true};
}

static void add(struct hdf *file, const struct content *content, const char *name, enum hdf_type type,
                const void *values, int64_t count)
{
    if (content->without && !strcmp(content->without, name)) return;
    CHECK(hdf_add(file, name, type, values, count) == STATUS_OK);
}

static const char *write_groups(const struct content *c)
{
    struct hdf *file;
    const char *path = scratch_path("groups.h5");
    CHECK(hdf_create(&file, SEAL_BYTES) == STATUS_OK);
    add(file, c, "/prompt/tokens", HDF_INT, c->prompt_tokens, 6);
    add(file, c, "/prompt/offset", HDF_LONG, c->prompt_offset, 4);
    add(file, c, "/completion/tokens", HDF_INT, c->completion_tokens, 11);
    add(file, c, "/completion/offset", HDF_LONG, c->completion_offset, 7);
    add(file, c, "/group/first", HDF_LONG, c->first, 4);
    add(file, c, "/group/row", HDF_LONG, c->row, 3);
    if (c->with_score) add(file, c, "/completion/score", HDF_FLOAT, c->score, 6);
    if (c->with_label) add(file, c, "/completion/label", HDF_BYTE, c->label, 6);
    if (c->format) CHECK(hdf_put_text(file, "/", "format", c->format) == STATUS_OK);
    if (c->kind) CHECK(hdf_put_text(file, "/", "kind", c->kind) == STATUS_OK);
    CHECK(hdf_put_integer(file, "/", "version", c->version) == STATUS_OK);
    CHECK(hdf_put_integer(file, "/", "vocabulary", c->vocabulary) == STATUS_OK);
    CHECK(hdf_put_integer(file, "/", "max_length", c->max_length) == STATUS_OK);
    CHECK(hdf_finish_sealed(file, "wpo-groups", path) == STATUS_OK);
    return path;
}

static void check_good(void)
{
    struct content c = good();
    struct groups groups;
    const char *path = write_groups(&c);
    CHECK(groups_open(&groups, path) == STATUS_OK);
    CHECK(groups.group_count == 3 && groups.completion_count == 6);
    CHECK(groups.vocabulary == 100 && groups.max_length == 7);
    CHECK(!memcmp(groups.prompt_tokens, c.prompt_tokens, sizeof c.prompt_tokens));
    CHECK(!memcmp(groups.prompt_offset, c.prompt_offset, sizeof c.prompt_offset));
    CHECK(!memcmp(groups.completion_tokens, c.completion_tokens, sizeof c.completion_tokens));
    CHECK(!memcmp(groups.completion_offset, c.completion_offset, sizeof c.completion_offset));
    CHECK(!memcmp(groups.first, c.first, sizeof c.first) && !memcmp(groups.row, c.row, sizeof c.row));
    CHECK(!memcmp(groups.score, c.score, sizeof c.score) && !memcmp(groups.label, c.label, sizeof c.label));
    CHECK(!strcmp(groups.kind, "prompt-completion") && !strcmp(groups.path, path));
    char first[65];
    memcpy(first, groups.fingerprint, sizeof first);
    CHECK(strlen(first) == 64);
    groups_close(&groups);

    CHECK(groups_open(&groups, write_groups(&c)) == STATUS_OK); /* the same content, the same fingerprint */
    CHECK(!strcmp(first, groups.fingerprint));
    groups_close(&groups);
    c.completion_tokens[3]++;
    CHECK(groups_open(&groups, write_groups(&c)) == STATUS_OK);
    CHECK(strcmp(first, groups.fingerprint) != 0);
    groups_close(&groups);
    c.with_score = c.with_label = false;
    CHECK(groups_open(&groups, write_groups(&c)) == STATUS_OK);
    CHECK(!groups.score && !groups.label);
    groups_close(&groups);
    groups_close(&groups); /* harmless */
}

static void refuse_file(const char *path, const char *part)
{
    struct groups groups;
    status_sentence_set("");
    CHECK(groups_open(&groups, path) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), files_name(path));
    CHECK_TEXT(status_sentence(), part);
    CHECK(!groups.path && !groups.first);
}

static void refuse(const struct content *content, const char *part)
{
    refuse_file(write_groups(content), part);
}

/* Each case changes one thing of the good file; the SHA-256 is right, so only the checks of content can see
 * it. */
#define REFUSE(change, part)                                                                                 \
    do {                                                                                                     \
        struct content c = good();                                                                           \
        change;                                                                                              \
        refuse(&c, part);                                                                                    \
    } while (0)

static void check_content(void)
{
    REFUSE(c.format = "other", "attribute format");
    REFUSE(c.format = NULL, "attribute format is missing");
    REFUSE(c.version = 2, "attribute version is 2");
    REFUSE(c.kind = "pairs", "attribute kind is 'pairs'");
    REFUSE(c.kind = "preference", "group 1 has one completion");
    REFUSE(c.kind = "unpaired"; c.with_label = false, "/completion/label is missing");
    REFUSE(c.vocabulary = 0, "attribute vocabulary is 0");
    REFUSE(c.vocabulary = INT64_MAX, "attribute vocabulary is");
    REFUSE(c.vocabulary = 99, "/prompt/tokens: token id 99 at index 5");
    REFUSE(c.prompt_tokens[2] = -1, "/prompt/tokens: token id -1 at index 2");
    REFUSE(c.completion_tokens[10] = 100, "/completion/tokens: token id 100 at index 10");
    REFUSE(c.completion_tokens[0] = INT32_MIN, "/completion/tokens: token id -2147483648 at index 0");
    REFUSE(c.max_length = 6, "completion 5 with its prompt has 7 tokens");
    REFUSE(c.max_length = 1, "attribute max_length is 1");
    REFUSE(c.max_length = -7, "attribute max_length is -7");
    REFUSE(c.prompt_offset[0] = 1, "/prompt/offset starts with 1");
    REFUSE(c.prompt_offset[1] = 0, "/prompt/offset: prompt 0 is empty");
    REFUSE(c.prompt_offset[1] = 4, "/prompt/offset falls from 4 to 3 at index 2");
    REFUSE(c.prompt_offset[3] = 7, "/prompt/tokens has 6 elements, but /prompt/offset asks for 7");
    REFUSE(c.prompt_offset[3] = INT64_MIN, "/prompt/tokens has 6 elements");
    REFUSE(c.completion_offset[0] = -1, "/completion/offset starts with -1");
    REFUSE(c.completion_offset[4] = 4, "/completion/offset: completion 3 is empty");
    REFUSE(c.completion_offset[5] = INT64_MAX, "/completion/offset falls");
    REFUSE(c.completion_offset[6] = 10, "/completion/tokens has 11 elements");
    REFUSE(c.first[0] = 1, "/group/first starts with 1");
    REFUSE(c.first[1] = 0, "/group/first: group 0 is empty");
    REFUSE(c.first[1] = INT64_MIN, "/group/first falls");
    REFUSE(c.first[3] = 7, "/completion/offset has 7 elements");
    REFUSE(c.first[3] = INT64_MAX, "/group/first ends with 9223372036854775807");
    REFUSE(c.first[3] = 2, "/group/first ends with 2");
    REFUSE(c.row[1] = -1, "/group/row holds -1 at index 1");
    REFUSE(c.label[4] = 2, "/completion/label is 2 at index 4");
    REFUSE(c.score[2] = -INFINITY, "/completion/score is infinite at index 2");
    static const char *const needed[] = {"/prompt/tokens",     "/prompt/offset", "/completion/tokens",
                                         "/completion/offset", "/group/first",   "/group/row"};
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char part[64];
        snprintf(part, sizeof part, "dataset %s is missing", needed[i]);
        REFUSE(c.without = needed[i], part);
    }
}

static void check_other_files(void)
{
    refuse_file(scratch_path("nothing"), "No such file");
    refuse_file(scratch_folder, "is a folder");
    refuse_file(scratch_text("empty", ""), "is an empty file");
    refuse_file(scratch_text("pairs.jsonl", "{\"prompt\": 1}\n"), "is a text file, not a wpo-groups file");
    CHECK_TEXT(status_sentence(), "wpo prepare");
    refuse_file(scratch_write("data.parquet", "PAR1\0\0\0\1", 8), "is a Parquet file");
    refuse_file(scratch_write("plain.h5", "\211HDF\r\n\032\n\0\0", 10), "is an HDF5 file of another program");
    refuse_file(scratch_write("noise", "\0\1\2\3", 4), "is a binary file");
    char head[SEAL_BYTES * 2] = "wpo-groups 1 sha256=";
    refuse_file(scratch_write("torn", head, 100), "is damaged");
    refuse_file(scratch_write("odd", head, sizeof head), "is damaged");
    seal_write(head, sizeof head, "wpo-scores");
    refuse_file(scratch_write("scores", head, sizeof head), "is a wpo-scores file");
    seal_write(head, sizeof head, "wpo-groups");
    refuse_file(scratch_write("zeros", head, sizeof head),
                "HDF5 library cannot open it"); /* the seal is right */
    head[11] = '2';
    refuse_file(scratch_write("newer", head, sizeof head), "version 2");
}

/* True if the file is refused by a sentence that names it. */
static bool is_refused(const char *path)
{
    struct groups groups;
    status_sentence_set("");
    if (groups_open(&groups, path) == STATUS_BAD) return strstr(status_sentence(), path) != NULL;
    groups_close(&groups);
    return false;
}

/* Every bit of the head and one bit of every byte behind it; every length. The sentence comes from the seal:
 * the HDF5 library never sees such a file. */
static void check_damage(void)
{
    struct content c = good();
    char *bytes;
    size_t count;
    const char *path = write_groups(&c);
    CHECK(files_read(&bytes, &count, path, 1 << 20) == STATUS_OK);
    int file = open(path, O_RDWR);
    long passed = 0, trials = 0;
    for (size_t i = 0; i < count; i++)
        for (int bit = 0; bit < (i < 120 ? 8 : 1); bit++, trials++) {
            char flipped = (char)(bytes[i] ^ (1 << (i < 120 ? bit : (int)(i % 8))));
            CHECK(pwrite(file, &flipped, 1, (off_t)i) == 1);
            passed += !is_refused(path);
            CHECK(pwrite(file, &bytes[i], 1, (off_t)i) == 1);
        }
    CHECK(!is_refused(path)); /* all flips were taken back: the harness can tell good from bad */
    for (size_t length = count; length-- > 0; trials++) {
        CHECK(ftruncate(file, (off_t)length) == 0);
        passed += !is_refused(path);
        if (length > 700) length -= 60;
    }
    close(file);
    printf("%ld flips and cuts of %zu bytes\n", trials, count);
    CHECK(trials > 3000 && passed == 0);
    CHECK(!is_refused(scratch_write("whole.h5", bytes, count)));
    bytes = realloc(bytes, count + 1);
    bytes[count] = 0;
    refuse_file(scratch_write("longer.h5", bytes, count + 1), "but was written with");
    free(bytes);
}

int main(void)
{
    scratch_begin();
    check_good();
    check_content();
    check_other_files();
    check_damage();
    return check_result();
}
