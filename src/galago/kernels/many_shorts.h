// Products of many rows where no instruction multiplies bytes without losing some: by twos of 16-bit numbers. Of each
// four inputs the first goes with the third and the second with the fourth, as shifts alone make them of bytes.
#pragma once
#include "panels.h"

namespace {

// Up to here rows are few by int8 and by int4 weights: these are used as they are then, and else widened once.
constexpr int64_t kFewBytes = 16, kFewFours = INT64_MAX;
constexpr int kShortRows = 6, kShortVectors = 2;  // of a tile
constexpr int64_t kManyUnit = kShortRows;  // rows are best handed out in multiples of this
// Blocks work on many rows in parts of so many, whose results stay in the processor's caches from step to step.
constexpr int64_t kPart = 192;
constexpr int64_t kWidened = 256 << 10;  // bytes of weights at a time, to stay in a core's second cache

// Twice the bytes, an odd number of cache lines apart: rows of a tile would share a few places of the cache otherwise.
inline Layout many_layout(int64_t m, int64_t padded) { return {m, padded, ((2 * padded + 63) / 64 | 1) * 64}; }

// A row of whole numbers as shorts: the twos of first and third numbers, then those of second and fourth.
inline void spread_row(uint8_t* row, int64_t padded) {
    for (int64_t k = 0; k < padded; k += 4 * kLanes) {
        B four = b_load(row + k);
        B even = b_even(four), odd = b_odd(four);
        int64_t bytes = std::min<int64_t>(4 * kLanes, padded - k);
        std::memcpy(row + k, &even, bytes);
        std::memcpy(row + padded + k, &odd, bytes);
    }
}

// R rows, `padded` bytes of twos each and as many again, times the columns of two vectors from w.
template <int R>
[[gnu::noinline]] void short_tile(const Job& j, const uint8_t* w, int64_t row, int64_t column) {
    const uint8_t* a = j.a + row * j.stride;
    I acc[R][kShortVectors];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < kShortVectors; v++) acc[r][v] = i_zero();
    for (int half = 0; half < 2; half++, a += j.padded)
        for (int64_t k = 0; k < j.padded; k += 4, w += kShortVectors * sizeof(B)) {
            B b[kShortVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kShortVectors; v++) b[v] = b_load(w + v * sizeof(B));
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                B x = b_two_shorts(a + r * j.stride + k);
#pragma GCC unroll 8
                for (int v = 0; v < kShortVectors; v++) acc[r][v] = i_dot_shorts(acc[r][v], x, b[v]);
            }
        }
    finish(j.w, j.g, acc, row, column, j.rows);
}

// Rows [from, to) times panel p, which is int8 by now. `next` is what this thread will probably read after it, or null.
inline void many_rows(const Job& j, const uint8_t* panel, const uint8_t* next, int64_t p, int64_t from, int64_t to) {
    constexpr int64_t columns = kShortVectors * kLanes;
    thread_local Scratch scratch;
    int64_t bytes = 2 * columns * j.padded;  // of the columns of a tile, widened
    int64_t at_once = std::clamp<int64_t>(kWidened / bytes, 1, kPanel / columns);
    int64_t there = (std::min<int64_t>(kPanel, j.w.n - p * kPanel) + columns - 1) / columns;
    uint8_t* wide = scratch.of<uint8_t>(at_once * bytes);
    for (int64_t first = 0; first < there; first += at_once) {
        int64_t end = std::min(there, first + at_once);
        for (int64_t t = first; t < end; t++) {
            uint8_t *even = wide + (t - first) * bytes, *odd = even + bytes / 2;
            const uint8_t* from_panel = panel + t * columns * 4;
            for (int64_t k = 0; k < j.padded; k += 4, from_panel += 4 * kPanel)
                for (int v = 0; v < kShortVectors; v++, even += sizeof(B), odd += sizeof(B)) {
                    B four = b_load(from_panel + v * sizeof(B));
                    b_store(reinterpret_cast<int8_t*>(even), b_even(four));
                    b_store(reinterpret_cast<int8_t*>(odd), b_odd(four));
                }
        }
        for (int64_t row = from; row < to; row += kShortRows)
            for (int64_t t = first; t < end; t++) {
                const uint8_t* w = wide + (t - first) * bytes;
                int64_t column = p * kPanel + t * columns;
                switch (std::min<int64_t>(kShortRows, to - row)) {
                    case 6: short_tile<6>(j, w, row, column); break;
                    case 5: short_tile<5>(j, w, row, column); break;
                    case 4: short_tile<4>(j, w, row, column); break;
                    case 3: short_tile<3>(j, w, row, column); break;
                    case 2: short_tile<2>(j, w, row, column); break;
                    case 1: short_tile<1>(j, w, row, column); break;
                }
            }
    }
}

}  // namespace
