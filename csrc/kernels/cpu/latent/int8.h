// Absorbed attention over 8-bit latents, and 4-bit ones unpacked to these, in int8 (attention/int8.h): lanes are heads, latents are both
// keys and values.
#pragma once
#include "kernels/cpu/attention/int8.h"
#include "kernels/cpu/latent/float.h"

namespace ivlite {
namespace {

struct LatentInt8 {
  SoftmaxWeights w;
  uint8_t* q;                     // unpacked panels of heads, (panels, blocks)
  float* q_rope;                  // (rope, kTileLanes)
  uint8_t* acts;                  // a block's rows
  float* rope;                    // (tokens, ldr)
  uint8_t* v;                     // 64 columns interleaved
  int8_t* tile;                   // a block's rows unpacked, where they are not cached as int8, and their scales
  float *scale, *bias, *inverse;  // base-2 logarithm and inverse of the scales
  int64_t blocks, ldr;

  LatentInt8(const LatentArgs& a) : blocks(k_blocks(a.cache.rank)), ldr(odd_stride(a.cache.rope_dim)) {
    Arena arena{a.scratch};
    w.columns = interleaved_columns(a.cache.rank);
    w.s = arena.floats(kInt8Keys * kHeadBlock), w.p = (uint32_t*)arena.floats(kInt8Keys / 4 * kHeadBlock);
    w.m = arena.floats(kHeadBlock), w.l = arena.floats(kHeadBlock);
    w.alpha = arena.floats(kHeadBlock), w.unit = arena.floats(kHeadBlock);
    w.sums = arena.floats(kHeadBlock * w.columns);
    q = arena.bytes(2 * blocks * kUnpackedBytes), q_rope = arena.floats(a.cache.rope_dim * kTileLanes);
    acts = arena.bytes(kInt8Keys * act_bytes<ActBlockU8>(blocks)), rope = arena.floats(kInt8Keys * ldr);
    v = arena.bytes(kInt8Keys * kInterleaved);
    tile = (int8_t*)arena.bytes(kInt8Keys * a.cache.rank), scale = arena.floats(kInt8Keys);
    bias = arena.floats(kInt8Keys), inverse = arena.floats(kInt8Keys);
  }
};

// n rows as quantized activations. What lies behind their columns meets zeros.
inline void load_acts(uint8_t* to, const CodeRows& rows, int64_t n, int64_t rank, int64_t blocks) {
  const __m512i sign = _mm512_set1_epi8((char)0x80);
  const int64_t whole = rank / 64 * 64;
  const __mmask64 rest = ((__mmask64)1 << (rank - whole)) - 1;
  const int8_t* row = rows.codes;
  const float* scales = rows.scale;
  const int64_t stride = rows.stride, act = act_bytes<ActBlockU8>(blocks);
  for (int64_t t = 0; t < n; t++, row += stride, to += act) {
    for (int64_t i = 0; i < whole; i += 64) _mm512_storeu_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(row + i), sign));
    if (rest) _mm512_storeu_si512(to + whole, _mm512_xor_si512(_mm512_maskz_loadu_epi8(rest, row + whole), sign));
    float* scale = (float*)(to + blocks * kBlockK);
    for (int64_t kb = 0; kb < blocks; kb++) scale[kb] = scales[t];
  }
}

// log2 x within 4e-5, for positive normal x: the exponent, and a polynomial of the fraction.
inline vec::V log2_rough(vec::V x) {
  const __m512i bits = _mm512_castps_si512(x);
  const vec::V exponent = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srli_epi32(bits, 23), _mm512_set1_epi32(127)));
  const __m512i fraction = _mm512_or_si512(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffff)), _mm512_set1_epi32(0x3f800000));
  const vec::V f = vec::sub(_mm512_castsi512_ps(fraction), vec::set1(1));
  const float terms[] = {4.34289078e-2f, -1.87722635e-1f, 4.08721744e-1f, -7.05704158e-1f, 1.44126742f, 3.19081312e-5f};
  vec::V p = vec::zero();
  for (float term : terms) p = vec::fma(p, f, vec::set1(term));
  return vec::add(exponent, p);
}

// What weigh_lanes takes of the scales of n values. One so much smaller than another that it is nothing beside it is raised.
inline void weigh_scales(float* bias, float* inverse, const float* scale, int64_t n) {
  vec::V largest = vec::zero();
  for (int64_t t = 0; t < n; t += 16) largest = vec::absmax(largest, vec::load_n(scale + t, n - t < 16 ? (int)(n - t) : 16));
  const vec::V least = vec::max(vec::set1(0x1p-40f * vec::absmax_lane(largest)), vec::set1(0x1p-80f));
  for (int64_t t = 0; t < n; t += 16) {
    const vec::V x = vec::max(least, vec::load_n(scale + t, n - t < 16 ? (int)(n - t) : 16));  // in this order NaN stays NaN
    vec::store(bias + t, log2_rough(x));
    vec::store(inverse + t, _mm512_div_ps(vec::set1(1), x));
  }
}

// Heads [h0, h0 + heads) of query i, in P panels of lanes.
template <class Kind, int P>
inline void latent_int8_heads(const LatentArgs& a, const LatentInt8& b, int64_t i, int64_t h0, int64_t heads, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const int64_t row = i * a.heads + h0, panel = b.blocks * kUnpackedBytes;
  const float factor = a.scale * kLog2E;
  memset(b.q, 0, (size_t)(P * panel));
  for (int64_t h = 0; h < heads; h++) quantize_query(b.q + h / 16 * panel, (int)(h % 16), a.q_latent + (row + h) * c.rank, c.rank, factor);
  fill(b.q_rope, c.rope_dim * kTileLanes, 0);
  rows_to_lanes(b.q_rope, c.rope_dim, 0, a.q_rope + row * c.rope_dim, c.rope_dim, heads, c.rope_dim, factor);
  fill(b.w.m, kHeadBlock, kInitialMax);
  fill(b.w.l, kHeadBlock, 0);
  fill(b.w.sums, 16 * P * b.w.columns, 0);
  for (int64_t s = s0; s < s1; s += kInt8Keys) {
    const int64_t n = s1 - s < kInt8Keys ? s1 - s : kInt8Keys;
    const CodeRows rows = Kind::codes(c, s, n, b.tile, b.scale);
    load_acts(b.acts, rows, n, c.rank, b.blocks);
    for (int64_t t = 0; t < n; t++) Kind::read_rope(b.rope + t * b.ldr, c, s + t);
    weigh_scales(b.bias, b.inverse, rows.scale, n);
    product<true, P>(n, b.w.s, 16 * P, 16 * P, FromRows{b.bias}, b.rope, b.ldr, b.q_rope, kTileLanes, c.rope_dim);
    const KBlocks of{b.q, panel, b.blocks, (c.rank - (b.blocks - 1) * kBlockK + 3) / 4};
    (of.quads < kBlockQuads ? multiply_tokens<VnniTile<false>, P> : multiply_tokens<VnniTile<true>, P>)(b.w.s, false, of, b.acts, n);
    weigh_lanes<P>(b.w, b.inverse, n);
    for (int64_t col = 0; col < b.w.columns; col += kInterleaved) {
      const int64_t left = c.rank - col < kInterleaved ? c.rank - col : kInterleaved;
      interleave(b.v, rows.codes + col, rows.stride, n, left);
      pv_lanes<P>(b.w, b.v, heads, col, left, n);
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    a.m[row + h] = s1 > s0 ? b.w.m[h] / kLog2E : -INFINITY;
    a.l[row + h] = b.w.l[h];
    deinterleave_row(a.acc + (row + h) * c.rank, b.w.sums + h * b.w.columns, c.rank, 1);
  }
}

template <class Kind>
void latent_int8(const LatentArgs& a, int64_t s0, int64_t s1) {
  const LatentInt8 b(a);
  for (int64_t i = 0; i < a.queries; i++) {
    const int64_t end = a.position + i + 1 < s1 ? a.position + i + 1 : s1;
    for (int64_t h = 0; h < a.heads; h += kHeadBlock) {
      const int64_t heads = a.heads - h < kHeadBlock ? a.heads - h : kHeadBlock;
      (heads > 16 ? latent_int8_heads<Kind, 2> : latent_int8_heads<Kind, 1>)(a, b, i, h, heads, s0, end);
    }
  }
}

inline void init_attention_int8(KernelTable& t) {
  t.packed_attention = {int8_query_bytes, int8_key_bytes, int8_pack_queries, int8_pack_keys, attention_int8};
  t.latent_attention[(int)CacheKind::q8] = latent_int8<CacheQ8>;
  t.latent_attention[(int)CacheKind::q4] = latent_rotated<latent_int8<RotatedQ4>>;
}

}  // namespace
}  // namespace ivlite
