/* Durable writes: what is there afterwards, and what is not after a failure. */
#include "runtime/files.h"
#include "tests/check.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t entries(const char *folder)
{
    char **names;
    int64_t count = -1;
    CHECK(files_list(&names, &count, folder) == STATUS_OK);
    files_names_free(names, count);
    return count;
}

static void check_content(const char *path, const char *want)
{
    char *text;
    size_t count;
    CHECK(files_read(&text, &count, path, 100) == STATUS_OK);
    CHECK(text && count == strlen(want) && !strcmp(text, want));
    free(text);
}

static void check_writes(void)
{
    CHECK(files_write(scratch_path("a"), "one", 3) == STATUS_OK);
    check_content(scratch_path("a"), "one");
    CHECK(files_write(scratch_path("a"), "two", 3) == STATUS_BAD); /* never over an existing file */
    CHECK_TEXT(status_sentence(), "File exists");
    check_content(scratch_path("a"), "one");
    CHECK(files_replace(scratch_path("a"), "three", 5) == STATUS_OK);
    check_content(scratch_path("a"), "three");
    CHECK(files_write(scratch_path("empty"), "", 0) == STATUS_OK);
    check_content(scratch_path("empty"), "");
    CHECK(entries(scratch_folder) == 2); /* no temporary name is left */
    CHECK(symlink("a", scratch_path("link")) == 0);
    CHECK(files_write(scratch_path("link"), "x", 1) == STATUS_BAD); /* a link is not followed */
    check_content(scratch_path("a"), "three");
}

static void check_reads(void)
{
    char *text;
    size_t count;
    CHECK(files_read(&text, &count, scratch_path("none"), 10) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "No such file");
    CHECK(!text);
    CHECK(files_read(&text, &count, scratch_folder, 10) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "is a folder");
    CHECK(files_read(&text, &count, scratch_text("long", "0123456789a"), 10) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "11 bytes");
    CHECK(mkfifo(scratch_path("pipe"), 0600) == 0);
    CHECK(files_read(&text, &count, scratch_path("pipe"), 10) == STATUS_BAD); /* and does not hang */
    CHECK_TEXT(status_sentence(), "pipe");
    char four[4];
    int descriptor = open(scratch_path("long"), O_RDONLY);
    CHECK(files_read_at(descriptor, four, 4, 7, "long") == STATUS_OK && !memcmp(four, "789a", 4));
    CHECK(files_read_at(descriptor, four, 4, 8, "long") == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "ends at byte 11");
    close(descriptor);
}

static void check_renames(void)
{
    CHECK(files_make_folder(scratch_path("from")) == STATUS_OK);
    CHECK(files_make_folder(scratch_path("from")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "exists already");
    struct stat about;
    CHECK(stat(scratch_path("from"), &about) == 0 && (about.st_mode & 0777) == 0700);
    scratch_text("from/x", "x");
    CHECK(files_make_folder(scratch_path("to")) == STATUS_OK);
    CHECK(files_rename(scratch_path("from"), scratch_path("to")) == STATUS_BAD); /* even an empty folder */
    CHECK_TEXT(status_sentence(), "exists already");
    check_content(scratch_path("from/x"), "x");
    CHECK(files_rename(scratch_path("from"), scratch_path("fresh")) == STATUS_OK);
    check_content(scratch_path("fresh/x"), "x");
    CHECK(!files_exists(scratch_path("from")));
    CHECK(files_rename(scratch_path("from"), scratch_path("other")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "No such file");
}

static void check_removal(void)
{
    scratch_text("kept", "kept");
    CHECK(files_make_folder(scratch_path("tree")) == STATUS_OK);
    CHECK(files_make_folder(scratch_path("tree/below")) == STATUS_OK);
    scratch_text("tree/below/file", "x");
    CHECK(symlink("../kept", scratch_path("tree/link")) == 0);
    CHECK(symlink("../../fresh", scratch_path("tree/below/folder")) == 0);
    CHECK(files_remove_tree(scratch_path("tree")) == STATUS_OK);
    CHECK(!files_exists(scratch_path("tree")));
    check_content(scratch_path("kept"), "kept"); /* links were removed, not followed */
    check_content(scratch_path("fresh/x"), "x");
    CHECK(files_remove_tree(scratch_path("tree")) == STATUS_OK);
}

/* A limit on the size of files stops a write at any byte, as a full disk does. */
static void check_limits(void)
{
    enum { SIZE = 10000 };
    static const char bytes[SIZE];
    struct rlimit old, limit;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    const char *folder = scratch_path("full");
    CHECK(files_make_folder(folder) == STATUS_OK);
    char *path = files_join(folder, "file");
    static const rlim_t limits[] = {0, 1, 4095, 4096, SIZE - 1};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        limit = (struct rlimit){limits[i], old.rlim_max};
        setrlimit(RLIMIT_FSIZE, &limit);
        enum status status = files_write(path, bytes, SIZE), second = files_replace(path, bytes, SIZE);
        setrlimit(RLIMIT_FSIZE, &old);
        CHECK(status == STATUS_BAD && second == STATUS_BAD);
        CHECK_TEXT(status_sentence(), "10000 bytes are needed");
        CHECK_TEXT(status_sentence(), "full/");
        CHECK(entries(folder) == 0);
    }
    limit = (struct rlimit){SIZE, old.rlim_max}; /* exactly enough is enough */
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(files_write(path, bytes, SIZE) == STATUS_OK);
    setrlimit(RLIMIT_FSIZE, &old);
    /* A failed replacement leaves the old content. */
    CHECK(files_replace(path, "old", 3) == STATUS_OK);
    limit = (struct rlimit){100, old.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK(files_replace(path, bytes, SIZE) == STATUS_BAD);
    setrlimit(RLIMIT_FSIZE, &old);
    check_content(path, "old");
    CHECK(entries(folder) == 1);
    free(path);
}

static void check_writer(void)
{
    struct file_writer writer;
    CHECK(files_create(&writer, scratch_path("parts"), 6) == STATUS_OK);
    CHECK(files_add(&writer, "abc", 3) == STATUS_OK && files_add(&writer, "def", 3) == STATUS_OK);
    CHECK(writer.written == 6);
    CHECK(files_finish(&writer) == STATUS_OK);
    files_abandon(&writer); /* harmless */
    check_content(scratch_path("parts"), "abcdef");
    CHECK(files_create(&writer, scratch_path("gone"), 1 << 20) == STATUS_OK);
    CHECK(files_add(&writer, "abc", 3) == STATUS_OK);
    files_abandon(&writer);
    CHECK(!files_exists(scratch_path("gone")));
}

static void check_probe(void)
{
    int64_t before = entries(scratch_folder);
    CHECK(files_probe(scratch_folder) == STATUS_OK);
    CHECK(entries(scratch_folder) == before);
    CHECK(files_probe(scratch_path("nowhere")) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "nowhere");
    CHECK(files_probe("/proc") == STATUS_BAD); /* nobody can write there, root included */
    CHECK_TEXT(status_sentence(), "/proc");
}

static void check_parent(const char *path, const char *want)
{
    char *parent = files_parent(path);
    CHECK(!strcmp(parent, want));
    free(parent);
}

static void check_names(void)
{
    check_parent("a", ".");
    check_parent("a/b", "a");
    check_parent("a/b/", "a");
    check_parent("a//b", "a");
    check_parent("/a", "/");
    check_parent("/", "/");
    check_parent("./x/y", "./x");
    CHECK(!strcmp(files_name("a/b"), "b") && !strcmp(files_name("b"), "b"));
    char **names;
    int64_t count;
    CHECK(files_list(&names, &count, scratch_path("fresh")) == STATUS_OK);
    CHECK(count == 1 && !strcmp(names[0], "x"));
    files_names_free(names, count);
    CHECK(files_list(&names, &count, scratch_path("nowhere")) == STATUS_BAD);
}

int main(void)
{
    scratch_begin();
    check_writes();
    check_reads();
    check_renames();
    check_removal();
    check_limits();
    check_writer();
    check_probe();
    check_names();
    return check_result();
}
