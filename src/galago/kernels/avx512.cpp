#include "simd_avx512.h"
// after the instruction set
#include "dense.h"
#include "stack.h"

static void stack(const Stack* given) { run_blocks(given, nullptr); }

const Kernels avx512_kernels = {
    "avx512-vnni", gemm, dense, decode, store, stack, nullptr, rotate, layer_norm, add, read};
