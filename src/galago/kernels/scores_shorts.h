// Scores of queries and keys as whole numbers of 16 bits, two to a word. They are of some 12 bits, so that their sums
// fit into 32, which is finer than the bfloat16 that keys are kept in.
#pragma once
#include "attention.h"

namespace {

using Word = int32_t;  // of a packed row
using Score = I;       // a sum of products
constexpr int kScoreRows = kShortRows, kScoreVectors = kShortVectors;

inline int64_t words_of(int64_t dim) { return (dim + 1) / 2; }
inline Score s_zero() { return i_zero(); }
inline Score s_load(const Word* p) { return i_load(p); }
inline Score s_spread(const Word* p) { return i_set(*p); }
inline Score s_dot(Score acc, Score a, Score b) { return i_dot_shorts(acc, a, b); }
inline F f_of_score(Score s) { return f_of_i(s); }

// A row of dim numbers, with zeros up to a whole vector, as words; gives what they are to be multiplied by, NaN where
// one is no number. There is room for a whole vector more.
inline float pack_row(const float* x, int64_t dim, Word* to) {
    F most = f_zero(), none = f_zero();
    for (int64_t d = 0; d < dim; d += kLanes) {
        F v = f_load(x + d);
        most = f_max(most, f_max(v, f_sub(f_zero(), v)));
        none = f_fma(v, f_zero(), none);
    }
    float levels = std::min(32767.0f, std::sqrt(2147480000.0f / dim) - 1.0f);
    float step = std::max(f_most(most) / levels, 1e-20f) + f_sum(none);
    F per_step = f_set(1.0f / step);
    for (int64_t d = 0; d < dim; d += kLanes)
        shorts_of_i(reinterpret_cast<int16_t*>(to) + d, i_of_f(f_mul(f_load(x + d), per_step)));
    return step;
}

}  // namespace
