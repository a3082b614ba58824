// Attention of many queries in float32, for instruction sets without products in bfloat16: over as many keys without a
// mask, or over kept ones of which each query sees those up to its own.
#pragma once
#include "attention.h"

namespace {

constexpr int64_t kSpan = kFloatVectors * kLanes;  // keys, or channels, that are worked on together
constexpr int64_t kBlock = 2 * kFloatRows;         // queries
constexpr int64_t kNear = 128;                     // keys whose values stay in the nearest cache

// out[r][v] (+)= the sum over i of a[r][i] * b[i][v], where b's steps lie kSpan apart.
template <int V>
inline void float_product(const float* a, int64_t lda, const float* b, int64_t steps, bool more, float* out, int64_t ldo) {
    F acc[kFloatRows][V];
    for (int r = 0; r < kFloatRows; r++)
        for (int v = 0; v < V; v++) acc[r][v] = more ? f_load(out + r * ldo + v * kLanes) : f_zero();
    for (int64_t i = 0; i < steps; i++, b += kSpan) {
        F x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) x[v] = f_load(b + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kFloatRows; r++) {
            F y = f_set(a[r * lda + i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[r][v] = f_fma(y, x[v], acc[r][v]);
        }
    }
    for (int r = 0; r < kFloatRows; r++)
        for (int v = 0; v < V; v++) f_store(out + r * ldo + v * kLanes, acc[r][v]);
}

// The same for a block of rows and the first n of b's numbers, or some zeros more.
template <int V = kFloatVectors>
inline void block_product(const float* a, int64_t lda, const float* b, int64_t steps, bool more, float* out, int64_t ldo,
                          int64_t n) {
    if constexpr (V > 1)
        if (n <= (V - 1) * kLanes) return block_product<V - 1>(a, lda, b, steps, more, out, ldo, n);
    for (int64_t r = 0; r < kBlock; r += kFloatRows)
        float_product<V>(a + r * lda, lda, b, steps, more, out + r * ldo, ldo);
}

// What one head works with. Keys are [span of keys][dim][kSpan], values [span of channels][key][kSpan].
struct FloatHead {
    const Attention& g;
    const Kept* kept;  // or null
    int64_t keys = (g.s + kSpan - 1) / kSpan * kSpan, width = (g.dim + kSpan - 1) / kSpan * kSpan;
    float *k, *v, *q, *scores, *mixed;

    FloatHead(const Attention& given, Scratch& scratch, const Kept* source = nullptr) : g(given), kept(source) {
        k = scratch.of<float>(keys * (g.dim + width) + kBlock * (g.dim + keys + width));
        v = k + keys * g.dim;
        q = v + keys * width;
        scores = q + kBlock * g.dim;
        mixed = scores + kBlock * keys;
    }

    float* key(int64_t s) const { return k + s / kSpan * kSpan * g.dim + s % kSpan; }
    float* value(int64_t s, int64_t d) const { return v + d / kSpan * kSpan * keys + s * kSpan + d % kSpan; }

    void pack(const float* key_rows, const float* value_rows) const {
        for (int64_t s = 0; s < g.s; s++, key_rows += g.k_row, value_rows += g.v_row) {
            float* to = key(s);
            for (int64_t d = 0; d < g.dim; d++) to[d * kSpan] = key_rows[d];
            for (int64_t d = 0; d < g.dim; d++) *value(s, d) = value_rows[d];
        }
    }

    static float wide(uint16_t half) {
        uint32_t bits = static_cast<uint32_t>(half) << 16;
        float number;
        std::memcpy(&number, &bits, 4);
        return number;
    }

    void pack_kept() const {
        int64_t s = 0;
        for (int64_t i = 0; i < kept->n_segments; i++) {
            const Segment& from = kept->segments[i];
            for (int64_t j = 0; j < from.length && s < g.s; j++, s++) {
                const int64_t at = kept->kv_head * from.stride + j * g.dim;
                float* to = key(s);
                for (int64_t d = 0; d < g.dim; d++) to[d * kSpan] = wide(from.k[at + d]);
                for (int64_t d = 0; d < g.dim; d++) *value(s, d) = wide(from.v[at + d]);
            }
        }
    }

    // Zeros for the keys and the channels that fill up a span.
    void pad() const {
        for (int64_t s = g.s; s < keys; s++)
            for (int64_t d = 0; d < g.dim; d++) key(s)[d * kSpan] = 0;
        for (int64_t s = 0; s < g.s; s++)
            for (int64_t d = g.dim; d < width; d++) *value(s, d) = 0;
    }

    // Keys that a query sees.
    int64_t seen(int64_t query) const { return kept ? std::min(g.s, kept->free + query + 1) : g.s; }

    void run(int64_t batch, int64_t head) const {
        int64_t kv_head = head / (g.heads / g.kv_heads);
        if (kept)
            pack_kept();
        else
            pack(g.k + batch * g.k_batch + kv_head * g.k_head, g.v + batch * g.v_batch + kv_head * g.v_head);
        pad();
        for (int64_t first = 0; first < g.t; first += kBlock)
            block(g.q + batch * g.q_batch + head * g.q_head + first * g.q_row,
                  g.out + batch * g.out_batch + head * g.out_head + first * g.out_row, first);
    }

    // The queries from `first` on, at most kBlock.
    void block(const float* from, float* out, int64_t first) const {
        int64_t rows = std::min(kBlock, g.t - first), all = seen(first + rows - 1);
        float scale = 1.0f / std::sqrt(static_cast<float>(g.dim)), sums[kBlock];
        for (int64_t r = 0; r < kBlock; r++)
            for (int64_t d = 0; d < g.dim; d++) q[r * g.dim + d] = r < rows ? from[r * g.q_row + d] * scale : 0;
        for (int64_t s = 0; s < all; s += kSpan)
            block_product(q, g.dim, k + s * g.dim, g.dim, false, scores + s, keys, all - s);
        for (int64_t r = 0; r < kBlock; r++) {
            int64_t n = std::min(all, seen(first + r)), used = (n + kLanes - 1) / kLanes * kLanes;
            sums[r] = exponentials(scores + r * keys, n);
            if (used < all) std::fill(scores + r * keys + used, scores + r * keys + all, 0.0f);
        }
        for (int64_t s = 0; s < all; s += kNear)
            for (int64_t d = 0; d < g.dim; d += kSpan)
                block_product(scores + s, keys, value(s, d), std::min(kNear, all - s), s > 0, mixed + d, width, g.dim - d);
        for (int64_t r = 0; r < rows; r++) {
            float part = 1.0f / sums[r];
            for (int64_t d = 0; d < g.dim; d++) out[r * g.out_row + d] = mixed[r * width + d] * part;
        }
    }
};

void attention(const Attention* given) {
    const Attention& g = *given;
    in_parallel(g.batch * g.heads, g.threads, [&](int64_t task) {
        thread_local Scratch scratch;
        FloatHead(g, scratch).run(task / g.heads, task % g.heads);
    });
}

// One head of one sequence over what is kept of it.
void attention_over_kept(const Attention& g, const Kept& kept) {
    thread_local Scratch scratch;
    FloatHead(g, scratch, &kept).run(0, 0);
}

}  // namespace
