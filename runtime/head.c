#include "runtime/head.h"

#include "kernels/require.h"

void head_open(struct head *head, struct arena *arena, struct model *model, struct batch_limits limits,
               size_t logits_bytes)
{
    const struct config *c = model->config;
    int64_t stride = (c->vocabulary + 31) / 32 * 32;
    int64_t budget = (int64_t)(logits_bytes / ((size_t)stride * sizeof(float)));
    int64_t wanted = limits.scored < budget ? limits.scored : budget;
    *head = (struct head){
        .model = model, .limits = limits, .chunk = wanted > 16 ? wanted : 16, .logits_stride = stride};
    bool train = model->mode != MODEL_SCORE;
    size_t size = dtype_bytes(model->precision.compute);
    int64_t completions = limits.completions, groups = limits.groups;
    if (limits.step_completions > completions) completions = limits.step_completions;
    if (limits.step_groups > groups) groups = limits.step_groups;
    head->limits.step_completions = completions;
    head->limits.step_groups = groups;
    arena_want(arena, "head", &head->hidden, limits.scored * c->width, size);
    arena_want(arena, "head", &head->normed, limits.scored * c->width, size);
    arena_want(arena, "logits", (void **)&head->logits, head->chunk * stride, sizeof(float));
    arena_want(arena, "head", (void **)&head->statistics, limits.scored * HEAD_STATISTICS, sizeof(float));
    arena_want(arena, "head", (void **)&head->sums, completions, sizeof(struct completion_sums));
    if (!train) return;
    arena_want(arena, "head", &head->dhidden, limits.scored * c->width, size);
    arena_want(arena, "head", &head->dnormed, limits.scored * c->width, size);
    arena_want(arena, "head", (void **)&head->coefficient, limits.scored, sizeof(float));
    arena_want(arena, "head", (void **)&head->results, groups, sizeof(struct group_result));
    arena_want(arena, "head", (void **)&head->data, limits.completions, sizeof *head->data);
}

static struct tensor scored_rows(const struct head *head, void *data, int64_t scored)
{
    return tensor_of(data, head->model->precision.compute, scored, head->model->config->width);
}

static struct tensor head_weight(const struct head *head)
{
    const struct parameter *p = params_head(head->model->params, head->model->config);
    return model_matrix(head->model, p, p->rows);
}

/* The rows that predict something, through the final norm. */
static struct tensor norm_scored(struct head *head, const struct batch *batch, struct tensor stream)
{
    struct model *m = head->model;
    struct tensor hidden = scored_rows(head, head->hidden, batch->scored), none = {0};
    struct tensor normed = scored_rows(head, head->normed, batch->scored);
    m->ops->gather_rows(m->device, hidden, stream, batch->on_device.source);
    m->ops->rmsnorm(m->device, normed, none, hidden, none,
                    model_vector(m, params_final_norm(m->params, m->config)), (float)m->config->norm_epsilon);
    return normed;
}

/* Logits of scored tokens first .. first+count-1 into the chunk buffer, and their statistics. */
static struct tensor chunk_logits(struct head *head, const struct batch *batch, struct tensor normed,
                                  int64_t first, int64_t count)
{
    struct model *m = head->model;
    struct tensor logits = tensor_of(head->logits, DTYPE_FLOAT, count, m->config->vocabulary);
    logits.stride = head->logits_stride;
    m->ops->matmul(m->device, logits, tensor_rows(normed, first, count), false, head_weight(head), true,
                   false);
    m->ops->head_statistics(m->device, head->statistics + first * HEAD_STATISTICS, logits,
                            batch->on_device.target + first);
    return logits;
}

/* A run of whole groups: completions and scored tokens of groups group .. group + groups - 1. */
struct chunk {
    int64_t group, groups, completion, completions, first, count;
};

/* As many groups as fit the logits buffer, at least one. */
static struct chunk next_chunk(const struct head *head, const struct batch *batch, int64_t group)
{
    struct chunk c = {.group = group, .completion = batch->host.segment[group]};
    c.first = batch->host.first[c.completion];
    for (int64_t g = group; g < batch->groups; g++) {
        int64_t count = batch->host.first[batch->host.segment[g + 1]] - c.first;
        if (g > group && count > head->chunk) break;
        c.groups = g + 1 - group;
        c.completions = batch->host.segment[g + 1] - c.completion;
        c.count = count;
    }
    return c;
}

/* Rows of the piece that begins after `done` rows of a chunk: all, unless one group is larger than the
 * buffer. */
static int64_t piece_of(const struct head *head, const struct chunk *c, int64_t done)
{
    return c->count - done < head->chunk ? c->count - done : head->chunk;
}

/* Cut exactly as head_train() cuts: the same rows in the same products give the same bits. */
void head_score(struct head *head, const struct batch *batch, struct tensor stream,
                struct completion_sums *sums)
{
    struct model *m = head->model;
    struct tensor normed = norm_scored(head, batch, stream);
    struct chunk c;
    for (int64_t g = 0; g < batch->groups; g += c.groups) {
        c = next_chunk(head, batch, g);
        for (int64_t done = 0; done < c.count; done += head->chunk)
            chunk_logits(head, batch, normed, c.first + done, piece_of(head, &c, done));
    }
    m->ops->head_sums(m->device, head->sums, head->statistics, batch->on_device.first,
                      batch->on_device.shared, batch->completions);
    m->ops->download(m->device, sums, head->sums, (size_t)batch->completions * sizeof *sums);
}

/* The gradient of a chunk of logits takes their place: rows begin where they began, whatever its type. */
static struct tensor dlogits_of(const struct head *head, struct tensor logits)
{
    struct tensor dlogits = logits;
    dlogits.type = head->model->precision.compute;
    dlogits.stride *= (int64_t)(dtype_bytes(logits.type) / dtype_bytes(dlogits.type));
    return dlogits;
}

/* From logits to the gradients of the normed rows and of the head's matrix. */
static void chunk_backward(struct head *head, const struct batch *batch, struct tensor logits,
                           struct tensor normed, int64_t first)
{
    struct model *m = head->model;
    const struct parameter *p = params_head(m->params, m->config);
    struct tensor dnormed = scored_rows(head, head->dnormed, batch->scored);
    struct tensor dlogits = dlogits_of(head, logits);
    m->ops->head_gradient(m->device, dlogits, logits, head->statistics + first * HEAD_STATISTICS,
                          batch->on_device.target + first, head->coefficient + first);
    m->ops->matmul(m->device, tensor_rows(dnormed, first, logits.rows), dlogits, false, head_weight(head),
                   false, false);
    m->ops->matmul(m->device, model_matrix_gradient(m, p, p->rows), dlogits, true,
                   tensor_rows(normed, first, logits.rows), false, true);
}

/* Weights, loss and coefficients of a chunk whose statistics are there. */
static void chunk_objective(struct head *head, const struct batch *batch, const struct chunk *c,
                            const struct objective *objective, const struct batch_facts *facts)
{
    struct model *m = head->model;
    struct objective_groups groups = {.count = c->groups,
                                      .segment = batch->on_device.segment + c->group,
                                      .first = batch->on_device.first + c->completion,
                                      .shared = batch->on_device.shared + c->completion,
                                      .prompts = batch->limits.prompts};
    struct completion_sums *sums = head->sums + head->completions + c->completion;
    m->ops->head_sums(m->device, sums, head->statistics, groups.first, groups.shared, c->completions);
    m->ops->objective(m->device, head->results + head->groups + c->group, head->coefficient, sums,
                      head->data + c->completion, groups, objective, facts);
}

void head_begin(struct head *head)
{
    head->completions = head->groups = 0;
}

void head_take(struct head *head, struct completion_sums *sums, struct group_result *results)
{
    struct model *m = head->model;
    m->ops->download(m->device, sums, head->sums, (size_t)head->completions * sizeof *sums);
    m->ops->download(m->device, results, head->results, (size_t)head->groups * sizeof *results);
}

/* From the gradient of the normed rows to that of the stream. */
static void hidden_backward(struct head *head, const struct batch *batch)
{
    struct model *m = head->model;
    const struct ops *ops = m->ops;
    struct device *d = m->device;
    struct tensor dhidden = scored_rows(head, head->dhidden, batch->scored),
                  dstream = model_dstream(m, batch);
    const struct parameter *norm = params_final_norm(m->params, m->config);
    ops->zero(d, dhidden.data, (size_t)(dhidden.rows * dhidden.cols) * dtype_bytes(dhidden.type));
    ops->rmsnorm_grad(d, dhidden, model_vector_gradient(m, norm, norm->cols),
                      scored_rows(head, head->dnormed, batch->scored),
                      scored_rows(head, head->hidden, batch->scored), model_vector(m, norm),
                      (float)m->config->norm_epsilon);
    ops->zero(d, dstream.data, (size_t)(dstream.rows * dstream.cols) * dtype_bytes(dstream.type));
    ops->scatter_rows(d, dstream, dhidden, batch->on_device.source);
}

void head_train(struct head *head, const struct batch *batch, struct tensor stream,
                const struct objective *objective, const struct batch_facts *facts,
                const struct completion_data *data)
{
    struct model *m = head->model;
    REQUIRE(head->completions + batch->completions <= head->limits.step_completions &&
                head->groups + batch->groups <= head->limits.step_groups,
            "a step has more groups than was measured");
    m->ops->upload(m->device, head->data, data, (size_t)batch->completions * sizeof *data);

    struct tensor normed = norm_scored(head, batch, stream);
    struct chunk c;
    for (int64_t g = 0; g < batch->groups; g += c.groups) {
        c = next_chunk(head, batch, g);
        if (c.count <= head->chunk) {
            struct tensor logits = chunk_logits(head, batch, normed, c.first, c.count);
            chunk_objective(head, batch, &c, objective, facts);
            chunk_backward(head, batch, logits, normed, c.first);
            continue;
        }
        /* One group is larger than the buffer: its loss first, then its logits again, piece by piece. */
        for (int64_t done = 0; done < c.count; done += head->chunk)
            chunk_logits(head, batch, normed, c.first + done, piece_of(head, &c, done));
        chunk_objective(head, batch, &c, objective, facts);
        for (int64_t done = 0; done < c.count; done += head->chunk) {
            struct tensor logits =
                chunk_logits(head, batch, normed, c.first + done, piece_of(head, &c, done));
            chunk_backward(head, batch, logits, normed, c.first + done);
        }
    }

    hidden_backward(head, batch);
    head->completions += batch->completions;
    head->groups += batch->groups;
}
