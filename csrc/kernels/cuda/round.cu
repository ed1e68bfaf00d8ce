// Rounds activations to what tensor cores multiply, behind a norm where one comes first.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/reduce.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 256, kColumns = 8;  // threads of a row; columns that a thread takes together

// 8 columns of a row from `column` on; zeros behind the last.
IVLITE_DEVICE void load_columns(float v[kColumns], const float* x, int64_t column, int64_t cols) {
  if (column + kColumns <= cols && (uintptr_t)(x + column) % 16 == 0) {
    const Bytes16 low = load16(x + column), high = load16(x + column + 4);
    memcpy(v, &low, 16), memcpy(v + 4, &high, 16);
    return;
  }
  for (int i = 0; i < kColumns; i++) v[i] = column + i < cols ? x[column + i] : 0;
}

// value = (x - mean) scale w + b
struct Normed {
  float mean, scale;
};

IVLITE_DEVICE Normed statistics(const RoundRows& a, const float* x, float* shared) {
  float mean = 0, square = 0, v[kColumns];
  if (a.norm == RoundNorm::none) return {0, 1};
  if (a.norm == RoundNorm::layer) {
    for (int64_t c = thread_x() * kColumns; c < a.cols; c += kThreads * kColumns) {
      load_columns(v, x, c, a.cols);
      for (float e : v) mean += e;
    }
    mean = block_sum(mean, shared) / (float)a.cols;
  }
  for (int64_t c = thread_x() * kColumns; c < a.cols; c += kThreads * kColumns) {
    load_columns(v, x, c, a.cols);
    for (int i = 0; i < kColumns; i++)
      if (c + i < a.cols) square += (v[i] - mean) * (v[i] - mean);
  }
  square = block_sum(square, shared);
  return {mean, 1 / sqrtf(square / (float)a.cols + a.eps)};
}

IVLITE_DEVICE void load_normed(float v[kColumns], const RoundRows& a, const float* x, Normed by, int64_t column) {
  load_columns(v, x, column, a.cols);
  if (a.norm == RoundNorm::none) return;
  for (int i = 0; i < kColumns; i++) {
    if (column + i >= a.cols) continue;
    v[i] = (v[i] - by.mean) * by.scale * a.norm_w[column + i];
    if (a.norm == RoundNorm::layer) v[i] += a.norm_b[column + i];
  }
}

// The power of two by which a row is divided: its largest value becomes 2^13 to 2^14. 1 for a row of zeros, or with infinity.
IVLITE_DEVICE float half_scale(float absmax) {
  if (!(absmax > 0 && absmax <= 3.4028235e38f)) return 1;
  int exponent;
  frexpf(absmax, &exponent);
  exponent -= 14;
  return ldexpf(1, exponent < -126 ? -126 : exponent);
}

IVLITE_KERNEL_OF(kThreads) round_kernel(RoundRows a) {
  float* shared = shared_memory<float>();
  const float* x = a.x + (int64_t)block_x() * a.ldx;
  uint16_t* out = a.out + (int64_t)block_x() * a.ldo;
  const Normed by = statistics(a, x, shared);
  float v[kColumns], inverse = 1;
  if (a.scale) {
    float absmax = 0;
    for (int64_t c = thread_x() * kColumns; c < a.cols; c += kThreads * kColumns) {
      load_normed(v, a, x, by, c);
      for (float e : v) absmax = fmaxf(absmax, fabsf(e));  // a NaN counts as missing
    }
    const float scale = half_scale(block_max(absmax, shared));
    inverse = 1 / scale;
    if (thread_x() == 0) a.scale[block_x()] = scale;
  }
  const int64_t padded = (a.cols + kRoundColumns - 1) / kRoundColumns * kRoundColumns;
  for (int64_t c = thread_x() * kColumns; c < padded; c += kThreads * kColumns) {
    load_normed(v, a, x, by, c);
    Bytes16 rounded;
    for (int i = 0; i < 4; i++)
      rounded.w[i] = a.scale ? pack_half(v[2 * i] * inverse, v[2 * i + 1] * inverse) : pack_bf16(v[2 * i], v[2 * i + 1]);
    store16(out + c, rounded);
  }
}

}  // namespace

Status round_rows(const RoundRows& a, Stream stream) {
  if (a.tokens == 0) return 0;
  return launch(round_kernel, Dim3{(unsigned)a.tokens, 1, 1}, kThreads, kReduceBytes, stream, a);
}

}  // namespace ivlite::cuda
