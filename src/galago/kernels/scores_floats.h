// Scores of queries and keys in float32, where no instruction adds up products of shorter numbers quickly.
#pragma once
#include "attention.h"

namespace {

using Word = float;  // of a packed row
using Score = F;     // a sum of products
constexpr int kScoreRows = kFloatRows, kScoreVectors = kFloatVectors;

inline int64_t words_of(int64_t dim) { return dim; }
inline Score s_zero() { return f_zero(); }
inline Score s_load(const Word* p) { return f_load(p); }
inline Score s_spread(const Word* p) { return f_set(*p); }
inline Score s_dot(Score acc, Score a, Score b) { return f_fma(a, b, acc); }
inline F f_of_score(Score s) { return s; }

// A row of dim numbers as words; gives what they are to be multiplied by.
inline float pack_row(const float* x, int64_t dim, Word* to) {
    std::memcpy(to, x, dim * sizeof(float));
    return 1;
}

}  // namespace
