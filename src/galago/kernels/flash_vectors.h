// The products of attention of many queries, by vector instructions.
#pragma once
#include <type_traits>

#include "flash_rows.h"

namespace {

constexpr int kBlock = 12;        // queries worked on together
constexpr int64_t kStepsUnit = 1;  // steps over a key come in multiples of this
constexpr int64_t kWeighed = 2;    // keys that are weighed in a step
constexpr bool kBytesPay = true;   // scores are quicker in int8 than in bfloat16
struct Registers {};

// How far rows of scores and of weights lie apart, in numbers.
inline int64_t score_stride(int64_t keys) { return keys; }
inline int64_t weight_stride(int64_t keys) { return keys; }

inline void clear(F& v) { v = f_zero(); }
inline void clear(I& v) { v = i_zero(); }
// acc + the sum over each lane's two bfloat16, or over its four bytes, of which those of a are unsigned.
inline void dot(F& acc, __m512i a, __m512i b) { acc = _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }
inline void dot(I& acc, __m512i a, __m512i b) { acc = i_dot(acc, a, b); }

// acc[r][v] = a[r] . b[v], where a's steps of four bytes follow one another and b's lie `width` lanes apart.
template <int R, int V, class A>
inline void product(const uint8_t* a, int64_t lda, const uint8_t* b, int64_t width, int64_t steps, A (&acc)[R][V]) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) clear(acc[r][v]);
    for (int64_t i = 0; i < steps; i++, b += 4 * width) {
        __m512i x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) x[v] = _mm512_loadu_si512(b + v * 64);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512i y = b_spread(a + r * lda + 4 * i);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) dot(acc[r][v], y, x[v]);
        }
    }
}

// out = p v for a block of rows, V vectors of channels at a time and half a vector more if `half`.
template <int R, int V, bool half = false>
inline void weigh(const uint8_t* p, int64_t ldp, const uint8_t* v, int64_t width, int64_t steps, float* out) {
    for (int row = 0; row < kBlock; row += R) {
        F acc[R][V];
        __m256 more[R];
        for (int r = 0; r < R; r++) {
            more[r] = _mm256_setzero_ps();
            for (int j = 0; j < V; j++) acc[r][j] = f_zero();
        }
        const uint8_t* b = v;
        for (int64_t i = 0; i < steps; i++, b += 4 * width) {
            __m512i x[V];
            __m256i z;
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) x[j] = _mm512_loadu_si512(b + j * 64);
            if constexpr (half) z = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + V * 64));
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                __m512i y = b_spread(p + (row + r) * ldp + 4 * i);
#pragma GCC unroll 8
                for (int j = 0; j < V; j++) dot(acc[r][j], y, x[j]);
                if constexpr (half)
                    more[r] = _mm256_dpbf16_ps(more[r], (__m256bh)_mm512_castsi512_si256(y), (__m256bh)z);
            }
        }
        for (int r = 0; r < R; r++) {
            for (int j = 0; j < V; j++) f_store(out + (row + r) * width + j * kLanes, acc[r][j]);
            if constexpr (half) _mm256_storeu_ps(out + (row + r) * width + V * kLanes, more[r]);
        }
    }
}

// out [kBlock, width] = p v, over so many keys: p bfloat16 [kBlock, ldp bytes], v [pair of keys][width][2].
inline void weigh_all(const uint8_t* p, int64_t ldp, const uint8_t* v, int64_t dim, int64_t width, int64_t keys,
                      float* out) {
    int64_t steps = keys / 2;
    for (int64_t d = 0; d < dim;) {
        int64_t left = dim - d;
        const uint8_t* from = v + 4 * d;
        if (left > 64 && left <= 72) {
            weigh<4, 4, true>(p, ldp, from, width, steps, out + d);
            d += 72;
        } else if (left > 48) {
            weigh<6, 4>(p, ldp, from, width, steps, out + d);
            d += 64;
        } else {
            weigh<12, 1>(p, ldp, from, width, steps, out + d);
            d += kLanes;
        }
    }
}

template <bool bytes, int V>
inline void score_vectors(const uint8_t* q, const uint8_t* k, int64_t steps, const float* by, const float* plus,
                          float* scores, int64_t stride) {
    F times[V], add[V];
    for (int j = 0; j < V; j++) times[j] = f_load(by + j * kLanes), add[j] = f_load(plus + j * kLanes);
    for (int first = 0; first < kBlock; first += 6) {
        std::conditional_t<bytes, I, F> acc[6][V];
        product<6, V>(q + first * 4 * steps, 4 * steps, k, kTile, steps, acc);
        for (int r = 0; r < 6; r++)
            for (int j = 0; j < V; j++) {
                F y;
                if constexpr (bytes)
                    y = f_fma(f_of_i(acc[r][j]), times[j], add[j]);
                else
                    y = acc[r][j];
                f_store(scores + (first + r) * stride + j * kLanes, y);
            }
    }
}

// Scores of a block of queries and the first n keys of a tile, or a few more.
template <bool bytes>
inline void score_tile(const uint8_t* q, const uint8_t* k, int64_t steps, const float* by, const float* plus,
                       float* scores, int64_t stride, int64_t n) {
    if (n > kTile / 2)
        score_vectors<bytes, kTile / kLanes>(q, k, steps, by, plus, scores, stride);
    else
        score_vectors<bytes, kTile / kLanes / 2>(q, k, steps, by, plus, scores, stride);
}

}  // namespace
