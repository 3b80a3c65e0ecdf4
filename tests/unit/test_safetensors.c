/* safetensors: hostile headers are refused with a sentence that names file and field; numbers are exact. */
#include "runtime/safetensors.h"
#include "scratch.h"
#include "tests/check.h"

#include <unistd.h>

static char image[1 << 20];

/* A file with this header, this many bytes of tensors (all zero), and another header length if `lie` >= 0. */
static const char *make(const char *header, size_t data, long long lie)
{
    uint64_t length = lie >= 0 ? (uint64_t)lie : strlen(header);
    for (int i = 0; i < 8; i++)
        image[i] = (char)(length >> 8 * i);
    memcpy(image + 8, header, strlen(header));
    memset(image + 8 + strlen(header), 0, data);
    return scratch_write("x.safetensors", image, 8 + strlen(header) + data);
}

static void refuse(const char *path, const char *part)
{
    struct safetensors file;
    CHECK(safetensors_open(&file, path) == STATUS_BAD);
    CHECK(!file.path && !file.header && !file.entries);
    CHECK_TEXT(status_sentence(), path);
    CHECK_TEXT(status_sentence(), part);
}

#define ENTRY(dtype, shape, begin, end)                                                                      \
    "{\"dtype\": \"" dtype "\", \"shape\": " shape ", \"data_offsets\": [" begin ", " end "]}"

static void check_headers(void)
{
    static const struct {
        const char *header, *part;
        size_t data;
    } cases[] = {
        {"[]", "does not begin with {", 0},
        {" {}", "does not begin with {", 0},
        {"{", "not valid JSON", 0},
        {"{} x", "not valid JSON", 0},
        {"{\"a\": 7}", "a must be an object", 0},
        {"{\"a\": {}}", "a.dtype is missing", 0},
        {"{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 4]}}", "a.shape is missing", 4},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", "a.data_offsets is missing", 4},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4], \"x\": 1}}",
         "a.x is not known", 4},
        {"{\"a\": " ENTRY("F33", "[1]", "0", "4") "}", "a.dtype is \"F33\"", 4},
        {"{\"a\": {\"dtype\": 32, \"shape\": [1], \"data_offsets\": [0, 4]}}", "a.dtype must be a text", 4},
        {"{\"a\": " ENTRY("F32", "1", "0", "4") "}", "a.shape must be a list", 4},
        {"{\"a\": " ENTRY("F32", "[-1]", "0", "4") "}", "a.shape[0] is -1", 4},
        {"{\"a\": " ENTRY("F32", "[1.0]", "0", "4") "}", "a.shape[0] must be an integer", 4},
        {"{\"a\": " ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", "a.shape has 9 dimensions", 4},
        {"{\"a\": " ENTRY("F32", "[4294967296, 4294967296]", "0", "4") "}", "a.shape has more elements", 4},
        {"{\"a\": " ENTRY("F32", "[4611686018427387904]", "0", "4") "}", "a.data_offsets span 4 bytes", 4},
        {"{\"a\": " ENTRY("F32", "[9223372036854775808]", "0", "4") "}", "too big integer", 4},
        {"{\"a\": " ENTRY("F32", "[2]", "0", "4") "}", "a.data_offsets span 4 bytes", 8},
        {"{\"a\": " ENTRY("BF16", "[1]", "0", "4") "}", "a.data_offsets span 4 bytes", 4},
        {"{\"a\": " ENTRY("F4", "[3]", "0", "1") "}", "a.data_offsets span 1 bytes", 1},
        {"{\"a\": " ENTRY("F32", "[1]", "4", "0") "}", "a.data_offsets[1] is 0", 4},
        {"{\"a\": " ENTRY("F32", "[1]", "-4", "0") "}", "a.data_offsets[0] is -4", 4},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "4") "}", "a.data_offsets[1] is 4", 3},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "18446744073709551620") "}", "too big integer", 4},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0]}}",
         "a.data_offsets must hold two", 4},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "4") "}", "belong to no tensor", 5},
        {"{}", "belong to no tensor", 1},
        {"{\"a\": " ENTRY("F32", "[1]", "4", "8") "}", "a.data_offsets begin at byte 4", 8},
        {"{\"a\": " ENTRY("F32", "[2]", "0", "8") ", \"b\": " ENTRY("F32", "[1]", "4", "8") "}",
         "b.data_offsets begin", 8},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "4") ", \"b\": " ENTRY("F32", "[1]", "0", "4") "}",
         "data_offsets begin", 4},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "4") ", \"b\": " ENTRY("F32", "[1]", "8", "12") "}",
         "b.data_offsets begin at byte 8, where the tensor before it ends at 4", 12},
        {"{\"a\": " ENTRY("F32", "[1]", "0", "4") ", \"a\": " ENTRY("F32", "[1]", "4", "8") "}", "duplicate",
         8},
        {"{\"__metadata__\": 1}", "__metadata__ must be an object", 0},
        {"{\"__metadata__\": {\"format\": 1}}", "__metadata__.format must be a text", 0},
        {"{\"a\\u0000b\": " ENTRY("F32", "[1]", "0", "4") "}", "NUL byte", 4},
        {"{\"a\": [[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}", "deeper than", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(make(cases[i].header, cases[i].data, -1), cases[i].part);

    refuse(make("{}", 0, 3), "header's length is given as 3 bytes");
    refuse(make("{}", 0, 0), "does not begin with {");
    refuse(make("{}", 0, 100000001), "header's length is given as 100000001 bytes");
    refuse(make("{}", 0, INT64_MAX), "header's length");
    memset(image, 0xff, 16);
    refuse(scratch_write("ff.safetensors", image, 16),
           "header's length is given as 18446744073709551615 bytes");
    refuse(scratch_write("short.safetensors", image, 7), "too short");
    refuse(scratch_write("empty.safetensors", image, 0), "too short");
    refuse(scratch_path("absent.safetensors"), "absent.safetensors");
    refuse(scratch_folder, "not a file");
}

/* Odd but valid: padding, zero-sized tensors, scalars, bytes in another order than the header, foreign
 * dtypes. */
static void check_unusual(void)
{
    struct safetensors file;
    const char *header =
        "{\"b\": " ENTRY("F32", "[]", "6", "10") ", \"__metadata__\": {\"format\": \"pt\"}, "
                                                 "\"z\": " ENTRY("F16", "[3, 0]", "6", "6") ", \"a\": " ENTRY(
                                                     "BF16", "[3]", "0",
                                                     "6") ", "
                                                          "\"i\": " ENTRY("I64", "[1]", "10", "18") "}    ";
    CHECK(safetensors_open(&file, make(header, 18, -1)) == STATUS_OK);
    CHECK(file.count == 4);
    if (file.count != 4) return;
    CHECK(!strcmp(file.entries[0].name, "a") && !strcmp(file.entries[1].name, "z") &&
          !strcmp(file.entries[2].name, "b"));
    CHECK(file.entries[1].count == 0 && file.entries[2].count == 1 && file.entries[2].dimensions == 0);
    CHECK(file.entries[0].readable && file.entries[0].type == DTYPE_BFLOAT && !file.entries[3].readable);
    float values[3] = {1, 1, 1};
    CHECK(safetensors_read(&file, &file.entries[0], 0, 3, values) == STATUS_OK && values[0] == 0 &&
          values[2] == 0);
    CHECK(safetensors_read(&file, &file.entries[1], 0, 0, values) == STATUS_OK);
    CHECK(safetensors_read(&file, &file.entries[3], 0, 1, values) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "x.safetensors: tensor i is stored as I64");

    CHECK(truncate(file.path, 40) == 0); /* by another process, after the header was checked */
    CHECK(safetensors_read(&file, &file.entries[0], 0, 3, values) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "x.safetensors");
    safetensors_close(&file);
    safetensors_close(&file);
}

/* Opens, and reads whatever can be read. */
static bool consume(const char *path)
{
    struct safetensors file;
    if (safetensors_open(&file, path) != STATUS_OK) {
        CHECK_TEXT(status_sentence(), path);
        return false;
    }
    bool whole = true;
    for (int64_t i = 0; i < file.count; i++) {
        float *values = allocate(file.entries[i].count, sizeof *values);
        whole &= safetensors_read(&file, &file.entries[i], 0, file.entries[i].count, values) == STATUS_OK;
        free(values);
    }
    safetensors_close(&file);
    return whole;
}

static size_t read_image(const char *path)
{
    FILE *stream = fopen(path, "rb");
    CHECK(stream != NULL);
    size_t bytes = stream ? fread(image, 1, sizeof image, stream) : 0;
    if (stream) fclose(stream);
    return bytes;
}

static const float sample[] = {1, -2, 0.5f, 3, 1e-3f, -7, 13, 65, 0, -0.0f, 0x1p-14f, 0x1p-24f, 100, 42, -1};
static const struct safetensors_source sources[] = {{"layer.weight", sample, 3, 4, false},
                                                    {"norm", sample + 12, 1, 2, true},
                                                    {"last", sample + 14, 1, 1, false}};

/* Every shorter file is refused; every flipped bit of the header is refused or read without harm. */
static void check_damage(void)
{
    const char *path = scratch_path("good.safetensors");
    CHECK(safetensors_write(path, sources, 3, DTYPE_BFLOAT) == STATUS_OK);
    size_t bytes = read_image(path);
    size_t header = (size_t)(unsigned char)image[0] + 256 * (size_t)(unsigned char)image[1];
    CHECK(bytes == 8 + header + 15 * 2 && header % 8 == 0);
    CHECK(consume(path));
    for (size_t length = 0; length < bytes; length++)
        CHECK(!consume(scratch_write("cut.safetensors", image, length)));
    CHECK(!consume(scratch_write("more.safetensors", image, bytes + 1)));
    long accepted = 0;
    for (size_t bit = 0; bit < 8 * (8 + header); bit++) {
        image[bit / 8] ^= (char)(1 << bit % 8);
        accepted += consume(scratch_write("flip.safetensors", image, bytes));
        image[bit / 8] ^= (char)(1 << bit % 8);
    }
    /* What a reader of the header alone cannot see: other letters in names, metadata and padding, F16 for
     * BF16. */
    CHECK(accepted > 0 && accepted < (long)(8 * header) / 4);
}

/* -- numbers ---------------------------------------------------------------------------------- */

/* The value of a 16-bit float with this many bits of fraction, from its definition. */
static double value_of(unsigned bits, int fraction_bits)
{
    int exponent_bits = 15 - fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
    double fraction = (double)(bits & ((1u << fraction_bits) - 1));
    if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? (double)NAN : (double)INFINITY;
    if (exponent) fraction += 1 << fraction_bits;
    double value = ldexp(fraction, (exponent ? exponent : 1) - bias - fraction_bits);
    return bits & 0x8000 ? -value : value;
}

/* The nearest such number, ties to even: rint() in the unit of the value's binade. */
static double nearest_of(double value, int fraction_bits)
{
    int smallest = fraction_bits == 10 ? -14 : -126, exponent;
    frexp(value, &exponent);
    exponent = (exponent - 1 < smallest ? smallest : exponent - 1) - fraction_bits;
    return ldexp(rint(ldexp(value, -exponent)), exponent);
}

static void check_all(const char *dtype, int fraction_bits)
{
    for (int part = 0; part < 2; part++) { /* finite ones are read, each of the others is refused */
        uint16_t *bits = allocate(65536, sizeof *bits);
        int64_t count = 0;
        for (unsigned i = 0; i < 65536; i++)
            if (isfinite(value_of(i, fraction_bits)) == (part == 0)) bits[count++] = (uint16_t)i;
        char header[256];
        snprintf(header, sizeof header,
                 "{\"t\": {\"dtype\": \"%s\", \"shape\": [%lld], \"data_offsets\": [0, %lld]}}", dtype,
                 (long long)count, (long long)count * 2);
        make(header, 0, -1);
        memcpy(image + 8 + strlen(header), bits, (size_t)count * 2);
        struct safetensors file;
        float *values = allocate(count, sizeof *values);
        CHECK(safetensors_open(&file, scratch_write("all.safetensors", image,
                                                    8 + strlen(header) + (size_t)count * 2)) == STATUS_OK);
        int64_t wrong = 0;
        if (part == 0) {
            CHECK(safetensors_read(&file, &file.entries[0], 0, count, values) == STATUS_OK);
            for (int64_t i = 0; i < count; i++)
                wrong += (double)values[i] != value_of(bits[i], fraction_bits) ||
                         !!signbit(values[i]) != ((bits[i] & 0x8000) != 0);
        }
        for (int64_t i = 0; i < count && part == 1; i++)
            wrong += safetensors_read(&file, &file.entries[0], i, 1, values) != STATUS_BAD;
        CHECK(wrong == 0);
        if (part == 1) {
            CHECK(safetensors_read(&file, &file.entries[0], 0, count, values) == STATUS_BAD);
            CHECK_TEXT(status_sentence(), "all.safetensors: tensor t holds an infinity at element 0");
            CHECK(safetensors_read(&file, &file.entries[0], 5, 1, values) == STATUS_BAD);
            CHECK_TEXT(status_sentence(), "tensor t holds NaN at element 5");
        }
        safetensors_close(&file);
        free(values);
        free(bits);
    }
}

/* Writes and reads back: F32 keeps all bits, the others round as defined; ties are among the values. */
static void check_rounding(enum dtype type)
{
    enum { COUNT = 65 * 64 + 6 };
    static float values[COUNT], back[COUNT];
    unsigned long long state = 3;
    for (int i = 0; i < COUNT; i++) {
        values[i] = (float)ldexp(check_uniform(&state), i % 40 - 26);
        if (i % 3 == 0)
            values[i] = (float)nearest_of((double)values[i], type == DTYPE_HALF ? 11 : 8); /* often a tie */
        if (i % 65 == 0) values[i] = (float)ldexp(i + 1, -30);
    }
    const float edges[] = {65519, -65504, 0x1.ffcp-15f, 0x1p-25f, 0x1.8p-24f, 0x1.000002p-25f};
    memcpy(values + COUNT - 6, edges, sizeof edges);
    const struct safetensors_source source = {"t", values, 1, COUNT, true};
    const char *path = scratch_path("round.safetensors");
    unlink(path);
    CHECK(safetensors_write(path, &source, 1, type) == STATUS_OK);
    struct safetensors file;
    CHECK(safetensors_open(&file, path) == STATUS_OK);
    CHECK(file.count == 1 && file.entries[0].type == type && file.entries[0].dimensions == 1);
    CHECK(safetensors_read(&file, &file.entries[0], 0, COUNT, back) == STATUS_OK);
    int wrong = 0;
    for (int i = 0; i < COUNT; i++) {
        double wanted = type == DTYPE_FLOAT ? (double)values[i]
                                            : nearest_of((double)values[i], type == DTYPE_HALF ? 10 : 7);
        wrong += (double)back[i] != wanted || !signbit(back[i]) != !signbit(values[i]);
    }
    CHECK(wrong == 0);
    CHECK(safetensors_read(&file, &file.entries[0], 7, 13, back) == STATUS_OK);
    CHECK((double)back[0] == (type == DTYPE_FLOAT
                                  ? (double)values[7]
                                  : nearest_of((double)values[7], type == DTYPE_HALF ? 10 : 7)));
    safetensors_close(&file);
}

static void check_unsavable(void)
{
    static const struct {
        float value;
        enum dtype type;
        const char *part;
    } cases[] = {
        {65520, DTYPE_HALF, "tensor w.bias: element 1 is 65520, too large for float16"},
        {-1e30f, DTYPE_HALF, "too large for float16"},
        {3.4e38f, DTYPE_BFLOAT, "too large for bfloat16"},
        {NAN, DTYPE_FLOAT, "tensor w.bias holds NaN at element 1"},
        {NAN, DTYPE_BFLOAT, "tensor w.bias holds NaN at element 1"},
        {INFINITY, DTYPE_HALF, "tensor w.bias holds an infinity"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const float values[] = {1, cases[i].value, 2};
        const struct safetensors_source source = {"w.bias", values, 1, 3, true};
        const char *path = scratch_path("unsavable.safetensors");
        CHECK(safetensors_write(path, &source, 1, cases[i].type) == STATUS_BAD);
        CHECK_TEXT(status_sentence(), cases[i].part);
        CHECK(!files_exists(path));
    }
    CHECK(safetensors_write(scratch_path("good.safetensors"), sources, 3, DTYPE_FLOAT) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "good.safetensors");
    CHECK(safetensors_write(scratch_path("no/folder.safetensors"), sources, 3, DTYPE_FLOAT) == STATUS_BAD);
}

/* Whatever the length of the header, the tensors begin at a multiple of 8 bytes. */
static void check_alignment(void)
{
    for (size_t length = 1; length <= 9; length++) {
        char name[] = "lengthens";
        name[length] = 0;
        const struct safetensors_source source = {name, sample, 1, 3, true};
        const char *path = scratch_path(name);
        struct safetensors file;
        CHECK(safetensors_write(path, &source, 1, DTYPE_HALF) == STATUS_OK);
        CHECK(safetensors_open(&file, path) == STATUS_OK);
        CHECK(file.count == 1 && file.entries[0].begin % 8 == 0 && !strcmp(file.entries[0].name, name));
        safetensors_close(&file);
    }
}

int main(void)
{
    scratch_begin();
    check_headers();
    check_unusual();
    check_damage();
    check_all("F16", 10);
    check_all("BF16", 7);
    check_rounding(DTYPE_FLOAT);
    check_rounding(DTYPE_BFLOAT);
    check_rounding(DTYPE_HALF);
    check_alignment();
    check_unsavable();
    return check_result();
}
