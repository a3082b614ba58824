// Attention of many queries for instruction sets without products in bfloat16: over as many keys without a mask, or
// over kept ones of which each query sees those up to its own. What is multiplied are words, which hold a float32 or two
// whole numbers: words_floats.h or words_shorts.h says which, of which the instruction set has included one before.
#pragma once
#include "attention.h"

namespace {

constexpr int64_t kSpan = kWordVectors * kLanes;  // keys, or channels, that are worked on together
constexpr int64_t kBlock = 12;                    // queries
static_assert(kBlock % kWordRows == 0);

inline int64_t in_units(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
inline int64_t in_spans(int64_t n, int64_t span) { return in_units(n, span) * span; }

// finish(r, v, sum) of each row and vector: the sum over i of a[r][i] * b[i][v], where b's steps lie kSpan apart.
// Compiled apart, as tiles of products are: the sums take all registers.
template <int V, class Finish>
[[gnu::noinline]] void product_rows(const Word* a, int64_t lda, const Word* b, int64_t steps, const Finish& finish) {
    Sum acc[kWordRows][V];
#pragma GCC unroll 8
    for (int r = 0; r < kWordRows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] = w_zero();
    for (int64_t i = 0; i < steps; i++, b += kSpan) {
        Sum x[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) x[v] = w_load(b + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kWordRows; r++) {
            in_order();
            Sum y = w_spread(a + r * lda + i);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) acc[r][v] = w_dot(acc[r][v], y, x[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kWordRows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) finish(r, v, f_of_sum(acc[r][v]));
}

// The same for a block of rows and the first n of b's columns, or some more.
template <int V = kWordVectors, class Finish>
inline void product(const Word* a, int64_t lda, const Word* b, int64_t steps, int64_t n, const Finish& finish) {
    if constexpr (V > 1)
        if (n <= (V - 1) * kLanes) return product<V - 1>(a, lda, b, steps, n, finish);
    for (int64_t first = 0; first < kBlock; first += kWordRows)
        product_rows<V>(a + first * lda, lda, b, steps, [&](int r, int v, F sum) { finish(first + r, v * kLanes, sum); });
}

// What one head works with. Keys are [span of keys][word][kSpan], values [span of channels][word of keys][kSpan].
struct WordHead {
    const Attention& g;
    const Kept* kept;  // or null
    int64_t words = in_units(g.dim, kWordNumbers), keys = in_spans(g.s, std::max<int64_t>(kSpan, kNear));
    int64_t width = in_spans(g.dim, kSpan), value_words = keys / kWordNumbers;
    // Exponentials are in base 2.
    float scale = 1.4426950409f / std::sqrt(static_cast<float>(g.dim));
    Word *k, *v, *q, *packed;
    float *scores, *mixed, *by, *of, *row, *mean;  // what a key's scores and its value are multiplied by
    float step[kBlock];                            // what a query's scores are

    WordHead(const Attention& given, Scratch& scratch, const Kept* source = nullptr) : g(given), kept(source) {
        int64_t room = in_spans(g.dim, kLanes) + kLanes;
        scores = scratch.of<float>(kBlock * (keys + width + words) + keys * (words + 2) + value_words * width + 3 * room);
        mixed = scores + kBlock * keys;
        by = mixed + kBlock * width;
        of = by + keys;
        row = of + keys;
        mean = row + room;
        packed = reinterpret_cast<Word*>(mean + room);
        k = packed + room;
        q = k + keys * words;
        v = q + kBlock * words;
    }

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
            Word* to = k + s / kSpan * kSpan * words + s % kSpan;
            for (int64_t i = 0; i < words; i++) to[i * kSpan] = packed[i];
        });
    }

    void put_value(int64_t s, const float* from) const {
        of[s] = pack_value(from, g.dim, packed);
        Word* to = v + s / kWordNumbers * kSpan;
        for (int64_t d = 0; d < g.dim; d += kSpan)
            put_numbers(to + d * value_words, s, packed, d, std::min(kSpan, g.dim - d));
    }

    void pack_values(const float* from) const {
        std::memset(v, 0, value_words * width * sizeof(Word));
        std::fill(of, of + keys, 0.0f);
        if (kept) {
            each_kept(g.s, [&](int64_t s, const Segment& segment, int64_t at) {
                widen(segment.v + at);
                put_value(s, row);
            });
            return;
        }
        for (int64_t s = 0; s < g.s; s++) {
            std::memcpy(row, from + s * g.v_row, g.dim * sizeof(float));
            put_value(s, row);
        }
    }

    // Keys that a query sees.
    int64_t seen(int64_t query) const { return kept ? std::min(g.s, kept->free + query + 1) : g.s; }

    void run(int64_t batch, int64_t head) {
        int64_t kv_head = head / (g.heads / g.kv_heads);
        std::fill(row, row + in_spans(g.dim, kLanes), 0.0f);
        std::memset(k, 0, keys * words * sizeof(Word));
        std::fill(by, by + keys, 0.0f);
        pack_keys(kept ? nullptr : g.k + batch * g.k_batch + kv_head * g.k_head);
        pack_values(kept ? nullptr : g.v + batch * g.v_batch + kv_head * g.v_head);
        for (int64_t first = 0; first < g.t; first += kBlock)
            block(g.q + batch * g.q_batch + head * g.q_head + first * g.q_row,
                  g.out + batch * g.out_batch + head * g.out_head + first * g.out_row, first);
    }

    // The weights of the n keys that a query sees, as words, with zeros for the rest of `all`; gives what comes of them
    // is to be multiplied by.
    float weights(int64_t r, int64_t n, int64_t all) const {
        float* x = scores + r * keys;
        int64_t used = n;
        F sum = f_zero(), none = f_zero(), largest = f_zero();
        F steps_of = f_set(step[r]), shift = f_set(-highest_of(x, used) * step[r]);
        for (int64_t i = 0; i < used; i += kLanes) {
            F e = f_exp2(f_fma(f_load(x + i), steps_of, shift));
            sum = f_add(sum, e);
            e = weighed(e, of + i);
            f_store(x + i, e);
            largest = f_max(largest, e);
            none = f_fma(e, f_zero(), none);
        }
        float part = pack_weights(x, used, largest, none) / f_sum(sum);
        int64_t packed_words = used / kWordNumbers, wanted = in_units(all, kWordNumbers);
        if (packed_words < wanted) std::memset(x + packed_words, 0, (wanted - packed_words) * sizeof(Word));
        return part;
    }

    // The queries from `first` on, at most kBlock.
    void block(const float* from, float* out, int64_t first) {
        int64_t rows = std::min(kBlock, g.t - first), all = seen(first + rows - 1);
        float parts[kBlock];
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
        for (int64_t s = 0; s < all; s += kSpan)
            product(q, words, k + s * words, words, all - s, [&](int64_t r, int64_t at, F sum) {
                f_store(scores + r * keys + s + at, f_mul(sum, f_load(by + s + at)));
            });
        for (int64_t r = 0; r < kBlock; r++) parts[r] = weights(r, std::min(all, seen(first + r)), all);
        auto p = reinterpret_cast<const Word*>(scores);
        for (int64_t s = 0; s < all; s += kNear) {
            int64_t steps = in_units(std::min(kNear, all - s), kWordNumbers), word = s / kWordNumbers;
            for (int64_t d = 0; d < g.dim; d += kSpan)
                product(p + word, keys, v + d * value_words + word * kSpan, steps, g.dim - d, [&](int64_t r, int64_t at, F sum) {
                            float* to = mixed + r * width + d + at;
                            f_store(to, s ? f_add(f_load(to), sum) : sum);
                        });
        }
        for (int64_t r = 0; r < rows; r++)
            for (int64_t d = 0; d < g.dim; d++) out[r * g.out_row + d] = mixed[r * width + d] * parts[r];
    }
};

void attention(const Attention* given) {
    const Attention& g = *given;
    in_parallel(g.batch * g.heads, g.threads, [&](int64_t task) {
        thread_local Scratch scratch;
        WordHead(g, scratch).run(task / g.heads, task % g.heads);
    });
}

// One head of one sequence over what is kept of it.
void attention_over_kept(const Attention& g, const Kept& kept) {
    thread_local Scratch scratch;
    WordHead(g, scratch, &kept).run(0, 0);
}

}  // namespace
