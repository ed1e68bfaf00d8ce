// Products of many rows in float32: where the weights are, as in the exact mode of vision. Not fast; exact to the order of sums.
#include "intrinsics.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/weight.cuh"

namespace ivlite::cuda {
namespace {

// A block computes kSide weight rows x kSide tokens, each thread 4 x 4 of them, kDepth columns at a time. Both operands lie in
// shared memory as [column][row].
constexpr int kSide = kGemmF32Side, kDepth = 16, kThreads = 256;

// 4 columns of a row from `column` on into a tile; zeros where row is null and behind the last column.
IVLITE_DEVICE void fill(float* tile, const float* row, int64_t column, int64_t cols, int at, int in) {
  for (int i = 0; i < 4; i++) tile[(in + i) * kSide + at] = row && column + i < cols ? row[column + i] : 0;
}

IVLITE_KERNEL_OF(kThreads) gemm_f32_kernel(GemmProduct p) {
  float *w = shared_memory<float>(), *x = w + kDepth * kSide;
  const int64_t token0 = (int64_t)block_x() * kSide, rows = p.end.rows, tile_rows = p.paired ? kSide / 2 : kSide;
  const int thread = thread_x(), at = thread % kSide, in = thread / kSide * 4;
  // The second half of a paired tile's rows are those of `up`.
  const bool up = p.paired && at >= kSide / 2;
  const int64_t out = block_y() * tile_rows + (up ? at - kSide / 2 : at), stride = code_stride(p.w) / 4;
  const float* w_row = out < rows ? (const float*)p.w.codes + (up ? rows + out : out) * stride : nullptr;
  const float* x_row = token0 + at < p.tokens ? (const float*)p.x + (token0 + at) * p.ldx : nullptr;
  float sum[4][4] = {};
  for (int64_t k = 0; k < p.w.cols; k += kDepth) {
    sync_block();
    fill(w, w_row, k + in, p.w.cols, at, in);
    fill(x, x_row, k + in, p.w.cols, at, in);
    sync_block();
    for (int c = 0; c < kDepth; c++) {
      // Rows of a thread are 16 apart: of gate and up, the same two.
      float a[4], b[4];
      IVLITE_UNROLL
      for (int i = 0; i < 4; i++) a[i] = w[c * kSide + thread / 16 + 16 * i], b[i] = x[c * kSide + thread % 16 + 16 * i];
      IVLITE_UNROLL
      for (int i = 0; i < 4; i++) {
        IVLITE_UNROLL
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
      }
    }
  }
  IVLITE_UNROLL
  for (int i = 0; i < 4; i++) {
    if (p.paired && i >= 2) break;
    const OutputRow row(p.end, block_y() * tile_rows + thread / 16 + 16 * i);
    IVLITE_UNROLL
    for (int j = 0; j < 4; j++) {
      const int64_t token = token0 + thread % 16 + 16 * j;
      if (!row.stored() || token >= p.tokens) continue;
      if (p.paired)
        row.store_pair(token, sum[i][j], sum[(i + 2) % 4][j]);
      else
        row.store(token, sum[i][j]);
    }
  }
}

}  // namespace

Status gemm_f32(const GemmProduct& p, Stream stream) {
  const int64_t tile_rows = p.paired ? kSide / 2 : kSide;
  const Dim3 grid{(unsigned)((p.tokens + kSide - 1) / kSide), (unsigned)((stored_rows(p.end) + tile_rows - 1) / tile_rows), 1};
  return launch(gemm_f32_kernel, grid, kThreads, 2 * kDepth * kSide * sizeof(float), stream, p);
}

}  // namespace ivlite::cuda
