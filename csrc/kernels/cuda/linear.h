// Launchers of products of few rows, of what they multiply, and of packed weights, in plain C++.
#pragma once
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/weight.h"

namespace ivlite::cuda {

// weight.cu: packs rows [first, first + count), counted over all heads, from blocks of that format as a file has them. Rows of blocks
// are row_bytes apart. Padding of the weight must be zero before.
Status pack_weight(const DeviceWeight& w, Format format, int64_t first, int64_t count, const void* blocks, int64_t row_bytes,
                   Stream stream);
// y[i] = row ids[i] of w, dequantized; NaN where there is no such row.
Status embedding_rows(float* y, int64_t ldy, const DeviceWeight& w, const int32_t* ids, int64_t count, Stream stream);

// Activations in int8 as QuantRows has them (kernels/table.h): the same codes, scales and sums, in chunks of 32 columns.
// Chunk c has codes 32 c .. 32 c + 31: words of 4 columns in the order 0, 4, 1, 5, 2, 6, 3, 7.
constexpr int kFewRows = 16;  // tokens of a product of few rows, at most
struct Chunk {
  float scale;
  int16_t halves[2];  // sums of the first and of the last 16 codes
};
struct Int8Rows {
  int8_t* codes;
  Chunk* chunks;
  int head_step, token_step, group_step;  // in chunks
};

// Up to 4 tokens lie one behind the other; more of them lie together in each group, padded to 8 or 16, since a matrix unit
// takes 8 of them. Groups are padded to 8. Padding is zero.
constexpr int64_t int8_tokens(int64_t tokens) { return tokens <= 4 ? tokens : tokens <= 8 ? 8 : 16; }
constexpr int64_t int8_groups(int64_t cols) { return (cols + 255) / 256 * 8; }
constexpr int64_t int8_bytes(int64_t heads, int64_t tokens, int64_t cols) {
  return heads * int8_tokens(tokens) * int8_groups(cols) * (32 + (int64_t)sizeof(Chunk));
}
// In memory of int8_bytes, 16-byte aligned.
inline Int8Rows int8_rows(void* memory, int64_t heads, int64_t tokens, int64_t cols) {
  const int padded = (int)int8_tokens(tokens), groups = (int)int8_groups(cols), each = padded * groups;
  Chunk* chunks = (Chunk*)((int8_t*)memory + 32 * heads * each);
  return {(int8_t*)memory, chunks, each, tokens <= 4 ? groups : 1, tokens <= 4 ? 1 : padded};
}

// quantize.cu: x (tokens, heads, cols), tokens up to kFewRows. With norm_w (cols,), of one head, rms_norm comes first.
struct QuantizeArgs {
  Int8Rows out;
  const float* x;
  int64_t ldx, ldh;  // of tokens, of heads
  int64_t heads, tokens, cols;
  const float* norm_w;
  float eps;
};
Status quantize(const QuantizeArgs& a, Stream stream);

// What a product of few rows makes of its outputs for the product that comes next. The block that stores the last output of a run does it:
// a run is a whole row where a norm comes first, else some neighbouring groups.
constexpr int kNextRows = 4;  // tokens at most
struct NextRows {
  int32_t* arrived;     // next_runs counters, which are zeros before and after; null: nothing is made
  Int8Rows codes;       // of a row of all heads' outputs, whose number is a multiple of 32 where there are several heads
  float* floats;        // without codes: (tokens, outputs), normed
  const float* norm_w;  // (outputs), of one head; or null
  float eps;
};
constexpr int64_t next_runs(int64_t outputs) { return (outputs + 31) / 32; }  // counters at most, for the outputs of all heads

// linear.cu: y[t, h, r] = activation(bias[r] + sum_k w[h, r, k] x[t, h, k]), or added to y. A token's outputs have the same
// bits whatever the number of tokens, the grid and the card.
enum class Activation { none, gelu_tanh, gelu_erf, silu_mul };
struct LinearPart {
  DeviceWeight w;
  float* y;
  int64_t ldy, ldh;  // of tokens, of heads
  const float* bias;
};
struct FewRows {
  LinearPart part[2];  // weights that multiply the same x: q and kv_a in one launch; a format of its own for each
  int parts;
  Int8Rows xq;     // of quantized weights
  const float* x;  // of float weights, (tokens, heads, cols) like that of QuantizeArgs
  int64_t ldx, ldh;
  int64_t tokens;
  Activation activation;  // silu_mul: row r of the first half of a weight's rows, times row r of the second half
  bool accumulate;        // without an activation
  NextRows next;          // of one part
};
Status few_rows(const FewRows& a, Stream stream);

}  // namespace ivlite::cuda
