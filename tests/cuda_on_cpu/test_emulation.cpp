/* The emulation against CUDA's own words: indices, barriers, shuffles, votes, shared memory, ldmatrix, mma,
 * cp.async, the matrix products and the device's limits. */
#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"
#include "tests/check.h"

static uint64_t random_state = 7;

static double uniform()
{
    return check_uniform((unsigned long long *)&random_state);
}

static cudaStream_t stream = NULL;

/* -- indices and order -------------------------------------------------------------------------- */

__global__ static void indices_kernel(int *seen, int *order, int *next)
{
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    int count = (int)(blockDim.x * blockDim.y * blockDim.z);
    seen[block * count + thread]++;
    order[(*next)++] = block * count + thread;
}

static void test_indices()
{
    enum { COUNT = 2 * 3 * 2 * 5 * 7 * 3 };
    static int seen[COUNT], order[COUNT], next;
    LAUNCH(indices_kernel, dim3(2, 3, 2), dim3(5, 7, 3), 0, stream, seen, order, &next);
    int in_place = 0;
    for (int i = 0; i < COUNT; i++) {
        CHECK(seen[i] == 1);
        in_place += order[i] == i;
    }
    CHECK(next == COUNT);
    CHECK(in_place < COUNT / 10); /* of a drawn order about one stays in its place */
}

/* -- barriers and shared memory ------------------------------------------------------------------- */

__global__ static void reverse_kernel(float *out, const float *in, int *full)
{
    __shared__ float line[160];
    SHARED_DYNAMIC(raw);
    float *other = (float *)raw;
    int i = (int)threadIdx.x, n = (int)blockDim.x;
    if (!isnan(line[i]) || !isnan(other[i])) ++*full;
    int fives = __syncthreads_count(i % 5 == 0);
    line[i] = in[blockIdx.x * (unsigned)n + (unsigned)i];
    __syncthreads();
    other[i] = line[n - 1 - i];
    int any = __syncthreads_or(i == 3), all = __syncthreads_and(i != 3), whole = __syncthreads_and(1);
    out[blockIdx.x * (unsigned)n + (unsigned)i] =
        fives == (n + 4) / 5 && any && !all && whole ? other[(i + 1) % n] : -1;
}

static void test_barriers()
{
    enum { BLOCKS = 40, THREADS = 150 };
    static float in[BLOCKS * THREADS], out[BLOCKS * THREADS];
    static int nan;
    for (int i = 0; i < BLOCKS * THREADS; i++)
        in[i] = (float)i + 1;
    LAUNCH(reverse_kernel, BLOCKS, THREADS, THREADS * sizeof(float), stream, out, in, &nan);
    CHECK(nan == 0);
    for (int b = 0; b < BLOCKS; b++)
        for (int i = 0; i < THREADS; i++)
            CHECK(out[b * THREADS + i] == in[b * THREADS + THREADS - 1 - (i + 1) % THREADS]);
}

template <class T> __global__ void typed_kernel(int *bad)
{
    __shared__ T array[70];
    for (unsigned b = 0; b < sizeof(T); b++)
        if (((const unsigned char *)&array[threadIdx.x])[b] != 0xff) ++*bad;
    __syncthreads();
    array[threadIdx.x] = 1;
    __syncthreads();
    if (array[(threadIdx.x + 9) % 70] != 1) ++*bad;
}

__global__ static void sum_kernel(float *out, const float *in)
{
    __shared__ float parts[32];
    float sum = block_sum(in[blockIdx.x * blockDim.x + threadIdx.x], parts);
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum + block_sum(sum, parts);
}

static void test_shared()
{
    static int bad;
    LAUNCH((typed_kernel<float>), 3, 70, 0, stream, &bad);
    LAUNCH((typed_kernel<double>), 3, 70, 0, stream, &bad);
    LAUNCH((typed_kernel<char>), 3, 70, 0, stream, &bad);
    CHECK(bad == 0);
    static float in[20 * 256], out[20 * 256];
    for (int i = 0; i < 20 * 256; i++)
        in[i] = (float)(i % 11);
    LAUNCH(sum_kernel, 20, 256, 0, stream, out, in);
    for (int b = 0; b < 20; b++) {
        float sum = 0; /* of small integers: exact in any order */
        for (int i = 0; i < 256; i++)
            sum += in[b * 256 + i];
        for (int i = 0; i < 256; i++)
            CHECK(out[b * 256 + i] == 257 * sum);
    }
}

/* -- collectives of a warp ------------------------------------------------------------------------ */

struct shuffled {
    float idx, up, down, exclusive;
    double wide;
    int64_t integer;
    int narrow;
};

__global__ static void shuffle_kernel(struct shuffled *out, int width, int by)
{
    int lane = (int)threadIdx.x % 32;
    struct shuffled s;
    s.idx = __shfl_sync(0xffffffffu, (float)lane, by, width);
    s.up = __shfl_up_sync(0xffffffffu, (float)lane, (unsigned)by, width);
    s.down = __shfl_down_sync(0xffffffffu, (float)lane, (unsigned)by, width);
    s.exclusive = __shfl_xor_sync(0xffffffffu, (float)lane, by, width);
    s.wide = __shfl_sync(0xffffffffu, lane + 0.25, lane * by);
    s.integer = __shfl_xor_sync(0xffffffffu, ((int64_t)lane << 40) + 1, 31);
    /* Halves of a warp on their own, as often as they like. */
    s.narrow = 0;
    unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    for (int i = 0; i < (lane < 16 ? 5 : 3); i++)
        s.narrow += __shfl_sync(half, lane, lane / 16 * 16 + i);
    out[threadIdx.x] = s;
}

static void test_shuffles()
{
    static struct shuffled out[96];
    for (int width = 1; width <= 32; width *= 2)
        for (int by = 0; by < 32; by++) {
            LAUNCH(shuffle_kernel, 1, 96, 0, stream, out, width, by);
            for (int t = 0; t < 96; t++) {
                int lane = t % 32, first = lane / width * width, end = first + width;
                CHECK(out[t].idx == (float)(first + by % width));
                CHECK(out[t].up == (float)(lane - by >= first ? lane - by : lane));
                CHECK(out[t].down == (float)(lane + by < end ? lane + by : lane));
                CHECK(out[t].exclusive == (float)((lane ^ by) < end ? lane ^ by : lane));
                CHECK(out[t].wide == lane * by % 32 + 0.25);
                CHECK(out[t].integer == ((int64_t)(31 - lane) << 40) + 1);
                CHECK(out[t].narrow == (lane < 16 ? 0 + 1 + 2 + 3 + 4 : 16 + 17 + 18));
            }
        }
}

struct voted {
    unsigned ballot, match, sum, least;
    int any, all, most;
};

__global__ static void vote_kernel(struct voted *out, unsigned pattern, unsigned mask)
{
    unsigned lane = threadIdx.x % 32;
    if (!(mask >> lane & 1)) return;
    int vote = (int)(pattern >> lane & 1);
    struct voted v;
    v.ballot = __ballot_sync(mask, vote);
    v.any = __any_sync(mask, vote);
    v.all = __all_sync(mask, vote);
    v.match = __match_any_sync(mask, vote);
    v.sum = __reduce_add_sync(mask, lane);
    v.least = __reduce_min_sync(mask, lane);
    v.most = __reduce_max_sync(mask, -(int)lane);
    __syncwarp(mask);
    out[lane] = v;
}

static void test_votes()
{
    static struct voted out[32];
    const unsigned patterns[] = {0u, 0xffffffffu, 0x12345678u, 0x80000000u};
    const unsigned masks[] = {0xffffffffu, 0x0000ffffu, 0x80000001u, 0x00f0f0f0u};
    for (unsigned mask : masks)
        for (unsigned pattern : patterns) {
            LAUNCH(vote_kernel, 1, 32, 0, stream, out, pattern, mask);
            unsigned sum = 0;
            for (unsigned lane = 0; lane < 32; lane++)
                sum += mask >> lane & 1 ? lane : 0;
            for (unsigned lane = 0; lane < 32; lane++) {
                if (!(mask >> lane & 1)) continue;
                CHECK(out[lane].ballot == (pattern & mask));
                CHECK(out[lane].any == ((pattern & mask) != 0));
                CHECK(out[lane].all == ((pattern & mask) == mask));
                CHECK(out[lane].match == (pattern >> lane & 1 ? pattern & mask : ~pattern & mask));
                CHECK(out[lane].sum == sum);
                CHECK(out[lane].least == (unsigned)__builtin_ctz(mask));
                CHECK(out[lane].most == -__builtin_ctz(mask));
            }
        }
}

/* -- tensor cores --------------------------------------------------------------------------------- */

/* Loads a [16][16] as the fragments of ptx.cuh, b [16][8], adds the product to d [16][8], stores it. */
__global__ static void mma_kernel(float *d, const struct bfloat *a, const struct bfloat *b)
{
    int lane = (int)threadIdx.x, group = lane / 4, pair = lane % 4;
    uint32_t ra[4], rb[2];
    float rd[4];
    const int rows[] = {group, group + 8, group, group + 8},
              cols[] = {2 * pair, 2 * pair, 2 * pair + 8, 2 * pair + 8};
    for (int i = 0; i < 4; i++)
        ra[i] = (uint32_t)a[rows[i] * 16 + cols[i] + 1].bits << 16 | a[rows[i] * 16 + cols[i]].bits;
    for (int i = 0; i < 2; i++)
        rb[i] = (uint32_t)b[(2 * pair + 8 * i + 1) * 8 + group].bits << 16 |
                b[(2 * pair + 8 * i) * 8 + group].bits;
    const int places[] = {group * 8 + 2 * pair, group * 8 + 2 * pair + 1, (group + 8) * 8 + 2 * pair,
                          (group + 8) * 8 + 2 * pair + 1};
    for (int i = 0; i < 4; i++)
        rd[i] = d[places[i]];
    mma_bfloat(rd, ra, rb);
    for (int i = 0; i < 4; i++)
        d[places[i]] = rd[i];
}

static void test_mma()
{
    static struct bfloat a[256], b[128];
    static float d[128];
    double want[128], bound[128];
    for (auto &x : a)
        x = bfloat_round((float)uniform());
    for (auto &x : b)
        x = bfloat_round((float)uniform());
    for (int i = 0; i < 128; i++)
        d[i] = (float)uniform();
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            double sum = (double)d[i * 8 + j], size = fabs(sum);
            for (int k = 0; k < 16; k++) {
                double term = (double)bfloat_widen(a[i * 16 + k]) * (double)bfloat_widen(b[k * 8 + j]);
                sum += term;
                size += fabs(term);
            }
            want[i * 8 + j] = sum;
            bound[i * 8 + j] = 17 * 0x1p-24 * size; /* products of bf16 are exact; 16 additions round */
        }
    LAUNCH(mma_kernel, 1, 32, 0, stream, d, a, b);
    for (int i = 0; i < 128; i++)
        CHECK_NEAR((double)d[i], want[i], bound[i]);
}

/* Element (row, col) of matrix i is 1000 i + 10 row + col. */
__global__ static void matrices_kernel(uint32_t *plain, uint32_t *transposed, int stride)
{
    SHARED_DYNAMIC(raw);
    uint16_t *rows = (uint16_t *)raw;
    int lane = (int)threadIdx.x;
    for (int c = 0; c < 8; c++)
        rows[lane * stride + c] = (uint16_t)(1000 * (lane / 8) + 10 * (lane % 8) + c);
    __syncwarp();
    uint32_t r[4], t[4];
    load_matrices(r, rows + lane * stride);
    load_matrices_transposed(t, rows + lane * stride);
    for (int i = 0; i < 4; i++) {
        plain[lane * 4 + i] = r[i];
        transposed[lane * 4 + i] = t[i];
    }
}

static void test_matrices()
{
    static uint32_t plain[128], transposed[128];
    LAUNCH(matrices_kernel, 1, 32, 32 * 24 * 2, stream, plain, transposed, 24);
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned i = 0; i < 4; i++) {
            unsigned row = lane / 4, col = 2 * (lane % 4);
            CHECK(plain[lane * 4 + i] ==
                  ((1000 * i + 10 * row + col + 1) << 16 | (1000 * i + 10 * row + col)));
            CHECK(transposed[lane * 4 + i] ==
                  ((1000 * i + 10 * (col + 1) + row) << 16 | (1000 * i + 10 * col + row)));
        }
}

/* -- asynchronous copies ---------------------------------------------------------------------------- */

__global__ static void copy_kernel(float *out, const float *in, int *early)
{
    __shared__ __align__(16) float stages[3][128];
    int t = (int)threadIdx.x, mine = 4 * t;
    for (int s = 0; s < 3; s++) {
        copy_async(&stages[s][mine], in + s * 128 + mine, s != 1 || t % 2 == 0);
        copy_async_commit();
    }
    if (!isnan(stages[0][mine])) ++*early;
    copy_async_wait<2>();
    if (isnan(stages[0][mine]) || !isnan(stages[1][mine])) ++*early;
    copy_async_wait<1>();
    if (isnan(stages[1][mine]) || !isnan(stages[2][mine])) ++*early;
    copy_async_wait<0>();
    __syncthreads();
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < 4; i++)
            out[s * 128 + mine + i] = stages[s][127 - mine - i];
}

static void test_copies()
{
    alignas(16) static float in[384];
    static float out[384];
    static int early;
    for (int i = 0; i < 384; i++)
        in[i] = (float)i + 1;
    LAUNCH(copy_kernel, 1, 32, 0, stream, out, in, &early);
    CHECK(early == 0);
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < 128; i++) {
            int from = 127 - i;
            CHECK(out[s * 128 + i] == (s == 1 && from / 4 % 2 ? 0 : in[s * 128 + from]));
        }
}

/* -- numbers ---------------------------------------------------------------------------------------- */

static void test_numbers()
{
    CHECK(pack_bfloat(1.0f, -2.0f) == 0xc0003f80u);
    CHECK(exp2_fast(-127.0f) == 0 && exp2_fast(-126.0f) == 0x1p-126f && exp2_fast(10) == 1024);
    CHECK(exp2_fast(-INFINITY) == 0 && isinf(exp2_fast(128)) && isnan(exp2_fast(NAN)));
    CHECK(__popc(0xf0u) == 4 && __ffs(0x10) == 5 && __ffs(0) == 0 && __clz(1) == 31 && __clz(0) == 32);
    CHECK(__float_as_uint(1.0f) == 0x3f800000u && __int_as_float(0x40000000) == 2.0f);
    CHECK(__brev(1) == 0x80000000u && __umulhi(0x80000000u, 6) == 3 &&
          __byte_perm(0x33221100u, 0x77665544u, 0x6420) == 0x66442200u);
    CHECK(min(3, 4) == 3 && max(-1L, 2L) == 2 && min(1.5f, 2.5f) == 1.5f && max(-1, 1u) == 0xffffffffu);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rz(-2.7f) == -2 && __float2int_rn(1e20f) == 2147483647);
    int count = 5;
    CHECK(atomicAdd(&count, 3) == 5 && count == 8 && atomicMax(&count, 4) == 8 &&
          atomicCAS(&count, 8, 1) == 8 && count == 1);
}

/* -- the device --------------------------------------------------------------------------------------- */

static void test_device()
{
    int count = 0, major = 0, shared = 0;
    CHECK(cudaGetDeviceCount(&count) == cudaSuccess && count == 1);
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaGetLastError() == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaSuccess);
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && major == 9);
    CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
    CHECK(shared == 227 << 10);
    setenv("CUDA_ON_CPU_CAPABILITY", "8.0", 1);
    CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
    CHECK(shared == 163 << 10);
    unsetenv("CUDA_ON_CPU_CAPABILITY");

    float *memory = NULL, host[4] = {1, 2, 3, 4};
    void *large = NULL;
    setenv("CUDA_ON_CPU_MEMORY", "1M", 1);
    CHECK(cudaMalloc(&memory, 4 * sizeof(float)) == cudaSuccess && (uintptr_t)memory % 256 == 0);
    CHECK(isnan(memory[0]) && isnan(memory[3]));
    CHECK(cudaMalloc(&large, 1 << 20) == cudaErrorMemoryAllocation && !large);
    CHECK(cudaMemcpy(memory, host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess && memory[2] == 3);
    CHECK(cudaMemcpy(memory, host, 5 * sizeof(float), cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, memory, sizeof host, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemset(host, 0, 4) == cudaErrorInvalidValue && cudaFree(host) == cudaErrorInvalidValue);
    CHECK(cudaFree(memory) == cudaSuccess && cudaMalloc(&large, 1 << 20) == cudaSuccess);
    CHECK(cudaFree(large) == cudaSuccess);
    unsetenv("CUDA_ON_CPU_MEMORY");
}

/* Each element against a sum in double; with f32 terms 4 inner + 4 roundings bound the error. */
static void test_products()
{
    const int64_t m = 53, n = 261, k = 67, pad = 3;
    static struct device device;
    const char *why = NULL;
    device.gemm = gemm_open(&device, &why);
    CHECK(device.gemm != NULL);
    float *a = (float *)calloc((size_t)(k * (k + pad) + m * (k + pad)), sizeof(float));
    float *b = (float *)calloc((size_t)(n * (n + pad)), sizeof(float)),
          *c = (float *)calloc((size_t)(m * (n + pad)), sizeof(float));
    for (int choice = 0; choice < 8; choice++) {
        bool ta = choice & 1, tb = choice & 2, add = choice & 4;
        struct tensor ca = {a, DTYPE_FLOAT, ta ? k : m, ta ? m : k, (ta ? m : k) + pad};
        struct tensor cb = {b, DTYPE_FLOAT, tb ? n : k, tb ? k : n, (tb ? k : n) + pad};
        struct tensor cc = {c, DTYPE_FLOAT, m, n, n + pad};
        for (int64_t i = 0; i < ca.rows * ca.stride; i++)
            a[i] = (float)uniform();
        for (int64_t i = 0; i < cb.rows * cb.stride; i++)
            b[i] = (float)uniform();
        for (int64_t i = 0; i < m * cc.stride; i++)
            c[i] = 0.5f;
        cuda_matmul(&device, cc, ca, ta, cb, tb, add);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = add ? 0.5 : 0, size = sum;
                for (int64_t q = 0; q < k; q++) {
                    double term = (double)a[ta ? q * ca.stride + i : i * ca.stride + q] *
                                  (double)b[tb ? j * cb.stride + q : q * cb.stride + j];
                    sum += term;
                    size += fabs(term);
                }
                CHECK_NEAR((double)c[i * cc.stride + j], sum, (double)(k + 2) * 0x1p-24 * size);
            }
        CHECK(c[n] == 0.5f && c[n + pad - 1] == 0.5f);
    }
    free(a), free(b), free(c);
    gemm_close(device.gemm);
}

int main()
{
    test_indices();
    test_barriers();
    test_shared();
    test_shuffles();
    test_votes();
    test_mma();
    test_matrices();
    test_copies();
    test_numbers();
    test_device();
    test_products();
    return check_result();
}
