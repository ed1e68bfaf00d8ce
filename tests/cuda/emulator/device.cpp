// The card that is emulated: its memory is the host's.
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels/cuda/cuda.h"

namespace ivlite::cuda {

namespace {
constexpr Status kOutOfMemory = 2, kNoCard = 100;
}

Status count_cards(int* count) {
  *count = 1;
  return 0;
}

Status describe_card(Card* out, int card) {
  if (card != 0) return kNoCard;
  *out = {"emulated card", 8, 9, (int64_t)24 << 30, 128, 0, false};
  return 0;
}

Status use_card(int card) { return card == 0 ? 0 : kNoCard; }

Status driver_version(int* version) {
  *version = 13000;
  return 0;
}

const char* status_name(Status status) { return status == kOutOfMemory ? "cudaErrorMemoryAllocation" : "cudaErrorNoDevice"; }
const char* status_text(Status status) { return status == kOutOfMemory ? "out of memory" : "no CUDA-capable device is detected"; }

Status allocate(void** out, int64_t bytes) {
  *out = aligned_alloc(256, ((size_t)bytes + 255) / 256 * 256);
  if (!*out) return kOutOfMemory;
  emulator::register_memory(*out, (size_t)bytes);
  return 0;
}

Status release(void* memory) {
  emulator::forget_memory(memory);
  free(memory);
  return 0;
}

Status copy_to_card(void* to, const void* from, int64_t bytes) {
  memcpy(to, from, (size_t)bytes);
  return 0;
}
Status copy_from_card(void* to, const void* from, int64_t bytes) { return copy_to_card(to, from, bytes); }
Status synchronize() { return 0; }

}  // namespace ivlite::cuda
