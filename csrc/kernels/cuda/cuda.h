// What the CUDA kernels offer: launchers on raw device memory, in plain C++. They return at once; the work is done on the stream.
//
// The .cu files are compiled by nvcc with device/intrinsics.h, and by tests for the host with an emulator's file of that name.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace ivlite::cuda {

using Stream = void*;  // a cudaStream_t; null is the default stream
using Status = int;    // a cudaError_t: 0 is success

// device/device.cu: the cards and their memory.
struct Card {
  char name[256];
  int major, minor;  // compute capability
  int64_t memory;    // bytes in all
  int multiprocessors;
  Status refused;   // 0: this build has kernels that the card runs; else why they cannot be started on it
  bool no_kernels;  // it has none for such a card: refused says no more
};
Status count_cards(int* count);
Status describe_card(Card* out, int card);
Status use_card(int card);            // in the calling thread
Status driver_version(int* version);  // 1000 major + 10 minor of the newest CUDA that the driver knows, 0 without a driver
const char* status_name(Status status);
const char* status_text(Status status);

// What tests need instead of a library of arrays. Copies wait for the work before them.
Status allocate(void** out, int64_t bytes);
Status release(void* memory);
Status copy_to_card(void* to, const void* from, int64_t bytes);
Status copy_from_card(void* to, const void* from, int64_t bytes);
Status synchronize();

// fill.cu: memory[i] = word, i < count
Status fill(uint32_t* memory, uint32_t word, int64_t count, Stream stream);

}  // namespace ivlite::cuda
