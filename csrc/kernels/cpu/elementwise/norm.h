// Row normalisations.
#pragma once
#include <math.h>
#include <stdint.h>

#include "kernels/cpu/vec/vec.h"

namespace ivlite {
namespace {

// Sum over i < n of term(i-th vector, lanes in it), in four partial sums: shorter dependency chains, smaller errors.
template <class Term>
inline float row_sum(int64_t n, Term term) {
  vec::V s[4] = {vec::zero(), vec::zero(), vec::zero(), vec::zero()};
  int64_t i = 0;
  for (; i + 4 * vec::kLanes <= n; i += 4 * vec::kLanes)
    for (int j = 0; j < 4; j++) s[j] = vec::add(s[j], term(i + j * vec::kLanes, vec::kLanes));
  for (; i < n; i += vec::kLanes) s[0] = vec::add(s[0], term(i, n - i < vec::kLanes ? (int)(n - i) : vec::kLanes));
  return vec::sum(vec::add(vec::add(s[0], s[1]), vec::add(s[2], s[3])));
}

// y[i] = value(i) for i < n, in vectors.
template <class Value>
inline void row_map(float* y, int64_t n, Value value) {
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) vec::store(y + i, value(i, vec::kLanes));
  if (i < n) vec::store_n(y + i, value(i, (int)(n - i)), (int)(n - i));
}

void rms_norm(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t n, float eps, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const float* row = x + t * ldx;
    const float square = row_sum(n, [=](int64_t i, int m) {
      const vec::V v = vec::load_n(row + i, m);
      return vec::mul(v, v);
    });
    const vec::V scale = vec::set1((float)(1 / sqrt((double)square / n + eps)));
    row_map(y + t * ldy, n, [=](int64_t i, int m) { return vec::mul(vec::mul(vec::load_n(row + i, m), scale), vec::load_n(w + i, m)); });
  }
}

void layer_norm(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, const float* b, int64_t n, float eps, int64_t t0,
                int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const float* row = x + t * ldx;
    const float total = row_sum(n, [=](int64_t i, int m) { return vec::load_n(row + i, m); });
    const vec::V mean = vec::set1((float)((double)total / n));
    const float square = row_sum(n, [=](int64_t i, int m) {
      const vec::V c = vec::first_n(vec::sub(vec::load_n(row + i, m), mean), m);
      return vec::mul(c, c);
    });
    const vec::V scale = vec::set1((float)(1 / sqrt((double)square / n + eps)));
    row_map(y + t * ldy, n, [=](int64_t i, int m) {
      const vec::V c = vec::sub(vec::load_n(row + i, m), mean);
      return vec::fma(vec::mul(c, scale), vec::load_n(w + i, m), vec::load_n(b + i, m));
    });
  }
}

}  // namespace
}  // namespace ivlite
