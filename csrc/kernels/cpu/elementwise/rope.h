// Rotary position embedding.
#pragma once
#include <string.h>

#include "kernels/cpu/vec/vec.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

inline void rope_head(float* y, const float* x, const float* cos, const float* sin, int64_t half, bool interleaved) {
  for (int64_t j = 0; j < half; j += vec::kLanes) {
    const int n = half - j < vec::kLanes ? (int)(half - j) : vec::kLanes;
    vec::V a, b;
    if (!interleaved) {
      a = vec::load_n(x + j, n);
      b = vec::load_n(x + half + j, n);
    } else if (n == vec::kLanes) {
      vec::deinterleave(x + 2 * j, a, b);
    } else {
      float pairs[2 * vec::kLanes] = {};
      memcpy(pairs, x + 2 * j, (size_t)n * 8);
      vec::deinterleave(pairs, a, b);
    }
    const vec::V c = vec::load_n(cos + j, n), s = vec::load_n(sin + j, n);
    vec::store_n(y + j, vec::fnma(b, s, vec::mul(a, c)), n);
    vec::store_n(y + half + j, vec::fma(a, s, vec::mul(b, c)), n);
  }
}

void rope(const RopeArgs& a, int64_t t0, int64_t t1) {
  const int64_t half = a.d / 2;
  for (int64_t t = t0; t < t1; t++)
    for (int64_t h = 0; h < a.heads; h++) {
      const float* x = a.x + t * a.ldx + h * a.ldh;
      rope_head(a.y + (t * a.heads + h) * a.d, x, a.cos + t * half, a.sin + t * half, half, a.interleaved);
    }
}

}  // namespace
}  // namespace ivlite
