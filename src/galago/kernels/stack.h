// The blocks of a transformer in one call. For a few rows the kernels are so short that calling them one by one
// would take as long as some of them; for many, one workspace takes less memory than a tensor for each result. The
// instruction set has included attention of many queries before (flash.h or flash_words.h).
#pragma once
#include <vector>

#include "attention.h"
#include "gemm.h"

namespace {

// Where a row's keys and values go, and how many positions it sees.
struct Spot {
    const Place* place;
    int64_t at, sequence, sees;
};

// A type of this file alone. The linker keeps one copy of what std::vector needs for a type that all files know,
// and it may be one whose instructions this processor does not have.
struct Piece : Segment {};

// What more rows than this took is kept for the next call.
constexpr int64_t kFew = 192;

// Attention works on so many rows of one sequence together.
constexpr int64_t kManyRows = 32;

struct Blocks {
    const Stack& g;
    int64_t rows = 0, most = 0, head_dim, turning, qkv_dim, part;
    float *u, *attended, *out, *inner;  // for one part of the rows
    float *mixed, *qkv;                 // for all
    std::vector<Spot> spots;
    std::vector<std::vector<Piece>> segments;

    Blocks(const Stack& given, Scratch& scratch) : g(given) {
        head_dim = g.dim / g.heads;
        turning = g.heads + g.kv_heads;
        qkv_dim = (turning + g.kv_heads) * head_dim;
        segments.resize(g.n_sequences);
        for (int64_t s = 0; s < g.n_sequences; s++) plan(s);
        int64_t parts = (rows + kPart - 1) / kPart;
        part = (rows + parts * kManyUnit - 1) / (parts * kManyUnit) * kManyUnit;
        u = scratch.of<float>(rows * (g.dim + qkv_dim) + part * (3 * g.dim + g.ff) + 64);
        attended = u + part * g.dim;
        out = attended + part * g.dim;
        inner = out + part * g.dim;
        mixed = inner + part * g.ff;
        qkv = mixed + rows * g.dim;
    }

    void plan(int64_t s) {
        const Sequence& sequence = g.sequences[s];
        int64_t left = sequence.rows, before = 0;
        for (int64_t p = 0; p < sequence.n_places; p++) before += sequence.places[p].length;
        for (int64_t p = 0; p < sequence.n_places; p++) {
            Place& place = sequence.places[p];
            for (; left && place.length < place.capacity; left--, before++)
                spots.push_back({&place, place.length++, s, before + 1});
            segments[s].push_back({{place.k, place.v, place.length, place.capacity * head_dim}});
        }
        rows += sequence.rows;
        most = std::max(most, before);
    }

    void product(const Weight* w, const float* x, int64_t ldx, float* y, int64_t n, int gelu) const {
        Gemm asked{x, y, n, ldx, w->n, gelu, g.threads};
        gemm(w, &asked);
    }

    // Queries, keys and values of all rows, turned; those of the channels before `from` are left out.
    void queries_keys_values(const Layer& layer, int64_t from) const {
        Weight some = channels_from(*layer.qkv, from / kPanel);
        for (int64_t r = 0; r < rows; r += part) {
            int64_t n = std::min(part, rows - r);
            normed(layer.norm1_weight, layer.norm1_bias, g.x + r * g.dim, n);
            Gemm asked{u, qkv + r * qkv_dim + from / kPanel * kPanel, n, g.dim, qkv_dim, 0, g.threads};
            gemm(&some, &asked);
        }
        if (!g.half) return;
        Rotate asked{qkv + from, g.cos, g.sin, rows, turning - from / head_dim, g.half, qkv_dim, head_dim,
                     rows > 8 ? g.threads : 1};
        rotate(&asked);
    }

    // The norm of n rows of the stream.
    void normed(const float* weight, const float* bias, const float* x, int64_t n) const {
        Norm asked{x, weight, bias, u, n, g.dim, g.dim, g.eps, g.threads};
        norm(&asked);
    }

    // Put the rows' keys and values where they are kept.
    void keep(int64_t layer) const {
        int64_t per_task = rows < 32 ? rows : 16;
        in_parallel(spots.empty() ? 0 : (rows + per_task - 1) / per_task, g.threads, [&](int64_t task) {
            for (int64_t r = task * per_task; r < std::min(rows, (task + 1) * per_task); r++) {
                const Place& place = *spots[r].place;
                const float* from = qkv + r * qkv_dim + g.heads * head_dim;
                for (int64_t h = 0; h < g.kv_heads; h++, from += head_dim) {
                    int64_t to = ((layer * g.kv_heads + h) * place.capacity + spots[r].at) * head_dim;
                    store_row(from, place.k + to, head_dim);
                    store_row(from + g.kv_heads * head_dim, place.v + to, head_dim);
                }
            }
        });
    }

    void attention_of_all() const {
        int64_t head = head_dim, row = qkv_dim;
        const float *k = qkv + g.heads * head_dim, *v = k + g.kv_heads * head_dim;
        Attention asked{qkv, k, v, mixed, 1, g.heads, g.kv_heads, rows, rows, head_dim,
                        0, head, row, 0, head, row, 0, head, row, 0, head, g.dim, 1, g.threads};
        ::attention(&asked);
    }

    void attention_over_kept(int64_t layer) const {
        in_stretches(g.heads, g.threads, [&](int64_t head, int64_t end) {
            for (; head < end; head++)
                for (int64_t s = 0, row = 0; s < g.n_sequences; row += g.sequences[s++].rows)
                    one_head_over_kept(layer, head, s, row);
        });
    }

    // The rows of a sequence, which begin at `row`.
    void one_head_over_kept(int64_t layer, int64_t head, int64_t s, int64_t row) const {
        thread_local Scratch scratch;
        thread_local std::vector<Piece> here;
        here = segments[s];
        for (Segment& segment : here) {
            segment.k += layer * g.kv_heads * segment.stride;
            segment.v += layer * g.kv_heads * segment.stride;
        }
        int64_t n = g.sequences[s].rows, kv_head = head / (g.heads / g.kv_heads);
        const float* q = qkv + row * qkv_dim + head * head_dim;
        float* to = mixed + row * g.dim + head * head_dim;
        if (n >= kManyRows && head_dim % kLanes == 0) {
            int64_t sees = spots[row + n - 1].sees;
            Attention asked{q, nullptr, nullptr, to, 1, 1, 1, n, sees, head_dim,
                            0, 0, qkv_dim, 0, 0, 0, 0, 0, 0, 0, 0, g.dim, 0, 1};
            return ::attention_over_kept(asked, {here.data(), static_cast<int64_t>(here.size()), kv_head, sees - n});
        }
        // Row by row, so that keys that several rows see are near when they are needed again.
        float* scores = scratch.of<float>(most + kLanes + 2 * head_dim);
        for (int64_t r = 0; r < n; r++)
            attend(q + r * qkv_dim, here.data(), here.size(), kv_head, head_dim, spots[row + r].sees, scores,
                   to + r * g.dim);
    }

    // What follows attention, for the rows from `first` on.
    void rest(const Layer& layer, int64_t first, int64_t n) const {
        float* x = g.x + first * g.dim;
        int threads = n > 8 ? g.threads : 1;
        product(layer.proj, mixed + first * g.dim, g.dim, attended, n, 0);
        if (layer.norm2_weight) {
            add(x, attended, nullptr, x, n * g.dim, threads);
            normed(layer.norm2_weight, layer.norm2_bias, x, n);
        } else if (part < rows) {
            normed(layer.norm1_weight, layer.norm1_bias, x, n);
        }
        int64_t width = layer.fc2->k;
        bool gated = layer.fc1->n == 2 * width;
        product(layer.fc1, u, g.dim, inner, n, !gated);
        if (gated)
            in_parallel((n + 7) / 8, threads, [&](int64_t task) {
                gate(inner + task * 8 * 2 * width, std::min<int64_t>(8, n - task * 8), width);
            });
        product(layer.fc2, inner, layer.fc1->n, out, n, 0);
        add(x, out, layer.norm2_weight ? nullptr : attended, x, n * g.dim, threads);
    }

    void run() const {
        for (int64_t l = g.first; l < g.end; l++) {
            const Layer& layer = g.layers[l];
            bool keys_only = g.keys_only && l == g.end - 1;
            queries_keys_values(layer, keys_only ? g.dim : 0);
            keep(l);
            if (keys_only) return;
            if (g.together)
                attention_of_all();
            else
                attention_over_kept(l);
            for (int64_t r = 0; r < rows; r += part) rest(layer, r, std::min(part, rows - r));
        }
    }
};

inline int64_t rows_of(const Stack& g) {
    int64_t rows = 0;
    for (int64_t s = 0; s < g.n_sequences; s++) rows += g.sequences[s].rows;
    return rows;
}

int32_t stack(const Stack* given) {
    thread_local Scratch scratch;
    int32_t failed = attempt([&] { Blocks(*given, scratch).run(); });
    // What many rows took stays until few come: a long prefill comes in pieces, each of which would fault it in anew.
    if (failed || rows_of(*given) <= kFew) scratch.keep(8 << 20);
    return failed;
}

}  // namespace
