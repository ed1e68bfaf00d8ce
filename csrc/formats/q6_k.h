// q6_k: 256 weights in 210 bytes, 16 groups of 16; weight = (d * scale) * (code - 32) with 6-bit codes and a signed 8-bit
// scale per group. In each half of 128 weights, weight 32 k + i keeps its low four bits in nibble k / 2 of byte
// 32 (k % 2) + i of `low`, its high two in bits 2 k of byte i of `high`; a half has 64 and 32 bytes of these.
#pragma once
#include "formats/search.h"

namespace ivlite {
namespace {

struct BlockQ6_K {
  uint8_t low[128];
  uint8_t high[64];
  int8_t scale[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210, "q6_k blocks are packed");

// 0..63, standing for -32..31.
inline int code_q6_k(const BlockQ6_K& b, int i) {
  const int half = i / 128, k = i / 32 % 4, j = i % 32;
  return (b.low[64 * half + 32 * (k % 2) + j] >> k / 2 * 4 & 15) | (b.high[32 * half + j] >> 2 * k & 3) << 4;
}

inline void decode_q6_k(float* y, const void* blocks, int64_t n) {
  const BlockQ6_K* b = (const BlockQ6_K*)blocks;
  for (int64_t i = 0; i < n / 256; i++, b++)
    for (int j = 0; j < 256; j++) *y++ = f16_to_f32(b->d) * (float)b->scale[j / 16] * (float)(code_q6_k(*b, j) - 32);
}

// Eight groups of a block under its d: the whole multiples nearest to the fitted scales that leave the least error.
inline Lanes settle_q6_k(const Groups<16>& g, const Lanes& start, float d, CodeSums& sums, Lanes& scale) {
  Lanes gain = -3e38f;
  for (float k = -1; k <= 1; k++) {
    const Lanes near = between(start + k, -128, 127), width = near * d;
    const CodeSums s = code_sums(g, ratio(1, width), 0, -32, 31);
    const Lanes now = width * (s.xq + s.xq - width * s.qq);
    const Mask better = gain < now;
    scale = pick(better, near, scale);
    sums = {pick(better, s.q, sums.q), pick(better, s.qq, sums.qq), pick(better, s.xq, sums.xq)};
    gain = most(gain, now);
  }
  return gain;
}

// Fits d and the 16 scales of a block; returns d.
inline float fit_q6_k(const Groups<16>* g, Lanes* best) {
  Lanes fit[2], scale[2];
  float top = 0, d, gain = -INFINITY, best_d = 0;
  for (int h = 0; h < 2; h++) {
    fit[h] = fit_scale(g[h], -32, 31, 0.7f);
    for (int k = 0; k < kFits; k++) top = fabsf(fit[h][k]) > fabsf(top) ? fit[h][k] : top;
  }
  d = half(top / -128);
  best[0] = best[1] = Lanes();
  for (int h = 0; h < 2; h++) scale[h] = d != 0 ? between(whole(fit[h] * (1 / d)), -128, 127) : Lanes();
  for (int r = 0; r < 3 && d != 0; r++) {
    CodeSums s[2];
    const float now = total(settle_q6_k(g[0], scale[0], d, s[0], scale[0]) + settle_q6_k(g[1], scale[1], d, s[1], scale[1]));
    if (now > gain) best[0] = scale[0], best[1] = scale[1], gain = now, best_d = d;
    const float qq = total(scale[0] * scale[0] * s[0].qq + scale[1] * scale[1] * s[1].qq);
    if (qq > 0) d = half(total(scale[0] * s[0].xq + scale[1] * s[1].xq) / qq);
  }
  return best_d;
}

// Codes of half h, eight groups, under their scales.
inline void store_q6_k(BlockQ6_K& b, int h, const Groups<16>& g, const Lanes& scale, float d) {
  const Lanes inverse = ratio(1, scale * d);
  for (int k = 0; k < kFits; k++) b.scale[8 * h + k] = (int8_t)scale[k];
  for (int j = 0; j < 16; j++) {
    const Lanes q = between(whole(g.x[j] * inverse), -32, 31);
    for (int k = 0; k < kFits; k++) {
      const int code = (int)q[k] + 32, at = 16 * k + j;
      b.low[64 * h + at % 64] |= (uint8_t)((code & 15) << at / 64 * 4);
      b.high[32 * h + at % 32] |= (uint8_t)((code >> 4) << at / 32 * 2);
    }
  }
}

inline void encode_q6_k(void* blocks, const float* x, const float* importance, int64_t n) {
  BlockQ6_K* b = (BlockQ6_K*)blocks;
  for (int64_t i = 0; i < n; i += 256, b++) {
    float w[256];
    Groups<16> g[2];
    Lanes scale[2];
    costs(w, importance ? importance + i : nullptr, 256);
    for (int h = 0; h < 2; h++) load(g[h], x + i + 128 * h, w + 128 * h);
    const float d = fit_q6_k(g, scale);
    memset(b, 0, sizeof(*b));
    b->d = f32_to_f16(d);
    for (int h = 0; h < 2; h++) store_q6_k(*b, h, g[h], scale[h], d);
  }
}

}  // namespace
}  // namespace ivlite
