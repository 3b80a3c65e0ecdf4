#include "runtime/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The sentence for a failed system call. */
static enum status fail_call(const char *path, const char *what, int error)
{
    return fail("%s: cannot %s: %s", path, what, strerror(error));
}

/* The same for a write, where the reader of the sentence wants to know how much space to make. */
static enum status fail_write(const struct file_writer *writer, const char *what, int error)
{
    if (error != ENOSPC && error != EDQUOT && error != EFBIG) return fail_call(writer->path, what, error);
    char need[64] = "", room[64] = "";
    if (writer->expected > 0)
        snprintf(need, sizeof need, "; %lld bytes are needed", (long long)writer->expected);
    char *folder = files_parent(writer->path);
    struct statvfs disk;
    if (error == ENOSPC && statvfs(folder, &disk) == 0)
        snprintf(room, sizeof room, ", %llu bytes are free",
                 (unsigned long long)disk.f_bavail * (unsigned long long)disk.f_frsize);
    free(folder);
    return fail("%s: cannot %s after %lld bytes: %s%s%s; make room there or choose another folder",
                writer->path, what, (long long)writer->written, strerror(error), need, room);
}

enum status files_create(struct file_writer *writer, const char *path, int64_t expected)
{
    *writer = (struct file_writer){.descriptor = -1, .expected = expected};
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error like a full disk, not the end */
    int descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (descriptor < 0) return fail_call(path, "create the file", errno);
    writer->descriptor = descriptor;
    writer->path = text_copy(path);
    if (expected > 0 && fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, expected) != 0 &&
        (errno == ENOSPC || errno == EDQUOT)) {
        enum status status = fail_write(writer, "reserve space for it", errno);
        files_abandon(writer);
        return status;
    }
    return STATUS_OK;
}

enum status files_add(struct file_writer *writer, const void *bytes, size_t count)
{
    const char *next = bytes;
    while (count) {
        size_t part = count < ((size_t)1 << 30) ? count : (size_t)1 << 30; /* Linux writes no 2 GiB at once */
        ssize_t done = write(writer->descriptor, next, part);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_write(writer, "write", errno);
        if (done == 0) return fail_write(writer, "write", ENOSPC);
        writer->written += done;
        next += done;
        count -= (size_t)done;
    }
    return STATUS_OK;
}

enum status files_finish(struct file_writer *writer)
{
    if (fsync(writer->descriptor) != 0) {
        enum status status = fail_write(writer, "fsync", errno);
        files_abandon(writer);
        return status;
    }
    int descriptor = writer->descriptor;
    writer->descriptor = -1;
    if (close(descriptor) != 0 && errno != EINTR) {
        enum status status = fail_write(writer, "close", errno);
        unlink(writer->path);
        free(writer->path);
        writer->path = NULL;
        return status;
    }
    free(writer->path);
    writer->path = NULL;
    return STATUS_OK;
}

void files_abandon(struct file_writer *writer)
{
    if (writer->descriptor >= 0) close(writer->descriptor);
    if (writer->path) unlink(writer->path);
    free(writer->path);
    *writer = (struct file_writer){.descriptor = -1};
}

enum status files_write(const char *path, const void *bytes, size_t count)
{
    struct file_writer writer;
    TRY(files_create(&writer, path, (int64_t)count));
    if (files_add(&writer, bytes, count) != STATUS_OK) {
        files_abandon(&writer);
        return STATUS_BAD;
    }
    return files_finish(&writer);
}

char *files_temporary(const char *path)
{
    static int calls;
    char *folder = files_parent(path);
    char *name = text_format("%s/.%s.%ld.%d.part", folder, files_name(path), (long)getpid(), calls++);
    free(folder);
    return name;
}

enum status files_replace(const char *path, const void *bytes, size_t count)
{
    char *temporary = files_temporary(path);
    enum status status = files_write(temporary, bytes, count);
    if (status == STATUS_OK) status = files_rename_over(temporary, path);
    free(temporary);
    return status;
}

static enum status sync_parent(const char *path)
{
    char *folder = files_parent(path);
    enum status status = files_sync_folder(folder);
    free(folder);
    return status;
}

enum status files_rename_over(const char *from, const char *to)
{
    if (rename(from, to) != 0) {
        enum status status = fail("%s: cannot give it the name %s: %s", from, to, strerror(errno));
        unlink(from);
        return status;
    }
    return sync_parent(to);
}

enum status files_rename(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) != 0) {
        if (errno == EEXIST || errno == ENOTEMPTY)
            return fail("%s exists already; nothing is written over it", to);
        if (errno != EINVAL && errno != ENOSYS)
            return fail("%s: cannot give it the name %s: %s", from, to, strerror(errno));
        /* A file system without the flag (NFS): look first. A folder with content is never replaced by
         * rename(). */
        if (files_exists(to)) return fail("%s exists already; nothing is written over it", to);
        if (rename(from, to) != 0)
            return fail("%s: cannot give it the name %s: %s", from, to, strerror(errno));
    }
    return sync_parent(to);
}

enum status files_open(int *descriptor, int64_t *size, const char *path)
{
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (*descriptor < 0) return fail_call(path, "open the file", errno);
    struct stat about;
    enum status status = STATUS_OK;
    if (fstat(*descriptor, &about) != 0)
        status = fail_call(path, "read the file's size", errno);
    else if (!S_ISREG(about.st_mode))
        status =
            fail("%s is %s, not a file", path, S_ISDIR(about.st_mode) ? "a folder" : "a device or a pipe");
    if (status != STATUS_OK) {
        close(*descriptor);
        *descriptor = -1;
        return status;
    }
    *size = (int64_t)about.st_size;
    return STATUS_OK;
}

enum status files_size(int64_t *size, int descriptor, const char *path)
{
    struct stat about;
    if (fstat(descriptor, &about) != 0) return fail_call(path, "read the file's size", errno);
    *size = (int64_t)about.st_size;
    return STATUS_OK;
}

enum status files_read_at(int descriptor, void *bytes, size_t count, int64_t offset, const char *path)
{
    char *next = bytes;
    while (count) {
        size_t part = count < ((size_t)1 << 30) ? count : (size_t)1 << 30;
        ssize_t done = pread(descriptor, next, part, (off_t)offset);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return fail_call(path, "read", errno);
        if (done == 0)
            return fail("%s ends at byte %lld, before what should stand there", path, (long long)offset);
        next += done;
        offset += done;
        count -= (size_t)done;
    }
    return STATUS_OK;
}

enum status files_read(char **bytes, size_t *count, const char *path, size_t limit)
{
    int descriptor;
    int64_t size;
    *bytes = NULL;
    *count = 0;
    TRY(files_open(&descriptor, &size, path));
    enum status status = STATUS_OK;
    if ((uint64_t)size > limit)
        status = fail("%s has %lld bytes; no more than %zu are expected in such a file", path,
                      (long long)size, limit);
    if (status == STATUS_OK) {
        *bytes = allocate(size + 1, 1);
        status = files_read_at(descriptor, *bytes, (size_t)size, 0, path);
    }
    close(descriptor);
    if (status != STATUS_OK) {
        free(*bytes);
        *bytes = NULL;
        return status;
    }
    *count = (size_t)size;
    return STATUS_OK;
}

enum status files_make_folder(const char *path)
{
    if (mkdir(path, 0700) == 0) return STATUS_OK;
    if (errno == EEXIST) return fail("%s exists already; nothing is written over it", path);
    return fail_call(path, "make the folder", errno);
}

enum status files_sync_folder(const char *path)
{
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return fail_call(path, "open the folder", errno);
    int error = fsync(descriptor) == 0 ? 0 : errno;
    close(descriptor);
    if (error && error != EINVAL) return fail_call(path, "fsync the folder", error);
    return STATUS_OK;
}

/* Goes down by open folders, so that nobody can swap a folder for a link on the way. */
static enum status remove_at(int parent, const char *name, const char *path)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return STATUS_OK;
    if (errno != EISDIR && errno != EPERM) return fail_call(path, "remove", errno);
    int error = errno, descriptor = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (descriptor < 0) return fail_call(path, "remove", errno == ENOTDIR ? error : errno);
    DIR *folder = fdopendir(descriptor);
    if (!folder) {
        close(descriptor);
        return fail_call(path, "read the folder", ENOMEM);
    }
    enum status status = STATUS_OK;
    for (struct dirent *entry; status == STATUS_OK && (entry = readdir(folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        char *below = files_join(path, entry->d_name);
        status = remove_at(dirfd(folder), entry->d_name, below);
        free(below);
    }
    closedir(folder);
    TRY(status);
    if (unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        return fail_call(path, "remove the folder", errno);
    return STATUS_OK;
}

enum status files_remove_tree(const char *path)
{
    return remove_at(AT_FDCWD, path, path);
}

enum status files_probe(const char *folder)
{
    static const char text[] = "a test that this folder can be written\n";
    char *goal = files_join(folder, ".probe"), *name = files_temporary(goal),
         *other = text_format("%s.renamed", name);
    enum status status = files_write(name, text, sizeof text - 1);
    if (status == STATUS_OK) status = files_rename_over(name, other);
    unlink(other);
    free(goal);
    free(name);
    free(other);
    return status;
}

bool files_exists(const char *path)
{
    struct stat about;
    return lstat(path, &about) == 0;
}

bool files_is_folder(const char *path)
{
    struct stat about;
    return stat(path, &about) == 0 && S_ISDIR(about.st_mode);
}

char *files_join(const char *folder, const char *name)
{
    size_t length = strlen(folder);
    return text_format("%s%s%s", folder, length && folder[length - 1] == '/' ? "" : "/", name);
}

char *files_parent(const char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length ? text_format("%.*s", (int)length, path) : text_copy(".");
}

const char *files_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum status files_list(char ***names, int64_t *count, const char *folder)
{
    *names = NULL;
    *count = 0;
    DIR *open_folder = opendir(folder);
    if (!open_folder) return fail_call(folder, "read the folder", errno);
    int64_t room = 0;
    for (struct dirent *entry; (entry = readdir(open_folder));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (*count == room) {
            room = room ? 2 * room : 64;
            char **grown = allocate(room, sizeof *grown);
            if (*count) memcpy(grown, *names, (size_t)*count * sizeof *grown);
            free(*names);
            *names = grown;
        }
        (*names)[(*count)++] = text_copy(entry->d_name);
    }
    closedir(open_folder);
    if (*count) qsort(*names, (size_t)*count, sizeof **names, by_bytes);
    return STATUS_OK;
}

void files_names_free(char **names, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}
