// The vector vocabulary of the shared kernel bodies, for ARM's Advanced SIMD with dot products: four float lanes.
//
// The same vocabulary as avx2.h, which says why all of this is in an anonymous namespace.
#pragma once
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#define IVLITE_VEC

namespace ivlite {
namespace {
namespace vec {

using V = float32x4_t;
constexpr int kLanes = 4;
constexpr int kTileRows = 12;  // x 2 vectors = 24 accumulators of 32 registers

inline V zero() { return vdupq_n_f32(0); }
inline V set1(float x) { return vdupq_n_f32(x); }
inline V load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, V v) { vst1q_f32(p, v); }
inline V load_n(const float* p, int n) {  // no masked loads here: nothing past lane n may be read
  switch (n) {
    case 0: return zero();
    case 1: return vld1q_lane_f32(p, zero(), 0);
    case 2: return vcombine_f32(vld1_f32(p), vdup_n_f32(0));
    case 3: return vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vdup_n_f32(0)), 2);
    default: return load(p);
  }
}
inline void store_n(float* p, V v, int n) {
  if (n >= kLanes) return store(p, v);
  if (n >= 2) vst1_f32(p, vget_low_f32(v));
  if (n == 3) vst1q_lane_f32(p + 2, v, 2);
  if (n == 1) vst1q_lane_f32(p, v, 0);
}

inline V add(V a, V b) { return vaddq_f32(a, b); }
inline V sub(V a, V b) { return vsubq_f32(a, b); }
inline V mul(V a, V b) { return vmulq_f32(a, b); }
inline V div(V a, V b) { return vdivq_f32(a, b); }
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V fnma(V a, V b, V c) { return vfmsq_f32(c, a, b); }
// The second argument if either is NaN, as on x86; the instructions of that name would return the NaN.
inline V min(V a, V b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline V max(V a, V b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline V abs(V a) { return vabsq_f32(a); }
inline V absmax(V m, V a) { return vreinterpretq_f32_s32(vmaxq_s32(vreinterpretq_s32_f32(m), vreinterpretq_s32_f32(abs(a)))); }
inline V round(V a) { return vrndnq_f32(a); }
inline V scale2(V a, V n) { return mul(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23))); }

inline V first_n(V a, int n) {
  static const uint32_t lane[kLanes] = {0, 1, 2, 3};
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vcltq_u32(vld1q_u32(lane), vdupq_n_u32((uint32_t)n))));
}
inline V zero_below(V a, V x, V limit) { return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcltq_f32(x, limit))); }

inline float sum(V a) { return vaddvq_f32(a); }
inline float absmax_lane(V m) {
  const int32_t bits = vmaxvq_s32(vreinterpretq_s32_f32(m));
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

// Four bytes, and four zeros.
inline int8x8_t load_4(const int8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return vcreate_s8(x);
}

inline V load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline V load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline V load_i8(const int8_t* p) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(load_4(p))))); }

inline void store_f16(uint16_t* p, V v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline V store_int8(int8_t* p, V v) {
  const int32x4_t i = vmaxq_s32(vminq_s32(vcvtnq_s32_f32(v), vdupq_n_s32(127)), vdupq_n_s32(-127));
  const int16x4_t w = vmovn_s32(i);
  const uint32_t codes = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(w, w))), 0);
  memcpy(p, &codes, 4);
  return vcvtq_f32_s32(i);
}

inline void deinterleave(const float* p, V& even, V& odd) {
  const float32x4x2_t both = vld2q_f32(p);
  even = both.val[0], odd = both.val[1];
}

template <int h>
inline V swap_lanes(V v) {
  return h == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2);
}

// 64 codes of 4 bits to int8: columns 0..31 are the low halves of 32 bytes, 32..63 the high ones; the nibbles of two bytes choose the
// tables of each 16.
inline void store_nibbles(int8_t* to, const uint8_t* codes, const int8_t (*table)[16], const uint8_t* which) {
  for (int i = 0; i < 2; i++) {
    const uint8x16_t bytes = vld1q_u8(codes + 16 * i);
    const int first = which[0] >> 4 * i & 15, second = which[1] >> 4 * i & 15;
    vst1q_s8(to + 16 * i, vqtbl1q_s8(vld1q_s8(table[first]), vandq_u8(bytes, vdupq_n_u8(15))));
    vst1q_s8(to + 32 + 16 * i, vqtbl1q_s8(vld1q_s8(table[second]), vshrq_n_u8(bytes, 4)));
  }
}

// For the probes.
using I = int32x4_t;
constexpr int kStepMacs = 16;
inline I set1_i8(int8_t x) { return vreinterpretq_s32_s8(vdupq_n_s8(x)); }
inline I int8_step(I acc, I a, I b) { return vdotq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }
inline I zero_i() { return vdupq_n_s32(0); }
inline I load_i(const void* p) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p)); }
inline void store_i(void* p, I a) { vst1q_u8((uint8_t*)p, vreinterpretq_u8_s32(a)); }
inline I add_i64(I a, I b) { return vreinterpretq_s32_s64(vaddq_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b))); }
inline void touch(I& a) { asm volatile("" : "+w"(a)); }  // keeps the compiler from removing the value

}  // namespace vec
}  // namespace
}  // namespace ivlite
