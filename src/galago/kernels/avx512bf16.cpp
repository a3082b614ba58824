#include "simd_avx512.h"
// after the instruction set
#include "flash.h"
#include "dense.h"
#include "stack.h"

static void stack(const Stack* given) { run_blocks(given, attention); }

const Kernels avx512bf16_kernels = {
    "avx512-vnni-bf16", gemm, dense, decode, store, stack, attention, rotate, layer_norm, add, read};
