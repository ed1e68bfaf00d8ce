// Attention of 256-bit vectors with both products in int16, at twice the rate of float. In Q K^T queries are lanes: pairs of their
// columns are interleaved, those of keys are broadcast. In P V queries are rows and value columns lanes: softmax weights are quantized
// to 12 bits, and the values of two keys are interleaved to meet them. Queries and keys have as many bits as keep a sum in int32.
#pragma once
#include "kernels/cpu/attention/softmax.h"
#include "kernels/cpu/linear/int8_avx2.h"
#include "kernels/quant_scale.h"

namespace ivlite {
namespace {

constexpr int kInt16Rows = 6;

// sums (T rows, 2 x 8) of n vectors of 16 pairs of int16 x the pairs of T rows, kStep bytes apart.
template <int T, int kStep>
__attribute__((noinline)) void int16_sums(__m256i* sums, const uint8_t* line, int64_t n, const uint8_t* rows, int64_t stride) {
  TileRows<uint8_t> x(rows, stride);
  __m256i s[T][2];
#pragma GCC unroll 8  // or GCC keeps the sums in memory
  for (int i = 0; i < T; i++) s[i][0] = s[i][1] = _mm256_setzero_si256();
  for (; n >= 8; n -= 8, line += 512, x.advance(8 * kStep))
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) multiply_int16<T>(s, line + 64 * j, x, j * kStep);
  for (; n > 0; n--, line += 64, x.advance(kStep)) multiply_int16<T>(s, line, x, 0);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++)
    for (int side = 0; side < 2; side++) sums[2 * i + side] = s[i][side];
}

template <int N>
struct Count {
  constexpr operator int() const { return N; }
};
// f(Count<T>, i) for i in [i, n) in steps of kInt16Rows, then the rest.
template <int T = kInt16Rows, class F>
inline void by_rows(int64_t i, int64_t n, const F& f) {
  for (; i + T <= n; i += T) f(Count<T>{}, i);
  if constexpr (T > 1) by_rows<T - 1>(i, n, f);
}

constexpr int64_t kPairKeys = 128, kPairQueries = 512, kPairLanes = 48;  // keys of a block; queries of a block, and together
constexpr float kMostWeight = 4094;  // the largest code of a softmax weight: with the rounding error that is carried, 12 bits

// The largest code with which a sum of n products of two fits int32.
inline float most_code(int64_t n) {
  const float fits = (float)(int)sqrt(2147483647.0 / (double)(n > 0 ? n : 1));
  return fits < 32767 ? fits : 32767;
}

// How queries and keys are packed. 16 queries: pairs of columns (pairs, 16, 2), then the scales of both parts. 128 keys: rows of pairs,
// the scales of both parts, the base-2 logarithms of the scales of their values, the inverse of these scales, and the values
// (columns / 16, keys / 2, 16, 2).
struct PairLayout {
  int64_t first, pairs;  // of columns of the first part of a key, of both
  int64_t panel, row;    // bytes of 16 queries, and of a key
  int64_t dv, columns;   // columns of values, and padded

  explicit PairLayout(const AttentionArgs& a)
      : first((a.d + 1) / 2),
        pairs(first + (a.d2 + 1) / 2),
        panel(64 * (pairs + 2)),
        row(4 * pairs),
        dv(a.dv),
        columns((a.dv + 15) / 16 * 16) {}
  int64_t key_block() const { return kPairKeys * (row + 16 + 2 * columns); }
};

struct PairKeys {
  uint8_t* rows;
  float *scale, *scale2, *bias, *inverse;
  uint8_t* v;
  PairKeys(const PairLayout& o, uint8_t* block) : rows(block), scale((float*)(block + kPairKeys * o.row)) {
    scale2 = scale + kPairKeys, bias = scale2 + kPairKeys, inverse = bias + kPairKeys, v = (uint8_t*)(inverse + kPairKeys);
  }
};

int64_t int16_query_bytes(const AttentionArgs& a, int64_t n) { return (n + 15) / 16 * PairLayout(a).panel; }
int64_t int16_key_bytes(const AttentionArgs& a, int64_t n) { return (n + kPairKeys - 1) / kPairKeys * PairLayout(a).key_block(); }

// Quantizes n values to codes up to most, with zeros behind them to a multiple of 8; returns the scale.
inline float quantize_int16(int16_t* to, const float* x, int64_t n, float most) {
  const auto load = [&](int64_t k) { return vec::load_n(x + k, n - k < vec::kLanes ? (int)(n - k) : vec::kLanes); };
  vec::V m = vec::zero();
  for (int64_t k = 0; k < n; k += vec::kLanes) m = vec::absmax(m, load(k));
  const QuantScale quant = quant_scale(vec::absmax_lane(m), most);
  for (int64_t k = 0; k < n; k += vec::kLanes) {
    const __m256i v = _mm256_cvtps_epi32(vec::mul(load(k), vec::set1(quant.inverse)));
    _mm_storeu_si128((__m128i*)(to + k), _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
  }
  return quant.scale;
}

void int16_pack_queries(void* to, const AttentionArgs& a, int64_t q0, int64_t q1) {
  const PairLayout o(a);
  memset(to, 0, (size_t)int16_query_bytes(a, q1 - q0));
  int16_t* codes = (int16_t*)a.scratch;
  for (int64_t i = q0; i < q1; i++) {
    const int64_t lane = (i - q0) % 16;
    uint8_t* panel = (uint8_t*)to + (i - q0) / 16 * o.panel;
    const auto part = [&](int64_t pair, const float* x, int64_t n, float* scale) {
      scale[lane] = a.scale * kLog2E * quantize_int16(codes, x, n, most_code(n));
      for (int64_t j = 0; j < (n + 1) / 2; j++) memcpy(panel + 64 * (pair + j) + 4 * lane, codes + 2 * j, 4);
    };
    float* scales = (float*)(panel + 64 * o.pairs);
    part(0, a.q + i * a.ld_q, a.d, scales);
    if (a.d2) part(o.first, a.q2 + i * a.ld_q2, a.d2, scales + 16);
  }
}

// Pairs of the rows of two keys, 16 columns after another; odd may be null, for zeros.
inline void interleave_values(uint8_t* to, int64_t columns, const int16_t* even, const int16_t* odd) {
  for (int64_t col = 0; col < columns; col += 8, to += col % 16 ? 32 : kPairKeys / 2 * 64 - 32) {
    const __m128i e = _mm_loadu_si128((const __m128i*)(even + col));
    const __m128i o = odd ? _mm_loadu_si128((const __m128i*)(odd + col)) : _mm_setzero_si128();
    store256(to, _mm256_set_m128i(_mm_unpackhi_epi16(e, o), _mm_unpacklo_epi16(e, o)));
  }
}

// Keys and values [s, s + n), n <= kPairKeys.
inline void int16_pack_block(uint8_t* block, const PairLayout& o, const AttentionArgs& a, int64_t s, int64_t n) {
  const PairKeys to(o, block);
  float* scale = a.scratch;  // of the values
  int16_t *codes = (int16_t*)(scale + kPairKeys), *values = codes + (a.d > a.d2 ? a.d : a.d2) + 16;
  memset(values, 0, (size_t)(n * o.columns) * 2);
  const auto part = [&](uint8_t* row, const float* x, int64_t width) {
    const float out = quantize_int16(codes, x, width, most_code(width));
    memcpy(row, codes, (size_t)((width + 1) / 2 * 4));
    return out;
  };
  float largest = 0;
  for (int64_t t = 0; t < n; t++) {
    to.scale[t] = part(to.rows + t * o.row, a.k + (s + t) * a.ld_k, a.d);
    to.scale2[t] = a.d2 ? part(to.rows + t * o.row + 4 * o.first, a.k2 + (s + t) * a.ld_k2, a.d2) : 0;
    scale[t] = quantize_int16(values + t * o.columns, a.v + (s + t) * a.ld_v, a.dv, most_code(kPairKeys));
    largest = scale[t] > largest ? scale[t] : largest;
  }
  const float least = largest > 0 ? largest * 0x1p-40f : 1;  // a value so much smaller than another counts as zero
  for (int64_t t = 0; t < n; t++) {
    if (scale[t] < least) memset(values + t * o.columns, 0, (size_t)o.columns * 2), scale[t] = least;
    to.bias[t] = log2f(scale[t]), to.inverse[t] = 1 / scale[t];
  }
  for (int64_t t = 0; t < n; t += 2)
    interleave_values(to.v + t / 2 * 64, o.columns, values + t * o.columns, t + 1 < n ? values + (t + 1) * o.columns : nullptr);
}

void int16_pack_keys(void* to, const AttentionArgs& a, int64_t s0, int64_t s1) {
  const PairLayout o(a);
  for (uint8_t* block = (uint8_t*)to; s0 < s1; s0 += kPairKeys, block += o.key_block())
    int16_pack_block(block, o, a, s0, s1 - s0 < kPairKeys ? s1 - s0 : kPairKeys);
}

// The lanes' state over one block of keys.
struct PairWeights {
  float* s;                     // (keys, kPairLanes): scores
  uint8_t* p;                   // (keys / 2, kPairLanes, 4): weights of two keys, of their values' codes
  float* sums;                  // (lanes, columns), not yet normalized
  float *m, *l, *alpha, *unit;  // of each lane: running maximum, sum, rescaling of earlier sums, scale of p
};

// Scores of T keys from t on, and the logarithms of their values' scales, for 16 queries.
template <int T>
inline void pair_scores(const PairLayout& o, float* s, const uint8_t* q, const PairKeys& keys, int64_t t) {
  __m256i sums[2][T][2];
  const uint8_t* rows = keys.rows + t * o.row;
  const int64_t second = o.pairs - o.first;
  int16_sums<T, 4>(sums[0][0], q, o.first, rows, o.row);
  if (second) int16_sums<T, 4>(sums[1][0], q + 64 * o.first, second, rows + 4 * o.first, o.row);
  const float* scales = (const float*)(q + 64 * o.pairs);
  for (int i = 0; i < T; i++)
    for (int side = 0; side < 2; side++) {
      const vec::V unit = vec::mul(vec::load(scales + 8 * side), vec::set1(keys.scale[t + i]));
      vec::V score = vec::fma(_mm256_cvtepi32_ps(sums[0][i][side]), unit, vec::set1(keys.bias[t + i]));
      if (second) {
        const vec::V unit2 = vec::mul(vec::load(scales + 16 + 8 * side), vec::set1(keys.scale2[t + i]));
        score = vec::fma(_mm256_cvtepi32_ps(sums[1][i][side]), unit2, score);
      }
      vec::store(s + (t + i) * kPairLanes + 8 * side, score);
    }
}

// 2^x, x >= -120, within 4e-6.
inline vec::V exp2_bits(vec::V x) {
  const vec::V shifter = vec::set1(12582912 + 127);  // 1.5 x 2^23: rounds to an integer, which the low bits then hold
  const vec::V bits = vec::add(x, shifter), f = vec::sub(x, vec::sub(bits, shifter));
  vec::V p = vec::set1(9.61813e-3f);
  p = vec::fma(p, f, vec::set1(5.550411e-2f));
  p = vec::fma(p, f, vec::set1(2.402265e-1f));
  p = vec::fma(p, f, vec::set1(6.931472e-1f));
  p = vec::fma(p, f, vec::set1(1));
  return vec::mul(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(bits), 23)), p);
}

// Online softmax of the scores of 8 lanes from h on and n keys, to which the logarithms of their values' scales were added: the weights
// are those of the values' codes, and the sum l divides the scales out again. They are relative to the largest of the block, so that it
// is kMostWeight. The rounding error of a key is carried to the second after it: the many small weights of a long tail keep their sum.
inline void pair_weights(const PairWeights& b, const float* inverse, int64_t n, int64_t h) {
  vec::V top = vec::set1(kInitialMax), sum = vec::zero();
  for (int64_t t = 0; t < n; t++) top = vec::max(top, vec::load(b.s + t * kPairLanes + h));
  const vec::V shift = vec::sub(vec::set1(11.99929547f + 16), top);  // weights in 2^-16 of a code: log2 of kMostWeight, and 16
  __m256i fixed[2] = {_mm256_set1_epi32(1 << 15), _mm256_set1_epi32(1 << 15)};
  for (int64_t t = 0; t < n; t += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const vec::V score = t + i < n ? vec::load(b.s + (t + i) * kPairLanes + h) : vec::set1(-INFINITY);
      const vec::V weight = exp2_bits(vec::max(vec::set1(-120), vec::add(score, shift)));  // in this order NaN stays NaN
      if (t + i < n) sum = vec::fma(weight, vec::set1(inverse[t + i]), sum);
      fixed[i] = _mm256_add_epi32(_mm256_and_si256(fixed[i], _mm256_set1_epi32(0xffff)), _mm256_cvtps_epi32(weight));
    }
    store256(b.p + (t / 2 * kPairLanes + h) * 4, _mm256_blend_epi16(_mm256_srli_epi32(fixed[0], 16), fixed[1], 0xaa));
  }
  const vec::V m_old = vec::load(b.m + h), m = vec::max(m_old, top), alpha = vec::exp2_weight(vec::sub(m_old, m));
  const vec::V unit = vec::mul(vec::exp2_weight(vec::sub(top, m)), vec::set1(1 / kMostWeight));
  vec::store(b.m + h, m);
  vec::store(b.l + h, vec::fma(vec::load(b.l + h), alpha, vec::mul(sum, vec::mul(unit, vec::set1(0x1p-16f)))));
  vec::store(b.alpha + h, alpha);
  vec::store(b.unit + h, unit);
}

// P V of 16 columns from col on and T lanes from h on: sums = sums alpha + p v.
template <int T>
inline void pair_values(const PairWeights& b, int64_t columns, const uint8_t* v, int64_t h, int64_t col, int64_t n) {
  __m256i products[T][2];
  int16_sums<T, 4 * kPairLanes>(products[0], v, (n + 1) / 2, b.p + 4 * h, 4);
  for (int i = 0; i < T; i++) {
    const vec::V alpha = vec::set1(b.alpha[h + i]), unit = vec::set1(b.unit[h + i]);
    for (int side = 0; side < 2; side++) {
      float* to = b.sums + (h + i) * columns + col + 8 * side;
      vec::store(to, vec::fma(_mm256_cvtepi32_ps(products[i][side]), unit, vec::mul(vec::load(to), alpha)));
    }
  }
}

// Up to kPairLanes queries against n keys, of which they see those up to ahead + (0, 1, ...) if masked.
inline void pair_lanes(const PairLayout& o, const PairWeights& w, const uint8_t* q, const PairKeys& keys, int64_t count, int64_t n,
                       bool masked, int64_t ahead) {
  by_rows(0, n, [&](auto rows, int64_t t) {
    for (int64_t j = 0; j < count; j += 16) pair_scores<rows>(o, w.s + j, q + j / 16 * o.panel, keys, t);
  });
  for (int64_t t = 0; masked && t < n; t++)
    for (int64_t j = 0; j < count; j += vec::kLanes) {
      float* s = w.s + t * kPairLanes + j;
      vec::store(s, vec::min(vec::load(s), causal_lanes(ahead, j, t)));
    }
  for (int64_t j = 0; j < count; j += vec::kLanes) pair_weights(w, keys.inverse, n, j);
  for (int64_t col = 0; col < o.columns; col += 16)
    by_rows(0, count, [&](auto rows, int64_t h) { pair_values<rows>(w, o.columns, keys.v + col * kPairKeys * 2, h, col, n); });
}

// Queries [i, i + count), count <= kPairQueries.
inline void attention_int16_block(const AttentionArgs& a, int64_t i, int64_t count) {
  const PairLayout o(a);
  PairWeights w;
  float* at = a.scratch;
  const auto take = [&](int64_t n) { return at += (n + 15) / 16 * 16, at - (n + 15) / 16 * 16; };
  w.s = take(kPairKeys * kPairLanes), w.p = (uint8_t*)take(kPairKeys / 2 * kPairLanes);
  w.m = take(kPairQueries + 16), w.l = take(kPairQueries + 16), w.alpha = take(kPairLanes), w.unit = take(kPairLanes);
  w.sums = take(kPairQueries * o.columns);
  fill(w.m, kPairQueries + 16, kInitialMax);
  fill(w.l, kPairQueries + 16, 0);
  fill(w.sums, count * o.columns, 0);
  if (a.continues) {
    memcpy(w.m, a.m + i, (size_t)count * 4), memcpy(w.l, a.l + i, (size_t)count * 4);
    for (int64_t j = 0; j < count; j++) memcpy(w.sums + j * o.columns, a.out + (i + j) * a.ld_out, (size_t)a.dv * 4);
  }
  const int64_t sees = a.first_visible + i + count, keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s = 0; s < keys; s += kPairKeys) {
    const PairKeys block(o, (uint8_t*)a.packed_k + s / kPairKeys * o.key_block());
    const int64_t n = keys - s < kPairKeys ? keys - s : kPairKeys;
    for (int64_t lane = 0; lane < count; lane += kPairLanes) {
      const int64_t ahead = a.first_visible + i + lane - s;  // the last key in the block that the first lane sees
      const int64_t left = count - lane < kPairLanes ? count - lane : kPairLanes;
      const int64_t seen = a.causal && ahead + left < n ? ahead + left : n;  // by the last lane
      if (seen <= 0) continue;
      PairWeights of = w;
      of.m += lane, of.l += lane, of.sums += lane * o.columns;
      pair_lanes(o, of, (const uint8_t*)a.packed_q + (i + lane) / 16 * o.panel, block, left, seen, a.causal && ahead + 1 < n, ahead);
    }
  }
  for (int64_t j = 0; j < count; j++) {
    const float l = w.l[j], factor = a.unfinished ? 1 : l > 0 ? 1 / l : l;  // NaN stays NaN
    const float* sums = w.sums + j * o.columns;
    float* out = a.out + (i + j) * a.ld_out;
    for (int64_t k = 0; k < a.dv; k++) out[k] = sums[k] * factor;
  }
  if (a.unfinished) memcpy(a.m + i, w.m, (size_t)count * 4), memcpy(a.l + i, w.l, (size_t)count * 4);
}

void attention_int16(const AttentionArgs& a, int64_t q0, int64_t q1) {
  for (int64_t i = q0; i < q1; i += kPairQueries) attention_int16_block(a, i, q1 - i < kPairQueries ? q1 - i : kPairQueries);
}

inline void init_attention_int16(KernelTable& t) {
  t.packed_attention = {int16_query_bytes, int16_key_bytes, int16_pack_queries, int16_pack_keys, attention_int16};
}

}  // namespace
}  // namespace ivlite
