// What products by int8 and int4 weights are made of: rows as whole numbers, panels of weights, and tiles of both.
//
// A row of x becomes whole numbers 0..255, x ~ step * (q - zero), with the row's own step, of which kOffset is taken
// that products of bytes may need: so rows do not
// depend on their neighbours. All sums are exact in int32, and so the same whatever the number of rows. A row with a
// NaN or an infinity in it has no step, and so gives NaN, where its whole numbers would look like an answer.
#pragma once
#include <cmath>

#include "common.h"

namespace {

struct Row {
    float step;
    int32_t zero;
};

inline int32_t number(uint8_t byte) { return kOffset ? static_cast<int8_t>(byte) : byte; }

inline Row quantise(const float* x, const float* multiply, int64_t k, int64_t padded, float* tmp, uint8_t* q) {
    F least = f_zero(), most = f_zero(), none = f_zero();  // the last stays 0 where all are numbers
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) {
        F v = f_mul(f_load(x + i), f_load(multiply + i));
        f_store(tmp + i, v);
        least = f_min(least, v);
        most = f_max(most, v);
        none = f_fma(v, f_zero(), none);
    }
    float lo = f_least(least), hi = f_most(most), zeros = f_sum(none);
    for (; i < k; i++) {
        tmp[i] = x[i] * multiply[i];
        lo = std::min(lo, tmp[i]);
        hi = std::max(hi, tmp[i]);
        zeros += tmp[i] * 0.0f;
    }
    float step = std::max((hi - lo) / 255.0f, 1e-30f);
    if (!(zeros == 0.0f && step < INFINITY)) {
        std::memset(q, 0, padded);
        return {NAN, 0};
    }
    int32_t zero = std::clamp(static_cast<int32_t>(std::nearbyint(-lo / step)), 0, 255);
    std::memset(tmp + k, 0, (padded - k) * sizeof(float));
    F per_step = f_set(1.0f / step);
    I offset = i_set(zero);
    for (i = 0; i < padded; i += kLanes) bytes_of_i(q + i, i_add(i_of_f(f_mul(f_load(tmp + i), per_step)), offset));
    return {step, zero};
}

// Input channels of a weight with those of zeros that fill them up.
inline int64_t padded_inputs(const Weight& w) {
    int64_t unit = w.bits == 8 ? 16 : kGroup;
    return (w.k + unit - 1) / unit * unit;
}

// Bytes of a panel for k input channels, padded.
inline int64_t panel_bytes(int64_t padded, int bits) {
    return bits == 8 ? padded * kPanel : (padded / kGroup * (kGroup * kPanel + kPanel) / 2 + 63) / 64 * 64;
}

constexpr int kAcross = kPanel / kLanes;  // vectors of a panel

// What products take of R rows for kRowInputs inputs: held, where one load serves several products, else loaded for each.
template <int R>
struct Spread {
    static constexpr bool held = kRowInputs > 4;
    const uint8_t* a;
    int64_t lda;
    B rows[held ? R : 1];

    Spread(const uint8_t* a, int64_t lda) : a(a), lda(lda) {
        if constexpr (held)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) rows[r] = b_load(a + r * lda);
    }
    B at(int r, int input) const { return held ? rows[r] : b_spread(a + r * lda + input); }
};

// Vectors of a tile of so many rows by int8 weights: fewer rows have more, so that what is read of the panel at a time
// lies together in memory.
constexpr int vectors_of(int rows) {
    int vectors = kVectors;
    while (2 * vectors <= kAcross && 2 * vectors * rows <= kRows * kVectors) vectors *= 2;
    return vectors;
}

// A weight's panels from one on, with what belongs to them.
inline Weight channels_from(const Weight& w, int64_t panel) {
    int64_t n = panel * kPanel, bytes = panel_bytes(padded_inputs(w), w.bits);
    return {w.multiply, w.w + panel * bytes, w.sum + n, w.scale + n, w.bias + n, w.k, w.n - n, w.bits};
}

// acc[r][v] = sum over k of a[r] * w, for one tile of an int8 panel.
template <int R, int V>
inline void tile8(const uint8_t* a, int64_t lda, const uint8_t* w, int64_t padded, I (&acc)[R][V]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] = i_zero();
    for (int64_t k = 0; k < padded; k += kRowInputs) {
        Spread<R> x(a + k, lda);
#pragma GCC unroll 4
        for (int s = 0; s < kRowInputs; s += 4, w += 4 * kPanel) {
            ask_ahead(w, 4 * kPanel);
            B b[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) b[v] = b_load(w + v * 4 * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                B four = x.at(r, s);
#pragma GCC unroll 8
                for (int v = 0; v < V; v++) acc[r][v] = i_dot_at(acc[r][v], four, b[v], s / 4);
            }
        }
    }
}

#ifndef GALAGO_GROUP_SUMS
// Sums over a group of inputs by int4 weights, 0..15. They begin with what takes 8 from each weight, and in the end are
// multiplied by the group's scale.
using G = I;
inline int32_t g_eights(const uint8_t* a) {
    int32_t sum = 0;
    for (int i = 0; i < kGroup; i++) sum += number(a[i]);
    return -8 * sum;
}
inline G g_start(int32_t eights) { return i_set(eights); }
inline G g_dot_at(G part, B a, B w, int place) { return i_dot_at(part, a, w, place); }
inline I g_end(I acc, G part, I scale) { return i_add(acc, i_mul(part, scale)); }
#endif

// The same for a whole int4 panel. `eights` are those of each group of a.
template <int R>
inline void tile4(const uint8_t* a, int64_t lda, const int32_t* eights, int64_t n_groups, const uint8_t* w,
                  I (&acc)[R][kAcross]) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < kAcross; v++) acc[r][v] = i_zero();
    for (int64_t g = 0; g < n_groups; g++, w += (kGroup + 1) * kPanel / 2) {
        const uint8_t* scales = w + kGroup * kPanel / 2;
        ask_ahead(w, kGroup * kPanel / 2);
        // The sums of a group stay in registers, for as many vectors as there are registers.
        for (int first = 0; first < kAcross; first += kFourVectors) {
            // Else GCC spreads the rows once for all vectors, and of many rows keeps that in memory.
            if constexpr (kFourSpan == kGroup && R > 4) in_order();
            G part[R][kFourVectors];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
#pragma GCC unroll 8
                for (int v = 0; v < kFourVectors; v++) part[r][v] = g_start(eights[r * n_groups + g]);
            for (int k = 0; k < kGroup; k += kFourSpan) {
                Spread<R> x(a + g * kGroup + k, lda);
#pragma GCC unroll 8
                for (int s = 0; s < kFourSpan; s += 8) {
                    B low[kFourVectors], high[kFourVectors];
#pragma GCC unroll 8
                    for (int v = 0; v < kFourVectors; v++) {
                        B both = b_load(w + ((k + s) / 8 * kAcross + first + v) * 4 * kLanes);
                        low[v] = b_low(both);
                        high[v] = b_high(both);
                    }
#pragma GCC unroll 8
                    for (int r = 0; r < R; r++) {
                        B one = x.at(r, s), other = x.at(r, s + 4);
#pragma GCC unroll 8
                        for (int v = 0; v < kFourVectors; v++) {
                            part[r][v] = g_dot_at(part[r][v], one, low[v], s / 4);
                            part[r][v] = g_dot_at(part[r][v], other, high[v], s / 4 + 1);
                        }
                    }
                }
            }
#pragma GCC unroll 8
            for (int v = 0; v < kFourVectors; v++) {
                int column = (first + v) * kLanes;
                I both = i_of_bytes(scales + column % (kPanel / 2));
                I scale = column < kPanel / 2 ? i_low4(both) : i_high4(both);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) acc[r][first + v] = g_end(acc[r][first + v], part[r][v], scale);
            }
        }
    }
}

// An int4 panel as the int8 panel that it stands for.
inline void unpack_panel(const uint8_t* w, int64_t n_groups, int8_t* out) {
    for (int64_t g = 0; g < n_groups; g++) {
        const uint8_t* scales = w + kGroup / 2 * kPanel;
        for (int v = 0; v < kPanel / kLanes; v++) {
            int column = v * kLanes;
            I both = i_of_bytes(scales + column % (kPanel / 2));
            B scale = b_of_lanes(column < kPanel / 2 ? i_low4(both) : i_high4(both));
            for (int k = 0; k < kGroup; k += 8) {
                B packed = b_load(w + (k / 8 * (kPanel / kLanes) + v) * 4 * kLanes);
                int8_t* to = out + k * kPanel + v * 4 * kLanes;
                b_store(to, b_scaled(b_low(packed), scale));
                b_store(to + 4 * kPanel, b_scaled(b_high(packed), scale));
            }
        }
        w = scales + kPanel / 2;
        out += kGroup * kPanel;
    }
}

template <int R, int V>
inline void finish(const Weight& w, const Gemm& g, I (&acc)[R][V], int64_t row, int64_t column, const Row* rows) {
#pragma GCC unroll 4
    for (int v = 0; v < V; v++, column += kLanes) {
        if (column >= w.n) return;
        I sum = i_load(w.sum + column);
        F scale = f_load(w.scale + column), bias = f_load(w.bias + column);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            I exact = i_sub(acc[r][v], i_mul(sum, i_set(rows[row + r].zero - kOffset)));
            F y = f_fma(f_of_i(exact), f_mul(scale, f_set(rows[row + r].step)), bias);
            if (g.gelu) y = f_gelu(y);
            float* to = g.y + (row + r) * g.ldy + column;
            if (column + kLanes <= w.n) {
                f_store(to, y);
            } else {
                float last[kLanes];
                f_store(last, y);
                std::memcpy(to, last, (w.n - column) * sizeof(float));
            }
        }
    }
}

struct Job {
    const Weight& w;
    const Gemm& g;
    const uint8_t* a;  // the rows as whole numbers, `stride` bytes apart
    const int32_t* eights;  // for int4 tiles
    const Row* rows;
    int64_t padded, stride;
};

// Compiled apart from what calls it: its sums take all registers that there are.
template <int R, bool four>
[[gnu::noinline]] void tile(const Job& j, const uint8_t* panel, int64_t row, int64_t column) {
    const uint8_t* a = j.a + row * j.stride;
    if constexpr (four) {
        I acc[R][kAcross];
        int64_t n_groups = j.padded / kGroup;
        tile4<R>(a, j.stride, j.eights + row * n_groups, n_groups, panel, acc);
        finish(j.w, j.g, acc, row, column, j.rows);
    } else {
        I acc[R][vectors_of(R)];
        tile8(a, j.stride, panel + column % kPanel * 4, j.padded, acc);
        finish(j.w, j.g, acc, row, column, j.rows);
    }
}

// Rows [row, row + R) times all columns of a panel that there are.
template <int R, bool four>
inline void across(const Job& j, const uint8_t* panel, int64_t p, int64_t row) {
    constexpr int columns = kLanes * (four ? kAcross : vectors_of(R));
    int64_t end = std::min((p + 1) * kPanel, j.w.n);
    for (int64_t column = p * kPanel; column < end; column += columns) tile<R, four>(j, panel, row, column);
}

// One panel for rows [from, to).
template <bool four>
inline void panel_rows(const Job& j, const uint8_t* panel, int64_t p, int64_t from, int64_t to) {
    constexpr int rows = four ? kFourRows : kRows;
    for (int64_t row = from; row < to; row += rows) {
        switch (std::min<int64_t>(rows, to - row)) {
            case 8: if constexpr (rows >= 8) across<8, four>(j, panel, p, row); break;
            case 7: if constexpr (rows >= 7) across<7, four>(j, panel, p, row); break;
            case 6: if constexpr (rows >= 6) across<6, four>(j, panel, p, row); break;
            case 5: if constexpr (rows >= 5) across<5, four>(j, panel, p, row); break;
            case 4: across<4, four>(j, panel, p, row); break;
            case 3: across<3, four>(j, panel, p, row); break;
            case 2: across<2, four>(j, panel, p, row); break;
            case 1: across<1, four>(j, panel, p, row); break;
        }
    }
}

// How many rows lie in memory: `filled` bytes of each, the rest of `stride` unused, room for `rows` of them.
struct Layout {
    int64_t rows, filled, stride;
};

}  // namespace
