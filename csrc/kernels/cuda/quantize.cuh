// Rounding of activations to int8 in chunks of 32 columns (linear.h), and of rows behind an RMS norm.
#pragma once
#include "intrinsics.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/reduce.cuh"

namespace ivlite::cuda {

struct RoundScale {
  float scale, inverse;
};
// quant_scale of kernels/quant_scale.h for codes up to 127.
IVLITE_DEVICE RoundScale int8_scale(float absmax) {
  const float zero_or_nan = absmax - absmax;
  return {absmax / 127 + zero_or_nan, absmax > 1e-33f ? 127 / absmax : 0};
}

// Rounds columns 4 word .. 4 word + 3 of a chunk; 8 neighbouring lanes have the words of one chunk, and all lanes call this.
IVLITE_DEVICE void store_chunk(const Int8Rows& out, int64_t chunk, int word, const float v[4], bool stored = true) {
  // Bits of magnitudes are ordered as these are, and those of NaN are the largest.
  int top = 0;
  IVLITE_UNROLL
  for (int i = 0; i < 4; i++) {
    const int magnitude = (int)(bits_of(v[i]) & 0x7fffffff);
    top = magnitude > top ? magnitude : top;
  }
  IVLITE_UNROLL
  for (int mask = 1; mask < 8; mask *= 2) {
    const int other = shuffle_xor(top, mask);
    top = other > top ? other : top;
  }
  const RoundScale by = int8_scale(float_of((uint32_t)top));
  uint32_t codes = 0;
  if (by.inverse > 0) {
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) codes |= ((uint32_t)(int)rintf(v[i] * by.inverse) & 0xff) << 8 * i;
  }
  int sum = dot4((int)codes, 0x01010101, 0);
  sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
  const int second = shuffle_xor(sum, 4);
  if (!stored) return;
  store4(out.codes + 32 * chunk + 4 * (word % 4 * 2 + word / 4), codes);
  if (word == 0) {
    const Chunk of{by.scale, {(int16_t)sum, (int16_t)second}};
    Bytes8 bytes;
    memcpy(&bytes, &of, 8);
    store8(out.chunks + chunk, bytes);
  }
}

IVLITE_DEVICE int64_t chunk_at(const Int8Rows& out, int64_t head, int64_t token, int64_t group) {
  return head * out.head_step + token * out.token_step + group * out.group_step;
}

// Rounds value(column) of columns 4 i .. 4 i + 3 of a row of `cols`; 8 neighbouring lanes have the columns of one chunk, and all lanes
// call this.
template <class Value>
IVLITE_DEVICE void round_word(const Int8Rows& out, int64_t head, int64_t token, int64_t i, int64_t cols, Value value, bool stored = true) {
  float v[4];
  IVLITE_UNROLL
  for (int k = 0; k < 4; k++) v[k] = stored && 4 * i + k < cols ? value(4 * i + k) : 0;
  store_chunk(out, chunk_at(out, head, token, i / 8), (int)(i % 8), v, stored);
}

// A row of value(column), RMS norm first, by the kRowThreads threads of a block. shared: as for block_sum.
template <class Value>
IVLITE_DEVICE void round_normed(const Int8Rows& out, int64_t token, int64_t cols, Value value, const float* w, float eps, float* shared) {
  const float scale = rms_scale(value, cols, eps, shared);
  for (int64_t i = thread_x(); i < 8 * int8_groups(cols); i += kRowThreads)
    round_word(out, 0, token, i, cols, [&](int64_t column) { return value(column) * scale * w[column]; });
}

}  // namespace ivlite::cuda
