// What attention works on where no instruction adds up products of shorter numbers quickly: float32.
#pragma once
#include "attention.h"

namespace {

using Word = float;
using Sum = F;  // of products
constexpr int kWordRows = kFloatRows, kWordVectors = kFloatVectors;
constexpr int kWordNumbers = 1;  // in a word
constexpr int64_t kNear = 128;   // keys whose values are mixed in one go: they stay in the nearest cache

inline Sum w_zero() { return f_zero(); }
inline Sum w_load(const Word* p) { return f_load(p); }
inline Sum w_spread(const Word* p) { return f_set(*p); }
inline Sum w_dot(Sum acc, Sum a, Sum b) { return f_fma(a, b, acc); }
inline F f_of_sum(Sum s) { return s; }

// A query's or key's dim numbers as words; gives what they are to be multiplied by.
inline float pack_row(const float* x, int64_t dim, Word* to) {
    std::memcpy(to, x, dim * sizeof(float));
    return 1;
}

// The same of a value, for which sums go over the keys.
inline float pack_value(const float* x, int64_t dim, Word* to) { return pack_row(x, dim, to); }

// n of the numbers of a packed value go to their place among those of neighbouring keys.
inline void put_numbers(Word* to, int64_t key, const Word* packed, int64_t from, int64_t n) {
    std::memcpy(to, packed + from, n * sizeof(Word));
}

// Weights of keys, before they are packed, with what their values are to be multiplied by.
inline F weighed(F weights, const float* of) { return weights; }

// The weights of n keys in place as words, of which the largest is in `largest`, and `none` is 0 unless one is no number;
// gives what comes of them is to be multiplied by.
inline float pack_weights(float* x, int64_t n, F largest, F none) { return 1; }

}  // namespace
