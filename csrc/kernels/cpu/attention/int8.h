// Attention in integers by 512-bit VNNI, both products. Queries are lanes of the scores: they are the unpacked panels of
// linear/kblock.h, keys its acts. Of the sums queries are rows, value columns lanes, and what is contracted are keys: weights
// become bytes, and four rows of values are interleaved where they meet them. Rotated parts, whose ranges bytes would not
// do justice, are multiplied as floats.
#pragma once
#include <math.h>

namespace ivlite {
namespace {

constexpr int64_t kIntKeys = 128;                // of a block: its weights share a unit, its sums become floats once
constexpr int64_t kInterleaved = 64;             // columns interleaved together
constexpr int kWeighed = 4;                      // lanes x 4 vectors of columns: 16 sums
constexpr float kPowers = 1.44269504088896341f;  // scores times this: weights are powers of two

inline int64_t interleaved_columns(int64_t n) { return (n + kInterleaved - 1) / kInterleaved * kInterleaved; }

// Lanes of one block of keys.
struct IntWeights {
  float* s;                            // (keys, lanes): scores, then weights times the row's scale
  uint32_t* p;                         // (keys / 4, lanes): four keys' weights as bytes
  float* sums;                         // (lanes, columns), columns of a 64 as `interleave` leaves them
  float *top, *total, *shrink, *unit;  // of each lane
  int64_t columns;
};

// Takes room from scratch, a cache quad's multiple each time.
struct Room {
  float* at;
  float* floats(int64_t n) {
    float* out = at;
    at += (n + 15) / 16 * 16;
    return out;
  }
  uint8_t* bytes(int64_t n) { return (uint8_t*)floats((n + 3) / 4); }
};

// A query as lane `lane` of an unpacked panel: codes under a scale per block.
inline void open_lane(uint8_t* to, int lane, const float* x, int64_t n, float factor) {
  for (int64_t kb = 0; kb < k_blocks(n); kb++, to += kUnpackedBytes) {
    alignas(64) float block[kBlockK];
    alignas(64) int8_t codes[kBlockK];
    vec::V top = vec::zero();
    for (int i = 0; i < kBlockK; i += vec::kLanes) {
      const int64_t left = n - kb * kBlockK - i;
      const vec::V v = left > 0 ? vec::load_n(x + kb * kBlockK + i, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
      vec::store(block + i, v);
      top = vec::max(vec::abs(v), top);
    }
    const float peak = vec::max_lane(top);
    const vec::V inverse = vec::set1(peak > 0 ? 127 / peak : 0);
    vec::V sum = vec::zero();
    for (int i = 0; i < kBlockK; i += vec::kLanes)
      sum = vec::add(sum, vec::store_codes(codes + i, vec::mul(vec::load(block + i), inverse)));
    for (int64_t j = 0; j < kBlockQuads; j++) memcpy(to + 64 * j + 4 * lane, codes + 4 * j, 4);
    ((float*)(to + 64 * kBlockQuads))[lane] = factor * peak / 127;
    ((int32_t*)(to + 64 * (kBlockQuads + 1)))[lane] = -128 * (int32_t)vec::sum(sum);
  }
}

// The scores of 16 lanes and n tokens become weights times the tokens' scales, in bytes of a unit of the block's own. What
// rounding leaves of one token goes to the next, so that the many small weights of a long tail keep their mass.
template <int P>
inline void int_weights(const IntWeights& b, const float* scale, int64_t n, int64_t h) {
  constexpr int64_t kStride = 16 * P;
  const vec::V most = scaled_weights(b.s + h, kStride, scale, n, b.top + h, b.total + h, b.shrink + h);
  vec::store(b.unit + h, vec::mul(most, vec::set1(1.0f / 255)));
  const vec::V inverse = _mm512_maskz_div_ps(_mm512_cmp_ps_mask(most, vec::zero(), _CMP_GT_OQ), vec::set1(255), most);
  vec::V left = vec::zero();
  for (int64_t t = 0; t < n; t += 4) {
    __m512i four = _mm512_setzero_si512();
    for (int i = 0; i < 4 && t + i < n; i++) {
      left = _mm512_fmadd_ps(vec::load(b.s + (t + i) * kStride + h), inverse, left);
      const vec::V code = vec::min(vec::round(left), vec::set1(255));
      left = vec::sub(left, code);
      four =
          _mm512_or_si512(four, _mm512_slli_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(code), _mm512_setzero_si512()), (unsigned)(8 * i)));
    }
    _mm512_storeu_si512(b.p + t / 4 * kStride + h, four);
  }
}

// `left` columns, 64 at most, of n rows of `stride` bytes (zeros up to whole fours): vector j of a four has, in quarter q, 4
// tokens' bytes of columns 16 q + 4 j + (0..3).
inline void interleave(uint8_t* to, const int8_t* rows, int64_t stride, int64_t n, int64_t left) {
  const __mmask64 real = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
  for (int64_t t = 0; t < n; t += 4, to += 256) {
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) r[i] = t + i < n ? _mm512_maskz_loadu_epi8(real, rows + (t + i) * stride) : _mm512_setzero_si512();
    const __m512i a = _mm512_unpacklo_epi8(r[0], r[1]), b = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i x = _mm512_unpacklo_epi8(r[2], r[3]), y = _mm512_unpackhi_epi8(r[2], r[3]);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, x));
    _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(a, x));
    _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(b, y));
    _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(b, y));
  }
}

// sums of 4 lanes from h on and V vectors of the 64 columns from col on, whose interleaved rows are v: what was there shrinks,
// a block's weights times its rows are added.
template <int P, int V>
inline void weigh_columns(const IntWeights& b, const uint8_t* v, int64_t h, int64_t col, int64_t n) {
  constexpr int T = kWeighed;
  __m512i s[T][V];
  for (int i = 0; i < T; i++)
    for (int j = 0; j < V; j++) s[i][j] = _mm512_setzero_si512();
  const uint32_t* p = b.p + h;
  for (int64_t t = 0; t < n; t += 4, p += 16 * P, v += 256) {
    __m512i quad[V];
    for (int j = 0; j < V; j++) quad[j] = load_quad(v + 64 * j);
#pragma GCC unroll 4
    for (int i = 0; i < T; i++) {
      const __m512i weights = _mm512_set1_epi32((int)p[i]);
      for (int j = 0; j < V; j++) s[i][j] = _mm512_dpbusd_epi32(s[i][j], weights, quad[j]);
    }
  }
  for (int i = 0; i < T; i++) {
    float* sums = b.sums + (h + i) * b.columns + col;
    const vec::V shrink = vec::set1(b.shrink[h + i]), unit = vec::set1(b.unit[h + i]);
    for (int j = 0; j < V; j++)
      vec::store(sums + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[i][j]), unit, vec::mul(vec::load(sums + 16 * j), shrink)));
  }
}

// All lanes below `lanes` and the 64 columns from col on, of which `left` are real.
template <int P>
inline void weigh_lanes(const IntWeights& b, const uint8_t* v, int64_t lanes, int64_t col, int64_t left, int64_t n) {
  for (int64_t h = 0; h < lanes; h += kWeighed) (left > 8 ? weigh_columns<P, 4> : weigh_columns<P, 2>)(b, v, h, col, n);
}

// Columns of a lane in their own order: 4 x 4 quarters change places.
inline void straighten(float* out, const float* sums, int64_t columns, float factor) {
  for (int64_t col = 0; col < columns; col += kInterleaved) {
    __m512 r[4], t[4];
    for (int j = 0; j < 4; j++) r[j] = vec::mul(vec::load(sums + col + 16 * j), vec::set1(factor));
    t[0] = _mm512_shuffle_f32x4(r[0], r[1], 0x44), t[1] = _mm512_shuffle_f32x4(r[2], r[3], 0x44);
    t[2] = _mm512_shuffle_f32x4(r[0], r[1], 0xee), t[3] = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
    for (int q = 0; q < 4; q++) {
      const int64_t left = columns - col - 16 * q;
      const __m512 row = q % 2 ? _mm512_shuffle_f32x4(t[q & 2], t[(q & 2) + 1], 0xdd) : _mm512_shuffle_f32x4(t[q], t[q + 1], 0x88);
      if (left > 0) vec::store_n(out + col + 16 * q, row, left < 16 ? (int)left : 16);
    }
  }
}

constexpr int64_t kIntQueries = 512, kIntLanes = 32;

struct AttentionInt {
  IntWeights w;   // of all queries but for s and p, which serve 32 at a time
  uint8_t* q;     // unpacked panels of queries, (panels, blocks)
  float* q2;      // (queries / 32, d2, 32)
  float* mean;    // of all keys: taken from each, it adds the same to all scores of a query and spares the codes' range
  uint8_t* acts;  // of a block's keys
  float* k2;      // (keys, ldr)
  int8_t* rows;   // of a block's values, (keys, columns), and their scales
  float* scale;
  uint8_t* v;  // interleaved, (columns / 64, keys / 4, 4, 64)
  int64_t blocks, ldr;

  AttentionInt(const AttentionArgs& a) : blocks(k_blocks(a.d)), ldr(odd_lines(a.d2)) {
    Room room{a.scratch};
    w.columns = interleaved_columns(a.dv);
    w.s = room.floats(kIntKeys * kIntLanes), w.p = (uint32_t*)room.floats(kIntKeys / 4 * kIntLanes);
    w.top = room.floats(kIntQueries), w.total = room.floats(kIntQueries);
    w.shrink = room.floats(kIntLanes), w.unit = room.floats(kIntLanes);
    w.sums = room.floats(kIntQueries * w.columns);
    q = room.bytes(kIntQueries / 16 * blocks * kUnpackedBytes), q2 = room.floats(kIntQueries * a.d2);
    mean = room.floats(2 * blocks * kBlockK);  // and one key less it
    acts = room.bytes(kIntKeys * act_bytes<ActBlockU8>(blocks)), k2 = room.floats(a.d2 ? kIntKeys * ldr : 0);
    rows = (int8_t*)room.bytes(kIntKeys * w.columns), scale = room.floats(kIntKeys), v = room.bytes(kIntKeys * w.columns);
  }
};

inline void mean_key(float* mean, const AttentionArgs& a) {
  fill(mean, a.d, 0);
  for (int64_t s = 0; s < a.keys; s++)
    for (int64_t j = 0; j < a.d; j++) mean[j] += a.k[s * a.ld_k + j];
  for (int64_t j = 0; j < a.d; j++) mean[j] = isfinite(mean[j]) ? mean[j] / (float)a.keys : 0;  // a NaN stays where it is
}

// Keys and values [s, s + n) as a block.
inline void int_block(const AttentionArgs& a, const AttentionInt& b, int64_t s, int64_t n) {
  float* centred = b.mean + b.blocks * kBlockK;
  for (int64_t t = 0; t < n; t++) {
    uint8_t* act = b.acts + t * act_bytes<ActBlockU8>(b.blocks);
    for (int64_t j = 0; j < a.d; j++) centred[j] = a.k[(s + t) * a.ld_k + j] - b.mean[j];
    for (int64_t kb = 0; kb < b.blocks; kb++) {
      const float scale = quantize_block_u8(act + kb * kBlockK, centred + kb * kBlockK, a.d - kb * kBlockK);
      memcpy(act + b.blocks * kBlockK + 4 * kb, &scale, 4);
    }
    if (a.d2) memcpy(b.k2 + t * b.ldr, a.k2 + (s + t) * a.ld_k2, (size_t)a.d2 * 4);
    b.scale[t] = narrow_codes(b.rows + t * b.w.columns, a.v + (s + t) * a.ld_v, a.dv);
  }
  for (int64_t col = 0; col < a.dv; col += kInterleaved)
    interleave(b.v + col * kIntKeys, b.rows + col, b.w.columns, n, a.dv - col < kInterleaved ? a.dv - col : kInterleaved);
}

// 32 queries from `lane` of the block on, which see keys up to ahead + (0..31) of n when masked.
inline void int_lanes(const AttentionArgs& a, const AttentionInt& b, int64_t lane, int64_t count, int64_t n, bool masked, int64_t ahead) {
  const int64_t panel = b.blocks * kUnpackedBytes;
  IntWeights w = b.w;
  w.top += lane, w.total += lane, w.sums += lane * w.columns;
  if (a.d2) product<true>(n, w.s, kIntLanes, kIntLanes, FromZero{}, b.k2, b.ldr, b.q2 + lane * a.d2, kTileLanes, a.d2);
  const KBlocks of{b.q + lane / 16 * panel, panel, b.blocks, (a.d - (b.blocks - 1) * kBlockK + 3) / 4};
  (of.quads < kBlockQuads ? multiply_tokens<VnniTile<false>, 2> : multiply_tokens<VnniTile<true>, 2>)(w.s, a.d2 == 0, of, b.acts, n);
  for (int64_t j = 0; j < kIntLanes; j += 16) {
    for (int64_t t = 0; masked && t < n; t++) {
      float* s = w.s + t * kIntLanes + j;
      vec::store(s, vec::min(vec::load(s), visible_lanes(ahead, j, t)));
    }
    int_weights<2>(w, b.scale, n, j);
  }
  for (int64_t col = 0; col < a.dv; col += kInterleaved) weigh_lanes<2>(w, b.v + col * kIntKeys, count, col, a.dv - col, n);
}

// Queries [i, i + count).
inline void attention_int_block(const AttentionArgs& a, const AttentionInt& b, int64_t i, int64_t count) {
  const int64_t panel = b.blocks * kUnpackedBytes, lanes = (count + kIntLanes - 1) / kIntLanes * kIntLanes;
  memset(b.q, 0, (size_t)(lanes / 16 * panel));
  for (int64_t j = 0; j < count; j++) open_lane(b.q + j / 16 * panel, (int)(j % 16), a.q + (i + j) * a.ld_q, a.d, a.scale * kPowers);
  fill(b.q2, lanes * a.d2, 0);
  if (a.d2) rows_to_lanes(b.q2, a.d2, 0, a.q2 + i * a.ld_q2, a.ld_q2, count, a.d2, a.scale * kPowers);
  fill(b.w.top, lanes, kLowest);
  fill(b.w.total, lanes, 0);
  fill(b.w.sums, lanes * b.w.columns, 0);
  const int64_t sees = a.first_visible + i + count, keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s = 0; s < keys; s += kIntKeys) {
    const int64_t n = keys - s < kIntKeys ? keys - s : kIntKeys;
    int_block(a, b, s, n);
    for (int64_t lane = 0; lane < count; lane += kIntLanes) {
      const int64_t ahead = a.first_visible + i + lane - s;  // the last key that the first of the lanes sees
      const int64_t left = count - lane < kIntLanes ? count - lane : kIntLanes;
      if (!a.causal || ahead + left > 0) int_lanes(a, b, lane, left, n, a.causal && ahead + 1 < n, ahead);
    }
  }
  for (int64_t j = 0; j < count; j++) {
    const float total = b.w.total[j];
    straighten(a.out + (i + j) * a.ld_out, b.w.sums + j * b.w.columns, a.dv, total > 0 ? 1 / total : total);  // a NaN stays one
  }
}

void attention_int(const AttentionArgs& a, int64_t q0, int64_t q1) {
  const AttentionInt b(a);
  mean_key(b.mean, a);
  for (int64_t i = q0; i < q1; i += kIntQueries) attention_int_block(a, b, i, q1 - i < kIntQueries ? q1 - i : kIntQueries);
}

}  // namespace
}  // namespace ivlite
