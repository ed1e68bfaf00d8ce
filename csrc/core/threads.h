// The thread pool: one per process, started at first use.
#pragma once
#include <stdint.h>

#include <functional>
#include <string>

namespace ivlite {

// Runs fn(begin, end) over [0, n) in pieces that are multiples of `grain` (but the last), on num_threads() threads
// counting the caller. Returns when all pieces are done. The first exception a piece throws is thrown here. Calls from
// several threads at once take turns; a call from within a piece runs in that piece's thread.
void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& fn);

// Called between pieces by the thread that called parallel_for, unless null: may throw to give the work up.
extern void (*between_pieces)();

int num_threads();
void set_num_threads(int n);  // 1..1024; throws std::invalid_argument

// One thread per physical core that this process may use: the affinity mask and the control groups' quota count.
int default_threads();

// Processors that the control groups of this process, its own and those above it, are paid for; infinity without a limit.
// `listing` names them as /proc/self/cgroup does, and they are directories under `mount`, version 1 or 2.
double cpu_quota(const std::string& listing = "/proc/self/cgroup", const std::string& mount = "/sys/fs/cgroup");

}  // namespace ivlite
