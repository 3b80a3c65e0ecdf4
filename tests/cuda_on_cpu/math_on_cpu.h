/* CUDA's built-in functions of one thread: numbers, bits, loads and stores, atomics. Part of cuda_runtime.h.
 */
#ifndef WPO_CUDA_ON_CPU_MATH_ON_CPU_H
#define WPO_CUDA_ON_CPU_MATH_ON_CPU_H

/* -- smaller and larger ----------------------------------------------------------------------- */

#define CUDA_ON_CPU_MINMAX(a_type, b_type, type)                                                             \
    static inline type min(a_type a, b_type b)                                                               \
    {                                                                                                        \
        return (type)a < (type)b ? (type)a : (type)b;                                                        \
    }                                                                                                        \
    static inline type max(a_type a, b_type b)                                                               \
    {                                                                                                        \
        return (type)a > (type)b ? (type)a : (type)b;                                                        \
    }
CUDA_ON_CPU_MINMAX(int, int, int)
CUDA_ON_CPU_MINMAX(unsigned, unsigned, unsigned)
CUDA_ON_CPU_MINMAX(int, unsigned, unsigned)
CUDA_ON_CPU_MINMAX(unsigned, int, unsigned)
CUDA_ON_CPU_MINMAX(long, long, long)
CUDA_ON_CPU_MINMAX(unsigned long, unsigned long, unsigned long)
CUDA_ON_CPU_MINMAX(long, unsigned long, unsigned long)
CUDA_ON_CPU_MINMAX(unsigned long, long, unsigned long)
CUDA_ON_CPU_MINMAX(long long, long long, long long)
CUDA_ON_CPU_MINMAX(unsigned long long, unsigned long long, unsigned long long)
CUDA_ON_CPU_MINMAX(long long, unsigned long long, unsigned long long)
CUDA_ON_CPU_MINMAX(unsigned long long, long long, unsigned long long)
#undef CUDA_ON_CPU_MINMAX

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline double min(double a, double b)
{
    return fmin(a, b);
}

static inline double max(double a, double b)
{
    return fmax(a, b);
}

/* -- numbers ---------------------------------------------------------------------------------- */

/* Names that the C library declares, or may some day, for itself. */
#define __expf  expf
#define __logf  logf
#define __log2f log2f
#define __powf  powf
#define __sinf  sinf
#define __cosf  cosf
#define rsqrtf  cuda_on_cpu_rsqrtf
#define rsqrt   cuda_on_cpu_rsqrt

static inline float rsqrtf(float x)
{
    return (float)(1.0 / sqrt((double)x));
}

static inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}

static inline float __fdividef(float x, float y)
{
    return x / y;
}

static inline float __fdiv_rn(float x, float y)
{
    return x / y;
}

static inline float __frcp_rn(float x)
{
    return 1.0f / x;
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float __frsqrt_rn(float x)
{
    return rsqrtf(x);
}

static inline float __fadd_rn(float x, float y)
{
    return x + y;
}

static inline float __fsub_rn(float x, float y)
{
    return x - y;
}

static inline float __fmul_rn(float x, float y)
{
    return x * y;
}

static inline float __fmaf_rn(float x, float y, float z)
{
    return fmaf(x, y, z);
}

static inline double __dadd_rn(double x, double y)
{
    return x + y;
}

static inline double __dmul_rn(double x, double y)
{
    return x * y;
}

static inline double __fma_rn(double x, double y, double z)
{
    return fma(x, y, z);
}

static inline float __saturatef(float x)
{
    return x > 0 ? (x < 1 ? x : 1) : 0; /* NaN gives 0 */
}

/* Conversions to integers saturate, and NaN gives 0, as the device has it. */
static inline int cuda_on_cpu_to_int(double x)
{
    return x != x ? 0 : x <= -2147483648.0 ? (-2147483647 - 1) : x >= 2147483647.0 ? 2147483647 : (int)x;
}

static inline int __float2int_rn(float x)
{
    return cuda_on_cpu_to_int(nearbyint((double)x));
}

static inline int __float2int_rz(float x)
{
    return cuda_on_cpu_to_int(trunc((double)x));
}

static inline int __float2int_rd(float x)
{
    return cuda_on_cpu_to_int(floor((double)x));
}

static inline int __float2int_ru(float x)
{
    return cuda_on_cpu_to_int(ceil((double)x));
}

static inline float __int2float_rn(int x)
{
    return (float)x;
}

static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}

static inline float __ll2float_rn(long long x)
{
    return (float)x;
}

static inline double __ll2double_rn(long long x)
{
    return (double)x;
}

static inline float __double2float_rn(double x)
{
    return (float)x;
}

/* -- bits ------------------------------------------------------------------------------------- */

template <class TO, class FROM> static inline TO cuda_on_cpu_bits(FROM from)
{
    TO to;
    static_assert(sizeof to == sizeof from, "the same bits");
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float x)
{
    return cuda_on_cpu_bits<unsigned>(x);
}

static inline int __float_as_int(float x)
{
    return cuda_on_cpu_bits<int>(x);
}

static inline float __uint_as_float(unsigned x)
{
    return cuda_on_cpu_bits<float>(x);
}

static inline float __int_as_float(int x)
{
    return cuda_on_cpu_bits<float>(x);
}

static inline long long __double_as_longlong(double x)
{
    return cuda_on_cpu_bits<long long>(x);
}

static inline double __longlong_as_double(long long x)
{
    return cuda_on_cpu_bits<double>(x);
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}

static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}

static inline unsigned __brev(unsigned x)
{
    unsigned y = 0;
    for (int i = 0; i < 32; i++)
        y |= (x >> i & 1) << (31 - i);
    return y;
}

static inline unsigned __umulhi(unsigned x, unsigned y)
{
    return (unsigned)((uint64_t)x * y >> 32);
}

static inline int __mulhi(int x, int y)
{
    return (int)((int64_t)x * y >> 32);
}

static inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y)
{
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}

static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift)
{
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned byte = (unsigned)(bytes >> 8 * (selector >> 4 * i & 7)) & 0xff;
        if (selector >> 4 * i & 8) byte = byte & 0x80 ? 0xff : 0; /* its sign, everywhere */
        result |= byte << 8 * i;
    }
    return result;
}

/* -- loads and stores with a word for the cache, which changes nothing here --------------------- */

#define CUDA_ON_CPU_LOAD(name)                                                                               \
    template <class T> static inline T name(const T *from)                                                   \
    {                                                                                                        \
        return *from;                                                                                        \
    }
#define CUDA_ON_CPU_STORE(name)                                                                              \
    template <class T> static inline void name(T *to, T value)                                               \
    {                                                                                                        \
        *to = value;                                                                                         \
    }
CUDA_ON_CPU_LOAD(__ldg)
CUDA_ON_CPU_LOAD(__ldcs)
CUDA_ON_CPU_LOAD(__ldcg)
CUDA_ON_CPU_LOAD(__ldca)
CUDA_ON_CPU_LOAD(__ldlu)
CUDA_ON_CPU_LOAD(__ldcv)
CUDA_ON_CPU_STORE(__stcs)
CUDA_ON_CPU_STORE(__stcg)
CUDA_ON_CPU_STORE(__stwb)
CUDA_ON_CPU_STORE(__stwt)
#undef CUDA_ON_CPU_LOAD
#undef CUDA_ON_CPU_STORE

/* -- atomics, of integers alone: sums of floats would depend on the order ----------------------- */

#define CUDA_ON_CPU_ATOMIC(name, type, expression)                                                           \
    static inline type name(type *at, type value)                                                            \
    {                                                                                                        \
        type old = *at;                                                                                      \
        *at = (type)(expression);                                                                            \
        return old;                                                                                          \
    }
#define CUDA_ON_CPU_ATOMICS(type)                                                                            \
    CUDA_ON_CPU_ATOMIC(atomicAdd, type, old + value)                                                         \
    CUDA_ON_CPU_ATOMIC(atomicMin, type, old < value ? old : value)                                           \
    CUDA_ON_CPU_ATOMIC(atomicMax, type, old > value ? old : value)                                           \
    CUDA_ON_CPU_ATOMIC(atomicAnd, type, old &value)                                                          \
    CUDA_ON_CPU_ATOMIC(atomicOr, type, old | value)                                                          \
    CUDA_ON_CPU_ATOMIC(atomicXor, type, old ^ value)                                                         \
    CUDA_ON_CPU_ATOMIC(atomicExch, type, value)                                                              \
    static inline type atomicCAS(type *at, type compare, type value)                                         \
    {                                                                                                        \
        type old = *at;                                                                                      \
        if (old == compare) *at = value;                                                                     \
        return old;                                                                                          \
    }
CUDA_ON_CPU_ATOMICS(int)
CUDA_ON_CPU_ATOMICS(unsigned)
CUDA_ON_CPU_ATOMICS(unsigned long long)
#undef CUDA_ON_CPU_ATOMICS
CUDA_ON_CPU_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
#undef CUDA_ON_CPU_ATOMIC

[[noreturn]] static inline void __trap()
{
    cuda_on_cpu_fail("__trap()");
}

#endif
