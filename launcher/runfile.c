#include "launcher/runfile.h"

#include "kernels/require.h"
#include "launcher/keyfile.h"
#include "launcher/keys.h"
#include "runtime/files.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 1 << 20 }; /* bytes of a run file */

/* A key with its value, from the file or the command line. */
struct assignment {
    char *name;  /* as written */
    char *key;   /* without alias */
    char *value; /* NULL: null */
    char *where; /* "run.yaml:12: beta" or "--beta" */
    enum keyfile_shape shape;
    bool command_line;
};

struct assignments {
    struct assignment *list;
    int64_t count;
};

void runfile_note(struct runfile *runfile, const char *format, ...)
{
    if (runfile->note_count == (int64_t)(sizeof runfile->notes / sizeof runfile->notes[0])) return;
    va_list arguments;
    va_start(arguments, format);
    char *text = NULL;
    REQUIRE(vasprintf(&text, format, arguments) >= 0, "out of memory while formatting a note");
    va_end(arguments);
    runfile->notes[runfile->note_count++] = text;
}

/* -- collecting ------------------------------------------------------------------------------- */

/* Refuses a second value of the same key from the same place; one from the command line replaces that of the
 * file. */
static enum status assign(struct assignments *all, const char *name, const char *value,
                          enum keyfile_shape shape, char *where, bool command_line)
{
    const char *alias = key_alias(name), *key = alias ? alias : name;
    struct assignment *place = NULL;
    for (int64_t i = 0; i < all->count && !place; i++) {
        if (!strcmp(all->list[i].key, key)) place = &all->list[i];
    }
    if (place && place->command_line == command_line) {
        enum status status =
            strcmp(place->name, name)
                ? fail_usage("%s: the same as %s, which is given too", where, place->where)
                : fail_usage("%s is given twice%s%s", where, command_line ? "" : "; before at ",
                             command_line ? "" : place->where);
        free(where);
        return status;
    }
    if (place) {
        free(place->name);
        free(place->key);
        free(place->value);
        free(place->where);
    } else {
        place = &all->list[all->count++];
    }
    *place = (struct assignment){text_copy(name), text_copy(key), value ? text_copy(value) : NULL,
                                 where,           shape,          command_line};
    return STATUS_OK;
}

static enum status collect_file(struct assignments *all, const char *path)
{
    char *text;
    size_t bytes;
    if (files_read(&text, &bytes, path, LARGEST) != STATUS_OK) return fail_usage("%s", status_sentence());
    struct keyfile file;
    enum status status = keyfile_read(&file, path, text, bytes);
    free(text);
    TRY(status);
    all->list = allocate(file.count + 1, sizeof *all->list);
    for (int64_t i = 0; i < file.count && status == STATUS_OK; i++) {
        const struct keyfile_entry *entry = &file.list[i];
        char *where = text_format("%s:%lld: %s", path, (long long)entry->line, entry->key);
        status = assign(all, entry->key, entry->value, entry->shape, where, false);
    }
    keyfile_free(&file);
    return status;
}

static enum status unknown(const char *name, const char *where, bool command_line)
{
    const char **names = allocate(RUN_KEYS, sizeof *names);
    for (int64_t i = 0; i < RUN_KEYS; i++)
        names[i] = run_keys[i].name;
    const char *nearest = nearest_word(name, names, RUN_KEYS);
    free(names);
    const char *dashes = command_line ? "--" : "";
    if (nearest) return fail_usage("%s is no key of wpo (did you mean %s%s?)", where, dashes, nearest);
    return fail_usage("%s is no key of wpo (see wpo train --help)", where);
}

/* Fails for a name that is no key, no alias and no key of others. */
static enum status word_value(struct words *words, struct word *word)
{
    const struct option *key = options_match(run_keys, RUN_KEYS, word);
    if (key) snprintf(word->name, sizeof word->name, "%s", key->name); /* of --no_flag, the flag */
    if (!key && !key_alias(word->name) && !key_foreign(word->name)) {
        char where[128];
        snprintf(where, sizeof where, "--%s", word->name);
        return unknown(word->name, where, true);
    }
    bool flag = key ? key->kind == OPTION_FLAG : !strcmp(word->name, "use_weighting");
    return words_value(words, word, flag);
}

static enum status collect_words(struct assignments *all, int argc, char **argv)
{
    struct words words = {argc, argv, 0, false};
    struct word word;
    while (words_next(&words, &word)) {
        if (!word.named) continue;
        TRY(word_value(&words, &word));
        const char *value = !strcmp(word.value, "null") ? NULL : word.value;
        TRY(assign(all, word.name, value, KEYFILE_ONE, text_format("--%s", word.name), true));
    }
    return STATUS_OK;
}

/* The one word that is not part of an option. */
static enum status find_path(const char **path, int argc, char **argv)
{
    struct words words = {argc, argv, 0, false};
    struct word word;
    *path = NULL;
    while (words_next(&words, &word)) {
        if (word.named) {
            TRY(word_value(&words, &word));
        } else if (*path) {
            return fail_usage("'%.200s' is one word too many: the run file is %.200s (see --help)", word.text,
                              *path);
        } else {
            *path = word.text;
        }
    }
    if (!*path) return fail_usage("the run file is missing: wpo train run.yaml (see --help)");
    return STATUS_OK;
}

/* -- setting ---------------------------------------------------------------------------------- */

/* Whether a known key of other trainers asks for what wpo does not do. */
static bool refused(const struct assignment *a)
{
    const struct foreign_key *foreign = key_foreign(a->key);
    if (!foreign || !strcmp(foreign->accepted, "*")) return false;
    return a->shape != KEYFILE_ONE || (a->value && !key_accepts(foreign, a->value));
}

/* The first refused key with its reason, and the names of all others, so that one look mends the file. */
static enum status refuse_foreign(const struct assignments *all, const struct assignment *a)
{
    const struct foreign_key *foreign = key_foreign(a->key);
    char *more = text_copy("");
    for (const struct assignment *other = a + 1; other < all->list + all->count; other++) {
        if (!refused(other)) continue;
        char *longer = text_format("%s%s%s", more, *more ? ", " : ", and these, refused too: ", other->name);
        free(more);
        more = longer;
    }
    char *value = a->shape == KEYFILE_ONE ? text_format(" is '%.60s', which wpo does not do", a->value)
                                          : text_copy(" asks for more than wpo has");
    enum status status = fail_usage("%s%s: %s; remove the key%s", a->where, value, foreign->instead, more);
    free(value);
    free(more);
    return status;
}

static enum status set_foreign(const struct assignments *all, const struct assignment *a,
                               char **without_effect)
{
    if (!key_foreign(a->key)) return unknown(a->key, a->where, a->command_line);
    if (refused(a)) return refuse_foreign(all, a);
    char *list = *without_effect ? text_format("%s, %s", *without_effect, a->name) : text_copy(a->name);
    free(*without_effect);
    *without_effect = list;
    return STATUS_OK;
}

/* Values that are written in more than one way. */
static const char *plain_value(const struct assignment *a)
{
    if (!strcmp(a->name, "use_weighting")) {
        if (words_hold("true|yes|on|1", a->value)) return "sampled";
        if (words_hold("false|no|off|0", a->value)) return "none";
    }
    if (!strcmp(a->key, "resume_from_checkpoint")) {
        if (words_hold("true|yes|on", a->value)) return "auto";
        if (words_hold("false|no|off", a->value)) return NULL;
    }
    return a->value;
}

static enum status check_text(const struct assignment *a)
{
    char *quoted = keyfile_quoted(a->value);
    if (!quoted) return fail_usage("%s holds control characters or is not UTF-8", a->where);
    free(quoted);
    return STATUS_OK;
}

/* Keys for which null is TRL's way to say that they are not given. */
static const char off_by_null[] = "ld_alpha|rpo_alpha";

static enum status set_key(struct runfile *runfile, const struct option *key, const struct assignment *a,
                           bool *given)
{
    if (a->shape == KEYFILE_NESTED || (a->shape == KEYFILE_LIST && key->kind != OPTION_LIST)) {
        return fail_usage("%s holds several values, but takes one", a->where);
    }
    if (!a->value && key->fallback && !words_hold(off_by_null, key->name)) {
        return fail_usage("%s has no value; remove the key for the default, %s", a->where, key->fallback);
    }
    if (!a->value && key->required) return fail_usage("%s has no value", a->where);
    const char *value = a->value ? plain_value(a) : NULL;
    if (!value) return STATUS_OK;
    TRY(check_text(a));
    *given = true;
    if (strcmp(a->name, a->key)) {
        bool weights = !strcmp(a->name, "use_weighting") && strcmp(value, "none");
        const char *remark = "";
        if (weights && runfile->settings.objective.weight_clamp)
            remark = " (TRL does not clamp the weight; weight_clamp: false is its rule)";
        if (!strcmp(a->key, "rpo_alpha"))
            remark = " (its mean is over the tokens of all chosen completions of the global batch)";
        runfile_note(runfile, "%s %s is read as %s: %s%s", a->name, a->value, a->key, value, remark);
    }
    return option_set(key, runfile, value, a->where);
}

static enum status set_all(struct runfile *runfile, const struct assignments *all, bool *given)
{
    char *without_effect = NULL;
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < all->count && status == STATUS_OK; i++) {
        const struct assignment *a = &all->list[i];
        const struct option *key = options_find(run_keys, RUN_KEYS, a->key, strlen(a->key));
        status =
            key ? set_key(runfile, key, a, &given[key - run_keys]) : set_foreign(all, a, &without_effect);
    }
    if (without_effect)
        runfile_note(runfile, "read without effect, as wpo does this anyway: %s", without_effect);
    free(without_effect);
    return status;
}

static enum status check_required(const bool *given, const char *where)
{
    for (int64_t i = 0; i < RUN_KEYS; i++) {
        if (run_keys[i].required && !given[i]) {
            return fail_usage("%s%s is missing: %s", where, run_keys[i].name, run_keys[i].meaning);
        }
    }
    return STATUS_OK;
}

/* -- the resolved text ------------------------------------------------------------------------ */

static char *value_text(const struct option *key, bool given, const struct runfile *runfile)
{
    char *text = option_text(key, runfile);
    if (!text || (!key->fallback && !given)) {
        free(text);
        return text_copy("null");
    }
    if (key->kind == OPTION_LIST && strchr(text, ',')) {
        char *list = text_format("[%s]", text);
        free(text);
        return list;
    }
    bool plain = key->kind != OPTION_TEXT && strcmp(text, "no"); /* which YAML 1.1 takes for false */
    if (plain) return text;
    char *quoted = keyfile_quoted(text);
    REQUIRE(quoted, "a checked text of %s cannot be quoted", key->name);
    free(text);
    return quoted;
}

static char *resolve(const struct runfile *runfile, const bool *given)
{
    char *text = NULL;
    size_t bytes;
    FILE *stream = open_memstream(&text, &bytes);
    REQUIRE(stream, "out of memory while writing the resolved run file");
    fprintf(stream, "# The run file as wpo %s read it, with every default.\n", WPO_VERSION);
    for (int64_t i = 0; i < RUN_KEYS; i++) {
        char *value = value_text(&run_keys[i], given[i], runfile);
        fprintf(stream, "%s: %s\n", run_keys[i].name, value);
        free(value);
    }
    REQUIRE(fclose(stream) == 0, "out of memory while writing the resolved run file");
    return text;
}

/* -- the door --------------------------------------------------------------------------------- */

static void assignments_free(struct assignments *all)
{
    for (int64_t i = 0; i < all->count; i++) {
        free(all->list[i].name);
        free(all->list[i].key);
        free(all->list[i].value);
        free(all->list[i].where);
    }
    free(all->list);
}

/* TRL's CPO trainer knows the same names of losses, without a reference. */
static void note_trainer(struct runfile *runfile, const struct assignments *all)
{
    for (int64_t i = 0; i < all->count; i++) {
        if (strcmp(all->list[i].name, "cpo_alpha") || !objective_uses_reference(&runfile->settings.objective))
            continue;
        runfile_note(
            runfile,
            "cpo_alpha is of TRL's CPO trainer, which has no reference, but loss_type %s has one here: "
            "its sigmoid is loss_type cpo, its hinge and ipo those with reference_free: true",
            runfile->losses.loss_type);
    }
}

static enum status read_all(struct runfile *runfile, struct assignments *all, const char *path, bool *given,
                            int argc, char **argv)
{
    TRY(collect_file(all, path));
    struct assignment *list = allocate(all->count + argc + 1, sizeof *list);
    memcpy(list, all->list, (size_t)all->count * sizeof *list);
    free(all->list);
    all->list = list;
    TRY(collect_words(all, argc, argv));
    options_default(run_keys, RUN_KEYS, runfile);
    TRY(set_all(runfile, all, given));
    bool words = false; /* a key of the command line may be the one at fault */
    for (int64_t i = 0; i < all->count; i++)
        words = words || all->list[i].command_line;
    char *where = text_format("%s%s: ", path, words ? " and the command line" : "");
    enum status status = check_required(given, where);
    if (status == STATUS_OK) status = keys_check(runfile, given, where);
    free(where);
    if (status == STATUS_OK) note_trainer(runfile, all);
    return status;
}

enum status runfile_read(struct runfile *runfile, int argc, char **argv)
{
    *runfile = (struct runfile){0};
    const char *path;
    TRY(find_path(&path, argc, argv));
    struct assignments all = {0};
    bool *given = allocate(RUN_KEYS, sizeof *given);
    enum status status = read_all(runfile, &all, path, given, argc, argv);
    assignments_free(&all);
    if (status == STATUS_OK) {
        runfile->text = resolve(runfile, given);
    } else {
        runfile_free(runfile);
    }
    free(given);
    return status;
}

void runfile_free(struct runfile *runfile)
{
    options_free(run_keys, RUN_KEYS, runfile);
    free(runfile->text);
    for (int64_t i = 0; i < runfile->note_count; i++)
        free(runfile->notes[i]);
    *runfile = (struct runfile){0};
}

static const struct keyfile_entry *find_entry(const struct keyfile *file, const char *key)
{
    for (int64_t i = 0; i < file->count; i++) {
        if (!strcmp(file->list[i].key, key)) return &file->list[i];
    }
    return NULL;
}

enum status runfile_text_value(const char *text, const char *key, char **value)
{
    struct keyfile file;
    *value = NULL;
    TRY(keyfile_read(&file, "the stored run file", text, strlen(text)));
    const struct keyfile_entry *entry = find_entry(&file, key);
    enum status status = STATUS_OK;
    if (!entry || entry->shape == KEYFILE_NESTED) {
        status = fail("the stored run file has no value for %s", key);
    } else if (entry->value) {
        *value = text_copy(entry->value);
    }
    keyfile_free(&file);
    return status;
}

/* What a key that the stored run file lacks meant then: its default. The version that wrote it did not have
 * the key; by loss_type such a key is 0, that is off. To be freed. */
static char *default_text(const char *key)
{
    const struct option *option = options_find(run_keys, RUN_KEYS, key, strlen(key));
    if (!option || !option->fallback) return NULL;
    if (option_is_decided(option)) return text_copy("0");
    struct runfile defaults = {0};
    options_default(run_keys, RUN_KEYS, &defaults);
    char *text = value_text(option, false, &defaults);
    options_free(run_keys, RUN_KEYS, &defaults);
    return text;
}

static void compare(const char *key, const char *before, const char *after,
                    void (*each)(void *, const char *), void *context)
{
    if (!strcmp(key, "resume_from_checkpoint") || !strcmp(key, "overwrite_output_dir")) return;
    before = before ? before : "null";
    after = after ? after : "null";
    if (!strcmp(before, after)) return;
    char *sentence = text_format("%s: %s -> %s", key, before, after);
    each(context, sentence);
    free(sentence);
}

enum status runfile_differences(const char *before, const char *after,
                                void (*each)(void *context, const char *sentence), void *context)
{
    struct keyfile old, new;
    TRY(keyfile_read(&old, "the stored run file", before, strlen(before)));
    enum status status = keyfile_read(&new, "the run file", after, strlen(after));
    if (status == STATUS_OK) {
        for (int64_t i = 0; i < new.count; i++) {
            const struct keyfile_entry *entry = find_entry(&old, new.list[i].key);
            char *missing = entry ? NULL : default_text(new.list[i].key);
            compare(new.list[i].key, entry ? entry->value : missing, new.list[i].value, each, context);
            free(missing);
        }
        keyfile_free(&new);
    }
    keyfile_free(&old);
    return status;
}
