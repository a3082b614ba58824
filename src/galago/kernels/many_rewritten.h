// Products of many rows by panels whose columns are written anew first, as the instructions at hand take them.
#pragma once
#include "panels.h"

namespace {

// Blocks work on many rows in parts of so many, whose results stay in the processor's caches from step to step.
constexpr int64_t kPart = 192;
constexpr int64_t kAtOnce = 256 << 10;  // bytes written anew at a time, to stay in a core's second cache

// Rows of so many bytes at the least, an odd number of cache lines apart: those of a tile would share a few places of
// the cache otherwise.
inline int64_t row_stride(int64_t bytes) { return ((bytes + 63) / 64 | 1) * 64; }

// Rows [from, to) times panel p, in tiles of `rows` rows and `columns` columns, whose weights take `bytes`:
// rewrite(panel + 4 * column, to) makes those of a tile, tile(w, row, n, column) multiplies n rows by them.
template <class Rewrite, class Tile>
inline void rewritten(const Job& j, const uint8_t* panel, int64_t p, int64_t from, int64_t to, int64_t rows,
                      int64_t columns, int64_t bytes, const Rewrite& rewrite, const Tile& tile) {
    thread_local Scratch scratch;
    int64_t at_once = std::clamp<int64_t>(kAtOnce / bytes, 1, kPanel / columns);
    int64_t there = (std::min<int64_t>(kPanel, j.w.n - p * kPanel) + columns - 1) / columns;
    uint8_t* w = scratch.of<uint8_t>(at_once * bytes);
    for (int64_t first = 0; first < there; first += at_once) {
        int64_t end = std::min(there, first + at_once);
        for (int64_t t = first; t < end; t++) rewrite(panel + t * columns * 4, w + (t - first) * bytes);
        for (int64_t row = from; row < to; row += rows)
            for (int64_t t = first; t < end; t++)
                tile(w + (t - first) * bytes, row, std::min(rows, to - row), p * kPanel + t * columns);
    }
}

}  // namespace
