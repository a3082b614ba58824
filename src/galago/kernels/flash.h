// Attention of many queries over as many keys, without a mask, with bfloat16 products (AVX-512 only).
#pragma once
#include <cmath>
#include <vector>

#include "common.h"

namespace {

using H = __m512bh;  // 16 lanes of two bfloat16

inline F f_dot(F acc, H a, H b) { return _mm512_dpbf16_ps(acc, a, b); }
inline H h_load(const uint16_t* p) { return (H)_mm512_loadu_si512(p); }
inline H h_spread(const uint16_t* two) {
    int32_t v;
    __builtin_memcpy(&v, two, 4);
    return (H)_mm512_set1_epi32(v);
}
inline void bf16_store(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
// The first n <= 16 numbers from p, zeros behind them.
inline F f_first(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(n >= kLanes ? 0xffff : (1 << n) - 1, p);
}

// acc[r][v] = sum over i < pairs of a[r][2i..2i+1] . b[i][v], where b is [pairs][width][2].
template <int R, int V>
inline void product(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t width, int64_t pairs, F (&acc)[R][V]) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = f_zero();
    for (int64_t i = 0; i < pairs; i++, b += 2 * width) {
        H x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) x[v] = h_load(b + 2 * v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            H y = h_spread(a + r * lda + 2 * i);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[r][v] = f_dot(acc[r][v], y, x[v]);
        }
    }
}

constexpr int kBlock = 12;  // queries worked on together

// out = p v for a block of rows, one to four vectors of channels at a time.
template <int R, int V>
inline void weigh(const uint16_t* p, int64_t ldp, const uint16_t* v, int64_t width, int64_t pairs, float* out,
                  int64_t ldo) {
    for (int row = 0; row < kBlock; row += R) {
        F acc[R][V];
        product<R, V>(p + row * ldp, ldp, v, width, pairs, acc);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < V; j++) f_store(out + (row + r) * ldo + j * kLanes, acc[r][j]);
    }
}

void attention(const Attention* given) {
    const Attention& g = *given;
    int64_t pairs = (g.dim + 1) / 2, keys = (g.s + 63) / 64 * 64, width = (g.dim + 15) / 16 * 16;
    int64_t group = g.heads / g.kv_heads, used = (g.s + kLanes - 1) / kLanes * kLanes;
    float scale = 1.0f / std::sqrt(static_cast<float>(g.dim));
    std::vector<float> zeros(g.dim);
    const float* nothing = zeros.data();
    in_parallel(g.batch * g.heads, g.threads, [&](int64_t task) {
        thread_local Scratch packed, scratch;
        int64_t batch = task / g.heads, head = task % g.heads;
        // Keys [tile of 64][pair][64][2], values [pair of keys][channels][2].
        uint16_t* k = packed.of<uint16_t>(keys * 2 * pairs + keys * width + kBlock * (2 * pairs + keys + 32));
        uint16_t *v = k + keys * 2 * pairs, *q = v + keys * width, *p = q + kBlock * 2 * pairs;
        float* scores = scratch.of<float>(kBlock * (keys + width));
        float* mixed = scores + kBlock * keys;
        std::memset(k, 0, keys * 2 * pairs * sizeof(uint16_t));
        std::memset(v, 0, keys * width * sizeof(uint16_t));
        const float* from_k = g.k + batch * g.k_batch + head / group * g.k_head;
        const float* from_v = g.v + batch * g.v_batch + head / group * g.v_head;
        // The pairs of one key lie 64 pairs apart, those of 16 channels in one vector.
        const __m512i apart = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0),
                                                 _mm512_set1_epi32(64));
        for (int64_t s = 0; s < g.s; s++) {
            uint16_t* to = k + s / 64 * 64 * 2 * pairs + s % 64 * 2;
            const float* from = from_k + s * g.k_row;
            for (int64_t d = 0; d < g.dim; d += kLanes) {
                __m512i half = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(f_first(from + d, g.dim - d)));
                int64_t n = std::min<int64_t>(8, pairs - d / 2);
                _mm512_mask_i32scatter_epi32(to + d / 2 * 128, (1 << n) - 1, apart, half, 4);
            }
        }
        for (int64_t s = 0; s < g.s; s += 2) {
            uint16_t* to = v + s * width;
            const float *one = from_v + s * g.v_row, *two = s + 1 < g.s ? one + g.v_row : nothing;
            for (int64_t d = 0; d < g.dim; d += kLanes) {
                F low = f_first(one + d, g.dim - d), high = f_first(two + d, g.dim - d);
                __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(low));
                __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(high));
                _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
            }
        }

        for (int64_t first = 0; first < g.t; first += kBlock) {
            int64_t rows = std::min<int64_t>(kBlock, g.t - first);
            std::memset(q, 0, kBlock * 2 * pairs * sizeof(uint16_t));
            for (int64_t r = 0; r < rows; r++) {
                const float* from = g.q + batch * g.q_batch + head * g.q_head + (first + r) * g.q_row;
                for (int64_t d = 0; d < g.dim; d += kLanes) {
                    uint16_t half[kLanes];
                    bf16_store(half, f_mul(f_first(from + d, g.dim - d), f_set(scale)));
                    std::memcpy(q + r * 2 * pairs + d, half, std::min<int64_t>(kLanes, g.dim - d) * sizeof(uint16_t));
                }
            }
            for (int64_t tile = 0; tile < keys; tile += 64) {
                if (g.s - tile <= 2 * kLanes) {  // half a tile is enough for the last keys
                    for (int row = 0; row < kBlock; row += 6) {
                        F acc[6][2];
                        product<6, 2>(q + row * 2 * pairs, 2 * pairs, k + tile * 2 * pairs, 64, pairs, acc);
                        for (int r = 0; r < 6; r++)
                            for (int j = 0; j < 2; j++)
                                f_store(scores + (row + r) * keys + tile + j * kLanes, acc[r][j]);
                    }
                    break;
                }
                for (int row = 0; row < kBlock; row += 6) {
                    F acc[6][4];
                    product<6, 4>(q + row * 2 * pairs, 2 * pairs, k + tile * 2 * pairs, 64, pairs, acc);
                    for (int r = 0; r < 6; r++)
                        for (int j = 0; j < 4; j++) f_store(scores + (row + r) * keys + tile + j * kLanes, acc[r][j]);
                }
            }
            float sums[kBlock];
            for (int r = 0; r < kBlock; r++) {
                float* x = scores + r * keys;
                F most = f_set(-1e30f);
                std::fill(x + g.s, x + used, -1e30f);
                for (int64_t i = 0; i < used; i += kLanes) most = f_max(most, f_load(x + i));
                F shift = f_set(f_most(most)), sum = f_zero();
                for (int64_t i = 0; i < used; i += kLanes) {
                    F e = f_exp(f_sub(f_load(x + i), shift));
                    sum = f_add(sum, e);
                    bf16_store(p + r * keys + i, e);
                }
                sums[r] = f_sum(sum);
            }
            for (int64_t d = 0; d < width;) {
                int64_t left = (width - d) / kLanes;
                if (left == 5) {
                    weigh<4, 5>(p, keys, v + 2 * d, width, (g.s + 1) / 2, mixed + d, width);
                    d += 5 * kLanes;
                } else if (left >= 4) {
                    weigh<6, 4>(p, keys, v + 2 * d, width, (g.s + 1) / 2, mixed + d, width);
                    d += 4 * kLanes;
                } else {
                    weigh<12, 1>(p, keys, v + 2 * d, width, (g.s + 1) / 2, mixed + d, width);
                    d += kLanes;
                }
            }
            for (int64_t r = 0; r < rows; r++) {
                float* out = g.out + batch * g.out_batch + head * g.out_head + (first + r) * g.out_row;
                float by = 1.0f / sums[r];
                for (int64_t i = 0; i < g.dim; i++) out[i] = mixed[r * width + i] * by;
            }
        }
    });
}

}  // namespace
