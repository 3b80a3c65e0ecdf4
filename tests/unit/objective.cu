/* Compiles the scalar mathematics of the objectives for the device; linking it is the CUDA backend's business. */
#include "kernels/objective.h"

__global__ void objective_groups(struct group_result *results, double *coefficients, const struct completion_sums *sums,
                                 const double *reference, struct objective objective, int64_t groups)
{
    int64_t g = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (g < groups)
        results[g] = objective_group(&objective, sums + 2 * g, reference + 2 * g, coefficients + 2 * g);
}
