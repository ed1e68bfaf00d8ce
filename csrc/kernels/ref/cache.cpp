#include <math.h>
#include <string.h>

#include "formats/f16.h"
#include "kernels/q4.h"
#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

void write_f32(const LatentRows& c, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr, int64_t t0,
               int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    memcpy((float*)c.latent + (first + t) * c.rank, latent + t * ldc, (size_t)c.rank * 4);
    memcpy((float*)c.rope + (first + t) * c.rope_dim, rope + t * ldr, (size_t)c.rope_dim * 4);
  }
}

void read_f32(float* latent, float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  if (latent) memcpy(latent, (const float*)c.latent + s0 * c.rank, (size_t)((s1 - s0) * c.rank) * 4);
  if (rope) memcpy(rope, (const float*)c.rope + s0 * c.rope_dim, (size_t)((s1 - s0) * c.rope_dim) * 4);
}

void write_rope_f16(const LatentRows& c, int64_t row, const float* rope) {
  encode_f16((uint16_t*)c.rope + row * c.rope_dim, rope, c.rope_dim);
}

void read_rope_f16(float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  if (rope) decode_f16(rope, (const uint16_t*)c.rope + s0 * c.rope_dim, (s1 - s0) * c.rope_dim);
}

void write_f16(const LatentRows& c, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr, int64_t t0,
               int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    encode_f16((uint16_t*)c.latent + (first + t) * c.rank, latent + t * ldc, c.rank);
    write_rope_f16(c, first + t, rope + t * ldr);
  }
}

void read_f16(float* latent, float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  if (latent) decode_f16(latent, (const uint16_t*)c.latent + s0 * c.rank, (s1 - s0) * c.rank);
  read_rope_f16(rope, c, s0, s1);
}

void write_q8(const LatentRows& c, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr, int64_t t0,
              int64_t t1) {
  for (int64_t t = t0; t < t1; t++) {
    const float* x = latent + t * ldc;
    int8_t* codes = (int8_t*)c.latent + (first + t) * c.rank;
    float absmax = 0;
    for (int64_t j = 0; j < c.rank; j++) absmax = larger(absmax, x[j]);
    const QuantScale quant = quant_scale(absmax, 127);
    for (int64_t j = 0; j < c.rank; j++) codes[j] = quant.inverse > 0 ? (int8_t)rintf(x[j] * quant.inverse) : 0;
    c.scale[first + t] = quant.scale;
    write_rope_f16(c, first + t, rope + t * ldr);
  }
}

void read_q8(float* latent, float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  for (int64_t s = s0; latent && s < s1; s++)
    for (int64_t j = 0; j < c.rank; j++) latent[(s - s0) * c.rank + j] = c.scale[s] * ((const int8_t*)c.latent)[s * c.rank + j];
  read_rope_f16(rope, c, s0, s1);
}

void write_q4(const LatentRows& c, int64_t first, const float* latent, int64_t ldc, const float* rope, int64_t ldr, int64_t t0,
              int64_t t1) {
  const RowBytes row = row_bytes(CacheKind::q4, c.rank, c.rope_dim);
  for (int64_t t = t0; t < t1; t++) {
    float* scale = c.scale + (first + t) * row.scale / 4;
    scale[0] = q4_store<Q4Plain>((uint8_t*)c.latent + (first + t) * row.latent, latent + t * ldc, c.rank);
    q4_store_key((int8_t*)c.rope + (first + t) * row.rope, scale + 1, rope + t * ldr, c.rope_dim);
  }
}

void read_q4(float* latent, float* rope, const LatentRows& c, int64_t s0, int64_t s1) {
  const RowBytes bytes = row_bytes(CacheKind::q4, c.rank, c.rope_dim);
  for (int64_t s = s0; s < s1; s++) {
    const uint8_t* row = (const uint8_t*)c.latent + s * bytes.latent;
    const int8_t* key = (const int8_t*)c.rope + s * bytes.rope;
    const float* scale = c.scale + s * bytes.scale / 4;
    for (int64_t at = 0; latent && at < c.rank; at += kQ4Run) {
      int8_t codes[kQ4Run];
      const Q4Run run = q4_run(row, c.rank, at);
      q4_unpack(codes, run);
      for (int64_t i = 0; i < run.n; i++) latent[at + i] = scale[0] * codes[i];
    }
    for (int64_t at = 0; latent && at < c.rank; at += kQ4Part) q4_rotate(latent + at, c.rank - at < kQ4Part ? c.rank - at : kQ4Part);
    for (int64_t j = 0; rope && j < c.rope_dim; j++) rope[j] = scale[1 + j / kGroup] * key[j];
    if (latent) latent += c.rank;
    if (rope) rope += c.rope_dim;
  }
}

}  // namespace

void init_ref_cache(KernelTable& t) {
  t.cache_write[(int)CacheKind::f32] = write_f32;
  t.cache_write[(int)CacheKind::bf16] = write_f16;
  t.cache_write[(int)CacheKind::q8] = write_q8;
  t.cache_write[(int)CacheKind::q4] = write_q4;
  t.cache_read[(int)CacheKind::f32] = read_f32;
  t.cache_read[(int)CacheKind::bf16] = read_f16;
  t.cache_read[(int)CacheKind::q8] = read_q8;
  t.cache_read[(int)CacheKind::q4] = read_q4;
}

}  // namespace ivlite
