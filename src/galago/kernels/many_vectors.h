// Products of many rows by the same vector instructions as those of few.
#pragma once
#include "panels.h"

namespace {

// Up to here rows are few by int8 and by int4 weights: these are used as they are then, and else unpacked once.
constexpr int64_t kFewBytes = 16, kFewFours = 16;
constexpr int64_t kManyUnit = kRows;  // rows are best handed out in multiples of this
// Blocks work on many rows in parts of so many, whose results stay in the processor's caches from step to step.
constexpr int64_t kPart = 192;

inline Layout many_layout(int64_t m, int64_t padded) { return {m, padded, padded}; }

// What is multiplied of a row is its whole numbers as they are.
inline void spread_rows(uint8_t* a, const Layout& as, int64_t from, int64_t to) {}

// Rows [from, to) times panel p, which is int8 by now. `next` is what this thread will probably read after it, or null.
inline void many_rows(const Job& j, const uint8_t* panel, const uint8_t* next, int64_t p, int64_t from, int64_t to) {
    panel_rows<false>(j, panel, p, from, to);
}

}  // namespace
