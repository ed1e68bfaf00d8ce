// A latent in 4 bits, in plain C++: what the cache kind q4 stores, the same bits from every instruction set.
//
// A row is rotated, which spreads what lies in few columns over 128 (incoherence: the largest of 128 values falls towards that of normal
// ones), and rounded to 16 levels. The levels of a group of 16 columns are those of a small table, one of 16, that are all whole numbers up
// to 127: so a row that is unpacked is one of int8 with one scale, absmax / 127, and is read by the kernels of q8. Memory: for `rank`
// columns (rank + 1) / 2 bytes of codes, then 4 bits per group that choose its table, the even group in the low half.
//   codes    columns in runs of 64, the last with n <= 64: byte i of a run has column i in its low half, (n + 1) / 2 + i in its high
//   rotation an orthonormal Hadamard matrix on every 128 columns; the rest in blocks of 64, 32, 16, 8, 4, 2, 1. It is its own inverse
// Kernels attend to rotated latents with rotated queries, and rotate their sums back.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels/quant_scale.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

constexpr int kQ4Part = 128, kQ4Run = 64;  // columns rotated, and packed, together

// Levels near those of least error for normal values that are divided by a little more than the largest of 16; a table has them in
// 16ths. Signs are a level's, so there is none of zero.
struct Q4Tables {
  alignas(16) int8_t level[16][16] = {};         // of table t, ascending
  float middle[16][15] = {}, rise[16][15] = {};  // between level i and i + 1: where rounding changes, and by how much
  constexpr Q4Tables() {
    constexpr int kLevels[8] = {7, 21, 35, 50, 66, 83, 102, 127};
    for (int t = 0; t < 16; t++)
      for (int i = 0; i < 8; i++) {
        level[t][8 + i] = (int8_t)((2 * kLevels[i] * (t + 1) + 16) / 32);
        level[t][7 - i] = (int8_t)-level[t][8 + i];
      }
    for (int t = 0; t < 16; t++)
      for (int i = 0; i < 15; i++) {
        middle[t][i] = 0.5f * (float)(level[t][i] + level[t][i + 1]);
        rise[t][i] = (float)(level[t][i + 1] - level[t][i]);
      }
  }
};
constexpr Q4Tables kQ4;

inline int64_t q4_groups(int64_t rank) { return (rank + kQ4Group - 1) / kQ4Group; }
inline int q4_nibble(const uint8_t* from, int64_t i) { return from[i / 2] >> 4 * (i % 2) & 15; }

// The rotation of n columns, at most 128, in place.
inline void q4_rotate(float* x, int64_t n) {
  for (int64_t size; n > 0; x += size, n -= size) {
    for (size = kQ4Part; size > n;) size /= 2;
    for (int64_t h = 1; h < size; h *= 2)
      for (int64_t i = 0; i < size; i += 2 * h)
        for (int64_t j = i; j < i + h; j++) {
          const float a = x[j], b = x[j + h];
          x[j] = a + b, x[j + h] = a - b;
        }
    const float unit = 1 / sqrtf((float)size);
    for (int64_t j = 0; j < size; j++) x[j] *= unit;
  }
}

// The largest magnitude of n floats and of `most`, as the bits of a float: of these a NaN is the largest.
inline int32_t q4_largest(int32_t most, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most;
}

// A group rounded to the nearest levels of a table, of two as near to the higher: numbers of levels, levels, and the sum of squared errors.
struct Q4Group {
  float code[kQ4Group], value[kQ4Group], error;
};

// The error of the first n values y: in an order of sums that no vector length changes.
inline void q4_error(Q4Group& group, const float* y, int n) {
  float square[kQ4Group];
  for (int i = 0; i < kQ4Group; i++) square[i] = i < n ? (group.value[i] - y[i]) * (group.value[i] - y[i]) : 0;
  for (int half = kQ4Group / 2; half; half /= 2)
    for (int i = 0; i < half; i++) square[i] += square[i + half];
  group.error = square[0];
}

struct Q4Plain {
  static void rotate(float* x, int64_t n) { q4_rotate(x, n); }
  static void round(Q4Group& group, const float* y, int table) {
    for (int i = 0; i < kQ4Group; i++) {
      group.value[i] = kQ4.level[table][0], group.code[i] = 0;
      for (int step = 0; step < 15; step++) {
        if (!(y[i] >= kQ4.middle[table][step])) break;
        group.value[i] += kQ4.rise[table][step], group.code[i] += 1;
      }
    }
  }
};

// Packs n rotated columns, at most 128, that begin at a multiple of 128, as values in units of 1 / inverse.
template <class By>
inline void q4_pack(uint8_t* codes, uint8_t* tables, const float* x, int64_t n, float inverse) {
  uint8_t code[kQ4Part];
  memset(tables, 0, (size_t)(q4_groups(n) + 1) / 2);
  for (int64_t g = 0; g < n; g += kQ4Group) {
    const int count = n - g < kQ4Group ? (int)(n - g) : kQ4Group;
    float y[kQ4Group] = {};
    for (int i = 0; i < count; i++) y[i] = inverse > 0 ? x[g + i] * inverse : 0;  // NaN has no code: it is in the scale
    const int32_t bits = q4_largest(0, y, count);
    float top;
    memcpy(&top, &bits, 4);
    const int last = (int)ceilf(top * (16.0f / 127)) - 1, table = last < 0 ? 0 : last > 15 ? 15 : last;  // the first whose levels reach
    Q4Group rounded[2];
    for (int finer = 0; finer < 2; finer++) {
      By::round(rounded[finer], y, table - finer < 0 ? 0 : table - finer);
      q4_error(rounded[finer], y, count);
    }
    const int finer = table > 0 && rounded[1].error < rounded[0].error;
    for (int i = 0; i < count; i++) code[g + i] = (uint8_t)rounded[finer].code[i];
    tables[g / kQ4Group / 2] |= (uint8_t)((table - finer) << 4 * (g / kQ4Group % 2));
  }
  for (int64_t run = 0; run < n; run += kQ4Run, codes += kQ4Run / 2) {
    const int64_t left = n - run < kQ4Run ? n - run : kQ4Run, half = (left + 1) / 2;
    for (int64_t i = 0; i < half; i++) codes[i] = (uint8_t)(code[run + i] | (half + i < left ? code[run + half + i] << 4 : 0));
  }
}

// Stores a latent, rotated and rounded by functions like those of Q4Plain; returns its scale.
template <class By>
inline float q4_store(uint8_t* row, const float* latent, int64_t rank) {
  float part[kQ4Part];
  const auto rotated = [&](int64_t at) {
    const int64_t n = rank - at < kQ4Part ? rank - at : kQ4Part;
    memcpy(part, latent + at, (size_t)n * 4);
    By::rotate(part, n);
    return n;
  };
  int32_t bits = 0;
  for (int64_t at = 0; at < rank; at += kQ4Part) {
    const int64_t n = rotated(at);
    bits = q4_largest(bits, part, n);
  }
  float absmax;
  memcpy(&absmax, &bits, 4);
  const QuantScale quant = quant_scale(absmax, 127);
  for (int64_t at = 0; at < rank; at += kQ4Part) {
    const int64_t n = rotated(at);
    q4_pack<By>(row + at / 2, row + (rank + 1) / 2 + at / kQ4Group / 2, part, n, quant.inverse);
  }
  return quant.scale;
}

// The columns from `at` on, a multiple of 64.
struct Q4Run {
  const uint8_t *codes, *tables;
  int64_t n;
};
inline Q4Run q4_run(const uint8_t* row, int64_t rank, int64_t at) {
  return {row + at / 2, row + (rank + 1) / 2 + at / kQ4Group / 2, rank - at < kQ4Run ? rank - at : kQ4Run};
}

// A run as int8, still rotated.
inline void q4_unpack(int8_t* to, const Q4Run& run) {
  const int64_t half = (run.n + 1) / 2;
  for (int64_t i = 0; i < half; i++) {
    to[i] = kQ4.level[q4_nibble(run.tables, i / kQ4Group)][run.codes[i] & 15];
    if (half + i < run.n) to[half + i] = kQ4.level[q4_nibble(run.tables, (half + i) / kQ4Group)][run.codes[i] >> 4];
  }
}

// A key: int8 with a scale per 32 columns.
inline void q4_store_key(int8_t* codes, float* scale, const float* x, int64_t n) {
  for (int64_t at = 0; at < n; at += kGroup) {
    const int64_t count = n - at < kGroup ? n - at : kGroup;
    const int32_t bits = q4_largest(0, x + at, count);
    float absmax;
    memcpy(&absmax, &bits, 4);
    const QuantScale quant = quant_scale(absmax, 127);
    for (int64_t i = at; i < at + count; i++) codes[i] = quant.inverse > 0 ? (int8_t)rintf(x[i] * quant.inverse) : 0;
    scale[at / kGroup] = quant.scale;
  }
}

}  // namespace
}  // namespace ivlite
