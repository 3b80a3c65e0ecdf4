/* bf16 by its definition, and the halves of master weights put together again, over every upper half and the
 * lower halves that matter. */
#include "kernels/bfloat.h"
#include "tests/check.h"

static const uint32_t lows[] = {0x0000, 0x0001, 0x1234, 0x7fff, 0x8000, 0x8001, 0xcdef, 0xffff};
enum { LOWS = 8 };

/* The nearest of all bf16, found by comparing with both neighbours in double; of two as near the even one.
 * The neighbour above the largest is 2^128, where infinity begins. */
static uint16_t nearest(uint32_t bits)
{
    uint32_t below = bits & 0x7fff0000u, above = below + 0x10000u, sign = bits & 0x80000000u;
    double x = (double)float_of_bits(bits & 0x7fffffffu), a = (double)float_of_bits(below);
    double b = above == 0x7f800000u ? 0x1p128 : (double)float_of_bits(above);
    bool up = x - a > b - x || (x - a == b - x && (above >> 16) % 2 == 0);
    return (uint16_t)((sign | (up ? above : below)) >> 16);
}

static long wrong_rounds, wrong_joins, wrong_highs;

static void try_bits(uint32_t bits)
{
    float x = float_of_bits(bits);
    bool infinite = (bits & 0x7fffffffu) == 0x7f800000u, nan = (bits & 0x7fffffffu) > 0x7f800000u;
    struct bfloat rounded = bfloat_round(x);
    if (nan)
        wrong_rounds += !isnan(bfloat_widen(rounded));
    else
        wrong_rounds += rounded.bits != (infinite ? bits >> 16 : nearest(bits));

    struct bfloat high = master_high(x);
    int16_t low = master_low(x);
    wrong_joins += float_bits(master_join(high, low)) != bits;
    if (nan || infinite) return;
    /* the high half is as near as the nearest: another one only where two are as near */
    double to_high = fabs((double)bfloat_widen(high) - (double)x);
    double to_nearest = fabs((double)bfloat_widen(rounded) - (double)x);
    if (isfinite(bfloat_widen(high)) && isfinite(bfloat_widen(rounded))) wrong_highs += to_high != to_nearest;
}

static void known(void)
{
    static const struct {
        float x;
        uint16_t bits;
    } rows[] = {{1, 0x3f80},           {-2, 0xc000},          {0, 0},
                {1 + 0x1p-8f, 0x3f80}, {1 + 0x3p-8f, 0x3f82}, {1 + 0x1.01p-8f, 0x3f81},
                {0x1p-133f, 0x0001},   {0x1p-134f, 0x0000},   {0x1.ffp127f, 0x7f80}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        CHECK(bfloat_round(rows[i].x).bits == rows[i].bits);
    CHECK(bfloat_widen((struct bfloat){0x3fc0}) == 1.5f);
    /* a change below half a bf16 is kept by the pair and lost by bf16 alone */
    float w = 1, small = 0x1p-20f;
    for (int i = 0; i < 3; i++)
        w = master_join(master_high(w), master_low(w)) + small;
    CHECK(w == 1 + 3 * small && bfloat_round(w).bits == 0x3f80);
}

int main(void)
{
    known();
    for (uint32_t high = 0; high < 0x10000; high++)
        for (int i = 0; i < LOWS; i++)
            try_bits(high << 16 | lows[i]);
    for (uint32_t i = 0; i < 1000000; i++)
        try_bits(i * 2654435761u); /* a walk over all bit patterns */
    CHECK(wrong_rounds == 0);
    CHECK(wrong_joins == 0);
    CHECK(wrong_highs == 0);
    CHECK(nearest(0x3f808000) == 0x3f80 && nearest(0x3f818000) == 0x3f82 && nearest(0x3f808001) == 0x3f81);
    return check_result();
}
