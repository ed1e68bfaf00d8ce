#include "cases.h"

#include "intrinsics.h"

namespace ivlite::cuda::cases {

namespace {

// The registers of a fragment of a matrix with rows of `stride` words: rows g and g + 8, words t and t + 4.
IVLITE_DEVICE void fragment_a(uint32_t a[4], const uint32_t* words, int stride) {
  const int g = thread_x() / 4, t = thread_x() % 4;
  for (int i = 0; i < 4; i++) a[i] = words[(g + i % 2 * 8) * stride + t + i / 2 * 4];
}

template <Product kProduct>
IVLITE_KERNEL void multiply_kernel(uint32_t* d, const uint32_t* a, const uint32_t* b, int matrix) {
  const int g = thread_x() / 4, t = thread_x() % 4;
  uint32_t fa[4], fb[2] = {b[g * 8 + t], b[g * 8 + t + 4]}, fd[4];
  uint32_t* shared = shared_memory<uint32_t>();
  for (int i = thread_x(); i < 128; i += kWarp) shared[i] = a[i];
  sync_block();
  if (matrix)
    ldmatrix_x4(fa, shared + thread_x() % 16 * 8 + thread_x() / 16 * 4);
  else
    fragment_a(fa, a, 8);
  for (int i = 0; i < 4; i++) fd[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  if constexpr (kProduct == Product::int8) {
    int32_t sums[4];
    memcpy(sums, fd, 16);
    mma_s8(sums, fa, fb);
    memcpy(fd, sums, 16);
  } else {
    float sums[4];
    for (int i = 0; i < 4; i++) sums[i] = float_of(fd[i]);
    if constexpr (kProduct == Product::bf16) mma_bf16(sums, fa, fb);
    if constexpr (kProduct == Product::half) mma_f16(sums, fa, fb);
    for (int i = 0; i < 4; i++) fd[i] = bits_of(sums[i]);
  }
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}

IVLITE_KERNEL void matrices_kernel(uint32_t* out, const uint16_t* rows, int transposed) {
  uint16_t* shared = shared_memory<uint16_t>();
  store16(shared + 8 * thread_x(), load16(rows + 8 * thread_x()));
  sync_warp();
  uint32_t r[4], two[2];
  if (transposed)
    ldmatrix_x4_trans(r, shared + 8 * thread_x());
  else
    ldmatrix_x4(r, shared + 8 * thread_x());
  ldmatrix_x2(two, shared + 8 * (thread_x() % 16));
  for (int i = 0; i < 4; i++) out[6 * thread_x() + i] = r[i];
  for (int i = 0; i < 2; i++) out[6 * thread_x() + 4 + i] = two[i];
}

IVLITE_KERNEL void warp_kernel(float* out, const float* in) {
  const int lane = thread_x() % kWarp, at = block_x() * block_threads() + thread_x();
  const float v = in[at];
  const float made[kWarpRows] = {
      shuffle(v, 31 - lane),           shuffle_xor(v, 5), shuffle_down(v, 3), any_lane(v > 2.5f && lane == 7) ? 1.0f : 0.0f, warp_sum(v),
      (float)warp_sum((int)(v * 100)), warp_max(v)};
  for (int i = 0; i < kWarpRows; i++) out[(int64_t)i * grid_x() * block_threads() + at] = made[i];
}

IVLITE_KERNEL void copies_kernel(float* out, const float* in) {
  float* shared = shared_memory<float>();
  const int i = thread_x();
  for (int j = 0; j < 4; j++) shared[4 * i + j] = -1, shared[128 + 4 * i + j] = -2;
  copy_async16(shared + 4 * i, in + 4 * i);
  commit_copies();
  copy_async16(shared + 128 + 4 * i, in + 4 * i, i % 2 == 0);
  commit_copies();
  wait_copies<1>();
  for (int j = 0; j < 4; j++) out[4 * i + j] = shared[4 * i + j];
  wait_copies<0>();
  for (int j = 0; j < 4; j++) out[128 + 4 * i + j] = shared[128 + 4 * i + j];
}

template <class T>
IVLITE_KERNEL void strided_kernel(float* out, const float* in, int stride) {
  float* shared = shared_memory<float>();
  for (int i = thread_x(); i < kWarp * stride; i += kWarp) shared[i] = 1;
  sync_warp();
  const T a = *(const T*)(shared + thread_x() * stride), b = *(const T*)(in + thread_x() * stride);
  uint32_t first, second;
  memcpy(&first, &a, 4);
  memcpy(&second, &b, 4);
  out[thread_x()] = float_of(first) + float_of(second);
}

IVLITE_KERNEL void rounded_kernel(float* out, const float* in, int count) {
  const int i = block_x() * block_threads() + thread_x();
  if (i >= count) return;
  const Pair half = unpack_half(pack_half(in[i], -in[i])), bf16 = unpack_bf16(pack_bf16(in[i], -in[i]));
  out[4 * i] = half.lo, out[4 * i + 1] = half.hi, out[4 * i + 2] = bf16.lo, out[4 * i + 3] = bf16.hi;
}

IVLITE_KERNEL void counted_kernel(int* counter) { atomic_add(counter, thread_x()); }

IVLITE_KERNEL void gathered_kernel(float* out, float* sums, const float* in, int* counter) {
  const float sum = warp_sum(in[64 * block_x() + thread_x()] + in[64 * block_x() + 32 + thread_x()]);
  if (thread_x() == 0) sums[block_x()] = sum;
  if (!last_block(counter, grid_x())) return;
  float all = 0;
  for (int i = thread_x(); i < grid_x(); i += kWarp) all += float_of(load4_new(sums + i));
  all = warp_sum(all);
  if (thread_x() == 0) out[0] = all;
}

// Of two warps.
IVLITE_KERNEL void faulty_kernel(Fault fault, float* memory, int count) {
  float* shared = shared_memory<float>();  // 64
  const int i = thread_x(), lane = i % kWarp;
  shared[i] = memory[i];
  sync_block();
  float v = shared[63 - i];
  switch (fault) {
    case Fault::none: break;
    case Fault::read_outside: v = memory[count - 1 + i / 63]; break;
    case Fault::read_before: v = memory[-(i == 5)]; break;
    case Fault::write_outside: memory[i == 9 ? count : i] = v; break;
    case Fault::shared_outside: v = shared[64 + i]; break;
    case Fault::misaligned: v = float_of(load8(memory + 1 + i / 2).w[0]); break;
    case Fault::race_in_block: shared[i] = v; break;
    case Fault::race_in_warp: sync_block(), shared[lane] = v, v = shared[lane ^ 1]; break;
    case Fault::race_of_blocks: memory[i] = v; return;
    case Fault::race_past_arrival: {
      const bool last = last_block((int32_t*)memory + count - 1, 2);
      if (i < kWarp) memory[64 + i] = last ? memory[64 + i] + 1 : v;
      return;
    }
    case Fault::race_with_copy:
      if (i == 40) copy_async16(shared + 60, memory);
      break;
    case Fault::read_of_copy:
      sync_block();
      if (i < 16) copy_async16(shared + 4 * i, memory);
      commit_copies();
      sync_block();
      v = shared[i];
      break;
    case Fault::missed_barrier:
      if (i < 40) sync_block();
      break;
    case Fault::missed_lanes:
      if (lane < 9)
        sync_block();
      else
        sync_warp();
      break;
    case Fault::mixed_lanes: v = lane < 9 ? shuffle_xor(v, 1) : (float)any_lane(v > 1); break;
    case Fault::ended_lane:
      if (lane == 3) return;
      v = shuffle(v, 3);
      break;
    case Fault::unwritten: v = shared[64 + i]; break;
  }
  if (i == 0 && fault != Fault::none) memory[100 + block_x()] = v;
}

}  // namespace

Status multiply(Product product, void* d, const void* a, const void* b, bool matrix) {
  const auto kernel = product == Product::bf16   ? multiply_kernel<Product::bf16>
                      : product == Product::half ? multiply_kernel<Product::half>
                                                 : multiply_kernel<Product::int8>;
  return launch(kernel, Dim3{}, kWarp, 512, nullptr, (uint32_t*)d, (const uint32_t*)a, (const uint32_t*)b, (int)matrix);
}

Status matrices(uint32_t* out, const uint16_t* rows, bool transposed) {
  return launch(matrices_kernel, Dim3{}, kWarp, 512, nullptr, out, rows, (int)transposed);
}

Status warp_functions(float* out, const float* in, int blocks) {
  return launch(warp_kernel, Dim3{(unsigned)blocks}, 2 * kWarp, 0, nullptr, out, in);
}

Status copies(float* out, const float* in) { return launch(copies_kernel, Dim3{}, kWarp, 1024, nullptr, out, in); }

Status strided(float* out, const float* in, int bytes, int stride) {
  const auto kernel = bytes == 4 ? strided_kernel<uint32_t> : bytes == 8 ? strided_kernel<Bytes8> : strided_kernel<Bytes16>;
  return launch(kernel, Dim3{}, kWarp, (size_t)(4 * kWarp * stride), nullptr, out, in, stride);
}

Status rounded(float* out, const float* in, int count) {
  return launch(rounded_kernel, Dim3{(unsigned)(count + 127) / 128}, 128, 0, nullptr, out, in, count);
}

Status counted(int* counter, int blocks) { return launch(counted_kernel, Dim3{(unsigned)blocks}, 64, 0, nullptr, counter); }

Status gathered(float* out, float* sums, const float* in, int* counter, int blocks) {
  return launch(gathered_kernel, Dim3{(unsigned)blocks}, kWarp, 0, nullptr, out, sums, in, counter);
}

Status faulty(Fault fault, float* memory, int count) {
  const size_t shared = fault == Fault::unwritten ? 512 : 256;
  const unsigned blocks = fault == Fault::race_of_blocks || fault == Fault::race_past_arrival ? 2 : 1;
  return launch(faulty_kernel, Dim3{blocks}, 64, shared, nullptr, fault, memory, count);
}

}  // namespace ivlite::cuda::cases
