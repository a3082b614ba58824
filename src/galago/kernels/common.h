// What the instruction sets share: included after one of the simd_*.h.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "kernels.h"
#include "pool.h"

namespace {

// A buffer of each calling thread that grows and stays: kernels are called thousands of times a second.
struct Scratch {
    void* data = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(data); }
    // Give memory back unless it is at most so many bytes.
    void keep(size_t most) {
        if (size <= most) return;
        std::free(data);
        data = nullptr;
        size = 0;
    }
    // Throws std::bad_alloc, and is empty then.
    template <class T>
    T* of(size_t n) {
        size_t bytes = (n * sizeof(T) + 63) / 64 * 64;
        if (bytes > size) {
            std::free(data);
            data = std::aligned_alloc(64, bytes);
            size = data ? bytes : 0;
        }
        if (!data) throw std::bad_alloc();
        return static_cast<T*>(data);
    }
};

// 0, or 1 when memory ran out: who calls from C cannot catch what is thrown.
template <class Work>
inline int32_t attempt(const Work& work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// A kernel as the table offers it.
template <auto kernel, class... Given>
int32_t entry(Given... given) {
    return attempt([&] { kernel(given...); });
}

// One task, compiled once for one thread and for many. Left to itself the compiler puts a task that one thread runs
// into its kernel, where all that is held in registers there spills the sums of the innermost loops to memory.
template <class Task>
[[gnu::noinline]] void run_task(const void* task, int64_t i) {
    (*static_cast<const Task*>(task))(i);
}

// Nothing that is read after this is read before it: where all registers hold sums, compilers that read ahead put some of
// them aside.
inline void in_order() { asm volatile("" ::: "memory"); }

// Run task(i) for i in 0..n-1 over the threads. What a task throws for want of memory is thrown again here.
template <class Task>
void in_parallel(int64_t n, int threads, const Task& task) {
    if (threads > 1 && n > 1) return run_in_parallel(n, threads, run_task<Task>, &task);
    for (int64_t i = 0; i < n; i++) run_task<Task>(&task, i);
}

// Run task(from, to) over stretches of 0..n-1, long ones first: memory is read fastest in one go, and the short
// ones at the end leave no thread without work.
template <class Task>
void in_stretches(int64_t n, int threads, const Task& task) {
    constexpr int kMost = 64;
    int64_t begins[kMost + 1], count = 0;
    for (int64_t at = 0; at < n; count++) {
        begins[count] = at;
        at += count < kMost - 1 ? std::max<int64_t>(1, (n - at) / (2 * threads)) : n - at;
    }
    begins[count] = n;
    in_parallel(count, threads, [&](int64_t i) { task(begins[i], begins[i + 1]); });
}

// Bytes that a kernel asks for ahead of its reading where it reads each byte once: what it computes meanwhile would
// leave memory waiting, as a processor looks no further ahead than a few hundred instructions.
constexpr int kAhead = 2048;

inline void ask_ahead(const void* at, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(at) + kAhead + i);
}

// e^x with a relative error under 2e-7; 0 below -87. NaN stays NaN: of a NaN and a number x86 takes the second.
inline F f_exp(F x) {
    x = f_max(f_set(-104.0f), f_min(f_set(88.0f), x));
    F n = f_round(f_mul(x, f_set(1.44269504f)));
    F r = f_fma(n, f_set(-0.693359375f), x);
    r = f_fma(n, f_set(2.12194440e-4f), r);
    F p = f_set(1.9875691500e-4f);
    p = f_fma(p, r, f_set(1.3981999507e-3f));
    p = f_fma(p, r, f_set(8.3334519073e-3f));
    p = f_fma(p, r, f_set(4.1665795894e-2f));
    p = f_fma(p, r, f_set(1.6666665459e-1f));
    p = f_fma(p, r, f_set(5.0000001201e-1f));
    p = f_fma(f_mul(p, r), r, f_add(r, f_set(1.0f)));
    return f_scale2(p, n);
}

// 2^x with a relative error under 8e-5, a twentieth of what rounding to bfloat16 takes; no less than 2^-126 at times.
inline F f_exp2(F x) {
    F n = f_round(x), r = f_sub(x, n);
    F p = f_fma(r, f_set(5.517165268e-2f), f_set(2.426111209e-1f));
    p = f_fma(r, p, f_set(6.932609885e-1f));
    return f_scale2_normal(f_fma(r, p, f_set(9.999280737e-1f)), n);
}

// x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3) is x (1 + tanh u) / 2.
inline F f_gelu(F x) {
    F u = f_mul(x, f_fma(f_mul(x, x), f_set(0.0713548163f), f_set(1.5957691216f)));
    return f_div(x, f_add(f_set(1.0f), f_exp(f_sub(f_zero(), u))));
}

}  // namespace
