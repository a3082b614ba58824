// Attention of many queries, over as many keys without a mask, or over kept ones of which each query sees those up to
// its own. Products are in bfloat16; with `bytes`, and where that is faster, q k^T is in int8, which is as fine as the
// int8 products that q and k came from. How they are computed is in flash_vectors.h or flash_tiles.h, of which the
// instruction set has included one before.
#pragma once
#include "flash_rows.h"

namespace {

// What one head works with. Keys are [tile of 64][step][64][4 bytes], values [pair of keys][width][2 bfloat16].
template <bool bytes>
struct Head {
    const Attention& g;
    const Kept* kept;  // or null
    int64_t words = bytes ? (g.dim + 3) / 4 : (g.dim + 1) / 2;  // of four bytes, in a key, and with zeros behind them:
    int64_t steps = (words + kStepsUnit - 1) / kStepsUnit * kStepsUnit;
    int64_t keys = (g.s + kTile - 1) / kTile * kTile, width = (g.dim + 15) / 16 * 16;
    int64_t apart = score_stride(keys), ldp = 2 * weight_stride(keys);
    // Exponentials are in base 2.
    float scale = 1.4426950409f / std::sqrt(static_cast<float>(g.dim));
    uint8_t *k, *v, *q, *p, *row;
    float *scores, *mixed, *by, *plus, *mean;  // a score is an int8 product times by[key], plus plus[key]
    float step[kBlock];                        // ... times this of its query

    Head(const Attention& given, Scratch& scratch, const Kept* source = nullptr) : g(given), kept(source) {
        int64_t ldq = 4 * steps, row_bytes = 4 * width;
        k = scratch.of<uint8_t>(4 * keys * steps + 2 * keys * width + kBlock * (ldq + ldp) + row_bytes +
                                4 * (kBlock * (apart + width) + 2 * keys + width) + 640);
        v = k + 4 * keys * steps;
        scores = reinterpret_cast<float*>(v + 2 * keys * width);
        mixed = scores + kBlock * apart;
        by = mixed + kBlock * width;
        plus = by + keys;
        mean = plus + keys;
        p = reinterpret_cast<uint8_t*>(mean + width);
        row = p + kBlock * ldp;
        q = row + row_bytes;
        std::memset(row, 0, row_bytes);
    }

    // The softmax does not change when all keys move by the same, and without their mean they are told apart better.
    void average(const float* from) {
        for (int64_t s = 0; s < g.s; s++)
            for (int64_t d = 0; d < g.dim; d++) mean[d] += from[s * g.k_row + d];
        for (int64_t d = 0; d < g.dim; d++) mean[d] /= g.s;
    }

    void pack_keys(const float* from) {
        std::memset(k, 0, 4 * keys * steps);
        std::fill(by, by + keys, 0.0f);
        std::fill(plus, plus + keys, 0.0f);
        std::memset(mean, 0, width * sizeof(float));
        if (g.bytes) average(from);
        for (int64_t s = 0; s < g.s; s++, from += g.k_row) {
            if constexpr (bytes) {
                by[s] = pack_bytes(from, mean, g.dim, 0, row) * scale;
                int32_t sum = 0;
                for (int64_t d = 0; d < g.dim; d++) sum += static_cast<int8_t>(row[d]);
                plus[s] = -128 * by[s] * sum;
            } else {
                pack_halves(from, mean, g.dim, 1, row);
            }
            put_key(s, row);
        }
    }

    void put_key(int64_t s, const uint8_t* from) {
        uint8_t* to = k + s / kTile * kTile * 4 * steps + s % kTile * 4;
        for (int64_t i = 0; i < words; i++) std::memcpy(to + i * kTile * 4, from + 4 * i, 4);
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
        int64_t whole = steps == words ? g.s / kTile * kTile : 0;
        std::memset(k + whole * 4 * steps, 0, 4 * steps * (keys - whole));
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
                step[r] = pack_bytes(from + r * g.q_row, mean, g.dim, 128, row);
            else
                pack_halves(from + r * g.q_row, mean, g.dim, scale, row);
            std::memcpy(q + r * 4 * steps, row, 4 * steps);
        }
    }

    // The weights of the n keys that a query sees but for their sum, which it gives, and zeros for the rest of `all`.
    float weights(int64_t r, int64_t n, int64_t all) {
        float* x = scores + r * apart;
        int64_t used = n, i = 0;
        constexpr int kWays = 4;  // sums that do not wait for each other
        F sum[kWays], steps_of = f_set(step[r]);
        for (int j = 0; j < kWays; j++) sum[j] = f_zero();
        float highest = highest_of(x, used);
        F shift = f_set(-highest * step[r]);
        auto weigh = [&](int j) {
            F e = f_exp2(f_fma(f_load(x + i), steps_of, shift));
            sum[j] = f_add(sum[j], e);
            bf16_store(p + r * ldp + 2 * i, e);
            i += kLanes;
        };
        for (i = 0; i + kWays * kLanes <= used;)
#pragma GCC unroll 4
            for (int j = 0; j < kWays; j++) weigh(j);
        while (i < used) weigh(0);
        if (used < all) std::memset(p + r * ldp + 2 * used, 0, 2 * (all - used));
        return f_sum(f_add(f_add(sum[0], sum[1]), f_add(sum[2], sum[3])));
    }

    void run(int64_t batch, int64_t head) {
        Registers in_use;
        int64_t group = g.heads / g.kv_heads;
        if (kept) {
            pack_kept();
        } else {
            pack_keys(g.k + batch * g.k_batch + head / group * g.k_head);
            pack_values(g.v + batch * g.v_batch + head / group * g.v_head);
        }
        int64_t pairs = (g.s + 1) / 2;
        std::memset(v + 4 * pairs * width, 0, 2 * (keys - 2 * pairs) * width);
        for (int64_t first = 0; first < g.t; first += kBlock) {
            int64_t rows = std::min<int64_t>(kBlock, g.t - first), tile = 0;
            pack_queries(g.q + batch * g.q_batch + head * g.q_head + first * g.q_row, rows);
            int64_t all = seen(first + rows - 1);
            for (; tile < all; tile += kTile)
                score_tile<bytes>(q, k + tile * 4 * steps, steps, by + tile, plus + tile, scores + tile, apart, all - tile);
            float sums[kBlock];
            int64_t weighed = (all + kWeighed - 1) / kWeighed * kWeighed;
            for (int64_t r = 0; r < kBlock; r++) sums[r] = weights(r, std::min(all, seen(first + r)), weighed);
            weigh_all(p, ldp, v, g.dim, width, weighed, mixed);
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
    given->bytes && kBytesPay ? attention_of_heads<kBytesPay>(*given) : attention_of_heads<false>(*given);
}

}  // namespace
