// Rounding to half where what is finite stays finite: keys, values and queries, which are nowhere near its range in a sound model.
#pragma once
#include <math.h>

#include "intrinsics.h"

namespace ivlite::cuda {

IVLITE_DEVICE float in_half_range(float v) { return fabsf(v) < INFINITY ? fminf(fmaxf(v, -65504.0f), 65504.0f) : v; }
IVLITE_DEVICE uint16_t to_finite_half(float v) { return to_half(in_half_range(v)); }

}  // namespace ivlite::cuda
