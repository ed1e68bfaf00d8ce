#include <math.h>

#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

void rms_norm(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, int64_t n, float eps, int64_t t0, int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += (double)x[t * ldx + i] * x[t * ldx + i];
    double scale = 1 / sqrt(square / n + eps);
    for (int64_t i = 0; i < n; i++) y[t * ldy + i] = (float)(x[t * ldx + i] * scale * w[i]);
  }
}

void layer_norm(float* y, int64_t ldy, const float* x, int64_t ldx, const float* w, const float* b, int64_t n, float eps, int64_t t0,
                int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    double mean = 0, square = 0;
    for (int64_t i = 0; i < n; i++) mean += x[t * ldx + i];
    mean /= n;
    for (int64_t i = 0; i < n; i++) square += (x[t * ldx + i] - mean) * (x[t * ldx + i] - mean);
    double scale = 1 / sqrt(square / n + eps);
    for (int64_t i = 0; i < n; i++) y[t * ldy + i] = (float)((x[t * ldx + i] - mean) * scale * w[i] + b[i]);
  }
}

}  // namespace

void init_ref_norm(KernelTable& t) {
  t.rms_norm = rms_norm;
  t.layer_norm = layer_norm;
}

}  // namespace ivlite
