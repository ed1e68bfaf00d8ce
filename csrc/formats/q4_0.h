// q4_0: 32 weights in 18 bytes, an f16 scale d and 16 bytes of two 4-bit codes; weight = d * (code - 8).
// Byte j holds weight j in its low nibble and weight j + 16 in its high one. Encoding gives the weight of largest
// magnitude the code 0: d = that weight / -8. With importance the scale of least weighted error is searched.
#pragma once
#include "formats/search.h"

namespace ivlite {
namespace {

struct BlockQ4_0 {
  uint16_t d;
  uint8_t code[16];
};
static_assert(sizeof(BlockQ4_0) == 18, "q4_0 blocks are packed");

inline void decode_q4_0(float* y, const void* blocks, int64_t n) {
  const BlockQ4_0* b = (const BlockQ4_0*)blocks;
  for (int64_t i = 0; i < n / 32; i++) {
    float d = f16_to_f32(b[i].d);
    for (int j = 0; j < 16; j++) {
      y[32 * i + j] = d * ((b[i].code[j] & 15) - 8);
      y[32 * i + j + 16] = d * ((b[i].code[j] >> 4) - 8);
    }
  }
}

inline void encode_q4_0_plainly(BlockQ4_0* b, const float* x, int64_t n) {
  for (int64_t i = 0; i < n / 32; i++, x += 32) {
    const Row32 row = row32(x);
    int first = 0;
    while (first < 31 && fabsf(x[first]) != row.peak) first++;
    const float d = x[first] / -8, inverse = d != 0 ? 1 / d : 0;
    int32_t code[32];
    for (int j = 0; j < 4; j++) {
      const Lanes q = least(row.x[j] * inverse + 8.5f, 15.5f);
      const FourMask whole[2] = {__builtin_convertvector(q.a, FourMask), __builtin_convertvector(q.b, FourMask)};
      memcpy(code + 8 * j, whole, sizeof(whole));
    }
    b[i].d = f32_to_f16(d);
    for (int j = 0; j < 16; j++) b[i].code[j] = (uint8_t)(code[j] | code[j + 16] << 4);
  }
}

inline void encode_q4_0(void* blocks, const float* x, const float* importance, int64_t n) {
  BlockQ4_0* b = (BlockQ4_0*)blocks;
  if (!importance) return encode_q4_0_plainly(b, x, n);
  for (int64_t i = 0; i < n; i += 32 * kFits) {
    const int count = n - i < 32 * kFits ? (int)(n - i) / 32 : kFits;
    Groups<32> g;
    float w[32 * kFits];
    for (int k = 0; k < count; k++) costs(w + 32 * k, importance + i + 32 * k, 32);
    load(g, x + i, w, count);
    const Lanes scale = fit_scale(g, -8, 7, 0.25f);
    for (int k = 0; k < count; k++, b++) {
      b->d = f32_to_f16(scale[k]);
      const float d = f16_to_f32(b->d), inverse = d != 0 ? 1 / d : 0;
      for (int j = 0; j < 16; j++) {
        const float low = fminf(fmaxf(rintf(g.x[j][k] * inverse), -8), 7), high = fminf(fmaxf(rintf(g.x[j + 16][k] * inverse), -8), 7);
        b->code[j] = (uint8_t)(((int)low + 8) | ((int)high + 8) << 4);
      }
    }
  }
}

}  // namespace
}  // namespace ivlite
