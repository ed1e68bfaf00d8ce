// q5_k: 256 weights in 176 bytes: q4_k with a fifth bit per code; bit g of byte i of `high` is that of weight i of group g.
#pragma once
#include "formats/q4_k.h"

namespace ivlite {
namespace {

struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t six[12];
  uint8_t high[32];
  uint8_t code[128];
};
static_assert(sizeof(BlockQ5_K) == 176, "q5_k blocks are packed");

inline void decode_q5_k(float* y, const void* blocks, int64_t n) {
  const BlockQ5_K* b = (const BlockQ5_K*)blocks;
  for (int64_t i = 0; i < n / 256; i++, b++)
    for (int g = 0; g < 8; g++, y += 32) {
      const float d = f16_to_f32(b->d) * (float)k_scale(b->six, g), low = f16_to_f32(b->dmin) * (float)k_low(b->six, g);
      for (int j = 0; j < 32; j++) y[j] = d * (float)((b->code[g / 2 * 32 + j] >> g % 2 * 4 & 15) | (b->high[j] >> g & 1) << 4) - low;
    }
}

inline void encode_q5_k(void* blocks, const float* x, const float* importance, int64_t n) {
  BlockQ5_K* b = (BlockQ5_K*)blocks;
  for (int64_t i = 0; i < n; i += 256, b++) {
    Groups32 g;
    const AffineBlock fit = fit_block(g, x + i, importance ? importance + i : nullptr, 31);
    uint8_t code[256];
    affine_codes(code, g, fit, 31);
    b->d = f32_to_f16(fit.d);
    b->dmin = f32_to_f16(fit.dmin);
    set_k_scales(b->six, fit.scale, fit.low);
    memset(b->high, 0, sizeof(b->high));
    for (int j = 0; j < 256; j++) b->high[j % 32] |= (uint8_t)((code[j] >> 4) << j / 32);
    for (int c = 0; c < 4; c++)
      for (int j = 0; j < 32; j++) b->code[32 * c + j] = (uint8_t)((code[64 * c + j] & 15) | (code[64 * c + 32 + j] & 15) << 4);
  }
}

}  // namespace
}  // namespace ivlite
