// SiLU with its gate, and both forms of GELU.
#pragma once
#include "kernels/cpu/elementwise/norm.h"
#include "kernels/cpu/vec/math.h"

namespace ivlite {
namespace {

// x / (1 + exp(-x))
inline vec::V silu(vec::V x) {
  const vec::V one = vec::set1(1.0f);
  return vec::div(x, vec::add(one, vec::exp(vec::sub(vec::zero(), x))));
}

// 0.5 x (1 + tanh(u)) is x / (1 + exp(-2 u)), with u = sqrt(2 / pi) (x + 0.044715 x^3).
inline vec::V gelu_tanh_lanes(vec::V x) {
  const vec::V u = vec::mul(x, vec::fma(vec::mul(x, x), vec::set1(-2 * 0.7978845608f * 0.044715f), vec::set1(-2 * 0.7978845608f)));
  return vec::div(x, vec::add(vec::set1(1.0f), vec::exp(u)));
}

// 0.5 x (1 + erf(x / sqrt 2)) is max(x, 0) - 0.5 |x| erfc(|x| / sqrt 2): nothing cancels on either side.
// erfc(z) = t exp(-z^2 + c0 + c1 t + ... + c9 t^9), t = 1 / (1 + z / 2), relative error 1.2e-7 for every z >= 0:
// Numerical Recipes in C, chapter 6.2.
inline vec::V gelu_erf_lanes(vec::V x) {
  constexpr float c[9] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                          0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  const vec::V z = vec::mul(vec::abs(x), vec::set1(0.70710678f));
  const vec::V t = vec::div(vec::set1(1.0f), vec::fma(z, vec::set1(0.5f), vec::set1(1.0f)));
  vec::V p = vec::set1(0.17087277f);
#pragma GCC unroll 9
  for (int i = 0; i < 9; i++) p = vec::fma(p, t, vec::set1(c[i]));
  p = vec::mul(t, vec::exp(vec::fnma(z, z, p)));
  return vec::fnma(vec::mul(vec::set1(0.5f), vec::abs(x)), p, vec::max(vec::zero(), x));
}

void silu_mul(float* y, int64_t ldy, const float* gate, const float* up, int64_t ldx, int64_t n, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const float *g = gate + t * ldx, *u = up + t * ldx;
    row_map(y + t * ldy, n, [=](int64_t i, int m) { return vec::mul(silu(vec::load_n(g + i, m)), vec::load_n(u + i, m)); });
  }
}

void gelu_tanh(float* y, const float* x, int64_t i0, int64_t i1) {
  row_map(y + i0, i1 - i0, [=](int64_t i, int m) { return gelu_tanh_lanes(vec::load_n(x + i0 + i, m)); });
}

void gelu_erf(float* y, const float* x, int64_t i0, int64_t i1) {
  row_map(y + i0, i1 - i0, [=](int64_t i, int m) { return gelu_erf_lanes(vec::load_n(x + i0 + i, m)); });
}

}  // namespace
}  // namespace ivlite
