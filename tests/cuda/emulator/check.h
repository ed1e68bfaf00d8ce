// What the emulator tells its checks: checked.cpp finds faults of kernels, traffic.cpp counts what their accesses cost. In the
// fast build fast.cpp is in their place and looks at nothing.
#pragma once
#include "emulator.h"

namespace ivlite::cuda::emulator {

int most_processors();  // that blocks may run on at once

void begin_launch(const Launch& launch);
void end_launch();
void begin_block(const Launch& launch, const void* shared);
void end_block();
void pass_barrier();                   // all threads of the block have come to a barrier
void arrive(const int32_t* counter);   // the block comes to a counter of blocks,
void acquire(const int32_t* counter);  // is the last of those that do, and sees what they did before
void pass_warp();                      // all lanes of the current thread's warp have come to one of the warp
void meet_warp(int warp);              // its lanes stand at one instruction

// The current thread, or a lane of its warp, accesses n bytes; `place` is where in the kernel's code.
enum class Access { read, write, atomic };
void check_access(const void* p, size_t n, Access access, const void* place);
void check_lane(int lane, const void* p, size_t n, Access access, const void* place);

// An asynchronous copy of 16 bytes begins, and has landed.
void begin_copy(const void* to, const void* from, bool valid, const void* place);
void end_copy(const void* to);

// Memory of the card that is emulated.
void register_memory(const void* memory, size_t bytes);
void forget_memory(const void* memory);

// What was counted since the last call, while `counting`, of each place in a kernel's code.
struct Traffic {
  std::string kernel;
  const void* place;
  const char* memory;  // "shared" or "global"
  const char* access;  // "read" or "write"
  int bytes;           // per lane
  int64_t requests;    // by a warp
  int64_t parts;       // shared: passes over the banks; global: sectors of 32 bytes
  int64_t needed;      // how few parts the same bytes could take
};
extern bool counting;
std::vector<Traffic> take_traffic();
// Reads of shared memory that no thread of the block has written, since the last call; where the first was.
struct Unwritten {
  int64_t reads;
  std::string first;
};
Unwritten take_unwritten();
std::string source_of(const void* place);  // file and line

// Of the emulator, for its checks.
bool running();  // whether this is a thread of a kernel
bool on_stack(const void* p);
const void* warp_place();

}  // namespace ivlite::cuda::emulator
