// Attention by AVX-512 VNNI with both products in int8. In Q K^T queries are lanes: they are packed as the unpacked panels of
// linear/kblock.h, keys as its activations. In P V queries are rows and value columns lanes: softmax weights are quantized to
// uint8, and the values of four keys are interleaved to meet them. The rope parts, whose ranges int8 would not cover, are
// multiplied in float.
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

// Online softmax of the scores of 16 lanes and n keys, weights times the value scales quantized to uint8 with one scale per block.
// The rounding error of a key is carried to the next (error diffusion): the many small weights of a long tail keep their sum.
template <int P>
inline void quantize_weights(const SoftmaxWeights& b, const float* scale, int64_t n, int64_t h) {
  constexpr int64_t kStride = 16 * P;
  const vec::V most = scaled_weights(b.s + h, kStride, scale, n, b.m + h, b.l + h, b.alpha + h);
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

// Writes the columns of a lane in their order: transposes 4 x 4 quarters.
inline void deinterleave_row(float* out, const float* sums, int64_t columns, float factor) {
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

constexpr int64_t kInt8Queries = 512, kInt8Lanes = 32;

struct AttentionInt8 {
  SoftmaxWeights w;  // of all queries; s and p serve 32 of them at a time
  uint8_t* q;        // unpacked panels of queries, (panels, blocks)
  float* q2;         // (queries / 32, d2, 32)
  float* mean;       // of all keys: subtracting it shifts all scores of a query alike, and leaves the keys a smaller range
  uint8_t* acts;     // a block's quantized keys
  float* k2;         // (keys, ldr)
  int8_t* rows;      // a block's quantized values, (keys, columns), and their scales
  float* scale;
  uint8_t* v;  // interleaved, (columns / 64, keys / 4, 4, 64)
  int64_t blocks, ldr;

  AttentionInt8(const AttentionArgs& a) : blocks(k_blocks(a.d)), ldr(odd_stride(a.d2)) {
    Arena arena{a.scratch};
    w.columns = interleaved_columns(a.dv);
    w.s = arena.floats(kInt8Keys * kInt8Lanes), w.p = (uint32_t*)arena.floats(kInt8Keys / 4 * kInt8Lanes);
    w.m = arena.floats(kInt8Queries), w.l = arena.floats(kInt8Queries);
    w.alpha = arena.floats(kInt8Lanes), w.unit = arena.floats(kInt8Lanes);
    w.sums = arena.floats(kInt8Queries * w.columns);
    q = arena.bytes(kInt8Queries / 16 * blocks * kUnpackedBytes), q2 = arena.floats(kInt8Queries * a.d2);
    mean = arena.floats(2 * blocks * kBlockK);  // and a centred key
    acts = arena.bytes(kInt8Keys * act_bytes<ActBlockU8>(blocks)), k2 = arena.floats(a.d2 ? kInt8Keys * ldr : 0);
    rows = (int8_t*)arena.bytes(kInt8Keys * w.columns), scale = arena.floats(kInt8Keys), v = arena.bytes(kInt8Keys * w.columns);
  }
};

inline void mean_key(float* mean, const AttentionArgs& a) {
  fill(mean, a.d, 0);
  for (int64_t s = 0; s < a.keys; s++)
    for (int64_t j = 0; j < a.d; j++) mean[j] += a.k[s * a.ld_k + j];
  for (int64_t j = 0; j < a.d; j++) mean[j] = isfinite(mean[j]) ? mean[j] / (float)a.keys : 0;  // a NaN stays in its own key
}

// Quantizes keys and values [s, s + n).
inline void quantize_keys_values(const AttentionArgs& a, const AttentionInt8& b, int64_t s, int64_t n) {
  float* centred = b.mean + b.blocks * kBlockK;
  for (int64_t t = 0; t < n; t++) {
    uint8_t* act = b.acts + t * act_bytes<ActBlockU8>(b.blocks);
    for (int64_t j = 0; j < a.d; j++) centred[j] = a.k[(s + t) * a.ld_k + j] - b.mean[j];
    for (int64_t kb = 0; kb < b.blocks; kb++) {
      const float scale = quantize_block_u8(act + kb * kBlockK, centred + kb * kBlockK, a.d - kb * kBlockK);
      memcpy(act + b.blocks * kBlockK + 4 * kb, &scale, 4);
    }
    if (a.d2) memcpy(b.k2 + t * b.ldr, a.k2 + (s + t) * a.ld_k2, (size_t)a.d2 * 4);
    b.scale[t] = quantize_row(b.rows + t * b.w.columns, a.v + (s + t) * a.ld_v, a.dv);
  }
  for (int64_t col = 0; col < a.dv; col += kInterleaved)
    interleave(b.v + col * kInt8Keys, b.rows + col, b.w.columns, n, a.dv - col < kInterleaved ? a.dv - col : kInterleaved);
}

// 32 queries from `lane` of the block on, which see keys up to ahead + (0..31) of n if masked.
inline void int8_lanes(const AttentionArgs& a, const AttentionInt8& b, int64_t lane, int64_t count, int64_t n, bool masked, int64_t ahead) {
  const int64_t panel = b.blocks * kUnpackedBytes;
  SoftmaxWeights w = b.w;
  w.m += lane, w.l += lane, w.sums += lane * w.columns;
  if (a.d2) product<true>(n, w.s, kInt8Lanes, kInt8Lanes, FromZero{}, b.k2, b.ldr, b.q2 + lane * a.d2, kTileLanes, a.d2);
  const KBlocks of{b.q + lane / 16 * panel, panel, b.blocks, (a.d - (b.blocks - 1) * kBlockK + 3) / 4};
  (of.quads < kBlockQuads ? multiply_tokens<VnniTile<false>, 2> : multiply_tokens<VnniTile<true>, 2>)(w.s, a.d2 == 0, of, b.acts, n);
  for (int64_t j = 0; j < kInt8Lanes; j += 16) {
    for (int64_t t = 0; masked && t < n; t++) {
      float* s = w.s + t * kInt8Lanes + j;
      vec::store(s, vec::min(vec::load(s), causal_lanes(ahead, j, t)));
    }
    quantize_weights<2>(w, b.scale, n, j);
  }
  for (int64_t col = 0; col < a.dv; col += kInterleaved) pv_lanes<2>(w, b.v + col * kInt8Keys, count, col, a.dv - col, n);
}

// Queries [i, i + count).
inline void attention_int8_block(const AttentionArgs& a, const AttentionInt8& b, int64_t i, int64_t count) {
  const int64_t panel = b.blocks * kUnpackedBytes, lanes = (count + kInt8Lanes - 1) / kInt8Lanes * kInt8Lanes;
  memset(b.q, 0, (size_t)(lanes / 16 * panel));
  for (int64_t j = 0; j < count; j++) quantize_query(b.q + j / 16 * panel, (int)(j % 16), a.q + (i + j) * a.ld_q, a.d, a.scale * kLog2E);
  fill(b.q2, lanes * a.d2, 0);
  if (a.d2) rows_to_lanes(b.q2, a.d2, 0, a.q2 + i * a.ld_q2, a.ld_q2, count, a.d2, a.scale * kLog2E);
  fill(b.w.m, lanes, kInitialMax);
  fill(b.w.l, lanes, 0);
  fill(b.w.sums, lanes * b.w.columns, 0);
  const int64_t sees = a.first_visible + i + count, keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s = 0; s < keys; s += kInt8Keys) {
    const int64_t n = keys - s < kInt8Keys ? keys - s : kInt8Keys;
    quantize_keys_values(a, b, s, n);
    for (int64_t lane = 0; lane < count; lane += kInt8Lanes) {
      const int64_t ahead = a.first_visible + i + lane - s;  // the last key in the block that the first lane sees
      const int64_t left = count - lane < kInt8Lanes ? count - lane : kInt8Lanes;
      if (!a.causal || ahead + left > 0) int8_lanes(a, b, lane, left, n, a.causal && ahead + 1 < n, ahead);
    }
  }
  for (int64_t j = 0; j < count; j++) {
    const float l = b.w.l[j];
    deinterleave_row(a.out + (i + j) * a.ld_out, b.w.sums + j * b.w.columns, a.dv, l > 0 ? 1 / l : l);  // NaN stays NaN
  }
}

void attention_int8(const AttentionArgs& a, int64_t q0, int64_t q1) {
  const AttentionInt8 b(a);
  mean_key(b.mean, a);
  for (int64_t i = q0; i < q1 && !(a.stop && a.stop()); i += kInt8Queries)
    attention_int8_block(a, b, i, q1 - i < kInt8Queries ? q1 - i : kInt8Queries);
}

}  // namespace
}  // namespace ivlite
