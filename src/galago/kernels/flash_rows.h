// What attention of many queries works on: rows in bfloat16 and as whole numbers (AVX-512 only).
#pragma once
#include "attention.h"

namespace {

inline void bf16_store(uint8_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
// The first n <= 16 numbers from p, zeros behind them.
inline F f_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(n >= kLanes ? 0xffff : (1 << n) - 1, p);
}
constexpr int kTile = 64;  // keys

// A row less another, times `by`, as bfloat16, zeros behind it.
inline void pack_halves(const float* x, const float* less, int64_t dim, float by, uint8_t* to) {
    for (int64_t d = 0; d < dim; d += kLanes) {
        F v = f_sub(f_first(x + d, dim - d), f_first(less + d, dim - d));
        bf16_store(to + 2 * d, f_mul(v, f_set(by)));
    }
}

// A row less another as whole numbers of -127..127, plus `offset`; gives the size of a step, NaN where one is none.
inline float pack_bytes(const float* x, const float* less, int64_t dim, int offset, uint8_t* to) {
    F most = f_zero(), none = f_zero();
    for (int64_t d = 0; d < dim; d += kLanes) {
        F v = f_sub(f_first(x + d, dim - d), f_first(less + d, dim - d));
        most = f_max(most, _mm512_abs_ps(v));
        none = f_fma(v, f_zero(), none);
    }
    float step = std::max(f_most(most) / 127.0f, 1e-20f) + f_sum(none);
    for (int64_t d = 0; d < dim; d += kLanes) {
        F v = f_sub(f_first(x + d, dim - d), f_first(less + d, dim - d));
        I whole = i_add(i_of_f(f_mul(v, f_set(1 / step))), i_set(offset));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d), _mm512_cvtepi32_epi8(whole));
    }
    return step;
}

}  // namespace
