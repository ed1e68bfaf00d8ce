// Sums over a block, in one order whatever runs when.
#pragma once
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

}  // namespace ivlite::cuda
