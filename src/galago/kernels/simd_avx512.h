// AVX-512 with VNNI: 16 lanes of 32 bits.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {
constexpr int kLanes = 16;
constexpr int kRows = 6, kVectors = 4;  // a tile of the product: rows x vectors of output channels
// The same for int4, whose weights also take registers; and inputs that no loop goes through.
constexpr int kFourRows = 8, kFourVectors = 2, kFourSpan = 8;
constexpr int kRowInputs = 4;  // inputs of a row that one load serves
constexpr int kFloatRows = 6, kFloatVectors = 4;  // the same in float32
constexpr int kShortRows = 6, kShortVectors = 4;  // and by twos of 16-bit numbers
// What is taken from each quantised activation (0..255) before it is multiplied.
constexpr int kOffset = 0;
using F = __m512;
using I = __m512i;   // 32-bit lanes
using B = __m512i;   // bytes, four for each lane

inline F f_zero() { return _mm512_setzero_ps(); }
inline F f_set(float v) { return _mm512_set1_ps(v); }
inline F f_load(const float* p) { return _mm512_loadu_ps(p); }
inline void f_store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F f_add(F a, F b) { return _mm512_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm512_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F f_min(F a, F b) { return _mm512_min_ps(a, b); }
inline F f_max(F a, F b) { return _mm512_max_ps(a, b); }
inline float f_sum(F a) { return _mm512_reduce_add_ps(a); }
inline float f_least(F a) { return _mm512_reduce_min_ps(a); }
inline float f_most(F a) { return _mm512_reduce_max_ps(a); }
inline F f_round(F a) { return _mm512_roundscale_ps(a, 8); }
inline F f_scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n
inline F f_scale2_normal(F a, F n) { return f_scale2(a, n); }    // the same where results may be no less than 2^-126
inline F f_of_bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline F f_of_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Rounded to bfloat16, ties to even, as torch does; not for NaN.
inline void bf16_of_f(uint16_t* p, F v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
inline I i_zero() { return _mm512_setzero_si512(); }
inline I i_set(int32_t v) { return _mm512_set1_epi32(v); }
inline I i_load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void i_store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
inline I i_add(I a, I b) { return _mm512_add_epi32(a, b); }
inline I i_sub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I i_mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline F f_of_i(I a) { return _mm512_cvtepi32_ps(a); }
inline I i_of_f(F a) { return _mm512_cvtps_epi32(a); }
inline B b_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void b_store(int8_t* p, B v) { _mm512_storeu_si512(p, v); }
inline B b_spread(const uint8_t* four) {
    int32_t v;
    __builtin_memcpy(&v, four, 4);
    return _mm512_set1_epi32(v);
}
inline B b_low(B v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline B b_high(B v) { return b_low(_mm512_srli_epi16(v, 4)); }
// acc + the sum over each lane's four bytes of a * w
// (GCC 12 copies the sums about, and runs out of registers, when it is given the intrinsic.)
inline I i_dot(I acc, B a, B w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w));
    return acc;
}
// The same by the four of `place` where a vector has fours of several places; here it has one in all lanes.
inline I i_dot_at(I acc, B a, B w, int place) { return i_dot(acc, a, w); }
inline I i_dot_shorts(I acc, I a, I b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
inline void shorts_of_i(int16_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(v));
}
// The lanes' bytes, 0..255
inline I i_of_bytes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Cut to 0..255, less kOffset.
inline void bytes_of_i(uint8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(_mm512_max_epi32(v, i_zero())));
}
// Each lane's four bytes, n in 0..15, as (n - 8) * scale, where scale is 0..15 in each byte of the lane.
inline B b_scaled(B n, B scale) {
    const __m512i even = _mm512_set1_epi16(0x00ff), eight = _mm512_set1_epi16(8);
    __m512i lo = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_and_si512(n, even), eight), _mm512_and_si512(scale, even));
    __m512i hi = _mm512_mullo_epi16(_mm512_sub_epi16(_mm512_srli_epi16(n, 8), eight), _mm512_srli_epi16(scale, 8));
    return _mm512_or_si512(_mm512_and_si512(lo, even), _mm512_slli_epi16(hi, 8));
}
inline B b_of_lanes(I v) { return _mm512_mullo_epi32(v, _mm512_set1_epi32(0x01010101)); }
inline I i_low4(I v) { return _mm512_and_si512(v, _mm512_set1_epi32(15)); }
inline I i_high4(I v) { return _mm512_srli_epi32(v, 4); }
}  // namespace
