// Quantizes activations to int8 in groups of kGroup columns, to the same codes as the plain kernel.
#pragma once
#include <string.h>

#include "kernels/cpu/vec/vec.h"
#include "kernels/quant_scale.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

// Group `at`: x has n columns (1..kGroup), padded with zeros.
inline void quantize_group(const QuantRows& out, int64_t at, const float* x, int64_t n) {
  constexpr int kVectors = kGroup / vec::kLanes;
  vec::V v[kVectors], largest = vec::zero();
  for (int i = 0; i < kVectors; i++) {
    const int64_t left = n - i * vec::kLanes;
    v[i] = left > 0 ? vec::load_n(x + i * vec::kLanes, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    largest = vec::absmax(largest, v[i]);
  }
  const QuantScale quant = quant_scale(vec::absmax_lane(largest), 127);
  const vec::V inverse = vec::set1(quant.inverse);
  vec::V sum[2] = {vec::zero(), vec::zero()};  // exact: integers
  for (int i = 0; i < kVectors; i++) {
    vec::V& half = sum[2 * i / kVectors];
    half = vec::add(half, vec::store_int8(out.q + at * kGroup + i * vec::kLanes, vec::mul(v[i], inverse)));
  }
  const float first = vec::sum(sum[0]), second = vec::sum(sum[1]);
  out.scale[at] = quant.scale;
  out.sum[at] = (int32_t)(first + second);
  out.halves[2 * at] = (int32_t)first, out.halves[2 * at + 1] = (int32_t)second;
  out.shift[at] = out.scale[at] * (first + second);
}

// Quantizes a row to int8; returns its scale, absmax / 127.
inline float quantize_row(int8_t* y, const float* x, int64_t n) {
  vec::V largest = vec::zero();
  for (int64_t i = 0; i < n; i += vec::kLanes)
    largest = vec::absmax(largest, vec::load_n(x + i, n - i < vec::kLanes ? (int)(n - i) : vec::kLanes));
  const QuantScale quant = quant_scale(vec::absmax_lane(largest), 127);
  const vec::V inverse = vec::set1(quant.inverse);
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) vec::store_int8(y + i, vec::mul(vec::load(x + i), inverse));
  if (i < n) {
    int8_t codes[vec::kLanes];
    vec::store_int8(codes, vec::mul(vec::load_n(x + i, (int)(n - i)), inverse));
    memcpy(y + i, codes, (size_t)(n - i));
  }
  return quant.scale;
}

void quantize_rows(const QuantRows& out, const Part& p) {
  const int64_t groups = out.cols / kGroup;
  for (int64_t t = p.t0; t < p.t1; t++) {
    const float* x = p.x + t * p.ldx - p.c0;
    for (int64_t k = p.c0; k < p.c1; k += kGroup) {
      if (p.c1 - k >= kGroup)
        quantize_group(out, t * groups + k / kGroup, x + k, kGroup);
      else
        quantize_group(out, t * groups + k / kGroup, x + k, p.c1 - k);
    }
  }
}

}  // namespace
}  // namespace ivlite
