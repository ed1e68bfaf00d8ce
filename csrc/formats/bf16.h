// bfloat16: the upper half of a float32. Conversion rounds to nearest even.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ivlite {
namespace {

inline float bf16_to_f32(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint16_t f32_to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);  // NaN stays one
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void decode_bf16(float* y, const void* blocks, int64_t n) {
  const uint16_t* h = (const uint16_t*)blocks;
  for (int64_t i = 0; i < n; i++) y[i] = bf16_to_f32(h[i]);
}

inline void encode_bf16(void* blocks, const float* x, int64_t n) {
  uint16_t* h = (uint16_t*)blocks;
  for (int64_t i = 0; i < n; i++) h[i] = f32_to_bf16(x[i]);
}

}  // namespace
}  // namespace ivlite
