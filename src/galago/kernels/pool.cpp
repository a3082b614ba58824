// The threads that the kernels share.
#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>

namespace {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// From one kernel to the next it is less than this; an idle program should not hold a core for longer.
constexpr auto kPatience = std::chrono::microseconds(500);
constexpr int kSpins = 256;  // between two looks at the clock
constexpr int64_t kClosed = -(1 << 20);

// One job at a time, its tasks handed out one by one. A worker is welcome, never waited for: the caller works
// too, and waits at the end only for those who took a task. So a worker that a busy machine does not run costs
// its help and no more.
struct Pool {
    std::mutex callers;
    pid_t process = getpid();
    int workers = 0;

    std::atomic<int64_t> inside{kClosed};  // workers in the job; negative when there is none
    std::atomic<int64_t> next{0};
    std::atomic<uint32_t> jobs{0};
    std::atomic<int> seats{0};
    std::atomic<bool> failed{false};  // memory ran out in a task
    int64_t n = 0;
    void (*call)(const void*, int64_t) = nullptr;
    const void* task = nullptr;

    std::mutex sleep;
    std::condition_variable wake;
    std::atomic<int> sleeping{0};

    void take() {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) call(task, i);
        } catch (const std::bad_alloc&) {
            failed.store(true, std::memory_order_relaxed);
            next.store(n, std::memory_order_relaxed);  // nobody need begin another
        }
    }

    void work(uint32_t seen) {
        for (;;) {
            auto until = std::chrono::steady_clock::now() + kPatience;
            do {
                for (int i = 0; i < kSpins && jobs.load(std::memory_order_acquire) == seen; i++) pause();
            } while (jobs.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < until);
            if (jobs.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep);
                sleeping++;
                wake.wait(lock, [&] { return jobs.load() != seen; });
                sleeping--;
            }
            seen = jobs.load(std::memory_order_acquire);
            if (inside.fetch_add(1, std::memory_order_acquire) >= 0 && seats.fetch_sub(1) > 0) take();
            inside.fetch_sub(1, std::memory_order_release);
        }
    }

    void run(int64_t count, int threads, void (*f)(const void*, int64_t), const void* what) {
        try {
            for (; workers < threads - 1; workers++) std::thread(&Pool::work, this, jobs.load()).detach();
        } catch (const std::exception&) {  // the system gives no more: those that are there do the work
        }
        n = count;
        call = f;
        task = what;
        next = 0;
        failed = false;
        seats = threads - 1;
        inside.fetch_sub(kClosed, std::memory_order_release);
        jobs.fetch_add(1);
        if (sleeping.load() > 0) {
            { std::lock_guard<std::mutex> lock(sleep); }
            wake.notify_all();
        }
        take();
        inside.fetch_add(kClosed, std::memory_order_acquire);
        for (int i = 0; inside.load(std::memory_order_acquire) != kClosed; i++) {
            if (i < 16 * kSpins)
                pause();
            else
                std::this_thread::yield();
        }
        if (failed) throw std::bad_alloc();
    }
};

}  // namespace

void run_in_parallel(int64_t n, int threads, void (*call)(const void*, int64_t), const void* task) {
    static std::atomic<Pool*> shared{new Pool};
    Pool* pool = shared.load();
    if (pool->process != getpid()) {  // threads do not survive a fork
        Pool* fresh = new Pool;
        pool = shared.compare_exchange_strong(pool, fresh) ? fresh : shared.load();
    }
    std::unique_lock<std::mutex> lock(pool->callers, std::try_to_lock);
    if (lock.owns_lock())
        pool->run(n, threads, call, task);
    else  // another model is at work with the threads
        for (int64_t i = 0; i < n; i++) call(task, i);
}
