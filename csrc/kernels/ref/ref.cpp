#include "kernels/ref/ref.h"

#include <string.h>

namespace ivlite {
namespace {

uint64_t int8_peak(int64_t iterations) {
  volatile int32_t sum = 0;
  for (int64_t i = 0; i < iterations; i++) sum = sum + (int8_t)i * 3;
  return (uint64_t)iterations;
}

float read_stream(const void* memory, int64_t bytes) {
  uint64_t sum = 0, word;
  for (int64_t i = 0; i + 8 <= bytes; i += 8) {
    memcpy(&word, (const char*)memory + i, 8);
    sum += word;
  }
  return (float)sum;
}

}  // namespace

void init_ref(KernelTable& t) {
  init_ref_linear(t);
  init_ref_norm(t);
  init_ref_rope(t);
  init_ref_activation(t);
  init_ref_attention(t);
  init_ref_cache(t);
  init_ref_vision(t);
  init_ref_resize(t);
  t.int8_peak = int8_peak;
  t.read_streams[0] = t.read_streams[1] = read_stream;
}

}  // namespace ivlite
