// A pool of threads: one per model, whose parallel regions it runs.
#pragma once
#include <stdint.h>

#include <atomic>
#include <functional>
#include <mutex>

namespace ivlite {

class Crew;

class ThreadPool {
 public:
  static constexpr int kMost = 1024;

  // 1 .. kMost threads counting the caller of a region; throws std::invalid_argument. When the system refuses threads, the pool
  // has those that could be started.
  explicit ThreadPool(int threads);
  ~ThreadPool();  // joins the threads; no region may be running
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // Runs body(begin, end) over [0, n) in chunks that are multiples of `grain` (but the last), on threads(). Regions that several
  // threads ask for take turns, in order. The calling thread's stop flag is looked at before each chunk: once it is set, no
  // further chunk begins and Stopped is thrown. The first exception of a body is thrown, and the pool keeps nothing of it.
  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  friend struct Forks;
  Crew& crew();

  std::atomic<int> threads_;
  std::atomic<Crew*> crew_;  // null in a forked child, which has none of its parent's threads, until the first region there
};

// Guards what lists pools. Held for moments only, never while a pool works, starts or ends, and whole in a forked child.
std::mutex& pools_lock();

// What parallel_for of the calling thread means: the pool it uses (null: the process's own) and whether it is within a region.
struct Execution {
  ThreadPool* pool = nullptr;
  bool inside = false;
};
Execution& execution();

// Marks the calling thread as within a region, while this lives: what it asks for now, it does itself.
class Inside {
 public:
  Inside() : before_(execution().inside) { execution().inside = true; }
  ~Inside() { execution().inside = before_; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  bool before_;
};

// Puts the calling thread's parallel regions on a pool, while this lives.
class UsePool {
 public:
  explicit UsePool(ThreadPool* pool) : before_(execution().pool) { execution().pool = pool; }
  ~UsePool() { execution().pool = before_; }
  UsePool(const UsePool&) = delete;
  UsePool& operator=(const UsePool&) = delete;

 private:
  ThreadPool* before_;
};

}  // namespace ivlite
