// Products of many rows where no instruction multiplies bytes without losing some: by twos of 16-bit numbers. Of each
// four inputs the first goes with the third and the second with the fourth, as shifts alone make them of bytes.
#pragma once
#include "many_rewritten.h"

namespace {

// Up to here rows are few by int8 and by int4 weights: these are used as they are then, and else widened once. Those of
// four bits never are: the sums of a group fit into 16 bits, which takes half as many instructions.
constexpr int64_t kFewBytes = 16, kFewFours = INT64_MAX;
// Rows are best handed out in multiples of this.
constexpr int64_t kManyUnit = kShortRows * kFourRows;

inline Layout many_layout(int64_t m, int64_t padded) { return {m, padded, row_stride(2 * padded)}; }

// Rows [from, to) of whole numbers as shorts: the twos of first and third numbers, then those of second and fourth.
inline void spread_rows(uint8_t* a, const Layout& as, int64_t from, int64_t to) {
    for (uint8_t* row = a + from * as.stride; row < a + to * as.stride; row += as.stride)
        for (int64_t k = 0; k < as.filled; k += 4 * kLanes) {
            B four = b_load(row + k), even = b_even(four), odd = b_odd(four);
            int64_t bytes = std::min<int64_t>(4 * kLanes, as.filled - k);
            std::memcpy(row + k, &even, bytes);
            std::memcpy(row + as.filled + k, &odd, bytes);
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
    int64_t half = columns * j.padded;  // bytes of the even ones, and of the odd ones
    auto rewrite = [&](const uint8_t* columns_of, uint8_t* even) {
        for (int64_t k = 0; k < j.padded; k += 4, columns_of += 4 * kPanel)
            for (int v = 0; v < kShortVectors; v++, even += sizeof(B)) {
                B four = b_load(columns_of + v * sizeof(B));
                b_store(reinterpret_cast<int8_t*>(even), b_even(four));
                b_store(reinterpret_cast<int8_t*>(even + half), b_odd(four));
            }
    };
    auto tile = [&](const uint8_t* w, int64_t row, int64_t n, int64_t column) {
        switch (n) {
            case 6: return short_tile<6>(j, w, row, column);
            case 5: return short_tile<5>(j, w, row, column);
            case 4: return short_tile<4>(j, w, row, column);
            case 3: return short_tile<3>(j, w, row, column);
            case 2: return short_tile<2>(j, w, row, column);
            case 1: return short_tile<1>(j, w, row, column);
        }
    };
    rewritten(j, panel, p, from, to, kShortRows, columns, 2 * half, rewrite, tile);
}

}  // namespace
