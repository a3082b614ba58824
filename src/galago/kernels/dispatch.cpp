// Which kernels this processor can run.
#include <cstring>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace {

const Kernels* candidates(int i) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vnni");
    if (i == 0) return avx512 && __builtin_cpu_supports("avx512bf16") ? &avx512bf16_kernels : nullptr;
    if (i == 1) return avx512 ? &avx512_kernels : nullptr;
    if (i == 2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2_kernels : nullptr;
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
    for (int i = 0; i < 3; i++) {
        const Kernels* found = candidates(i);
        if (found && (!name || !std::strcmp(name, found->name))) return found;
    }
    return nullptr;
}
