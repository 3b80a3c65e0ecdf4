/* Which device a rank computes on, in which precision, and with how many threads. */
#include "runtime/engine.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The processors this rank may use, divided by the ranks of the host that may use the same ones. The
 * environment's OMP_NUM_THREADS wins, and an explicit setting over that. */
static int threads_for_rank(struct comm *comm, int64_t wanted)
{
    struct place {
        cpu_set_t processors;
        char host[64];
    } mine = {0}, *all = allocate(comm->size, sizeof *all);
    sched_getaffinity(0, sizeof mine.processors, &mine.processors);
    memcpy(mine.host, comm->host, sizeof mine.host);
    comm_gather_all(comm, all, &mine, sizeof mine);
    int sharing = 0;
    for (int r = 0; r < comm->size; r++)
        sharing += !strcmp(all[r].host, mine.host) && CPU_EQUAL(&all[r].processors, &mine.processors);
    free(all);
    if (wanted > 0) return (int)wanted;
    if (getenv("OMP_NUM_THREADS")) return 0;
    int share = CPU_COUNT(&mine.processors) / sharing;
    return share > 1 ? share : 1;
}

/* The ranks of a host that are told to see the same devices take one each, by rank, as far as there are
 * that many: Slurm may tell every task of "0" and show it another one. */
static int choose_index(struct comm *comm, int count)
{
    struct view {
        char host[64], devices[192];
    } mine = {0}, *all = allocate(comm->size, sizeof *all);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    snprintf(mine.host, sizeof mine.host, "%s", comm->host);
    snprintf(mine.devices, sizeof mine.devices, "%s", visible ? visible : "all");
    comm_gather_all(comm, all, &mine, sizeof mine);
    int before = 0;
    for (int r = 0; r < comm->rank; r++)
        before += !strcmp(all[r].host, mine.host) && !strcmp(all[r].devices, mine.devices);
    free(all);
    return before % count;
}

/* Collective. No two ranks of a host may have come to the same device. */
static enum status check_alone(const struct engine *engine)
{
    struct comm *comm = engine->comm;
    struct place {
        char host[64];
        unsigned char mark[16];
    } mine = {0}, *all = allocate(comm->size, sizeof *all);
    snprintf(mine.host, sizeof mine.host, "%s", comm->host);
    engine->ops->identity(engine->device, mine.mark);
    comm_gather_all(comm, all, &mine, sizeof mine);
    int ranks = 0, devices = 0; /* of this host */
    for (int r = 0; r < comm->size; r++) {
        int first = 0;
        while (memcmp(&all[first], &all[r], sizeof mine) != 0)
            first++;
        ranks += !strcmp(all[r].host, mine.host);
        devices += !strcmp(all[r].host, mine.host) && first == r;
    }
    free(all);
    if (ranks == devices) return STATUS_OK;
    return fail("%d ranks on %s share %d GPU%s: start one rank per GPU there (for instance mpirun --map-by "
                "ppr:%d:node), or set device: cpu",
                ranks, comm->host, devices, devices == 1 ? "" : "s", devices);
}

/* The backend that settings->device asks for, the same on all ranks. */
static enum status choose_backend(struct engine *engine, const struct settings *settings, int *count)
{
    const struct ops *cuda = cuda_ops();
    const char *why = "this wpo was built without CUDA; build it where nvcc is found";
    *count = cuda && strcmp(settings->device, "cpu") != 0 ? cuda->count(&why) : 0;
    bool everywhere = !comm_any(engine->comm, *count == 0), anywhere = comm_any(engine->comm, *count > 0);
    engine->ops = everywhere ? cuda : cpu_ops();
    if (cuda && !everywhere && !strcmp(settings->device, "auto")) engine->no_gpu = why;
    if (everywhere || !strcmp(settings->device, "cpu")) return STATUS_OK;
    if (!strcmp(settings->device, "cuda"))
        return comm_agree(engine->comm,
                          *count ? STATUS_OK
                                 : fail("device: cuda was asked for, and there is none to use: %s; "
                                        "or set device: cpu",
                                        why));
    if (anywhere)
        return comm_agree(engine->comm,
                          *count ? STATUS_OK
                                 : fail("device: auto found GPUs on other ranks, and here %s; mend "
                                        "this host, or set device: cpu",
                                        why));
    return STATUS_OK;
}

static enum status choose_precision(struct engine *engine, const struct settings *settings)
{
    enum wanted_dtype wanted = settings->dtype;
    if (wanted == WANTED_AUTO) wanted = engine->ops->has_bfloat ? WANTED_BFLOAT : WANTED_FLOAT;
    if (wanted == WANTED_BFLOAT && !engine->ops->has_bfloat)
        return fail(
            "dtype is bfloat16, and the %s device computes in float32 alone; set dtype: float32 or auto",
            engine->ops->name);
    engine->precision = (struct precision){
        .compute = wanted == WANTED_BFLOAT ? DTYPE_BFLOAT : DTYPE_FLOAT,
        .gradient = wanted == WANTED_BFLOAT ? settings->gradient_dtype : DTYPE_FLOAT,
    };
    if (wanted == WANTED_FLOAT && settings->gradient_dtype == DTYPE_BFLOAT)
        return fail(
            "gradient_dtype is bfloat16 while the model computes in float32; set dtype: bfloat16 as well");
    if (settings->moment_dtype == DTYPE_BFLOAT && !engine->ops->has_bfloat)
        return fail(
            "moment_dtype is bfloat16, and the %s device has float32 alone; set moment_dtype: float32",
            engine->ops->name);
    return STATUS_OK;
}

enum status engine_open_device(struct engine *engine)
{
    const struct settings *settings = engine->settings;
    const char *why = NULL;
    int count, index = 0;
    TRY(choose_backend(engine, settings, &count));
    TRY(choose_precision(engine, settings));
    engine->threads = threads_for_rank(engine->comm, settings->threads);
    if (!engine->ops->on_host) index = choose_index(engine->comm, count);
    engine->device = engine->ops->open(index, engine->threads, &why);
    TRY(comm_agree(engine->comm,
                   engine->device ? STATUS_OK
                                  : fail("%s device %d does not open: %s", engine->ops->name, index, why)));
    if (!engine->ops->on_host) TRY(comm_agree(engine->comm, check_alone(engine)));
    return exchange_open(
        &engine->exchange, engine->comm, engine->ops, engine->device,
        (struct exchange_options){.ordered = settings->gradient_reduction == REDUCTION_ORDERED,
                                  .seconds = (double)settings->ddp_timeout});
}

char *engine_describe(const struct engine *engine)
{
    return text_format("%s, %s%s%s%s", engine->ops->describe(engine->device),
                       engine->precision.compute == DTYPE_BFLOAT ? "bfloat16" : "float32",
                       engine->no_gpu ? " (device: auto found no GPU: " : "",
                       engine->no_gpu ? engine->no_gpu : "", engine->no_gpu ? ")" : "");
}
