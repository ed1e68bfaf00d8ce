// Sums over a block, in one order whatever runs when.
#pragma once
#include <math.h>

#include "intrinsics.h"

namespace ivlite::cuda {

constexpr int kReduceBytes = 32 * 4;  // of shared memory that block_sum takes

// The sum of v over the block's threads, whole warps, in every thread. shared: a float per warp, free before and after.
IVLITE_DEVICE float block_sum(float v, float* shared) {
  const int lane = thread_x() % kWarp, warps = block_threads() / kWarp;
  v = warp_sum(v);
  if (lane == 0) shared[thread_x() / kWarp] = v;
  sync_block();
  v = warp_sum(lane < warps ? shared[lane] : 0.0f);
  sync_block();
  return v;
}

// The largest v of the block's threads, likewise.
IVLITE_DEVICE float block_max(float v, float* shared) {
  const int lane = thread_x() % kWarp, warps = block_threads() / kWarp;
  v = warp_max(v);
  if (lane == 0) shared[thread_x() / kWarp] = v;
  sync_block();
  v = warp_max(shared[lane < warps ? lane : 0]);
  sync_block();
  return v;
}

constexpr int kRowThreads = 256;  // of a block that looks at a row: as many everywhere, so that sums have the same bits

// By how much a row of n values is multiplied that kRowThreads threads look at.
template <class Value>
IVLITE_DEVICE float rms_scale(Value value, int64_t n, float eps, float* shared) {
  float square = 0;
  for (int64_t i = thread_x(); i < n; i += kRowThreads) {
    const float v = value(i);
    square += v * v;
  }
  return 1 / sqrtf(block_sum(square, shared) / (float)n + eps);
}

}  // namespace ivlite::cuda
