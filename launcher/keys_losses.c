/* The lists loss_type and loss_weights. */
#include "launcher/keys.h"

#include <stdlib.h>
#include <string.h>

/* Names that other programs give losses, and what they are here. */
static const char *const other_names[][2] = {
    {"dpo", "sigmoid with weighting none"},
    {"wpo", "sigmoid with weighting sampled"},
    {"cdpo", "sigmoid with label_smoothing"},
    {"rpo", "sigmoid with rpo_alpha"},
    {"slic", "hinge"},
    {"exo", "exo_pair"},
    {"nca", "nca_pair"},
    {"apo", "apo_zero"},
    {"aot_pair", "aot"},
    {"kto_pair", "kto, which takes pairs too"},
    {"selm", "sigmoid with optimism_alpha"},
    {"vpo", "sigmoid with vpo_alpha"},
    {"ld_dpo", "sigmoid with ld_alpha"},
    {"r_dpo", "sigmoid with length_alpha"},
    {"ilr_dpo", "sigmoid with length_alpha"},
    {"f_dpo", "sigmoid with f_divergence_type"},
    {"tr_dpo", "sigmoid with sync_ref_model"},
    {"nll", "sft"},
    {"cross_entropy", "sft"},
    {"sppo_single", "sppo"},
    {"mpo", "sigmoid, bco_pair and sft, a list"},
};

static enum status unknown_loss(const char *name, const char *where)
{
    const char *names[LOSS_COUNT], *meant = NULL;
    for (int i = 0; i < LOSS_COUNT; i++)
        names[i] = loss_kind((enum loss_type)i).name;
    for (size_t i = 0; i < sizeof other_names / sizeof other_names[0]; i++)
        if (!strcmp(name, other_names[i][0])) meant = other_names[i][1];
    if (!meant) meant = nearest_word(name, names, LOSS_COUNT);
    return fail_usage("%sloss_type is '%.60s', but it must be one of %s%s%s%s, or a list of them", where,
                      name, LOSS_NAMES, meant ? " (did you mean " : "", meant ? meant : "",
                      meant ? "?)" : "");
}

static enum status find_loss(enum loss_type *type, const char *name, const char *where)
{
    for (int i = 0; i < LOSS_COUNT; i++) {
        *type = (enum loss_type)i;
        if (!strcmp(name, loss_kind(*type).name)) return STATUS_OK;
    }
    return unknown_loss(name, where);
}

/* The part of a list up to the next comma, without spaces around it; *rest (in, out) ends as NULL. To be
 * freed. */
static char *next_item(const char **rest)
{
    const char *start = *rest + strspn(*rest, " \t");
    size_t length = strcspn(start, ",");
    *rest = start[length] ? start + length + 1 : NULL;
    while (length && strchr(" \t", start[length - 1]))
        length--;
    return text_format("%.*s", (int)length, start);
}

static enum status add_loss(struct objective *o, const char *name, const char *where)
{
    enum loss_type type;
    TRY(find_loss(&type, name, where));
    if (o->term_count == LOSS_TERMS) {
        return fail_usage("%sloss_type lists more than %d losses; keep at most so many", where, LOSS_TERMS);
    }
    for (int64_t i = 0; i < o->term_count; i++) {
        if (o->terms[i].type == type)
            return fail_usage("%sloss_type lists %s twice; list it once, and use loss_weights", where, name);
    }
    o->terms[o->term_count++] = (struct loss_term){type, 1};
    return STATUS_OK;
}

static enum status add_weight(struct objective *o, int64_t place, const char *text, const char *where)
{
    static const struct option number = {
        .name = "loss_weights", .kind = OPTION_NUMBER, .maximum = NO_LIMIT, .meaning = ""};
    if (place >= o->term_count) return STATUS_OK; /* told when all are counted */
    char *key = text_format("%sloss_weights", where);
    enum status status = option_set(&number, &o->terms[place].weight, text, key);
    free(key);
    return status;
}

static enum status read_losses(struct objective *o, const char *list, const char *where)
{
    o->term_count = 0;
    for (const char *rest = list; rest;) {
        char *name = next_item(&rest);
        enum status status = add_loss(o, name, where);
        free(name);
        TRY(status);
    }
    return STATUS_OK;
}

static enum status read_weights(struct objective *o, const char *list, const char *where)
{
    int64_t count = 0;
    for (const char *rest = list; rest; count++) {
        char *text = next_item(&rest);
        enum status status = add_weight(o, count, text, where);
        free(text);
        TRY(status);
    }
    if (list && count != o->term_count) {
        return fail_usage("%sloss_weights has %lld numbers, but loss_type has %lld losses; give one for each",
                          where, (long long)count, (long long)o->term_count);
    }
    for (int64_t i = 0; i < o->term_count; i++)
        if (o->terms[i].weight > 0) return STATUS_OK;
    return fail_usage("%sloss_weights are all 0, so nothing would be trained; at least one must be above 0",
                      where);
}

/* Puts both lists in the one way that the run folder keeps. */
static void write_lists(struct loss_lists *losses, const struct objective *o)
{
    char *names = NULL, *weights = NULL;
    for (int64_t i = 0; i < o->term_count; i++) {
        static const struct option number = {.kind = OPTION_NUMBER};
        char *weight = option_text(&number, &o->terms[i].weight), *name = names, *before = weights;
        names = text_format("%s%s%s", i ? name : "", i ? "," : "", loss_kind(o->terms[i].type).name);
        weights = text_format("%s%s%s", i ? before : "", i ? "," : "", weight);
        free(weight);
        free(name);
        free(before);
    }
    free(losses->loss_type);
    losses->loss_type = names;
    if (losses->loss_weights) {
        free(losses->loss_weights);
        losses->loss_weights = weights;
    } else {
        free(weights);
    }
}

static enum status check_list(const struct objective *o, const char *where)
{
    const char *kept = NULL; /* a loss that the others must go with */
    bool referenced = false;
    for (int64_t i = 0; i < o->term_count && o->term_count > 1; i++) {
        struct loss_kind kind = loss_kind(o->terms[i].type);
        if (o->terms[i].type == LOSS_SFT) continue;
        if (kind.shape != GROUP_PAIR || kind.statistic != STATISTIC_NONE) {
            return fail_usage(
                "%sloss_type lists %s, which is trained alone: it is no loss of one pair by itself; "
                "remove the others",
                where, kind.name);
        }
        bool reference = kind.traits & TRAIT_REFERENCE;
        if (kept && reference != referenced) {
            return fail_usage(
                "%sloss_type lists %s and %s, of which only one has a reference; list losses that "
                "all have one, or none",
                where, kept, kind.name);
        }
        kept = kind.name;
        referenced = reference;
    }
    return STATUS_OK;
}

/* A list as YAML writes it, where a text is expected (on the command line): without its brackets. */
static void unbracket(char *list)
{
    size_t length = list ? strlen(list) : 0;
    if (length < 2 || list[0] != '[' || list[length - 1] != ']') return;
    memmove(list, list + 1, length - 2);
    list[length - 2] = 0;
}

enum status losses_read(struct objective *objective, struct loss_lists *losses, const char *where)
{
    unbracket(losses->loss_type);
    unbracket(losses->loss_weights);
    TRY(read_losses(objective, losses->loss_type, where));
    TRY(read_weights(objective, losses->loss_weights, where));
    write_lists(losses, objective);
    return check_list(objective, where);
}
