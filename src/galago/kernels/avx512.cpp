#include "simd_avx512.h"
// after the instruction set
#include "many_vectors.h"
#include "words_shorts.h"
// after what is multiplied
#include "flash_words.h"
#include "dense.h"
#include "stack.h"

const Kernels avx512_kernels = {
    "avx512-vnni", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
