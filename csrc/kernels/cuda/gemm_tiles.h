// What gemm.cu starts: one function per weight format, compiled in files of their own.
#pragma once
#include "kernels/cuda/gemm.h"

namespace ivlite::cuda {

// One product for all blocks. Steps of K are dealt to `splits` blocks, whose sums gemm_combine adds.
struct GemmProduct {
  DeviceWeight w;
  const void* x;  // (tokens, ldx)
  int64_t ldx, tokens;
  bool paired;  // gate and up: rows of a tile are 8 of the first half of w's rows, then 8 of the second, in turn
  int steps, splits;
  float* partial;  // (splits, tokens, rows of w), or null without splits
  Epilogue end;
  int64_t head_x;
};

// Columns of one step: what is copied and opened between two barriers.
constexpr int gemm_depth(int tile_tokens) { return tile_tokens <= 64 ? 64 : 32; }

constexpr Status kInvalidValue = 1;  // cudaErrorInvalidValue

template <Format F>
Status start_gemm(const GemmProduct& p, int tile_rows, int tile_tokens, Stream stream);

// In float32, x too: of kGemmF32Side weight rows x tokens.
constexpr int kGemmF32Side = 64;
Status gemm_f32(const GemmProduct& p, Stream stream);

}  // namespace ivlite::cuda
