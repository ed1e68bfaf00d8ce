// Parallel loops of kernels and operations, on the pool that the calling thread uses.
#pragma once
#include <stdint.h>

#include <functional>

namespace ivlite {

// ThreadPool::run on the calling thread's pool. A call from within a chunk runs in that chunk's thread, as does one of no more than
// `grain`. Throws Stopped when the calling thread's stop flag is set.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// The threads of the calling thread's pool.
int num_threads();

// Replaces the pool that threads use which were given none; it starts at first use with wanted_threads(). Throws
// std::invalid_argument, and then nothing is replaced.
void set_num_threads(int n);

}  // namespace ivlite
