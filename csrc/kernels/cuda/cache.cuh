// Rows of the latent cache on the device: the bytes are those of csrc/kernels/ref/cache.cpp and csrc/kernels/q4.h.
#pragma once
#include "intrinsics.h"
#include "kernels/cuda/attention.h"

namespace ivlite::cuda {

constexpr int kPart = 128, kRun = 64, kLevelGroup = 16;  // columns of q4 that are rotated, packed, and rounded with one table

// The rows of one layer, and how many bytes (of scales: floats) a token has in each array. Kernels take it without addresses and find them.
struct DeviceRows {
  const LayerPlace* place;
  uint8_t* latent;
  float* scale;
  uint8_t* rope;
  int rank, rope_dim, latent_bytes, scales, rope_bytes;
};

inline DeviceRows device_rows(const CacheLayer& c) {
  const RowBytes bytes = row_bytes(c.kind, c.rank, c.rope_dim);
  return {c.place, nullptr, nullptr, nullptr, (int)c.rank, (int)c.rope_dim, (int)bytes.latent, (int)(bytes.scale / 4), (int)bytes.rope};
}
IVLITE_DEVICE DeviceRows found(DeviceRows c) {
  c.latent = (uint8_t*)c.place->latent, c.scale = c.place->scale, c.rope = (uint8_t*)c.place->rope;
  return c;
}

// Level `code` of table `table` of q4, in units of a row's scale.
IVLITE_DEVICE int q4_level(int table, int code) {
  const uint64_t levels = 0x7f66534232231507;  // 7, 21, 35, 50, 66, 83, 102, 127
  const int i = code < 8 ? 7 - code : code - 8, level = (2 * (int)(levels >> 8 * i & 255) * (table + 1) + 16) / 32;
  return code < 8 ? -level : level;
}

// All 256 levels, to be read as level[16 table + code] after a barrier.
IVLITE_DEVICE void fill_levels(int8_t* level, int thread, int threads) {
  for (int i = thread; i < 256; i += threads) level[i] = (int8_t)q4_level(i / 16, i % 16);
}

// Of n columns rotated together: the size of the Hadamard matrix that column `at` belongs to.
IVLITE_DEVICE int rotation_size(int n, int at) { return 1 << (31 - leading_zeros((uint32_t)(at ^ n))); }

// The rotation of n <= 128 columns by a warp: lane l has columns l, l + 32, l + 64 and l + 96.
IVLITE_DEVICE void rotate_part(float v[4], int n, int lane) {
  IVLITE_UNROLL
  for (int h = 1; h < 32; h *= 2) IVLITE_UNROLL
  for (int i = 0; i < 4; i++) {
    const float other = shuffle_xor(v[i], h);
    if (lane + 32 * i < n && rotation_size(n, lane + 32 * i) > h) v[i] = lane & h ? other - v[i] : v[i] + other;
  }
  IVLITE_UNROLL
  for (int h = 1; h < 4; h *= 2) IVLITE_UNROLL
  for (int i = 0; i < 4; i++)
    if (!(i & h) && lane + 32 * i < n && rotation_size(n, lane + 32 * i) > 32 * h) {
      const float a = v[i], b = v[i + h];
      v[i] = a + b, v[i + h] = a - b;
    }
  IVLITE_UNROLL
  for (int i = 0; i < 4; i++)
    if (lane + 32 * i < n) v[i] *= 1 / sqrtf((float)rotation_size(n, lane + 32 * i));
}

// The magnitude of x as the bits of a float: the larger the bits, the larger it is, and a NaN is the largest.
IVLITE_DEVICE int magnitude(float x) { return (int)(bits_of(x) & 0x7fffffff); }

IVLITE_DEVICE int larger(int a, int b) { return a > b ? a : b; }
IVLITE_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

struct Float4 {
  float v[4];
};
IVLITE_DEVICE Float4 load_float4(const float* from) {
  const Bytes16 bytes = load16(from);
  Float4 out;
  memcpy(&out, &bytes, 16);
  return out;
}
IVLITE_DEVICE void store_float4(float* to, const Float4& x) {
  Bytes16 bytes;
  memcpy(&bytes, &x, 16);
  store16(to, bytes);
}

IVLITE_DEVICE void store_float2(float* to, float a, float b) { store8(to, {{bits_of(a), bits_of(b)}}); }

struct CodeScale {
  float scale, inverse;
};
// quant_scale of kernels/quant_scale.h.
IVLITE_DEVICE CodeScale block_scale(float absmax, float max_code) {
  const float zero_or_nan = absmax - absmax;
  return {absmax / max_code + zero_or_nan, absmax > 1e-33f ? max_code / absmax : 0};
}

// Elements of row s as float; latents of q4 still rotated. `level` is what fill_levels made, used by q4 alone.
template <CacheKind kind>
IVLITE_DEVICE float latent_at(const DeviceRows& c, int64_t s, int j, const int8_t* level) {
  const uint8_t* row = c.latent + s * c.latent_bytes;
  if constexpr (kind == CacheKind::f32) return ((const float*)row)[j];
  if constexpr (kind == CacheKind::bf16) return to_float(((const uint16_t*)row)[j]);
  if constexpr (kind == CacheKind::q8) return c.scale[s] * (float)((const int8_t*)row)[j];
  if constexpr (kind == CacheKind::q4) {
    const int run = j / kRun, i = j % kRun, half = (smaller(c.rank - run * kRun, kRun) + 1) / 2, group = j / kLevelGroup;
    const int code = row[run * (kRun / 2) + (i < half ? i : i - half)] >> (i < half ? 0 : 4) & 15;
    const int table = row[(c.rank + 1) / 2 + group / 2] >> 4 * (group % 2) & 15;
    return c.scale[s * c.scales] * (float)level[16 * table + code];
  }
}

template <CacheKind kind>
IVLITE_DEVICE float rope_at(const DeviceRows& c, int64_t s, int j) {
  const uint8_t* row = c.rope + s * c.rope_bytes;
  if constexpr (kind == CacheKind::f32) return ((const float*)row)[j];
  if constexpr (kind == CacheKind::bf16 || kind == CacheKind::q8) return to_float(((const uint16_t*)row)[j]);
  if constexpr (kind == CacheKind::q4) return c.scale[s * c.scales + 1 + j / kGroup] * (float)((const int8_t*)row)[j];
}

}  // namespace ivlite::cuda
