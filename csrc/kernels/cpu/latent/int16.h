// Absorbed attention over 8-bit latents, and 4-bit ones unpacked to these, in int16, for 256-bit vectors: twice the rate of float. Scores:
// lanes are heads; queries are quantized to 15 bits, or as many as keep a row's sum in int32. Sums: lanes are latent columns; softmax
// weights are quantized to 15 bits with one scale per block of tokens. The rope parts are multiplied in float.
#pragma once
#include "kernels/cpu/attention/int16.h"
#include "kernels/cpu/latent/float.h"

namespace ivlite {
namespace {

constexpr int64_t kInt16Keys = 256, kInt16Columns = 64;  // tokens of a block, and columns interleaved together

struct LatentInt16 {
  float *unit, *m, *l, *alpha, *weight_unit;  // (kHeadBlock,)
  float* scale;                               // of the tile, (kInt16Keys,)
  float *q_rope, *rope, *s;  // (tiles, rope, kTileLanes), (kInt16Keys, ldr), (kInt16Keys, kHeadBlock): scores, then weights
  uint8_t* q;                // (panels of 16 heads, pairs, 64)
  uint8_t* c;                // (kInt16Rows, pairs, 4): tokens' codes as int16
  uint8_t* p;                // (kInt16Keys / 2, kHeadBlock, 4): weights of two tokens
  uint8_t* v;                // (kInt16Columns / 16, kInt16Keys / 2, 64): columns of two tokens
  int8_t* tile;              // a block's rows unpacked, where they are not cached as int8
  int64_t pairs, ldr;        // pairs of columns

  LatentInt16(const LatentArgs& a) : pairs((a.cache.rank + 1) / 2), ldr(odd_stride(a.cache.rope_dim)) {
    float* at = a.scratch;
    const auto arena = [&](int64_t bytes) {
      float* out = at;
      at += (bytes + 63) / 64 * 16;
      return out;
    };
    unit = arena(5 * 4 * kHeadBlock), m = unit + kHeadBlock, l = m + kHeadBlock;
    alpha = l + kHeadBlock, weight_unit = alpha + kHeadBlock;
    q_rope = arena(4 * kHeadBlock * a.cache.rope_dim), rope = arena(4 * kInt16Keys * ldr), s = arena(4 * kInt16Keys * kHeadBlock);
    q = (uint8_t*)arena(kHeadBlock * pairs * 4), c = (uint8_t*)arena(kInt16Rows * pairs * 4);
    p = (uint8_t*)arena(kInt16Keys / 2 * kHeadBlock * 4), v = (uint8_t*)arena(kInt16Columns / 16 * kInt16Keys / 2 * 64);
    tile = (int8_t*)arena(kInt16Keys * a.cache.rank), scale = arena(4 * kInt16Keys);
  }
};

// Quantizes a query's latent part into lane h of the panels; returns its scale.
inline float quantize_query_int16(const LatentInt16& b, int64_t h, const float* x, int64_t n) {
  const float fits = 2147483647.0f / (128.0f * 2 * (float)b.pairs), max_code = fits < 32767 ? (float)(int)fits : 32767;
  vec::V m = vec::zero();
  const auto load = [&](int64_t k) { return vec::load_n(x + k, n - k < vec::kLanes ? (int)(n - k) : vec::kLanes); };
  for (int64_t k = 0; k < n; k += vec::kLanes) m = vec::absmax(m, load(k));
  const QuantScale quant = quant_scale(vec::absmax_lane(m), max_code);
  const vec::V inverse = vec::set1(quant.inverse);
  uint8_t* to = b.q + h / 16 * b.pairs * 64 + h % 16 * 4;
  for (int64_t k = 0; k < n; k += vec::kLanes) {
    const __m256i v = _mm256_cvtps_epi32(vec::mul(load(k), inverse));
    alignas(16) int32_t pairs[4];
    _mm_store_si128((__m128i*)pairs, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
    for (int i = 0; i < 4 && k / 2 + i < b.pairs; i++) memcpy(to + (k / 2 + i) * 64, pairs + i, 4);
  }
  return quant.scale;
}

// Widens the codes of a cached row to int16, padded with a zero to whole pairs.
inline void widen_to_int16(uint8_t* to, const int8_t* codes, int64_t n) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) store256(to + 2 * k, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(codes + k))));
  for (; k < n + n % 2; k++) {
    const int16_t word = k < n ? codes[k] : 0;
    memcpy(to + 2 * k, &word, 2);
  }
}

// Scores of T tokens from t on of a block, added to those of the rope parts.
template <int T>
inline void int16_scores(const LatentInt16& b, const CodeRows& rows, int64_t rank, int64_t t, int64_t heads) {
  for (int i = 0; i < T; i++) widen_to_int16(b.c + i * 4 * b.pairs, rows.codes + (t + i) * rows.stride, rank);
  for (int64_t h = 0; h < heads; h += 16) {
    __m256i sums[T][2];
    int16_sums<T, 4>(sums[0], b.q + h / 16 * b.pairs * 64, b.pairs, b.c, 4 * b.pairs);
    for (int i = 0; i < T; i++)
      add_block(b.s + (t + i) * kHeadBlock + h, false, sums[i], (const uint8_t*)(b.unit + h), (const uint8_t*)(rows.scale + t + i));
  }
}

// Online softmax of the scores of 8 lanes and n tokens, weights times the tokens' scales quantized to int16 with one scale per block.
inline void quantize_weights_int16(const LatentInt16& b, const float* scale, int64_t n, int64_t h) {
  const vec::V most = scaled_weights(b.s + h, kHeadBlock, scale, n, b.m + h, b.l + h, b.alpha + h);
  vec::store(b.weight_unit + h, vec::mul(most, vec::set1(1.0f / 32767)));
  const vec::V some = _mm256_cmp_ps(most, vec::zero(), _CMP_GT_OQ);
  const vec::V inverse = _mm256_and_ps(some, vec::div(vec::set1(32767), most));
  const auto codes = [&](int64_t t) { return _mm256_cvtps_epi32(vec::mul(vec::load(b.s + t * kHeadBlock + h), inverse)); };
  for (int64_t t = 0; t < n; t += 2) {
    const __m256i odd = t + 1 < n ? _mm256_slli_epi32(codes(t + 1), 16) : _mm256_setzero_si256();
    store256(b.p + (t / 2 * kHeadBlock + h) * 4, _mm256_or_si256(_mm256_and_si256(codes(t), _mm256_set1_epi32(0xffff)), odd));
  }
}

// Two rows of 16 codes, of which n exist, as 16 pairs of int16. odd may be null, for zeros.
inline void interleave_line(uint8_t* to, const int8_t* even, const int8_t* odd, int64_t n) {
  int8_t rows[2][16] = {};
  if (n < 16 || !odd) {
    memcpy(rows[0], even, (size_t)(n < 16 ? n : 16));
    if (odd) memcpy(rows[1], odd, (size_t)(n < 16 ? n : 16));
    even = rows[0], odd = rows[1];
  }
  const __m128i a = _mm_loadu_si128((const __m128i*)even), b = _mm_loadu_si128((const __m128i*)odd);
  store256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)));
  store256(to + 32, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)));
}

// Columns [col, col + columns) of n rows, 16 columns after another: vector j has pairs of rows 2j and 2j + 1.
inline void interleave_int16(const LatentInt16& b, const CodeRows& rows, int64_t n, int64_t col, int64_t columns) {
  for (int64_t k = 0; k < columns; k += 16) {
    uint8_t* to = b.v + k / 16 * (kInt16Keys / 2) * 64;
    const int8_t* row = rows.codes + col + k;
    int64_t t = 0;
    if (columns - k >= 16)
      for (; t + 2 <= n; t += 2, row += 2 * rows.stride, to += 64) interleave_line(to, row, row + rows.stride, 16);
    for (; t < n; t += 2, row += 2 * rows.stride, to += 64) interleave_line(to, row, t + 1 < n ? row + rows.stride : nullptr, columns - k);
  }
}

// P V of columns [col, col + columns), at most 16, of T heads, rows interleaved at v: acc = acc alpha + p v.
template <int T>
inline void pv_int16(const LatentInt16& b, float* acc, int64_t rank, int64_t h, const uint8_t* v, int64_t n, int64_t col, int64_t columns) {
  __m256i sums[T][2];
  int16_sums<T, 4 * kHeadBlock>(sums[0], v, (n + 1) / 2, b.p + 4 * h, 4);
  for (int i = 0; i < T; i++) {
    const vec::V alpha = vec::set1(b.alpha[h + i]), unit = vec::set1(b.weight_unit[h + i]);
    for (int side = 0; side < 2; side++) {
      const int64_t left = columns - 8 * side;
      if (left <= 0) break;
      float* to = acc + (h + i) * rank + col + 8 * side;
      const int real = left < 8 ? (int)left : 8;
      vec::store_n(to, vec::fma(_mm256_cvtepi32_ps(sums[i][side]), unit, vec::mul(vec::load_n(to, real), alpha)), real);
    }
  }
}

// Heads [h0, h0 + heads) of query i.
template <class Kind>
inline void latent_int16_heads(const LatentArgs& a, const LatentInt16& b, int64_t i, int64_t h0, int64_t heads, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const int64_t row = i * a.heads + h0;
  const float factor = a.scale * kLog2E;
  float* acc = a.acc + row * c.rank;
  fill(acc, heads * c.rank, 0);
  fill(b.unit, kHeadBlock, 0);
  if (heads % 16) memset(b.q + heads / 16 * b.pairs * 64, 0, (size_t)(b.pairs * 64));  // unused lanes
  for (int64_t h = 0; h < heads; h++) b.unit[h] = factor * quantize_query_int16(b, h, a.q_latent + (row + h) * c.rank, c.rank);
  fill(b.q_rope, c.rope_dim * kHeadBlock, 0);
  rows_to_lanes(b.q_rope, c.rope_dim, 0, a.q_rope + row * c.rope_dim, c.rope_dim, heads, c.rope_dim, factor);
  fill(b.m, kHeadBlock, kInitialMax);
  fill(b.l, kHeadBlock, 0);
  for (int64_t s = s0; s < s1; s += kInt16Keys) {
    const int64_t n = s1 - s < kInt16Keys ? s1 - s : kInt16Keys;
    const CodeRows rows = Kind::codes(c, s, n, b.tile, b.scale);
    for (int64_t t = 0; t < n; t++) Kind::read_rope(b.rope + t * b.ldr, c, s + t);
    for (int64_t h = 0; h < heads; h += kTileLanes)
      product<true>(n, b.s + h, kHeadBlock, kTileLanes, FromZero{}, b.rope, b.ldr, b.q_rope + h * c.rope_dim, kTileLanes, c.rope_dim);
    by_rows(0, n, [&](auto count, int64_t t) { int16_scores<count>(b, rows, c.rank, t, heads); });
    for (int64_t h = 0; h < heads; h += vec::kLanes) quantize_weights_int16(b, rows.scale, n, h);
    for (int64_t col = 0; col < c.rank; col += kInt16Columns) {
      const int64_t columns = c.rank - col < kInt16Columns ? c.rank - col : kInt16Columns;
      interleave_int16(b, rows, n, col, columns);
      for (int64_t k = 0; k < columns; k += 16)
        by_rows(0, heads, [&](auto count, int64_t h) {
          pv_int16<count>(b, acc, c.rank, h, b.v + k / 16 * (kInt16Keys / 2) * 64, n, col + k, columns - k);
        });
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    a.m[row + h] = s1 > s0 ? b.m[h] / kLog2E : -INFINITY;
    a.l[row + h] = b.l[h];
  }
}

template <class Kind>
void latent_int16(const LatentArgs& a, int64_t s0, int64_t s1) {
  const LatentInt16 b(a);
  for (int64_t i = 0; i < a.queries; i++) {
    const int64_t end = a.position + i + 1 < s1 ? a.position + i + 1 : s1;
    for (int64_t h = 0; h < a.heads; h += kHeadBlock)
      latent_int16_heads<Kind>(a, b, i, h, a.heads - h < kHeadBlock ? a.heads - h : kHeadBlock, s0, end);
  }
}

inline void init_latent_int16(KernelTable& t) {
  t.latent_attention[(int)CacheKind::q8] = latent_int16<CacheQ8>;
  t.latent_attention[(int)CacheKind::q4] = latent_rotated<latent_int16<RotatedQ4>>;
}

}  // namespace
}  // namespace ivlite
