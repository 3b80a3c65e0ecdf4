/* bfloat16: the upper half of an f32, and the f32 master weight as two halves. Compiled by C and by CUDA.
 *
 * A master weight w (f32) is kept as the bf16 nearest to it, which the matrix products read, and a signed
 * 16-bit remainder: bits(w) = (high << 16) + low, exactly. So training in bf16 loses nothing of small
 * updates, and the master costs 2 bytes a parameter instead of 4. */
#ifndef WPO_KERNELS_BFLOAT_H
#define WPO_KERNELS_BFLOAT_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define BFLOAT_FUNCTION static inline __host__ __device__
#else
#define BFLOAT_FUNCTION static inline
#endif

struct bfloat {
    uint16_t bits;
};

BFLOAT_FUNCTION uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

BFLOAT_FUNCTION float float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

BFLOAT_FUNCTION float bfloat_widen(struct bfloat x)
{
    return float_of_bits((uint32_t)x.bits << 16);
}

/* To nearest, ties to even; NaN stays NaN; the largest floats become infinite, as IEEE 754 has it. */
BFLOAT_FUNCTION struct bfloat bfloat_round(float x)
{
    struct bfloat result;
    uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        result.bits = (uint16_t)0x7fff;
    else
        result.bits = (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return result;
}

/* The halves of a master weight. Ties go away from zero here, so that the remainder fits 16 bits. */
BFLOAT_FUNCTION struct bfloat master_high(float w)
{
    struct bfloat high;
    high.bits = (uint16_t)((float_bits(w) + 0x8000u) >> 16);
    return high;
}

BFLOAT_FUNCTION int16_t master_low(float w)
{
    uint32_t bits = float_bits(w);
    int32_t low = (int32_t)(bits - (((bits + 0x8000u) >> 16) << 16));
    return (int16_t)low;
}

BFLOAT_FUNCTION float master_join(struct bfloat high, int16_t low)
{
    return float_of_bits(((uint32_t)high.bits << 16) + (uint32_t)(int32_t)low);
}

#endif
