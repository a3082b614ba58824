// The products of attention of many queries, on tiles.
#pragma once
#include "flash_rows.h"
#include "tiles.h"

namespace {

constexpr int kBlock = 32;          // queries worked on together: two tiles
constexpr int64_t kStepsUnit = 16;  // steps over a key come in multiples of this
constexpr int64_t kWeighed = 32;    // keys that are weighed in a step
constexpr bool kBytesPay = false;   // sums in int32 are to be made floats first, which takes longer than is won
using Registers = Tiles;

// How far rows of scores and of weights lie apart, in numbers: an odd number of cache lines, so that those of a tile do
// not share a few places of the cache.
inline int64_t score_stride(int64_t keys) { return keys + kLanes; }
inline int64_t weight_stride(int64_t keys) { return keys + 2 * kLanes; }

// Two tiles of rows from a times N of columns from b, bfloat16, in n steps; to `to` [32, stride].
template <int N>
inline void tile_product(const uint8_t* a, int64_t lda, const uint8_t* b, int64_t ldb, int64_t n, float* to,
                         int64_t stride) {
    t_ready();
    t_zero<0>();
    t_zero<2>();
    if constexpr (N > 1) {
        t_zero<1>();
        t_zero<3>();
    }
    for (int64_t i = 0; i < n; i++, a += kTileBytes, b += kTileRows * ldb) {
        t_load<6>(b, ldb);
        t_load<4>(a, lda);
        t_load<5>(a + kTileRows * lda, lda);
        t_dot_halves<0, 4, 6>();
        t_dot_halves<2, 5, 6>();
        if constexpr (N > 1) {
            t_load<7>(b + kTileBytes, ldb);
            t_dot_halves<1, 4, 7>();
            t_dot_halves<3, 5, 7>();
        }
    }
    t_store<0>(to, 4 * stride);
    t_store<2>(to + kTileRows * stride, 4 * stride);
    if constexpr (N > 1) {
        t_store<1>(to + kTileRows, 4 * stride);
        t_store<3>(to + kTileRows * stride + kTileRows, 4 * stride);
    }
}

// Scores of a block of queries and the first n keys of a tile, or a few more.
template <bool bytes>
inline void score_tile(const uint8_t* q, const uint8_t* k, int64_t steps, const float* by, const float* plus,
                       float* scores, int64_t stride, int64_t n) {
    static_assert(!bytes);
    for (int64_t s = 0; s < std::min<int64_t>(n, kTile); s += 2 * kTileRows)
        tile_product<2>(q, 4 * steps, k + 4 * s, 4 * kTile, steps / kStepsUnit, scores + s, stride);
}

// out [kBlock, width] = p v, over so many keys: p bfloat16 [kBlock, ldp bytes], v [pair of keys][width][2].
inline void weigh_all(const uint8_t* p, int64_t ldp, const uint8_t* v, int64_t dim, int64_t width, int64_t keys,
                      float* out) {
    int64_t d = 0, steps = keys / kWeighed;
    for (; dim - d > kTileRows; d += 2 * kTileRows)
        tile_product<2>(p, ldp, v + 4 * d, 4 * width, steps, out + d, width);
    if (d < dim) tile_product<1>(p, ldp, v + 4 * d, 4 * width, steps, out + d, width);
}

}  // namespace
