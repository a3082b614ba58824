// Attention of many queries for instruction sets without products in bfloat16: over as many keys without a mask, or
// over kept ones of which each query sees those up to its own. Values are mixed in float32; how scores are made is in
// scores_floats.h or scores_shorts.h, of which the instruction set has included one before.
#pragma once
#include "attention.h"

namespace {

constexpr int64_t kKeySpan = kScoreVectors * kLanes;    // keys that are worked on together
constexpr int64_t kValueSpan = kFloatVectors * kLanes;  // channels
constexpr int64_t kBlock = 12;                          // queries
constexpr int64_t kNear = 128;                          // keys whose values stay in the nearest cache
static_assert(kBlock % kScoreRows == 0 && kBlock % kFloatRows == 0);

inline int64_t in_spans(int64_t n, int64_t span) { return (n + span - 1) / span * span; }

// Compiled apart, as tiles of products are: their sums take all registers.
// out[r][i] = the score of query r and key i of a span but for what each is multiplied by, times by[i].
template <int V>
[[gnu::noinline]] void score_rows(const Word* q, int64_t words, const Word* k, const float* by, float* out, int64_t ldo) {
    Score acc[kScoreRows][V];
#pragma GCC unroll 8
    for (int r = 0; r < kScoreRows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] = s_zero();
    for (int64_t i = 0; i < words; i++, k += kKeySpan) {
        Score x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) x[v] = s_load(k + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kScoreRows; r++) {
            in_order();
            Score y = s_spread(q + r * words + i);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[r][v] = s_dot(acc[r][v], y, x[v]);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        F times = f_load(by + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kScoreRows; r++) f_store(out + r * ldo + v * kLanes, f_mul(f_of_score(acc[r][v]), times));
    }
}

// The same for a block of queries and the first n keys of a span, or some more.
template <int V = kScoreVectors>
inline void score_block(const Word* q, int64_t words, const Word* k, const float* by, float* out, int64_t ldo, int64_t n) {
    if constexpr (V > 1)
        if (n <= (V - 1) * kLanes) return score_block<V - 1>(q, words, k, by, out, ldo, n);
    for (int64_t r = 0; r < kBlock; r += kScoreRows) score_rows<V>(q + r * words, words, k, by, out + r * ldo, ldo);
}

// out[r][d] (+)= the sum over keys of p[r][key] * v[key][d], where v's keys lie kValueSpan apart.
template <int V>
[[gnu::noinline]] void mix_rows(const float* p, int64_t ldp, const float* v, int64_t keys, bool more, float* out, int64_t ldo) {
    F acc[kFloatRows][V];
#pragma GCC unroll 8
    for (int r = 0; r < kFloatRows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) acc[r][j] = more ? f_load(out + r * ldo + j * kLanes) : f_zero();
    for (int64_t i = 0; i < keys; i++, v += kValueSpan) {
        F x[V];
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) x[j] = f_load(v + j * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kFloatRows; r++) {
            in_order();
            F y = f_set(p[r * ldp + i]);
#pragma GCC unroll 8
            for (int j = 0; j < V; j++) acc[r][j] = f_fma(y, x[j], acc[r][j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kFloatRows; r++)
#pragma GCC unroll 8
        for (int j = 0; j < V; j++) f_store(out + r * ldo + j * kLanes, acc[r][j]);
}

// The same for a block of queries and the first n channels of a span, or some zeros more.
template <int V = kFloatVectors>
inline void mix_block(const float* p, int64_t ldp, const float* v, int64_t keys, bool more, float* out, int64_t ldo,
                      int64_t n) {
    if constexpr (V > 1)
        if (n <= (V - 1) * kLanes) return mix_block<V - 1>(p, ldp, v, keys, more, out, ldo, n);
    for (int64_t r = 0; r < kBlock; r += kFloatRows) mix_rows<V>(p + r * ldp, ldp, v, keys, more, out + r * ldo, ldo);
}

// What one head works with. Keys are [span of keys][word][kKeySpan], values [span of channels][key][kValueSpan].
struct FloatHead {
    const Attention& g;
    const Kept* kept;  // or null
    int64_t words = words_of(g.dim), keys = in_spans(g.s, kKeySpan), width = in_spans(g.dim, kValueSpan);
    // Exponentials are in base 2.
    float scale = 1.4426950409f / std::sqrt(static_cast<float>(g.dim));
    Word *k, *q, *packed;
    float *v, *scores, *mixed, *by, *row, *mean;  // `by`: what the scores of a key are multiplied by
    float step[kBlock];                    // and those of a query

    FloatHead(const Attention& given, Scratch& scratch, const Kept* source = nullptr) : g(given), kept(source) {
        int64_t rows = keys * (words + width + 1) + kBlock * (words + keys + width), room = 3 * (g.dim + kLanes);
        v = scratch.of<float>(rows + room);
        scores = v + keys * width;
        mixed = scores + kBlock * keys;
        by = mixed + kBlock * width;
        row = by + keys;
        mean = row + g.dim + kLanes;
        packed = reinterpret_cast<Word*>(mean + g.dim + kLanes);
        k = packed + g.dim + kLanes;
        q = k + keys * words;
    }

    float* value(int64_t s, int64_t d) const { return v + d / kValueSpan * kValueSpan * keys + s * kValueSpan + d % kValueSpan; }

    // Call with(s) for the first n keys, whose numbers are in `row` then.
    template <class With>
    void each_key(const float* key_rows, int64_t n, const With& with) const {
        if (!kept) {
            for (int64_t s = 0; s < n; s++) {
                std::memcpy(row, key_rows + s * g.k_row, g.dim * sizeof(float));
                with(s);
            }
            return;
        }
        each_kept(n, [&](int64_t s, const Segment& from, int64_t at) {
            widen(from.k + at);
            with(s);
        });
    }

    template <class With>
    void each_kept(int64_t n, const With& with) const {
        int64_t s = 0;
        for (int64_t i = 0; i < kept->n_segments; i++)
            for (int64_t j = 0; j < kept->segments[i].length && s < n; j++, s++)
                with(s, kept->segments[i], kept->kv_head * kept->segments[i].stride + j * g.dim);
    }

    void widen(const uint16_t* from) const {
        for (int64_t d = 0; d < g.dim; d += kLanes) f_store(row + d, f_of_bf16(from + d));
    }

    // Less their mean, which changes no softmax: without it they are told apart better. It is of those that all queries
    // see, so that none depends on what comes after it; of too few it would say nothing about others.
    void pack_keys(const float* from) const {
        auto over_row = [&](auto op) {
            for (int64_t d = 0; d < g.dim; d += kLanes) op(d);
        };
        std::fill(mean, mean + g.dim + kLanes, 0.0f);
        int64_t common = seen(0);
        if (common >= kBlock) {
            F part = f_set(1.0f / common);
            each_key(from, common, [&](int64_t s) {
                over_row([&](int64_t d) { f_store(mean + d, f_fma(f_load(row + d), part, f_load(mean + d))); });
            });
        }
        each_key(from, g.s, [&](int64_t s) {
            over_row([&](int64_t d) { f_store(row + d, f_sub(f_load(row + d), f_load(mean + d))); });
            by[s] = pack_row(row, g.dim, packed) * scale;
            Word* to = k + s / kKeySpan * kKeySpan * words + s % kKeySpan;
            for (int64_t i = 0; i < words; i++) to[i * kKeySpan] = packed[i];
        });
    }

    void put_value(int64_t s, const float* from) const {
        for (int64_t d = 0; d < width; d += kValueSpan) {
            int64_t n = std::min(kValueSpan, g.dim - d);
            std::memcpy(value(s, d), from + d, n * sizeof(float));
            if (n < kValueSpan) std::memset(value(s, d) + n, 0, (kValueSpan - n) * sizeof(float));
        }
    }

    void pack_values(const float* from) const {
        if (!kept)
            for (int64_t s = 0; s < g.s; s++) put_value(s, from + s * g.v_row);
        else
            each_kept(g.s, [&](int64_t s, const Segment& segment, int64_t at) {
                widen(segment.v + at);
                put_value(s, row);
            });
    }

    // Keys that a query sees.
    int64_t seen(int64_t query) const { return kept ? std::min(g.s, kept->free + query + 1) : g.s; }

    void run(int64_t batch, int64_t head) {
        int64_t kv_head = head / (g.heads / g.kv_heads);
        std::fill(row, row + g.dim + kLanes, 0.0f);
        pack_keys(kept ? nullptr : g.k + batch * g.k_batch + kv_head * g.k_head);
        pack_values(kept ? nullptr : g.v + batch * g.v_batch + kv_head * g.v_head);
        for (int64_t s = g.s; s < keys; s++) {  // what fills up the last span
            by[s] = 0;
            for (int64_t i = 0; i < words; i++) k[(s / kKeySpan * words + i) * kKeySpan + s % kKeySpan] = 0;
        }
        for (int64_t first = 0; first < g.t; first += kBlock)
            block(g.q + batch * g.q_batch + head * g.q_head + first * g.q_row,
                  g.out + batch * g.out_batch + head * g.out_head + first * g.out_row, first);
    }

    // The weights of the n keys that a query sees but for their sum, which it gives, and zeros for the rest of `all`.
    float weights(int64_t r, int64_t n, int64_t all) const {
        float* x = scores + r * keys;
        constexpr int kWays = 4;  // that do not wait for each other
        int64_t used = in_spans(n, kLanes), i = 0;
        F most[kWays], sum = f_zero(), steps_of = f_set(step[r]);
        for (int j = 0; j < kWays; j++) most[j] = f_set(-1e30f);
        std::fill(x + n, x + used, -1e30f);
        for (; i + kWays * kLanes <= used; i += kWays * kLanes)
#pragma GCC unroll 4
            for (int j = 0; j < kWays; j++) most[j] = f_max(most[j], f_load(x + i + j * kLanes));
        for (; i < used; i += kLanes) most[0] = f_max(most[0], f_load(x + i));
        float highest = f_most(f_max(f_max(most[0], most[1]), f_max(most[2], most[3])));
        F shift = f_set(-highest * step[r]);
        for (i = 0; i < used; i += kLanes) {
            F e = f_exp2(f_fma(f_load(x + i), steps_of, shift));
            f_store(x + i, e);
            sum = f_add(sum, e);
        }
        if (used < all) std::fill(x + used, x + all, 0.0f);
        return f_sum(sum);
    }

    // The queries from `first` on, at most kBlock.
    void block(const float* from, float* out, int64_t first) {
        int64_t rows = std::min(kBlock, g.t - first), all = seen(first + rows - 1);
        float sums[kBlock];
        for (int64_t r = 0; r < kBlock; r++) {
            step[r] = 1;
            if (r < rows) {
                std::memcpy(row, from + r * g.q_row, g.dim * sizeof(float));
                step[r] = pack_row(row, g.dim, packed);
                std::memcpy(q + r * words, packed, words * sizeof(Word));
            } else {
                std::memset(q + r * words, 0, words * sizeof(Word));
            }
        }
        for (int64_t s = 0; s < all; s += kKeySpan)
            score_block(q, words, k + s * words, by + s, scores + s, keys, all - s);
        for (int64_t r = 0; r < kBlock; r++) sums[r] = weights(r, std::min(all, seen(first + r)), all);
        for (int64_t s = 0; s < all; s += kNear)
            for (int64_t d = 0; d < g.dim; d += kValueSpan)
                mix_block(scores + s, keys, value(s, d), std::min(kNear, all - s), s > 0, mixed + d, width, g.dim - d);
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
