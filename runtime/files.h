/* Small helpers for files and folders, so that every write in the program is durable and every failure is one
 * sentence with the path, the reason and, when space ran out, how much was needed. All are local to the
 * calling rank. */
#ifndef WPO_RUNTIME_FILES_H
#define WPO_RUNTIME_FILES_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

/* A new file on its way to the disk. */
struct file_writer {
    int descriptor;   /* -1: closed */
    int64_t written;  /* bytes */
    int64_t expected; /* bytes, for messages; 0: not known */
    char *path;
};

/* Creates a file that must not exist yet (its mode is what the umask leaves of 0666). Space for
 * `expected` bytes (0: not known) is reserved where the file system can, so that a full disk shows here. */
enum status files_create(struct file_writer *writer, const char *path, int64_t expected);
/* Writes all bytes, through short writes and interruptions. After a failure: files_abandon. */
enum status files_add(struct file_writer *writer, const void *bytes, size_t count);
/* fsync and close. On failure the file is removed: what fsync could not save is lost and is not tried again.
 */
enum status files_finish(struct file_writer *writer);
/* Closes and removes the file. Does nothing after files_finish; keeps the sentence of the failure before it.
 */
void files_abandon(struct file_writer *writer);

/* A whole new file, written and fsynced; refuses an existing one. Nothing is left of it after a failure. */
enum status files_write(const char *path, const void *bytes, size_t count);
/* The same under a temporary name beside it, then renamed over `path`, and the folder fsynced: whoever opens
 * `path` sees the old content or the new one, whole. */
enum status files_replace(const char *path, const void *bytes, size_t count);
/* The name that something is built under before it gets the name `path`: in the same folder, ends in .part,
 * differs between processes and calls. To be freed. */
char *files_temporary(const char *path);
/* Renames over whatever `to` is, and fsyncs the folder of `to`. */
enum status files_rename_over(const char *from, const char *to);
/* Renames and fsyncs the folder of `to`; fails when `to` exists. */
enum status files_rename(const char *from, const char *to);

/* Reads a whole regular file of at most `limit` bytes; *bytes (out) has a zero behind it and is to be freed.
 */
enum status files_read(char **bytes, size_t *count, const char *path, size_t limit);
/* Opens a regular file for reading; *size (out) in bytes. A folder, a device or a pipe is refused. */
enum status files_open(int *descriptor, int64_t *size, const char *path);
enum status files_size(int64_t *size, int descriptor, const char *path);
/* Reads exactly count bytes at `offset`. */
enum status files_read_at(int descriptor, void *bytes, size_t count, int64_t offset, const char *path);

/* Makes a folder (0700) that must not exist; its parent must. */
enum status files_make_folder(const char *path);
enum status files_sync_folder(const char *path);
/* Removes a file, or a folder and all in it; symbolic links are removed, not followed. A missing path is no
 * error. */
enum status files_remove_tree(const char *path);
/* Shows that files can be written, fsynced and renamed in the folder, before hours of work depend on it. */
enum status files_probe(const char *folder);

bool files_exists(const char *path); /* of whatever kind; a dangling link counts */
bool files_is_folder(const char *path);
char *files_join(const char *folder, const char *name); /* to be freed */
char *files_parent(const char *path);                   /* "." for a plain name; to be freed */
/* The part of the path after its last slash; points into `path`. */
const char *files_name(const char *path);

/* The names in a folder but . and .., sorted by bytes. names (out) to be freed with files_names_free. */
enum status files_list(char ***names, int64_t *count, const char *folder);
void files_names_free(char **names, int64_t count);

#endif
