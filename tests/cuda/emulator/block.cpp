// Runs the blocks of a launch: one Worker per processor, each with the fibers, the stacks and the shared memory of one block.
#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "check.h"
#include "emulator.h"
#include "fiber.h"

namespace ivlite::cuda::emulator {

namespace {

constexpr size_t kStack = 64 << 10, kGuard = 4 << 10;

struct Copy {
  char* to;
  const char* from;
  bool valid;
};

struct Fiber {
  void* place;
  void* operands;               // of the operation it waits for
  std::vector<Copy> copies;     // begun, not landed
  std::vector<size_t> commits;  // how many copies each commit that has not landed ends with
};

struct Warp {
  uint32_t alive, runnable, waiting;  // lanes; those neither runnable nor waiting for the warp are at the block's barrier
  Operation operation;                // that waiting lanes wait for
};

class Worker {
 public:
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void run(const Launch& launch, Dim3 block);

  const Launch* launch = nullptr;
  Dim3 block;
  int current = -1;  // the thread that runs
  char* shared;

  void wait_for_block();
  bool last_block(int32_t* counter, int count);
  void with_warp(Operation operation, void* operands);
  [[noreturn]] void fail(const std::string& what);
  Fiber& fiber() { return fibers_[current]; }
  bool on_stack(const void* p) const {
    const char* stack = stacks_ + (size_t)current * kStack;
    return p >= stack && p < stack + kStack;
  }
  const void* place = nullptr;  // where the operation of a warp was called

 private:
  static void entry();
  void finish();
  void perform(Warp& warp, Operation operation, int first);
  void leave();
  void schedule();
  std::string stuck() const;
  std::string where(int thread) const;

  char* stacks_;
  void* scheduler_ = nullptr;
  void* nowhere_ = nullptr;
  std::string fault_;
  int ended_ = 0, at_barrier_ = 0;
  bool last_ = false;  // see last_block
  Warp warps_[kMostThreads / kLanes];
  Fiber fibers_[kMostThreads];
};

// Found without a call: the module is loaded once, and needs little of such memory.
__attribute__((tls_model("initial-exec"))) __thread Worker* worker = nullptr;

char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return (char*)memory;
}

Worker::Worker() : shared(map_memory(kMostShared)), stacks_(map_memory(kMostThreads * kStack)) {
  for (int i = 0; i < kMostThreads; i++) mprotect(stacks_ + i * kStack, kGuard, PROT_NONE);
}

Worker::~Worker() {
  munmap(stacks_, kMostThreads * kStack);
  munmap(shared, kMostShared);
}

void Worker::entry() {
  worker->launch->body(worker->launch->arguments);
  worker->finish();
}

void Worker::run(const Launch& to_run, Dim3 at) {
  launch = &to_run, block = at;
  ended_ = at_barrier_ = 0;
  fault_.clear();
  memset(shared, 0xff, launch->shared_bytes);  // NaN, and -1
  begin_block(*launch, shared);
  for (int w = 0; w < launch->threads / kLanes; w++) warps_[w] = {~0u, ~0u, 0, nullptr};
  for (int i = 0; i < launch->threads; i++) {
    // stacks end at different lines: at the same ones they would share a few lines of the cache
    fibers_[i].place = new_fiber(stacks_ + (i + 1) * kStack - 64 * (i % 61), entry);
    fibers_[i].copies.clear();
    fibers_[i].commits.clear();
  }
  worker = this;
  schedule();
  if (fault_.empty()) end_block();
  worker = nullptr;
  current = -1;
  if (!fault_.empty()) throw Fault(fault_);
}

// Warp by warp, until all threads have ended.
void Worker::schedule() {
  while (fault_.empty() && ended_ < launch->threads) {
    bool ran = false;
    for (int w = 0; w < launch->threads / kLanes && fault_.empty(); w++) {
      if (!warps_[w].runnable) continue;
      ran = true;
      current = w * kLanes + __builtin_ctz(warps_[w].runnable);
      switch_fiber(&scheduler_, fibers_[current].place);
    }
    if (ran || !fault_.empty()) continue;
    if (at_barrier_ != launch->threads) {
      fault_ = where(-1) + stuck();
      return;
    }
    at_barrier_ = 0;
    pass_barrier();
    for (int w = 0; w < launch->threads / kLanes; w++) warps_[w].runnable = ~0u;
  }
}

// The current thread cannot go on: the next lane of its warp does, or the scheduler.
void Worker::leave() {
  Warp& warp = warps_[current / kLanes];
  const int lane = current % kLanes;
  void** from = &fibers_[current].place;
  if (!warp.runnable) return switch_fiber(from, scheduler_);
  const uint32_t later = warp.runnable & ~((2u << lane) - 1);
  current = current / kLanes * kLanes + __builtin_ctz(later ? later : warp.runnable);
  switch_fiber(from, fibers_[current].place);
}

void Worker::perform(Warp& warp, Operation operation, int first) {
  void* operands[kLanes];
  for (int i = 0; i < kLanes; i++) operands[i] = warp.alive >> i & 1 ? fibers_[first + i].operands : nullptr;
  meet_warp(first / kLanes);
  operation(operands, warp.alive);
  warp.runnable |= warp.waiting;
  warp.waiting = 0;
}

void Worker::with_warp(Operation operation, void* operands) {
  Warp& warp = warps_[current / kLanes];
  const uint32_t bit = 1u << current % kLanes;
  if (warp.waiting && warp.operation != operation) fail("lanes of its warp wait at another operation of the warp than it comes to");
  fibers_[current].operands = operands;
  warp.operation = operation;
  warp.waiting |= bit;
  if (warp.waiting == warp.alive) return perform(warp, operation, current / kLanes * kLanes);
  warp.runnable &= ~bit;
  leave();
}

void Worker::wait_for_block() {
  warps_[current / kLanes].runnable &= ~(1u << current % kLanes);
  at_barrier_++;
  leave();
}

bool Worker::last_block(int32_t* counter, int count) {
  wait_for_block();
  if (current == 0) {
    arrive(counter);
    last_ = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL) == count - 1;
    if (last_) *counter = 0, acquire(counter);
  }
  wait_for_block();
  return last_;
}

void Worker::finish() {
  Warp& warp = warps_[current / kLanes];
  const uint32_t bit = 1u << current % kLanes;
  warp.alive &= ~bit, warp.runnable &= ~bit;
  ended_++;
  if (warp.waiting && warp.waiting == warp.alive) perform(warp, warp.operation, current / kLanes * kLanes);
  leave();
}

void Worker::fail(const std::string& what) {
  fault_ = where(current) + what;
  switch_fiber(&nowhere_, scheduler_);
  __builtin_unreachable();
}

std::string Worker::where(int thread) const {
  const std::string at = std::to_string(block.x) + ", " + std::to_string(block.y) + ", " + std::to_string(block.z);
  return "kernel " + launch->kernel + ", block (" + at + "), " + (thread < 0 ? "" : "thread " + std::to_string(thread) + ": ");
}

// Why no thread can go on.
std::string Worker::stuck() const {
  int waiting = 0;
  for (int w = 0; w < launch->threads / kLanes; w++) waiting += __builtin_popcount(warps_[w].waiting);
  return std::to_string(at_barrier_) + " of " + std::to_string(launch->threads) + " threads wait at a barrier of the block, " +
         std::to_string(ended_) + " have ended, " + std::to_string(waiting) + " wait for lanes of their warp";
}

// Workers that no launch uses now.
std::mutex idle_mutex;
std::vector<std::unique_ptr<Worker>> idle;

std::unique_ptr<Worker> take_worker() {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  if (idle.empty()) return std::make_unique<Worker>();
  auto out = std::move(idle.back());
  idle.pop_back();
  return out;
}

void give_back(std::unique_ptr<Worker> worker) {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  idle.push_back(std::move(worker));
}

// What the text of a launch's arguments begins with.
std::string kernel_name(const std::string& words) {
  int depth = 0;
  for (size_t i = 0; i < words.size(); i++) {
    depth += words[i] == '<' || words[i] == '(';
    depth -= words[i] == '>' || words[i] == ')';
    if (words[i] == ',' && depth == 0) return words.substr(0, i);
  }
  return words;
}

void check_launch(const Launch& l) {
  const char* wrong = nullptr;
  if (l.threads <= 0 || l.threads > kMostThreads || l.threads % kLanes) wrong = "a block has 32 to 1024 threads, in whole warps";
  if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0) wrong = "the grid is empty";
  if (l.grid.x > 0x7fffffff || l.grid.y > 65535 || l.grid.z > 65535) wrong = "the grid is too large";
  if (l.shared_bytes > shared_limit) wrong = "a block may not have so much shared memory";
  if (wrong) throw Fault("kernel " + l.kernel + ": " + wrong);
}

}  // namespace

size_t shared_limit = 99 << 10;
std::atomic<int64_t> launches{0};

void run(const Launch& given) {
  Launch launch = given;
  launch.kernel = kernel_name(given.kernel);
  check_launch(launch);
  launches++;
  begin_launch(launch);
  const int64_t blocks = (int64_t)launch.grid.x * launch.grid.y * launch.grid.z;
  std::atomic<int64_t> next{0};
  std::mutex fault_mutex;
  std::string fault;
  const auto work = [&] {
    auto mine = take_worker();
    for (int64_t i; (i = next++) < blocks;) {
      try {
        mine->run(launch, {(unsigned)(i % launch.grid.x), (unsigned)(i / launch.grid.x % launch.grid.y),
                           (unsigned)(i / launch.grid.x / launch.grid.y)});
      } catch (const Fault& f) {
        const std::lock_guard<std::mutex> lock(fault_mutex);
        fault = f.what();
        next = blocks;
      }
    }
    give_back(std::move(mine));
  };
  std::vector<std::thread> others;
  // to start a thread takes as long as a small launch
  const int64_t processors = blocks * launch.threads < 4096 ? 1 : most_processors();
  for (int64_t i = 1; i < processors && i < blocks; i++) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  end_launch();
  if (!fault.empty()) throw Fault(fault);
}

bool running() { return worker; }
bool on_stack(const void* p) { return worker->on_stack(p); }
int thread() { return worker->current; }
int threads() { return worker->launch->threads; }
Dim3 block() { return worker->block; }
Dim3 grid() { return worker->launch->grid; }
void* shared() { return worker->shared; }
void wait_for_block() { worker->wait_for_block(); }
bool last_block(int32_t* counter, int count) { return worker->last_block(counter, count); }
void with_warp(Operation operation, void* operands) {
  worker->place = __builtin_return_address(0);
  worker->with_warp(operation, operands);
}
const void* warp_place() { return worker->place; }
void fail(const std::string& what) { worker->fail(what); }

void copy_later(void* to, const void* from, bool valid) {
  if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) fail("copy_async16 needs addresses that are multiples of 16");
  begin_copy(to, from, valid, __builtin_return_address(0));
  worker->fiber().copies.push_back({(char*)to, (const char*)from, valid});
}

void commit_copies() { worker->fiber().commits.push_back(worker->fiber().copies.size()); }

void wait_copies(int but) {
  Fiber& fiber = worker->fiber();
  if ((int)fiber.commits.size() <= but) return;
  const size_t landed = fiber.commits.size() - but, copies = fiber.commits[landed - 1];
  for (size_t i = 0; i < copies; i++) {
    const Copy& copy = fiber.copies[i];
    if (copy.valid)
      memcpy(copy.to, copy.from, 16);
    else
      memset(copy.to, 0, 16);
    end_copy(copy.to);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + (ptrdiff_t)copies);
  fiber.commits.erase(fiber.commits.begin(), fiber.commits.begin() + (ptrdiff_t)landed);
  for (size_t& end : fiber.commits) end -= copies;
}

}  // namespace ivlite::cuda::emulator

namespace ivlite::cuda {

int atomic_add(int* p, int v) {
  emulator::check_access(p, 4, emulator::Access::atomic, __builtin_return_address(0));
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

unsigned long long atomic_add(unsigned long long* p, unsigned long long v) {
  emulator::check_access(p, 8, emulator::Access::atomic, __builtin_return_address(0));
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

float atomic_add(float* p, float v) {
  emulator::check_access(p, 4, emulator::Access::atomic, __builtin_return_address(0));
  float before, after;
  __atomic_load(p, &before, __ATOMIC_RELAXED);
  do after = before + v;
  while (!__atomic_compare_exchange(p, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

}  // namespace ivlite::cuda
