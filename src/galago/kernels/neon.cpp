#include "simd_neon.h"
// after the instruction set
#include "dense.h"
#include "stack.h"

static void stack(const Stack* given) { run_blocks(given, nullptr); }

const Kernels neon_kernels = {
    "neon-dotprod", gemm, dense, decode, store, stack, nullptr, rotate, layer_norm, add, read};
