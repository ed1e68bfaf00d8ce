// Activations of one value, as in kernels/ref/activation.cpp.
#pragma once
#include <math.h>

#include "intrinsics.h"

namespace ivlite::cuda {

IVLITE_DEVICE float silu_mul(float gate, float up) { return gate / (1 + expf(-gate)) * up; }
// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
IVLITE_DEVICE float gelu_tanh(float x) { return 0.5f * x * (1 + tanhf(0.79788456080286535588f * (x + 0.044715f * x * x * x))); }
// 0.5 x (1 + erf(x / sqrt(2)))
IVLITE_DEVICE float gelu_erf(float x) { return 0.5f * x * (1 + erff(x * 0.70710678118654752440f)); }

}  // namespace ivlite::cuda
