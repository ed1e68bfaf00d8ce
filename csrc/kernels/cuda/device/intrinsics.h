// The vocabulary of the kernels, for nvcc: the only file with PTX and CUDA headers. tests/cuda/emulator/intrinsics.h has the same
// names for the host.
//
// Arithmetic is IEEE and rounds to nearest even. Nothing contracts a product and a sum: kernels write fmaf where they want it.
// A block has whole warps, along x alone. Functions of a warp are called by all of its lanes that have not ended.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <utility>

#include "kernels/cuda/cuda.h"

#define IVLITE_KERNEL static __global__
#define IVLITE_BOUNDS(...) __launch_bounds__(__VA_ARGS__)  // the most threads of a block, the blocks a processor shall hold
#define IVLITE_KERNEL_OF(...) IVLITE_KERNEL void IVLITE_BOUNDS(__VA_ARGS__)
#define IVLITE_DEVICE __device__ __forceinline__
#define IVLITE_UNROLL _Pragma("unroll")
#define IVLITE_ROLLED _Pragma("unroll 1")

namespace ivlite::cuda {

constexpr int kWarp = 32;

// Where a thread is.
IVLITE_DEVICE int thread_x() { return (int)threadIdx.x; }
IVLITE_DEVICE int block_threads() { return (int)blockDim.x; }
IVLITE_DEVICE int block_x() { return (int)blockIdx.x; }
IVLITE_DEVICE int block_y() { return (int)blockIdx.y; }
IVLITE_DEVICE int block_z() { return (int)blockIdx.z; }
IVLITE_DEVICE int grid_x() { return (int)gridDim.x; }

// Barriers: what was written before is seen after.
IVLITE_DEVICE void sync_block() { __syncthreads(); }
IVLITE_DEVICE void sync_warp() { __syncwarp(); }

// Values of other lanes. Lanes beyond the warp give a thread its own value.
template <class T>
IVLITE_DEVICE T shuffle(T v, int lane) {
  return __shfl_sync(0xffffffff, v, lane);
}
template <class T>
IVLITE_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffff, v, mask);
}
template <class T>
IVLITE_DEVICE T shuffle_down(T v, int by) {
  return __shfl_down_sync(0xffffffff, v, by);
}
IVLITE_DEVICE bool any_lane(bool v) { return __any_sync(0xffffffff, v); }

// Over the warp, in the order of shuffle_xor by 16, 8, 4, 2, 1; every lane gets the result.
IVLITE_DEVICE float warp_sum(float v) {
  IVLITE_UNROLL
  for (int mask = kWarp / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
IVLITE_DEVICE int warp_sum(int v) { return __reduce_add_sync(0xffffffff, v); }
IVLITE_DEVICE float warp_max(float v) {  // of numbers: a NaN counts as missing
  IVLITE_UNROLL
  for (int mask = kWarp / 2; mask; mask /= 2) v = fmaxf(v, shuffle_xor(v, mask));
  return v;
}

// All shared memory of a block: as many bytes as the launch asked for, aligned to 128, not initialised.
template <class T>
IVLITE_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char ivlite_shared_bytes[];
  return reinterpret_cast<T*>(ivlite_shared_bytes);
}

// One transaction per thread, aligned to its size.
struct alignas(16) Bytes16 {
  uint32_t w[4];
};
struct alignas(8) Bytes8 {
  uint32_t w[2];
};
IVLITE_DEVICE Bytes16 load16(const void* p) {
  const uint4 v = *(const uint4*)p;
  return {{v.x, v.y, v.z, v.w}};
}
IVLITE_DEVICE Bytes8 load8(const void* p) {
  const uint2 v = *(const uint2*)p;
  return {{v.x, v.y}};
}
IVLITE_DEVICE uint32_t load4(const void* p) { return *(const uint32_t*)p; }
IVLITE_DEVICE Bytes16 load16_once(const void* p) {  // of global memory that no other thread reads soon and none writes
  Bytes16 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(p));
  return v;
}
IVLITE_DEVICE uint32_t load4_new(const void* p) { return __ldcg((const uint32_t*)p); }  // of what other blocks have written: see last_block
IVLITE_DEVICE void store16(void* p, Bytes16 v) { *(uint4*)p = make_uint4(v.w[0], v.w[1], v.w[2], v.w[3]); }
IVLITE_DEVICE void store8(void* p, Bytes8 v) { *(uint2*)p = make_uint2(v.w[0], v.w[1]); }
IVLITE_DEVICE void store4(void* p, uint32_t v) { *(uint32_t*)p = v; }

// Copies from global to shared memory that run beside the thread; zeros where not valid. They have landed, for this thread, after
// wait_copies<N>, all but those of the last N commits, and for other threads after a barrier besides.
IVLITE_DEVICE void copy_async16(void* shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
IVLITE_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
IVLITE_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 8 x 8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8 and gets, of every matrix, elements
// 2 (i % 4) and the next of row i / 4; transposed, element i / 4 of rows 2 (i % 4) and the next. x2 uses lanes 0 to 15.
IVLITE_DEVICE void ldmatrix_x4(uint32_t r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}
IVLITE_DEVICE void ldmatrix_x4_trans(uint32_t r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}
IVLITE_DEVICE void ldmatrix_x2(uint32_t r[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"((uint32_t)__cvta_generic_to_shared(row))
               : "memory");
}

// d += a b on tensor cores, a (16, K) by rows, b (K, 8) by columns; with g = lane / 4 and t = lane % 4, K = 16 of 16 bits:
//   a[0], a[1]: columns 2 t and the next of rows g and g + 8; a[2], a[3]: the same 8 columns on
//   b[0]: rows 2 t and the next of column g; b[1]: the same 8 rows on
//   d[0], d[1]: columns 2 t and the next of row g; d[2], d[3]: of row g + 8
// With int8, K = 32, and a register holds columns (rows of b) 4 t to 4 t + 3, the second half 16 on.
IVLITE_DEVICE void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
IVLITE_DEVICE void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
IVLITE_DEVICE void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c plus the products of four signed bytes
IVLITE_DEVICE int32_t dot4(int32_t a, int32_t b, int32_t c) { return __dp4a(a, b, c); }

// Numbers of 16 bits as bits.
IVLITE_DEVICE float to_float(uint16_t half) { return __half2float(__ushort_as_half(half)); }
IVLITE_DEVICE float bf16_to_float(uint16_t bf16) { return __uint_as_float((uint32_t)bf16 << 16); }
IVLITE_DEVICE uint16_t to_half(float v) { return __half_as_ushort(__float2half_rn(v)); }
IVLITE_DEVICE uint16_t to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
struct Pair {
  float lo, hi;
};
IVLITE_DEVICE uint32_t pack_half(float lo, float hi) { return to_half(lo) | (uint32_t)to_half(hi) << 16; }
IVLITE_DEVICE Pair unpack_half(uint32_t v) { return {to_float((uint16_t)v), to_float((uint16_t)(v >> 16))}; }
IVLITE_DEVICE uint32_t pack_bf16(float lo, float hi) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
IVLITE_DEVICE Pair unpack_bf16(uint32_t v) { return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000)}; }

// Signed bytes 0 and 2, and 1 and 3, as halves: 1024 + byte has the byte as its lowest bits.
IVLITE_DEVICE void codes_to_half(uint32_t codes, uint32_t& even, uint32_t& odd) {
  const uint32_t bytes = codes ^ 0x80808080;
  const __half2 offset = __halves2half2(__ushort_as_half(0x6480), __ushort_as_half(0x6480));
  uint32_t pair[2] = {__byte_perm(bytes, 0x64646464, 0x4240), __byte_perm(bytes, 0x64646464, 0x4341)};
  IVLITE_UNROLL
  for (int i = 0; i < 2; i++) {
    __half2 v;
    memcpy(&v, &pair[i], 4);
    v = __hsub2(v, offset);
    memcpy(&pair[i], &v, 4);
  }
  even = pair[0], odd = pair[1];
}

IVLITE_DEVICE uint32_t bits_of(float v) { return __float_as_uint(v); }
IVLITE_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
IVLITE_DEVICE int leading_zeros(uint32_t v) { return __clz((int)v); }  // 32 of 0
IVLITE_DEVICE float fast_exp(float v) { return __expf(v); }            // to a few units in the last place for |v| < 30
IVLITE_DEVICE float fast_exp2(float v) {                               // 2^v, to two units in the last place; below 2^-126 it is 0
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
IVLITE_DEVICE float rsqrt(float v) { return 1.0f / sqrtf(v); }  // rounded twice, as on the CPU

// Atomic; the value before. Float sums depend on the order of threads: not for results.
IVLITE_DEVICE int atomic_add(int* p, int v) { return atomicAdd(p, v); }
IVLITE_DEVICE unsigned long long atomic_add(unsigned long long* p, unsigned long long v) { return atomicAdd(p, v); }
IVLITE_DEVICE float atomic_add(float* p, float v) { return atomicAdd(p, v); }

// Whether the block is the last of `count` to come here: it sees what the others wrote before they came, by load4_new. All threads of a
// block call it. The counter is 0 before the first has come and after the last.
IVLITE_DEVICE bool last_block(int32_t* counter, int count) {
  __threadfence();
  __syncthreads();
  const bool last = threadIdx.x == 0 && atomicAdd(counter, 1) == count - 1;
  if (last) *counter = 0;
  const bool mine = __syncthreads_or(last);
  if (mine) __threadfence();
  return mine;
}

// ---- what launchers call ----

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline int current_card() {
  int card = 0;
  cudaGetDevice(&card);
  return card;
}
inline int card_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  cudaDeviceGetAttribute(&value, attribute, current_card());
  return value;
}
inline int multiprocessors() { return card_attribute(cudaDevAttrMultiProcessorCount); }
inline int shared_limit() { return card_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }  // bytes that a block may have

// Starts the kernel; threads is a multiple of 32. An error is not kept for the next call.
template <class... P, class... A>
Status launch(void (*kernel)(P...), Dim3 grid, int threads, size_t shared_bytes, Stream stream, A&&... args) {
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 << 10)
    status = cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);
  if (status == cudaSuccess) {
    std::tuple<P...> values{P(std::forward<A>(args))...};
    void* pointers[sizeof...(P) + 1];
    int i = 0;
    std::apply([&](auto&... value) { ((pointers[i++] = (void*)&value), ...); }, values);
    const dim3 blocks(grid.x, grid.y, grid.z);
    status = cudaLaunchKernel((const void*)kernel, blocks, dim3((unsigned)threads), pointers, shared_bytes, (cudaStream_t)stream);
  }
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

}  // namespace ivlite::cuda
