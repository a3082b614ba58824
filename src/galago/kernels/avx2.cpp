#include "simd_avx2.h"
// after the instruction set
#include "many_shorts.h"
#include "words_shorts.h"
// after what is multiplied
#include "flash_words.h"
#include "dense.h"
#include "stack.h"

const Kernels avx2_kernels = {
    "avx2", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
