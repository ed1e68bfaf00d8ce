#include "core/cores.h"

#include <sched.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/cgroup.h"
#include "core/pool.h"

namespace ivlite {
namespace {

int physical_cores() {
#ifdef __linux__
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::string at = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      std::string siblings = first_line(at + "thread_siblings_list");
      cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    if (!cores.empty()) return (int)cores.size();
  }
#endif
  return (int)std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

int default_threads() {
  const double cores = std::min((double)physical_cores(), std::ceil(cpu_quota()));
  return (int)std::min(std::max(cores, 1.0), (double)ThreadPool::kMost);
}

int wanted_threads() {
  const char* text = getenv("IVLITE_NUM_THREADS");
  if (!text || !*text) return default_threads();
  char* end;
  const long n = strtol(text, &end, 10);
  if (*end != 0 || n < 1 || n > ThreadPool::kMost)
    throw std::invalid_argument(std::string("IVLITE_NUM_THREADS is '") + std::string(text).substr(0, 80) +
                                "'; it must be a number from 1 to " + std::to_string(ThreadPool::kMost));
  return (int)n;
}

}  // namespace ivlite
