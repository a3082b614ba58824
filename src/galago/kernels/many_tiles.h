// Products of many rows on tiles: blocks of 32 rows and 32 columns. What follows the sums of a block (scales, bias,
// GELU) is done by the vector units while the next block is multiplied.
#pragma once
#include "panels.h"
#include "tiles.h"

namespace {

// Up to here rows are few by int8 and by int4 weights, and vectors are quicker: measured on a Xeon of 2023.
constexpr int64_t kFewBytes = 6, kFewFours = 10;
constexpr int64_t kManyUnit = 2 * kTileRows;
// Blocks work on many rows in parts of so many: products take so little that reading the weights anew for each part
// counts more than that results of a part stay in the caches.
constexpr int64_t kPart = 384;
constexpr int kColumns = 32;                 // of a block: two tiles
constexpr int kStepBytes = kTileRows * 256;  // of a panel, in one step over the inputs

// Rows an odd number of cache lines apart: those of a tile would share a few places of the cache otherwise.
inline Layout many_layout(int64_t m, int64_t padded) {
    int64_t lines = (padded + 63) / 64;
    return {(m + kManyUnit - 1) / kManyUnit * kManyUnit, lines * 64, (lines | 1) * 64};
}

// A block whose sums are there, and not yet its results.
struct Pending {
    const int32_t* sums;  // [rows, 32]
    int64_t row, column;
    int rows = 0;
};

// Makes results of a block's sums, row by row.
template <bool gelu>
struct Finish {
    static constexpr int kAcrossBlock = kColumns / kLanes;
    I sum[kAcrossBlock];
    F scale[kAcrossBlock], bias[kAcrossBlock];
    const int32_t* sums;
    const Row* row;
    float* to;
    int64_t apart, columns;
    int left;

    Finish(const Job& j, const Pending& b)
        : sums(b.sums), row(j.rows + b.row), to(j.g.y + b.row * j.g.ldy + b.column), apart(j.g.ldy),
          columns(j.w.n - b.column), left(b.rows) {
        for (int v = 0; v < kAcrossBlock; v++) {
            sum[v] = i_load(j.w.sum + b.column + v * kLanes);
            scale[v] = f_load(j.w.scale + b.column + v * kLanes);
            bias[v] = f_load(j.w.bias + b.column + v * kLanes);
        }
    }

    void next() {
        I zero = i_set(row->zero);
        F step = f_set(row->step);
#pragma GCC unroll 4
        for (int v = 0; v < kAcrossBlock; v++) {
            I exact = i_sub(i_load(sums + v * kLanes), i_mul(sum[v], zero));
            F y = f_fma(f_of_i(exact), f_mul(scale[v], step), bias[v]);
            if constexpr (gelu) y = f_gelu(y);
            if (__builtin_expect(columns >= kColumns, 1))
                f_store(to + v * kLanes, y);
            else
                store_some(v * kLanes, y);
        }
        sums += kColumns;
        row++;
        to += apart;
        left--;
    }

    [[gnu::noinline]] void store_some(int64_t at, F y) const {
        float all[kLanes];
        f_store(all, y);
        for (int64_t i = 0; i < kLanes && at + i < columns; i++) to[at + i] = all[i];
    }
};

// Where the weights are that come next, asked for a little at each step so that they are near when they are needed.
struct Ahead {
    const uint8_t *at, *end;
    int lines;  // at a step
    void ask() {
        for (int i = 0; i < lines && at < end; i++, at += 64) __builtin_prefetch(at, 0, 2);
    }
};

// R tiles of rows from a, times 32 columns of a panel from w; the last step's weights are in `tail` where the panel
// ends within it. Finishes the block before.
template <int R, bool gelu>
[[gnu::noinline]] void tile_block(const Job& j, const uint8_t* a, const uint8_t* w, const uint8_t* tail,
                                  const Pending& before, Ahead& all_ahead, int32_t* sums) {
    int64_t whole = j.padded / kTileBytes, steps = (j.padded + kTileBytes - 1) / kTileBytes, stride = j.stride;
    int rows = (before.rows + steps - 1) / steps;
    Ahead ahead = all_ahead;
    Finish<gelu> finish(j, before);
    t_ready();
    t_zero<0>();
    t_zero<1>();
    if constexpr (R > 1) {
        t_zero<2>();
        t_zero<3>();
    }
    for (int64_t s = 0; s < steps; s++, a += kTileBytes) {
        const uint8_t* b = s < whole ? w + s * kStepBytes : tail;
        t_load<6>(b, 256);
        t_load<7>(b + 64, 256);
        t_load<4>(a, stride);
        if constexpr (R > 1) t_load<5>(a + kTileRows * stride, stride);
        t_dot_bytes<0, 4, 6>();
        t_dot_bytes<1, 4, 7>();
        if constexpr (R > 1) {
            t_dot_bytes<2, 5, 6>();
            t_dot_bytes<3, 5, 7>();
        }
        ahead.ask();
        for (int i = 0; i < rows && finish.left > 0; i++) finish.next();
    }
    all_ahead = ahead;
    t_store<0>(sums, 4 * kColumns);
    t_store<1>(sums + kTileRows, 4 * kColumns);
    if constexpr (R > 1) {
        t_store<2>(sums + kTileRows * kColumns, 4 * kColumns);
        t_store<3>(sums + kTileRows * kColumns + kTileRows, 4 * kColumns);
    }
}

template <bool gelu>
inline void many_rows_by(const Job& j, const uint8_t* panel, const uint8_t* next, int64_t p, int64_t from, int64_t to) {
    alignas(64) static thread_local int32_t sums[2][kManyUnit * kColumns];
    alignas(64) static thread_local uint8_t last[kStepBytes];
    Tiles in_use;
    int64_t whole = j.padded / kTileBytes, rest = j.padded % kTileBytes;
    std::memcpy(last, panel + whole * kStepBytes, rest * kPanel);
    std::memset(last + rest * kPanel, 0, kStepBytes - rest * kPanel);  // what rows hold there is not 0 but their zero
    int64_t columns = std::min<int64_t>(kPanel, j.w.n - p * kPanel), blocks = 0;
    int64_t steps = (to - from + kManyUnit - 1) / kManyUnit * 2 * (whole + 1), bytes = panel_bytes(j.padded, j.w.bits);
    Ahead ahead{next, next ? next + bytes : nullptr, static_cast<int>(bytes / 64 / steps + 1)};
    Pending before{sums[1], from, p * kPanel, 0};
    for (int64_t row = from; row < to; row += kManyUnit)
        for (int64_t c = 0; c < columns; c += kColumns) {
            int rows = std::min<int64_t>(kManyUnit, to - row);
            int32_t* found = sums[blocks++ % 2];
            const uint8_t *a = j.a + row * j.stride, *w = panel + c * 4, *tail = last + c * 4;
            if (rows > kTileRows)
                tile_block<2, gelu>(j, a, w, tail, before, ahead, found);
            else
                tile_block<1, gelu>(j, a, w, tail, before, ahead, found);
            before = {found, row, p * kPanel + c, rows};
        }
    for (Finish<gelu> finish(j, before); finish.left > 0;) finish.next();
}

// What is multiplied of a row is its whole numbers as they are.
inline void spread_rows(uint8_t* a, const Layout& as, int64_t from, int64_t to) {}

// Rows [from, to) times panel p, which is int8 by now. `next` is what this thread will probably read after it, or null.
inline void many_rows(const Job& j, const uint8_t* panel, const uint8_t* next, int64_t p, int64_t from, int64_t to) {
    j.g.gelu ? many_rows_by<true>(j, panel, next, p, from, to) : many_rows_by<false>(j, panel, next, p, from, to);
}

}  // namespace
