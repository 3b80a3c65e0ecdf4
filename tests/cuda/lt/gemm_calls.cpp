/* kernels/cuda/gemm.cu over the stand-in for cuBLASLt: the same products as plain loops by rows, whatever is
 * transposed, strided, added or misaligned; one choice of an algorithm per shape; a full table; errors that
 * say the shapes. */
#include "kernels/cuda/cuda.cuh"
#include "tests/cuda/lt/cublasLt.h"

#include <stdio.h>
#include <string.h>
#include <vector>

static int checks, failures;
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        checks++;                                                                                            \
        if (!(condition)) {                                                                                  \
            failures++;                                                                                      \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                  \
        }                                                                                                    \
    } while (0)

/* Small whole numbers, so that every sum is exact in f32 and small ones in bf16. */
static float value_at(int64_t i, int64_t j, int salt)
{
    return (float)((i * 5 + j * 3 + salt) % 7 - 3);
}

struct buffer {
    struct tensor view;
    unsigned char *memory = NULL;
    size_t bytes = 0;

    ~buffer()
    {
        CUDA_REQUIRE(cudaFree(memory));
    }
};

/* The view begins `offset` elements after a multiple of 128 bytes. */
static void fill(struct buffer *b, enum dtype type, int64_t rows, int64_t cols, int64_t stride,
                 int64_t offset, int salt)
{
    size_t unit = dtype_bytes(type);
    b->bytes = (size_t)(rows * stride + offset) * unit + 256;
    CUDA_REQUIRE(cudaMalloc(&b->memory, b->bytes));
    memset(b->memory, 0xff, b->bytes);
    uintptr_t start = ((uintptr_t)b->memory + 127) / 128 * 128;
    b->view = {(char *)start + (size_t)offset * unit, type, rows, cols, stride};
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            float value = value_at(i, j, salt);
            if (type == DTYPE_FLOAT)
                ((float *)b->view.data)[i * stride + j] = value;
            else
                ((struct bfloat *)b->view.data)[i * stride + j] = bfloat_round(value);
        }
}

static float read(const struct tensor *t, int64_t i, int64_t j)
{
    return t->type == DTYPE_FLOAT ? ((float *)t->data)[i * t->stride + j]
                                  : bfloat_widen(((struct bfloat *)t->data)[i * t->stride + j]);
}

struct form {
    int64_t m, n, k, margin, offset;
    bool transpose_a, transpose_b, accumulate;
    enum dtype type, c_type;
};

static int wrong(struct device *device, struct form f)
{
    struct buffer a, b, c;
    fill(&a, f.type, f.transpose_a ? f.k : f.m, f.transpose_a ? f.m : f.k,
         (f.transpose_a ? f.m : f.k) + f.margin, f.offset, 1);
    fill(&b, f.type, f.transpose_b ? f.n : f.k, f.transpose_b ? f.k : f.n,
         (f.transpose_b ? f.k : f.n) + 2 * f.margin, f.offset, 2);
    fill(&c, f.c_type, f.m, f.n, f.n + f.margin, 2 * f.offset, 3);
    std::vector<unsigned char> before(c.memory, c.memory + c.bytes);
    cuda_matmul(device, c.view, a.view, f.transpose_a, b.view, f.transpose_b, f.accumulate);
    int count = 0;
    for (int64_t i = 0; i < f.m; i++)
        for (int64_t j = 0; j < f.n; j++) {
            float want = f.accumulate ? value_at(i, j, 3) : 0;
            for (int64_t k = 0; k < f.k; k++)
                want += (f.transpose_a ? value_at(k, i, 1) : value_at(i, k, 1)) *
                        (f.transpose_b ? value_at(j, k, 2) : value_at(k, j, 2));
            if (f.c_type == DTYPE_BFLOAT) want = bfloat_widen(bfloat_round(want));
            count += !(read(&c.view, i, j) == want);
        }
    /* Nothing outside of c is written: what is not in the view is as it was. */
    size_t unit = dtype_bytes(f.c_type), begin = (size_t)((unsigned char *)c.view.data - c.memory);
    size_t pitch = (f.n + f.margin > 0 ? (size_t)c.view.stride : 1) * unit;
    for (size_t at = 0; at < c.bytes; at++) {
        size_t within = at - begin, row = within / pitch;
        bool inside = at >= begin && row < (size_t)f.m && within % pitch < (size_t)f.n * unit;
        count += !inside && c.memory[at] != before[at];
    }
    return count;
}

static void all_forms(struct device *device)
{
    static const int64_t sides[][3] = {{1, 1, 1}, {1, 7, 5}, {7, 13, 9}, {13, 1, 24}, {24, 8, 16}, {5, 6, 0}};
    for (const auto &side : sides)
        for (int bits = 0; bits < 8; bits++)
            for (int types = 0; types < 3; types++)
                for (int64_t margin = 0; margin < 4; margin += 3)
                    CHECK(wrong(device, {side[0], side[1], side[2], margin, margin, (bits & 1) != 0,
                                         (bits & 2) != 0, (bits & 4) != 0, types ? DTYPE_BFLOAT : DTYPE_FLOAT,
                                         types == 2 ? DTYPE_BFLOAT : DTYPE_FLOAT}) == 0);
    struct form empty = {0, 7, 5, 0, 0, false, false, false, DTYPE_FLOAT, DTYPE_FLOAT};
    int products = lt_products;
    CHECK(wrong(device, empty) == 0 && lt_products == products);
    empty.m = 7, empty.n = 0;
    CHECK(wrong(device, empty) == 0 && lt_products == products);
}

static void one_choice_each(struct device *device)
{
    struct form f = {9, 10, 11, 0, 0, false, true, false, DTYPE_BFLOAT, DTYPE_BFLOAT};
    int before = lt_choices;
    for (int i = 0; i < 5; i++)
        CHECK(wrong(device, f) == 0);
    CHECK(lt_choices == before + 1);
    f.offset = 1; /* another alignment is another plan */
    CHECK(wrong(device, f) == 0 && lt_choices == before + 2);
    f.accumulate = true;
    CHECK(wrong(device, f) == 0 && lt_choices == before + 3);
    CHECK(wrong(device, f) == 0 && lt_choices == before + 3);
    for (int64_t m = 1; m <= 3000; m++) { /* more shapes than the table holds */
        struct form other = {m, 1, 1, 0, 0, false, false, false, DTYPE_FLOAT, DTYPE_FLOAT};
        if (wrong(device, other)) failures++;
    }
    before = lt_choices;
    struct form last = {3000, 1, 1, 0, 0, false, false, false, DTYPE_FLOAT, DTYPE_FLOAT};
    CHECK(wrong(device, last) == 0 && lt_choices == before);
}

int main(int argc, char **argv)
{
    struct device device;
    memset(&device, 0, sizeof device);
    for (cudaStream_t &stream : device.streams)
        CUDA_REQUIRE(cudaStreamCreate(&stream));
    const char *why = NULL;
    device.stream = device.streams[QUEUE_COMPUTE];
    device.gemm = gemm_open(&device, &why);
    if (!device.gemm) return 2;
    struct form f = {3, 4, 5, 0, 0, false, false, false, DTYPE_FLOAT, DTYPE_FLOAT};
    if (argc > 1 && !strcmp(argv[1], "none")) {
        lt_without_algorithm = true;
        wrong(&device, f);
    } else if (argc > 1 && !strcmp(argv[1], "queue")) {
        device.stream = device.streams[QUEUE_EXCHANGE];
        wrong(&device, f);
    } else if (argc > 1 && !strcmp(argv[1], "narrow")) {
        f.c_type = DTYPE_BFLOAT;
        wrong(&device, f);
    }
    all_forms(&device);
    one_choice_each(&device);
    gemm_close(device.gemm);
    for (cudaStream_t stream : device.streams)
        CUDA_REQUIRE(cudaStreamDestroy(stream));
    printf("%d checks, %d failed; %d products, %d choices of an algorithm\n", checks, failures, lt_products,
           lt_choices);
    return failures != 0;
}
