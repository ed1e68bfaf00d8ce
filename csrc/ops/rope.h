#pragma once
#include "ops/views.h"

namespace ivlite {

// y (T, H, d) contiguous, x (T, H, d), cos and sin (T, d / 2) contiguous; see RopeArgs.
void rope(const OutHeads& y, const InHeads& x, const InRows& cos, const InRows& sin, bool interleaved);

}  // namespace ivlite
