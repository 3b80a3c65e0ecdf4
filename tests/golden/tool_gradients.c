/* tool_gradients MODEL GROUPS REFERENCE OUT.bin [--key value ...]
 *
 * One step over all groups of the file as one global batch, with the keys of a run file. Writes the gradient
 * of the loss as raw f32, tensors in the order of the parameter table without gaps, for oracles in other
 * languages. Prints loss, norm and metrics as one JSON object. */
#include "kernels/require.h"
#include "launcher/runfile.h"
#include "runtime/json.h"
#include "tests/trial.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Short names of this tool, and flags as numbers. */
static char *plain(char *word, const char *before)
{
    static char batch[] = "--per_device_train_batch_size", again[] = "--gradient_checkpointing",
                on[] = "true", off[] = "false";
    if (!strcmp(word, "--micro")) return batch;
    if (!strcmp(word, "--recompute")) return again;
    if (!strcmp(before, "--recompute") || !strcmp(before, "--weight_clamp"))
        return !strcmp(word, "1") ? on : !strcmp(word, "0") ? off : word;
    return word;
}

/* The keys of the command line, through the same checks as a run's. */
static void read_keys(struct runfile *runfile, int argc, char **argv)
{
    enum { OWN = 7 };
    char path[] = "/tmp/tool-gradients-XXXXXX";
    int file = mkstemp(path);
    static const char device[] = "device: cpu\n";
    REQUIRE(file >= 0 && write(file, device, sizeof device - 1) > 0, "cannot write %s", path);
    close(file);
    char **words = allocate(argc + OWN, sizeof *words);
    char *own[OWN] = {path, "--model_name_or_path", argv[1], "--train_file", argv[2], "--output_dir", "/tmp"};
    memcpy(words, own, sizeof own);
    for (int i = 5; i < argc; i++)
        words[OWN + i - 5] = plain(argv[i], argv[i - 1]);
    enum status status = runfile_read(runfile, OWN + argc - 5, words);
    unlink(path);
    free(words);
    must(status);
}

static void write_gradients(const struct engine *e, const char *path)
{
    FILE *file = fopen(path, "wb");
    REQUIRE(file, "cannot write %s", path);
    for (int64_t i = 0; i < e->params.count; i++) {
        const struct parameter *p = &e->params.list[i];
        float *values = allocate(p->count, sizeof *values);
        REQUIRE(e->precision.gradient == DTYPE_FLOAT, "gradients are written as f32");
        e->ops->download(e->device, values, model_run_gradient(&e->model, p->offset, p->count).data,
                         (size_t)p->count * sizeof *values);
        REQUIRE(fwrite(values, sizeof *values, (size_t)p->count, file) == (size_t)p->count, "cannot write %s",
                path);
        free(values);
    }
    REQUIRE(fclose(file) == 0, "cannot write %s", path);
}

static void print_result(const struct trial *trial, const struct step_result *result)
{
    struct metric list[TALLY_METRICS];
    struct json *json = json_new();
    struct json_value root = json_root(json);
    int64_t count = tally_metrics(&result->tally, &trial->engine.settings->objective, true, false, list);
    for (int64_t i = 0; i < count; i++)
        if (isfinite(list[i].value)) json_put_number(root, list[i].name, list[i].value);
    json_put_number(root, "grad_norm", result->gradient_norm);
    char *text = json_text(json, 0);
    printf("%s\n", text);
    free(text);
    json_free(json);
}

int main(int argc, char **argv)
{
    REQUIRE(argc >= 5, "usage: tool_gradients MODEL GROUPS REFERENCE OUT.bin [--key value ...]");
    struct runfile runfile;
    read_keys(&runfile, argc, argv);
    struct settings *s = &runfile.settings;
    s->learning_rate = 0; /* parameters stay */
    s->zero_stage = 1;
    struct trial trial;
    struct step_result result;
    trial_open(&trial, s, argv[2], argv[3], 0, s->per_device_train_batch_size);
    must(train_step(&trial.trainer, 0, &result));
    write_gradients(&trial.engine, argv[4]);
    print_result(&trial, &result);
    trial_close(&trial);
    runfile_free(&runfile);
    return 0;
}
