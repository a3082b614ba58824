// Tiles (Intel's AMX): eight registers of 16 rows of 64 bytes, and their products. With GALAGO_EMULATED_TILES they
// are plain arrays, so that what is written in their terms can be tested on processors that have none.
//
// Not by the compiler's own functions: GCC 12 drops stores to the configuration, of which it thinks that eight bytes
// are read.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef GALAGO_EMULATED_TILES
#include <cmath>
#endif

namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

#ifdef GALAGO_EMULATED_TILES

union Tile {
    uint8_t u[16][64];
    int8_t s[16][64];
    int32_t i[16][16];
    float f[16][16];
    uint16_t h[16][32];
};
thread_local Tile tile_registers[8];

struct Tiles {};
inline void t_ready() {}

template <int T>
inline void t_zero() {
    tile_registers[T] = {};
}
template <int T>
inline void t_load(const void* from, int64_t stride) {
    for (int r = 0; r < 16; r++) std::memcpy(tile_registers[T].u[r], static_cast<const char*>(from) + r * stride, 64);
}
template <int T>
inline void t_store(void* to, int64_t stride) {
    for (int r = 0; r < 16; r++) std::memcpy(static_cast<char*>(to) + r * stride, tile_registers[T].u[r], 64);
}
template <int C, int A, int B>
inline void t_dot_bytes() {
    Tile &c = tile_registers[C], &a = tile_registers[A], &b = tile_registers[B];
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 64; k++)
            for (int n = 0; n < 16; n++) c.i[r][n] += a.u[r][k] * b.s[k / 4][n * 4 + k % 4];
}
inline float of_half(uint16_t v) {
    uint32_t bits = static_cast<uint32_t>(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
template <int C, int A, int B>
inline void t_dot_halves() {
    Tile &c = tile_registers[C], &a = tile_registers[A], &b = tile_registers[B];
    for (int r = 0; r < 16; r++)
        for (int n = 0; n < 16; n++) {
            float even = 0, odd = 0;
            for (int k = 0; k < 16; k++) {
                even = std::fma(of_half(a.h[r][2 * k]), of_half(b.h[k][2 * n]), even);
                odd = std::fma(of_half(a.h[r][2 * k + 1]), of_half(b.h[k][2 * n + 1]), odd);
            }
            c.f[r][n] += even + odd;
        }
}

#else

// The registers of this thread, whole, from here to the end of the scope. Released then: a thread that is put aside
// would have 8 kB more to save.
struct Tiles {
    Tiles() {
        struct alignas(64) Shape {
            uint8_t palette = 1, start = 0, unused[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        };
        static const Shape whole;
        asm volatile("ldtilecfg %0" ::"m"(whole));
    }
    ~Tiles() { asm volatile("tilerelease"); }
    Tiles(const Tiles&) = delete;
};

template <int T>
inline void t_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// What was stored before is there for the loads that follow: the compiler does not see what they read.
inline void t_ready() { asm volatile("" ::: "memory"); }
// Sixteen rows of 64 bytes, `stride` bytes apart.
template <int T>
inline void t_load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T));
}
template <int T>
inline void t_store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A B, of 64 unsigned bytes in a row of A and signed ones in B: [16 fours of them][16 columns][4].
template <int C, int A, int B>
inline void t_dot_bytes() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
// The same for bfloat16: 32 in a row of A, [16 pairs][16 columns][2] in B, sums in float32.
template <int C, int A, int B>
inline void t_dot_halves() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace
