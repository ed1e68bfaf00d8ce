// Absorbed attention over 8-bit latents by 16-bit words, for 256-bit vectors: twice the rate of floats. Scores: heads are the lanes, a
// query's words have 15 bits or as many as leave a row's sum in 32. Sums: latent columns are the lanes, what is contracted are
// tokens, whose weights have 15 bits of a unit of the block's own. Rotated parts are multiplied as floats.
#pragma once
#include <math.h>

namespace ivlite {
namespace {

constexpr int64_t kWordKeys = 256, kWordColumns = 64;  // tokens of a block, and columns of it interleaved together
constexpr int kWordRows = 6;
constexpr float kPowers = 1.44269504088896341f;  // scores times this: weights are powers of two

struct LatentWords {
  float *unit, *top, *total, *shrink, *weight_unit;  // (kHeadGroup,)
  float *q_rope, *rope, *s;  // (tiles, rope, kTileLanes), (kWordKeys, ldr), (kWordKeys, kHeadGroup): scores, then weights
  uint8_t* q;                // (panels of 16 heads, pairs, 64)
  uint8_t* c;                // (kWordRows, pairs, 4): tokens' codes as words
  uint8_t* p;                // (kWordKeys / 2, kHeadGroup, 4): weights of two tokens
  uint8_t* v;                // (kWordColumns / 16, kWordKeys / 2, 64): columns of two tokens
  int64_t pairs, ldr;        // pairs of columns

  LatentWords(const LatentArgs& a) : pairs((a.cache.rank + 1) / 2), ldr(odd_lines(a.cache.rope_dim)) {
    float* at = a.scratch;
    const auto room = [&](int64_t bytes) {
      float* out = at;
      at += (bytes + 63) / 64 * 16;
      return out;
    };
    unit = room(5 * 4 * kHeadGroup), top = unit + kHeadGroup, total = top + kHeadGroup;
    shrink = total + kHeadGroup, weight_unit = shrink + kHeadGroup;
    q_rope = room(4 * kHeadGroup * a.cache.rope_dim), rope = room(4 * kWordKeys * ldr), s = room(4 * kWordKeys * kHeadGroup);
    q = (uint8_t*)room(kHeadGroup * pairs * 4), c = (uint8_t*)room(kWordRows * pairs * 4);
    p = (uint8_t*)room(kWordKeys / 2 * kHeadGroup * 4), v = (uint8_t*)room(kWordColumns / 16 * kWordKeys / 2 * 64);
  }
};

// sums (T rows, 2 x 8) of n lines of 16 pairs of words x the pairs that meet them in T rows, kStep bytes apart.
template <int T, int kStep>
__attribute__((noinline)) void word_sums(__m256i* sums, const uint8_t* line, int64_t n, const uint8_t* rows, int64_t stride) {
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

// A query's latent part as lane h of the panels; returns its unit.
inline float open_query(const LatentWords& b, int64_t h, const float* x, int64_t n) {
  const float room = 2147483647.0f / (128.0f * 2 * (float)b.pairs), most = room < 32767 ? (float)(int)room : 32767;
  vec::V top = vec::zero();
  const auto load = [&](int64_t k) { return vec::load_n(x + k, n - k < vec::kLanes ? (int)(n - k) : vec::kLanes); };
  for (int64_t k = 0; k < n; k += vec::kLanes) top = vec::max(vec::abs(load(k)), top);
  const float peak = vec::max_lane(top);
  const vec::V inverse = vec::set1(peak > 0 ? most / peak : 0);
  uint8_t* to = b.q + h / 16 * b.pairs * 64 + h % 16 * 4;
  for (int64_t k = 0; k < n; k += vec::kLanes) {
    const __m256i v = _mm256_cvtps_epi32(vec::mul(load(k), inverse));
    alignas(16) int32_t pairs[4];
    _mm_store_si128((__m128i*)pairs, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
    for (int i = 0; i < 4 && k / 2 + i < b.pairs; i++) memcpy(to + (k / 2 + i) * 64, pairs + i, 4);
  }
  return peak / most;
}

// Codes of a cached row as words, and a zero behind an odd number of them.
inline void widen_row(uint8_t* to, const int8_t* codes, int64_t n) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16) store256(to + 2 * k, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(codes + k))));
  for (; k < n + n % 2; k++) {
    const int16_t word = k < n ? codes[k] : 0;
    memcpy(to + 2 * k, &word, 2);
  }
}

// Scores of T tokens from t on, which lie at row s of the cache, added to those of the rotated parts.
template <int T>
inline void word_scores(const LatentArgs& a, const LatentWords& b, int64_t t, int64_t s, int64_t heads) {
  for (int i = 0; i < T; i++) widen_row(b.c + i * 4 * b.pairs, (const int8_t*)a.cache.latent + (s + i) * a.cache.rank, a.cache.rank);
  for (int64_t h = 0; h < heads; h += 16) {
    __m256i sums[T][2];
    word_sums<T, 4>(sums[0], b.q + h / 16 * b.pairs * 64, b.pairs, b.c, 4 * b.pairs);
    for (int i = 0; i < T; i++)
      add_block(b.s + (t + i) * kHeadGroup + h, false, sums[i], (const uint8_t*)(b.unit + h), (const uint8_t*)(a.cache.scale + s + i));
  }
}

// Scores of 8 lanes and n tokens become weights times the tokens' scales, as words of a unit of the block's own.
inline void word_weights(const LatentWords& b, const float* scale, int64_t n, int64_t h) {
  const vec::V most = scaled_weights(b.s + h, kHeadGroup, scale, n, b.top + h, b.total + h, b.shrink + h);
  vec::store(b.weight_unit + h, vec::mul(most, vec::set1(1.0f / 32767)));
  const vec::V some = _mm256_cmp_ps(most, vec::zero(), _CMP_GT_OQ);
  const vec::V inverse = _mm256_and_ps(some, vec::div(vec::set1(32767), most));
  const auto words = [&](int64_t t) { return _mm256_cvtps_epi32(vec::mul(vec::load(b.s + t * kHeadGroup + h), inverse)); };
  for (int64_t t = 0; t < n; t += 2) {
    const __m256i odd = t + 1 < n ? _mm256_slli_epi32(words(t + 1), 16) : _mm256_setzero_si256();
    store256(b.p + (t / 2 * kHeadGroup + h) * 4, _mm256_or_si256(_mm256_and_si256(words(t), _mm256_set1_epi32(0xffff)), odd));
  }
}

// Two rows of 16 codes, of which n are real, as a line of 16 pairs. odd may be null, for zeros.
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

// Columns [col, col + columns) of n rows from row s on, 16 columns after another: line j has pairs of rows 2j and 2j + 1.
inline void interleave_words(const LatentWords& b, const LatentRows& c, int64_t s, int64_t n, int64_t col, int64_t columns) {
  for (int64_t k = 0; k < columns; k += 16) {
    uint8_t* to = b.v + k / 16 * (kWordKeys / 2) * 64;
    const int8_t* row = (const int8_t*)c.latent + s * c.rank + col + k;
    int64_t t = 0;
    if (columns - k >= 16)
      for (; t + 2 <= n; t += 2, row += 2 * c.rank, to += 64) interleave_line(to, row, row + c.rank, 16);
    for (; t < n; t += 2, row += 2 * c.rank, to += 64) interleave_line(to, row, t + 1 < n ? row + c.rank : nullptr, columns - k);
  }
}

// Columns [col, col + columns), 16 at most, of T heads' sums: what was there shrinks, the block's weights times its rows, which
// are interleaved at v, are added.
template <int T>
inline void weigh_words(const LatentWords& b, float* acc, int64_t rank, int64_t h, const uint8_t* v, int64_t n, int64_t col,
                        int64_t columns) {
  __m256i sums[T][2];
  word_sums<T, 4 * kHeadGroup>(sums[0], v, (n + 1) / 2, b.p + 4 * h, 4);
  for (int i = 0; i < T; i++) {
    const vec::V shrink = vec::set1(b.shrink[h + i]), unit = vec::set1(b.weight_unit[h + i]);
    for (int side = 0; side < 2; side++) {
      const int64_t left = columns - 8 * side;
      if (left <= 0) break;
      float* to = acc + (h + i) * rank + col + 8 * side;
      const int real = left < 8 ? (int)left : 8;
      vec::store_n(to, vec::fma(_mm256_cvtepi32_ps(sums[i][side]), unit, vec::mul(vec::load_n(to, real), shrink)), real);
    }
  }
}

template <int N>
struct Count {
  constexpr operator int() const { return N; }
};
// f(Count<T>, i) over [i, n), by kWordRows and then the rest.
template <int T = kWordRows, class F>
inline void by_rows(int64_t i, int64_t n, const F& f) {
  for (; i + T <= n; i += T) f(Count<T>{}, i);
  if constexpr (T > 1) by_rows<T - 1>(i, n, f);
}

// Heads [h0, h0 + heads) of query i.
inline void latent_words_heads(const LatentArgs& a, const LatentWords& b, int64_t i, int64_t h0, int64_t heads, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const int64_t row = i * a.heads + h0;
  const float factor = a.scale * kPowers;
  float* acc = a.acc + row * c.rank;
  fill(acc, heads * c.rank, 0);
  fill(b.unit, kHeadGroup, 0);
  if (heads % 16) memset(b.q + heads / 16 * b.pairs * 64, 0, (size_t)(b.pairs * 64));  // lanes without a head
  for (int64_t h = 0; h < heads; h++) b.unit[h] = factor * open_query(b, h, a.q_latent + (row + h) * c.rank, c.rank);
  fill(b.q_rope, c.rope_dim * kHeadGroup, 0);
  rows_to_lanes(b.q_rope, c.rope_dim, 0, a.q_rope + row * c.rope_dim, c.rope_dim, heads, c.rope_dim, factor);
  fill(b.top, kHeadGroup, kLowest);
  fill(b.total, kHeadGroup, 0);
  for (int64_t s = s0; s < s1; s += kWordKeys) {
    const int64_t n = s1 - s < kWordKeys ? s1 - s : kWordKeys;
    for (int64_t t = 0; t < n; t++) CacheQ8::read_rope(b.rope + t * b.ldr, c, s + t);
    for (int64_t h = 0; h < heads; h += kTileLanes)
      product<true>(n, b.s + h, kHeadGroup, kTileLanes, FromZero{}, b.rope, b.ldr, b.q_rope + h * c.rope_dim, kTileLanes, c.rope_dim);
    by_rows(0, n, [&](auto rows, int64_t t) { word_scores<rows>(a, b, t, s + t, heads); });
    for (int64_t h = 0; h < heads; h += vec::kLanes) word_weights(b, c.scale + s, n, h);
    for (int64_t col = 0; col < c.rank; col += kWordColumns) {
      const int64_t columns = c.rank - col < kWordColumns ? c.rank - col : kWordColumns;
      interleave_words(b, c, s, n, col, columns);
      for (int64_t k = 0; k < columns; k += 16)
        by_rows(0, heads, [&](auto rows, int64_t h) {
          weigh_words<rows>(b, acc, c.rank, h, b.v + k / 16 * (kWordKeys / 2) * 64, n, col + k, columns - k);
        });
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    a.m[row + h] = s1 > s0 ? b.top[h] / kPowers : -INFINITY;
    a.l[row + h] = b.total[h];
  }
}

void latent_words(const LatentArgs& a, int64_t s0, int64_t s1) {
  const LatentWords b(a);
  for (int64_t i = 0; i < a.queries; i++) {
    const int64_t end = a.position + i + 1 < s1 ? a.position + i + 1 : s1;
    for (int64_t h = 0; h < a.heads; h += kHeadGroup)
      latent_words_heads(a, b, i, h, a.heads - h < kHeadGroup ? a.heads - h : kHeadGroup, s0, end);
  }
}

}  // namespace
}  // namespace ivlite
