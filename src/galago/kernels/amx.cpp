#include "simd_avx512.h"
// after the instruction set
#include "many_tiles.h"
#include "flash_tiles.h"
// after how products are made
#include "flash.h"
#include "dense.h"
#include "stack.h"

const Kernels amx_kernels = {
    "avx512-amx", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
