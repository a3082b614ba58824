#include "simd_avx2.h"
// after the instruction set
#include "many_vectors.h"
#include "dense.h"
#include "stack.h"

static int32_t stack(const Stack* given) { return run_blocks(given, {}); }

const Kernels avx2_kernels = {
    "avx2", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, nullptr,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
