/* What forward and backward attention share: which keys a query sees, tiles in shared memory, fragments of
 * tiles.
 *
 * Positions decide what is seen: a query at position p sees the keys of its span's prefix and of its own span
 * up to itself, of these with a window only those at positions > p - window. So a tile of queries meets two
 * runs of keys, each contiguous in memory, and between a tile of queries and a tile of keys the mask is two
 * straight lines. */
#ifndef WPO_KERNELS_CUDA_ATTENTION_CUH
#define WPO_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.cuh"
#include "kernels/cuda/ptx.cuh"

/* -- which keys are seen ------------------------------------------------------------------------ */

/* Query r of a tile sees key c of a tile where r + low <= c < high, or c < r + high if causal. */
struct mask {
    int low, high;
    bool causal;
};

/* Of queries from `query` of a span and keys from `key` of the span itself (own) or of its prefix. window 0:
 * none. */
__device__ static inline struct mask mask_between(const struct span &span, int query, int key, bool own,
                                                  int window)
{
    int query_position = (int)span.position + query, key_position = own ? (int)span.position + key : key;
    struct mask m;
    m.low = window ? query_position - window + 1 - key_position : -(1 << 30);
    m.high = own ? query + 1 - key : (int)span.prefix_count - key;
    m.causal = own;
    return m;
}

/* The same for queries that begin `row` rows further down. */
__device__ static inline struct mask mask_below(struct mask m, int row)
{
    m.low += row;
    if (m.causal) m.high += row;
    return m;
}

__device__ static inline bool mask_sees(struct mask m, int row, int column)
{
    return m.low + row <= column && column < m.high + (m.causal ? row : 0);
}

/* Whether all of rows x columns is seen; whether none is. */
__device__ static inline bool mask_full(struct mask m, int rows, int columns)
{
    return m.low + rows <= 1 && columns <= m.high;
}

__device__ static inline bool mask_empty(struct mask m, int rows, int columns)
{
    return m.low >= columns || m.high + (m.causal ? rows - 1 : 0) <= 0;
}

/* A run of keys: rows of the batch from `row`, at index `first` of the prefix or of the span. */
struct key_tile {
    int64_t row;
    int first, count;
    bool own;
};

/* The tiles of KEYS keys that queries first .. first + rows - 1 of a span see: of the prefix, then of the
 * span. Keys that the window hides from all of them are left out at the front of both runs. */
struct key_walk {
    int prefix_first, prefix_end, prefix_tiles;
    int own_first, own_end, tiles; /* tiles: of both runs, at least 1 */
};

template <int KEYS>
__device__ inline struct key_walk key_walk_of(const struct span &span, int first, int rows, int window)
{
    int oldest = window ? (int)span.position + first - window + 1 : 0;
    struct key_walk w;
    w.prefix_end = (int)span.prefix_count;
    w.prefix_first = min(max(oldest, 0), w.prefix_end);
    w.own_first = max(oldest - (int)span.position, 0);
    w.own_end = first + rows;
    w.prefix_tiles = (w.prefix_end - w.prefix_first + KEYS - 1) / KEYS;
    w.tiles = w.prefix_tiles + (w.own_end - w.own_first + KEYS - 1) / KEYS;
    return w;
}

template <int KEYS>
__device__ inline struct key_tile key_tile_of(const struct span &span, const struct key_walk &w, int j)
{
    struct key_tile t;
    t.own = j >= w.prefix_tiles;
    t.first = t.own ? w.own_first + (j - w.prefix_tiles) * KEYS : w.prefix_first + j * KEYS;
    t.count = min((t.own ? w.own_end : w.prefix_end) - t.first, KEYS);
    t.row = (t.own ? span.start : span.prefix_start) + t.first;
    return t;
}

/* -- tiles in shared memory ----------------------------------------------------------------------
 *
 * A tile is rows of COLUMNS bf16 without padding, in chunks of 16 bytes. The eight rows that ldmatrix reads
 * at once must fall into the eight different 16-byte lanes of the banks (128 bytes): chunk c of row r lies in
 * lane (r COLUMNS/8 + c) mod 8. With g = gcd(COLUMNS/8, 8) the first term takes 8/g values and then repeats,
 * so c is exclusive-ored with (r / (8/g)) mod g, which sets the low bits the first term leaves alone:
 *   64 and 128 columns: g = 8, c ^ (r mod 8)
 *   96 columns: g = 4, c ^ (r/2 mod 4)
 *   80 columns: g = 2, c ^ (r/4 mod 2)
 * Chunks only change places within aligned groups of g, of which a row has a whole number: no row grows, and
 * what copy_tile writes at once (g neighbours of 8/g rows) takes each bank once too. */

/* The largest power of two that divides the chunks of a row; of these at most 8 change places. */
template <int COLUMNS> constexpr int CHUNK_GROUP = (COLUMNS / 8) & -(COLUMNS / 8);

template <int COLUMNS> __device__ inline int swizzle(int row)
{
    constexpr int group = CHUNK_GROUP<COLUMNS> < 8 ? CHUNK_GROUP<COLUMNS> : 8;
    return (int)((unsigned)row / (8 / group) % group);
}

/* The same number, of which the compiler knows nothing. Addresses that come from it inside a loop are
 * computed there each time, some cheap instructions, where it would else compute them all before the loop and
 * keep dozens of registers filled with them. */
__device__ static inline unsigned fresh(unsigned x)
{
    asm volatile("" : "+r"(x));
    return x;
}

/* Where chunk `chunk` (8 elements) of a row begins, in elements from the tile's start. */
template <int COLUMNS> __device__ inline int chunk_place(int row, int chunk)
{
    return row * COLUMNS + (chunk ^ swizzle<COLUMNS>(row)) * 8;
}

/* Eight elements from where they need not be aligned. */
__device__ static inline vector16<struct bfloat> gather_chunk(const struct bfloat *from)
{
    vector16<struct bfloat> chunk;
    for (int i = 0; i < 8; i++)
        chunk.at[i] = from[i];
    return chunk;
}

/* And back. */
__device__ static inline void scatter_chunk(struct bfloat *to, const vector16<struct bfloat> &chunk)
{
    for (int i = 0; i < 8; i++)
        to[i] = chunk.at[i];
}

/* Starts the copy of a tile by all THREADS threads of a block: rows x columns of `from` (its first element),
 * zeros in what is left of ROWS x COLUMNS. whole: rows are 16-byte aligned; else the copy is done, slowly, on
 * return. The caller commits and waits. */
template <int ROWS, int COLUMNS, int THREADS>
__device__ inline void copy_tile(struct bfloat *tile, const struct bfloat *from, int64_t stride, int rows,
                                 int columns, bool whole, unsigned thread = threadIdx.x)
{
    constexpr int across = CHUNK_GROUP<COLUMNS>, down = THREADS / across;
    static_assert(THREADS % across == 0 && ROWS % down == 0 && down % 8 == 0, "threads do not tile the tile");
    int row = (int)(thread / across), chunk = (int)(thread % across);
    struct bfloat *to = tile + chunk_place<COLUMNS>(row, chunk);
    const struct bfloat *source = from + row * stride + chunk * 8;
    const int64_t step = down * stride; /* one pointer that moves: one for each row would cost registers */
    if (!whole) {
#pragma unroll 1
        for (int i = 0; i < ROWS; i += down, source += step)
#pragma unroll 1
            for (int j = 0; j < COLUMNS / 8; j += across) {
                bool valid = row + i < rows && (chunk + j) * 8 < columns;
                *(vector16<struct bfloat> *)(to + i * COLUMNS + j * 8) =
                    valid ? gather_chunk(source + j * 8) : vector16<struct bfloat>{};
            }
        return;
    }
#pragma unroll
    for (int i = 0; i < ROWS; i += down) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += across) {
            bool valid = row + i < rows && (chunk + j) * 8 < columns;
            copy_async(to + i * COLUMNS + j * 8, valid ? source + j * 8 : from, valid);
        }
        source += step;
    }
}

/* -- fragments of tiles, for mma_bfloat -----------------------------------------------------------
 *
 * `row` is a multiple of 8, `step` counts 16 columns: the fragments cover rows row .. row + 15 and columns
 * 16 step .. 16 step + 15 of a tile of COLUMNS columns. In the product d[m][n] += sum_k a[m][k] b[k][n],
 *   load_a takes a from a tile that holds [m][k],
 *   load_b takes b from a tile that holds [n][k]: r[0], r[1] for the first 8 of n, r[2], r[3] for the others,
 *   load_b_transposed takes the same from a tile that holds [k][n]. */

/* Chunk 2 step + right of row + down, of which right and down differ between lanes and the rest does not: in
 * the fewest instructions, one exclusive-or for each step where rows are a multiple of the chunks that change
 * places. */
template <int COLUMNS>
__device__ inline const struct bfloat *lane_place(const struct bfloat *tile, int row, int step, unsigned down,
                                                  unsigned right)
{
    unsigned begin = down * COLUMNS, chunk = (right ^ (unsigned)swizzle<COLUMNS>((int)down)) * 8;
    if (COLUMNS % 64 == 0) return tile + row * COLUMNS + ((begin + chunk) ^ (unsigned)(16 * step));
    return tile + row * COLUMNS + begin + (chunk ^ (unsigned)(16 * step));
}

/* Lanes 0-15 point to the rows of the left half, 16-31 to those of the right half. */
template <int COLUMNS>
__device__ inline const struct bfloat *lane_down(const struct bfloat *tile, int row, int step, unsigned lane)
{
    return lane_place<COLUMNS>(tile, row, step, lane % 16, lane / 16);
}

/* Lanes 0-15 point to the upper 8 rows (left half, right half), 16-31 to the lower 8. */
template <int COLUMNS>
__device__ inline const struct bfloat *lane_across(const struct bfloat *tile, int row, int step,
                                                   unsigned lane)
{
    return lane_place<COLUMNS>(tile, row, step, lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

template <int COLUMNS>
__device__ inline void load_a(uint32_t (&r)[4], const struct bfloat *tile, int row, int step,
                              unsigned lane = threadIdx.x % 32)
{
    load_matrices(r, lane_down<COLUMNS>(tile, row, step, lane));
}

template <int COLUMNS>
__device__ inline void load_b(uint32_t (&r)[4], const struct bfloat *tile, int row, int step,
                              unsigned lane = threadIdx.x % 32)
{
    load_matrices(r, lane_across<COLUMNS>(tile, row, step, lane));
}

template <int COLUMNS>
__device__ inline void load_b_transposed(uint32_t (&r)[4], const struct bfloat *tile, int row, int step,
                                         unsigned lane = threadIdx.x % 32)
{
    load_matrices_transposed(r, lane_down<COLUMNS>(tile, row, step, lane));
}

/* d[0], d[1] += a times the two halves of what load_b or load_b_transposed gave. */
__device__ static inline void mma_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[4])
{
    const uint32_t b_left[2] = {b[0], b[1]}, b_right[2] = {b[2], b[3]};
    mma_bfloat(left, a, b_left);
    mma_bfloat(right, a, b_right);
}

/* The accumulators of two neighbouring n-tiles (16x8 each) as the fragment a of a product that sums over n.
 */
__device__ static inline void fragment_of(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4])
{
    a[0] = pack_bfloat(left[0], left[1]);
    a[1] = pack_bfloat(left[2], left[3]);
    a[2] = pack_bfloat(right[0], right[1]);
    a[3] = pack_bfloat(right[2], right[3]);
}

/* -- the host's side ---------------------------------------------------------------------------- */

/* Runs the statement with D = the template that head_size runs in; its columns beyond head_size are zeros. */
#define WITH_HEAD_SIZE(head_size, D, ...)                                                                    \
    do {                                                                                                     \
        if ((head_size) <= 64) {                                                                             \
            constexpr int D = 64;                                                                            \
            __VA_ARGS__;                                                                                     \
        } else if ((head_size) <= 80) {                                                                      \
            constexpr int D = 80;                                                                            \
            __VA_ARGS__;                                                                                     \
        } else if ((head_size) <= 96) {                                                                      \
            constexpr int D = 96;                                                                            \
            __VA_ARGS__;                                                                                     \
        } else {                                                                                             \
            constexpr int D = 128;                                                                           \
            __VA_ARGS__;                                                                                     \
        }                                                                                                    \
    } while (0)

/* Lets a kernel ask for this much dynamic shared memory; once per kernel and device. */
#define ALLOW_SHARED(device, kernel, bytes)                                                                  \
    do {                                                                                                     \
        static int allowed_on = -1;                                                                          \
        REQUIRE((size_t)(bytes) <= (device)->shared_limit,                                                   \
                "a block of %s needs %d bytes of shared memory, and the device has %zu: it takes narrower "  \
                "heads, or f32",                                                                             \
                #kernel, (int)(bytes), (device)->shared_limit);                                              \
        if (allowed_on != (device)->index)                                                                   \
            CUDA_REQUIRE(                                                                                    \
                cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)));    \
        allowed_on = (device)->index;                                                                        \
    } while (0)

enum { HEAD_SIZE_LIMIT = 128 };

static inline void require_attention(struct tensor qkv, struct packing packing, struct attention_shape shape)
{
    REQUIRE(shape.key_heads > 0 && shape.heads % shape.key_heads == 0, "%lld query heads over %lld key heads",
            (long long)shape.heads, (long long)shape.key_heads);
    REQUIRE(shape.head_size > 0 && shape.head_size <= HEAD_SIZE_LIMIT && shape.head_size % 8 == 0,
            "head size %lld is no multiple of 8 up to %d", (long long)shape.head_size, HEAD_SIZE_LIMIT);
    REQUIRE(shape.scale > 0 && shape.window >= 0 && packing.longest < 1 << 30,
            "attention of scale %g, window %lld, %lld keys", (double)shape.scale, (long long)shape.window,
            (long long)packing.longest);
    require_shape(qkv, qkv.rows, (shape.heads + 2 * shape.key_heads) * shape.head_size, "qkv");
}

/* The window as the kernels want it: one that reaches past all keys is none. */
static inline int window_of(struct packing packing, struct attention_shape shape)
{
    return shape.window < packing.longest ? (int)shape.window : 0;
}

#endif
