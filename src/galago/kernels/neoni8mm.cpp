#include "simd_neon.h"
// after the instruction set
#include "many_squares.h"
#include "scores_floats.h"
// after how scores are made
#include "flash_floats.h"
#include "dense.h"
#include "stack.h"

static int32_t stack(const Stack* given) { return run_blocks(given, {attention, attention_over_kept}); }

const Kernels neoni8mm_kernels = {
    "neon-i8mm", entry<gemm>, entry<dense>, entry<decode>, entry<store>, stack, entry<attention>,
    entry<rotate>, entry<norm>, entry<add>, entry<read_all>};
