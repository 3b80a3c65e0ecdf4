#include "runtime/selection.h"

#include "kernels/require.h"
#include "runtime/hash.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t size_of(const struct groups *groups, int64_t g)
{
    return groups->first[g + 1] - groups->first[g];
}

/* The fingerprint of what was made of data with this fingerprint. */
static void mark(struct groups *groups, const char *what)
{
    char *text = text_format("%s %s", groups->fingerprint, what);
    hash_bytes(groups->fingerprint, text, strlen(text));
    free(text);
}

char *selection_losses(const struct objective *objective)
{
    char *names = text_copy(loss_kind(objective->terms[0].type).name);
    for (int64_t i = 1; i < objective->term_count; i++) {
        char *more = text_format("%s, %s", names, loss_kind(objective->terms[i].type).name);
        free(names);
        names = more;
    }
    return names;
}

/* -- what is needed --------------------------------------------------------------------------- */

static enum status wrong_size(const struct groups *groups, const struct objective *objective, int64_t g)
{
    int64_t size = size_of(groups, g);
    enum group_shape shape = objective_shape(objective);
    char *names = selection_losses(objective);
    const char *advice = "prepare pairs";
    if (objective->optimism_alpha != 0)
        advice = "optimism_alpha needs a third completion: prepare the data with the column sampled";
    else if (size > LARGEST_GROUP)
        advice = "prepare smaller groups";
    else if (shape == GROUP_RANKED)
        advice = "prepare groups of two or more, with the columns completions and scores";
    else if (size > 2)
        advice = "loss_type plackett_luce and all_pairs take larger groups, and a third completion (sampled) "
                 "needs optimism_alpha";
    else if (size == 1)
        advice = "prepare preference data, or train with loss_type sft, or with kto or bco if it has labels";
    enum status status =
        fail("%s: the prompt of row %lld has %lld completion%s, which loss_type %s does not take; %s",
             groups->path, (long long)groups->row[g], (long long)size, size == 1 ? "" : "s", names, advice);
    free(names);
    return status;
}

/* A third completion that was sampled is no third place, nor the other way round. */
static enum status check_form(const struct groups *groups, const struct objective *objective)
{
    if (objective->optimism_alpha != 0 && !strcmp(groups->form, "ranked"))
        return fail("%s: optimism_alpha needs a completion drawn from the policy, and this file holds "
                    "rankings; prepare pairs with the column sampled",
                    groups->path);
    if (strcmp(groups->form, "sampled") != 0) return STATUS_OK;
    enum group_shape shape = objective_shape(objective);
    if (shape == GROUP_RANKED)
        return fail("%s: loss_type %s takes rankings, and the third completions of this file are sampled; "
                    "prepare it from the columns completions and scores",
                    groups->path, loss_kind(objective->terms[0].type).name);
    if (shape == GROUP_LABELLED)
        return fail("%s: loss_type %s needs to know which completions are desirable, and of the sampled ones "
                    "of this file nobody knows; prepare it without the column sampled",
                    groups->path, loss_kind(objective->terms[0].type).name);
    return STATUS_OK;
}

static enum status check_sizes(const struct groups *groups, const struct objective *objective)
{
    int64_t least, most;
    objective_group_size(objective, &least, &most);
    for (int64_t g = 0; g < groups->group_count; g++)
        if (size_of(groups, g) < least || size_of(groups, g) > most) return wrong_size(groups, objective, g);
    return STATUS_OK;
}

/* The key that makes scores necessary, or NULL. */
static const char *needs_scores(const struct settings *settings)
{
    const struct objective *objective = &settings->objective;
    for (int64_t i = 0; i < objective->term_count; i++)
        if (loss_kind(objective->terms[i].type).traits & TRAIT_SCORES) return "loss_type sppo";
    if (objective->reward_margin_beta != 0) return "reward_margin_beta";
    return settings->has_min_margin ? "min_margin" : NULL;
}

static enum status check_scores(const struct groups *groups, const struct settings *settings)
{
    const char *key = needs_scores(settings);
    if (!key) return STATUS_OK;
    if (!groups->score)
        return fail("%s: %s needs scores, and this file has none; prepare it from data with score_chosen and "
                    "score_rejected",
                    groups->path, key);
    bool probability = !strcmp(key, "loss_type sppo") && settings->objective.score_type == SCORE_PROBABILITY;
    int64_t compared = objective_shape(&settings->objective) == GROUP_PAIR ? 2 : LARGEST_GROUP;
    for (int64_t g = 0; g < groups->group_count; g++)
        for (int64_t s = groups->first[g]; s < groups->first[g + 1] && s < groups->first[g] + compared; s++) {
            if (isnan(groups->score[s]))
                return fail("%s: %s needs scores, and row %lld lacks one; give every row its scores",
                            groups->path, key, (long long)groups->row[g]);
            if (probability && !(groups->score[s] >= 0 && groups->score[s] <= 1))
                return fail("%s: score_type is probability, and a score of row %lld is %g; scores must be "
                            "from 0 to 1, or score_type reward",
                            groups->path, (long long)groups->row[g], (double)groups->score[s]);
        }
    return STATUS_OK;
}

/* Ranked groups stand by score, the best first; without scores as they are. */
static enum status check_ranks(const struct groups *groups)
{
    for (int64_t g = 0; groups->score && g < groups->group_count; g++)
        for (int64_t s = groups->first[g] + 1; s < groups->first[g + 1]; s++)
            if (groups->score[s] > groups->score[s - 1])
                return fail("%s: the completions of row %lld do not stand by score, the best first; prepare "
                            "the data again",
                            groups->path, (long long)groups->row[g]);
    return STATUS_OK;
}

static enum status take_labels(struct groups *groups, const struct objective *objective)
{
    if (groups->label) return STATUS_OK;
    char *names = selection_losses(objective);
    enum status status = STATUS_OK;
    if (strcmp(groups->kind, "preference") != 0)
        status = fail("%s: loss_type %s needs to know which completions are desirable, and this file has no "
                      "labels; prepare it from data with the column label, or from pairs",
                      groups->path, names);
    free(names);
    TRY(status);
    groups->label = allocate(groups->completion_count, sizeof *groups->label);
    for (int64_t g = 0; g < groups->group_count; g++)
        groups->label[groups->first[g]] = 1;
    return STATUS_OK;
}

/* Nobody wants the likelihood of what is labelled undesirable. */
static enum status check_desirable(const struct groups *groups)
{
    for (int64_t g = 0; groups->label && g < groups->group_count; g++)
        if (!groups->label[groups->first[g]])
            return fail("%s: row %lld is labelled undesirable, and loss_type sft would train on it; prepare "
                        "the desirable rows alone, or train with kto",
                        groups->path, (long long)groups->row[g]);
    return STATUS_OK;
}

/* -- leaving out ------------------------------------------------------------------------------ */

/* Moves a completion forward to place `to`, and its tokens to the end of those that stand before it. */
static void move_completion(struct groups *groups, int64_t to, int64_t from)
{
    int64_t start = groups->completion_offset[from], count = groups->completion_offset[from + 1] - start,
            place = groups->completion_offset[to];
    memmove(groups->completion_tokens + place, groups->completion_tokens + start,
            (size_t)count * sizeof *groups->completion_tokens);
    groups->completion_offset[to + 1] = place + count;
    if (groups->score) groups->score[to] = groups->score[from];
    if (groups->label) groups->label[to] = groups->label[from];
}

static void move_prompt(struct groups *groups, int64_t to, int64_t from)
{
    int64_t start = groups->prompt_offset[from], count = groups->prompt_offset[from + 1] - start,
            place = groups->prompt_offset[to];
    memmove(groups->prompt_tokens + place, groups->prompt_tokens + start,
            (size_t)count * sizeof *groups->prompt_tokens);
    groups->prompt_offset[to + 1] = place + count;
    groups->row[to] = groups->row[from];
}

/* Keeps the first `most` completions of the groups that keep[] names (NULL: of all), in place. Offsets are
 * overwritten behind what is still to be read: a place is never after its source. */
static void keep_groups(struct groups *groups, const bool *keep, int64_t most)
{
    int64_t kept = 0, completions = 0, all = groups->group_count, begin = 0;
    for (int64_t g = 0; g < all; g++) {
        int64_t end = groups->first[g + 1], size = end - begin;
        if (!keep || keep[g]) {
            move_prompt(groups, kept++, g);
            for (int64_t i = 0; i < size && i < most; i++)
                move_completion(groups, completions++, begin + i);
            groups->first[kept] = completions;
        }
        begin = end;
    }
    groups->group_count = kept;
    groups->completion_count = completions;
}

static enum status drop_near(struct groups *groups, const struct settings *settings, int64_t *dropped)
{
    int64_t all = groups->group_count;
    bool *keep = allocate(all, sizeof *keep);
    for (int64_t g = 0; g < all; g++) {
        const float *score = groups->score + groups->first[g];
        keep[g] = (double)score[0] - (double)score[1] >= settings->min_margin;
        *dropped += !keep[g];
    }
    enum status status = *dropped < all
                             ? STATUS_OK
                             : fail("%s: min_margin %g leaves out all %lld pairs; the scores differ by less",
                                    groups->path, settings->min_margin, (long long)all);
    if (status == STATUS_OK && *dropped) {
        keep_groups(groups, keep, LARGEST_GROUP);
        char *what = text_format("min_margin %.17g", settings->min_margin);
        mark(groups, what);
        free(what);
    }
    free(keep);
    return status;
}

/* -- the door --------------------------------------------------------------------------------- */

enum status selection_take(struct groups *groups, const struct settings *settings, int64_t *dropped)
{
    const struct objective *objective = &settings->objective;
    enum group_shape shape = objective_shape(objective);
    *dropped = 0;
    TRY(check_form(groups, objective));
    TRY(check_sizes(groups, objective));
    TRY(check_scores(groups, settings));
    if (shape == GROUP_RANKED) TRY(check_ranks(groups));
    if (shape == GROUP_LABELLED) TRY(take_labels(groups, objective));
    if (settings->has_min_margin) TRY(drop_near(groups, settings, dropped));
    if (shape == GROUP_CHOSEN) TRY(check_desirable(groups));
    if (shape == GROUP_CHOSEN && groups->completion_count > groups->group_count) {
        keep_groups(groups, NULL, 1);
        mark(groups, "chosen");
    }
    return STATUS_OK;
}

enum status selection_mismatch(struct groups *mismatched, const struct groups *groups)
{
    int64_t count = groups->group_count, completions = groups->completion_count;
    if (count < 2)
        return fail("%s: loss_type kto compares completions with the prompts of other rows, and the file has "
                    "only one row",
                    groups->path);
    struct groups *m = mismatched;
    *m = (struct groups){.group_count = count,
                         .completion_count = completions,
                         .vocabulary = groups->vocabulary,
                         .max_length = groups->max_length,
                         .path = text_copy(groups->path)};
    memcpy(m->kind, groups->kind, sizeof m->kind);
    memcpy(m->fingerprint, groups->fingerprint, sizeof m->fingerprint);
    mark(m, "mismatched");
    int64_t prompt_tokens = groups->prompt_offset[count],
            completion_tokens = groups->completion_offset[completions];
    m->prompt_tokens = allocate(prompt_tokens, sizeof *m->prompt_tokens);
    m->prompt_offset = allocate(count + 1, sizeof *m->prompt_offset);
    m->completion_tokens = allocate(completion_tokens, sizeof *m->completion_tokens);
    m->completion_offset = allocate(completions + 1, sizeof *m->completion_offset);
    m->first = allocate(count + 1, sizeof *m->first);
    m->row = allocate(count, sizeof *m->row);
    memcpy(m->prompt_tokens, groups->prompt_tokens, (size_t)prompt_tokens * sizeof *m->prompt_tokens);
    memcpy(m->prompt_offset, groups->prompt_offset, (size_t)(count + 1) * sizeof *m->prompt_offset);
    memcpy(m->row, groups->row, (size_t)count * sizeof *m->row);

    int64_t at = 0;
    for (int64_t g = 0; g < count; g++) {
        int64_t other = g ? g - 1 : count - 1,
                room = groups->max_length - (groups->prompt_offset[g + 1] - groups->prompt_offset[g]);
        for (int64_t s = groups->first[other]; s < groups->first[other + 1]; s++, at++) {
            int64_t start = groups->completion_offset[s], length = groups->completion_offset[s + 1] - start;
            if (length > room) length = room;
            memcpy(m->completion_tokens + m->completion_offset[at], groups->completion_tokens + start,
                   (size_t)length * sizeof *m->completion_tokens);
            m->completion_offset[at + 1] = m->completion_offset[at] + length;
        }
        m->first[g + 1] = at;
    }
    return STATUS_OK;
}
