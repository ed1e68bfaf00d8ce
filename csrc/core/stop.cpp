#include "core/stop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace ivlite {
namespace {

int64_t now() { return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

void StopFlag::after(double seconds) {
  if (std::isnan(seconds)) throw std::invalid_argument("the seconds until a stop are not a number");
  constexpr double kLongest = 1e9;  // thirty years: its nanoseconds can be added to any clock's
  const int64_t moment = now() + (int64_t)(std::min(std::max(seconds, 0.0), kLongest) * 1e9);
  for (int64_t before = deadline_.load(); moment < before && !deadline_.compare_exchange_weak(before, moment);) {
  }
}

bool StopFlag::is_set() const noexcept {
  if (set_.load(std::memory_order_relaxed)) return true;
  const int64_t deadline = deadline_.load(std::memory_order_relaxed);
  if (deadline == kNever || now() < deadline) return false;
  set_.store(true, std::memory_order_relaxed);
  return true;
}

const StopFlag*& current_stop() {
  thread_local const StopFlag* flag = nullptr;
  return flag;
}

bool stop_asked() {
  const StopFlag* flag = current_stop();
  return flag && flag->is_set();
}

void check_stop() {
  if (stop_asked()) throw Stopped();
}

}  // namespace ivlite
