// Linear layers: the store epilogue of all of them, and the kernel of float weights. SIMD lanes are output rows.
#pragma once
#include "kernels/cpu/vec/vec.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

constexpr int kRowVectors = kPanel / vec::kLanes;

// Stores lanes [row, row + kLanes) of one token, up to the last row: adds the bias, then y if accumulating.
inline void store_rows(const LinearArgs& a, int64_t t, int64_t row, vec::V v) {
  const int64_t left = a.rows - row;
  if (left <= 0) return;
  const int n = left < vec::kLanes ? (int)left : vec::kLanes;
  float* y = a.y + t * a.ldy + row;
  if (a.bias) v = vec::add(v, vec::load_n(a.bias + row, n));
  if (a.accumulate) v = vec::add(v, vec::load_n(y, n));
  vec::store_n(y, v, n);
}

// Tokens per block: their activations stay in L2 while the panels stream past; at least two tiles.
inline int64_t token_block(int64_t row_bytes, int tile) {
  const int64_t tiles = (192 << 10) / (row_bytes * tile + 1);
  return (tiles < 2 ? 2 : tiles) * tile;
}

struct WeightF32 {
  using type = float;
  static vec::V load(const float* p) { return vec::load(p); }
};
struct WeightF16 {
  using type = uint16_t;
  static vec::V load(const uint16_t* p) { return vec::load_f16(p); }
};
struct WeightBF16 {
  using type = uint16_t;
  static vec::V load(const uint16_t* p) { return vec::load_bf16(p); }
};

// P panels from p on x tokens [t, t + T).
template <class W, int T, int P = 1>
inline void float_tile(const LinearArgs& a, const typename W::type* w, int64_t p, int64_t t) {
  const float* x = a.x + t * a.ldx;
  const int64_t stride = a.cols * kPanel;
  vec::V acc[P][T][kRowVectors];
  for (int n = 0; n < P; n++)
    for (int i = 0; i < T; i++)
      for (int j = 0; j < kRowVectors; j++) acc[n][i][j] = vec::zero();
  for (int64_t k = 0; k < a.cols; k++, w += kPanel) {
#pragma GCC unroll 4
    for (int n = 0; n < P; n++) {
      const typename W::type* from = w + n * stride;
      // May point past the last panel: a prefetch of an address that is not mapped does nothing.
      if (T <= 2 && k * sizeof(*w) % 4 == 0) __builtin_prefetch((const char*)from + 2048);
      vec::V wk[kRowVectors];
      for (int j = 0; j < kRowVectors; j++) wk[j] = W::load(from + j * vec::kLanes);
#pragma GCC unroll 16
      for (int i = 0; i < T; i++) {
        const vec::V xk = vec::set1(x[i * a.ldx + k]);
#pragma GCC unroll 2
        for (int j = 0; j < kRowVectors; j++) acc[n][i][j] = vec::fma(wk[j], xk, acc[n][i][j]);
      }
    }
  }
  for (int n = 0; n < P; n++)
    for (int i = 0; i < T; i++)
      for (int j = 0; j < kRowVectors; j++) store_rows(a, t + i, (p + n) * kPanel + j * vec::kLanes, acc[n][i][j]);
}

template <class W, int T>
inline void float_tail(const LinearArgs& a, const typename W::type* w, int64_t p, int64_t t, int64_t n) {
  if constexpr (T > 0) {
    if (n == T) return float_tile<W, T>(a, w, p, t);
    float_tail<W, T - 1>(a, w, p, t, n);
  }
}

template <class W>
void linear_float(const LinearArgs& a, int64_t p0, int64_t p1) {
  constexpr int kTile = vec::kTileRows * 2 / kRowVectors > 12 ? 12 : vec::kTileRows * 2 / kRowVectors;
  const int64_t stride = a.cols * kPanel;
  const int64_t block = token_block(4 * a.cols, kTile);
  for (int64_t b = 0; b < a.tokens; b += block) {
    const int64_t end = a.tokens - b < block ? a.tokens : b + block;
    int64_t p = p0;
    // One token: the FMAs of a panel form one dependency chain, so several panels are interleaved.
    for (; end - b == 1 && p + 4 <= p1; p += 4) float_tile<W, 1, 4>(a, (const typename W::type*)a.panels + p * stride, p, b);
    for (; p < p1; p++) {
      const auto* w = (const typename W::type*)a.panels + p * stride;
      int64_t t = b;
      for (; t + kTile <= end; t += kTile) float_tile<W, kTile>(a, w, p, t);
      float_tail<W, kTile - 1>(a, w, p, t, end - t);
    }
  }
}

}  // namespace
}  // namespace ivlite
