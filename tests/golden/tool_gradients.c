/* tool_gradients MODEL GROUPS REFERENCE OUT.bin [--beta B] [--weighting W] [--label_smoothing E] [--loss_type
 * L]
 *                [--weight_sides S] [--weight_clamp 0|1] [--micro M] [--recompute 0|1] [--logits_megabytes M]
 *
 * Writes the gradient of the mean loss over all groups as raw f32, tensors in the order of the parameter
 * table without gaps, for oracles in other languages. Prints the loss. */
#include "kernels/require.h"
#include "tests/trial.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int index_of(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i])) return i;
    DIE("unknown value %s", text);
}

static int64_t parse(int argc, char **argv, struct settings *s)
{
    static const char *const weightings[] = {"none", "unaligned", "sampled", "greedy", NULL};
    static const char *const sides[] = {"both", "chosen", "rejected", NULL};
    static const char *const losses[] = {"sigmoid", "sft", NULL};
    int64_t micro = 4;
    for (int i = 5; i + 1 < argc; i += 2) {
        const char *key = argv[i], *value = argv[i + 1];
        if (!strcmp(key, "--beta"))
            s->objective.beta = atof(value);
        else if (!strcmp(key, "--weighting"))
            s->objective.weighting = (enum weighting)index_of(value, weightings);
        else if (!strcmp(key, "--label_smoothing"))
            s->objective.label_smoothing = atof(value);
        else if (!strcmp(key, "--loss_type"))
            s->objective.loss_type = (enum loss_type)index_of(value, losses);
        else if (!strcmp(key, "--weight_sides"))
            s->objective.weight_sides = (enum weight_sides)index_of(value, sides);
        else if (!strcmp(key, "--weight_clamp"))
            s->objective.weight_clamp = atoi(value) != 0;
        else if (!strcmp(key, "--micro"))
            micro = atoi(value);
        else if (!strcmp(key, "--recompute"))
            s->gradient_checkpointing = atoi(value) != 0;
        else if (!strcmp(key, "--logits_megabytes"))
            s->logits_megabytes = atoi(value);
        else
            DIE("unknown option %s", key);
    }
    return micro;
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

int main(int argc, char **argv)
{
    REQUIRE(argc >= 5, "usage: tool_gradients MODEL GROUPS REFERENCE OUT.bin [--key value ...]");
    char device[] = "cpu";
    struct settings s = {.objective = {.beta = 0.1, .weighting = WEIGHTING_SAMPLED, .weight_clamp = true},
                         .model_name_or_path = argv[1],
                         .logits_megabytes = 64,
                         .device = device};
    int64_t micro = parse(argc, argv, &s);
    struct trial trial;
    struct step_result result;
    trial_open(&trial, &s, argv[2], argv[3], 0, micro);
    must(train_step(&trial.trainer, 0, &result)); /* the learning rate is 0: parameters stay */
    write_gradients(&trial.engine, argv[4]);
    printf("{\"loss\": %.17g, \"grad_norm\": %.17g}\n", tally_loss(&result.tally, &s.objective),
           result.gradient_norm);
    trial_close(&trial);
    return 0;
}
