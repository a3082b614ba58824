// The threads that the kernels share.
#include "pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
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

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds, std::chrono::microseconds;

// From one kernel to the next it is less than this; an idle program should not hold a core for longer.
constexpr auto kPatience = microseconds(500);
constexpr int kSpins = 256;  // between two looks at the clock
constexpr int64_t kClosed = -(1 << 20);

// How many workers are welcome. Where another program is at work, a worker may be put aside in the midst of a task, and
// the caller then waits for its next turn, some milliseconds, which is longer than most kernels take. Where that is seen
// too often one worker fewer is let in for a while: those who are left then have a core each.
class Welcome {
    using Time = Clock::duration;
    // A task may be overdue by four of its length and so much. What one such costs at the most: a single one is bad luck.
    static constexpr Time kLate = microseconds(300), kWorst = milliseconds(2);
    static constexpr int kTolerated = 32;  // a part of the time that may be lost so
    static constexpr Time kCredit = milliseconds(1), kDebt = milliseconds(-4);
    static constexpr Time kShortest = milliseconds(20), kLongest = milliseconds(1000);
    int fewer = 0;
    Time account{0}, pause = kShortest;
    Clock::time_point again{};  // when one more is tried

public:
    int of(int workers, Clock::time_point now) {
        if (fewer > 0 && now >= again) {
            fewer--;
            again = now + pause;
        }
        fewer = std::min(fewer, workers);
        return workers - fewer;
    }

    // The caller was busy with so many tasks from `begin` until `done`, and then `waited` for its workers.
    void settle(Clock::time_point begin, Clock::time_point done, int64_t tasks, int workers, Time waited) {
        if (!tasks || !workers) return;
        Time busy = done - begin;
        account = std::min(account + busy / kTolerated, kCredit);
        if (waited <= kLate + 4 * busy / tasks) return;
        account -= std::min(waited, kWorst);
        if (account > kDebt) return;
        account = Time(0);
        pause = done < again + pause ? std::min(2 * pause, kLongest) : kShortest;
        again = done + pause;
        fewer++;
    }
};

// One job at a time, its tasks handed out one by one. A worker is welcome, never waited for: the caller works
// too, and waits at the end only for those who took a task. So a worker that a busy machine does not run costs
// its help and no more.
struct Pool {
    struct Worker {
        std::condition_variable wake;
        std::atomic<bool> asleep{false};
    };
    std::mutex callers;
    pid_t process = getpid();
    std::deque<Worker> workers;
    Welcome welcome;

    std::atomic<int64_t> inside{kClosed};  // workers in the job; negative when there is none
    std::atomic<int64_t> next{0};
    std::atomic<uint32_t> jobs{0};
    std::atomic<int> seats{0};  // the first so many workers are welcome
    std::atomic<bool> failed{false};  // memory ran out in a task
    int64_t n = 0;
    void (*call)(const void*, int64_t) = nullptr;
    const void* task = nullptr;
    std::mutex sleep;

    int64_t take() {
        int64_t taken = 0;
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n; taken++) call(task, i);
        } catch (const std::bad_alloc&) {
            failed.store(true, std::memory_order_relaxed);
            next.store(n, std::memory_order_relaxed);  // nobody need begin another
        }
        return taken;
    }

    void work(Worker& self, int index, uint32_t seen) {
        auto called = [&] { return jobs.load(std::memory_order_acquire) != seen && index < seats.load(); };
        for (;;) {
            auto until = Clock::now() + kPatience;
            do {
                for (int i = 0; i < kSpins && !called(); i++) pause();
            } while (!called() && Clock::now() < until);
            if (!called()) {
                std::unique_lock<std::mutex> lock(sleep);
                self.asleep = true;
                self.wake.wait(lock, called);
                self.asleep = false;
            }
            seen = jobs.load(std::memory_order_acquire);
            if (inside.fetch_add(1, std::memory_order_acquire) >= 0 && index < seats.load()) take();
            inside.fetch_sub(1, std::memory_order_release);
        }
    }

    void hire(int count) {
        try {
            while (static_cast<int>(workers.size()) < count) {
                Worker& fresh = workers.emplace_back();
                try {
                    std::thread(&Pool::work, this, std::ref(fresh), workers.size() - 1, jobs.load()).detach();
                } catch (...) {
                    workers.pop_back();
                    throw;
                }
            }
        } catch (const std::exception&) {  // the system gives no more: those that are there do the work
        }
    }

    void run(int64_t count, int threads, void (*f)(const void*, int64_t), const void* what) {
        hire(threads - 1);
        n = count;
        call = f;
        task = what;
        next = 0;
        failed = false;
        auto begin = Clock::now();
        int helping = welcome.of(std::min<int>(threads - 1, workers.size()), begin);
        seats = helping;
        inside.fetch_sub(kClosed, std::memory_order_release);
        jobs.fetch_add(1);
        for (int i = 0; i < helping; i++) {
            if (!workers[i].asleep.load()) continue;
            { std::lock_guard<std::mutex> lock(sleep); }
            workers[i].wake.notify_one();
        }
        int64_t mine = take();
        auto done = Clock::now();
        inside.fetch_add(kClosed, std::memory_order_acquire);
        bool quick = true;
        for (int i = 0; inside.load(std::memory_order_acquire) != kClosed; i++) {
            quick = i < 16 * kSpins;
            if (quick)
                pause();
            else
                std::this_thread::yield();
        }
        welcome.settle(begin, done, mine, helping, quick ? Clock::duration(0) : Clock::now() - done);
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
