#ifndef GALAGO_VNNI
#define GALAGO_VNNI "vex"
#define GALAGO_TABLE avx2vnni_kernels
#endif
#include "simd_avx2.h"
// after the instruction set
#include "many_vectors.h"
#include "words_shorts.h"
// after what is multiplied
#include "flash_words.h"
#include "dense.h"
#include "stack.h"

const Kernels GALAGO_TABLE = {
    "avx2-vnni", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
