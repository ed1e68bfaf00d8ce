// Thread pools under stress, for sanitizers to watch: callers at once, nested regions, stops, errors, pools that come and go,
// forks. `stress_threads [seconds]` runs each part that long and exits with 1 when a result is wrong.
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/memory.h"
#include "core/pool.h"
#include "core/stop.h"
#include "core/threads.h"

#if defined(__SANITIZE_THREAD__)
constexpr bool kForks = false;  // the sanitizer's own threads do not survive one
#else
constexpr bool kForks = true;
#endif

using namespace ivlite;

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int> failures{0};

void expect(bool ok, const char* what) {
  if (ok) return;
  failures++;
  fprintf(stderr, "stress_threads: %s\n", what);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Sums 0 .. n - 1 in parallel, every item once, through a nested region. A thread allocates only for its longest sum: AddressSanitizer's
// allocator leaves a lock held in a child that is forked meanwhile.
void sum(int64_t n, int64_t grain) {
  thread_local std::vector<char> mine;
  std::vector<char>& seen = mine;
  seen.assign((size_t)n, 0);
  std::atomic<int64_t> total{0};
  const auto body = [&](int64_t begin, int64_t end) {
    int64_t part = 0;
    const auto inner = [&](int64_t b, int64_t e) {
      for (int64_t i = begin + b; i < begin + e; i++) seen[(size_t)i]++, part += i;
    };
    parallel_for(end - begin, 1, std::cref(inner));
    ((char*)thread_scratch(Scratch::kernel, 4096))[0] = 1;
    total += part;
  };
  parallel_for(n, grain, std::cref(body));
  expect(total == n * (n - 1) / 2, "a sum is wrong");
  for (char times : seen) expect(times == 1, "an item ran another number of times than once");
}

// Runs work(caller, i) again and again in that many threads, for so long.
void callers(int count, double seconds, const std::function<void(int, int)>& work) {
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (int c = 0; c < count; c++)
    threads.emplace_back([&, c] {
      for (int i = 0; seconds_since(start) < seconds; i++) work(c, i);
    });
  for (std::thread& t : threads) t.join();
}

void on_one_pool(double seconds) {
  for (int n : {1, 2, 5}) {
    ThreadPool pool(n);
    callers(3, seconds / 3, [&](int c, int i) {
      const UsePool use(&pool);
      expect(num_threads() == n, "a pool has another number of threads");
      sum(1 + (i * 37 + c) % 500, 1 + i % 3);
    });
  }
}

void on_pools_that_come_and_go(double seconds) {
  callers(3, seconds, [](int c, int i) {
    ThreadPool pool(1 + (c + i) % 4);
    const UsePool use(&pool);
    sum(100, 1);
  });
}

void on_the_process_pool(double seconds) {
  callers(3, seconds, [](int c, int i) {
    if (c == 0) set_num_threads(1 + i % 4);
    sum(200, 1);
  });
}

void errors(double seconds) {
  ThreadPool pool(3);
  callers(2, seconds, [&](int, int i) {
    const UsePool use(&pool);
    bool thrown = false;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t end) {
        if (begin <= i % 100 && i % 100 < end) throw std::runtime_error("one");
      });
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    expect(thrown, "an error is lost");
    sum(50, 1);
  });
}

void stops(double seconds) {
  ThreadPool pool(2);
  callers(2, seconds, [&](int, int i) {
    const UsePool use(&pool);
    StopFlag flag;
    const StopFlag* before = current_stop();
    current_stop() = &flag;
    std::thread setter;
    if (i % 2)
      flag.after(0.002);
    else
      setter = std::thread([&] { flag.set(); });
    bool stopped = false;
    try {
      for (;;)
        parallel_for(64, 1, [](int64_t, int64_t) {
          const auto start = Clock::now();
          while (seconds_since(start) < 50e-6) check_stop();
        });
    } catch (const Stopped&) {
      stopped = true;
    }
    current_stop() = before;
    if (setter.joinable()) setter.join();
    expect(stopped, "a stop is lost");
    sum(50, 1);
  });
}

// Children forked while other threads are in regions, start and end pools.
void forks(double seconds) {
  ThreadPool shared(3);
  callers(3, seconds, [&](int c, int i) {
    const UsePool use(&shared);
    if (c > 0 || i % 20 != 19) return sum(100, 1);
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // a child that hangs is a failure
      {
        const UsePool again(&shared);
        sum(100, 1);
        set_num_threads(2);
        const UsePool own(nullptr);
        sum(100, 1);
        ThreadPool other(4);
        other.run(10, 1, [](int64_t, int64_t) {});
      }
      _exit(failures ? 1 : 0);
    }
    int status = 0;
    expect(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child failed");
  });
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 1;
  const struct {
    const char* name;
    void (*part)(double);
  } parts[] = {{"one pool", on_one_pool},
               {"pools that come and go", on_pools_that_come_and_go},
               {"the process's pool", on_the_process_pool},
               {"errors", errors},
               {"stops", stops},
               {"forks", kForks ? forks : nullptr}};
  for (const auto& p : parts) {
    if (!p.part) continue;
    p.part(seconds);
    printf("%s: %s\n", p.name, failures ? "failed" : "right");
    fflush(stdout);
  }
  return failures ? 1 : 0;
}
