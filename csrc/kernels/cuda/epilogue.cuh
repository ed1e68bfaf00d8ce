// What becomes of the sums of a product before they are stored: x's scale, bias, activation, addition, rounding.
#pragma once
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/half.cuh"

namespace ivlite::cuda {

// Outputs per token. Those behind the last are zeros in bf16: the next product reads whole chunks of columns.
constexpr int64_t stored_rows(const Epilogue& end) {
  return end.kind == Output::bf16 ? (end.rows + kRoundColumns - 1) / kRoundColumns * kRoundColumns : end.rows;
}

// The outputs of one row, one per token.
class OutputRow {
 public:
  IVLITE_DEVICE OutputRow(const Epilogue& end, int64_t row) : end_(end) {
    stored_ = row < stored_rows(end), real_ = row < end.rows;
    bias_ = end.bias && real_ ? end.bias[row] : 0;
    up_bias_ = end.bias && real_ && end.activation == Activation::silu_mul ? end.bias[end.rows + row] : 0;
    wide_ = end.kind == Output::f32 || end.kind == Output::heads_f32;
    to_ = (char*)end.y, stride_ = end.ldy;
    if (end.kind == Output::heads_f32 || end.kind == Output::heads_f16) {
      const int64_t head = row / end.head_rows, in = row % end.head_rows;
      const bool key = in < end.nope;
      stride_ = key ? end.nope : end.head_rows - end.nope;
      to_ = (char*)(key ? end.y : end.values);
      row = head * end.tokens * stride_ + (key ? in : in - end.nope);
    }
    to_ += row * (wide_ ? 4 : 2);
  }

  IVLITE_DEVICE bool stored() const { return stored_; }

  IVLITE_DEVICE void store(int64_t token, float sum) const {
    float value = sum * scale(token) + bias_;
    if (end_.activation == Activation::gelu_tanh) value = gelu_tanh(value);
    if (end_.activation == Activation::gelu_erf) value = gelu_erf(value);
    put(token, value);
  }
  IVLITE_DEVICE void store_pair(int64_t token, float gate, float up) const {
    gate = gate * scale(token) + bias_, up = up * scale(token) + up_bias_;
    put(token, silu_mul(gate, up));
  }

 private:
  IVLITE_DEVICE float scale(int64_t token) const { return end_.x_scale ? end_.x_scale[token] : 1; }
  IVLITE_DEVICE void put(int64_t token, float value) const {
    if (wide_) {
      float* y = (float*)to_ + token * stride_;
      *y = end_.accumulate ? *y + value : value;
    } else {
      ((uint16_t*)to_)[token * stride_] = !real_ ? 0 : end_.kind == Output::bf16 ? to_bf16(value) : to_finite_half(value);
    }
  }

  const Epilogue& end_;
  char* to_;
  int64_t stride_;
  float bias_, up_bias_;
  bool stored_, real_, wide_;
};

}  // namespace ivlite::cuda
