#include "core/pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/stop.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ivlite {
namespace {

using Clock = std::chrono::steady_clock;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

// Signals go to the program's own threads, whose system calls they interrupt. Those of faults stay with who commits them.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&all, fault);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// One caller at a time, in the order of asking. No lock is held during a turn, and a waiting caller that is to stop leaves. Nothing is
// allocated: those who wait are a list of what they have on their stacks.
class Turns {
 public:
  void take(const StopFlag* stop) {
    std::unique_lock<std::mutex> hold(lock_);
    if (!taken_) {
      taken_ = true;
      return;
    }
    Waiter self;
    *place(nullptr) = &self;
    while (!self.called) {
      self.wake.wait_for(hold, std::chrono::milliseconds(20));
      if (self.called || !stop || !stop->is_set()) continue;
      *place(&self) = self.next;
      throw Stopped();
    }
  }

  void give() {
    std::lock_guard<std::mutex> hold(lock_);
    taken_ = first_ != nullptr;
    if (!taken_) return;
    first_->called = true;
    first_->wake.notify_one();
    first_ = first_->next;
  }

 private:
  struct Waiter {
    std::condition_variable wake;
    bool called = false;
    Waiter* next = nullptr;
  };

  // What points to a waiter, or with null the end of the list.
  Waiter** place(const Waiter* waiter) {
    Waiter** at = &first_;
    while (*at != waiter) at = &(*at)->next;
    return at;
  }

  std::mutex lock_;
  bool taken_ = false;
  Waiter* first_ = nullptr;
};

}  // namespace

// The threads of a pool. A parallel region is one word, `state_`: its generation, whether it is open, and how many workers are
// inside. Workers enter an open region, spinning for one a while before they sleep, and the caller closes it when no chunk is
// left: it waits for those inside only, so a worker that sleeps, or whose core serves another process, delays nobody.
class Crew {
 public:
  Crew(ThreadPool* pool, int threads) : pool_(pool), queues_(new Queue[(size_t)threads]) {
    workers_.reserve((size_t)threads);
    const SignalsBlocked blocked;
    try {
      while ((int)workers_.size() < threads - 1) workers_.emplace_back([this, i = (int)workers_.size() + 1] { work(i); });
    } catch (const std::system_error&) {  // pids.max, ulimit: those that were started work
    } catch (const std::bad_alloc&) {
    }
    threads_.store((int)workers_.size() + 1);
  }

  ~Crew() {
    {
      std::lock_guard<std::mutex> hold(sleep_);
      end_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : workers_) t.join();
  }

  int threads() const { return threads_.load(std::memory_order_relaxed); }

  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
    turns_.take(current_stop());
    body_ = &body;
    n_ = n;
    grain_ = std::max(grain, n >> 30);
    stop_ = current_stop();
    deal();
    open();
    {
      const Inside inside;
      take_chunks(0);
    }
    close();
    std::exception_ptr error = std::exchange(error_, nullptr);  // the pool keeps nothing of it
    turns_.give();
    if (error) std::rethrow_exception(std::move(error));
  }

 private:
  static constexpr int kSpins = 2000;
  static constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16, kGeneration = 1 << 17;
  // With a stop flag to look at, a chunk is cut to what takes so long; the first, of unknown speed, to this part of a queue.
  static constexpr std::chrono::nanoseconds kChunkTime = std::chrono::milliseconds(10);
  static constexpr uint64_t kFirstPart = 64, kAll = UINT32_MAX;

  static uint64_t generation(uint64_t state) { return state / kGeneration; }

  // What is left of a thread's queue, in grains: the first in the low half of a word, the end in the high half. Its thread takes
  // from the front, in order, so that a weight is read as one stream; others, once they have no more, steal from the back.
  struct alignas(64) Queue {
    std::atomic<uint64_t> left{0};
  };

  static uint64_t range(uint64_t first, uint64_t end) { return first | end << 32; }
  static uint64_t first_of(uint64_t range) { return range & 0xffffffff; }
  static uint64_t end_of(uint64_t range) { return range >> 32; }

  void open() {
    {
      std::lock_guard<std::mutex> hold(sleep_);
      state_.store((generation(state_.load()) + 1) * kGeneration | kOpen);
    }
    if (sleepers_.load() > 0) wake_.notify_all();
  }

  void close() {
    state_.fetch_and(~kOpen);
    for (int spins = 0; state_.load(std::memory_order_acquire) & kInside; spins++) {
      if (spins < kSpins)
        relax();
      else
        sched_yield();  // more threads than cores: let the others finish
    }
  }

  void deal() {
    const uint64_t grains = (uint64_t)((n_ + grain_ - 1) / grain_), threads = (uint64_t)this->threads();
    for (uint64_t i = 0; i < threads; i++) queues_[i].left.store(range(grains * i / threads, grains * (i + 1) / threads));
    grains_ = grains;
    most_ = !stop_ || grains <= threads ? kAll : 1 + grains / threads / kFirstPart;
  }

  // The first third of what is left of a thread's own queue, `most` grains at most: few chunks, yet short ones at the end, where
  // a slow core would keep the others waiting. A thread that is alone takes all.
  bool take(int of, uint64_t most, uint64_t& first, uint64_t& end) {
    const uint64_t parts = threads() == 1 ? 1 : 3;
    uint64_t left = queues_[of].left.load();
    do {
      first = first_of(left);
      if (first >= end_of(left)) return false;
      end = first + std::min(most, (end_of(left) - first + parts - 1) / parts);
    } while (!queues_[of].left.compare_exchange_weak(left, range(end, end_of(left))));
    return true;
  }

  // The second half of what is left of another's queue becomes this thread's own.
  bool steal(int thread) {
    const int threads = this->threads();
    for (int i = 1; i < threads; i++) {
      std::atomic<uint64_t>& from = queues_[(thread + i) % threads].left;
      uint64_t left = from.load();
      while (first_of(left) < end_of(left)) {
        const uint64_t middle = first_of(left) + (end_of(left) - first_of(left)) / 2;
        if (!from.compare_exchange_weak(left, range(first_of(left), middle))) continue;
        queues_[thread].left.store(range(middle, end_of(left)));
        return true;
      }
    }
    return false;
  }

  void take_chunks(int thread) {
    try {
      uint64_t most = most_;
      do
        for (uint64_t first, end; take(thread, most, first, end);) {
          if (stop_ && stop_->is_set()) throw Stopped();
          if (most == kAll)
            call(first, end);
          else
            most = timed(first, end);
        }
      while (steal(thread));
    } catch (...) {  // of a body, which never waits for an interpreter: nobody unwinds a thread in here
      for (int i = 0; i < threads(); i++) queues_[i].left.store(0);
      std::lock_guard<std::mutex> hold(error_lock_);
      if (!error_) error_ = std::current_exception();
    }
  }

  // Runs a chunk; returns how many grains take kChunkTime, or kAll where the whole region has no more: reading the clock costs
  // what a short chunk does.
  uint64_t timed(uint64_t first, uint64_t end) {
    const Clock::time_point start = Clock::now();
    call(first, end);
    const int64_t took = std::max<int64_t>(1, std::chrono::nanoseconds(Clock::now() - start).count());
    const double most = (double)(end - first) * (double)kChunkTime.count() / (double)took;
    return most >= (double)grains_ ? kAll : std::max<uint64_t>(1, (uint64_t)most);
  }

  void call(uint64_t first, uint64_t end) { (*body_)((int64_t)first * grain_, std::min((int64_t)end * grain_, n_)); }

  void work(int thread) {
    execution() = {pool_, true};
    for (uint64_t seen = 0; enter(seen);) {
      current_stop() = stop_;
      take_chunks(thread);
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  bool news(uint64_t state, uint64_t seen) const { return (state & kOpen) && generation(state) != seen; }

  // Waits for a region later than `seen` and enters it; false at the end of the pool.
  bool enter(uint64_t& seen) {
    for (int spins = 0; !end_.load(std::memory_order_relaxed); spins++) {
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
      wake_.wait(hold, [&] { return end_ || news(state_.load(), seen); });
      sleepers_.fetch_sub(1);
    }
    return false;
  }

  ThreadPool* pool_;
  std::atomic<int> threads_{1};
  std::unique_ptr<Queue[]> queues_;
  std::vector<std::thread> workers_;
  Turns turns_;
  std::mutex sleep_, error_lock_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> end_{false};
  const std::function<void(int64_t, int64_t)>* body_ = nullptr;
  int64_t n_ = 0, grain_ = 1;
  uint64_t grains_ = 0, most_ = kAll;  // of the region; of a thread's first chunk
  const StopFlag* stop_ = nullptr;
  std::exception_ptr error_;
  alignas(64) std::atomic<uint64_t> state_{0};
};

namespace {

// Every pool there is. Leaked, with its lock: a process may end while threads use them.
std::unordered_set<ThreadPool*>& pools() {
  static std::unordered_set<ThreadPool*>& all = *new std::unordered_set<ThreadPool*>;
  return all;
}

}  // namespace

std::mutex& pools_lock() {
  static std::mutex& lock = *new std::mutex;
  return lock;
}

// A forked child has the memory of its parent's pools, in whatever state, and none of their threads: it forgets them, and each
// pool starts threads of its own at its first region.
struct Forks {
  static void before() { pools_lock().lock(); }
  static void in_parent() { pools_lock().unlock(); }
  static void in_child() {
    new (&pools_lock()) std::mutex;
    for (ThreadPool* pool : pools()) pool->crew_.store(nullptr);
    execution() = {};
  }
  static void watch() {
    static const int once = pthread_atfork(before, in_parent, in_child);
    (void)once;
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), crew_(nullptr) {
  if (threads < 1 || threads > kMost)
    throw std::invalid_argument("the number of threads must be from 1 to " + std::to_string(kMost) + ", not " + std::to_string(threads));
  Forks::watch();
  auto crew = std::make_unique<Crew>(this, threads);
  threads_ = crew->threads();
  std::lock_guard<std::mutex> hold(pools_lock());
  pools().insert(this);
  crew_ = crew.release();
}

ThreadPool::~ThreadPool() {
  Crew* crew;
  {
    std::lock_guard<std::mutex> hold(pools_lock());
    pools().erase(this);
    crew = crew_.exchange(nullptr);
  }
  delete crew;
}

Crew& ThreadPool::crew() {
  if (Crew* there = crew_.load()) return *there;
  auto made = std::make_unique<Crew>(this, threads());
  Crew* none = nullptr;
  if (!crew_.compare_exchange_strong(none, made.get())) return *none;
  threads_ = made->threads();
  return *made.release();
}

void ThreadPool::run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) { crew().run(n, grain, body); }

Execution& execution() {
  thread_local Execution of_thread;
  return of_thread;
}

}  // namespace ivlite
