/* bf16 as kernels/bfloat.h rounds it against the host functions of the CUDA toolkit: every upper half of an
 * f32 with the lower halves that matter, and a walk over all bit patterns. Skipped where the toolkit's
 * headers are not installed. */
#include "kernels/bfloat.h"
#include "tests/check.h"

#if __has_include(<cuda_bf16.h>)
#include <cuda_bf16.h>

static long wrong_rounds, wrong_widths, count;

static void compare(uint32_t bits)
{
    float x = float_of_bits(bits);
    __nv_bfloat16_raw theirs = (__nv_bfloat16_raw)__float2bfloat16_rn(x);
    struct bfloat ours = bfloat_round(x);
    wrong_rounds += ours.bits != theirs.x;
    uint32_t wide = float_bits(bfloat_widen(ours));
    wrong_widths += wide != float_bits(__bfloat162float(__nv_bfloat16(theirs)));
    count++;
}

int main()
{
    const uint32_t lows[] = {0x0000, 0x0001, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff};
    for (uint32_t high = 0; high < 0x10000; high++)
        for (uint32_t low : lows)
            compare(high << 16 | low);
    for (uint32_t i = 0; i < 1000000; i++)
        compare(i * 2654435761u);
    CHECK(wrong_rounds == 0);
    CHECK(wrong_widths == 0);
    printf("%ld numbers rounded as the CUDA toolkit rounds them\n", count);
    return check_result();
}
#else
int main()
{
    SKIP("cuda_bf16.h of the CUDA toolkit is not installed");
}
#endif
