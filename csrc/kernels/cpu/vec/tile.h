// The inner product of the float attention kernels: a register tile of T rows by one or two vectors of lanes.
#pragma once
#include <stdint.h>

#include "kernels/cpu/vec/vec.h"

namespace ivlite {
namespace {

constexpr int kTileRows = vec::kTileRows;
constexpr int kTileLanes = 2 * vec::kLanes;
constexpr int64_t kLineFloats = 16;    // of a cache line
constexpr float kInitialMax = -1e30f;  // initial running maximum: finite, so that differences are never NaN

// A row stride of an odd number of cache lines: rows of a block spread over all sets of the cache.
inline int64_t odd_stride(int64_t floats) { return ((floats + kLineFloats - 1) / kLineFloats | 1) * kLineFloats; }

// The initial value of a tile: at(row, vector of the row, lanes of it that exist), and the step to the next tile.
struct FromZero {
  vec::V at(int64_t, int, int) const { return vec::zero(); }
  void next(int64_t) {}
};
struct FromRows {  // each row from its own value
  const float* value;
  vec::V at(int64_t r, int, int) const { return vec::set1(value[r]); }
  void next(int64_t rows) { value += rows; }
};
struct ScaledLanes {  // out, each lane with its own factor
  const float* out;
  int64_t ldo;
  const float* factor;
  vec::V at(int64_t r, int j, int n) const {
    return vec::mul(vec::load_n(out + r * ldo + j * vec::kLanes, n), vec::load(factor + j * vec::kLanes));
  }
  void next(int64_t rows) { out += rows * ldo; }
};
struct ScaledRows {  // out, each row with its own factor
  const float* out;
  int64_t ldo;
  const float* factor;
  vec::V at(int64_t r, int j, int n) const { return vec::mul(vec::load_n(out + r * ldo + j * vec::kLanes, n), vec::set1(factor[r])); }
  void next(int64_t rows) { out += rows * ldo, factor += rows; }
};

// out[r] = start[r] + sum over k < n of a(r, k) x b[k]: b[k] is kTileLanes floats at b + k ldb, of which `lanes` are
// stored, and a(r, k) is a[r lda + k] when kByRow, a[k lda + r] otherwise.
// kVectors = 1 leaves out the second half of the tile's lanes.
// Not inlined: registers of the caller would spill the sums.
template <int T, bool kByRow, int kVectors, class Start>
__attribute__((noinline)) void product_tile(float* out, int64_t ldo, int64_t lanes, Start start, const float* a, int64_t lda,
                                            const float* b, int64_t ldb, int64_t n) {
  const int n0 = lanes < vec::kLanes ? (int)lanes : vec::kLanes;
  const int n1 = lanes >= kTileLanes ? vec::kLanes : (int)lanes - n0;
  vec::V acc[T][2];
  for (int r = 0; r < T; r++) {
    acc[r][0] = start.at(r, 0, n0);
    if (kVectors > 1) acc[r][1] = start.at(r, 1, n1);
  }
  for (int64_t k = 0; k < n; k++, b += ldb) {
    const vec::V b0 = vec::load(b), b1 = kVectors > 1 ? vec::load(b + vec::kLanes) : b0;
#pragma GCC unroll 12
    for (int r = 0; r < T; r++) {
      const vec::V x = vec::set1(kByRow ? a[r * lda + k] : a[r]);
      acc[r][0] = vec::fma(x, b0, acc[r][0]);
      if (kVectors > 1) acc[r][1] = vec::fma(x, b1, acc[r][1]);
    }
    if (!kByRow) a += lda;
  }
  for (int r = 0; r < T; r++) {
    vec::store_n(out + r * ldo, acc[r][0], n0);
    if (kVectors > 1 && n1 > 0) vec::store_n(out + r * ldo + vec::kLanes, acc[r][1], n1);
  }
}

// Calls the tile of a run-time height in [1, T].
template <int T, bool kByRow, int kVectors, class Start>
inline void product_rows(int64_t rows, float* out, int64_t ldo, int64_t lanes, Start start, const float* a, int64_t lda, const float* b,
                         int64_t ldb, int64_t n) {
  if constexpr (T > 0) {
    if (rows == T) return product_tile<T, kByRow, kVectors>(out, ldo, lanes, start, a, lda, b, ldb, n);
    product_rows<T - 1, kByRow, kVectors>(rows, out, ldo, lanes, start, a, lda, b, ldb, n);
  }
}

// Any number of rows, cut into tiles of nearly equal height.
template <bool kByRow, int kVectors = 2, class Start>
inline void product(int64_t rows, float* out, int64_t ldo, int64_t lanes, Start start, const float* a, int64_t lda, const float* b,
                    int64_t ldb, int64_t n) {
  for (int64_t left = (rows + kTileRows - 1) / kTileRows; left > 0; left--) {
    const int64_t height = (rows + left - 1) / left;
    product_rows<kTileRows, kByRow, kVectors>(height, out, ldo, lanes, start, a, lda, b, ldb, n);
    rows -= height;
    out += height * ldo;
    start.next(height);
    a += kByRow ? height * lda : height;
  }
}

// Transposes rows to lanes, tile after tile: element k of row i goes to scale x rows[i][k] at
// to[(i / kTileLanes) n_total kTileLanes + (first + k) kTileLanes + i % kTileLanes], where a row has n of n_total elements.
inline void rows_to_lanes(float* to, int64_t n_total, int64_t first, const float* rows, int64_t stride, int64_t count, int64_t n,
                          float scale) {
  constexpr int64_t kPiece = 64;  // columns at a time: what they are written to stays in L1
  for (int64_t k0 = 0; k0 < n; k0 += kPiece) {
    const int64_t end = n - k0 < kPiece ? n : k0 + kPiece;
    for (int64_t i = 0; i < count; i++) {
      float* lane = to + i / kTileLanes * kTileLanes * n_total + first * kTileLanes + i % kTileLanes;
      for (int64_t k = k0; k < end; k++) lane[k * kTileLanes] = scale * rows[i * stride + k];
    }
  }
}

inline void fill(float* p, int64_t n, float x) {
  for (int64_t i = 0; i < n; i++) p[i] = x;
}

}  // namespace
}  // namespace ivlite
