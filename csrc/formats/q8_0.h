// q8_0: 32 weights in 34 bytes, an f16 scale d and 32 signed codes; weight = d * code.
// Encoding takes d = absmax / 127 and rounds halves away from zero.
#pragma once
#include <math.h>
#include <stdint.h>

#include "formats/f16.h"

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

inline void encode_q8_0(void* blocks, const float* x, int64_t n) {
  BlockQ8_0* b = (BlockQ8_0*)blocks;
  for (int64_t i = 0; i < n / 32; i++, x += 32) {
    float top = 0;
    for (int j = 0; j < 32; j++) top = fmaxf(top, fabsf(x[j]));
    float d = top / 127, inverse = d > 0 ? 1 / d : 0;
    b[i].d = f32_to_f16(d);
    for (int j = 0; j < 32; j++) b[i].code[j] = (int8_t)roundf(x[j] * inverse);
  }
}

}  // namespace
}  // namespace ivlite
