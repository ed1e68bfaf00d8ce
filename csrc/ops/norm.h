#pragma once
#include "ops/views.h"

namespace ivlite {

// y (T, n) from x (T, n); w and b have n elements. y may be x.
void rms_norm(const OutRows& y, const InRows& x, const float* w, float eps);
void layer_norm(const OutRows& y, const InRows& x, const float* w, const float* b, float eps);

}  // namespace ivlite
