// The products of latent.cu in the registers of a warp: queries in fragments, scores of 8 tokens, sums of 16 weighted ones.
#pragma once
#include "latent.cuh"

namespace ivlite::cuda {

// What a warp keeps of its columns of the queries: M tiles of 16 heads in the fragments of a product's first operand, and the scale of
// each head that a thread's sums belong to.
template <int M>
struct Queries {
  uint32_t fragment[M][32];
  float* scale;
};

// Rotates 128 columns, of which n exist, where v[8 k + 4 j + i] of lane 4 r + q is column 32 k + 16 j + 4 q + i of row r.
__device__ void rotate_fragment(float v[32], int n) {
  const int q = thread_x() % 4;
  const auto column = [&](int e) { return e / 8 * 32 + e / 4 % 2 * 16 + 4 * q + e % 4; };
  IVLITE_UNROLL
  for (int h = 1; h < kPart; h *= 2) {
    if (h == 4 || h == 8) {
      IVLITE_UNROLL
      for (int e = 0; e < 32; e++) {
        const float other = shuffle_xor(v[e], h / 4);
        if (column(e) < n && rotation_size(n, column(e)) > h) v[e] = q & h / 4 ? other - v[e] : v[e] + other;
      }
      continue;
    }
    const int step = h < 4 ? h : h / 4;  // of e: columns 16, 32 and 64 are 4, 8 and 16 elements away
    IVLITE_UNROLL
    for (int e = 0; e < 32; e++)
      if (!(e & step) && column(e) < n && rotation_size(n, column(e)) > h) {
        const float a = v[e], b = v[e + step];
        v[e] = a + b, v[e + step] = a - b;
      }
  }
  IVLITE_UNROLL
  for (int e = 0; e < 32; e++)
    if (column(e) < n) v[e] *= 1 / sqrtf((float)rotation_size(n, column(e)));
}

__device__ float largest_of_row(const float v[32]) {
  int most = 0;
  IVLITE_UNROLL
  for (int e = 0; e < 32; e++) most = larger(most, magnitude(v[e]));
  most = larger(most, shuffle_xor(most, 1));
  most = larger(most, shuffle_xor(most, 2));
  return float_of((uint32_t)most);
}

// Count columns of a row of n from `column` on, 0 where it has none. whole: they exist all or not at all, and can be read together.
template <int Count>
IVLITE_DEVICE void load_columns(float* v, const float* row, int n, int column, bool whole) {
  if (!whole || column >= n) {
    IVLITE_UNROLL
    for (int i = 0; i < Count; i++) v[i] = column + i < n ? row[column + i] : 0;
  } else if constexpr (Count == 4) {
    const Bytes16 bytes = load16(row + column);
    memcpy(v, &bytes, 16);
  } else {
    const Bytes8 bytes = load8(row + column);
    memcpy(v, &bytes, 8);
  }
}

// Fragments 0..15 are the upper, 16..31 the lower half of 15 bits. rows: of `heads` heads, `stride` apart, of n columns.
template <int M>
__device__ void load_int8(Queries<M>& to, const float* rows, int stride, int heads, int n, bool rotated) {
  const int lane = thread_x() % 32, q = lane % 4;
  const bool whole = stride % 4 == 0 && n % 4 == 0;
  IVLITE_UNROLL
  for (int m = 0; m < M; m++) IVLITE_UNROLL
  for (int half = 0; half < 2; half++) {
    const int row = 16 * m + 8 * half + lane / 4;
    float v[32];
    IVLITE_UNROLL
    for (int word = 0; word < 8; word++)
      load_columns<4>(v + 4 * word, rows + (int64_t)row * stride, row < heads ? n : 0, word / 2 * 32 + word % 2 * 16 + 4 * q, whole);
    if (rotated) rotate_fragment(v, n);
    const CodeScale scale = block_scale(largest_of_row(v), 127 * 128);
    if (q == 0) to.scale[row] = scale.scale;
    IVLITE_UNROLL
    for (int word = 0; word < 8; word++) {
      uint32_t high = 0, low = 0;
      IVLITE_UNROLL
      for (int i = 0; i < 4; i++) {
        const int code = scale.inverse > 0 ? (int)rintf(v[4 * word + i] * scale.inverse) : 0, upper = (code + 64) >> 7;
        high |= (uint32_t)(upper & 255) << 8 * i, low |= (uint32_t)((code - 128 * upper) & 255) << 8 * i;
      }
      const int at = word / 2 * 4 + word % 2 * 2 + half;
      to.fragment[m][at] = high, to.fragment[m][16 + at] = low;
    }
  }
}

template <int M>
__device__ void load_half(Queries<M>& to, const float* rows, int stride, int heads, int n) {
  const int lane = thread_x() % 32, q = lane % 4;
  const bool whole = stride % 4 == 0 && n % 4 == 0;
  IVLITE_UNROLL
  for (int m = 0; m < M; m++) IVLITE_UNROLL
  for (int half = 0; half < 2; half++) {
    const int row = 16 * m + 8 * half + lane / 4;
    float v[32];
    IVLITE_UNROLL
    for (int pair = 0; pair < 16; pair++)
      load_columns<2>(v + 2 * pair, rows + (int64_t)row * stride, row < heads ? n : 0, pair / 2 * 16 + pair % 2 * 8 + 2 * q, whole);
    const CodeScale scale = block_scale(largest_of_row(v), 1);  // of any size: a half is too narrow for some
    if (q == 0) to.scale[row] = scale.scale;
    IVLITE_UNROLL
    for (int pair = 0; pair < 16; pair++) {
      const bool some = scale.inverse > 0;
      to.fragment[m][pair / 2 * 4 + pair % 2 * 2 + half] =
          pack_half(some ? v[2 * pair] * scale.inverse : 0, some ? v[2 * pair + 1] * scale.inverse : 0);
    }
  }
}

// Scores of 8 tokens: 128 columns as half, rows `stride` apart.
template <int M>
IVLITE_DEVICE void scores_half(float s[M][4], const Queries<M>& q, const uint8_t* tile, int stride) {
  const int lane = thread_x() % 32;
  IVLITE_UNROLL
  for (int m = 0; m < M; m++) s[m][0] = s[m][1] = s[m][2] = s[m][3] = 0;
  IVLITE_UNROLL
  for (int j = 0; j < 4; j++) {
    uint32_t b[4];
    ldmatrix_x4(b, tile + lane % 8 * stride + 64 * j + lane / 8 * 16);
    IVLITE_UNROLL
    for (int m = 0; m < M; m++) {
      mma_f16(s[m], q.fragment[m] + 8 * j, b);
      mma_f16(s[m], q.fragment[m] + 8 * j + 4, b + 2);
    }
  }
  IVLITE_UNROLL
  for (int m = 0; m < M; m++) IVLITE_UNROLL
  for (int i = 0; i < 4; i++) s[m][i] *= q.scale[16 * m + 8 * (i / 2) + lane / 4];
}

// The same of int8: sums are exact.
template <int M>
IVLITE_DEVICE void scores_int8(float s[M][4], const Queries<M>& q, const uint8_t* tile, int stride) {
  const int lane = thread_x() % 32;
  int32_t high[M][4] = {}, low[M][4] = {};
  IVLITE_UNROLL
  for (int j = 0; j < 2; j++) {
    uint32_t b[4];
    ldmatrix_x4(b, tile + lane % 8 * stride + 64 * j + lane / 8 * 16);
    IVLITE_UNROLL
    for (int step = 0; step < 2; step++) IVLITE_UNROLL
    for (int m = 0; m < M; m++) {
      mma_s8(high[m], q.fragment[m] + 8 * j + 4 * step, b + 2 * step);
      mma_s8(low[m], q.fragment[m] + 16 + 8 * j + 4 * step, b + 2 * step);
    }
  }
  IVLITE_UNROLL
  for (int m = 0; m < M; m++) IVLITE_UNROLL
  for (int i = 0; i < 4; i++) s[m][i] = (float)(128 * high[m][i] + low[m][i]) * q.scale[16 * m + 8 * (i / 2) + lane / 4];
}

// acc += weights x 16 tokens of 128 columns. acc[m][4 j + i]: half: columns 32 j + 8 i on; codes: even and odd columns of 16 by turns.
template <int M, bool codes>
IVLITE_DEVICE void add_values(float acc[M][16][4], const uint32_t p[M][4], const uint8_t* tile, int stride) {
  const int lane = thread_x() % 32;
  const uint8_t* row = tile + lane % 16 * stride + lane / 16 * 16;
  IVLITE_UNROLL
  for (int j = 0; j < (codes ? 4 : 8); j++) {
    uint32_t r[4];
    ldmatrix_x4_trans(r, row + 32 * j);
    if (codes) {
      uint32_t even[2], odd[2];
      IVLITE_UNROLL
      for (int group = 0; group < 2; group++) {
        codes_to_half(r[2 * group], even[0], odd[0]);
        codes_to_half(r[2 * group + 1], even[1], odd[1]);
        IVLITE_UNROLL
        for (int m = 0; m < M; m++) {
          mma_f16(acc[m][4 * j + 2 * group], p[m], even);
          mma_f16(acc[m][4 * j + 2 * group + 1], p[m], odd);
        }
      }
    } else {
      IVLITE_UNROLL
      for (int m = 0; m < M; m++) {
        mma_f16(acc[m][2 * j], p[m], r);
        mma_f16(acc[m][2 * j + 1], p[m], r + 2);
      }
    }
  }
}

}  // namespace ivlite::cuda
