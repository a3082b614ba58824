#pragma once
#include <cstdint>

// Call call(task, i) for i in 0..n-1 on up to `threads` threads, this one among them. Tasks are taken one by one.
// Throws std::bad_alloc where one of them did, once no thread is in any.
void run_in_parallel(int64_t n, int threads, void (*call)(const void*, int64_t), const void* task);
