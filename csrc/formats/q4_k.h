// q4_k: 256 weights in 144 bytes, 8 groups of 32; weight = (d * scale) * code - (dmin * low) with 4-bit codes and two
// 6-bit numbers per group. Byte 32 c + i of `code` holds weight i of group 2 c in its low nibble and of group 2 c + 1 in
// its high one. Groups 0..3 keep scale and low in the low 6 bits of bytes g and 4 + g of `six`; groups 4..7 keep four
// bits of each in byte 4 + g (scale in the low nibble), the other two on top of bytes g - 4 and g.
#pragma once
#include "formats/search_affine.h"

namespace ivlite {
namespace {

struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t six[12];
  uint8_t code[128];
};
static_assert(sizeof(BlockQ4_K) == 144, "q4_k blocks are packed");

inline int k_scale(const uint8_t* six, int g) { return g < 4 ? six[g] & 63 : (six[g + 4] & 15) | (six[g - 4] >> 6) << 4; }
inline int k_low(const uint8_t* six, int g) { return g < 4 ? six[g + 4] & 63 : six[g + 4] >> 4 | (six[g] >> 6) << 4; }

inline void set_k_scales(uint8_t* six, const Lanes& scale, const Lanes& low) {
  for (int g = 0; g < 4; g++) {
    const int s = (int)scale[g + 4], m = (int)low[g + 4];
    six[g] = (uint8_t)((int)scale[g] | (s >> 4) << 6);
    six[g + 4] = (uint8_t)((int)low[g] | (m >> 4) << 6);
    six[g + 8] = (uint8_t)((s & 15) | (m & 15) << 4);
  }
}

inline void decode_q4_k(float* y, const void* blocks, int64_t n) {
  const BlockQ4_K* b = (const BlockQ4_K*)blocks;
  for (int64_t i = 0; i < n / 256; i++, b++)
    for (int g = 0; g < 8; g++, y += 32) {
      const float d = f16_to_f32(b->d) * (float)k_scale(b->six, g), low = f16_to_f32(b->dmin) * (float)k_low(b->six, g);
      for (int j = 0; j < 32; j++) y[j] = d * (float)(b->code[g / 2 * 32 + j] >> g % 2 * 4 & 15) - low;
    }
}

inline void encode_q4_k(void* blocks, const float* x, const float* importance, int64_t n) {
  BlockQ4_K* b = (BlockQ4_K*)blocks;
  for (int64_t i = 0; i < n; i += 256, b++) {
    Groups32 g;
    const AffineBlock fit = fit_block(g, x + i, importance ? importance + i : nullptr, 15);
    uint8_t code[256];
    affine_codes(code, g, fit, 15);
    b->d = f32_to_f16(fit.d);
    b->dmin = f32_to_f16(fit.dmin);
    set_k_scales(b->six, fit.scale, fit.low);
    for (int c = 0; c < 4; c++)
      for (int j = 0; j < 32; j++) b->code[32 * c + j] = (uint8_t)(code[64 * c + j] | code[64 * c + 32 + j] << 4);
  }
}

}  // namespace
}  // namespace ivlite
