/* The work of a warp in mma and ldmatrix, and the copies of cp.async. */
#include "ptx_on_cpu.h"

#include "emulator.h"

#include <vector>

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* -- mma ----------------------------------------------------------------------------------------- */

/* Four columns at once, as the processor adds them. */
typedef float four __attribute__((vector_size(16)));

static float low_half(uint32_t pair)
{
    return float_of_bits(pair << 16);
}

static float high_half(uint32_t pair)
{
    return float_of_bits(pair & 0xffff0000u);
}

/* Fragments to matrices, product in f32, and back: the layout is the one that ptx.cuh documents. Terms are
 * added in order of k, each with one rounding; the device adds some of them at once. */
void cuda_on_cpu_run_mma(void **arguments, uint32_t)
{
    float a[16][16];
    four b[16][2], d[16][2]; /* [row][half of the columns] */
    for (int lane = 0; lane < LANES; lane++) {
        const struct cuda_on_cpu_mma *m = (const struct cuda_on_cpu_mma *)arguments[lane];
        int group = lane / 4, pair = lane % 4;
        for (int i = 0; i < 4; i++) {
            int row = group + i % 2 * 8, col = 2 * pair + i / 2 * 8;
            a[row][col] = low_half(m->a[i]);
            a[row][col + 1] = high_half(m->a[i]);
        }
        for (int i = 0; i < 2; i++) {
            int row = 2 * pair + i * 8;
            b[row][group / 4][group % 4] = low_half(m->b[i]);
            b[row + 1][group / 4][group % 4] = high_half(m->b[i]);
        }
        for (int i = 0; i < 4; i++)
            d[group + i / 2 * 8][pair / 2][pair % 2 * 2 + i % 2] = m->d[i];
    }
    for (int i = 0; i < 16; i++) {
        four left = d[i][0], right = d[i][1];
        for (int k = 0; k < 16; k++) {
            left += a[i][k] * b[k][0];
            right += a[i][k] * b[k][1];
        }
        d[i][0] = left, d[i][1] = right;
    }
    for (int lane = 0; lane < LANES; lane++) {
        const struct cuda_on_cpu_mma *m = (const struct cuda_on_cpu_mma *)arguments[lane];
        for (int i = 0; i < 4; i++)
            m->d[i] = d[lane / 4 + i / 2 * 8][lane % 4 / 2][lane % 2 * 2 + i % 2];
    }
}

/* -- ldmatrix ------------------------------------------------------------------------------------ */

void cuda_on_cpu_require_shared(const void *address, const char *name, const char *file, int line)
{
    if ((uintptr_t)address % 16 != 0)
        cuda_on_cpu_fail("%s at %s:%d with an address that is no multiple of 16", name, base_name(file),
                         line);
    if (!shared_holds(address, 16))
        cuda_on_cpu_fail("%s at %s:%d with an address that is not in shared memory", name, base_name(file),
                         line);
}

static void read_rows(uint16_t (&rows)[32][8], void **arguments)
{
    for (int lane = 0; lane < LANES; lane++)
        memcpy(rows[lane], ((const struct cuda_on_cpu_matrices *)arguments[lane])->row, 16);
}

void cuda_on_cpu_run_matrices(void **arguments, uint32_t)
{
    uint16_t rows[32][8];
    read_rows(rows, arguments);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            const uint16_t *from = &rows[8 * i + lane / 4][2 * (lane % 4)];
            ((struct cuda_on_cpu_matrices *)arguments[lane])->r[i] = (uint32_t)from[1] << 16 | from[0];
        }
}

void cuda_on_cpu_run_transposed(void **arguments, uint32_t)
{
    uint16_t rows[32][8];
    read_rows(rows, arguments);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            int row = 8 * i + 2 * (lane % 4), col = lane / 4;
            ((struct cuda_on_cpu_matrices *)arguments[lane])->r[i] =
                (uint32_t)rows[row + 1][col] << 16 | rows[row][col];
        }
}

/* -- cp.async ------------------------------------------------------------------------------------ */

struct copy {
    void *to;
    const void *from;
    bool valid;
    uint64_t group;
};

/* The copies of one thread that it has not waited for, oldest first, and how many groups it has closed. */
struct copies {
    std::vector<struct copy> queue;
    size_t done;
    uint64_t closed;
};

static struct copies of_thread[MOST_THREADS];

void copies_forget(unsigned thread)
{
    of_thread[thread].queue.clear();
    of_thread[thread].done = 0;
    of_thread[thread].closed = 0;
}

void cuda_on_cpu_copy(void *shared, const void *global, bool valid, const char *file, int line)
{
    if ((uintptr_t)global % 16 != 0)
        cuda_on_cpu_fail("copy_async at %s:%d from an address that is no multiple of 16", base_name(file),
                         line);
    struct copies *c = &of_thread[cuda_on_cpu_here->number];
    c->queue.push_back({shared, global, valid, c->closed});
}

void cuda_on_cpu_copy_commit()
{
    of_thread[cuda_on_cpu_here->number].closed++;
}

void cuda_on_cpu_copy_wait(unsigned pending)
{
    struct copies *c = &of_thread[cuda_on_cpu_here->number];
    for (; c->done < c->queue.size() && c->queue[c->done].group + pending < c->closed; c->done++) {
        const struct copy &next = c->queue[c->done];
        if (next.valid)
            memcpy(next.to, next.from, 16);
        else
            memset(next.to, 0, 16);
    }
    if (c->done == c->queue.size()) {
        c->queue.clear();
        c->done = 0;
    }
}
