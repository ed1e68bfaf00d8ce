// The vocabulary of the kernels for the host: the names of csrc/kernels/cuda/device/intrinsics.h, which says what they do.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <tuple>
#include <utility>

#include "emulator.h"
#include "formats/bf16.h"
#include "formats/f16.h"
#include "kernels/cuda/cuda.h"

#define __device__
#define __host__
#define __constant__
#define __global__
#define __forceinline__ inline
#define IVLITE_BOUNDS(...)
#define IVLITE_KERNEL_OF(...) static void
#define IVLITE_KERNEL static
#define IVLITE_DEVICE inline
#define IVLITE_UNROLL
#define IVLITE_ROLLED

namespace ivlite::cuda {

constexpr int kWarp = 32;

inline int thread_x() { return emulator::thread(); }
inline int block_threads() { return emulator::threads(); }
inline int block_x() { return (int)emulator::block().x; }
inline int block_y() { return (int)emulator::block().y; }
inline int block_z() { return (int)emulator::block().z; }
inline int grid_x() { return (int)emulator::grid().x; }

inline void sync_block() { emulator::wait_for_block(); }
inline void sync_warp() { emulator::with_warp(emulator::nothing, nullptr); }

template <class T>
T shuffle_from(T v, int lane) {
  static_assert(sizeof(T) == 4, "shuffles are of 32 bits");
  emulator::Shuffled s{0, lane};
  memcpy(&s.value, &v, 4);
  emulator::with_warp(emulator::shuffle, &s);
  memcpy(&v, &s.value, 4);
  return v;
}
template <class T>
T shuffle(T v, int lane) {
  return shuffle_from(v, lane & (kWarp - 1));
}
template <class T>
T shuffle_xor(T v, int mask) {
  return shuffle_from(v, (emulator::thread() ^ mask) & (kWarp - 1));
}
template <class T>
T shuffle_down(T v, int by) {
  const int mine = emulator::thread() & (kWarp - 1), lane = mine + by;
  return shuffle_from(v, lane < kWarp ? lane : mine);
}
inline bool any_lane(bool v) {
  int value = v;
  emulator::with_warp(emulator::any, &value);
  return value;
}
inline float warp_sum(float v) {
  emulator::with_warp(emulator::float_sum, &v);
  return v;
}
inline int warp_sum(int v) {
  emulator::with_warp(emulator::int_sum, &v);
  return v;
}
inline float warp_max(float v) {
  emulator::with_warp(emulator::float_max, &v);
  return v;
}

template <class T>
T* shared_memory() {
  return (T*)emulator::shared();
}

struct alignas(16) Bytes16 {
  uint32_t w[4];
};
struct alignas(8) Bytes8 {
  uint32_t w[2];
};
// One access each, whatever its alignment, which the checked build looks at.
typedef uint32_t Word4 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t Word2 __attribute__((aligned(1), may_alias));
typedef uint32_t Word1 __attribute__((aligned(1), may_alias));
inline Bytes16 load16(const void* p) {
  const Word4 v = *(const Word4*)p;
  return {{v[0], v[1], v[2], v[3]}};
}
inline Bytes8 load8(const void* p) {
  const uint64_t v = *(const Word2*)p;
  return {{(uint32_t)v, (uint32_t)(v >> 32)}};
}
inline uint32_t load4(const void* p) { return *(const Word1*)p; }
inline Bytes16 load16_once(const void* p) { return load16(p); }
inline uint32_t load4_new(const void* p) { return load4(p); }
inline void store16(void* p, Bytes16 v) { *(Word4*)p = Word4{v.w[0], v.w[1], v.w[2], v.w[3]}; }
inline void store8(void* p, Bytes8 v) { *(Word2*)p = v.w[0] | (uint64_t)v.w[1] << 32; }
inline void store4(void* p, uint32_t v) { *(Word1*)p = v; }

inline void copy_async16(void* shared, const void* global, bool valid = true) { emulator::copy_later(shared, global, valid); }
inline void commit_copies() { emulator::commit_copies(); }
template <int N>
void wait_copies() {
  emulator::wait_copies(N);
}

inline void ldmatrix_x4(uint32_t r[4], const void* row) {
  emulator::Matrices m{r, row};
  emulator::with_warp(emulator::ldmatrix_x4, &m);
}
inline void ldmatrix_x4_trans(uint32_t r[4], const void* row) {
  emulator::Matrices m{r, row};
  emulator::with_warp(emulator::ldmatrix_x4_trans, &m);
}
inline void ldmatrix_x2(uint32_t r[2], const void* row) {
  emulator::Matrices m{r, row};
  emulator::with_warp(emulator::ldmatrix_x2, &m);
}
inline void mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  emulator::Fragments f{d, a, b};
  emulator::with_warp(emulator::mma_bf16, &f);
}
inline void mma_f16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  emulator::Fragments f{d, a, b};
  emulator::with_warp(emulator::mma_f16, &f);
}
inline void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2]) {
  emulator::Fragments f{d, a, b};
  emulator::with_warp(emulator::mma_s8, &f);
}

inline int32_t dot4(int32_t a, int32_t b, int32_t c) {
  for (int i = 0; i < 32; i += 8) c += (int32_t)(int8_t)(a >> i) * (int8_t)(b >> i);
  return c;
}

inline float to_float(uint16_t half) { return f16_to_f32(half); }
inline float bf16_to_float(uint16_t bf16) { return bf16_to_f32(bf16); }
inline uint16_t to_half(float v) { return f32_to_f16(v); }
inline uint16_t to_bf16(float v) { return f32_to_bf16(v); }
struct Pair {
  float lo, hi;
};
inline uint32_t pack_half(float lo, float hi) { return to_half(lo) | (uint32_t)to_half(hi) << 16; }
inline Pair unpack_half(uint32_t v) { return {to_float((uint16_t)v), to_float((uint16_t)(v >> 16))}; }
inline uint32_t pack_bf16(float lo, float hi) { return to_bf16(lo) | (uint32_t)to_bf16(hi) << 16; }
inline Pair unpack_bf16(uint32_t v) { return {bf16_to_float((uint16_t)v), bf16_to_float((uint16_t)(v >> 16))}; }

inline void codes_to_half(uint32_t codes, uint32_t& even, uint32_t& odd) {
  const auto code = [&](int i) { return (float)(int8_t)(codes >> 8 * i); };
  even = pack_half(code(0), code(2)), odd = pack_half(code(1), code(3));
}

inline uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}
inline int leading_zeros(uint32_t v) { return v ? __builtin_clz(v) : 32; }
inline float fast_exp(float v) { return expf(v); }
inline float fast_exp2(float v) { return exp2f(v); }
inline float rsqrt(float v) { return 1.0f / sqrtf(v); }

int atomic_add(int* p, int v);
unsigned long long atomic_add(unsigned long long* p, unsigned long long v);
float atomic_add(float* p, float v);

inline bool last_block(int32_t* counter, int count) { return emulator::last_block(counter, count); }

inline int multiprocessors() { return 128; }
inline int shared_limit() { return (int)emulator::shared_limit; }

// Calls the kernel with its arguments, which lie on the launcher's stack: no access of the kernel's.
template <class... P, size_t... I>
__attribute__((no_sanitize("thread"))) void call_kernel(const std::pair<void (*)(P...), std::tuple<P...>>& call,
                                                        std::index_sequence<I...>) {
  call.first(std::get<I>(call.second)...);
}
template <class... P>
__attribute__((no_sanitize("thread"))) void kernel_body(const void* arguments) {
  call_kernel(*(const std::pair<void (*)(P...), std::tuple<P...>>*)arguments, std::index_sequence_for<P...>());
}
template <class... P, class... A>
Status launch_named(const char* words, void (*kernel)(P...), Dim3 grid, int threads, size_t shared_bytes, Stream, A&&... args) {
  const std::pair<void (*)(P...), std::tuple<P...>> call{kernel, std::tuple<P...>{P(std::forward<A>(args))...}};
  emulator::run({words, grid, threads, shared_bytes, kernel_body<P...>, &call});
  return 0;
}
#define launch(...) launch_named(#__VA_ARGS__, __VA_ARGS__)

}  // namespace ivlite::cuda
