// Launchers of products of many rows, and of what they multiply, in plain C++.
#pragma once
#include "kernels/cuda/linear.h"

namespace ivlite::cuda {

// Columns of rounded activations and of bf16 outputs are padded with zeros to a multiple of this.
constexpr int kRoundColumns = 64;

// What is done to rows before they are rounded.
enum class RoundNorm { none, rms, layer };

// Rounds x (tokens, ldx) to bf16, or to half for f16 weights: out (tokens, ldo), ldo a multiple of 8 and at least cols padded to
// kRoundColumns. A row of halves is divided by a power of two, which goes to scale (tokens,), so that none overflows.
struct RoundRows {
  uint16_t* out;
  int64_t ldo;
  float* scale;  // null for bf16
  const float* x;
  int64_t ldx, tokens, cols;
  RoundNorm norm;
  const float *norm_w, *norm_b;  // (cols,); norm_b of layer norm
  float eps;
};
Status round_rows(const RoundRows& a, Stream stream);

enum class Output { f32, bf16, heads_f32, heads_f16 };

// How sums are stored. y[t, r] = activation(x_scale[t] sum + bias[r]), `rows` outputs per token: with silu_mul half as many as the
// weight has rows, silu of the first half's times the second's.
//   f32    float (tokens, ldy); added to y where accumulate, with no activation
//   bf16   (tokens, ldy), columns as in RoundRows: what a following product takes
//   heads  rows are heads of head_rows, of which the first `nope` go to y (heads, tokens, nope), the others to values (heads,
//          tokens, head_rows - nope): keys and values of expanded attention, float or half
struct Epilogue {
  Output kind;
  Activation activation;
  bool accumulate;
  void* y;
  int64_t ldy;
  void* values;
  int64_t head_rows, nope;
  const float* bias;     // (rows of the weight,) or null
  const float* x_scale;  // (tokens,) or null
  int64_t rows, tokens;  // set by gemm
};

// x (tokens, ldx): bf16 as round_rows writes it; half for f16 weights; float for f32 weights, whose products are in float32.
struct GemmArgs {
  DeviceWeight w;
  const void* x;
  int64_t ldx, tokens;
  Epilogue end;
  float* partial;  // gemm_partial_bytes; null where that is 0
  int64_t head_x;  // elements from the x of a head to that of the next, a multiple of 8; 0: all heads multiply the same x
};
// How a product is dealt to blocks: to each a tile of weight rows x tokens, or a part of its sums, where there are `splits` parts.
struct GemmPlan {
  int tile_rows, tile_tokens;  // 256 x 128, 128 x 128, 128 x 64 or 128 x 32; of f32 weights always 64 x 64
  int splits;
};
// The fastest, about. The same on every card: parts decide the bits of a sum, tiles do not.
GemmPlan gemm_plan(Format format, int64_t rows, int64_t cols, int64_t tokens);
// Where heads have an x of their own: quantized weights, rows of a head a multiple of 128.
constexpr GemmPlan gemm_heads_plan(int64_t tokens) { return {128, tokens <= 32 ? 32 : tokens <= 64 ? 64 : 128, 1}; }
constexpr int64_t gemm_partial_bytes(const GemmPlan& by, int64_t rows, int64_t tokens) {
  return by.splits > 1 ? by.splits * tokens * rows * 4 : 0;
}

// cudaErrorInvalidValue where there is no such plan.
Status gemm(const GemmArgs& a, const GemmPlan& by, Stream stream);

}  // namespace ivlite::cuda
