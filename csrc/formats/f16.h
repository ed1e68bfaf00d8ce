// IEEE half precision: 1 sign, 5 exponent, 10 mantissa bits. Conversion rounds to nearest even.
#pragma once
#include <stdint.h>
#include <string.h>

namespace ivlite {
namespace {

inline float f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {  // subnormal: mantissa * 2^-24 is exact in float
    float value = (float)mantissa * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

inline uint16_t f32_to_f16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | (uint16_t)(bits >> 13 & 0x3ff);  // NaN stays one
  if (bits >= 0x477ff000) return sign | 0x7c00;                                  // rounds to infinity
  if (bits < 0x38800000) {                                                       // subnormal or zero
    // Adding 0.5 puts the 10 kept bits at the end of the mantissa, and the addition rounds to nearest even.
    float value;
    memcpy(&value, &bits, 4);
    value += 0.5f;
    memcpy(&bits, &value, 4);
    return sign | (uint16_t)(bits - 0x3f000000);
  }
  uint32_t odd = bits >> 13 & 1;
  return sign | (uint16_t)((bits + 0xfff + odd - 0x38000000) >> 13);
}

inline void decode_f16(float* y, const void* blocks, int64_t n) {
  const uint16_t* h = (const uint16_t*)blocks;
  for (int64_t i = 0; i < n; i++) y[i] = f16_to_f32(h[i]);
}

inline void encode_f16(void* blocks, const float* x, int64_t n) {
  uint16_t* h = (uint16_t*)blocks;
  for (int64_t i = 0; i < n; i++) h[i] = f32_to_f16(x[i]);
}

}  // namespace
}  // namespace ivlite
