// Which kernels this processor can run.
#include <cstring>
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace {

// Whether tiles may be used: where the processor has them, Linux wants to be asked, once for all threads.
bool tiles_allowed() {
#ifdef GALAGO_EMULATED_TILES
    return true;
#elif defined(__x86_64__) && defined(__linux__)
    constexpr unsigned kTiles = 1 << 24 | 1 << 25 | 1 << 22;  // themselves, products of int8 and of bfloat16
    constexpr long kAsk = 0x1023, kTileData = 18;             // ARCH_REQ_XCOMP_PERM, and for what
    unsigned a, b, c, d;
    static const bool allowed = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) == kTiles &&
                                syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
    return allowed;
#else
    return false;
#endif
}

const Kernels* candidates(int i) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    bool halves = avx512 && __builtin_cpu_supports("avx512bf16");
    if (i == 0) return halves && tiles_allowed() ? &amx_kernels : nullptr;
    if (i == 1) return halves ? &avx512bf16_kernels : nullptr;
    if (i == 2) return avx512 ? &avx512_kernels : nullptr;
    if (i == 3) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2_kernels : nullptr;
#elif defined(__aarch64__)
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP; a Raspberry Pi 4 has none
    if (!(getauxval(AT_HWCAP) & kDotProducts)) return nullptr;
#endif
    if (i == 0) return &neon_kernels;
#endif
    return nullptr;
}

}  // namespace

// What these kernels were compiled from, so that a library left over from other sources is not used.
extern "C" __attribute__((visibility("default"))) const char* galago_sources() { return GALAGO_SOURCES; }

// The kernels of this name, the best ones for null; null if this processor has no such.
extern "C" __attribute__((visibility("default"))) const Kernels* galago_kernels(const char* name) {
    for (int i = 0; i < 4; i++) {
        const Kernels* found = candidates(i);
        if (found && (!name || !std::strcmp(name, found->name))) return found;
    }
    return nullptr;
}
