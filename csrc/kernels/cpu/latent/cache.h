// Converts rows of the latent cache to and from float, one type per CacheKind.
#pragma once
#include "formats/f16.h"
#include "kernels/cpu/elementwise/quantize.h"
#include "kernels/q4.h"
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

// Rows of int8 with a scale each.
struct CodeRows {
  const int8_t* codes;
  int64_t stride;
  const float* scale;
};

struct CacheQ8 {
  static CodeRows codes(const LatentRows& c, int64_t s, int64_t, int8_t*, float*) {
    return {(const int8_t*)c.latent + s * c.rank, c.rank, c.scale + s};
  }
  static void read_latent(float* y, const LatentRows& c, int64_t s) {
    dequantize_row(y, (const int8_t*)c.latent + s * c.rank, c.scale[s], c.rank);
  }
  static void read_rope(float* y, const LatentRows& c, int64_t s) { CacheF16::read_rope(y, c, s); }
  static void write_latent(const LatentRows& c, int64_t s, const float* x) {
    c.scale[s] = quantize_row((int8_t*)c.latent + s * c.rank, x, c.rank);
  }
  static void write_rope(const LatentRows& c, int64_t s, const float* x) { CacheF16::write_rope(c, s, x); }
};

// The rotation of q4 (kernels/q4.h) of one part, to the same bits: of lanes apart by less than a vector first.
template <int h>
inline vec::V rotate_lanes(vec::V v) {
  if constexpr (h >= vec::kLanes) {
    return v;
  } else {
    float sign[vec::kLanes];
    for (int i = 0; i < vec::kLanes; i++) sign[i] = i & h ? -1.0f : 1.0f;
    return rotate_lanes<2 * h>(vec::fma(v, vec::load(sign), vec::swap_lanes<h>(v)));  // a product with 1 or -1 is exact
  }
}

inline void rotate_part(float* x, int64_t n) {
  if (n < kQ4Part) return q4_rotate(x, n);
  constexpr int kVectors = kQ4Part / vec::kLanes;
  vec::V v[kVectors];
#pragma GCC unroll 32
  for (int i = 0; i < kVectors; i++) v[i] = rotate_lanes<1>(vec::load(x + i * vec::kLanes));
#pragma GCC unroll 8
  for (int h = 1; h < kVectors; h *= 2)
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; i++)
      if (!(i & h)) {
        const vec::V a = v[i], b = v[i + h];
        v[i] = vec::add(a, b), v[i + h] = vec::sub(a, b);
      }
  const vec::V unit = vec::set1(1 / sqrtf(kQ4Part));
#pragma GCC unroll 32
  for (int i = 0; i < kVectors; i++) vec::store(x + i * vec::kLanes, vec::mul(v[i], unit));
}

inline void rotate_row(float* x, int64_t n) {
  for (int64_t at = 0; at < n; at += kQ4Part) rotate_part(x + at, n - at < kQ4Part ? n - at : kQ4Part);
}

struct Q4Vectors {
  static void rotate(float* x, int64_t n) { rotate_part(x, n); }
  static void round(Q4Group& group, const float* y, int table) {
    for (int i = 0; i < kQ4Group; i += vec::kLanes) {
      const vec::V x = vec::load(y + i), one = vec::set1(1);
      vec::V value = vec::set1(kQ4.level[table][0]), code = vec::zero();
      for (int step = 0; step < 15; step++) {
        const vec::V middle = vec::set1(kQ4.middle[table][step]);
        value = vec::add(value, vec::zero_below(vec::set1(kQ4.rise[table][step]), x, middle));
        code = vec::add(code, vec::zero_below(one, x, middle));
      }
      vec::store(group.value + i, value), vec::store(group.code + i, code);
    }
  }
};

struct CacheQ4 {
  static RowBytes bytes(const LatentRows& c) { return row_bytes(CacheKind::q4, c.rank, c.rope_dim); }
  static uint8_t* latent(const LatentRows& c, int64_t s) { return (uint8_t*)c.latent + s * bytes(c).latent; }
  static float* scale(const LatentRows& c, int64_t s) { return c.scale + s * (bytes(c).scale / 4); }
  static void unpack(int8_t* to, const Q4Run& run) {
    if (run.n == kQ4Run)
      vec::store_nibbles(to, run.codes, kQ4.level, run.tables);
    else
      q4_unpack(to, run);
  }
  static void read_latent(float* y, const LatentRows& c, int64_t s);
  static void read_rope(float* y, const LatentRows& c, int64_t s) {
    for (int64_t at = 0; at < c.rope_dim; at += kGroup)
      dequantize_row(y + at, (const int8_t*)c.rope + s * c.rope_dim + at, scale(c, s)[1 + at / kGroup],
                     c.rope_dim - at < kGroup ? c.rope_dim - at : kGroup);
  }
  static void write_latent(const LatentRows& c, int64_t s, const float* x) {
    scale(c, s)[0] = q4_store<Q4Vectors>(latent(c, s), x, c.rank);
  }
  static void write_rope(const LatentRows& c, int64_t s, const float* x) {
    q4_store_key((int8_t*)c.rope + s * c.rope_dim, scale(c, s) + 1, x, c.rope_dim);
  }
};

// The same as attention reads it, with latents left rotated.
struct RotatedQ4 : CacheQ4 {
  static void read_latent(float* y, const LatentRows& c, int64_t s) {
    for (int64_t at = 0; at < c.rank; at += kQ4Run) {
      int8_t codes[kQ4Run];
      const Q4Run run = q4_run(latent(c, s), c.rank, at);
      unpack(codes, run);
      dequantize_row(y + at, codes, scale(c, s)[0], run.n);
    }
  }
  // Rows [s, s + n) in `tile` and `scales`.
  static CodeRows codes(const LatentRows& c, int64_t s, int64_t n, int8_t* tile, float* scales) {
    for (int64_t t = 0; t < n; t++) {
      for (int64_t at = 0; at < c.rank; at += kQ4Run) unpack(tile + t * c.rank + at, q4_run(latent(c, s + t), c.rank, at));
      scales[t] = scale(c, s + t)[0];
    }
    return {tile, c.rank, scales};
  }
};

inline void CacheQ4::read_latent(float* y, const LatentRows& c, int64_t s) {
  RotatedQ4::read_latent(y, c, s);
  rotate_row(y, c.rank);
}

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
