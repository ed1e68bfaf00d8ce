// Threads of a kernel as fibers: each has a stack, and gives the processor up where it waits for others.
#pragma once
#include <stddef.h>

namespace ivlite::cuda::emulator {

// Goes on at `to`; the caller's place is stored in *from, and is where a later switch to it goes on.
void switch_fiber(void** from, void* to);

// A place that calls entry(), which never returns, on an unused stack that ends at `top`.
void* new_fiber(char* top, void (*entry)());

}  // namespace ivlite::cuda::emulator
