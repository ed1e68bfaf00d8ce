// Probes of the peak rates of an instruction set.
#pragma once
#include <stdint.h>
#include <string.h>

#include "kernels/cpu/vec/vec.h"

namespace ivlite {
namespace {

// 12 independent sums: more than latency times throughput of any multiplier so far. Sums may wrap, nobody reads them.
template <int kMacs, vec::I (*step)(vec::I, vec::I, vec::I)>
uint64_t steps_peak(int64_t iterations) {
  constexpr int kSums = 12;
  vec::I sum[kSums], a = vec::set1_i8(3), b = vec::set1_i8(-2);
  vec::touch(a);
#pragma GCC unroll 12
  for (int i = 0; i < kSums; i++) sum[i] = vec::zero_i();
  const int64_t rounds = (iterations + kSums * kMacs - 1) / (kSums * kMacs);
  for (int64_t n = 0; n < rounds; n++)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; i++) {
      vec::touch(b);  // or one product would serve all sums
      sum[i] = step(sum[i], a, b);
      vec::touch(sum[i]);
    }
  return (uint64_t)rounds * kSums * kMacs;
}

// The sum of the 64-bit words, as in the plain kernel, read as kStreams streams side by side. Eight sums keep up with any memory.
// Whether one prefetched stream or several are faster depends on the processor.
template <int kStreams, int64_t kAhead>
float read_streams(const void* memory, int64_t bytes) {
  constexpr int kSums = 8, kBytes = sizeof(vec::I), kWords = kBytes / 8;
  const int64_t part = bytes / (kStreams * kSums * kBytes) * kSums * kBytes;
  const uint8_t* p = (const uint8_t*)memory;
  vec::I sum[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; i++) sum[i] = vec::zero_i();
  for (int64_t at = 0; at < part; at += kSums * kBytes)
    for (int s = 0; s < kStreams; s++) {
      const uint8_t* from = p + s * part + at;
      for (int i = 0; kAhead > 0 && i < kSums * kBytes; i += 64) __builtin_prefetch(from + kAhead + i);
#pragma GCC unroll 8
      for (int i = 0; i < kSums; i++) sum[i] = vec::add_i64(sum[i], vec::load_i(from + i * kBytes));
    }
  uint64_t total = 0, words[kWords];
#pragma GCC unroll 8
  for (int i = 1; i < kSums; i++) sum[0] = vec::add_i64(sum[0], sum[i]);
  vec::store_i(words, sum[0]);
  for (int i = 0; i < kWords; i++) total += words[i];
  p += kStreams * part;
  int64_t left = bytes - kStreams * part;
  for (uint64_t word; left >= 8; left -= 8, p += 8) {
    memcpy(&word, p, 8);
    total += word;
  }
  return (float)total;
}

}  // namespace
}  // namespace ivlite
