/* Random numbers by counter: a number is a function of its key alone, never of who asks or when. */
#ifndef WPO_RUNTIME_RANDOM_H
#define WPO_RUNTIME_RANDOM_H

#include <stdint.h>

/* A bijective mixing of 64 bits (the finaliser of splitmix, Steele et al. 2014). */
static inline uint64_t random_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* 64 uniform bits for the key (seed, stream, counter). */
static inline uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter)
{
    uint64_t key = random_mix(seed + 0x9e3779b97f4a7c15ULL);
    key = random_mix(key ^ (stream + 0x9e3779b97f4a7c15ULL));
    return random_mix(key + (counter + 1) * 0x9e3779b97f4a7c15ULL);
}

/* Uniform in [0, 1), 53 bits. */
static inline double random_unit(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(random_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

/* Uniform in 0 .. bound-1; bound below 2^32 keeps the bias under 2^-32. */
static inline uint64_t random_below(uint64_t seed, uint64_t stream, uint64_t counter, uint64_t bound)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)random_bits(seed, stream, counter) * bound) >> 64);
}

#endif
