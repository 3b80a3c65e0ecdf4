/* What run files say of the objective: lists, defaults by loss, and what does not go together. */
#include "tests/unit/runfiles.h"

static const char *name_of(int type)
{
    return loss_kind((enum loss_type)type).name;
}

static bool same(const struct objective *a, const struct objective *b)
{
    bool terms = a->term_count == b->term_count;
    for (int64_t i = 0; terms && i < a->term_count; i++)
        terms = a->terms[i].type == b->terms[i].type && a->terms[i].weight == b->terms[i].weight;
    return terms && a->weighting == b->weighting && a->weight_sides == b->weight_sides &&
           a->weight_clamp == b->weight_clamp && a->reference_free == b->reference_free &&
           a->nll_on_prompt == b->nll_on_prompt && a->f_divergence_type == b->f_divergence_type &&
           a->score_type == b->score_type && a->beta == b->beta && a->label_smoothing == b->label_smoothing &&
           a->gamma_beta_ratio == b->gamma_beta_ratio && a->discopop_tau == b->discopop_tau &&
           a->f_alpha_divergence_coef == b->f_alpha_divergence_coef &&
           a->desirable_weight == b->desirable_weight && a->undesirable_weight == b->undesirable_weight &&
           a->rpo_alpha == b->rpo_alpha && a->ld_alpha == b->ld_alpha && a->length_alpha == b->length_alpha &&
           a->optimism_alpha == b->optimism_alpha && a->vpo_alpha == b->vpo_alpha &&
           a->reward_margin_beta == b->reward_margin_beta;
}

/* The table of keys and objective_of() state the same defaults. */
static void test_defaults(void)
{
    for (int type = 0; type < LOSS_COUNT; type++) {
        struct runfile r;
        char line[64];
        bool sigmoid = type == LOSS_SIGMOID;
        struct objective o = objective_of((enum loss_type)type, sigmoid ? WEIGHTING_SAMPLED : WEIGHTING_NONE);
        snprintf(line, sizeof line, "loss_type: %s\n", name_of(type));
        CHECK(read_run(&r, line, "") == STATUS_OK);
        CHECK(same(&r.settings.objective, &o));
        bool choice = !(loss_kind((enum loss_type)type).traits & TRAIT_UNWEIGHTED);
        CHECK(r.note_count == choice);
        if (choice)
            CHECK_TEXT(r.notes[0], sigmoid ? "weighting is not given: sampled" : "given: none, as loss_type");
        runfile_free(&r);
    }
    struct runfile r;
    CHECK(read_run(&r, "loss_type: simpo\nweighting: none\n", "") == STATUS_OK && r.note_count == 0);
    CHECK_TEXT(r.text, "\nbeta: 2\n");
    CHECK_TEXT(r.text, "\ngamma_beta_ratio: 0.5\n");
    CHECK_TEXT(r.text, "\nrpo_alpha: 0\n");
    CHECK_TEXT(r.text, "\nmin_margin: null\n");
    CHECK_TEXT(r.text, "\nloss_weights: null\n");
    runfile_free(&r);
}

static void test_lists(void)
{
    static const char *const cases[][2] = {
        {"loss_type: [sigmoid, sft]\n", ""},
        {"loss_type: ['sigmoid', \"sft\"]\nloss_weights: [1, 1.0]\n", ""},
        {"loss_type:\n  - sigmoid\n  - sft\nloss_weights:\n- 1\n- 1\n", ""},
        {"loss_type: sigmoid,sft\n", ""},
        {"loss_type: \" sigmoid , sft \"\nloss_weights: '1, 1'\n", ""},
        {"", "--loss_type sigmoid,sft"},
        {"loss_type: [ipo, nca_pair]\n", "--loss_type sigmoid,sft --loss_weights=1,1"},
    };
    struct objective o = objective_of(LOSS_SIGMOID, WEIGHTING_NONE);
    o.terms[1] = (struct loss_term){LOSS_SFT, 1};
    o.term_count = 2;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct runfile r;
        CHECK(read_run(&r, cases[i][0], cases[i][1]) == STATUS_OK);
        CHECK(same(&r.settings.objective, &o));
        CHECK_TEXT(r.text, "\nloss_type: [sigmoid,sft]\n");
        CHECK_TEXT(r.text, strstr(cases[i][0], "weights") || strstr(cases[i][1], "weights")
                               ? "\nloss_weights: [1,1]\n"
                               : "\nloss_weights: null\n");
        char *value;
        CHECK(runfile_text_value(r.text, "loss_type", &value) == STATUS_OK && !strcmp(value, "sigmoid,sft"));
        free(value);
        runfile_free(&r);
    }
    struct runfile r;
    CHECK(read_run(&r, "loss_type: [\"sigmoid\"]\nweighting: sampled\n", "") == STATUS_OK);
    CHECK(r.settings.objective.term_count == 1 && r.settings.objective.weighting == WEIGHTING_SAMPLED);
    CHECK_TEXT(r.text, "\nloss_type: sigmoid\n");
    runfile_free(&r);
    CHECK(read_run(&r, "loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, .2, 1e0]\n", "") ==
          STATUS_OK);
    CHECK(r.settings.objective.term_count == 3 && r.settings.objective.terms[1].type == LOSS_BCO_PAIR);
    CHECK(r.settings.objective.terms[0].weight == 0.8 && r.settings.objective.terms[1].weight == 0.2);
    CHECK_TEXT(r.text, "\nloss_weights: [0.8,0.2,1]\n");
    runfile_free(&r);
    CHECK(read_run(&r, "", "--loss_type [hinge,sft] --loss_weights [1,3]") == STATUS_OK);
    CHECK(r.settings.objective.term_count == 2 && r.settings.objective.terms[1].weight == 3);
    runfile_free(&r);
    CHECK(read_run(&r, "loss_type: [hinge, exo_pair]\n", "") ==
          STATUS_OK); /* only one of them takes smoothing */
    CHECK(r.settings.objective.label_smoothing == 1e-3);
    runfile_free(&r);
}

static void test_aliases(void)
{
    static const char *const names[] = {"rpo_alpha", "cpo_alpha", "sft_weight", "pref_ftx"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct runfile r;
        char line[64];
        snprintf(line, sizeof line, "%s: 0.25\n", names[i]);
        CHECK(read_run(&r, line, "") == STATUS_OK && r.settings.objective.rpo_alpha == 0.25);
        CHECK(r.note_count == (i > 0) + (i == 1));
        if (i == 1) CHECK_TEXT(r.notes[1], "TRL's CPO trainer, which has no reference");
        if (i > 0) CHECK_TEXT(r.notes[0], "tokens of all chosen completions of the global batch");
        runfile_free(&r);
    }
    struct runfile r;
    CHECK(read_run(&r, "loss_type: kto\nkto_chosen_weight: 2\nkto_undesirable_weight: 3\n", "") == STATUS_OK);
    CHECK(r.settings.objective.desirable_weight == 2 && r.settings.objective.undesirable_weight == 3);
    runfile_free(&r);
    CHECK(read_run(&r, "loss_type: cpo\nrpo_alpha: null\nld_alpha: null\nloss_weights: null\n", "") ==
          STATUS_OK);
    CHECK(r.settings.objective.rpo_alpha == 1 && r.settings.objective.ld_alpha == 1);
    runfile_free(&r);
    CHECK(read_run(&r, "loss_type: ipo\nuse_weighting: true\n", "") == STATUS_OK);
    CHECK(r.settings.objective.weighting == WEIGHTING_SAMPLED && r.note_count == 1);
    runfile_free(&r);
}

/* What goes together, each with what it must read as. */
static const char *const accepted[][2] = {
    {"loss_type: sigmoid\nlabel_smoothing: 0.499\n", "label_smoothing: 0.499"},
    {"loss_type: [hinge, robust]\nlabel_smoothing: 0.1\n", "label_smoothing: 0.1"},
    {"loss_type: simpo\ngamma_beta_ratio: 0\n", "gamma_beta_ratio: 0"},
    {"loss_type: [simpo, sft]\n", "gamma_beta_ratio: 0.5"},
    {"loss_type: discopop\ndiscopop_tau: 1\n", "discopop_tau: 1"},
    {"loss_type: bco\ndesirable_weight: 0.5\nundesirable_weight: 2\n", "undesirable_weight: 2"},
    {"loss_type: plackett_luce\nrpo_alpha: 0.5\nnll_on_prompt: true\n", "nll_on_prompt: true"},
    {"loss_type: sft\nnll_on_prompt: true\n", "nll_on_prompt: true"},
    {"loss_type: sft\nloss_weights: 2\n", "loss_weights: 2"},
    {"loss_type: orpo\nrpo_alpha: 0\n", "rpo_alpha: 0"},
    {"loss_type: [cpo, sft]\nrpo_alpha: 0\n", "loss_type: [cpo,sft]"},
    {"loss_type: [sigmoid, sppo]\nbeta: 0.01\n", "beta: 0.01"},
    {"loss_type: aot\nld_alpha: 0\n", "ld_alpha: 0"},
    {"loss_type: orpo\nld_alpha: 0.5\n", "ld_alpha: 0.5"},
    {"loss_type: all_pairs\nlength_alpha: 0.01\nreward_margin_beta: 1\n", "reward_margin_beta: 1"},
    {"loss_type: [sigmoid, sft]\nlength_alpha: 0.01\n", "length_alpha: 0.01"},
    {"loss_type: ipo\nf_divergence_type: js_divergence\n", "f_divergence_type: js_divergence"},
    {"f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 2\n", "f_alpha_divergence_coef: 2"},
    {"optimism_alpha: 0.001\nweighting: sampled\n", "optimism_alpha: 0.001"},
    {"loss_type: [apo_zero, sft]\nvpo_alpha: 0.1\n", "vpo_alpha: 0.1"},
    {"loss_type: sppo\nscore_type: probability\n", "score_type: probability"},
    {"loss_type: plackett_luce\nreference_free: true\n", "reference_free: true"},
    {"loss_type: aot\nreference_free: true\n", "reference_free: true"},
    {"loss_type: apo_zero_unpaired\nreference_free: true\n", "reference_free: true"},
    {"loss_type: kto\nsync_ref_model: true\nref_model_mixup_alpha: 1\nref_model_sync_steps: 1\n",
     "ref_model_sync_steps: 1"},
    {"sync_ref_model: true\nref_model: q\n", "ref_model_mixup_alpha: 0.6"},
    {"loss_type: simpo\nmin_margin: 0\n", "min_margin: 0"},
    {"loss_type: kto\nweighting: greedy\n", "weighting: greedy"},
    {"loss_type: [sigmoid, sft]\nweighting: sampled\nweight_clamp: false\nweight_sides: rejected\n",
     "weight_sides: rejected"},
    {"loss_type: all_pairs\nweighting: sampled\nweight_sides: chosen\n", "weight_sides: chosen"},
    {"loss_type: plackett_luce\nweighting: sampled\nweight_clamp: false\n", "weight_clamp: false"},
    {"loss_type: [sft, sigmoid]\nlog_pairs: true\n", "log_pairs: true"},
};

/* The run folder's own file reads back to the same settings, without a note. */
static void test_accepted(void)
{
    for (size_t i = 0; i < sizeof accepted / sizeof accepted[0]; i++) {
        struct runfile first, second;
        char *words[] = {path}, line[128];
        bool good = read_run(&first, accepted[i][0], "") == STATUS_OK;
        CHECK(good);
        if (!good) {
            fprintf(stderr, "%s%s\n", accepted[i][0], status_sentence());
            continue;
        }
        snprintf(line, sizeof line, "\n%s\n", accepted[i][1]);
        CHECK_TEXT(first.text, line);
        write_bytes(first.text, strlen(first.text));
        good = runfile_read(&second, 1, words) == STATUS_OK;
        CHECK(good);
        if (good) {
            CHECK(!strcmp(first.text, second.text) && second.note_count == 0);
            CHECK(same(&first.settings.objective, &second.settings.objective));
            CHECK(first.settings.has_min_margin == second.settings.has_min_margin);
            runfile_free(&second);
        } else {
            fprintf(stderr, "%s%s\n", accepted[i][0], status_sentence());
        }
        runfile_free(&first);
    }
}

static const char *const refused[][2] = {
    /* lists */
    {"loss_type: sigmoidd\n", "loss_type is 'sigmoidd', but it must be one of sigmoid|robust|"},
    {"loss_type: sigmoidd\n", "|all_pairs (did you mean sigmoid?)"},
    {"loss_type: Hinge\n", "did you mean hinge?"},
    {"loss_type: dpo\n", "did you mean sigmoid with weighting none?"},
    {"loss_type: kto_pair\n", "did you mean kto, which takes pairs too?"},
    {"loss_type: xyzzy\n", "|all_pairs, or a list of them"},
    {"loss_type:\n", "loss_type has no value"},
    {"loss_type: []\n", "loss_type has no value"},
    {"loss_type: ''\n", "loss_type is empty"},
    {"loss_type: [sigmoid, null]\n", "loss_type is ''"},
    {"loss_type: 'sigmoid,'\n", "loss_type is ''"},
    {"loss_type: [[sigmoid], sft]\n", "holds several values"},
    {"loss_type: {sigmoid: 1}\n", "holds several values"},
    {"loss_type: [sigmoid, sigmoid]\n", "lists sigmoid twice"},
    {"loss_type: [sigmoid, hinge, robust, nca_pair, sft]\n", "more than 4 losses"},
    {"loss_type: [sigmoid, kto]\n", "lists kto, which is trained alone"},
    {"loss_type: [sft, plackett_luce]\n", "lists plackett_luce, which is trained alone"},
    {"loss_type: [sigmoid, aot]\n", "lists aot, which is trained alone"},
    {"loss_type: [sigmoid, sft, simpo]\n", "lists sigmoid and simpo, of which only one has a reference"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1]\n", "1 numbers, but loss_type has 2"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1, 2, x]\n", "3 numbers, but loss_type has 2"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1, x]\n", "loss_weights is 'x', which is not a number"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1, -1]\n", "loss_weights is -1, but it must be at least 0"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1, .inf]\n", "not a number"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [1, 1e999]\n", "too large"},
    {"loss_type: [sigmoid, sft]\nloss_weights: [0, 0]\n", "all 0"},
    {"loss_weights: 0\n", "all 0"},
    {"loss_weights: 1,1\n", "2 numbers, but loss_type has 1"},
    /* defaults that differ */
    {"loss_type: [sigmoid, sppo]\n",
     "beta is not given, and its default is 0.1 for sigmoid but 0.001 for sppo"},
    {"loss_type: [cpo, sft]\n", "rpo_alpha is not given, and its default is 1 for cpo but 0 for sft"},
    {"loss_type: [sigmoid, exo_pair]\n", "label_smoothing is not given"},
    /* ranges */
    {"beta: 0\n", "beta is 0, but it must be above 0"},
    {"label_smoothing: 0.5\n", "must be from 0 to below 0.5"},
    {"label_smoothing: 0.6\n", "from 0 to 0.5"},
    {"loss_type: exo_pair\nlabel_smoothing: 0\n", "with loss_type exo_pair it must be above 0"},
    {"loss_type: [hinge, exo_pair]\nlabel_smoothing: 0\n", "with loss_type exo_pair it must be above 0"},
    {"loss_type: simpo\ngamma_beta_ratio: -1\n", "gamma_beta_ratio is -1, but it must be at least 0"},
    {"loss_type: discopop\ndiscopop_tau: 0\n", "discopop_tau is 0, but it must be above 0"},
    {"loss_type: discopop\ndiscopop_tau: 1.5\n", "from 0 to 1"},
    {"loss_type: kto\ndesirable_weight: 0\n", "desirable_weight is 0"},
    {"loss_type: kto\nundesirable_weight: 0\n", "undesirable_weight is 0"},
    {"loss_type: kto\nundesirable_weight: -1\n", "undesirable_weight is -1"},
    {"rpo_alpha: -0.5\n", "rpo_alpha is -0.5"},
    {"ld_alpha: 1.5\n", "from 0 to 1"},
    {"length_alpha: -1\n", "length_alpha is -1"},
    {"reward_margin_beta: -1\n", "reward_margin_beta is -1"},
    {"optimism_alpha: -1\n", "optimism_alpha is -1"},
    {"vpo_alpha: -1\n", "vpo_alpha is -1"},
    {"min_margin: -1\n", "min_margin is -1"},
    {"f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: 1\n", "f_alpha_divergence_coef is 1"},
    {"sync_ref_model: true\nref_model_mixup_alpha: 0\n", "ref_model_mixup_alpha is 0"},
    {"sync_ref_model: true\nref_model_mixup_alpha: 1.1\n", "from 0 to 1"},
    {"sync_ref_model: true\nref_model_sync_steps: 0\n", "ref_model_sync_steps is 0"},
    /* keys that the loss does not take */
    {"loss_type: hinge\nlabel_smoothing: 0.1\n",
     "label_smoothing has no effect with loss_type hinge: it is for sigmoid"},
    {"loss_type: sft\nlabel_smoothing: 0.1\n", "label_smoothing has no effect with loss_type sft"},
    {"loss_type: sft\nbeta: 0.5\n", "beta has no effect with loss_type sft"},
    {"gamma_beta_ratio: 0.5\n", "gamma_beta_ratio has no effect with loss_type sigmoid: it is for simpo"},
    {"loss_type: [simpo, cpo]\nbeta: 1\nrpo_alpha: 0\n",
     "gamma_beta_ratio would change the margin of cpo too"},
    {"discopop_tau: 0.1\n", "it is for discopop"},
    {"score_type: probability\n", "it is for sppo"},
    {"desirable_weight: 2\n", "desirable_weight has no effect with loss_type sigmoid: it is for kto"},
    {"undesirable_weight: 2\n", "undesirable_weight has no effect"},
    {"loss_type: kto\nrpo_alpha: 1\n", "rpo_alpha has no effect with loss_type kto"},
    {"loss_type: sft\nrpo_alpha: 1\n", "rpo_alpha has no effect with loss_type sft"},
    {"nll_on_prompt: true\n", "nll_on_prompt has no effect without a likelihood term"},
    {"loss_type: plackett_luce\nld_alpha: 0.5\n", "ld_alpha has no effect"},
    {"loss_type: bco\nld_alpha: 0.5\n", "ld_alpha has no effect"},
    {"loss_type: sft\nld_alpha: 0.5\n", "ld_alpha has no effect"},
    {"loss_type: ipo\nlength_alpha: 0.1\n",
     "length_alpha has no effect with loss_type ipo: it is for sigmoid, robust"},
    {"loss_type: [sigmoid, nca_pair]\nlength_alpha: 0.1\n", "length_alpha has no effect"},
    {"loss_type: orpo\nreward_margin_beta: 0.1\n", "reward_margin_beta has no effect"},
    {"loss_type: simpo\nf_divergence_type: forward_kl\n", "f_divergence_type has no effect"},
    {"loss_type: apo_zero\nf_divergence_type: forward_kl\n", "f_divergence_type has no effect"},
    {"f_alpha_divergence_coef: 2\n", "f_alpha_divergence_coef has no effect unless"},
    {"f_alpha_divergence_coef: 1\n", "f_alpha_divergence_coef has no effect unless"},
    {"loss_type: simpo\noptimism_alpha: 0.1\n", "optimism_alpha has no effect"},
    {"loss_type: aot\noptimism_alpha: 0.1\n", "optimism_alpha has no effect"},
    {"loss_type: cpo\nvpo_alpha: 0.1\n", "vpo_alpha has no effect"},
    {"loss_type: kto\nvpo_alpha: 0.1\n", "vpo_alpha has no effect"},
    {"loss_type: all_pairs\nmin_margin: 1\n", "min_margin has no effect"},
    {"loss_type: sft\nmin_margin: 1\n", "min_margin has no effect"},
    /* reference */
    {"loss_type: simpo\nreference_free: true\n", "reference_free has no effect with loss_type simpo"},
    {"loss_type: kto\nreference_free: true\n", "reference_free has no effect with loss_type kto"},
    {"loss_type: bco\nreference_free: true\n", "reference_free has no effect with loss_type bco"},
    {"reference_free: true\nref_model: q\n", "that ref_model_name_or_path names"},
    {"reference_free: true\nsync_ref_model: true\n", "reference_free has no reference that could follow"},
    {"reference_free: true\nvpo_alpha: 0.1\n", "vpo_alpha needs a reference"},
    {"reference_free: true\noptimism_alpha: 0.1\n", "optimism_alpha needs a reference"},
    {"loss_type: sft\nref_model: q\n", "loss_type sft has no reference"},
    {"loss_type: simpo\nref_model: q\n", "loss_type simpo has no reference"},
    {"loss_type: [cpo, sft]\nrpo_alpha: 0\nsync_ref_model: true\n",
     "loss_type cpo,sft has no reference that"},
    {"ref_model_mixup_alpha: 0.5\n", "ref_model_mixup_alpha has no effect unless sync_ref_model is true"},
    {"ref_model_sync_steps: 10\n", "ref_model_sync_steps has no effect unless sync_ref_model is true"},
    /* weights */
    {"loss_type: sft\nweighting: sampled\n", "loss_type sft takes no weights"},
    {"loss_type: sft\nuse_weighting: true\n", "loss_type sft takes no weights"},
    {"loss_type: aot\nweighting: greedy\n", "loss_type aot takes no weights"},
    {"weighting: none\nweight_sides: chosen\n", "weight_sides has no effect with weighting none"},
    {"weighting: none\nweight_clamp: false\n", "weight_clamp false has no effect with weighting none"},
    {"loss_type: aot_unpaired\nweight_clamp: false\n", "weight_clamp false has no effect with loss_type aot"},
    {"loss_type: ipo\nweight_clamp: false\n", "weight_clamp false has no effect with weighting none"},
    {"loss_type: kto\nweighting: sampled\nweight_clamp: false\n", "whose weights are normalised"},
    {"loss_type: kto\nweighting: sampled\nweight_sides: chosen\n",
     "weight_sides has no effect with loss_type kto"},
    {"loss_type: plackett_luce\nweighting: sampled\nweight_sides: chosen\n", "weight_sides has no effect"},
    {"loss_type: sft\nlog_pairs: true\n", "loss_type sft has no pairs"},
    {"loss_type: kto\nlog_pairs: true\n", "loss_type kto has no pairs"},
    {"loss_type: all_pairs\nlog_pairs: true\n", "loss_type all_pairs has no pairs"},
    /* keys of others */
    {"simpo_gamma: 0.5\n", "gamma_beta_ratio, which is simpo_gamma / beta"},
    {"rpo_alpha: 1\ncpo_alpha: 1\n", "the same as"},
};

static void test_refused(void)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        check_fails(refused[i][0], "", refused[i][1]);
    check_fails("", "--loss_type sigmoid --loss_type sft", "--loss_type is given twice");
    check_fails("", "--loss_type sigmoid sft", "one word too many");
}

int main(void)
{
    if (mkstemp(path) < 0) return 1;
    test_defaults();
    test_lists();
    test_aliases();
    test_accepted();
    test_refused();
    unlink(path);
    return check_result();
}
