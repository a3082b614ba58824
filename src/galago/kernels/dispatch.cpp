// Which kernels this processor can run.
#include <cstring>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
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

#if defined(__x86_64__)
// What the compiler's own list of features lacks, and those of some compilers are empty.
struct Features {
    bool avx2 = false, vnni = false, avx512 = false, halves = false;

    Features() {
        unsigned a, b, c, d;
        constexpr unsigned kOsSaves = 1 << 27, kFma = 1 << 12, kFloat16 = 1 << 29;
        if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !(c & kOsSaves) || !(c & kFma) || !(c & kFloat16)) return;
        unsigned low, high;
        asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        bool vectors = (low & 0x06) == 0x06, wide = (low & 0xe6) == 0xe6;  // what the system saves of registers
        if (!vectors || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        constexpr unsigned kAvx2 = 1 << 5, kFoundation = 1 << 16, kDwords = 1 << 17, kBytes = 1 << 30, kLengths = 1u << 31;
        constexpr unsigned kAll = kFoundation | kDwords | kBytes | kLengths, kVnni = 1 << 11, kHalves = 1 << 5;
        unsigned most = a;
        avx2 = b & kAvx2;
        avx512 = avx2 && wide && (b & kAll) == kAll && (c & kVnni);
        if (most < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
        vnni = avx2 && (a & 1 << 4);
        halves = avx512 && (a & kHalves);
    }
};
#endif

const Kernels* candidates(int i) {
#if defined(__x86_64__)
    static const Features has;
    if (i == 0) return has.halves && tiles_allowed() ? &amx_kernels : nullptr;
    if (i == 1) return has.halves ? &avx512bf16_kernels : nullptr;
    if (i == 2) return has.avx512 ? &avx512_kernels : nullptr;
    if (i == 3) return has.vnni ? &avx2vnni_kernels : has.avx512 ? &avx2vnni512_kernels : nullptr;
    if (i == 4) return has.avx2 ? &avx2_kernels : nullptr;
#elif defined(__aarch64__)
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1 << 20, kSquares = 1 << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
    if (!(getauxval(AT_HWCAP) & kDotProducts)) return nullptr;  // a Raspberry Pi 4 has none
    bool squares = getauxval(AT_HWCAP2) & kSquares;
#elif defined(__APPLE__)
    int32_t has = 0;
    size_t size = sizeof has;
    bool squares = !sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) && has;
#else
    bool squares = false;
#endif
    if (i == 0) return squares ? &neoni8mm_kernels : nullptr;
    if (i == 1) return &neon_kernels;
#endif
    return nullptr;
}

}  // namespace

// What these kernels were compiled from, so that a library left over from other sources is not used.
extern "C" __attribute__((visibility("default"))) const char* galago_sources() { return GALAGO_SOURCES; }

// The kernels of this name, the best ones for null; null if this processor has no such.
extern "C" __attribute__((visibility("default"))) const Kernels* galago_kernels(const char* name) {
    for (int i = 0; i < 5; i++) {
        const Kernels* found = candidates(i);
        if (found && (!name || !std::strcmp(name, found->name))) return found;
    }
    return nullptr;
}
