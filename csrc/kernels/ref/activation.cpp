#include <math.h>

#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

void silu_mul(float* y, int64_t ldy, const float* gate, const float* up, int64_t ldx, int64_t n, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++)
    for (int64_t i = 0; i < n; i++) {
      double g = gate[t * ldx + i];
      y[t * ldy + i] = (float)(g / (1 + exp(-g)) * up[t * ldx + i]);
    }
}

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
void gelu_tanh(float* y, const float* x, int64_t i0, int64_t i1) {
  for (int64_t i = i0; i < i1; i++) {
    double v = x[i];
    y[i] = (float)(0.5 * v * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v))));
  }
}

// 0.5 x (1 + erf(x / sqrt(2)))
void gelu_erf(float* y, const float* x, int64_t i0, int64_t i1) {
  for (int64_t i = i0; i < i1; i++) y[i] = (float)(0.5 * x[i] * (1 + erf(x[i] * 0.70710678118654752440)));
}

}  // namespace

void init_ref_activation(KernelTable& t) {
  t.silu_mul = silu_mul;
  t.gelu_tanh = gelu_tanh;
  t.gelu_erf = gelu_erf;
}

}  // namespace ivlite
