// What the emulator tells its checks. checked.cpp finds faults of kernels; fast.cpp, in the other build, looks at nothing.
#pragma once
#include "emulator.h"

namespace ivlite::cuda::emulator {

int most_processors();  // that blocks may run on at once

void begin_launch(const Launch& launch);
void begin_block(const Launch& launch, void* shared);
void pass_barrier();  // all threads of the block have come to a barrier
void pass_warp();     // all lanes of the current thread's warp have

// The current thread, or another lane of its warp, accesses n bytes; `place` is where in the kernel's code.
enum class Access { read, write, atomic };
void check_access(const void* p, size_t n, Access access, const void* place);
void check_lane(int lane, const void* p, size_t n, Access access, const void* place);

// An asynchronous copy of 16 bytes begins, and has landed.
void begin_copy(const void* to, const void* from, bool valid, const void* place);
void end_copy(const void* to);

// Memory of the card that is emulated.
void register_memory(const void* memory, size_t bytes);
void forget_memory(const void* memory);

}  // namespace ivlite::cuda::emulator
