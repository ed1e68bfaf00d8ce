// Converts rows of the latent cache to and from float, one type per CacheKind.
#pragma once
#include "formats/f16.h"
#include "kernels/cpu/elementwise/quantize.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

inline void f16_to_float(float* y, const uint16_t* x, int64_t n) {
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) vec::store(y + i, vec::load_f16(x + i));
  decode_f16(y + i, x + i, n - i);
}

inline void float_to_f16(uint16_t* y, const float* x, int64_t n) {
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) vec::store_f16(y + i, vec::load(x + i));
  encode_f16(y + i, x + i, n - i);
}

inline void dequantize_row(float* y, const int8_t* x, float scale, int64_t n) {
  int64_t i = 0;
  for (; i + vec::kLanes <= n; i += vec::kLanes) vec::store(y + i, vec::mul(vec::load_i8(x + i), vec::set1(scale)));
  for (; i < n; i++) y[i] = scale * x[i];
}

struct CacheF32 {
  static float* latent(const LatentRows& c, int64_t s) { return (float*)c.latent + s * c.rank; }
  static float* rope(const LatentRows& c, int64_t s) { return (float*)c.rope + s * c.rope_dim; }
  static void read_latent(float* y, const LatentRows& c, int64_t s) { memcpy(y, latent(c, s), (size_t)c.rank * 4); }
  static void read_rope(float* y, const LatentRows& c, int64_t s) { memcpy(y, rope(c, s), (size_t)c.rope_dim * 4); }
  static void write_latent(const LatentRows& c, int64_t s, const float* x) { memcpy(latent(c, s), x, (size_t)c.rank * 4); }
  static void write_rope(const LatentRows& c, int64_t s, const float* x) { memcpy(rope(c, s), x, (size_t)c.rope_dim * 4); }
};

struct CacheF16 {
  static void read_latent(float* y, const LatentRows& c, int64_t s) { f16_to_float(y, (const uint16_t*)c.latent + s * c.rank, c.rank); }
  static void read_rope(float* y, const LatentRows& c, int64_t s) { f16_to_float(y, (const uint16_t*)c.rope + s * c.rope_dim, c.rope_dim); }
  static void write_latent(const LatentRows& c, int64_t s, const float* x) { float_to_f16((uint16_t*)c.latent + s * c.rank, x, c.rank); }
  static void write_rope(const LatentRows& c, int64_t s, const float* x) {
    float_to_f16((uint16_t*)c.rope + s * c.rope_dim, x, c.rope_dim);
  }
};

struct CacheQ8 {
  static void read_latent(float* y, const LatentRows& c, int64_t s) {
    dequantize_row(y, (const int8_t*)c.latent + s * c.rank, c.scale[s], c.rank);
  }
  static void read_rope(float* y, const LatentRows& c, int64_t s) { CacheF16::read_rope(y, c, s); }
  static void write_latent(const LatentRows& c, int64_t s, const float* x) {
    c.scale[s] = quantize_row((int8_t*)c.latent + s * c.rank, x, c.rank);
  }
  static void write_rope(const LatentRows& c, int64_t s, const float* x) { CacheF16::write_rope(c, s, x); }
};

template <class Kind>
void cache_write(const LatentRows& c, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr, int64_t t0,
                 int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    Kind::write_latent(c, first + t, latent + t * ldc);
    Kind::write_rope(c, first + t, rope + t * ldr);
  }
}

template <class Kind>
void cache_read(float* latent, float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  for (int64_t s = s0; s < s1; s++) {
    if (latent) Kind::read_latent(latent + (s - s0) * c.rank, c, s);
    if (rope) Kind::read_rope(rope + (s - s0) * c.rope_dim, c, s);
  }
}

}  // namespace
}  // namespace ivlite
