// Attention by AVX-512 VNNI with both products in int8. In Q K^T queries are lanes: they are packed as the unpacked panels of
// linear/kblock.h, keys as its activations. In P V queries are rows and value columns lanes: softmax weights are quantized to
// uint8, and the values of four keys are interleaved to meet them.
#pragma once
#include "kernels/cpu/attention/softmax.h"
#include "kernels/cpu/elementwise/quantize.h"
#include "kernels/cpu/linear/kblock.h"

namespace ivlite {
namespace {

constexpr int64_t kInt8Keys = 128;    // of a block: its softmax weights share one scale, its int32 sums are converted once
constexpr int64_t kInterleaved = 64;  // value columns interleaved together
constexpr int kPvLanes = 4;           // lanes x 4 vectors of columns: 16 sums

inline int64_t interleaved_columns(int64_t n) { return (n + kInterleaved - 1) / kInterleaved * kInterleaved; }

// The lanes' state over one block of keys.
struct SoftmaxWeights {
  float* s;                     // (keys, lanes): scores, then softmax weights times the scale of the value row
  uint32_t* p;                  // (keys / 4, lanes): uint8 weights of four keys
  float* sums;                  // (lanes, columns), each 64 columns in the order that `interleave` leaves
  float *m, *l, *alpha, *unit;  // of each lane: running maximum, sum, rescaling of earlier sums, scale of p
  int64_t columns;
};

// Takes memory from scratch, a multiple of a cache line each time.
struct Arena {
  float* at;
  float* floats(int64_t n) {
    float* out = at;
    at += (n + 15) / 16 * 16;
    return out;
  }
  uint8_t* bytes(int64_t n) { return (uint8_t*)floats((n + 3) / 4); }
};

// Quantizes a query into lane `lane` of an unpacked panel: codes with one scale per k-block.
inline void quantize_query(uint8_t* to, int lane, const float* x, int64_t n, float factor) {
  for (int64_t kb = 0; kb < k_blocks(n); kb++, to += kUnpackedBytes) {
    alignas(64) float block[kBlockK];
    alignas(64) int8_t codes[kBlockK];
    vec::V m = vec::zero();
    for (int i = 0; i < kBlockK; i += vec::kLanes) {
      const int64_t left = n - kb * kBlockK - i;
      const vec::V v = left > 0 ? vec::load_n(x + kb * kBlockK + i, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
      vec::store(block + i, v);
      m = vec::absmax(m, v);
    }
    const QuantScale quant = quant_scale(vec::absmax_lane(m), 127);
    const vec::V inverse = vec::set1(quant.inverse);
    vec::V sum = vec::zero();
    for (int i = 0; i < kBlockK; i += vec::kLanes) sum = vec::add(sum, vec::store_int8(codes + i, vec::mul(vec::load(block + i), inverse)));
    for (int64_t j = 0; j < kBlockQuads; j++) memcpy(to + 64 * j + 4 * lane, codes + 4 * j, 4);
    ((float*)(to + 64 * kBlockQuads))[lane] = factor * quant.scale;
    ((int32_t*)(to + 64 * (kBlockQuads + 1)))[lane] = -128 * (int32_t)vec::sum(sum);
  }
}

// Interleaves `left` columns, at most 64, of n rows of `stride` bytes, padded with zeros to a multiple of 4 rows: vector j of a
// four has, in quarter q, the codes of 4 rows of columns 16 q + 4 j + (0..3).
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

// P V of 4 lanes from h on and V vectors of the 64 columns from col on, of interleaved rows v: sums = sums alpha + p v.
template <int P, int V>
inline void pv_columns(const SoftmaxWeights& b, const uint8_t* v, int64_t h, int64_t col, int64_t n) {
  constexpr int T = kPvLanes;
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
    const vec::V alpha = vec::set1(b.alpha[h + i]), unit = vec::set1(b.unit[h + i]);
    for (int j = 0; j < V; j++)
      vec::store(sums + 16 * j, _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[i][j]), unit, vec::mul(vec::load(sums + 16 * j), alpha)));
  }
}

// All lanes below `lanes` and the 64 columns from col on, of which `left` exist.
template <int P>
inline void pv_lanes(const SoftmaxWeights& b, const uint8_t* v, int64_t lanes, int64_t col, int64_t left, int64_t n) {
  for (int64_t h = 0; h < lanes; h += kPvLanes) (left > 8 ? pv_columns<P, 4> : pv_columns<P, 2>)(b, v, h, col, n);
}

inline void transpose_quarters(__m512 (&r)[4]) {
  const __m512 a = _mm512_shuffle_f32x4(r[0], r[1], 0x44), b = _mm512_shuffle_f32x4(r[2], r[3], 0x44);
  const __m512 c = _mm512_shuffle_f32x4(r[0], r[1], 0xee), d = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
  r[0] = _mm512_shuffle_f32x4(a, b, 0x88), r[1] = _mm512_shuffle_f32x4(a, b, 0xdd);
  r[2] = _mm512_shuffle_f32x4(c, d, 0x88), r[3] = _mm512_shuffle_f32x4(c, d, 0xdd);
}

// Writes the columns of a lane in their order, times a factor.
inline void deinterleave_row(float* out, const float* sums, int64_t columns, float factor) {
  for (int64_t col = 0; col < columns; col += kInterleaved) {
    __m512 r[4];
    for (int j = 0; j < 4; j++) r[j] = vec::mul(vec::load(sums + col + 16 * j), vec::set1(factor));
    transpose_quarters(r);
    for (int q = 0; q < 4; q++) {
      const int64_t left = columns - col - 16 * q;
      if (left > 0) vec::store_n(out + col + 16 * q, r[q], left < 16 ? (int)left : 16);
    }
  }
}

// The other way round.
inline void interleave_row(float* sums, const float* row, int64_t columns) {
  for (int64_t col = 0; col < columns; col += kInterleaved) {
    __m512 r[4];
    for (int q = 0; q < 4; q++) {
      const int64_t left = columns - col - 16 * q;
      r[q] = left > 0 ? vec::load_n(row + col + 16 * q, left < 16 ? (int)left : 16) : vec::zero();
    }
    transpose_quarters(r);
    for (int j = 0; j < 4; j++) vec::store(sums + col + 16 * j, r[j]);
  }
}

constexpr int64_t kInt8Queries = 512, kInt8Lanes = 32;

// How queries and keys are packed. 32 queries: 2 panels of k-blocks. 128 keys: their codes and scales, the base-2 logarithms of the
// scales of their values, the inverse of these scales, and the values (columns / 64, keys / 4, 4, 64).
struct Int8Layout {
  int64_t first, blocks, quads;  // k-blocks of the first part of a key, of both, and quads of the last that are not zero
  int64_t panel, act;            // bytes of 16 queries and of a key
  int64_t dv, columns;           // columns of values, and padded

  explicit Int8Layout(const AttentionArgs& a)
      : first(k_blocks(a.d)),
        blocks(first + k_blocks(a.d2)),
        quads(((a.d2 ? a.d2 : a.d) - 1) % kBlockK / 4 + 1),
        panel(blocks * kUnpackedBytes),
        act(act_bytes<ActBlockU8>(blocks)),
        dv(a.dv),
        columns(interleaved_columns(a.dv)) {}
  int64_t key_block() const { return kInt8Keys * (act + 8 + columns); }
};

struct Int8Keys {
  uint8_t* acts;
  float *bias, *inverse;
  uint8_t* v;
  Int8Keys(const Int8Layout& o, uint8_t* block)
      : acts(block), bias((float*)(acts + kInt8Keys * o.act)), inverse(bias + kInt8Keys), v((uint8_t*)(inverse + kInt8Keys)) {}
};

int64_t int8_query_bytes(const AttentionArgs& a, int64_t n) { return (n + kInt8Lanes - 1) / kInt8Lanes * 2 * Int8Layout(a).panel; }
int64_t int8_key_bytes(const AttentionArgs& a, int64_t n) { return (n + kInt8Keys - 1) / kInt8Keys * Int8Layout(a).key_block(); }

void int8_pack_queries(void* to, const AttentionArgs& a, int64_t q0, int64_t q1) {
  const Int8Layout o(a);
  const float factor = a.scale * kLog2E;
  memset(to, 0, (size_t)int8_query_bytes(a, q1 - q0));
  for (int64_t i = q0; i < q1; i++) {
    uint8_t* panel = (uint8_t*)to + (i - q0) / 16 * o.panel;
    const int lane = (int)((i - q0) % 16);
    quantize_query(panel, lane, a.q + i * a.ld_q, a.d, factor);
    if (a.d2) quantize_query(panel + o.first * kUnpackedBytes, lane, a.q2 + i * a.ld_q2, a.d2, factor);
  }
}

// Quantizes n values to k-blocks of a packed key, from block kb on.
inline void pack_key_part(uint8_t* act, const Int8Layout& o, int64_t kb, const float* x, int64_t n) {
  for (int64_t j = 0; j < n; j += kBlockK, kb++) {
    const float scale = quantize_block_u8(act + kb * kBlockK, x + j, n - j);
    memcpy(act + o.blocks * kBlockK + 4 * kb, &scale, 4);
  }
}

// Keys and values [s, s + n), n <= kInt8Keys.
inline void int8_pack_block(uint8_t* block, const Int8Layout& o, const AttentionArgs& a, int64_t s, int64_t n) {
  const Int8Keys to(o, block);
  float *centred = a.scratch, *scale = centred + (a.d + 15) / 16 * 16;
  int8_t* values = (int8_t*)(scale + kInt8Keys);
  float largest = 0;
  for (int64_t t = 0; t < n; t++) {
    const float* k = a.k + (s + t) * a.ld_k;
    for (int64_t j = 0; a.mean && j < a.d; j++) centred[j] = k[j] - a.mean[j];
    pack_key_part(to.acts + t * o.act, o, 0, a.mean ? centred : k, a.d);
    if (a.d2) pack_key_part(to.acts + t * o.act, o, o.first, a.k2 + (s + t) * a.ld_k2, a.d2);
    scale[t] = quantize_row(values + t * o.columns, a.v + (s + t) * a.ld_v, a.dv);
    largest = scale[t] > largest ? scale[t] : largest;
  }
  const float least = largest > 0 ? largest * 0x1p-40f : 1;  // a value so much smaller than another counts as zero
  for (int64_t t = 0; t < n; t++) {
    if (scale[t] < least) memset(values + t * o.columns, 0, (size_t)a.dv), scale[t] = least;
    to.bias[t] = log2f(scale[t]), to.inverse[t] = 1 / scale[t];
  }
  for (int64_t col = 0; col < a.dv; col += kInterleaved)
    interleave(to.v + col * kInt8Keys, values + col, o.columns, n, a.dv - col < kInterleaved ? a.dv - col : kInterleaved);
}

void int8_pack_keys(void* to, const AttentionArgs& a, int64_t s0, int64_t s1) {
  const Int8Layout o(a);
  for (uint8_t* block = (uint8_t*)to; s0 < s1; s0 += kInt8Keys, block += o.key_block())
    int8_pack_block(block, o, a, s0, s1 - s0 < kInt8Keys ? s1 - s0 : kInt8Keys);
}

constexpr float kMostCode = 254;  // and the error that is carried still leave a byte

// 2^x, x >= -120, within 0.2 %, from two factors: the exponent's bits, and a polynomial.
inline vec::V exp2_rough(vec::V x) {
  const vec::V shifter = vec::set1(12582912 + 127);  // 1.5 x 2^23: rounds to an integer, which the low bits then hold
  const vec::V bits = vec::add(x, shifter), f = vec::fnma(vec::set1(1), vec::sub(bits, shifter), x);
  const vec::V p = vec::fma(vec::fma(f, vec::set1(2.3842887e-1f), vec::set1(7.03448e-1f)), f, vec::set1(1.00044315f));
  return vec::mul(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(bits), 23)), p);
}

// a where `mask` is 0, b where it is 1.
inline __m512i with_byte(__m512i a, __m512i b, uint32_t mask) {
  return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi32((int)mask), 0xd8);
}

// Online softmax of the scores of 16 P lanes and n keys, to which the logarithms of their values' scales were added: the weights are
// those of the values' codes, and the sum l divides the scales out again. Weights are relative to the largest of the block, so
// that it is kMostCode. The rounding error of a key is carried to the fourth after it (error diffusion): the many small weights of a
// long tail keep their sum.
template <int P>
inline void weigh_lanes(const SoftmaxWeights& b, const float* inverse, int64_t n) {
  constexpr int64_t kStride = 16 * P;
  vec::V top[P], shift[P], sum[P];
  __m512i fixed[P][4];
  for (int h = 0; h < P; h++) top[h] = vec::set1(kInitialMax), sum[h] = vec::zero();
  for (int64_t t = 0; t < n; t++)
    for (int h = 0; h < P; h++) top[h] = vec::max(top[h], vec::load(b.s + t * kStride + 16 * h));
  for (int h = 0; h < P; h++) {
    shift[h] = vec::sub(vec::set1(7.98868469f + 24), top[h]);  // weights in 2^-24 of a code: log2 of kMostCode, and 24
    for (int i = 0; i < 4; i++) fixed[h][i] = _mm512_set1_epi32(1 << 23);
  }
  const float* s = b.s;
  for (int64_t t = 0; t < n; t += 4, s += 4 * kStride) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 2
      for (int h = 0; h < P; h++) {
        const vec::V score = t + i < n ? vec::load(s + i * kStride + 16 * h) : vec::set1(-INFINITY);
        const vec::V weight = exp2_rough(vec::max(vec::set1(-120), vec::add(score, shift[h])));  // in this order NaN stays NaN
        if (t + i < n) sum[h] = vec::fma(weight, vec::set1(inverse[t + i]), sum[h]);
        fixed[h][i] = _mm512_add_epi32(_mm512_and_si512(fixed[h][i], _mm512_set1_epi32(0xffffff)), _mm512_cvtps_epu32(weight));
      }
    for (int h = 0; h < P; h++) {
      __m512i codes = with_byte(_mm512_srli_epi32(fixed[h][0], 24), _mm512_srli_epi32(fixed[h][1], 16), 0xff00);
      codes = with_byte(codes, _mm512_srli_epi32(fixed[h][2], 8), 0xff0000);
      _mm512_storeu_si512(b.p + t / 4 * kStride + 16 * h, with_byte(codes, fixed[h][3], 0xff000000));
    }
  }
  for (int h = 0; h < P; h++) {
    float *m_at = b.m + 16 * h, *l = b.l + 16 * h;
    const vec::V m_old = vec::load(m_at), m = vec::max(m_old, top[h]), alpha = vec::exp2_weight(vec::sub(m_old, m));
    const vec::V unit = vec::mul(vec::exp2_weight(vec::sub(top[h], m)), vec::set1(1 / kMostCode));
    vec::store(m_at, m);
    vec::store(l, vec::fma(vec::load(l), alpha, vec::mul(sum[h], vec::mul(unit, vec::set1(0x1p-24f)))));
    vec::store(b.alpha + 16 * h, alpha);
    vec::store(b.unit + 16 * h, unit);
  }
}

// Scores of T keys from t on, and the logarithms of their values' scales, for 32 queries. kWhole: no quad of the last k-block is zero.
template <bool kWhole, int T>
inline void score_tile(const Int8Layout& o, float* s, const uint8_t* q, const Int8Keys& keys, int64_t t) {
  constexpr int P = kInt8Lanes / 16;
  const uint8_t* acts = keys.acts + t * o.act;
  TileRows<uint8_t> x(acts, o.act), scales(acts + o.blocks * kBlockK, o.act);
  vec::V score[P][T];
  for (int i = 0; i < T; i++)
    for (int k = 0; k < P; k++) score[k][i] = vec::set1(keys.bias[t + i]);
  for (int64_t kb = 0; kb < o.blocks; kb++, q += kUnpackedBytes, x.advance(kBlockK), scales.advance(4)) {
    __m512i sum[P][T];
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) sum[k][i] = _mm512_loadu_si512(q + k * o.panel + 64 * (kBlockQuads + 1));
    if constexpr (kWhole) {
#pragma GCC unroll 32
      for (int j = 0; j < (int)kBlockQuads; j++) {
        if (j % (kBlockQuads / 4) == 0) prefetch_acts<ActBlockU8, T, 4>(acts, o.act, 4 * kb + j / (kBlockQuads / 4));
        multiply_quad(sum, q, o.panel, x, j);
      }
    } else {
      for (int64_t j = 0; j < (kb + 1 < o.blocks ? kBlockQuads : o.quads); j++) multiply_quad(sum, q, o.panel, x, j);
    }
    vec::V factor[P];
    for (int k = 0; k < P; k++) factor[k] = vec::load((const float*)(q + k * o.panel + 64 * kBlockQuads));
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      const vec::V scale = vec::set1(*(const float*)scales.row(i));
      for (int k = 0; k < P; k++) score[k][i] = vec::fma(_mm512_cvtepi32_ps(sum[k][i]), vec::mul(factor[k], scale), score[k][i]);
    }
  }
  for (int i = 0; i < T; i++)
    for (int k = 0; k < P; k++) vec::store(s + i * kInt8Lanes + 16 * k, score[k][i]);
}

// The same of any number of keys.
template <bool kWhole, int T = 6>
inline void score_keys(const Int8Layout& o, float* s, const uint8_t* q, const Int8Keys& keys, int64_t n, int64_t t = 0) {
  if constexpr (T > 0) {
    for (; n - t >= T; t += T) score_tile<kWhole, T>(o, s + t * kInt8Lanes, q, keys, t);
    score_keys<kWhole, T - 1>(o, s, q, keys, n, t);
  }
}

// 32 queries against n keys, of which they see those up to ahead + (0..31) if masked.
inline void int8_lanes(const Int8Layout& o, const SoftmaxWeights& w, const uint8_t* q, const Int8Keys& keys, int64_t count, int64_t n,
                       bool masked, int64_t ahead) {
  (o.quads < kBlockQuads ? score_keys<false> : score_keys<true>)(o, w.s, q, keys, n, 0);
  for (int64_t t = 0; masked && t < n; t++)
    for (int64_t j = 0; j < kInt8Lanes; j += 16) {
      float* s = w.s + t * kInt8Lanes + j;
      vec::store(s, vec::min(vec::load(s), causal_lanes(ahead, j, t)));
    }
  weigh_lanes<kInt8Lanes / 16>(w, keys.inverse, n);
  for (int64_t col = 0; col < o.dv; col += kInterleaved) pv_lanes<2>(w, keys.v + col * kInt8Keys, count, col, o.dv - col, n);
}

// Queries [i, i + count), count <= kInt8Queries.
inline void attention_int8_block(const AttentionArgs& a, int64_t i, int64_t count) {
  const Int8Layout o(a);
  Arena arena{a.scratch};
  SoftmaxWeights w;
  w.columns = o.columns;
  w.s = arena.floats(kInt8Keys * kInt8Lanes), w.p = (uint32_t*)arena.floats(kInt8Keys / 4 * kInt8Lanes);
  w.m = arena.floats(kInt8Queries), w.l = arena.floats(kInt8Queries);
  w.alpha = arena.floats(kInt8Lanes), w.unit = arena.floats(kInt8Lanes);
  w.sums = arena.floats(kInt8Queries * o.columns);
  const int64_t lanes = (count + kInt8Lanes - 1) / kInt8Lanes * kInt8Lanes;
  fill(w.m, lanes, kInitialMax);
  fill(w.l, lanes, 0);
  if (a.continues) {
    memcpy(w.m, a.m + i, (size_t)count * 4), memcpy(w.l, a.l + i, (size_t)count * 4);
    for (int64_t j = 0; j < count; j++) interleave_row(w.sums + j * o.columns, a.out + (i + j) * a.ld_out, a.dv);
  } else {
    fill(w.sums, lanes * o.columns, 0);
  }
  const int64_t sees = a.first_visible + i + count, keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s = 0; s < keys; s += kInt8Keys) {
    const Int8Keys block(o, (uint8_t*)a.packed_k + s / kInt8Keys * o.key_block());
    const int64_t n = keys - s < kInt8Keys ? keys - s : kInt8Keys;
    for (int64_t lane = 0; lane < count; lane += kInt8Lanes) {
      const int64_t ahead = a.first_visible + i + lane - s;  // the last key in the block that the first lane sees
      const int64_t left = count - lane < kInt8Lanes ? count - lane : kInt8Lanes;
      const int64_t seen = a.causal && ahead + left < n ? ahead + left : n;  // by the last lane
      if (seen <= 0) continue;
      SoftmaxWeights of = w;
      of.m += lane, of.l += lane, of.sums += lane * w.columns;
      int8_lanes(o, of, (const uint8_t*)a.packed_q + (i + lane) / 16 * o.panel, block, left, seen, a.causal && ahead + 1 < n, ahead);
    }
  }
  for (int64_t j = 0; j < count; j++) {
    const float l = w.l[j], inverse = l > 0 ? 1 / l : l;  // NaN stays NaN
    deinterleave_row(a.out + (i + j) * a.ld_out, w.sums + j * o.columns, a.dv, a.unfinished ? 1 : inverse);
  }
  if (a.unfinished) memcpy(a.m + i, w.m, (size_t)count * 4), memcpy(a.l + i, w.l, (size_t)count * 4);
}

void attention_int8(const AttentionArgs& a, int64_t q0, int64_t q1) {
  for (int64_t i = q0; i < q1; i += kInt8Queries) attention_int8_block(a, i, q1 - i < kInt8Queries ? q1 - i : kInt8Queries);
}

}  // namespace
}  // namespace ivlite
