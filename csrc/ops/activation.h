#pragma once
#include "ops/views.h"

namespace ivlite {

// y (T, n) = silu(x[:, :n]) * x[:, n:],  x (T, 2n); both contiguous.
void silu_mul(const OutRows& y, const InRows& x);

}  // namespace ivlite
