#include "simd_avx512.h"
// after the instruction set
#include "many_vectors.h"
#include "flash_vectors.h"
// after how products are made
#include "flash.h"
#include "dense.h"
#include "stack.h"

const Kernels avx512bf16_kernels = {
    "avx512-vnni-bf16", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
