// y = x w^T + bias for a few rows of x and floating-point weights as they are stored: bound by reading w once.
#pragma once
#include "common.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline F f_of(const float* p) { return f_load(p); }
inline F f_of(const BFloat16* p) { return f_of_bf16(&p->bits); }
inline F f_of(const Float16* p) { return f_of_f16(&p->bits); }
inline float one(float v) { return v; }
inline float one(BFloat16 v) {
    uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}
inline float one(Float16 v) {
    uint16_t all[kLanes] = {v.bits};
    float wide[kLanes];
    f_store(wide, f_of_f16(all));
    return wide[0];
}

constexpr int kTogether = 4;  // output channels that share what is loaded of x

// Channels [n, n + C) for rows [m, m + R). Each sum is added up in the same order whatever R is.
template <class T, int R, int C>
inline void dot_products(const Dense& g, int64_t m, int64_t n) {
    const T* w = static_cast<const T*>(g.w) + n * g.k;
    F acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) acc[r][c] = f_zero();
    int64_t k = 0;
    for (; k + kLanes <= g.k; k += kLanes) {
        F weights[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) weights[c] = f_of(w + c * g.k + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            F x = f_load(g.x + (m + r) * g.ldx + k);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) acc[r][c] = f_fma(x, weights[c], acc[r][c]);
        }
    }
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < C; c++) {
            float sum = f_sum(acc[r][c]);
            // Said outright: else the compiler may round products apart from sums in some of these functions.
            for (int64_t i = k; i < g.k; i++)
                sum = __builtin_fmaf(g.x[(m + r) * g.ldx + i], one(w[c * g.k + i]), sum);
            g.y[(m + r) * g.n + n + c] = sum + one(static_cast<const T*>(g.bias)[n + c]);
        }
    }
}

template <class T, int R>
inline void channels(const Dense& g, int64_t m, int64_t n, int64_t to) {
    for (; n + kTogether <= to; n += kTogether) dot_products<T, R, kTogether>(g, m, n);
    for (; n < to; n++) dot_products<T, R, 1>(g, m, n);
}

template <class T>
inline void all_rows(const Dense& g, int64_t n, int64_t to) {
    for (int64_t m = 0; m < g.m; m += 4) {
        switch (std::min<int64_t>(4, g.m - m)) {
            case 4: channels<T, 4>(g, m, n, to); break;
            case 3: channels<T, 3>(g, m, n, to); break;
            case 2: channels<T, 2>(g, m, n, to); break;
            case 1: channels<T, 1>(g, m, n, to); break;
        }
    }
}

void dense(const Dense* given) {
    const Dense& g = *given;
    constexpr int64_t kPiece = 32;
    in_parallel((g.n + kPiece - 1) / kPiece, g.n * g.k < 65536 ? 1 : g.threads, [&](int64_t task) {
        int64_t n = task * kPiece, to = std::min(g.n, n + kPiece);
        switch (g.type) {
            case 0: return all_rows<float>(g, n, to);
            case 1: return all_rows<BFloat16>(g, n, to);
            case 2: return all_rows<Float16>(g, n, to);
        }
    });
}

}  // namespace
