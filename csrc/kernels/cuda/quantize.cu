// Rounds activations to int8 for products of few rows, behind an RMS norm where one comes first.
#include "kernels/cuda/quantize.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128;

// A thread rounds 4 columns. Blocks along y: tokens, padding included; along z: heads.
IVLITE_KERNEL void quantize_kernel(QuantizeArgs a) {
  const int64_t i = (int64_t)block_x() * kThreads + thread_x();
  if (i / 8 >= int8_groups(a.cols)) return;
  const float* x = a.x + block_y() * a.ldx + block_z() * a.ldh;
  round_word(a.out, block_z(), block_y(), i, block_y() < a.tokens ? a.cols : 0, [&](int64_t column) { return x[column]; });
}

// A block rounds one token, or clears padding.
IVLITE_KERNEL void norm_quantize_kernel(QuantizeArgs a) {
  const float* x = a.x + block_x() * a.ldx;
  float* shared = shared_memory<float>();
  if (block_x() < a.tokens) {
    round_normed(
        a.out, block_x(), a.cols, [&](int64_t column) { return x[column]; }, a.norm_w, a.eps, shared);
  } else {
    for (int64_t i = thread_x(); i < 8 * int8_groups(a.cols); i += kRowThreads)
      round_word(a.out, 0, block_x(), i, 0, [](int64_t) { return 0.0f; });
  }
}

}  // namespace

Status quantize(const QuantizeArgs& a, Stream stream) {
  const unsigned tokens = (unsigned)int8_tokens(a.tokens);
  if (a.tokens == 0 || a.heads == 0) return 0;
  if (a.norm_w) return launch(norm_quantize_kernel, {tokens, 1, 1}, kRowThreads, kReduceBytes, stream, a);
  const int64_t threads = 8 * int8_groups(a.cols);
  return launch(quantize_kernel, {(unsigned)((threads + kThreads - 1) / kThreads), tokens, (unsigned)a.heads}, kThreads, 0, stream, a);
}

}  // namespace ivlite::cuda
