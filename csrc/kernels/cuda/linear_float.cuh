// Float weights times 1 to 16 tokens, in float32.
//
// A warp has 16 rows. Lane 4 r + q has rows r and r + 8 and 8 columns of each step of 32.
#pragma once
#include "kernels/cuda/linear_sum.cuh"

namespace ivlite::cuda {

// Activations of float weights, where a head's begin.
struct FloatRows {
  const float* x;
  int64_t ldx;
  int tokens, cols;
  bool aligned;  // every row, to 16 bytes
};

// Columns col .. col + 7 of a token, zeros behind the last.
IVLITE_DEVICE void load_columns(float v[8], const FloatRows& x, int token, int col) {
  const float* at = x.x + token * x.ldx + col;
  if (x.aligned && col + 8 <= x.cols) {
    const Bytes16 low = load16(at), high = load16(at + 4);
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) v[i] = float_of(low.w[i]), v[4 + i] = float_of(high.w[i]);
    return;
  }
  IVLITE_UNROLL
  for (int i = 0; i < 8; i++) v[i] = col + i < x.cols ? at[i] : 0;
}

// 8 elements of a weight as stored.
template <Format F>
struct RawOctet {
  static constexpr int kLoads = code_bytes(F) / 64;
  Bytes16 raw[kLoads];

  IVLITE_DEVICE void load(const uint8_t* row, int col) {
    IVLITE_UNROLL
    for (int i = 0; i < kLoads; i++) raw[i] = kLoads == 1 ? load16_once(row + 2 * col) : load16(row + 4 * col + 16 * i);
  }
  IVLITE_DEVICE float get(int i) const {
    if constexpr (F == Format::f32) return float_of(raw[i / 4].w[i % 4]);
    return to_float((uint16_t)(raw[0].w[i / 2] >> i % 2 * 16));
  }
};

// The sums of a warp's rows to partial[kPartialRows t + row].
template <Format F, int Tokens>
IVLITE_DEVICE void float_sums(float* partial, const DeviceWeight& w, const FloatRows& x, const WarpPart& part) {
  constexpr int depth = Tokens > 4 || F == Format::f32 ? 2 : 4;  // steps whose loads are under way together
  const int lane = thread_x() % kWarp, q = lane % 4, r = lane / 4;
  const uint8_t* rows[2] = {w.codes + part.row(0, r) * code_stride(w), w.codes + part.row(1, r) * code_stride(w)};
  float sum[2][Tokens] = {};
  for (int step = part.first; step < part.steps; step += depth * part.every) {
    RawOctet<F> raw[depth][2];
    IVLITE_UNROLL
    for (int d = 0; d < depth; d++)
      if (step + d * part.every < part.steps)
        for (int i = 0; i < 2; i++) raw[d][i].load(rows[i], 32 * (step + d * part.every) + 8 * q);
    IVLITE_UNROLL
    for (int d = 0; d < depth; d++) {
      if (step + d * part.every >= part.steps) break;
      IVLITE_UNROLL
      for (int t = 0; t < Tokens; t++) {
        if (Tokens > 4 && t % 2 == 0) sync_warp();  // or the compiler loads all tokens, and runs out of registers
        float v[8];
        load_columns(v, x, t < x.tokens ? t : x.tokens - 1, 32 * (step + d * part.every) + 8 * q);
        IVLITE_UNROLL
        for (int i = 0; i < 2; i++) {
          IVLITE_UNROLL
          for (int k = 0; k < 8; k++) sum[i][t] = fmaf(raw[d][i].get(k), v[k], sum[i][t]);
        }
      }
    }
  }
  IVLITE_UNROLL
  for (int i = 0; i < 2; i++) {
    IVLITE_UNROLL
    for (int t = 0; t < Tokens; t++) {
      float s = sum[i][t];
      s += shuffle_xor(s, 1), s += shuffle_xor(s, 2);
      if (q == t % 4) partial[kPartialRows * t + 8 * i + r] = s;
    }
  }
}

}  // namespace ivlite::cuda
