// How kernels run on the host. A block's threads are fibers (fiber.h). Each runs until it waits: for its warp, when the last lane to
// arrive does the operation for all, or for the block. Warps run one after another, blocks in any order.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace ivlite::cuda {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

constexpr int kLanes = 32, kMostThreads = 1024;
constexpr size_t kMostShared = 227 << 10;  // bytes of a block on any card

// A fault of a kernel or a launch; what() names kernel, block and thread.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  std::string kernel;
  Dim3 grid;
  int threads;
  size_t shared_bytes;
  void (*body)(const void* arguments);
  const void* arguments;
};
extern size_t shared_limit;            // bytes that a block may have; to begin with, those of the cards with the least
void run(const Launch& launch);        // returns when all blocks are done; throws Fault
extern std::atomic<int64_t> launches;  // that were run

// Of the thread that runs.
int thread();
int threads();
Dim3 block();
Dim3 grid();
void* shared();
size_t shared_bytes();
[[noreturn]] void fail(const std::string& what);  // ends the launch with a Fault

void wait_for_block();
bool last_block(int32_t* counter, int count);

// An operation of a warp: called once, when all lanes that have not ended have come to it, with each lane's operands; `lanes` has
// a bit for each.
using Operation = void (*)(void* const operands[kLanes], uint32_t lanes);
void with_warp(Operation operation, void* operands);

// Operations, and their operands in a lane.
struct Shuffled {
  uint32_t value;
  int from;  // the lane whose value it becomes
};
void shuffle(void* const operands[kLanes], uint32_t lanes);
void any(void* const operands[kLanes], uint32_t lanes);        // int
void float_sum(void* const operands[kLanes], uint32_t lanes);  // float
void float_max(void* const operands[kLanes], uint32_t lanes);  // float
void int_sum(void* const operands[kLanes], uint32_t lanes);    // int
void nothing(void* const operands[kLanes], uint32_t lanes);
struct Matrices {
  uint32_t* r;
  const void* row;
};
void ldmatrix_x4(void* const operands[kLanes], uint32_t lanes);
void ldmatrix_x4_trans(void* const operands[kLanes], uint32_t lanes);
void ldmatrix_x2(void* const operands[kLanes], uint32_t lanes);
struct Fragments {
  void* d;
  const uint32_t *a, *b;
};
void mma_bf16(void* const operands[kLanes], uint32_t lanes);
void mma_f16(void* const operands[kLanes], uint32_t lanes);
void mma_s8(void* const operands[kLanes], uint32_t lanes);

// Copies that land when they are waited for.
void copy_later(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies(int but);

}  // namespace emulator
}  // namespace ivlite::cuda
