// q8_0: 32 weights in 34 bytes, an f16 scale d and 32 signed codes; weight = d * code.
// Encoding takes d = absmax / 127 and rounds halves away from zero.
#pragma once
#include "formats/f16.h"
#include "formats/lanes.h"

namespace ivlite {
namespace {

struct BlockQ8_0 {
  uint16_t d;
  int8_t code[32];
};
static_assert(sizeof(BlockQ8_0) == 34, "q8_0 blocks are packed");

inline void decode_q8_0(float* y, const void* blocks, int64_t n) {
  const BlockQ8_0* b = (const BlockQ8_0*)blocks;
  for (int64_t i = 0; i < n / 32; i++) {
    float d = f16_to_f32(b[i].d);
    for (int j = 0; j < 32; j++) y[32 * i + j] = d * b[i].code[j];
  }
}

// To the nearest whole number, halves away from zero; |x| < 2^31.
inline FourMask rounded(Four x) {
  const FourMask whole = __builtin_convertvector(x, FourMask);
  const Four rest = x - __builtin_convertvector(whole, Four);
  return whole - (rest >= 0.5f) + (rest <= -0.5f);  // a true comparison is -1
}

inline void encode_q8_0(void* blocks, const float* x, int64_t n) {
  BlockQ8_0* b = (BlockQ8_0*)blocks;
  for (int64_t i = 0; i < n / 32; i++, x += 32) {
    const Row32 row = row32(x);
    const float d = row.peak / 127, inverse = d > 0 ? 1 / d : 0;
    int32_t code[32];
    for (int j = 0; j < 4; j++) {
      const FourMask q[2] = {rounded(row.x[j].a * inverse), rounded(row.x[j].b * inverse)};
      memcpy(code + 8 * j, q, sizeof(q));
    }
    b[i].d = f32_to_f16(d);
    for (int j = 0; j < 32; j++) b[i].code[j] = (int8_t)code[j];
  }
}

}  // namespace
}  // namespace ivlite
