/* tool_gradients MODEL GROUPS REFERENCE OUT.bin [--beta B] [--weighting W] [--label_smoothing E] [--loss_type
 * L]
 *                [--weight_sides S] [--weight_clamp 0|1] [--micro M] [--recompute 0|1] [--logits_megabytes M]
 *
 * Writes the gradient of the mean loss over all groups as raw f32, tensors in the order of the parameter
 * table without gaps, for oracles in other languages. Prints the loss. */
#include "kernels/require.h"
#include "runtime/step.h"

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

static void must(enum status status)
{
    REQUIRE(status == STATUS_OK, "%s", status_sentence());
}

static void write_gradients(const struct engine *e, const char *path)
{
    FILE *file = fopen(path, "wb");
    REQUIRE(file, "cannot write %s", path);
    for (int64_t i = 0; i < e->params.count; i++) {
        const struct parameter *p = &e->params.list[i];
        REQUIRE(fwrite(e->model.gradients + p->offset, sizeof(float), (size_t)p->count, file) ==
                    (size_t)p->count,
                "cannot write %s", path);
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
    struct comm comm;
    struct groups groups;
    struct engine e;
    struct optimiser optimiser;
    struct order order;
    char fingerprint[65];
    must(comm_open(&comm));
    must(groups_open(&groups, argv[2]));
    must(engine_open(&e, &comm, &s, s.gradient_checkpointing ? MODEL_RECOMPUTE : MODEL_TRAIN,
                     batch_measure(&groups, micro)));
    optimiser_open(&optimiser, &e.arena, &comm, &e.model, 1);
    must(engine_place(&e));
    optimiser_prepare(&optimiser);
    order_open(&order, &groups, groups.group_count, 0, false);

    double *reference = allocate(groups.completion_count, sizeof *reference);
    struct completion_sums *sums = allocate(groups.completion_count, sizeof *sums);
    must(engine_load(&e, argv[3], fingerprint));
    must(engine_score(&e, &order, 0, 1, micro, NULL, "reference", sums));
    for (int64_t i = 0; i < groups.completion_count; i++)
        reference[i] = sums[i].logp;
    must(engine_load(&e, argv[1], fingerprint));

    struct trainer trainer = {.engine = &e,
                              .optimiser = &optimiser,
                              .groups = &groups,
                              .order = &order,
                              .reference = objective_uses_reference(s.objective.loss_type) ? reference : NULL,
                              .micro = micro,
                              .total_steps = 1};
    struct step_result result;
    trainer_open(&trainer, false);
    must(train_step(&trainer, 0, &result)); /* the learning rate is 0: parameters stay */
    write_gradients(&e, argv[4]);
    printf("{\"loss\": %.17g, \"grad_norm\": %.17g}\n", tally_loss(&result.tally, &s.objective),
           result.gradient_norm);

    trainer_close(&trainer);
    free(reference);
    free(sums);
    order_close(&order);
    optimiser_close(&optimiser);
    engine_close(&e);
    groups_close(&groups);
    comm_close(&comm);
    return 0;
}
