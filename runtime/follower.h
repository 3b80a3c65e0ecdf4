/* A reference model that follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656, eq. 8): every
 * so many steps reference <- (1 - alpha) reference + alpha policy. Its parameters stand beside the policy's
 * on the device, in the same layout and type; every rank holds all of them. */
#ifndef WPO_RUNTIME_FOLLOWER_H
#define WPO_RUNTIME_FOLLOWER_H

#include "runtime/model.h"

struct follower {
    struct model *model;
    void *parameters; /* [params->total] device, as model->parameters; NULL: there is none */
    bool swapped;     /* the model computes with them */
};

/* Wishes for the parameters. */
void follower_open(struct follower *follower, struct arena *arena, struct model *model);
/* The reference is what the model holds now. */
void follower_take(struct follower *follower);
/* One step towards the policy. On the host, element by element: the same bits on every rank. */
void follower_mix(struct follower *follower, double alpha);
/* Lets the model compute with the reference's parameters, and with its own again. */
void follower_swap(struct follower *follower);

#endif
