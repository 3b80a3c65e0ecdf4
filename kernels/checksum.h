/* The checksum by which ranks compare what should be equal. Compiled by C and by CUDA.
 *
 * The sum modulo 2^64 of a mixed word per element, of its bits and its place. Whole numbers may be added in
 * any order, so every backend with any number of threads comes to the same. It finds accidents (one bit,
 * elements that changed places); it is no protection against forgery. */
#ifndef WPO_KERNELS_CHECKSUM_H
#define WPO_KERNELS_CHECKSUM_H

#include <stdint.h>

#ifdef __CUDACC__
#define CHECKSUM_FUNCTION static inline __host__ __device__
#else
#define CHECKSUM_FUNCTION static inline
#endif

/* The finaliser of splitmix64 (Steele, Lea & Flood 2014). */
CHECKSUM_FUNCTION uint64_t checksum_word(uint64_t bits, uint64_t place)
{
    uint64_t x = bits + (place + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

#endif
