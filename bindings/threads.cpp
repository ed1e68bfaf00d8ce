// Thread pools, the number of threads, and stopping what they do.
#include "core/cgroup.h"
#include "core/cores.h"
#include "core/memory.h"
#include "core/stop.h"
#include "core/threads.h"

#include "bindings.h"

namespace ivlite {
namespace {

// The end of a pool is the end of a model: what its kernels kept for the thread that ran them goes, too.
struct EndPool {
  void operator()(ThreadPool* pool) const {
    const Released released;
    delete pool;
    free_thread_scratch();
  }
};
using OwnedPool = std::unique_ptr<ThreadPool, EndPool>;

OwnedPool make_pool(std::optional<int64_t> threads) {
  const Released released;
  const int64_t n = threads && *threads != 0 ? *threads : wanted_threads();
  return OwnedPool(new ThreadPool((int)std::min<int64_t>(std::max<int64_t>(n, 0), ThreadPool::kMost + 1)));
}

// The flag outlives the work that looks at it, whatever Python does with its own reference.
std::shared_ptr<StopFlag> use_stop(std::shared_ptr<StopFlag> flag) {
  thread_local std::shared_ptr<StopFlag> kept;
  current_stop() = flag.get();
  return std::exchange(kept, std::move(flag));
}

}  // namespace

void bind_threads(py::module_& m) {
  py::class_<ThreadPool, OwnedPool> pool(m, "ThreadPool", "Threads that run operations given them as `pool`; they end with it.");
  pool.def(py::init(&make_pool), py::arg("threads") = py::none(),
           "1 to 1024; None or 0: IVLITE_NUM_THREADS, or one per usable core. When the system refuses threads, those there are.");
  pool.def_property_readonly("threads", &ThreadPool::threads);

  py::class_<StopFlag, std::shared_ptr<StopFlag>> stop(m, "StopFlag", "Ends the kernels that look at it; never cleared.");
  stop.def(py::init<>());
  hold(stop, "set", &StopFlag::set);
  hold(stop, "after", &StopFlag::after, py::arg("seconds"), "Sets itself so many seconds from now; the earliest deadline counts.");
  hold(stop, "is_set", &StopFlag::is_set);
  hold(m, "use_stop", use_stop, py::arg("flag").none(true),
       "Kernels that this thread calls look at that flag, None for none, and raise Stopped; returns the flag before.");

  release(m, "num_threads", num_threads, "Threads of the process's own pool, which operations without a `pool` use.");
  release(m, "set_num_threads", set_num_threads, py::arg("n"));
  release(m, "wanted_threads", wanted_threads, "What IVLITE_NUM_THREADS says, or default_threads().");
  release(m, "default_threads", default_threads, "One per physical core that this process may use.");
  release(m, "cpu_quota", cpu_quota, py::arg("listing") = "/proc/self/cgroup", py::arg("mount") = "/sys/fs/cgroup",
          "Processors that the control groups of this process are paid for; infinity without a limit.");
}

}  // namespace ivlite
