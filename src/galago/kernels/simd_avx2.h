// AVX2 with FMA: 8 lanes of 32 bits. With GALAGO_VNNI also products of bytes, which processors have by either of two
// encodings: GALAGO_VNNI names theirs.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {
constexpr int kLanes = 8;
#ifdef GALAGO_VNNI
constexpr int kRows = 6, kVectors = 2;  // a tile of the product: rows x vectors of output channels
// The same for int4, whose weights also take registers; and inputs that no loop goes through.
constexpr int kFourRows = 6, kFourVectors = 1, kFourSpan = 8;
#else
constexpr int kRows = 4, kVectors = 2;
constexpr int kFourRows = 5, kFourVectors = 2, kFourSpan = 32;
#endif
constexpr int kRowInputs = 4;
constexpr int kFloatRows = 4, kFloatVectors = 3;  // the same in float32
constexpr int kShortRows = 6, kShortVectors = 2;  // and by twos of 16-bit numbers
#ifdef GALAGO_VNNI
constexpr int kOffset = 0;
#else
// Activations become -128..127 here: |a| * |w| <= 128 * 127 fits the 16-bit sums of maddubs, 255 * 127 would not.
constexpr int kOffset = 128;
#endif
using F = __m256;
using I = __m256i;
using B = __m256i;

inline F f_zero() { return _mm256_setzero_ps(); }
inline F f_set(float v) { return _mm256_set1_ps(v); }
inline F f_load(const float* p) { return _mm256_loadu_ps(p); }
inline void f_store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F f_add(F a, F b) { return _mm256_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm256_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F f_min(F a, F b) { return _mm256_min_ps(a, b); }
inline F f_max(F a, F b) { return _mm256_max_ps(a, b); }
template <class Op>
inline float f_folded(F a, Op op) {
    float x[8];
    _mm256_storeu_ps(x, a);
    return op(op(op(x[0], x[1]), op(x[2], x[3])), op(op(x[4], x[5]), op(x[6], x[7])));
}
inline float f_sum(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float f_least(F a) {
    return f_folded(a, [](float x, float y) { return x < y ? x : y; });
}
inline float f_most(F a) {
    return f_folded(a, [](float x, float y) { return x > y ? x : y; });
}
inline F f_round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Twice half the power, so that results below the smallest normal number come out as they should.
inline F f_scale2(F a, F n) {
    __m256i e = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(e, 1), rest = _mm256_sub_epi32(e, half);
    auto power = [](__m256i v) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(a, power(half)), power(rest));
}
// The same for results that are normal numbers; what would be smaller is about 2^-126.
inline F f_scale2_normal(F a, F n) {
    __m256i e = _mm256_cvtps_epi32(f_max(f_set(-126.0f), n));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(e, 23)));
}
inline F f_of_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline F f_of_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Rounded to bfloat16, ties to even, as torch does; not for NaN.
inline void bf16_of_f(uint16_t* p, F v) {
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}
inline I i_zero() { return _mm256_setzero_si256(); }
inline I i_set(int32_t v) { return _mm256_set1_epi32(v); }
inline I i_load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void i_store(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline I i_add(I a, I b) { return _mm256_add_epi32(a, b); }
inline I i_sub(I a, I b) { return _mm256_sub_epi32(a, b); }
inline I i_mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
inline F f_of_i(I a) { return _mm256_cvtepi32_ps(a); }
inline I i_of_f(F a) { return _mm256_cvtps_epi32(a); }
inline B b_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void b_store(int8_t* p, B v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline B b_spread(const uint8_t* four) {
    int32_t v;
    __builtin_memcpy(&v, four, 4);
    return _mm256_set1_epi32(v);
}
inline B b_low(B v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline B b_high(B v) { return b_low(_mm256_srli_epi16(v, 4)); }
#ifdef GALAGO_VNNI
inline I i_dot(I acc, B a, B w) {
    asm("%{" GALAGO_VNNI "%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(w));
    return acc;
}
#else
inline I i_dot(I acc, B a, B w) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(w, a));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#define GALAGO_GROUP_SUMS
// Sums of a group in 16 bits, two in each lane, of the first two of each four inputs and of the last two. They begin with
// what takes 8 from each weight; before that is whole they are 16 times 15 * 128 at the most, and then 8 * 128.
using G = __m256i;
inline int32_t g_eights(const uint8_t* a) {
    __m256i twos = _mm256_maddubs_epi16(_mm256_set1_epi8(8), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    __m128i sum = _mm_add_epi16(_mm256_castsi256_si128(twos), _mm256_extracti128_si256(twos, 1));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 8));
    sum = _mm_add_epi16(sum, _mm_srli_si128(sum, 4));
    return _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), sum));
}
inline G g_start(int32_t eights) { return _mm256_set1_epi32(eights); }
inline G g_dot_at(G part, B a, B w, int place) {
    part = _mm256_add_epi16(part, _mm256_maddubs_epi16(w, a));
    asm("" : "+x"(part));  // else GCC adds up products that wait in memory
    return part;
}
inline I g_end(I acc, G part, I scale) {
    return i_add(acc, _mm256_madd_epi16(part, _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16))));
}
#endif
inline I i_dot_at(I acc, B a, B w, int place) { return i_dot(acc, a, w); }
// Shorts, two in each lane: the first and third bytes of a lane, or the second and fourth, with their signs.
inline B b_even(B v) { return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8); }
inline B b_odd(B v) { return _mm256_srai_epi16(v, 8); }
inline B b_two_shorts(const uint8_t* two) {
    int32_t v;
    __builtin_memcpy(&v, two, 4);
    return _mm256_set1_epi32(v);
}
#ifdef GALAGO_VNNI
inline I i_dot_shorts(I acc, B a, B w) {
    asm("%{" GALAGO_VNNI "%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(w));
    return acc;
}
#else
inline I i_dot_shorts(I acc, B a, B w) {
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(a, w));
    asm("" : "+x"(acc));  // else GCC holds products, and the sums wait in memory
    return acc;
}
#endif
inline void shorts_of_i(int16_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
inline I i_of_bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void bytes_of_i(uint8_t* p, I v) {
    __m128i shorts = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i bytes = _mm_packus_epi16(shorts, shorts);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(kOffset))));
}
inline B b_scaled(B n, B scale) {
    const __m256i even = _mm256_set1_epi16(0x00ff), eight = _mm256_set1_epi16(8);
    __m256i lo = _mm256_mullo_epi16(_mm256_sub_epi16(_mm256_and_si256(n, even), eight), _mm256_and_si256(scale, even));
    __m256i hi = _mm256_mullo_epi16(_mm256_sub_epi16(_mm256_srli_epi16(n, 8), eight), _mm256_srli_epi16(scale, 8));
    return _mm256_or_si256(_mm256_and_si256(lo, even), _mm256_slli_epi16(hi, 8));
}
inline B b_of_lanes(I v) { return _mm256_mullo_epi32(v, _mm256_set1_epi32(0x01010101)); }
inline I i_low4(I v) { return _mm256_and_si256(v, _mm256_set1_epi32(15)); }
inline I i_high4(I v) { return _mm256_srli_epi32(v, 4); }
}  // namespace
