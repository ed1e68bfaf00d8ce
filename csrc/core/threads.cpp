#include "core/threads.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ivlite {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

// A region is one word, `state_`: its generation, whether it is open, and how many workers are inside. Workers enter an
// open region, spinning for one a while before they sleep, and the caller closes it when no piece is left: it waits for
// those inside only, so a worker that sleeps, or whose core serves another process, delays nobody.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads), shares_(new Share[(size_t)threads]) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> hold(sleep_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
  }

  int threads() const { return threads_; }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& fn) {
    fn_ = &fn;
    n_ = n;
    grain_ = grain;
    error_ = nullptr;
    deal();
    {
      std::lock_guard<std::mutex> hold(sleep_);
      state_.store((generation(state_.load()) + 1) * kGeneration | kOpen);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
    take_pieces(0, between_pieces);
    state_.fetch_and(~kOpen);
    for (int spins = 0; state_.load(std::memory_order_acquire) & kInside; spins++) {
      if (spins < kSpins)
        relax();
      else
        sched_yield();  // more threads than cores: let the others finish
    }
    if (error_) std::rethrow_exception(error_);
  }

 private:
  static constexpr int kSpins = 2000;
  static constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16, kGeneration = 1 << 17;

  static uint64_t generation(uint64_t state) { return state / kGeneration; }

  // What is left of a thread's share, in grains: the first in the low half of a word, the end in the high half. Its thread
  // takes from the front, in order, so that a weight is read as one stream; others, once they have no more, from the back.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };

  static uint64_t share(uint64_t first, uint64_t end) { return first | end << 32; }
  static uint64_t first_of(uint64_t share) { return share & 0xffffffff; }
  static uint64_t end_of(uint64_t share) { return share >> 32; }

  void deal() {
    grain_ = std::max(grain_, n_ >> 30);
    const uint64_t grains = (uint64_t)((n_ + grain_ - 1) / grain_);
    for (uint64_t i = 0; i < (uint64_t)threads_; i++) shares_[i].left.store(share(grains * i / threads_, grains * (i + 1) / threads_));
  }

  // The first third of what is left of a thread's own share: few pieces, yet short ones at the end, where a slow core would
  // keep the others waiting.
  bool take(int of, uint64_t& first, uint64_t& end) {
    uint64_t left = shares_[of].left.load();
    do {
      first = first_of(left);
      if (first >= end_of(left)) return false;
      end = first + (end_of(left) - first + 2) / 3;
    } while (!shares_[of].left.compare_exchange_weak(left, share(end, end_of(left))));
    return true;
  }

  // The second half of what is left of another's share becomes this thread's own.
  bool steal(int thread) {
    for (int i = 1; i < threads_; i++) {
      std::atomic<uint64_t>& from = shares_[(thread + i) % threads_].left;
      uint64_t left = from.load();
      while (first_of(left) < end_of(left)) {
        const uint64_t middle = first_of(left) + (end_of(left) - first_of(left)) / 2;
        if (!from.compare_exchange_weak(left, share(first_of(left), middle))) continue;
        shares_[thread].left.store(share(middle, end_of(left)));
        return true;
      }
    }
    return false;
  }

  void take_pieces(int thread, void (*poll)() = nullptr) {
    try {
      do
        for (uint64_t first, end; take(thread, first, end);) {
          (*fn_)((int64_t)first* grain_, std::min((int64_t)end * grain_, n_));
          if (poll) poll();
        }
      while (steal(thread));
    } catch (...) {
      for (int i = 0; i < threads_; i++) shares_[i].left.store(0);
      std::lock_guard<std::mutex> hold(error_lock_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void work(int thread) {
    inside() = true;
    for (uint64_t seen = 0; enter(seen);) {
      take_pieces(thread);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  bool news(uint64_t state, uint64_t seen) const { return (state & kOpen) && generation(state) != seen; }

  // Waits for a region later than `seen` and enters it; false at the end of the pool.
  bool enter(uint64_t& seen) {
    for (int spins = 0; !stop_.load(std::memory_order_relaxed); spins++) {
      uint64_t state = state_.load(std::memory_order_acquire);
      if (news(state, seen)) {
        if (!state_.compare_exchange_weak(state, state + 1)) continue;
        seen = generation(state);
        return true;
      }
      if (spins < kSpins * 10) {
        relax();
        if (spins > kSpins && spins % 64 == 0) sched_yield();
        continue;
      }
      std::unique_lock<std::mutex> hold(sleep_);
      sleepers_.fetch_add(1);
      wake_.wait(hold, [&] { return stop_ || news(state_.load(), seen); });
      sleepers_.fetch_sub(1);
    }
    return false;
  }

 public:
  static bool& inside() {
    thread_local bool value = false;
    return value;
  }

 private:
  int threads_;
  std::unique_ptr<Share[]> shares_;
  std::vector<std::thread> workers_;
  std::mutex sleep_, error_lock_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int64_t, int64_t)>* fn_ = nullptr;
  int64_t n_ = 0, grain_ = 1;
  std::exception_ptr error_;
  alignas(64) std::atomic<uint64_t> state_{0};
};

std::string first_line(const char* path) {
  char line[256] = "";
  if (FILE* f = fopen(path, "r")) {
    if (!fgets(line, sizeof line, f)) line[0] = 0;
    fclose(f);
  }
  return line;
}

// Processors that the group in this directory is paid for, or infinity.
double group_quota(const std::string& group) {
  double quota = -1, period = -1;
  const std::string both = first_line((group + "/cpu.max").c_str());
  if (both.empty()) {  // version 1
    quota = atof(first_line((group + "/cpu.cfs_quota_us").c_str()).c_str());
    period = atof(first_line((group + "/cpu.cfs_period_us").c_str()).c_str());
  } else if (sscanf(both.c_str(), "%lf %lf", &quota, &period) < 2) {
    quota = -1;  // "max"
  }
  return quota > 0 && period > 0 ? quota / period : INFINITY;
}

// The least of a group's quota and those above it. In a container the mount begins at its own group, whatever the path says.
double path_quota(const std::string& mount, std::string path) {
  double least = group_quota(mount);
  if (path.compare(0, 1, "/") != 0) return least;
  for (; path.size() > 1; path.resize(path.find_last_of('/'))) least = std::min(least, group_quota(mount + path));
  return least;
}

int physical_cores() {
#ifdef __linux__
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::string> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      std::string at = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      std::string siblings = first_line((at + "thread_siblings_list").c_str());
      cores.insert(siblings.empty() ? std::to_string(cpu) : siblings);
    }
    if (!cores.empty()) return (int)cores.size();
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

std::mutex pool_lock;
Pool* pool = nullptr;  // never destroyed at exit: workers may sleep while the process ends

int wanted_threads() {
  if (const char* text = getenv("IVLITE_NUM_THREADS")) {
    char* end;
    long n = strtol(text, &end, 10);
    if (*text == 0 || *end != 0 || n < 1 || n > 1024)
      throw std::invalid_argument(std::string("IVLITE_NUM_THREADS is '") + text + "'; it must be a number from 1 to 1024");
    return (int)n;
  }
  return default_threads();
}

}  // namespace

void (*between_pieces)() = nullptr;

double cpu_quota(const std::string& listing, const std::string& mount) {
  double least = std::min(group_quota(mount), group_quota(mount + "/cpu"));
  std::ifstream lines(listing);
  for (std::string line; std::getline(lines, line);) {  // number:controllers:path; version 2 names no controllers
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first, second - first + 1), path = line.substr(second + 1);
    if (controllers == "::") least = std::min(least, path_quota(mount, path));
    if ((',' + controllers.substr(1, controllers.size() - 2) + ',').find(",cpu,") != std::string::npos)
      least = std::min(least, path_quota(mount + "/cpu", path));
  }
  return least;
}

int default_threads() { return (int)std::max(1.0, std::min((double)physical_cores(), std::ceil(cpu_quota()))); }

int num_threads() {
  if (Pool::inside()) return pool->threads();  // the lock is held by who runs the region
  std::lock_guard<std::mutex> hold(pool_lock);
  if (!pool) pool = new Pool(wanted_threads());
  return pool->threads();
}

void set_num_threads(int n) {
  if (n < 1 || n > 1024) throw std::invalid_argument("the number of threads must be from 1 to 1024, not " + std::to_string(n));
  std::lock_guard<std::mutex> hold(pool_lock);
  if (pool && pool->threads() == n) return;
  delete pool;
  pool = new Pool(n);
}

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& fn) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (Pool::inside() || n <= grain) return fn(0, n);
  std::lock_guard<std::mutex> hold(pool_lock);
  if (!pool) pool = new Pool(wanted_threads());
  if (pool->threads() == 1) return fn(0, n);
  Pool::inside() = true;
  try {
    pool->run(n, grain, fn);
  } catch (...) {
    Pool::inside() = false;
    throw;
  }
  Pool::inside() = false;
}

}  // namespace ivlite
