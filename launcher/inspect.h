/* What `wpo inspect` knows of each kind of thing, and the page that it tells it on. */
#ifndef WPO_LAUNCHER_INSPECT_H
#define WPO_LAUNCHER_INSPECT_H

#include "runtime/json.h"

/* Facts, in order: printed as they come, or gathered into one JSON object that page_close() prints. */
struct page {
    struct json *json; /* NULL: for people */
    struct json_value root;
};

void page_open(struct page *page, bool json);
void page_close(struct page *page);
void page_text(struct page *page, const char *key, const char *value);
void page_integer(struct page *page, const char *key, int64_t value);
void page_number(struct page *page, const char *key, double value);
void page_flag(struct page *page, const char *key, bool value);
/* A list of rows: name, detail ("[5, 7] F32"), and with --json the fields that the caller adds to the object.
 */
struct json_value page_list(struct page *page, const char *key);
struct json_value page_row(struct page *page, struct json_value list, const char *name, const char *detail);

/* Each verifies all of it first, and only then fills the page; a run folder's page shows the rejected ones
 * too. */
enum status inspect_groups(const char *path, struct page *page);
enum status inspect_scores(const char *path, struct page *page);
enum status inspect_safetensors(const char *path, struct page *page);
enum status inspect_model(const char *folder, struct page *page);
enum status inspect_checkpoint(const char *folder, struct page *page);
enum status inspect_run(const char *folder, struct page *page);

/* It holds run.yaml or a checkpoint. */
bool inspect_is_run(const char *folder);
/* It holds shards: what is left of a save that was killed. */
bool inspect_is_shards(const char *folder);

#endif
