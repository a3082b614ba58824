#include "simd_neon.h"
// after the instruction set
#include "many_vectors.h"
#include "words_floats.h"
// after what is multiplied
#include "flash_words.h"
#include "dense.h"
#include "stack.h"

const Kernels neon_kernels = {
    "neon-dotprod", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
