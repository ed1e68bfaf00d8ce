// Exponentials over the vocabulary of avx2.h or avx512.h, which is included first.
#pragma once
#include "kernels/cpu/vec/vec.h"

namespace ivlite {
namespace {
namespace vec {

// 2^f for f in [-0.5, 0.5], with the coefficients of the Cephes library: rounding is most of the error.
inline V exp2_fraction(V f) {
  V p = set1(1.535336188319500e-4f);
  p = fma(p, f, set1(1.339887440266574e-3f));
  p = fma(p, f, set1(9.618437357674640e-3f));
  p = fma(p, f, set1(5.550332471162809e-2f));
  p = fma(p, f, set1(2.402264791363012e-1f));
  p = fma(p, f, set1(6.931472028550421e-1f));
  return fma(p, f, set1(1.0f));
}

// exp(x) within 2 units in the last place; x outside [-87, 88] gives the value at that bound.
inline V exp(V x) {
  x = min(set1(88.0f), max(set1(-87.0f), x));
  const V n = round(mul(x, set1(1.44269504088896341f)));
  // ln 2 in two parts: n times the first is exact.
  const V r = fnma(n, set1(-2.12194440e-4f), fnma(n, set1(0.693359375f), x));
  return scale2(exp2_fraction(mul(r, set1(1.44269504088896341f))), n);
}

// exp(x) for x <= 0; exactly 0 below -87.
inline V exp_weight(V x) { return zero_below(exp(x), x, set1(-87.0f)); }

// 2^x for x <= 0; exactly 0 below 2^-126, for -infinity too.
inline V exp2_weight(V x) {
  const V n = round(x);
  return zero_below(scale2(exp2_fraction(sub(x, n)), n), x, set1(-126.0f));
}

}  // namespace vec
}  // namespace
}  // namespace ivlite
