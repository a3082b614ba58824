#include "simd_avx2.h"
// after the instruction set
#include "dense.h"
#include "stack.h"

static void stack(const Stack* given) { run_blocks(given, nullptr); }

const Kernels avx2_kernels = {
    "avx2", gemm, dense, decode, store, stack, nullptr, rotate, layer_norm, add, read};
