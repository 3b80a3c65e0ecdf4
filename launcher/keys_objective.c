/* What a run file may say of its objective, and what follows where it says nothing. All of it follows from
 * the rows of LOSSES (kernels/loss_table.h): which losses take a key, go together, have a reference. */
#include "launcher/keys.h"

#include <stdlib.h>
#include <string.h>

struct chosen {
    struct settings *settings;
    struct objective *objective;
    struct loss_lists *losses;
    const struct given *given;
    const char *where;
};

static unsigned traits_of(enum loss_type type)
{
    return loss_kind(type).traits;
}

/* -- which losses take a key ------------------------------------------------------------------ */

static bool takes_beta(enum loss_type type)
{
    return type != LOSS_SFT;
}

static bool takes_all(enum loss_type type)
{
    return type < LOSS_COUNT;
}

static bool takes_smoothing(enum loss_type type)
{
    return traits_of(type) & TRAIT_SMOOTHING;
}

static bool takes_margin(enum loss_type type)
{
    return traits_of(type) & TRAIT_MARGIN;
}

static bool takes_divergence(enum loss_type type)
{
    return traits_of(type) & TRAIT_DIVERGENCE;
}

static bool takes_scores(enum loss_type type)
{
    return traits_of(type) & TRAIT_SCORES;
}

static bool takes_gamma(enum loss_type type)
{
    return type == LOSS_SIMPO;
}

static bool takes_tau(enum loss_type type)
{
    return type == LOSS_DISCOPOP;
}

static bool is_pair(enum loss_type type)
{
    return loss_kind(type).shape == GROUP_PAIR;
}

static bool is_labelled(enum loss_type type)
{
    return loss_kind(type).shape == GROUP_LABELLED;
}

static bool takes_likelihood(enum loss_type type)
{
    return type != LOSS_SFT && !is_labelled(type);
}

static bool takes_sides(enum loss_type type)
{
    return is_pair(type) || (traits_of(type) & TRAIT_WEIGHTED);
}

/* Terms are added once to a pair, and its log-ratios must be its own. */
static bool takes_regulariser(enum loss_type type)
{
    return is_pair(type) && (traits_of(type) & TRAIT_REFERENCE) &&
           loss_kind(type).statistic == STATISTIC_NONE;
}

/* A statistic of several log-ratios is one of what the reference says. */
static bool goes_without_reference(enum loss_type type)
{
    struct loss_kind kind = loss_kind(type);
    return (kind.traits & TRAIT_REFERENCE) &&
           (kind.statistic == STATISTIC_NONE || kind.statistic == STATISTIC_SORT);
}

enum share { SOME, EVERY }; /* of the losses of the list, sft aside, must take a key */

/* Refuses a key that is set to something and would have no effect. */
static enum status check_taken(const struct chosen *c, const char *key, bool set,
                               bool (*takes)(enum loss_type), enum share share, const char *whose)
{
    const struct objective *o = c->objective;
    int64_t taken = 0, count = 0;
    for (int64_t i = 0; i < o->term_count; i++) {
        if (o->terms[i].type == LOSS_SFT) continue;
        count++;
        taken += takes(o->terms[i].type);
    }
    if (!set || (taken > 0 && (share == SOME || taken == count))) return STATUS_OK;
    char *names = text_copy("");
    for (int i = 0; i < LOSS_COUNT && !whose; i++) {
        if (!takes((enum loss_type)i)) continue;
        char *more = text_format("%s%s%s", names, *names ? ", " : "", loss_kind((enum loss_type)i).name);
        free(names);
        names = more;
    }
    enum status status = fail_usage("%s%s has no effect with loss_type %s: it is for %s; remove it", c->where,
                                    key, c->losses->loss_type, whose ? whose : names);
    free(names);
    return status;
}

static enum status check_keys(const struct chosen *c)
{
    const struct objective *o = c->objective;
    const char *pairs = "losses of pairs";
    const char *regulated = "losses of pairs with a reference, each pair by itself";
    TRY(check_taken(c, "beta", o->beta != objective_of(LOSS_SFT, WEIGHTING_NONE).beta, takes_beta, SOME,
                    "every loss but sft"));
    TRY(check_taken(c, "label_smoothing", o->label_smoothing != 0, takes_smoothing, SOME, NULL));
    TRY(check_taken(c, "gamma_beta_ratio", o->gamma_beta_ratio != 0, takes_gamma, SOME, NULL));
    TRY(check_taken(c, "discopop_tau", o->discopop_tau != 0.05, takes_tau, SOME, NULL));
    TRY(check_taken(c, "score_type", o->score_type != SCORE_REWARD, takes_scores, SOME, NULL));
    TRY(check_taken(c, "desirable_weight", o->desirable_weight != 1, is_labelled, EVERY, NULL));
    TRY(check_taken(c, "undesirable_weight", o->undesirable_weight != 1, is_labelled, EVERY, NULL));
    TRY(check_taken(c, "rpo_alpha", o->rpo_alpha != 0, takes_likelihood, EVERY,
                    "losses of pairs and of ranked groups"));
    TRY(check_taken(c, "ld_alpha", o->ld_alpha != 1, is_pair, EVERY, pairs));
    TRY(check_taken(c, "length_alpha", o->length_alpha != 0, takes_margin, EVERY, NULL));
    TRY(check_taken(c, "reward_margin_beta", o->reward_margin_beta != 0, takes_margin, EVERY, NULL));
    TRY(check_taken(c, "f_divergence_type", o->f_divergence_type != DIVERGENCE_REVERSE_KL, takes_divergence,
                    EVERY, NULL));
    TRY(check_taken(c, "optimism_alpha", o->optimism_alpha != 0, takes_regulariser, EVERY, regulated));
    TRY(check_taken(c, "vpo_alpha", o->vpo_alpha != 0, takes_regulariser, EVERY, regulated));
    TRY(check_taken(c, "reference_free", o->reference_free, goes_without_reference, EVERY,
                    "losses that compare each completion with its own reference"));
    return check_taken(c, "min_margin", c->settings->has_min_margin, is_pair, EVERY, pairs);
}

/* -- defaults --------------------------------------------------------------------------------- */

/* What the losses that take the key have as its default, where they agree. member: its offset in struct
 * objective. */
static enum status fill_default(const struct chosen *c, const char *key, size_t member,
                                bool (*takes)(enum loss_type))
{
    if (is_given(c->given, key)) return STATUS_OK;
    struct objective *o = c->objective;
    const char *first = NULL;
    struct objective of = objective_of(o->terms[0].type, WEIGHTING_NONE);
    double value, other;
    memcpy(&value, (const char *)&of + member, sizeof value);
    for (int64_t i = 0; i < o->term_count; i++) {
        enum loss_type type = o->terms[i].type;
        if (!takes(type)) continue;
        of = objective_of(type, WEIGHTING_NONE);
        memcpy(&other, (const char *)&of + member, sizeof other);
        if (first && other != value) {
            return fail_usage("%s%s is not given, and its default is %g for %s but %g for %s; give it",
                              c->where, key, value, first, other, loss_kind(type).name);
        }
        first = loss_kind(type).name;
        value = other;
    }
    memcpy((char *)o + member, &value, sizeof value);
    return STATUS_OK;
}

static enum status fill_defaults(const struct chosen *c)
{
    struct objective *o = c->objective;
    TRY(fill_default(c, "beta", offsetof(struct objective, beta), takes_beta));
    TRY(fill_default(c, "label_smoothing", offsetof(struct objective, label_smoothing), takes_smoothing));
    TRY(fill_default(c, "gamma_beta_ratio", offsetof(struct objective, gamma_beta_ratio), takes_gamma));
    TRY(fill_default(c, "rpo_alpha", offsetof(struct objective, rpo_alpha), takes_all));
    bool wpo = o->term_count == 1 && o->terms[0].type == LOSS_SIGMOID;
    if (!is_given(c->given, "weighting")) o->weighting = wpo ? WEIGHTING_SAMPLED : WEIGHTING_NONE;
    c->settings->has_min_margin = is_given(c->given, "min_margin");
    return STATUS_OK;
}

/* -- single values and pairs of keys ---------------------------------------------------------- */

static enum status check_above(const struct chosen *c, const char *key, double value)
{
    if (value > 0) return STATUS_OK;
    return fail_usage("%s%s is %g, but it must be above 0", c->where, key, value);
}

static enum status check_ranges(const struct chosen *c)
{
    const struct objective *o = c->objective;
    TRY(check_above(c, "beta", o->beta));
    TRY(check_above(c, "discopop_tau", o->discopop_tau));
    TRY(check_above(c, "desirable_weight", o->desirable_weight));
    TRY(check_above(c, "undesirable_weight", o->undesirable_weight));
    if (o->label_smoothing >= 0.5) {
        return fail_usage(
            "%slabel_smoothing is 0.5, but it must be from 0 to below 0.5: at 0.5 nothing can be "
            "learned",
            c->where);
    }
    for (int64_t i = 0; i < o->term_count; i++) {
        if (o->terms[i].type == LOSS_EXO_PAIR && o->label_smoothing == 0)
            return fail_usage(
                "%slabel_smoothing is 0, but with loss_type exo_pair it must be above 0 and below "
                "0.5; %g is its default",
                c->where, objective_of(LOSS_EXO_PAIR, WEIGHTING_NONE).label_smoothing);
    }
    if (o->f_divergence_type == DIVERGENCE_ALPHA && o->f_alpha_divergence_coef == 1) {
        return fail_usage("%sf_alpha_divergence_coef is 1, but it must be another number; in the limit of 1 "
                          "f_divergence_type is reverse_kl",
                          c->where);
    }
    return STATUS_OK;
}

static enum status check_pairs_of_keys(const struct chosen *c)
{
    const struct objective *o = c->objective;
    for (int64_t i = 0; i < o->term_count && o->gamma_beta_ratio != 0; i++) {
        if (takes_margin(o->terms[i].type) && !takes_gamma(o->terms[i].type))
            return fail_usage(
                "%sgamma_beta_ratio would change the margin of %s too, which has none; set it to 0, or "
                "train simpo without %s",
                c->where, loss_kind(o->terms[i].type).name, loss_kind(o->terms[i].type).name);
    }
    if (o->f_divergence_type != DIVERGENCE_ALPHA && o->f_alpha_divergence_coef != 0.5) {
        return fail_usage(
            "%sf_alpha_divergence_coef has no effect unless f_divergence_type is alpha_divergence; "
            "remove it",
            c->where);
    }
    if (o->nll_on_prompt && !(objective_likelihood(o) > 0)) {
        return fail_usage(
            "%snll_on_prompt has no effect without a likelihood term; set rpo_alpha above 0, or "
            "remove it",
            c->where);
    }
    if (!o->reference_free) return STATUS_OK;
    if (o->optimism_alpha != 0 || o->vpo_alpha != 0) {
        return fail_usage("%s%s needs a reference, and reference_free is true; remove one of them", c->where,
                          o->vpo_alpha != 0 ? "vpo_alpha" : "optimism_alpha");
    }
    if (c->settings->ref_model_name_or_path) {
        bool train = options_find(c->given->options, c->given->count, "ref_model_name_or_path", 22);
        return fail_usage("%sreference_free leaves out the reference that %s names; remove one of them",
                          c->where, train ? "ref_model_name_or_path" : "--reference");
    }
    return STATUS_OK;
}

static enum status check_weighting(const struct chosen *c)
{
    const struct objective *o = c->objective;
    struct loss_kind kind = objective_kind(o);
    const char *names = c->losses->loss_type;
    if (o->weighting != WEIGHTING_NONE && (kind.traits & TRAIT_UNWEIGHTED)) {
        return fail_usage("%sloss_type %s takes no weights; remove weighting, or set it to none", c->where,
                          names);
    }
    bool none = o->weighting == WEIGHTING_NONE, unweighted = kind.traits & TRAIT_UNWEIGHTED;
    char *reason = unweighted ? text_format("loss_type %s", names) : text_copy("weighting none");
    enum status status = STATUS_OK;
    if (none && o->weight_sides != WEIGHT_BOTH) {
        status = fail_usage("%sweight_sides has no effect with %s; remove it", c->where, reason);
    } else if (none && !o->weight_clamp) {
        status = fail_usage("%sweight_clamp false has no effect with %s; remove it", c->where, reason);
    } else if (kind.shape == GROUP_LABELLED && !o->weight_clamp) {
        status =
            fail_usage("%sweight_clamp false has no effect with loss_type %s, whose weights are normalised "
                       "and never clamped; remove it",
                       c->where, names);
    }
    free(reason);
    TRY(status);
    return check_taken(c, "weight_sides", o->weight_sides != WEIGHT_BOTH, takes_sides, EVERY,
                       "losses of pairs, and all_pairs");
}

/* -- the doors -------------------------------------------------------------------------------- */

enum status keys_check_objective(struct settings *settings, struct loss_lists *losses,
                                 const struct given *given, const char *where)
{
    struct chosen c = {settings, &settings->objective, losses, given, where};
    TRY(losses_read(c.objective, losses, where));
    TRY(fill_defaults(&c));
    TRY(check_ranges(&c));
    TRY(check_weighting(&c));
    TRY(check_keys(&c));
    return check_pairs_of_keys(&c);
}

static enum status check_reference(const struct chosen *c)
{
    const struct settings *s = c->settings;
    const struct objective *o = c->objective;
    TRY(check_above(c, "ref_model_mixup_alpha", s->ref_model_mixup_alpha));
    if (!s->sync_ref_model && (s->ref_model_mixup_alpha != 0.6 || s->ref_model_sync_steps != 512)) {
        return fail_usage("%s%s has no effect unless sync_ref_model is true; set it, or remove the key",
                          c->where,
                          s->ref_model_mixup_alpha != 0.6 ? "ref_model_mixup_alpha" : "ref_model_sync_steps");
    }
    if (objective_uses_reference(o)) return STATUS_OK;
    const char *names = o->reference_free ? "reference_free" : "loss_type ";
    const char *losses = o->reference_free ? "" : c->losses->loss_type;
    if (s->ref_model_name_or_path) {
        return fail_usage("%s%s%s has no reference; remove ref_model_name_or_path", c->where, names, losses);
    }
    if (s->sync_ref_model) {
        return fail_usage("%s%s%s has no reference that could follow; remove sync_ref_model", c->where, names,
                          losses);
    }
    return STATUS_OK;
}

enum status keys_check_loss(struct runfile *runfile, const struct given *given, const char *where)
{
    struct settings *settings = &runfile->settings;
    const struct objective *o = &settings->objective;
    struct chosen c = {settings, &settings->objective, &runfile->losses, given, where};
    TRY(keys_check_objective(settings, &runfile->losses, given, where));
    TRY(check_reference(&c));
    if (settings->log_pairs && objective_shape(o) != GROUP_PAIR) {
        return fail_usage("%sloss_type %s has no pairs; remove log_pairs", where, runfile->losses.loss_type);
    }
    bool open = is_given(given, "loss_type") && !is_given(given, "weighting");
    if (open && o->weighting == WEIGHTING_SAMPLED) {
        runfile_note(runfile,
                     "weighting is not given: sampled, which makes it WPO; weighting: none is plain DPO");
    } else if (open && !(objective_kind(o).traits & TRAIT_UNWEIGHTED)) {
        runfile_note(
            runfile,
            "weighting is not given: none, as loss_type is %s; weighting: sampled adds WPO's weights",
            runfile->losses.loss_type);
    }
    return STATUS_OK;
}
