// Small kernels by which the emulator itself is tested, faulty ones among them. They use the whole vocabulary.
#pragma once
#include "kernels/cuda/cuda.h"

namespace ivlite::cuda::cases {

enum class Product { bf16, half, int8 };
// d (16, 8) += a (16, K) b (8, K)^T, K = 16, or 32 of int8; matrix: a goes through shared memory and ldmatrix
Status multiply(Product product, void* d, const void* a, const void* b, bool matrix);
// out[lane, 0..3] of ldmatrix over 32 rows of 8 elements
Status matrices(uint32_t* out, const uint16_t* rows, bool transposed);
// out[i, lane]: what each function of a warp makes of in[lane]; kWarpRows of them
constexpr int kWarpRows = 7;
Status warp_functions(float* out, const float* in, int blocks);
// Copies in (64 floats) to shared memory; out: what lies there before the wait, after it, and where the copy was not valid
Status copies(float* out, const float* in);
// Each lane reads `bytes` of shared memory `stride` words apart, and as much of in
Status strided(float* out, const float* in, int bytes, int stride);
// out[i] = in[i] rounded to half, bf16, and back; dot4 of bits
Status rounded(float* out, const float* in, int count);
// blocks add to one counter
Status counted(int* counter, int blocks);

// out[0] = the sum of in (64 blocks): each block adds up 64 of them into sums, and the last to come to the counter adds those
Status gathered(float* out, float* sums, const float* in, int* counter, int blocks);

enum class Fault {
  none,
  read_outside,
  read_before,
  write_outside,
  shared_outside,
  misaligned,
  race_in_block,
  race_in_warp,
  race_of_blocks,
  race_past_arrival,
  race_with_copy,
  read_of_copy,
  missed_barrier,
  missed_lanes,
  mixed_lanes,
  ended_lane,
  unwritten,
};
Status faulty(Fault fault, float* memory, int count);

}  // namespace ivlite::cuda::cases
