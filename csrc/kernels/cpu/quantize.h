// Activations to int8 in groups of kGroup columns. The codes are those of the plain kernel, to the last one.
#pragma once

namespace ivlite {
namespace {

// One group: x has n real columns (1..kGroup), the rest are zeros.
inline void quantize_group(int8_t* q, float* scale, int32_t* total, const float* x, int64_t n) {
  constexpr int kVectors = kGroup / vec::kLanes;
  vec::V v[kVectors], top = vec::zero();
  for (int i = 0; i < kVectors; i++) {
    const int64_t left = n - i * vec::kLanes;
    v[i] = left > 0 ? vec::load_n(x + i * vec::kLanes, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    top = vec::max(vec::abs(v[i]), top);
  }
  const float peak = vec::max_lane(top);
  const vec::V inverse = vec::set1(peak > 0 ? 127 / peak : 0);
  vec::V sum = vec::zero();  // of whole numbers: exact
  for (int i = 0; i < kVectors; i++) sum = vec::add(sum, vec::store_codes(q + i * vec::kLanes, vec::mul(v[i], inverse)));
  *scale = peak / 127;
  *total = (int32_t)vec::sum(sum);
}

void quantize_rows(const QuantRows& out, const float* x, int64_t ldx, int64_t cols, int64_t t0, int64_t t1) {
  const int64_t groups = out.cols / kGroup;
  for (int64_t t = t0; t < t1; t++)
    for (int64_t g = 0; g < groups; g++) {
      const int64_t k = g * kGroup;
      int8_t* q = out.q + t * out.cols + k;
      float* scale = out.scale + t * groups + g;
      int32_t* sum = out.sum + t * groups + g;
      if (cols - k >= kGroup)
        quantize_group(q, scale, sum, x + t * ldx + k, kGroup);
      else
        quantize_group(q, scale, sum, x + t * ldx + k, cols - k);
    }
}

}  // namespace
}  // namespace ivlite
