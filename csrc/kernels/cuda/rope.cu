// Rotary embedding: a thread per pair.
#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128;

IVLITE_KERNEL void rope_pairs(RopeArgs a) {
  const int64_t half = a.d / 2, each = a.heads * half, token = block_x();
  const int64_t at = (int64_t)block_y() * kThreads + thread_x();
  if (at >= each) return;
  const int64_t head = at / half, j = at % half;
  const float* x = a.x + token * a.ldx + head * a.ldh;
  const float first = a.interleaved ? x[2 * j] : x[j], second = a.interleaved ? x[2 * j + 1] : x[j + half];
  const float c = a.cos[token * half + j], s = a.sin[token * half + j];
  float* y = a.y + (token * a.heads + head) * a.d;
  y[j] = first * c - second * s;
  y[j + half] = second * c + first * s;
}

}  // namespace

Status rope(const RopeArgs& a, int64_t tokens, Stream stream) {
  const unsigned blocks = (unsigned)((a.heads * (a.d / 2) + kThreads - 1) / kThreads);
  return launch(rope_pairs, {(unsigned)tokens, blocks}, kThreads, 0, stream, a);
}

}  // namespace ivlite::cuda
