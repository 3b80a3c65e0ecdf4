#include "runtime/follower.h"

#include "kernels/bfloat.h"
#include "kernels/require.h"

#include <stdlib.h>

void follower_open(struct follower *follower, struct arena *arena, struct model *model)
{
    *follower = (struct follower){.model = model};
    arena_want(arena, "reference", &follower->parameters, model->params->total,
               dtype_bytes(model->precision.compute));
}

void follower_take(struct follower *f)
{
    struct model *m = f->model;
    m->ops->copy(m->device, f->parameters, m->parameters,
                 (size_t)m->params->total * dtype_bytes(m->precision.compute));
}

static void mix(float *reference, const float *policy, int64_t count, float alpha)
{
    for (int64_t i = 0; i < count; i++)
        reference[i] = (1 - alpha) * reference[i] + alpha * policy[i];
}

static void mix_halves(struct bfloat *reference, const struct bfloat *policy, int64_t count, float alpha)
{
    for (int64_t i = 0; i < count; i++)
        reference[i] =
            bfloat_round((1 - alpha) * bfloat_widen(reference[i]) + alpha * bfloat_widen(policy[i]));
}

void follower_mix(struct follower *f, double alpha)
{
    enum { PIECE = 1 << 22 };
    struct model *m = f->model;
    size_t size = dtype_bytes(m->precision.compute);
    void *reference = allocate(PIECE, size), *policy = allocate(PIECE, size);
    REQUIRE(!f->swapped, "the reference would follow itself");
    for (int64_t first = 0; first < m->params->total; first += PIECE) {
        int64_t count = m->params->total - first < PIECE ? m->params->total - first : PIECE;
        char *place = (char *)f->parameters + (size_t)first * size;
        m->ops->download(m->device, reference, place, (size_t)count * size);
        m->ops->download(m->device, policy, model_run(m, first, count).data, (size_t)count * size);
        if (m->precision.compute == DTYPE_FLOAT)
            mix(reference, policy, count, (float)alpha);
        else
            mix_halves(reference, policy, count, (float)alpha);
        m->ops->upload(m->device, place, reference, (size_t)count * size);
    }
    free(reference);
    free(policy);
}

void follower_swap(struct follower *f)
{
    void *parameters = f->model->parameters;
    f->model->parameters = f->parameters;
    f->parameters = parameters;
    f->swapped = !f->swapped;
}
