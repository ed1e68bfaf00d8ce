// Matrix tiles: eight registers of 16 rows of 64 bytes. A product adds to a tile of 16 x 16 floats: rows of `a` are 32 bf16, and
// row k of `b` holds the pairs of elements (2k, n) and (2k + 1, n). Or to a tile of 16 x 16 int32: rows of 64 int8, quads in `b`.
#pragma once
#include <stdint.h>

#include "kernels/cpu/vec/avx512.h"

namespace ivlite {
namespace {

constexpr int64_t kTileElements = 512;  // bf16 of an operand
constexpr int kTileSide = 16;           // rows of a tile, and floats of a row of sums

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// A constant in memory: GCC's intrinsic declares only its first eight bytes as read.
const volatile TileConfig kWholeTiles{};

// Tiles may be used while it lives. Their state is released at the end: context switches of a thread that holds it are slower.
struct UseTiles {
  UseTiles() { _tile_loadconfig((const void*)&kWholeTiles); }
  ~UseTiles() { _tile_release(); }
};

// The accumulators of tiles 0..3: sums of (a0 b0, a0 b1, a1 b0, a1 b1), each 16 rows of `stride` floats.
struct TileSums {
  float* at[2][2];
  int64_t stride;
};

// kA x kB tiles of sums += n steps of products; the steps of operand i follow one another at a[i].
template <int kA, int kB>
inline void tile_products(const TileSums& c, bool fresh, const uint16_t* const* a, const uint16_t* const* b, int64_t n) {
  const size_t row = (size_t)c.stride * 4;
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c.at[0][0], row);
    if (kB > 1) _tile_loadd(1, c.at[0][1], row);
    if (kA > 1) _tile_loadd(2, c.at[1][0], row);
    if (kA > 1 && kB > 1) _tile_loadd(3, c.at[1][1], row);
  }
  for (int64_t k = 0; k < n * kTileElements; k += kTileElements) {
    _tile_loadd(6, b[0] + k, 64);
    _tile_loadd(4, a[0] + k, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (kB > 1) {
      _tile_loadd(7, b[1] + k, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kA > 1) {
      _tile_loadd(5, a[1] + k, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (kB > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c.at[0][0], row);
  if (kB > 1) _tile_stored(1, c.at[0][1], row);
  if (kA > 1) _tile_stored(2, c.at[1][0], row);
  if (kA > 1 && kB > 1) _tile_stored(3, c.at[1][1], row);
}

// Two vectors of floats as pairs of bf16, `low` in the lower half of each; ties are rounded up.
inline __m512i round_bf16(__m512 x) {  // in the upper half of each 32 bits; a NaN is not rounded, which could carry into its sign
  const __m512i bits = _mm512_castps_si512(x);
  return _mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), bits, _mm512_set1_epi32(0x8000));
}
inline __m512i pairs_bf16(__m512 low, __m512 high) {
  const __m512i l = _mm512_srli_epi32(round_bf16(low), 16), h = round_bf16(high);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, l, h);
}

// Multiply-accumulates of int8 tiles with operands in registers: twice as many as in bf16.
uint64_t matrix_peak(int64_t iterations) {
  constexpr int64_t kMacs = 16 * 16 * 64;
  UseTiles tiles;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const int64_t rounds = (iterations + 4 * kMacs - 1) / (4 * kMacs);
  for (int64_t n = 0; n < rounds; n++) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return (uint64_t)(rounds * 4 * kMacs);
}

}  // namespace
}  // namespace ivlite
