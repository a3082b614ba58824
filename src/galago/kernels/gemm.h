// y = quantised(x) w^T for int8 and int4 weights. How many rows are multiplied is in many_vectors.h or many_tiles.h,
// of which the instruction set has included one before.
#pragma once
#include "panels.h"

namespace {

void gemm(const Weight* weight, const Gemm* given) {
    const Weight& w = *weight;
    const Gemm& g = *given;
    thread_local Scratch bytes, others, sums;
    int64_t padded = padded_inputs(w), n_groups = padded / kGroup;
    bool few = g.m <= (w.bits == 8 ? kFewBytes : kFewFours), four = w.bits == 4 && few;
    Layout as = few ? Layout{g.m, padded, padded} : many_layout(g.m, padded);
    uint8_t* a = bytes.of<uint8_t>(as.rows * as.stride + 64);
    Row* rows = others.of<Row>(g.m);
    int32_t* eights = four ? sums.of<int32_t>(g.m * n_groups) : nullptr;

    int threads = g.m * w.k < 32768 ? 1 : g.threads;
    int64_t per_task = std::max<int64_t>(2, g.m / (8 * threads) / 2 * 2);  // of a pair none is alone
    in_parallel((g.m + per_task - 1) / per_task, threads, [&](int64_t task) {
        thread_local Scratch scratch;
        float* tmp = scratch.of<float>(as.filled + kLanes);
        int64_t first = task * per_task, end = std::min(g.m, first + per_task);
        for (int64_t r = first; r < end; r++) {
            rows[r] = quantise(g.x + r * g.ldx, w.multiply, w.k, as.filled, tmp, a + r * as.stride);
            for (int64_t group = 0; four && group < n_groups; group++)
                eights[r * n_groups + group] = g_eights(a + r * padded + group * kGroup);
        }
        if (!few) spread_rows(a, as, first, end);
    });

    Job job{w, g, a, eights, rows, padded, as.stride};
    int64_t panels = (w.n + kPanel - 1) / kPanel;
    auto panel = [&](int64_t p) { return p < panels ? w.w + p * panel_bytes(padded, w.bits) : nullptr; };
    if (few) {
        in_stretches(panels, g.threads, [&](int64_t p, int64_t end) {
            for (; p < end; p++) {
                if (four)
                    panel_rows<true>(job, panel(p), p, 0, g.m);
                else
                    panel_rows<false>(job, panel(p), p, 0, g.m);
            }
        });
        return;
    }
    int64_t chunks = std::clamp<int64_t>(8 * g.threads / panels + 1, 1, (g.m + 63) / 64);
    int64_t chunk = ((g.m + chunks - 1) / chunks + kManyUnit - 1) / kManyUnit * kManyUnit;
    in_parallel(panels * chunks, g.threads, [&](int64_t task) {
        int64_t p = task / chunks, from = task % chunks * chunk, to = std::min(g.m, from + chunk);
        if (from >= to) return;
        const uint8_t* whole = panel(p);
        if (w.bits == 4) {
            thread_local Scratch scratch;
            int8_t* unpacked = scratch.of<int8_t>(padded * kPanel);
            unpack_panel(whole, n_groups, unpacked);
            whole = reinterpret_cast<const uint8_t*>(unpacked);
        }
        many_rows(job, whole, panel(p + g.threads), p, from, to);
    });
}

}  // namespace
