// AVX-512 on a machine that has only AVX2, for tests: SIMDe, and in plain C the intrinsics it lacks (0.7.4).
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace ivlite {
namespace {
namespace emulated {

// Lane by lane: out[i] = f(in[i]) for N lanes.
template <class To, class From, int N, class Out, class In, class F>
inline Out lanes(In in, F f) {
  From x[N];
  To y[N];
  Out out;
  memcpy(x, &in, sizeof x);
  for (int i = 0; i < N; i++) y[i] = f(x[i]);
  memcpy(&out, y, sizeof y);
  return out;
}

inline __m512 maskz_loadu(uint32_t mask, const float* p) {
  float x[16];
  for (int i = 0; i < 16; i++) x[i] = mask >> i & 1 ? p[i] : 0;
  __m512 out;
  memcpy(&out, x, sizeof x);
  return out;
}
inline __m512i maskz_loadu8(uint64_t mask, const void* p) {
  uint8_t x[64];
  for (int i = 0; i < 64; i++) x[i] = mask >> i & 1 ? ((const uint8_t*)p)[i] : 0;
  __m512i out;
  memcpy(&out, x, sizeof x);
  return out;
}
inline __m512 shuffle_quarters(__m512 a, __m512 b, int which) {
  __m128 in[2][4], x[4];
  memcpy(in[0], &a, 64), memcpy(in[1], &b, 64);
  for (int i = 0; i < 4; i++) x[i] = in[i / 2][which >> 2 * i & 3];
  __m512 out;
  memcpy(&out, x, sizeof x);
  return out;
}
inline void mask_storeu(float* p, uint32_t mask, __m512 v) {
  float x[16];
  memcpy(x, &v, sizeof x);
  for (int i = 0; i < 16; i++)
    if (mask >> i & 1) p[i] = x[i];
}
inline __m256 half(__m512 v, int i) {
  __m256 out;
  memcpy(&out, (const char*)&v + 32 * i, 32);
  return out;
}
inline __m512 from_f16(__m256i v) {
  __m128i h[2];
  memcpy(h, &v, 32);
  const __m256 out[2] = {_mm256_cvtph_ps(h[0]), _mm256_cvtph_ps(h[1])};
  __m512 whole;
  memcpy(&whole, out, 64);
  return whole;
}
inline __m256i to_f16(__m512 v, int rounding) {  // rounding is always to nearest here; the instruction wants a constant
  (void)rounding;
  const __m128i out[2] = {_mm256_cvtps_ph(half(v, 0), _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(half(v, 1), _MM_FROUND_TO_NEAREST_INT)};
  __m256i whole;
  memcpy(&whole, out, 32);
  return whole;
}
inline __m512i to_int(__m512 v) {  // also the instruction's result where no int32 holds the value
  __m256 h[2];
  memcpy(h, &v, 64);
  const __m256i out[2] = {_mm256_cvtps_epi32(h[0]), _mm256_cvtps_epi32(h[1])};
  __m512i whole;
  memcpy(&whole, out, 64);
  return whole;
}
inline __m512i to_unsigned(__m512 v) {  // to nearest even, and all bits where no uint32 holds the value, as the instruction
  return lanes<uint32_t, float, 16, __m512i>(v, [](float x) { return x >= -0.5f && x < 4294967296.0f ? (uint32_t)rint(x) : 0xffffffffu; });
}
inline __m128i low8(__m512i v) {
  return lanes<int8_t, int32_t, 16, __m128i>(v, [](int32_t x) { return (int8_t)x; });
}
inline __m256i low16(__m512i v) {
  return lanes<int16_t, int32_t, 16, __m256i>(v, [](int32_t x) { return (int16_t)x; });
}
inline __m512i from_i8(__m128i v) {
  return lanes<int32_t, int8_t, 16, __m512i>(v, [](int8_t x) { return x; });
}
inline __m512i from_u8(__m128i v) {
  return lanes<int32_t, uint8_t, 16, __m512i>(v, [](uint8_t x) { return x; });
}
inline __m512i from_u16(__m256i v) {
  return lanes<int32_t, uint16_t, 16, __m512i>(v, [](uint16_t x) { return x; });
}
inline __m512 to_float(__m512i v) {
  return lanes<float, int32_t, 16, __m512>(v, [](int32_t x) { return (float)x; });
}

}  // namespace emulated
}  // namespace
}  // namespace ivlite

#define _mm512_maskz_loadu_ps(mask, p) ivlite::emulated::maskz_loadu(mask, p)
#define _mm512_maskz_loadu_epi8(mask, p) ivlite::emulated::maskz_loadu8(mask, p)
#define _mm512_shuffle_f32x4(a, b, which) ivlite::emulated::shuffle_quarters(a, b, which)
#define _mm512_mask_storeu_ps(p, mask, v) ivlite::emulated::mask_storeu(p, mask, v)
#define _mm512_extractf32x8_ps(v, i) ivlite::emulated::half(v, i)
#define _mm512_cvtph_ps(v) ivlite::emulated::from_f16(v)
#define _mm512_cvtps_ph(v, rounding) ivlite::emulated::to_f16(v, rounding)
#define _mm512_cvtps_epi32(v) ivlite::emulated::to_int(v)
#define _mm512_cvtps_epu32(v) ivlite::emulated::to_unsigned(v)
#define _mm512_cvtepi32_epi8(v) ivlite::emulated::low8(v)
#define _mm512_cvtepi32_epi16(v) ivlite::emulated::low16(v)
#define _mm512_cvtepi8_epi32(v) ivlite::emulated::from_i8(v)
#define _mm512_cvtepu8_epi32(v) ivlite::emulated::from_u8(v)
#define _mm512_cvtepu16_epi32(v) ivlite::emulated::from_u16(v)
#define _mm512_cvtepi32_ps(v) ivlite::emulated::to_float(v)
