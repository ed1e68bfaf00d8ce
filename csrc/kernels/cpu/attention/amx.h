// Softmax attention on matrix tiles: queries, keys, values and softmax weights in bf16, sums in float. Queries are lanes, so maxima
// and sums need no reduction across lanes: scores are K Q^T with keys as rows, outputs V^T P^T with value columns as rows.
#pragma once
#include "kernels/cpu/attention/softmax.h"
#include "kernels/cpu/vec/amx_tile.h"

namespace ivlite {
namespace {

constexpr int64_t kAmxKeys = 128, kAmxQueries = 512, kStep = 32;  // kStep: columns that one tile product contracts
constexpr int64_t kLanePair = 2 * kTileSide;

inline int64_t steps_of(int64_t n) { return (n + kStep - 1) / kStep; }

// How queries and keys are packed. 16 queries: a tile per step, transposed. 128 keys: 8 rows of tiles of keys, then the tiles of
// values (columns, kAmxKeys / kStep).
struct AmxLayout {
  int64_t first, steps, columns;  // steps over the first part of a key, over both; tiles over the width of values

  explicit AmxLayout(const AttentionArgs& a)
      : first(steps_of(a.d)), steps(first + steps_of(a.d2)), columns((a.dv + kTileSide - 1) / kTileSide) {}
  int64_t query_tile() const { return steps * kTileElements; }
  int64_t keys() const { return kAmxKeys / kTileSide * steps * kTileElements; }
  int64_t key_block() const { return keys() + columns * (kAmxKeys / kStep) * kTileElements; }
};

struct AmxBlock : AmxLayout {
  const uint16_t *q, *k, *v;  // packed: from the first query on, and of one block of keys
  float* out;                 // (pairs of tiles, 16 columns, kLanePair), not yet normalized
  float *m, *l;               // of each query
  float* s;                   // (kAmxKeys, kLanePair)
  uint16_t* p;                // (2, kAmxKeys / kStep)

  AmxBlock(const AttentionArgs& a, int64_t lanes) : AmxLayout(a), k(nullptr), v(nullptr) {
    m = a.scratch;
    l = m + lanes;
    out = l + lanes;
    s = out + lanes * columns * kTileSide;
    p = (uint16_t*)(s + kAmxKeys * kLanePair);
  }
};

// Transposes 16 x 16 elements of 32 bits.
inline void transpose16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {  // r[4 i + j] holds, in quarter c, column 4 c + j of rows 4 i .. 4 i + 3
    const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    r[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    r[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    r[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

inline void transpose_tile(uint16_t* tile) {
  __m512i r[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(tile + kStep * i);
  transpose16(r);
  for (int i = 0; i < 16; i++) _mm512_storeu_si512(tile + kStep * i, r[i]);
}

// Lanes [i, i + 16) of a row of n floats, padded with zeros.
inline __m512 lanes_of(const float* row, int64_t i, int64_t n) {
  if (n - i >= 16) return vec::load(row + i);
  return n > i ? vec::load_n(row + i, (int)(n - i)) : vec::zero();
}

// Packs `count` rows of n floats, padded with zeros to `rows` (a multiple of 16), into tiles: from step `first` of `steps` on.
inline void pack_rows(uint16_t* tiles, int64_t steps, int64_t first, int64_t rows, const float* from, int64_t stride, int64_t count,
                      int64_t n, float scale) {
  const __m512i odd =
      _mm512_add_epi16(_mm512_set1_epi16(1),
                       _mm512_slli_epi16(_mm512_cvtepi8_epi16(_mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
                                                                               18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)),
                                         1));
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < steps_of(n); i++) {
      __m512i packed = _mm512_setzero_si512();
      if (r < count) {
        const float* row = from + r * stride;
        const __m512 x = _mm512_mul_ps(lanes_of(row, kStep * i, n), _mm512_set1_ps(scale));
        const __m512 y = _mm512_mul_ps(lanes_of(row, kStep * i + 16, n), _mm512_set1_ps(scale));
        packed = _mm512_permutex2var_epi16(round_bf16(x), odd, round_bf16(y));
      }
      _mm512_storeu_si512(tiles + (r / 16 * steps + first + i) * kTileElements + r % 16 * kStep, packed);
    }
}

// Packs the values of 32 keys, of which `count` exist, into a step of every tile of columns.
inline void pack_values(uint16_t* to, int64_t columns, const float* from, int64_t stride, int64_t count, int64_t n) {
  for (int64_t c = 0; c < columns; c++, to += kAmxKeys / kStep * kTileElements) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) {
      const __m512 x = 2 * i < count ? lanes_of(from + 2 * i * stride, 16 * c, n) : vec::zero();
      const __m512 y = 2 * i + 1 < count ? lanes_of(from + (2 * i + 1) * stride, 16 * c, n) : vec::zero();
      r[i] = pairs_bf16(x, y);
    }
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + kStep * i, r[i]);
  }
}

// 2^x for x <= 0, to the precision of a bf16 weight.
inline __m512 exp2_weight_bf16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // in this order NaN stays NaN
  const __m512 n = vec::round(x), f = _mm512_sub_ps(x, n);
  __m512 p = _mm512_set1_ps(9.61813e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550411e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402265e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472e-1f));
  return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f)), n);
}

// Online softmax of the scores of n keys, for lanes 16 j .. of pair `pair`: b.s to b.p; earlier sums are rescaled.
inline void softmax_lanes(const AmxBlock& b, int64_t pair, int j, int64_t n, bool fresh) {
  float *s = b.s + 16 * j, *m_at = b.m + pair * kLanePair + 16 * j, *l = b.l + pair * kLanePair + 16 * j;
  const __m512 m_old = vec::load(m_at);
  __m512 m = m_old;
  for (int64_t i = 0; i < n; i++) m = _mm512_max_ps(m, vec::load(s + i * kLanePair));
  const __m512 factor = exp2_weight_bf16(_mm512_sub_ps(m_old, m));
  __m512 sum = _mm512_mul_ps(vec::load(l), factor);
  uint16_t* p = b.p + j * (kAmxKeys / kStep) * kTileElements;
  for (int64_t i = 0; i < steps_of(n) * kStep; i += 2) {
    const __m512 x = i < n ? exp2_weight_bf16(_mm512_sub_ps(vec::load(s + i * kLanePair), m)) : vec::zero();
    const __m512 y = i + 1 < n ? exp2_weight_bf16(_mm512_sub_ps(vec::load(s + (i + 1) * kLanePair), m)) : vec::zero();
    sum = _mm512_add_ps(sum, _mm512_add_ps(x, y));
    _mm512_storeu_si512(p + i / 2 * kStep, pairs_bf16(x, y));
  }
  vec::store(m_at, m);
  vec::store(l, sum);
  if (fresh || _mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) == 0) return;
  float* out = b.out + pair * kLanePair * b.columns * kTileSide + 16 * j;
  for (int64_t c = 0; c < b.columns * kTileSide; c++)
    vec::store(out + c * kLanePair, _mm512_mul_ps(vec::load(out + c * kLanePair), factor));
}

// n packed keys against pair `pair` of query tiles. Lane i sees keys up to ahead + i if masked.
inline void amx_keys(const AmxBlock& b, int64_t pair, int64_t n, bool fresh, bool masked, int64_t ahead) {
  const uint16_t* q[2] = {b.q + 2 * pair * b.steps * kTileElements, b.q + (2 * pair + 1) * b.steps * kTileElements};
  for (int64_t t = 0; t < n; t += kLanePair) {
    const uint16_t* k[2] = {b.k + t / 16 * b.steps * kTileElements, b.k + (t / 16 + 1) * b.steps * kTileElements};
    float* s = b.s + t * kLanePair;
    tile_products<2, 2>({{{s, s + 16}, {s + 16 * kLanePair, s + 16 * kLanePair + 16}}, kLanePair}, true, k, q, b.steps);
  }
  for (int j = 0; j < 2; j++) {
    for (int64_t i = 0; masked && i < n; i++) {
      float* s = b.s + i * kLanePair + 16 * j;
      vec::store(s, vec::min(vec::load(s), causal_lanes(ahead, 16 * j, i)));
    }
    softmax_lanes(b, pair, j, n, fresh);
  }
  const uint16_t* p[2] = {b.p, b.p + kAmxKeys / kStep * kTileElements};
  for (int64_t c = 0; c < b.columns; c += 2) {
    const bool two = c + 1 < b.columns;
    const uint16_t* v[2] = {b.v + c * (kAmxKeys / kStep) * kTileElements, b.v + (c + two) * (kAmxKeys / kStep) * kTileElements};
    float *o = b.out + (pair * b.columns + c) * kTileSide * kLanePair, *next = o + two * kTileSide * kLanePair;
    const TileSums sums{{{o, o + 16}, {next, next + 16}}, kLanePair};
    (two ? tile_products<2, 2> : tile_products<1, 2>)(sums, fresh, v, p, steps_of(n));
  }
}

// 16 rows of 16 floats and their transpose, each row `stride` floats after the one before: those of `rows` that exist are read.
inline void transpose_floats(float* to, int64_t to_stride, const float* from, int64_t stride, int64_t rows, int64_t columns,
                             const float* factor) {
  __m512i r[16];
  for (int j = 0; j < 16; j++) {
    const __m512 x = j < rows ? lanes_of(from + j * stride, 0, columns) : vec::zero();
    r[j] = _mm512_castps_si512(factor ? _mm512_mul_ps(x, vec::load(factor)) : x);
  }
  transpose16(r);
  for (int j = 0; j < 16; j++) vec::store(to + j * to_stride, _mm512_castsi512_ps(r[j]));
}

// Writes the columns of query i to out + i stride, each lane times its factor.
inline void unpack_out(const AmxBlock& b, float* out, int64_t stride, int64_t queries, int64_t columns, const float* factor) {
  for (int64_t i = 0; i < queries; i += kTileSide)
    for (int64_t c = 0; c < b.columns; c++) {
      const float* from = b.out + (i / kLanePair * b.columns + c) * kTileSide * kLanePair + i % kLanePair;
      float rows[kTileSide * kTileSide];
      transpose_floats(rows, kTileSide, from, kLanePair, kTileSide, kTileSide, factor + i);
      const int64_t left = columns - c * kTileSide;
      for (int64_t j = 0; j < kTileSide && i + j < queries; j++)
        vec::store_n(out + (i + j) * stride + c * kTileSide, vec::load(rows + j * kTileSide), left < kTileSide ? (int)left : kTileSide);
    }
}

// The other way round.
inline void pack_out(const AmxBlock& b, const float* out, int64_t stride, int64_t queries, int64_t columns) {
  for (int64_t i = 0; i < queries; i += kTileSide)
    for (int64_t c = 0; c < b.columns; c++) {
      float* to = b.out + (i / kLanePair * b.columns + c) * kTileSide * kLanePair + i % kLanePair;
      transpose_floats(to, kLanePair, out + i * stride + c * kTileSide, stride, queries - i, columns - c * kTileSide, nullptr);
    }
}

inline int64_t pair_lanes(int64_t queries) { return (queries + kLanePair - 1) / kLanePair * kLanePair; }

// Queries [i, i + count).
inline void attention_amx_block(const AttentionArgs& a, int64_t i, int64_t count) {
  const int64_t lanes = pair_lanes(count);
  AmxBlock b(a, lanes);
  b.q = (const uint16_t*)a.packed_q + i / kTileSide * b.query_tile();
  fill(b.m, lanes, kInitialMax);
  fill(b.l, lanes, 0);
  if (a.continues) {
    fill(b.out, lanes * b.columns * kTileSide, 0);
    pack_out(b, a.out + i * a.ld_out, a.ld_out, count, a.dv);
    memcpy(b.m, a.m + i, (size_t)count * 4), memcpy(b.l, a.l + i, (size_t)count * 4);
  }
  const int64_t sees = a.first_visible + i + count, keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s = 0; s < keys; s += kAmxKeys) {
    const int64_t n = keys - s < kAmxKeys ? keys - s : kAmxKeys;
    b.k = (const uint16_t*)a.packed_k + s / kAmxKeys * b.key_block(), b.v = b.k + b.keys();
    for (int64_t lane = 0; lane < count; lane += kLanePair) {
      const int64_t ahead = a.first_visible + i + lane - s;  // the last key in the block that the first lane of the pair sees
      if (!a.causal || ahead + kLanePair > 0) amx_keys(b, lane / kLanePair, n, s == 0 && !a.continues, a.causal && ahead + 1 < n, ahead);
    }
  }
  if (a.unfinished) memcpy(a.m + i, b.m, (size_t)count * 4), memcpy(a.l + i, b.l, (size_t)count * 4);
  for (int64_t j = 0; j < lanes; j++) b.m[j] = a.unfinished ? 1 : b.l[j] > 0 ? 1 / b.l[j] : b.l[j];  // NaN stays NaN
  unpack_out(b, a.out + i * a.ld_out, a.ld_out, count, a.dv, b.m);
}

void attention_amx(const AttentionArgs& a, int64_t q0, int64_t q1) {
  UseTiles tiles;
  for (int64_t i = q0; i < q1; i += kAmxQueries) attention_amx_block(a, i, q1 - i < kAmxQueries ? q1 - i : kAmxQueries);
}

int64_t amx_query_bytes(const AttentionArgs& a, int64_t n) { return pair_lanes(n) / kTileSide * AmxLayout(a).query_tile() * 2; }
int64_t amx_key_bytes(const AttentionArgs& a, int64_t n) { return (n + kAmxKeys - 1) / kAmxKeys * AmxLayout(a).key_block() * 2; }

void amx_pack_queries(void* to, const AttentionArgs& a, int64_t q0, int64_t q1) {
  const AmxLayout o(a);
  const int64_t count = q1 - q0, lanes = pair_lanes(count);
  pack_rows((uint16_t*)to, o.steps, 0, lanes, a.q + q0 * a.ld_q, a.ld_q, count, a.d, a.scale * kLog2E);
  if (a.d2) pack_rows((uint16_t*)to, o.steps, o.first, lanes, a.q2 + q0 * a.ld_q2, a.ld_q2, count, a.d2, a.scale * kLog2E);
  for (int64_t t = 0; t < lanes / kTileSide * o.steps; t++) transpose_tile((uint16_t*)to + t * kTileElements);
}

void amx_pack_keys(void* to, const AttentionArgs& a, int64_t s0, int64_t s1) {
  const AmxLayout o(a);
  for (uint16_t* block = (uint16_t*)to; s0 < s1; s0 += kAmxKeys, block += o.key_block()) {
    const int64_t n = s1 - s0 < kAmxKeys ? s1 - s0 : kAmxKeys, rows = steps_of(n) * kStep;
    pack_rows(block, o.steps, 0, rows, a.k + s0 * a.ld_k, a.ld_k, n, a.d, 1);
    if (a.d2) pack_rows(block, o.steps, o.first, rows, a.k2 + s0 * a.ld_k2, a.ld_k2, n, a.d2, 1);
    for (int64_t j = 0; j < n; j += kStep)
      pack_values(block + o.keys() + j / kStep * kTileElements, o.columns, a.v + (s0 + j) * a.ld_v, a.ld_v, n - j, a.dv);
  }
}

inline void init_amx_attention(KernelTable& t) {
  t.packed_attention = {amx_query_bytes, amx_key_bytes, amx_pack_queries, amx_pack_keys, attention_amx};
}

}  // namespace
}  // namespace ivlite
