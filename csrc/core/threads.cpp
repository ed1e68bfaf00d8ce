#include "core/threads.h"

#include <algorithm>
#include <memory>
#include <mutex>

#include "core/cores.h"
#include "core/pool.h"
#include "core/stop.h"

namespace ivlite {
namespace {

using Shared = std::shared_ptr<ThreadPool>;

// The process's own pool. Never destroyed at exit: a daemon thread may be in a region while the process ends. A pool that is
// replaced goes when the last region on it ends. Guarded by pools_lock().
Shared& own_pool() {
  static Shared& pool = *new Shared;
  return pool;
}

Shared process_pool() {
  {
    std::lock_guard<std::mutex> hold(pools_lock());
    if (own_pool()) return own_pool();
  }
  const Shared made = std::make_shared<ThreadPool>(wanted_threads());  // of two threads at once, one's is taken
  std::lock_guard<std::mutex> hold(pools_lock());
  if (!own_pool()) own_pool() = made;
  return own_pool();
}

// Its threads, or 0 while there is none.
int process_pool_threads() {
  std::lock_guard<std::mutex> hold(pools_lock());
  return own_pool() ? own_pool()->threads() : 0;
}

}  // namespace

int num_threads() {
  const ThreadPool* pool = execution().pool;
  return pool ? pool->threads() : process_pool()->threads();
}

void set_num_threads(int n) {
  if (n == process_pool_threads()) return;
  Shared pool = std::make_shared<ThreadPool>(n);
  std::lock_guard<std::mutex> hold(pools_lock());
  own_pool().swap(pool);
}  // the pool before goes after the lock does

void parallel_for(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (n <= 0) return;
  check_stop();
  grain = std::max<int64_t>(grain, 1);
  const Execution now = execution();
  if (now.inside || n <= grain) {
    const Inside inside;
    return body(0, n);
  }
  if (now.pool) return now.pool->run(n, grain, body);
  process_pool()->run(n, grain, body);
}

}  // namespace ivlite
