#pragma once
#include "ops/views.h"

namespace ivlite {

// y (T, n) = silu(x[:, :n]) * x[:, n:],  x (T, 2n); both contiguous.
void silu_mul(const OutRows& y, const InRows& x);

// y = gelu(x), n elements; `exact` takes the erf form, otherwise the tanh form. y may be x.
void gelu(float* y, const float* x, int64_t n, bool exact);

}  // namespace ivlite
