// What attention works on where products of 16-bit numbers are added up by twos: whole numbers, two to a word, of so many
// bits that sums fit into 32. They are finer than the bfloat16 that keys and values are kept in.
#pragma once
#include "attention.h"

namespace {

using Word = int32_t;
using Sum = I;  // of products
constexpr int kWordRows = kShortRows, kWordVectors = kShortVectors;
constexpr int kWordNumbers = 2;  // in a word
constexpr int64_t kNear = 128;   // keys whose values are mixed in one go
constexpr int32_t kMostWeight = 16383, kMostValue = 1023;
static_assert(kMostWeight * kMostValue * kNear < int64_t{1} << 31);

inline Sum w_zero() { return i_zero(); }
inline Sum w_load(const Word* p) { return i_load(p); }
inline Sum w_spread(const Word* p) { return i_set(*p); }
inline Sum w_dot(Sum acc, Sum a, Sum b) { return i_dot_shorts(acc, a, b); }
inline F f_of_sum(Sum s) { return f_of_i(s); }

// n numbers, divided by a step; they may be written over themselves.
inline void pack_shorts(const float* x, int64_t n, float step, int16_t* to) {
    F per_step = f_set(1.0f / step);
    for (int64_t i = 0; i < n; i += kLanes) shorts_of_i(to + i, i_of_f(f_mul(f_load(x + i), per_step)));
}

// The step, NaN where one is no number, for which `none` is not 0.
inline float step_of(F largest, F none, float most) { return std::max(f_most(largest) / most, 1e-20f) + f_sum(none); }

// A row of dim numbers, with zeros up to a whole vector, as words; gives what they are to be multiplied by.
inline float pack_row(const float* x, int64_t dim, float most, Word* to) {
    F largest = f_zero(), none = f_zero();
    for (int64_t i = 0; i < dim; i += kLanes) {
        F v = f_load(x + i);
        largest = f_max(largest, f_max(v, f_sub(f_zero(), v)));
        none = f_fma(v, f_zero(), none);
    }
    float step = step_of(largest, none, most);
    pack_shorts(x, dim, step, reinterpret_cast<int16_t*>(to));
    return step;
}

// Of a query or a key.
inline float pack_row(const float* x, int64_t dim, Word* to) {
    return pack_row(x, dim, std::min(32767.0f, std::sqrt(2147480000.0f / dim) - 1.0f), to);
}

// Of a value, for which sums go over the keys.
inline float pack_value(const float* x, int64_t dim, Word* to) { return pack_row(x, dim, kMostValue, to); }

// n of the numbers of a packed value go to their place among those of neighbouring keys.
inline void put_numbers(Word* to, int64_t key, const Word* packed, int64_t from, int64_t n) {
    uint16_t numbers[kWordVectors * kLanes];
    std::memcpy(numbers, reinterpret_cast<const char*>(packed) + 2 * from, 2 * n);
    for (int64_t i = 0; i < n; i++) to[i] |= static_cast<uint32_t>(numbers[i]) << 16 * (key % 2);
}

// Weights of keys, before they are packed, with what their values are to be multiplied by.
inline F weighed(F weights, const float* of) { return f_mul(weights, f_load(of)); }

// The weights of n keys in place as words, of which the largest is in `largest`, and `none` is 0 unless one is no number;
// gives what comes of them is to be multiplied by.
inline float pack_weights(float* x, int64_t n, F largest, F none) {
    float step = step_of(largest, none, kMostWeight);
    pack_shorts(x, n, step, reinterpret_cast<int16_t*>(x));
    return step;
}

}  // namespace
