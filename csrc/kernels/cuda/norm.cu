// RMS and layer norms: a block per row, float32 sums. RMS norm also straight to the int8 rows that the next product reads.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/quant_scale.h"

namespace ivlite::cuda {
namespace {

// Threads of a row of n columns: whole warps, so many that each has a few columns.
int row_threads(int64_t n) {
  const int64_t warps = (n + 127) / 128;
  return kWarp * (int)(warps < 1 ? 1 : warps > 16 ? 16 : warps);
}

IVLITE_DEVICE float rms_scale(const float* x, int64_t n, float eps, float* shared) {
  float square = 0;
  for (int64_t i = thread_x(); i < n; i += block_threads()) square += x[i] * x[i];
  return 1 / sqrtf(block_sum(square, shared) / (float)n + eps);
}

IVLITE_KERNEL void rms_norm_row(NormArgs a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + block_x() * a.ldx;
  const float scale = rms_scale(x, a.n, a.eps, shared);
  float* y = a.y + block_x() * a.ldy;
  for (int64_t i = thread_x(); i < a.n; i += block_threads()) y[i] = x[i] * scale * a.w[i];
}

IVLITE_KERNEL void layer_norm_row(NormArgs a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + block_x() * a.ldx;
  float sum = 0, square = 0;
  for (int64_t i = thread_x(); i < a.n; i += block_threads()) sum += x[i];
  const float mean = block_sum(sum, shared) / (float)a.n;
  for (int64_t i = thread_x(); i < a.n; i += block_threads()) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1 / sqrtf(block_sum(square, shared) / (float)a.n + a.eps);
  float* y = a.y + block_x() * a.ldy;
  for (int64_t i = thread_x(); i < a.n; i += block_threads()) y[i] = (x[i] - mean) * scale * a.w[i] + a.b[i];
}

// As quantize_rows (csrc/kernels/ref/linear.cpp): a warp per group of 32 columns, a lane per column.
IVLITE_KERNEL void rms_norm_quantize_row(QuantRows out, NormArgs a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + block_x() * a.ldx;
  const float scale = rms_scale(x, a.n, a.eps, shared);
  const int lane = thread_x() % kWarp, warps = block_threads() / kWarp;
  const int64_t groups = out.cols / kGroup;
  for (int64_t g = thread_x() / kWarp; g < groups; g += warps) {
    const int64_t column = g * kGroup + lane, at = block_x() * groups + g;
    const float value = column < a.n ? x[column] * scale * a.w[column] : 0;
    const bool finite = fabsf(value) <= 3.4028235e38f;
    const float absmax = any_lane(!finite) ? INFINITY : warp_max(fabsf(value));
    const QuantScale quant = quant_scale(absmax, 127);
    const int code = finite && quant.inverse > 0 ? (int)rintf(value * quant.inverse) : 0;
    const int first = warp_sum(lane < kGroup / 2 ? code : 0), all = warp_sum(code);
    out.q[block_x() * out.cols + column] = (int8_t)code;
    if (lane) continue;
    out.scale[at] = quant.scale, out.sum[at] = all, out.shift[at] = quant.scale * (float)all;
    out.halves[2 * at] = first, out.halves[2 * at + 1] = all - first;
  }
}

}  // namespace

Status rms_norm(const NormArgs& a, Stream stream) {
  return launch(rms_norm_row, {(unsigned)a.rows}, row_threads(a.n), kReduceBytes, stream, a);
}

Status rms_norm_quantize(const QuantRows& out, const NormArgs& a, Stream stream) {
  return launch(rms_norm_quantize_row, {(unsigned)a.rows}, row_threads(a.n), kReduceBytes, stream, out, a);
}

Status layer_norm(const NormArgs& a, Stream stream) {
  return launch(layer_norm_row, {(unsigned)a.rows}, row_threads(a.n), kReduceBytes, stream, a);
}

}  // namespace ivlite::cuda
