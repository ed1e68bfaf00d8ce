// Activations of rows, and copies of rows: a thread per few elements of one row.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 256, kEach = 4;

// Calls f(column) for the columns of this block's part of its row.
template <class F>
IVLITE_DEVICE void each_column(int64_t cols, F f) {
  const int64_t first = (int64_t)block_y() * kThreads * kEach + thread_x();
  for (int i = 0; i < kEach; i++)
    if (first + i * kThreads < cols) f(first + i * kThreads);
}

Dim3 grid(const RowArgs& a) { return {(unsigned)a.rows, (unsigned)((a.cols + kThreads * kEach - 1) / (kThreads * kEach))}; }

IVLITE_KERNEL void silu_mul_rows(RowArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  float* y = a.y + block_x() * a.ldy;
  each_column(a.cols, [&](int64_t i) { y[i] = x[i] / (1 + expf(-x[i])) * x[a.cols + i]; });
}

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
IVLITE_KERNEL void gelu_tanh_rows(RowArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  float* y = a.y + block_x() * a.ldy;
  each_column(a.cols, [&](int64_t i) {
    const float v = x[i];
    y[i] = 0.5f * v * (1 + tanhf(0.79788456080286535588f * (v + 0.044715f * v * v * v)));
  });
}

// 0.5 x (1 + erf(x / sqrt(2)))
IVLITE_KERNEL void gelu_erf_rows(RowArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  float* y = a.y + block_x() * a.ldy;
  each_column(a.cols, [&](int64_t i) { y[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678118654752440f)); });
}

IVLITE_KERNEL void copy_row(RowArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  float* y = a.y + block_x() * a.ldy;
  each_column(a.cols, [&](int64_t i) { y[i] = x[i]; });
}

}  // namespace

Status silu_mul(const RowArgs& a, Stream stream) { return launch(silu_mul_rows, grid(a), kThreads, 0, stream, a); }
Status gelu_tanh(const RowArgs& a, Stream stream) { return launch(gelu_tanh_rows, grid(a), kThreads, 0, stream, a); }
Status gelu_erf(const RowArgs& a, Stream stream) { return launch(gelu_erf_rows, grid(a), kThreads, 0, stream, a); }
Status copy_rows(const RowArgs& a, Stream stream) { return launch(copy_row, grid(a), kThreads, 0, stream, a); }

}  // namespace ivlite::cuda
