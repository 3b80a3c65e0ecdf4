/* A groups file: prompts, each with its completions, as token ids. The format is in docs/formats.md. */
#ifndef WPO_RUNTIME_GROUPS_H
#define WPO_RUNTIME_GROUPS_H

#include "runtime/status.h"

#include <stdint.h>

/* A group is a prompt and its completions; of a preference pair, completion 0 is the chosen one. */
struct groups {
    int64_t group_count;        /* G >= 1 */
    int64_t completion_count;   /* S */
    int32_t *prompt_tokens;     /* [prompt_offset[G]] */
    int64_t *prompt_offset;     /* [G+1]; every prompt has at least one token */
    int32_t *completion_tokens; /* [completion_offset[S]] */
    int64_t *completion_offset; /* [S+1]; every completion has at least one token */
    int64_t *first;             /* [G+1] completions of group g: first[g] .. first[g+1]-1 */
    int64_t *row;               /* [G] row of the source file, from 0, for messages */
    float *score;               /* [S], NaN where absent; NULL if the file has none */
    int8_t *label;              /* [S] 1 desirable, 0 undesirable; NULL if the file has none */
    int64_t vocabulary;         /* all token ids are below it */
    int64_t max_length;         /* no prompt with one completion is longer */
    char kind[32];              /* "preference", "prompt-completion", "unpaired" */
    char form[16];              /* of preferences: "pair", "ranked", "sampled"; "": the file does not say */
    char fingerprint[65];       /* SHA-256 of the file's content */
    char *path;
};

/* Opens, verifies (SHA-256 before the HDF5 library sees the file; then every type, size, offset and token id)
 * and reads a whole groups file. Release with groups_close(). */
enum status groups_open(struct groups *groups, const char *path);
void groups_close(struct groups *groups);

#endif
