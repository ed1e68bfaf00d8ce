// Rounds activations to int8 for products of few rows, behind an RMS norm where one comes first.
#include <math.h>

#include "intrinsics.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/reduce.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128;

struct Scale {
  float scale, inverse;
};
// quant_scale of kernels/quant_scale.h for codes up to 127.
IVLITE_DEVICE Scale int8_scale(float absmax) {
  const float zero_or_nan = absmax - absmax;
  return {absmax / 127 + zero_or_nan, absmax > 1e-33f ? 127 / absmax : 0};
}

// Rounds columns 4 word .. 4 word + 3 of a chunk; 8 neighbouring lanes have the words of one chunk, and all lanes call this.
IVLITE_DEVICE void store_chunk(const Int8Rows& out, int64_t chunk, int word, const float v[4]) {
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
  const Scale by = int8_scale(float_of((uint32_t)top));
  uint32_t codes = 0;
  if (by.inverse > 0) {
    IVLITE_UNROLL
    for (int i = 0; i < 4; i++) codes |= ((uint32_t)(int)rintf(v[i] * by.inverse) & 0xff) << 8 * i;
  }
  int sum = dot4((int)codes, 0x01010101, 0);
  sum += shuffle_xor(sum, 1), sum += shuffle_xor(sum, 2);
  const int second = shuffle_xor(sum, 4);
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

// A thread rounds 4 columns. Blocks along y: tokens, padding included; along z: heads.
IVLITE_KERNEL void quantize_kernel(QuantizeArgs a) {
  const int64_t i = (int64_t)block_x() * kThreads + thread_x(), group = i / 8, column = 4 * i;
  if (group >= int8_groups(a.cols)) return;
  const float* x = a.x + block_y() * a.ldx + block_z() * a.ldh;
  float v[4];
  IVLITE_UNROLL
  for (int k = 0; k < 4; k++) v[k] = block_y() < a.tokens && column + k < a.cols ? x[column + k] : 0;
  store_chunk(a.out, chunk_at(a.out, block_z(), block_y(), group), (int)(i % 8), v);
}

// A block rounds one token, or clears padding.
IVLITE_KERNEL void norm_quantize_kernel(QuantizeArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  const bool real = block_x() < a.tokens;
  const float scale = real ? rms_scale(x, a.cols, a.eps, shared_memory<float>()) : 0;
  for (int64_t i = thread_x(); i < 8 * int8_groups(a.cols); i += block_threads()) {
    float v[4];
    IVLITE_UNROLL
    for (int k = 0; k < 4; k++) {
      const int64_t column = 4 * i + k;
      v[k] = real && column < a.cols ? x[column] * scale * a.norm_w[column] : 0;
    }
    store_chunk(a.out, chunk_at(a.out, 0, block_x(), i / 8), (int)(i % 8), v);
  }
}

}  // namespace

Status quantize(const QuantizeArgs& a, Stream stream) {
  const unsigned tokens = (unsigned)int8_tokens(a.tokens);
  if (a.tokens == 0 || a.heads == 0) return 0;
  if (a.norm_w) return launch(norm_quantize_kernel, {tokens, 1, 1}, row_threads(a.cols), kReduceBytes, stream, a);
  const int64_t threads = 8 * int8_groups(a.cols);
  return launch(quantize_kernel, {(unsigned)((threads + kThreads - 1) / kThreads), tokens, (unsigned)a.heads}, kThreads, 0, stream, a);
}

}  // namespace ivlite::cuda
