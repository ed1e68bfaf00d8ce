// RMS and layer norms: a block per row, float32 sums.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/reduce.cuh"

namespace ivlite::cuda {
namespace {

IVLITE_KERNEL void rms_norm_row(NormArgs a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + block_x() * a.ldx;
  const float scale = rms_scale([&](int64_t i) { return x[i]; }, a.n, a.eps, shared);
  float* y = a.y + block_x() * a.ldy;
  for (int64_t i = thread_x(); i < a.n; i += kRowThreads) y[i] = x[i] * scale * a.w[i];
}

IVLITE_KERNEL void layer_norm_row(NormArgs a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + block_x() * a.ldx;
  float sum = 0, square = 0;
  for (int64_t i = thread_x(); i < a.n; i += kRowThreads) sum += x[i];
  const float mean = block_sum(sum, shared) / (float)a.n;
  for (int64_t i = thread_x(); i < a.n; i += kRowThreads) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / sqrtf(block_sum(square, shared) / (float)a.n + a.eps);
  float* y = a.y + block_x() * a.ldy;
  for (int64_t i = thread_x(); i < a.n; i += kRowThreads) y[i] = (x[i] - mean) * scale * a.w[i] + a.b[i];
}

}  // namespace

Status rms_norm(const NormArgs& a, Stream stream) { return launch(rms_norm_row, {(unsigned)a.rows}, kRowThreads, kReduceBytes, stream, a); }

Status layer_norm(const NormArgs& a, Stream stream) {
  return launch(layer_norm_row, {(unsigned)a.rows}, kRowThreads, kReduceBytes, stream, a);
}

}  // namespace ivlite::cuda
