/* The seal of a data file: its first 512 bytes, which HDF5 leaves to its user, hold the line
 * "<format> <version> sha256=<hex> bytes=<size of the whole file>\n" and zeros; the SHA-256 is that of all
 * bytes behind them. So a file is verified before the HDF5 library sees it. */
#ifndef WPO_RUNTIME_SEAL_H
#define WPO_RUNTIME_SEAL_H

#include "runtime/hash.h"

enum { SEAL_BYTES = 512, SEAL_VERSION = 1 };

/* Writes the seal into the first SEAL_BYTES bytes of a file's image. */
void seal_write(char *image, size_t bytes, const char *format);

/* Copies the format ("wpo-groups") of a file that carries a seal, else "". Nothing is verified; no errors. */
void seal_format(char format[32], const char *path);

/* Verifies format, version, size and SHA-256, which hex (out) receives. A failure's sentence says what the
 * file is instead, and ends with the advice: "make it with `wpo prepare`". */
enum status seal_check(const char *path, const char *format, const char *advice, char hex[HASH_HEX]);

#endif
