// Attention of many queries (AVX-512 only), over as many keys without a mask, or over kept ones of which each
// query sees those up to its own. Products are in bfloat16; with `bytes` q k^T is in int8, which is as fine as the
// int8 products that q and k came from.
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
// 2^x with a relative error under 8e-5, a twentieth of what rounding to bfloat16 takes.
inline F f_exp2(F x) {
    F n = f_round(x), r = f_sub(x, n);
    F p = f_fma(r, f_set(5.517165268e-2f), f_set(2.426111209e-1f));
    p = f_fma(r, p, f_set(6.932609885e-1f));
    return f_scale2(f_fma(r, p, f_set(9.999280737e-1f)), n);
}
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

constexpr int kBlock = 12;  // queries worked on together
constexpr int kTile = 64;   // keys

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

inline void weigh_all(const uint8_t* p, int64_t ldp, const uint8_t* v, int64_t dim, int64_t width, int64_t steps,
                      float* out) {
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

// A row times `by` as bfloat16, zeros behind it.
inline float pack(const float* x, int64_t dim, float by, uint8_t* to) {
    for (int64_t d = 0; d < dim; d += kLanes) bf16_store(to + 2 * d, f_mul(f_first(x + d, dim - d), f_set(by)));
    return 1;
}

// A row less another as whole numbers of -127..127, plus `offset`; gives the size of a step, NaN where one is none.
inline float pack(const float* x, const float* less, int64_t dim, int offset, uint8_t* to) {
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

// What one head works with. Keys are [tile of 64][step][64][4 bytes], values [pair of keys][width][2 bfloat16].
template <bool bytes>
struct Head {
    using A = std::conditional_t<bytes, I, F>;
    const Attention& g;
    const Kept* kept;  // or null
    int64_t steps = bytes ? (g.dim + 3) / 4 : (g.dim + 1) / 2;  // of four bytes, in a key
    int64_t keys = (g.s + kTile - 1) / kTile * kTile, width = (g.dim + 15) / 16 * 16;
    // Exponentials are in base 2.
    float scale = 1.4426950409f / std::sqrt(static_cast<float>(g.dim));
    uint8_t *k, *v, *q, *p, *row;
    float *scores, *mixed, *by, *plus, *mean;  // a score is an int8 product times by[key], plus plus[key]
    float step[kBlock];                        // ... times this of its query

    Head(const Attention& given, Scratch& scratch, const Kept* source = nullptr) : g(given), kept(source) {
        int64_t ldq = 4 * steps, row_bytes = 4 * width;
        k = scratch.of<uint8_t>(4 * keys * steps + 2 * keys * width + kBlock * (ldq + 2 * keys) + row_bytes +
                                4 * (kBlock * (keys + width) + 2 * keys + width) + 640);
        v = k + 4 * keys * steps;
        scores = reinterpret_cast<float*>(v + 2 * keys * width);
        mixed = scores + kBlock * keys;
        by = mixed + kBlock * width;
        plus = by + keys;
        mean = plus + keys;
        p = reinterpret_cast<uint8_t*>(mean + width);
        row = p + 2 * kBlock * keys;
        q = row + row_bytes;
    }

    // The softmax does not change when all keys move by the same, and without their mean they take fewer steps.
    void average(const float* from) {
        std::memset(mean, 0, width * sizeof(float));
        for (int64_t s = 0; s < g.s; s++)
            for (int64_t d = 0; d < g.dim; d++) mean[d] += from[s * g.k_row + d];
        for (int64_t d = 0; d < g.dim; d++) mean[d] /= g.s;
    }

    void pack_keys(const float* from) {
        std::memset(k, 0, 4 * keys * steps);
        std::fill(by, by + keys, 0.0f);
        std::fill(plus, plus + keys, 0.0f);
        if (bytes) average(from);
        for (int64_t s = 0; s < g.s; s++, from += g.k_row) {
            if constexpr (bytes) {
                by[s] = pack(from, mean, g.dim, 0, row) * scale;
                int32_t sum = 0;
                for (int64_t d = 0; d < g.dim; d++) sum += static_cast<int8_t>(row[d]);
                plus[s] = -128 * by[s] * sum;
            } else {
                pack(from, g.dim, 1, row);
            }
            put_key(s, row);
        }
    }

    void put_key(int64_t s, const uint8_t* from) {
        uint8_t* to = k + s / kTile * kTile * 4 * steps + s % kTile * 4;
        for (int64_t i = 0; i < steps; i++) std::memcpy(to + i * kTile * 4, from + 4 * i, 4);
    }

    void pack_values(const float* from) {
        for (int64_t s = 0; s < g.s; s += 2, from += 2 * g.v_row) {
            for (int64_t d = 0; d < g.dim; d += kLanes) {
                F low = f_first(from + d, g.dim - d), high = f_zero();
                if (s + 1 < g.s) high = f_first(from + g.v_row + d, g.dim - d);
                put_values(s, d, (__m256i)_mm512_cvtneps_pbh(low), (__m256i)_mm512_cvtneps_pbh(high));
            }
        }
    }

    // Sixteen channels of the values s and s + 1.
    void put_values(int64_t s, int64_t d, __m256i low, __m256i high) {
        __m512i a = _mm512_cvtepu16_epi32(low), b = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
        _mm512_storeu_si512(v + 2 * s * width + 4 * d, _mm512_or_si512(a, b));
    }

    // What is kept is bfloat16 already.
    void pack_kept() {
        std::memset(k + g.s / kTile * kTile * 4 * steps, 0, 4 * steps * (keys - g.s / kTile * kTile));
        const uint16_t* last = nullptr;  // the value before, while it has no other
        int64_t s = 0;
        for (int64_t i = 0; i < kept->n_segments; i++) {
            const Segment& from = kept->segments[i];
            for (int64_t j = 0; j < from.length && s < g.s; j++, s++) {
                int64_t at = kept->kv_head * from.stride + j * g.dim;
                put_key(s, reinterpret_cast<const uint8_t*>(from.k + at));
                if (s % 2) put_pair(s - 1, last, from.v + at);
                last = from.v + at;
            }
        }
        if (s % 2) put_pair(s - 1, last, nullptr);
    }

    void put_pair(int64_t s, const uint16_t* low, const uint16_t* high) {
        for (int64_t d = 0; d < g.dim; d += kLanes)
            put_values(s, d, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low + d)),
                       high ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high + d)) : _mm256_setzero_si256());
    }

    // Keys that a query sees.
    int64_t seen(int64_t query) const { return kept ? std::min(g.s, kept->free + query + 1) : g.s; }

    void pack_queries(const float* from, int64_t rows) {
        std::memset(mean, 0, width * sizeof(float));
        for (int64_t r = 0; r < kBlock; r++) {
            step[r] = 1;
            if (r >= rows)
                std::memset(row, 0, 4 * steps);
            else if constexpr (bytes)
                step[r] = pack(from + r * g.q_row, mean, g.dim, 128, row);
            else
                pack(from + r * g.q_row, g.dim, scale, row);
            std::memcpy(q + r * 4 * steps, row, 4 * steps);
        }
    }

    template <int V>
    void score(int64_t tile) {
        F times[V], add[V];
        for (int j = 0; j < V; j++) times[j] = f_load(by + tile + j * kLanes), add[j] = f_load(plus + tile + j * kLanes);
        for (int first = 0; first < kBlock; first += 6) {
            A acc[6][V];
            product<6, V>(q + first * 4 * steps, 4 * steps, k + tile * 4 * steps, kTile, steps, acc);
            for (int r = 0; r < 6; r++)
                for (int j = 0; j < V; j++) {
                    F y;
                    if constexpr (bytes)
                        y = f_fma(f_of_i(acc[r][j]), times[j], add[j]);
                    else
                        y = acc[r][j];
                    f_store(scores + (first + r) * keys + tile + j * kLanes, y);
                }
        }
    }

    // The weights of the n keys that a query sees but for their sum, which it gives, and zeros for the rest of `all`.
    float weights(int64_t r, int64_t n, int64_t all) {
        int64_t used = (n + kLanes - 1) / kLanes * kLanes;
        float* x = scores + r * keys;
        F most = f_set(-1e30f), sum = f_zero(), steps_of = f_set(step[r]);
        std::fill(x + n, x + used, -1e30f);
        for (int64_t i = 0; i < used; i += kLanes) most = f_max(most, f_load(x + i));
        float highest = f_most(most);
        if (highest <= -1e30f) highest = NAN;  // no key has a score that is a number
        F shift = f_set(-highest * step[r]);
        for (int64_t i = 0; i < used; i += kLanes) {
            F e = f_exp2(f_fma(f_load(x + i), steps_of, shift));
            sum = f_add(sum, e);
            bf16_store(p + 2 * (r * keys + i), e);
        }
        if (used < all) std::memset(p + 2 * (r * keys + used), 0, 2 * (all - used));
        return f_sum(sum);
    }

    void run(int64_t batch, int64_t head) {
        int64_t group = g.heads / g.kv_heads;
        if (kept) {
            pack_kept();
        } else {
            pack_keys(g.k + batch * g.k_batch + head / group * g.k_head);
            pack_values(g.v + batch * g.v_batch + head / group * g.v_head);
        }
        for (int64_t first = 0; first < g.t; first += kBlock) {
            int64_t rows = std::min<int64_t>(kBlock, g.t - first), tile = 0;
            pack_queries(g.q + batch * g.q_batch + head * g.q_head + first * g.q_row, rows);
            int64_t all = seen(first + rows - 1);
            for (; all - tile > kTile / 2; tile += kTile) score<kTile / kLanes>(tile);
            if (tile < all) score<kTile / kLanes / 2>(tile);  // half a tile is enough for the last keys
            float sums[kBlock];
            for (int64_t r = 0; r < kBlock; r++) sums[r] = weights(r, std::min(all, seen(first + r)), (all + 1) / 2 * 2);
            weigh_all(p, 2 * keys, v, g.dim, width, (all + 1) / 2, mixed);
            for (int64_t r = 0; r < rows; r++) {
                float* out = g.out + batch * g.out_batch + head * g.out_head + (first + r) * g.out_row;
                float part = 1.0f / sums[r];
                for (int64_t i = 0; i < g.dim; i++) out[i] = mixed[r * width + i] * part;
            }
        }
    }
};

template <bool bytes>
void attention_of_heads(const Attention& g) {
    in_parallel(g.batch * g.heads, g.threads, [&](int64_t task) {
        thread_local Scratch scratch;
        Head<bytes>(g, scratch).run(task / g.heads, task % g.heads);
    });
}

// One head of one sequence over what is kept of it.
void attention_over_kept(const Attention& g, const Kept& kept) {
    thread_local Scratch scratch;
    Head<false>(g, scratch, &kept).run(0, 0);
}

void attention(const Attention* given) {
    given->bytes ? attention_of_heads<true>(*given) : attention_of_heads<false>(*given);
}

}  // namespace
