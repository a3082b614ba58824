// The kernels' C interface. Python calls these through ctypes, so there is no dependency on the headers
// of Python or torch, and one build serves every version of both.
//
// Layouts are explained in kernels.py, which packs what these functions read.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int kPanel = 64;  // output channels packed together
constexpr int kGroup = 32;  // input channels that share an int4 scale

struct Weight {
    const float* multiply;  // [k] applied to the input before it is quantised
    const uint8_t* w;       // panels of 64 output channels
    const int32_t* sum;     // [n padded to 64] sums of the quantised weights
    const float* scale;     // [n padded to 64]
    const float* bias;      // [n padded to 64]
    int64_t k, n, bits;     // bits: 8 or 4
};

struct Gemm {
    const float* x;         // [m, k], rows ldx apart
    float* y;               // [m, n], rows ldy apart
    int64_t m, ldx, ldy;
    int32_t gelu;           // apply tanh-GELU to the result
    int32_t threads;
};

struct Dense {
    const float* x;        // [m, k], rows ldx apart
    const void *w, *bias;  // [n, k] and [n], of `type`
    float* y;              // [m, n]
    int64_t m, n, k, ldx;
    int32_t type;          // 0: float32, 1: bfloat16, 2: float16
    int32_t threads;
};

struct Segment {
    const uint16_t* k;  // bfloat16 [kv heads, >= length, dim], heads `stride` elements apart
    const uint16_t* v;
    int64_t length, stride;
};

struct Decode {
    const float* q;  // [heads, t, dim] by strides
    float* out;      // the same shape, by its own strides
    const Segment* segments;
    int64_t n_segments, t, heads, kv_heads, dim;
    int64_t q_head, q_row, out_head, out_row;
    int64_t free;    // positions that every query sees; of those after, query i sees i + 1
    int32_t threads;
};

struct Store {
    const float* x;  // [heads, t, dim] by strides
    uint16_t* y;     // the same as bfloat16, by its own
    int64_t heads, t, dim, x_head, x_row, y_head, y_row;
    int32_t threads;
};

// One block of a transformer. Where there is no second norm, attention and MLP both read the first (as Phi's do);
// norms without a bias are RMSNorms. Where fc1 gives twice what fc2 takes, the MLP is silu(first) * second of its
// halves (as Llama's), else tanh-GELU.
struct Layer {
    const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
    const Weight *qkv, *proj, *fc1, *fc2;
};

// Where a sequence keeps keys and values: bfloat16 [layers][kv heads][capacity][dim], of which `length`
// positions are there. Places follow each other; new positions go to the first that has room.
struct Place {
    uint16_t *k, *v;
    int64_t length, capacity;
};

struct Sequence {
    Place* places;
    int64_t n_places, rows;  // rows: how many of x's are this sequence's; without places nothing is kept
};

struct Stack {
    const Layer* layers;     // all of the transformer, of which [first, end) run
    float* x;                // [rows of all sequences, dim], in and out
    const float *cos, *sin;  // [rows, half]; half 0: not rotated
    Sequence* sequences;
    int64_t first, end, n_sequences, dim, heads, kv_heads, ff, half;
    float eps;
    int32_t together;        // the rows of the only sequence, which begins here, see each other in both directions
    int32_t keys_only;       // of the last of these layers only keys and values are wanted: x is worth nothing then
    int32_t threads;
};

struct Attention {
    const float* q;          // [batch, heads, t, dim] by the strides below; every query sees every key
    const float *k, *v;      // [batch, kv heads, s, dim]
    float* out;
    int64_t batch, heads, kv_heads, t, s, dim;
    int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row;
    int32_t bytes;           // q k^T may be in int8, of keys less their mean
    int32_t threads;
};

struct Rotate {
    float* x;           // [rows, heads, dim] by strides, turned in place
    const float *cos, *sin;  // [rows, half]
    int64_t rows, heads, half, x_row, x_head;
    int32_t threads;
};

// LayerNorm, or RMSNorm where there is no bias.
struct Norm {
    const float* x;              // [m, k], rows ldx apart
    const float *weight, *bias;  // [k]
    float* y;                    // [m, k]
    int64_t m, k, ldx;
    float eps;
    int32_t threads;
};

// Each gives 0, or 1 when memory ran out: what it was to write is worth nothing then, and the next call may succeed.
struct Kernels {
    const char* name;
    int32_t (*gemm)(const Weight*, const Gemm*);
    int32_t (*dense)(const Dense*);
    int32_t (*decode)(const Decode*);
    int32_t (*store)(const Store*);
    int32_t (*stack)(const Stack*);  // blocks over the next positions of each sequence
    int32_t (*attention)(const Attention*);
    int32_t (*rotate)(const Rotate*);
    int32_t (*norm)(const Norm*);
    // y = x + a, and + b unless that is null, over n numbers
    int32_t (*add)(const float* x, const float* a, const float* b, float* y, int64_t n, int32_t threads);
    // The sum of n 32-bit words: as fast as memory can be read.
    int32_t (*read)(const int32_t* from, int64_t n, int32_t threads, int64_t* sum);
};

extern const Kernels amx_kernels, avx512bf16_kernels, avx512_kernels, avx2vnni_kernels, avx2vnni512_kernels,
    avx2_kernels, neoni8mm_kernels, neon_kernels;
