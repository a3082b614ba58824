// Products of many rows by the instruction that multiplies two rows by two columns, of eight inputs each (Arm's i8mm).
#pragma once
#include "many_rewritten.h"

namespace {

// Up to here rows are few by int8 and by int4 weights: these are used as they are then, and else rewritten once.
constexpr int64_t kFewBytes = 8, kFewFours = 8;
constexpr int kPairs = 6;                    // of rows in a tile
constexpr int kSquares = 4, kSquare = 16;    // pairs of columns in a tile, and the bytes of one and eight inputs
constexpr int64_t kManyUnit = 2 * kPairs;    // rows are best handed out in multiples of this

// Of each two rows eight numbers of the one follow eight of the other.
inline Layout many_layout(int64_t m, int64_t padded) { return {(m + 1) / 2 * 2, padded, row_stride(padded)}; }

inline void spread_rows(uint8_t* a, const Layout& as, int64_t from, int64_t to) {
    thread_local Scratch scratch;
    uint8_t* both = scratch.of<uint8_t>(2 * as.filled);
    for (int64_t row = from; row < to; row += 2) {
        uint8_t *one = a + row * as.stride, *other = one + as.stride;
        if (row + 1 == to) std::memset(other, 0, as.filled);  // the last of an odd number has none
        for (int64_t k = 0; k < as.filled; k += 8) {
            std::memcpy(both + 2 * k, one + k, 8);
            std::memcpy(both + 2 * k + 8, other + k, 8);
        }
        std::memcpy(one, both, 2 * as.filled);
    }
}

// P pairs of rows, of which the last may have one alone, times eight columns.
template <int P>
[[gnu::noinline]] void square_tile(const Job& j, const uint8_t* w, int64_t row, int64_t n, int64_t column) {
    const uint8_t* a = j.a + row * j.stride;
    I acc[P][kSquares];
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 8
        for (int s = 0; s < kSquares; s++) acc[p][s] = i_zero();
    for (int64_t k = 0; k < j.padded; k += 8, w += kSquares * kSquare) {
        B b[kSquares];
#pragma GCC unroll 8
        for (int s = 0; s < kSquares; s++) b[s] = b_load(w + s * kSquare);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) {
            B x = b_load(a + 2 * (p * j.stride + k));
#pragma GCC unroll 8
            for (int s = 0; s < kSquares; s++) acc[p][s] = i_square(acc[p][s], x, b[s]);
        }
    }
    I sums[2 * P][kSquares / 2];
    for (int p = 0; p < P; p++)
        for (int v = 0; v < kSquares / 2; v++) {
            sums[2 * p][v] = i_first_row(acc[p][2 * v], acc[p][2 * v + 1]);
            sums[2 * p + 1][v] = i_second_row(acc[p][2 * v], acc[p][2 * v + 1]);
        }
    if (n == 2 * P)
        finish(j.w, j.g, sums, row, column, j.rows);
    else
        finish(j.w, j.g, reinterpret_cast<I(&)[2 * P - 1][kSquares / 2]>(sums), row, column, j.rows);
}

// Rows [from, to) times panel p, which is int8 by now. `next` is what this thread will probably read after it, or null.
inline void many_rows(const Job& j, const uint8_t* panel, const uint8_t* next, int64_t p, int64_t from, int64_t to) {
    constexpr int64_t columns = 2 * kSquares;
    auto rewrite = [&](const uint8_t* from_panel, uint8_t* to_tile) {
        for (int64_t k = 0; k < j.padded; k += 8)
            for (int64_t c = 0; c < columns; c++, to_tile += 8) {
                const uint8_t* four = from_panel + k / 4 * 4 * kPanel + c * 4;
                std::memcpy(to_tile, four, 4);
                std::memcpy(to_tile + 4, four + 4 * kPanel, 4);
            }
    };
    auto tile = [&](const uint8_t* w, int64_t row, int64_t n, int64_t column) {
        switch ((n + 1) / 2) {
            case 6: return square_tile<6>(j, w, row, n, column);
            case 5: return square_tile<5>(j, w, row, n, column);
            case 4: return square_tile<4>(j, w, row, n, column);
            case 3: return square_tile<3>(j, w, row, n, column);
            case 2: return square_tile<2>(j, w, row, n, column);
            case 1: return square_tile<1>(j, w, row, n, column);
        }
    };
    rewritten(j, panel, p, from, to, kManyUnit, columns, columns * j.padded, rewrite, tile);
}

}  // namespace
