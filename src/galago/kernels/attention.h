// Attention of a few queries over cached keys and values, and what runs between the products.
#pragma once
#include <atomic>
#include <cmath>

#include "common.h"

namespace {

// Keys and values that are kept, of which query i sees the first free + i + 1.
struct Kept {
    const Segment* segments;
    int64_t n_segments, kv_head, free;
};

// The highest of n scores, NaN where none is a number, and -1e30 after them up to a whole vector, for which there is
// room; n becomes as many.
inline float highest_of(float* x, int64_t& n) {
    constexpr int kWays = 4;  // that do not wait for each other
    while (n % kLanes) x[n++] = -1e30f;
    F most[kWays];
    for (int j = 0; j < kWays; j++) most[j] = f_set(-1e30f);
    int64_t i = 0;
    for (; i + kWays * kLanes <= n; i += kWays * kLanes)
#pragma GCC unroll 4
        for (int j = 0; j < kWays; j++) most[j] = f_max(most[j], f_load(x + i + j * kLanes));
    for (; i < n; i += kLanes) most[0] = f_max(most[0], f_load(x + i));
    float highest = f_most(f_max(f_max(most[0], most[1]), f_max(most[2], most[3])));
    return highest > -1e30f ? highest : NAN;
}

// Softmax over x[0..n) in place but for the division; gives the sum.
inline float exponentials(float* x, int64_t n) {
    F sum = f_zero(), shift = f_set(highest_of(x, n));
    for (int64_t i = 0; i < n; i += kLanes) {
        F e = f_exp(f_sub(f_load(x + i), shift));
        f_store(x + i, e);
        sum = f_add(sum, e);
    }
    return f_sum(sum);
}

// scores[i] = q . k[i] for keys of dim channels, a multiple of kLanes.
inline void score(const float* q, const uint16_t* k, int64_t n, int64_t dim, float* scores) {
    for (int64_t i = 0; i < n; i++, k += dim) {
        F a = f_zero();
        ask_ahead(k, dim * sizeof(uint16_t));
        for (int64_t d = 0; d < dim; d += kLanes) a = f_fma(f_load(q + d), f_of_bf16(k + d), a);
        scores[i] = f_sum(a);
    }
}

template <int V>
inline void mix(const float* p, const uint16_t* v, int64_t n, int64_t dim, float* out) {
    F acc[V];
    for (int j = 0; j < V; j++) acc[j] = f_load(out + j * kLanes);
    for (int64_t i = 0; i < n; i++) {
        F weight = f_set(p[i]);
        ask_ahead(v + i * dim, V * kLanes * sizeof(uint16_t));
        for (int j = 0; j < V; j++) acc[j] = f_fma(weight, f_of_bf16(v + i * dim + j * kLanes), acc[j]);
    }
    for (int j = 0; j < V; j++) f_store(out + j * kLanes, acc[j]);
}

// One query of one head over all segments of its sequence, of which it sees the first `sees` positions.
inline void attend(const float* q, const Segment* segments, int64_t n_segments, int64_t head, int64_t dim, int64_t sees,
                   float* scores, float* out) {
    float* mixed = scores + sees + kLanes;
    float* scaled = mixed + dim;
    float scale = 1.0f / std::sqrt(static_cast<float>(dim));
    for (int64_t d = 0; d < dim; d++) scaled[d] = q[d] * scale;
    int64_t at = 0;
    for (int64_t s = 0; s < n_segments && at < sees; s++) {
        int64_t n = std::min(segments[s].length, sees - at);
        score(scaled, segments[s].k + head * segments[s].stride, n, dim, scores + at);
        at += n;
    }
    float sum = exponentials(scores, sees);
    std::fill(mixed, mixed + dim, 0.0f);
    at = 0;
    for (int64_t s = 0; s < n_segments && at < sees; s++) {
        int64_t n = std::min(segments[s].length, sees - at);
        const uint16_t* v = segments[s].v + head * segments[s].stride;
        int64_t d = 0;
        // All channels at once where registers allow it: memory is read in one go then.
        for (; d + 8 * kLanes <= dim; d += 8 * kLanes) mix<8>(scores + at, v + d, n, dim, mixed + d);
        for (; d + 4 * kLanes <= dim; d += 4 * kLanes) mix<4>(scores + at, v + d, n, dim, mixed + d);
        for (; d < dim; d += kLanes) mix<1>(scores + at, v + d, n, dim, mixed + d);
        at += n;
    }
    for (int64_t d = 0; d < dim; d++) out[d] = mixed[d] / sum;
}

void decode(const Decode* given) {
    const Decode& g = *given;
    int64_t total = 0;
    for (int64_t s = 0; s < g.n_segments; s++) total += g.segments[s].length;
    int64_t group = g.heads / g.kv_heads;
    in_parallel(g.heads, total * g.t < 64 ? 1 : g.threads, [&](int64_t head) {
        thread_local Scratch scratch;
        float* scores = scratch.of<float>(total + kLanes + 2 * g.dim);
        for (int64_t row = 0; row < g.t; row++) {
            attend(g.q + head * g.q_head + row * g.q_row, g.segments, g.n_segments, head / group, g.dim,
                   std::min(total, g.free + row + 1), scores, g.out + head * g.out_head + row * g.out_row);
        }
    });
}

inline void store_row(const float* x, uint16_t* y, int64_t dim) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) bf16_of_f(y + d, f_load(x + d));
    if (d == dim) return;
    float rest[kLanes] = {};
    uint16_t half[kLanes];
    std::memcpy(rest, x + d, (dim - d) * sizeof(float));
    bf16_of_f(half, f_load(rest));
    std::memcpy(y + d, half, (dim - d) * sizeof(uint16_t));
}

void store(const Store* given) {
    const Store& g = *given;
    in_parallel(g.heads, g.t * g.dim < 4096 ? 1 : g.threads, [&](int64_t head) {
        for (int64_t r = 0; r < g.t; r++)
            store_row(g.x + head * g.x_head + r * g.x_row, g.y + head * g.y_head + r * g.y_row, g.dim);
    });
}

void rotate(const Rotate* given) {
    const Rotate& g = *given;
    int64_t rows = g.rows * g.heads < 256 ? g.rows : 16;
    in_parallel((g.rows + rows - 1) / rows, g.threads, [&](int64_t task) {
        for (int64_t r = task * rows; r < std::min(g.rows, (task + 1) * rows); r++) {
            const float *cos = g.cos + r * g.half, *sin = g.sin + r * g.half;
            for (int64_t h = 0; h < g.heads; h++) {
                float* x = g.x + r * g.x_row + h * g.x_head;
                for (int64_t i = 0; i < g.half; i++) {
                    float a = x[i], b = x[i + g.half];
                    x[i] = a * cos[i] - b * sin[i];
                    x[i + g.half] = a * sin[i] + b * cos[i];
                }
            }
        }
    });
}

// silu(a) * b of rows that hold a, then b, n numbers each; over a.
inline void gate(float* x, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++, x += 2 * n) {
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) {
            F a = f_load(x + i), e = f_exp(f_sub(f_zero(), a));
            f_store(x + i, f_mul(f_div(a, f_add(f_set(1.0f), e)), f_load(x + n + i)));
        }
        for (; i < n; i++) x[i] = x[i] / (1.0f + std::exp(-x[i])) * x[n + i];
    }
}

// What a row is multiplied by whose squares have this mean. Where they are too many for a float it is NaN: by 0 they
// would become zeros, which look like an answer.
inline float norm_of(float squares, float eps) {
    float by = 1.0f / std::sqrt(squares + eps);
    return by > 0.0f ? by : NAN;
}

void rms_norm(const Norm& g, int64_t from, int64_t to) {
    int64_t whole = g.k / kLanes * kLanes;
    for (int64_t r = from; r < to; r++) {
        const float* x = g.x + r * g.ldx;
        float* y = g.y + r * g.k;
        F squares = f_zero();
        for (int64_t i = 0; i < whole; i += kLanes) squares = f_fma(f_load(x + i), f_load(x + i), squares);
        float rest = 0;
        for (int64_t i = whole; i < g.k; i++) rest += x[i] * x[i];
        float by = norm_of((f_sum(squares) + rest) / g.k, g.eps);
        for (int64_t i = 0; i < whole; i += kLanes)
            f_store(y + i, f_mul(f_mul(f_load(x + i), f_set(by)), f_load(g.weight + i)));
        for (int64_t i = whole; i < g.k; i++) y[i] = x[i] * by * g.weight[i];
    }
}

void norm(const Norm* given) {
    const Norm& g = *given;
    int64_t per_task = std::max<int64_t>(1, g.m / (4 * g.threads)), whole = g.k / kLanes * kLanes;
    in_parallel((g.m + per_task - 1) / per_task, g.m < 16 ? 1 : g.threads, [&](int64_t task) {
        if (!g.bias) return rms_norm(g, task * per_task, std::min(g.m, (task + 1) * per_task));
        for (int64_t r = task * per_task; r < std::min(g.m, (task + 1) * per_task); r++) {
            const float* x = g.x + r * g.ldx;
            float* y = g.y + r * g.k;
            F sum = f_zero(), squares = f_zero();
            for (int64_t i = 0; i < whole; i += kLanes) sum = f_add(sum, f_load(x + i));
            float mean = f_sum(sum), rest = 0;
            for (int64_t i = whole; i < g.k; i++) mean += x[i];
            mean /= g.k;
            for (int64_t i = 0; i < whole; i += kLanes) {
                F d = f_sub(f_load(x + i), f_set(mean));
                squares = f_fma(d, d, squares);
            }
            for (int64_t i = whole; i < g.k; i++) rest += (x[i] - mean) * (x[i] - mean);
            float by = norm_of((f_sum(squares) + rest) / g.k, g.eps);
            for (int64_t i = 0; i < whole; i += kLanes) {
                F d = f_mul(f_sub(f_load(x + i), f_set(mean)), f_set(by));
                f_store(y + i, f_fma(d, f_load(g.weight + i), f_load(g.bias + i)));
            }
            for (int64_t i = whole; i < g.k; i++) y[i] = (x[i] - mean) * by * g.weight[i] + g.bias[i];
        }
    });
}

void add(const float* x, const float* a, const float* b, float* y, int64_t n, int32_t threads) {
    constexpr int64_t kPiece = 1 << 15;
    in_parallel((n + kPiece - 1) / kPiece, threads, [&](int64_t task) {
        int64_t end = std::min(n, (task + 1) * kPiece);
        if (b)
            for (int64_t i = task * kPiece; i < end; i++) y[i] = x[i] + a[i] + b[i];
        else
            for (int64_t i = task * kPiece; i < end; i++) y[i] = x[i] + a[i];
    });
}

void read_all(const int32_t* from, int64_t n, int32_t threads, int64_t* sum_of_all) {
    constexpr int64_t kPiece = 1 << 18;
    std::atomic<int64_t> total{0};
    in_stretches((n + kPiece - 1) / kPiece, threads, [&](int64_t begin, int64_t pieces_end) {
        I sums[4] = {i_zero(), i_zero(), i_zero(), i_zero()};
        const int32_t* end = from + std::min(n, pieces_end * kPiece);
        const int32_t* at = from + begin * kPiece;
        for (; at + 4 * kLanes <= end; at += 4 * kLanes)
            for (int j = 0; j < 4; j++) sums[j] = i_add(sums[j], i_load(at + j * kLanes));
        int32_t last[kLanes], sum = 0;
        for (; at < end; at++) sum += *at;
        i_store(last, i_add(i_add(sums[0], sums[1]), i_add(sums[2], sums[3])));
        for (int32_t v : last) sum += v;
        total += sum;
    });
    *sum_of_all = total;
}

}  // namespace
