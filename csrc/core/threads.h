// The thread pool: one per process, started at first use.
#pragma once
#include <stdint.h>

#include <functional>

namespace ivlite {

// Runs fn(begin, end) over [0, n) in pieces that are multiples of `grain` (but the last), on num_threads() threads
// counting the caller. Returns when all pieces are done. The first exception a piece throws is thrown here. Calls from
// several threads at once take turns; a call from within a piece runs in that piece's thread.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& fn);

// Called between pieces by the thread that called parallel_for, unless null: may throw to give the work up.
extern void (*between_pieces)();

int num_threads();
void set_num_threads(int n);  // 1..1024; throws std::invalid_argument

// One thread per physical core that this process may use: the affinity mask and the control group's quota count.
int default_threads();

}  // namespace ivlite
