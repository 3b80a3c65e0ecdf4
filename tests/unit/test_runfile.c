#include "kernels/ops.h"
#include "launcher/keyfile.h"
#include "tests/unit/runfiles.h"

static void test_table(void)
{
    for (int i = 0; i < RUN_KEYS; i++)
        CHECK(run_keys[i].name && run_keys[i].meaning);
    for (int i = 0; i < RUN_KEYS; i++) {
        CHECK(options_find(run_keys, RUN_KEYS, run_keys[i].name, strlen(run_keys[i].name)) == &run_keys[i]);
        CHECK(!key_alias(run_keys[i].name) && !key_foreign(run_keys[i].name));
    }
    for (const struct foreign_key *key = foreign_keys; key->name; key++)
        CHECK(!key_alias(key->name));
}

static void test_defaults(void)
{
    struct runfile r;
    CHECK(read_run(&r, "", "") == STATUS_OK);
    const struct settings *s = &r.settings;
    CHECK(!strcmp(s->model_name_or_path, "m") && !s->ref_model_name_or_path && !s->eval_file);
    CHECK(s->objective.term_count == 1 && s->objective.terms[0].type == LOSS_SIGMOID);
    CHECK(s->objective.beta == 0.1 && s->objective.label_smoothing == 0);
    CHECK(!s->sync_ref_model && s->ref_model_mixup_alpha == 0.6 && s->ref_model_sync_steps == 512);
    CHECK(!s->has_min_margin);
    CHECK(s->objective.weighting == WEIGHTING_SAMPLED && s->objective.weight_sides == WEIGHT_BOTH);
    CHECK(s->objective.weight_clamp && s->learning_rate == 1e-6 && s->weight_decay == 0);
    CHECK(s->adam_beta1 == 0.9 && s->adam_beta2 == 0.999 && s->adam_epsilon == 1e-8 && s->max_grad_norm == 1);
    CHECK(s->lr_scheduler_type == SCHEDULE_LINEAR && s->warmup_ratio == 0 && s->warmup_steps == 0);
    CHECK(s->num_train_epochs == 3 && s->max_steps == -1 && s->per_device_train_batch_size == 8);
    CHECK(s->per_device_eval_batch_size == 8 && s->gradient_accumulation_steps == 1 &&
          s->global_batch_size == 0);
    CHECK(s->seed == 42 && !s->gradient_checkpointing && s->zero_stage == 1 && s->logits_megabytes == 0);
    CHECK(s->threads == 0 && !strcmp(s->device, "auto") && s->logging_steps == 10 &&
          s->eval_strategy == WHEN_NO);
    CHECK(s->save_strategy == WHEN_STEPS && s->save_steps == 500 && s->save_total_limit == 0);
    CHECK(!s->resume_from_checkpoint && !s->log_pairs && s->hash_steps == 100 && !r.overwrite_output_dir);
    CHECK(r.note_count == 0);
    runfile_free(&r);
}

static void test_values(void)
{
    struct runfile r;
    CHECK(read_run(
              &r,
              "learning_rate: 5e-7\nbeta: '1e-2'\nlr_scheduler_type: constant_with_warmup\nwarmup_steps: 3\n",
              "--beta 0.5 --no-weight_clamp --log-pairs") == STATUS_OK);
    CHECK(r.settings.learning_rate == 5e-7 && r.settings.objective.beta == 0.5);
    CHECK(!r.settings.objective.weight_clamp && r.settings.log_pairs);
    CHECK(r.settings.lr_scheduler_type == SCHEDULE_CONSTANT && r.settings.warmup_steps == 3);
    runfile_free(&r);
    CHECK(read_run(&r, "eval_file: e\n", "") == STATUS_OK && r.settings.eval_strategy == WHEN_EPOCH);
    runfile_free(&r);
    CHECK(read_run(&r, "eval_file: e\neval_steps: 5\n", "") == STATUS_OK &&
          r.settings.eval_strategy == WHEN_STEPS);
    runfile_free(&r);
    CHECK(read_run(&r, "resume_from_checkpoint: true\n", "") == STATUS_OK);
    CHECK(!strcmp(r.settings.resume_from_checkpoint, "auto"));
    runfile_free(&r);
    CHECK(read_run(&r, "resume_from_checkpoint: auto\n", "--resume_from_checkpoint false") == STATUS_OK);
    CHECK(!r.settings.resume_from_checkpoint);
    runfile_free(&r);
}

static void test_aliases(void)
{
    struct runfile r;
    CHECK(read_run(&r, "dpo_beta: 0.3\nuse_weighting: false\nlr: 1e-5\nmicro_batch_size: 2\nref_model: q\n",
                   "") == STATUS_OK);
    CHECK(r.settings.objective.beta == 0.3 && r.settings.objective.weighting == WEIGHTING_NONE);
    CHECK(r.settings.learning_rate == 1e-5 && r.settings.per_device_train_batch_size == 2);
    CHECK(!strcmp(r.settings.ref_model_name_or_path, "q") && r.note_count == 5);
    CHECK_TEXT(r.notes[0], "dpo_beta 0.3 is read as beta: 0.3");
    runfile_free(&r);
    CHECK(read_run(&r, "use_weighting: true\n", "") == STATUS_OK);
    CHECK(r.settings.objective.weighting == WEIGHTING_SAMPLED);
    runfile_free(&r);
    CHECK(read_run(&r,
                   "fp16: false\noptim: adamw_torch\nreport_to: [none]\nlora_target_modules: [q, k]\n"
                   "precompute_ref_log_probs: true\ngradient_checkpointing_kwargs: {use_reentrant: false}\n",
                   "--disable_dropout true") == STATUS_OK);
    CHECK(r.note_count == 1);
    CHECK_TEXT(r.notes[0], "fp16, optim, report_to, lora_target_modules, precompute_ref_log_probs, "
                           "gradient_checkpointing_kwargs, disable_dropout");
    runfile_free(&r);
}

static void test_errors(void)
{
    static const char *const cases[][3] = {
        {"betta: 1\n", "", ":4: betta is no key of wpo (did you mean beta?)"},
        {"beta: 1\nbeta: 1\n", "", ":5: beta is given twice"},
        {"beta: 1\ndpo_beta: 1\n", "", "the same as"},
        {"", "--beta 1 --beta 1", "--beta is given twice"},
        {"", "--betta 1", "--betta is no key of wpo (did you mean --beta?)"},
        {"", "other.yaml", "one word too many"},
        {"", "--beta", "--beta needs a value"},
        {"beta: 12abc\n", "", ":4: beta is '12abc', which is not a number"},
        {"learning_rate: 1e99\n", "", ":4: learning_rate is 1e99, but it must be from 0 to 1"},
        {"beta: -1\n", "", "beta is -1"},
        {"beta: .nan\n", "", "not a number"},
        {"beta:\n", "", "beta has no value; remove the key for the default, by loss_type"},
        {"beta: [null]\n", "", "beta has no value"},
        {"beta: ''\n", "", "not a number"},
        {"beta: 0\n", "", "beta is 0, but it must be above 0"},
        {"beta: [0.1, 0.2]\n", "", "beta holds several values"},
        {"beta: {a: 1}\n", "", "beta holds several values"},
        {"beta: 0.1,0.2\n", "", "not a number"},
        {"beta: [[0.1]]\n", "", "beta holds several values"},
        {"eval_file: [a, b]\n", "", "eval_file holds several values"},
        {"beta: [[[[[[[[[[[[1]]]]]]]]]]]]\n", "", "nested too deeply"},
        {"seed: 1.5\n", "", "seed is '1.5', which is not a whole number"},
        {"log_pairs: 2\n", "", "must be true or false"},
        {"eval_file: ''\n", "", "eval_file is empty"},
        {"eval_file: \"a\\nb\"\n", "", "eval_file holds control characters"},
        {"eval_file: \"a\\0b\"\n", "", "NUL"},
        {"beta: &a 1\n", "", ":4: anchors"},
        {"a: &a [x,x]\nb: *a\n", "", "anchors"},
        {"beta: !!float 1\n", "", "anchors (&), aliases (*) and tags (!)"},
        {"---\nbeta: 1\n", "", "a second document begins here"},
        {"\tbeta: 1\n", "", "not with tabs"},
        {"beta:0.1\nseed: 1\n", "", "a space after the colon"},
        {"? [a]\n: 1\n", "", "a key is expected here"},
        {"two words: 1\n", "", "is not a key"},
        {"beta: \"1\n", "", "not valid YAML"},
        {"beta: 1\n  - 2\n", "", "beta is '1 - 2', which is not a number"},
        {"eval_file: \xff\xfe\n", "", ":4: not UTF-8"},
        {"eval_file: caf\xe9\n", "", ":4: not UTF-8"},
        {"bf16: true\n", "", "the key for it is dtype"},
        {"fp16: true\n", "", "fp16 is 'true', which wpo does not do"},
        {"device: cpu\ndtype: bfloat16\n", "", "device cpu computes in float32"},
        {"dtype: float32\ngradient_dtype: bfloat16\n", "",
         "gradient_dtype is bfloat16, but dtype is float32"},
        {"max_length: 512\n", "", "lengths are decided by wpo prepare"},
        {"max_length: 512\nrun_name: x\nbf16: true\nfsdp: full\n", "",
         "remove the key, and these, refused too: bf16, fsdp"},
        {"", "--beta 0", " and the command line: beta is 0, but it must be above 0"},
        {"beta: -1\n", "", "beta is -1, but it must be from 0 to 1000, above 0"},
        {"report_to: [wandb, none]\n", "", "report_to asks for more than wpo has"},
        {"zero_stage: 3\n", "", "zero_stage is 3, but it must be from 0 to 1"},
        {"adam_beta1: 1\n", "", "adam_beta1 is 1"},
        {"adam_beta2: 1\n", "", "adam_beta2 is 1"},
        {"adam_epsilon: 0\n", "", "adam_epsilon is 0"},
        {"warmup_ratio: 0.1\nwarmup_steps: 5\n", "", "both given"},
        {"lr_scheduler_type: constant\nwarmup_steps: 5\n", "", "constant_with_warmup"},
        {"num_train_epochs: 0\n", "", "num_train_epochs is 0"},
        {"max_steps: 0\n", "", "max_steps is 0"},
        {"global_batch_size: 8\ngradient_accumulation_steps: 2\n", "", "each decides the other"},
        {"eval_strategy: steps\n", "", "there is no eval_file"},
        {"eval_steps: 5\n", "", "but no eval_file"},
        {"eval_file: e\neval_strategy: steps\n", "", "needs eval_steps"},
        {"save_steps: 0\n", "", "save_steps is 0"},
        {"save_steps: -5\n", "", "save_steps is -5"},
        {"resume_from_checkpoint: auto\noverwrite_output_dir: true\n", "", "exclude each other"},
#ifndef WPO_CUDA
#endif
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_fails(cases[i][0], cases[i][1], cases[i][2]);
    if (!cuda_ops()) check_fails("device: cuda\n", "", "built without CUDA");
}

static void check_file_fails(const char *bytes, size_t count, const char *sentence)
{
    struct runfile runfile;
    char *words[] = {path};
    write_bytes(bytes, count);
    CHECK(runfile_read(&runfile, 1, words) == STATUS_USAGE);
    CHECK_TEXT(status_sentence(), sentence);
}

static void test_files(void)
{
    static const char *const cases[][2] = {{"", "the file is empty"},
                                           {"# nothing\n", "the file is empty"},
                                           {"text\n", "'key: value' lines are expected"},
                                           {"- a\n", "'key: value' lines are expected"},
                                           {"beta: 1\n", "model_name_or_path is missing"},
                                           {"model_name_or_path: m\n", "train_file is missing"},
                                           {"model_name_or_path: null\n", "model_name_or_path has no value"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_file_fails(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    }
    enum { LARGE = (1 << 20) + 1 };
    char *large = malloc(LARGE);
    memset(large, '#', LARGE);
    check_file_fails(large, LARGE, path);
    memset(large, '[', LARGE);
    check_file_fails(large, LARGE / 2, "lines are expected");
    memcpy(large, "beta: ", 6);
    check_file_fails(large, LARGE / 2, "nested too deeply");
    free(large);
    check_file_fails("beta: 1\0x\n", 10, "not UTF-8 text");
    struct runfile runfile;
    char *missing[] = {"/nowhere/run.yaml"};
    CHECK(runfile_read(&runfile, 1, missing) == STATUS_USAGE);
    CHECK_TEXT(status_sentence(), "/nowhere/run.yaml");
    CHECK(runfile_read(&runfile, 0, NULL) == STATUS_USAGE);
    CHECK_TEXT(status_sentence(), "the run file is missing");
}

/* The resolved text reads back to itself and to the same settings. */
static void test_round_trip(void)
{
    static const char *const cases[] = {
        "",
        "eval_file: e\n",
        "eval_file: e\neval_steps: 7\nsave_total_limit: 3\nbeta: 0.30000000000000004\n",
        "loss_type: sft\n",
        "weighting: none\nsave_strategy: 'no'\n",
        "lr_scheduler_type: constant_with_warmup\nwarmup_ratio: 0.1\nresume_from_checkpoint: 'no such: "
        "#folder'\n",
        "eval_file: \"a \\\"quoted\\\" \\\\ caf\\u00e9 \\u2028 \\ufeff\\U0001f600\"\neval_strategy: no\n",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct runfile first, second;
        char *words[] = {path};
        CHECK(read_run(&first, cases[i], "") == STATUS_OK);
        write_bytes(first.text, strlen(first.text));
        enum status status = runfile_read(&second, 1, words);
        CHECK(status == STATUS_OK);
        if (status == STATUS_OK) {
            CHECK(!strcmp(first.text, second.text));
            CHECK(first.settings.objective.beta == second.settings.objective.beta);
            CHECK(first.settings.eval_strategy == second.settings.eval_strategy);
            CHECK(first.settings.lr_scheduler_type == second.settings.lr_scheduler_type);
            bool both = first.settings.eval_file && second.settings.eval_file;
            CHECK(both ? !strcmp(first.settings.eval_file, second.settings.eval_file)
                       : !first.settings.eval_file && !second.settings.eval_file);
            runfile_free(&second);
        } else {
            fprintf(stderr, "case %zu: %s\n%s", i, status_sentence(), first.text);
        }
        runfile_free(&first);
    }
}

static char differences[512];

static void collect(void *context, const char *sentence)
{
    (void)context;
    strcat(strcat(differences, sentence), ";");
}

static void test_text(void)
{
    struct runfile first, second;
    CHECK(read_run(&first, "eval_file: 'a: b'\n", "") == STATUS_OK);
    CHECK(read_run(&second, "beta: 0.5\n", "--resume_from_checkpoint auto") == STATUS_OK);
    char *value;
    CHECK(runfile_text_value(first.text, "eval_file", &value) == STATUS_OK && !strcmp(value, "a: b"));
    free(value);
    CHECK(runfile_text_value(first.text, "learning_rate", &value) == STATUS_OK && !strcmp(value, "1e-06"));
    free(value);
    CHECK(runfile_text_value(second.text, "eval_file", &value) == STATUS_OK && !value);
    CHECK(runfile_text_value(first.text, "nothing", &value) == STATUS_BAD && !value);
    /* A key that the stored file lacks is no change where it has its default. */
    static const char *const later[] = {"\nrpo_alpha", "\nref_model_mixup_alpha", "\nf_divergence_type",
                                        "\nsync_ref_model"};
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        char *line = strstr(first.text, later[i]);
        CHECK(line != NULL);
        if (line) line[1] = '#';
    }
    CHECK(runfile_differences(first.text, second.text, collect, NULL) == STATUS_OK);
    CHECK(!strcmp(differences, "eval_file: a: b -> null;beta: 0.1 -> 0.5;eval_strategy: epoch -> no;"));
    runfile_free(&first);
    runfile_free(&second);
    CHECK(keyfile_quoted("caf\xe9") == NULL && keyfile_quoted("a\nb") == NULL &&
          keyfile_quoted("\xc0\x80") == NULL);
    CHECK(keyfile_quoted("\xed\xa0\x80") == NULL && keyfile_quoted("\xf4\x90\x80\x80") == NULL);
}

/* docs/runfile.md holds the table as it is. */
static void test_documentation(void)
{
    const char *source = getenv("WPO_SOURCE");
    if (!source || !*source) return;
    char *name = text_format("%s/docs/runfile.md", source), *table, page[1 << 17];
    FILE *file = fopen(name, "r");
    CHECK(file != NULL);
    if (file) {
        page[fread(page, 1, sizeof page - 1, file)] = 0;
        fclose(file);
        size_t bytes;
        FILE *stream = open_memstream(&table, &bytes);
        keys_print(stream);
        fclose(stream);
        CHECK(strstr(page, table) != NULL);
        free(table);
    }
    free(name);
}

int main(void)
{
    if (mkstemp(path) < 0) return 1;
    test_table();
    test_defaults();
    test_values();
    test_aliases();
    test_errors();
    test_files();
    test_round_trip();
    test_text();
    test_documentation();
    unlink(path);
    return check_result();
}
