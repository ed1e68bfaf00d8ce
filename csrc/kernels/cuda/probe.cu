// What a card can do at most, beside which `ivlite bench` puts what is reached.
#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = kProbeThreads, kAhead = 4, kTiles = kProbeProducts;

IVLITE_KERNEL void copy_bytes(char* to, const char* from, int64_t chunks) {  // of 16 bytes
  const int64_t stride = (int64_t)grid_x() * kThreads;
  for (int64_t at = (int64_t)block_x() * kThreads + thread_x(); at < chunks; at += kAhead * stride) {
    Bytes16 held[kAhead];
    for (int i = 0; i < kAhead; i++)
      if (at + i * stride < chunks) held[i] = load16_once(from + 16 * (at + i * stride));
    for (int i = 0; i < kAhead; i++)
      if (at + i * stride < chunks) store16(to + 16 * (at + i * stride), held[i]);
  }
}

// Products of fragments that stay in registers: kTiles independent sums hide the latency of each.
template <class Sum, class Multiply>
IVLITE_DEVICE void multiply(float* out, int steps, Multiply product) {
  Sum sums[kTiles][4] = {};
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; i++) a[i] = (uint32_t)(thread_x() * 7 + i);
  for (int i = 0; i < 2; i++) b[i] = (uint32_t)(thread_x() * 5 + i);
  for (int step = 0; step < steps; step++)
    for (int tile = 0; tile < kTiles; tile++) product(sums[tile], a, b);
  Sum all = 0;
  for (auto& tile : sums)
    for (Sum s : tile) all += s;
  out[(int64_t)block_x() * kThreads + thread_x()] = (float)all;  // so that nothing is left out
}

IVLITE_KERNEL void multiply_bf16(float* out, int steps) {
  multiply<float>(out, steps, [](float* d, const uint32_t* a, const uint32_t* b) { mma_bf16(d, a, b); });
}
IVLITE_KERNEL void multiply_s8(float* out, int steps) {
  multiply<int32_t>(out, steps, [](int32_t* d, const uint32_t* a, const uint32_t* b) { mma_s8(d, a, b); });
}

}  // namespace

Status probe_copy(void* to, const void* from, int64_t bytes, int blocks, Stream stream) {
  return launch(copy_bytes, {(unsigned)blocks}, kThreads, 0, stream, (char*)to, (const char*)from, bytes / 16);
}

Status probe_matrix(float* out, int steps, int blocks, bool int8, Stream stream) {
  return launch(int8 ? multiply_s8 : multiply_bf16, {(unsigned)blocks}, kThreads, 0, stream, out, steps);
}

}  // namespace ivlite::cuda
