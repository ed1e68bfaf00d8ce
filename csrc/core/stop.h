// Ending long work early: a flag that anybody may set and that kernels look at.
#pragma once
#include <stdint.h>

#include <atomic>
#include <exception>
#include <limits>

namespace ivlite {

// Set once, never cleared. Every member may be called from any thread and from a signal handler: none waits for anything.
class StopFlag {
 public:
  void set() noexcept { set_.store(true, std::memory_order_relaxed); }
  // Sets itself so many seconds from now; of several deadlines the earliest counts. Throws std::invalid_argument for NaN.
  void after(double seconds);
  bool is_set() const noexcept;

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
  mutable std::atomic<bool> set_{false};
  std::atomic<int64_t> deadline_{kNever};  // nanoseconds of the steady clock
};

// Thrown where work ends because the flag it looks at is set.
class Stopped : public std::exception {
 public:
  const char* what() const noexcept override { return "the work was stopped"; }
};

// The flag that the calling thread's work looks at, or null. Whoever changes it keeps the flag alive and puts the one before back.
const StopFlag*& current_stop();

// Whether that flag is set, for bodies of parallel regions that run for more than some ten milliseconds; and the same, throwing Stopped.
bool stop_asked();
void check_stop();

}  // namespace ivlite
