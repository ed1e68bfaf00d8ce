// What the two kernels of quantized products share, so that both give the same bits: how a group's integer sum becomes a float.
//
// Integers are summed from kSumStart on: an int32 of at most 22 bits and a sign, read as a float, is then 12582912 more than
// itself, exactly.
#pragma once
#include <math.h>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/weight.cuh"

namespace ivlite::cuda {

constexpr int kStepGroups = 4;    // groups of a row that are summed side by side; their sums are added last
constexpr int kPartialRows = 20;  // floats between the sums of two tokens, of which 16 rows use 16: different banks
constexpr int32_t kSumStart = 0x4B400000;
IVLITE_DEVICE float exact_float(int32_t sum) { return float_of((uint32_t)sum) - 12582912.0f; }

// A scale for each half of a group, hence a sum for each half.
template <Format F>
constexpr bool kHalves = F == Format::q6_k;

// What integer sums begin with: the codes' offset times the sums of activations.
template <Format F>
struct Starts {
  int32_t first, second;  // second: of formats with halves
  float sum;              // of all activations
};
template <Format F>
IVLITE_DEVICE Starts<F> starts(uint32_t halves) {
  constexpr int offset = F == Format::q8_0 ? 0 : kCodeOffset<F>;
  const int h0 = (int16_t)halves, h1 = (int32_t)halves >> 16;
  if constexpr (kHalves<F>) return {kSumStart - offset * h0, kSumStart - offset * h1, 0};
  return {kSumStart - offset * (h0 + h1), 0, exact_float(kSumStart + h0 + h1)};
}

// A group's product without the activations' scale. `by`: of the first half and the second.
template <Format F>
IVLITE_DEVICE float group_value(const Affine by[2], int32_t first, int32_t second, float sum) {
  const float value = by[0].scale * exact_float(first);
  if constexpr (kHalves<F>) return fmaf(by[1].scale, exact_float(second), value);
  if constexpr (F == Format::q4_k || F == Format::q5_k) return fmaf(-by[0].min, sum, value);
  return value;
}

template <Format F>
IVLITE_DEVICE void affines(Affine by[2], uint16_t scale, uint32_t header) {
  by[0] = affine<F>(scale, header, 0);
  if constexpr (kHalves<F>) by[1] = affine<F>(scale, header, 1);
}

// The planes of one row, counted in groups from the weight's beginning: fewer registers than pointers.
template <Format F>
struct RowPlanes {
  const DeviceWeight& w;
  uint32_t first;

  IVLITE_DEVICE RowPlanes(const DeviceWeight& w, int64_t row) : w(w), first((uint32_t)(row * padded_groups(F, w.cols))) {}
  IVLITE_DEVICE const uint8_t* codes(int group) const { return w.codes + (int64_t)(first + group) * code_bytes(F); }
  IVLITE_DEVICE const uint8_t* high(int group) const { return w.high + (int64_t)(first + group) * high_bytes(F); }
  IVLITE_DEVICE const uint16_t* scales(int group) const { return (const uint16_t*)w.scales + (first + group); }
  IVLITE_DEVICE uint32_t header(int group) const {
    const uint8_t* at = w.headers + (int64_t)((first + group) / 8) * header_bytes(F);
    if constexpr (header_bytes(F) == 4) return load4(at);
    if constexpr (header_bytes(F) == 2) return *(const uint16_t*)at;
    return 0;
  }
};

// Where a warp works: two octets of rows, and every `every`-th step from `first` on of `steps`.
struct WarpPart {
  int64_t rows[2];  // where the octets begin, counted over all heads
  int64_t last_row;
  int first, every, steps;

  // A row behind the last is read as the last: it is not stored.
  IVLITE_DEVICE int64_t row(int octet, int i) const { return rows[octet] + i < last_row ? rows[octet] + i : last_row; }
};

}  // namespace ivlite::cuda
