#include "simd_avx512.h"
// after the instruction set
#include "stack.h"

static void stack(const Stack* given) { run_blocks(given, nullptr); }

const Kernels avx512_kernels = {
    "avx512-vnni", gemm, decode, store, stack, nullptr, rotate, layer_norm, add, read};
