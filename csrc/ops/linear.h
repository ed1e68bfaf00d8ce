// Linear layers over packed weights.
#pragma once
#include "core/memory.h"
#include "formats/formats.h"
#include "kernels/table.h"
#include "ops/views.h"

namespace ivlite {

// Matrices (heads, rows, cols) repacked into the panels of kernels/table.h, each head's panels following the last's.
class Weight {
 public:
  // All zeros. Throws std::invalid_argument when there can be no such weight, std::bad_alloc.
  Weight(Format format, int64_t heads, int64_t rows, int64_t cols);

  // Rows [first, first + count) of all heads' matrices, one after the other: whole blocks, which may end in padding. Each row
  // is filled once. Throws std::invalid_argument when `row_bytes` is not such a size or there are not so many rows.
  void fill(int64_t first, int64_t count, const uint8_t* data, int64_t row_bytes);

  Format format() const { return format_; }
  int64_t heads() const { return heads_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t panels() const { return panels_; }  // of one head
  int64_t panel_stride() const { return stride_; }
  size_t nbytes() const { return memory_.size(); }
  const void* head(int64_t h) const { return (const char*)memory_.data() + h * panels_ * stride_; }
  bool quantized() const { return FORMATS[(int)format_].quantized; }

 private:
  Format format_;
  int64_t heads_, rows_, cols_, panels_, stride_;
  HugeBuffer memory_;
};

// What becomes of a product's rows before they are stored. silu_mul: of the first half of them, times the second half.
enum class Activation { none, gelu_tanh, gelu_erf, silu_mul };

// A matrix (rows, cols) of one head, and a bias (rows,) or null.
struct Linear {
  const Weight& w;
  const float* bias;
};

// y (T, rows) = x (T, cols) w^T + bias, added to y when accumulate, which goes with no activation. silu_mul: y (T, rows / 2).
void linear(const OutRows& y, const InRows& x, const Linear& of, bool accumulate, Activation activation);

// y = down(activation(up x)), added to y when accumulate: the same as linear of linear, but what lies between is rounded to
// what down multiplies while it is in the cache, and is never in memory as floats.
void mlp(const OutRows& y, const InRows& x, const Linear& up, Activation activation, const Linear& down, bool accumulate);

// y (T, H, rows) with y[t, h] = w[first + h] x[t, h],  x (T, H, cols).
void linear_heads(const OutHeads& y, const InHeads& x, const Weight& w, int64_t first);

// Activations of `tokens` rows of `cols` columns, quantised; the memory belongs to the caller.
int64_t quant_rows_bytes(int64_t tokens, int64_t cols);
QuantRows quant_rows(void* memory, int64_t tokens, int64_t cols);

// One head's kernel over panels [p0, p1), in the calling thread. xq is used by quantised formats, x by the others.
void linear_panels(const OutRows& y, const InRows& x, const QuantRows& xq, const Weight& w, int64_t head, const float* bias,
                   bool accumulate, int64_t p0, int64_t p1);

// The GEMM path: whether so many tokens take it, the bytes of their quantized activations, and linear_panels from these.
bool uses_gemm(const Weight& w, int64_t tokens);
// The most tokens for which no weight takes it: then each token has the bits of a call of its own.
int64_t few_tokens();
int64_t gemm_bytes(int64_t tokens, int64_t cols);
void gemm_panels(const OutRows& y, const InRows& x, const uint16_t* gemm_x, const Weight& w, int64_t head, const float* bias,
                 bool accumulate, int64_t p0, int64_t p1);

}  // namespace ivlite
