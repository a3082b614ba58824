// NEON with dot products (Armv8.2): 4 lanes of 32 bits.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace {
constexpr int kLanes = 4;
constexpr int kRows = 6, kVectors = 4;
// The same for int4, whose weights also take registers; and inputs that no loop goes through.
constexpr int kFourRows = 8, kFourVectors = 2, kFourSpan = 16;
constexpr int kRowInputs = 16;  // inputs of a row that one load serves
constexpr int kFloatRows = 6, kFloatVectors = 4;  // the same in float32
constexpr int kOffset = 128;  // sdot takes both factors signed
using F = float32x4_t;
using I = int32x4_t;
using B = int8x16_t;

inline F f_zero() { return vdupq_n_f32(0); }
inline F f_set(float v) { return vdupq_n_f32(v); }
inline F f_load(const float* p) { return vld1q_f32(p); }
inline void f_store(float* p, F v) { vst1q_f32(p, v); }
inline F f_add(F a, F b) { return vaddq_f32(a, b); }
inline F f_sub(F a, F b) { return vsubq_f32(a, b); }
inline F f_mul(F a, F b) { return vmulq_f32(a, b); }
inline F f_div(F a, F b) { return vdivq_f32(a, b); }
inline F f_fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F f_min(F a, F b) { return vminq_f32(a, b); }
inline F f_max(F a, F b) { return vmaxq_f32(a, b); }
inline float f_sum(F a) { return vaddvq_f32(a); }
inline float f_least(F a) { return vminvq_f32(a); }
inline float f_most(F a) { return vmaxvq_f32(a); }
inline F f_round(F a) { return vrndnq_f32(a); }
// Twice half the power, so that results below the smallest normal number come out as they should.
inline F f_scale2(F a, F n) {
    I e = vcvtq_s32_f32(n), half = vshrq_n_s32(e, 1), rest = vsubq_s32(e, half);
    F one = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, vdupq_n_s32(127)), 23));
    F two = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, vdupq_n_s32(127)), 23));
    return vmulq_f32(vmulq_f32(a, one), two);
}
// The same for results that are normal numbers; what would be smaller is about 2^-126.
inline F f_scale2_normal(F a, F n) {
    I e = vcvtq_s32_f32(f_max(f_set(-126.0f), n));
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(e, 23)));
}
inline F f_of_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline F f_of_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
// Rounded to bfloat16, ties to even, as torch does; not for NaN.
inline void bf16_of_f(uint16_t* p, F v) {
    uint32x4_t bits = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    vst1_u16(p, vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16));
}
inline I i_zero() { return vdupq_n_s32(0); }
inline I i_set(int32_t v) { return vdupq_n_s32(v); }
inline I i_load(const int32_t* p) { return vld1q_s32(p); }
inline void i_store(int32_t* p, I v) { vst1q_s32(p, v); }
inline I i_add(I a, I b) { return vaddq_s32(a, b); }
inline I i_sub(I a, I b) { return vsubq_s32(a, b); }
inline I i_mul(I a, I b) { return vmulq_s32(a, b); }
inline F f_of_i(I a) { return vcvtq_f32_s32(a); }
inline I i_of_f(F a) { return vcvtnq_s32_f32(a); }
inline B b_load(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
inline void b_store(int8_t* p, B v) { vst1q_s8(p, v); }
inline B b_spread(const uint8_t* four) {
    uint32_t v;
    __builtin_memcpy(&v, four, 4);
    return vreinterpretq_s8_u32(vdupq_n_u32(v));
}
inline B b_low(B v) { return vandq_s8(v, vdupq_n_s8(15)); }
inline B b_high(B v) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)); }
inline I i_dot_at(I acc, B a, B w, int place) {
    switch (place) {
        case 0: return vdotq_laneq_s32(acc, w, a, 0);
        case 1: return vdotq_laneq_s32(acc, w, a, 1);
        case 2: return vdotq_laneq_s32(acc, w, a, 2);
        default: return vdotq_laneq_s32(acc, w, a, 3);
    }
}
#ifdef __ARM_FEATURE_MATMUL_INT8
// acc + two rows of eight bytes times two columns of eight: [2 rows][2 columns].
inline I i_square(I acc, B rows, B columns) { return vmmlaq_s32(acc, rows, columns); }
inline I i_first_row(I a, I b) { return vcombine_s32(vget_low_s32(a), vget_low_s32(b)); }
inline I i_second_row(I a, I b) { return vcombine_s32(vget_high_s32(a), vget_high_s32(b)); }
#endif
inline I i_of_bytes(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))))));
}
inline void bytes_of_i(uint8_t* p, I v) {
    uint16x4_t shorts = vqmovun_s32(v);
    uint8x8_t bytes = veor_u8(vqmovn_u16(vcombine_u16(shorts, shorts)), vdup_n_u8(kOffset));
    vst1_lane_u32(reinterpret_cast<uint32_t*>(p), vreinterpret_u32_u8(bytes), 0);
}
inline B b_scaled(B n, B scale) { return vmulq_s8(vsubq_s8(n, vdupq_n_s8(8)), scale); }
inline B b_of_lanes(I v) { return vreinterpretq_s8_s32(vmulq_n_s32(v, 0x01010101)); }
inline I i_low4(I v) { return vandq_s32(v, vdupq_n_s32(15)); }
inline I i_high4(I v) { return vshrq_n_s32(v, 4); }
}  // namespace
