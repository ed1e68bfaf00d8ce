// The vector vocabulary of the shared kernel bodies, for AVX-512 F/BW/DQ/VL: sixteen float lanes.
//
// The same vocabulary as avx2.h, which says why all of this is in an anonymous namespace.
#pragma once
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 says so of its own undefined-value intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifdef IVLITE_EMULATE_AVX512  // tests on a machine without AVX-512
#include "kernels/cpu/vec/emulate512.h"
#else
#include <immintrin.h>
#endif
#include <stdint.h>
#include <string.h>

#define IVLITE_VEC

namespace ivlite {
namespace {
namespace vec {

using V = __m512;
constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // x 2 vectors = 24 accumulators of 32 registers

inline __mmask16 tail_mask(int n) { return (__mmask16)((1u << n) - 1); }  // lanes [0, n)

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V load_n(const float* p, int n) { return n >= kLanes ? load(p) : _mm512_maskz_loadu_ps(tail_mask(n), p); }
inline void store_n(float* p, V v, int n) {
  if (n >= kLanes)
    store(p, v);
  else
    _mm512_mask_storeu_ps(p, tail_mask(n), v);
}

inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V abs(V a) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff))); }
inline V absmax(V m, V a) { return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(m), _mm512_castps_si512(abs(a)))); }
inline V round(V a) { return _mm512_roundscale_ps(a, 0); }
inline V scale2(V a, V n) {
  return mul(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)));
}

inline V first_n(V a, int n) { return n >= kLanes ? a : _mm512_maskz_mov_ps(tail_mask(n), a); }
inline V zero_below(V a, V x, V limit) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), a); }

inline float sum(V a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float absmax_lane(V m) {
  const __m512i i = _mm512_castps_si512(m);
  const __m256i h = _mm256_max_epi32(_mm512_castsi512_si256(i), _mm512_extracti64x4_epi64(i, 1));
  __m128i s = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  s = _mm_max_epi32(s, _mm_unpackhi_epi64(s, s));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 1))));
}

inline V load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline V load_bf16(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline V load_i8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }

inline void store_f16(uint16_t* p, V v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
inline void store_bf16(uint16_t* p, V v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i out = _mm512_mask_blend_epi32(nan, r, _mm512_or_si512(high, _mm512_set1_epi32(0x40)));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(out));
}
inline V store_int8(int8_t* p, V v) {
  __m512i i = _mm512_cvtps_epi32(v);
  i = _mm512_max_epi32(_mm512_min_epi32(i, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(i));
  return _mm512_cvtepi32_ps(i);
}

inline void deinterleave(const float* p, V& even, V& odd) {
  const V a = load(p), b = load(p + 16);
  const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even = _mm512_permutex2var_ps(a, e, b);
  odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(e, _mm512_set1_epi32(1)), b);
}

template <int h>
inline V swap_lanes(V v) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_permutexvar_ps(_mm512_xor_si512(lanes, _mm512_set1_epi32(h)), v);
}

// For the probes.
using I = __m512i;
constexpr int kStepMacs = 64;
inline I set1_i8(int8_t x) { return _mm512_set1_epi8(x); }
inline I int8_step(I acc, I a, I b) { return _mm512_dpbusd_epi32(acc, a, b); }
inline I zero_i() { return _mm512_setzero_si512(); }
inline I load_i(const void* p) { return _mm512_loadu_si512(p); }
inline void store_i(void* p, I a) { _mm512_storeu_si512(p, a); }
inline I add_i64(I a, I b) { return _mm512_add_epi64(a, b); }
#ifdef IVLITE_EMULATE_AVX512
inline void touch(I&) {}
#else
inline void touch(I& a) { asm volatile("" : "+v"(a)); }  // keeps the compiler from removing the value
#endif

}  // namespace vec
}  // namespace
}  // namespace ivlite

#include "kernels/cpu/vec/nibbles.h"
