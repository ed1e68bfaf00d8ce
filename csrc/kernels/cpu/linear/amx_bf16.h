// The GEMM path of q8_0 on AMX: panels are dequantized to bf16 once per block of tokens and multiplied on tiles. Code times
// scale keeps 8 bits of mantissa, as do the activations: closer to float than int8 products, for which the weights would have to
// be requantized to one scale per 128 columns.
#pragma once
#include "kernels/cpu/linear/int8_avx512.h"
#include "kernels/cpu/vec/amx_tile.h"

namespace ivlite {
namespace {

constexpr int64_t kBf16Panels = 16, kBf16Groups = 8;  // unpacked together: 128 KB
constexpr int64_t kBf16Tokens = 512;                  // sums of these and kBf16Panels stay in L2

// One group of a panel as bf16: lane r of row k is the pair of columns 2k and 2k + 1 of row r.
inline void unpack_bf16(uint16_t* to, const uint8_t* w) {
  const __m512 scale = CodesQ8_0::scale(CodesQ8_0::header(nullptr), w + 512, 0);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    const __m512i quad = load_quad(w + 64 * j);
    __m512 v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(quad, 24 - 8 * i), 24)), scale);
    _mm512_storeu_si512(to + 64 * j, pairs_bf16(v[0], v[1]));
    _mm512_storeu_si512(to + 64 * j + 32, pairs_bf16(v[2], v[3]));
  }
}

// Groups [g0, g0 + n) of a panel.
inline void unpack_bf16_groups(uint16_t* to, const uint8_t* panel, int64_t g0, int64_t n) {
  constexpr PanelLayout kLayout = panel_layout(Format::q8_0);
  for (int64_t g = g0; g < g0 + n; g++, to += kTileElements) {
    const uint8_t* w = panel + group_at(kLayout, g);
    for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + 2048 + i);
    unpack_bf16(to, w);
  }
}

// `panels` unpacked panels x token tiles [t0, t0 + tiles), n groups from g0 on; sums of (panel, tile) are 256 floats.
inline void multiply_block(float* sums, const uint16_t* unpacked, int64_t panels, const uint16_t* x, int64_t groups, int64_t t0,
                           int64_t tiles, int64_t g0, int64_t n) {
  const auto tile = [&](int64_t t) { return x + ((t0 + t) * groups + g0) * kTileElements; };
  const auto sum = [&](int64_t p, int64_t t) { return sums + (p * tiles + t) * 256; };
  for (int64_t t = 0; t < tiles; t += 2)
    for (int64_t p = 0; p < panels; p += 2) {
      const bool two = t + 1 < tiles, both = p + 1 < panels;
      const uint16_t* a[2] = {tile(t), tile(t + two)};
      const uint16_t* b[2] = {unpacked + p * n * kTileElements, unpacked + (p + both) * n * kTileElements};
      const TileSums c{{{sum(p, t), sum(p + both, t)}, {sum(p, t + two), sum(p + both, t + two)}}, kTileSide};
      const auto run = two ? (both ? tile_products<2, 2> : tile_products<2, 1>) : (both ? tile_products<1, 2> : tile_products<1, 1>);
      run(c, g0 == 0, a, b, n);
    }
}

void linear_bf16(const LinearArgs& a, int64_t p0, int64_t p1) {
  const int64_t groups = a.xq.cols / kGroup, stride = layout_bytes(panel_layout(Format::q8_0), groups);
  uint16_t* unpacked = (uint16_t*)a.scratch;
  float* sums = (float*)(unpacked + kBf16Panels * kBf16Groups * kTileElements);
  UseTiles tiles;
  for (int64_t t = 0; t < a.tokens; t += kBf16Tokens)
    for (int64_t p = p0; p < p1; p += kBf16Panels) {
      const int64_t tokens = a.tokens - t < kBf16Tokens ? a.tokens - t : kBf16Tokens, count = (tokens + kTileSide - 1) / kTileSide;
      const int64_t panels = p1 - p < kBf16Panels ? p1 - p : kBf16Panels;
      for (int64_t g = 0; g < groups; g += kBf16Groups) {
        const int64_t n = groups - g < kBf16Groups ? groups - g : kBf16Groups;
        for (int64_t i = 0; i < panels; i++)
          unpack_bf16_groups(unpacked + i * n * kTileElements, (const uint8_t*)a.panels + (p + i) * stride, g, n);
        multiply_block(sums, unpacked, panels, a.gemm_x, groups, t / kTileSide, count, g, n);
      }
      for (int64_t i = 0; i < tokens; i++)
        for (int64_t k = 0; k < panels; k++)
          store_rows(a, t + i, (p + k) * kPanel, vec::load(sums + (k * count * kTileSide + i) * kTileSide));
    }
}

// Tiles of 16 tokens x 32 columns in bf16, padded with zeros: (t, k) goes to element
// ((t / 16) groups + k / 32) 512 + (t % 16) 32 + k % 32.
void round_tiles(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t groups = (cols + kGroup - 1) / kGroup, padded = (p.t1 + kTileSide - 1) / kTileSide * kTileSide;
  for (int64_t t = p.t0; t < padded; t++)
    for (int64_t g = p.c0 / kGroup; g * kGroup < p.c1; g++) {
      uint16_t* to = out + (t / kTileSide * groups + g) * kTileElements + t % kTileSide * kGroup;
      for (int i = 0; i < kGroup; i += vec::kLanes) {
        const int64_t k = g * kGroup + i, left = t < tokens ? p.c1 - k : 0;
        const int n = left < 0 ? 0 : left < vec::kLanes ? (int)left : vec::kLanes;
        vec::store_bf16(to + i, n ? vec::load_n(p.x + t * p.ldx + k - p.c0, n) : vec::zero());
      }
    }
}

inline void init_amx_bf16(KernelTable& t) {
  t.linear_gemm[(int)Format::q8_0] = linear_bf16;
  t.quantize_gemm[(int)Format::q8_0] = round_tiles;
  t.gemm_is_finer[(int)Format::q8_0] = true;
}

}  // namespace
}  // namespace ivlite
