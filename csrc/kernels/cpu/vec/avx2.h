// The vector vocabulary of the shared kernel bodies, for AVX2 + FMA + F16C: eight float lanes.
//
// Everything here and in the files that include it is in an anonymous namespace: an inline function shared between
// objects built with different -m flags would be one symbol, and the linker might keep the copy this CPU cannot run.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define IVLITE_VEC

namespace ivlite {
namespace {
namespace vec {

using V = __m256;
constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // x 2 vectors = 12 accumulators; with 2 operands and a broadcast, 15 of 16 registers

inline __m256i tail_mask(int n) {  // lanes [0, n)
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V load_n(const float* p, int n) { return n >= kLanes ? load(p) : _mm256_maskload_ps(p, tail_mask(n)); }
inline void store_n(float* p, V v, int n) {
  if (n >= kLanes)
    store(p, v);
  else
    _mm256_maskstore_ps(p, tail_mask(n), v);
}

inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }    // a b + c
inline V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
// Of a NaN and a number, min and max return their second argument.
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
// The largest magnitude so far, for m >= 0 or NaN: compared as integers, where NaN is larger than infinity, so that a NaN stays.
inline V absmax(V m, V a) { return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(m), _mm256_castps_si256(abs(a)))); }
inline V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V scale2(V a, V n) {  // a * 2^n for integral n in [-126, 127]
  return mul(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}

inline V first_n(V a, int n) { return n >= kLanes ? a : _mm256_and_ps(a, _mm256_castsi256_ps(tail_mask(n))); }  // then zeros
inline V zero_below(V a, V x, V limit) {  // a, or 0 in the lanes where x < limit; a NaN in x keeps a
  return _mm256_and_ps(a, _mm256_cmp_ps(x, limit, _CMP_NLT_UQ));
}

inline float sum(V a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float absmax_lane(V m) {  // of what absmax returned
  const __m256i i = _mm256_castps_si256(m);
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1))));
}

// Loads that convert to float.
inline V load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline V load_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline V load_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }

// Stores that convert from float, always a whole vector.
inline void store_f16(uint16_t* p, V v) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
inline void store_bf16(uint16_t* p, V v) {  // to nearest even; a NaN stays a NaN
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
  r = _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
  r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(r));
}
inline V store_int8(int8_t* p, V v) {  // to nearest even, clamped to -127..127; returns the codes as float
  __m256i i = _mm256_cvtps_epi32(v);
  i = _mm256_max_epi32(_mm256_min_epi32(i, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
  const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packs_epi16(w, w));
  return _mm256_cvtepi32_ps(i);
}

// a[0], a[2], ... of 2 kLanes floats to even, a[1], a[3], ... to odd.
inline void deinterleave(const float* p, V& even, V& odd) {
  const V a = load(p), b = load(p + 8);  // shuffles work within 128 bits, so 64-bit parts are reordered after
  even = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
  odd = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
}

// Lane i gets that of lane i ^ h, for a power of two h below kLanes.
template <int h>
inline V swap_lanes(V v) {
  return _mm256_permutevar8x32_ps(v, _mm256_xor_si256(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(h)));
}

// For the probes.
using I = __m256i;
constexpr int kStepMacs = 32;
inline I set1_i8(int8_t x) { return _mm256_set1_epi8(x); }
inline I int8_step(I acc, I a, I b) { return _mm256_add_epi16(acc, _mm256_maddubs_epi16(a, b)); }
inline I zero_i() { return _mm256_setzero_si256(); }
inline I load_i(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store_i(void* p, I a) { _mm256_storeu_si256((__m256i*)p, a); }
inline I add_i64(I a, I b) { return _mm256_add_epi64(a, b); }
inline void touch(I& a) { asm volatile("" : "+x"(a)); }  // keeps the compiler from removing the value

}  // namespace vec
}  // namespace
}  // namespace ivlite

#include "kernels/cpu/vec/nibbles.h"
