// Softmax attention of one head over blocks of keys with a running maximum (online softmax). SIMD lanes are queries: maxima, sums
// and rescaling need no reduction across lanes, and keys and values are broadcast from their own layout.
#pragma once
#include <math.h>
#include <string.h>

#include "kernels/cpu/vec/math.h"
#include "kernels/cpu/vec/tile.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

constexpr int64_t kKeyBlock = 60;  // a multiple of the tile height of every set

constexpr float kLog2E = 1.44269504088896341f;  // scores are scaled by it, so that weights are powers of two

// Online softmax of the scores (for exp2) of a vector of lanes and n tokens, rows of s; the weights are stored times the tokens'
// scales. Updates the running maximum and sum, sets alpha for the sums so far. Returns the largest stored weight of each lane, NaN
// if one is.
inline vec::V scaled_weights(float* s, int64_t stride, const float* scale, int64_t n, float* running_m, float* l, float* alpha) {
  const vec::V m_old = vec::load(running_m);
  vec::V m = m_old, sum = vec::zero(), most = vec::zero();
  for (int64_t t = 0; t < n; t++) m = vec::max(m, vec::load(s + t * stride));
  for (int64_t t = 0; t < n; t++, s += stride) {
    const vec::V weight = vec::exp2_weight(vec::sub(vec::load(s), m)), scaled = vec::mul(weight, vec::set1(scale[t]));
    sum = vec::add(sum, weight);
    most = vec::absmax(most, scaled);
    vec::store(s, scaled);
  }
  const vec::V factor = vec::exp2_weight(vec::sub(m_old, m));
  vec::store(alpha, factor);
  vec::store(l, vec::fma(vec::load(l), factor, sum));
  vec::store(running_m, m);
  return most;
}

// Shared by the tiles of one block of queries, all in scratch.
struct AttentionBlock {
  int64_t queries;  // per copy of a block of keys and values
  float* q;         // (tiles, d + d2, kTileLanes), scaled for exp2
  float* out;       // (tiles, dv, kTileLanes), not yet normalized
  float* k;         // (kKeyBlock, ldk): both parts of the keys side by side
  float* v;         // (kKeyBlock, ldv)
  float* s;         // (kKeyBlock, kTileLanes): scores, then weights
  float *m, *l;     // (queries,)
  int64_t width, ldk, ldv;
};

// Causal mask of key s for queries [i, i + kLanes): +infinity where visible, -infinity elsewhere. Exact: small integers.
inline vec::V causal_lanes(int64_t first_visible, int64_t i, int64_t s) {
  alignas(64) static const float lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const vec::V ahead = vec::add(vec::load(lane), vec::set1((float)(first_visible + i - s)));
  return vec::mul(vec::add(ahead, vec::set1(0.5f)), vec::set1(INFINITY));
}

// Keys [s0, s0 + n) against queries [i, i + kTileLanes), which are lanes [lane, lane + kTileLanes) of the block.
inline void attention_tile(const AttentionArgs& a, const AttentionBlock& b, int64_t i, int64_t lane, int64_t s0, int64_t n) {
  product<true>(n, b.s, kTileLanes, kTileLanes, FromZero{}, b.k, b.ldk, b.q + lane * b.width, kTileLanes, b.width);
  const bool masked = a.causal && s0 + n > a.first_visible + i + 1;
  alignas(64) float alpha[kTileLanes];
  for (int64_t j = 0; j < kTileLanes; j += vec::kLanes) {
    const vec::V m_old = vec::load(b.m + lane + j);
    vec::V m = m_old;
    for (int64_t s = 0; s < n; s++) {
      float* p = b.s + s * kTileLanes + j;
      if (masked) vec::store(p, vec::min(vec::load(p), causal_lanes(a.first_visible, i + j, s0 + s)));
      m = vec::max(m, vec::load(p));
    }
    const vec::V factor = vec::exp2_weight(vec::sub(m_old, m));
    vec::V sum = vec::mul(vec::load(b.l + lane + j), factor);
    for (int64_t s = 0; s < n; s++) {
      float* p = b.s + s * kTileLanes + j;
      const vec::V weight = vec::exp2_weight(vec::sub(vec::load(p), m));
      vec::store(p, weight);
      sum = vec::add(sum, weight);
    }
    vec::store(alpha + j, factor);
    vec::store(b.m + lane + j, m);
    vec::store(b.l + lane + j, sum);
  }
  float* out = b.out + lane * a.dv;
  product<false>(a.dv, out, kTileLanes, kTileLanes, ScaledLanes{out, kTileLanes, alpha}, b.v, b.ldv, b.s, kTileLanes, n);
}

// The sums over no keys yet, or over those of earlier calls.
inline void start_sums(const AttentionArgs& a, const AttentionBlock& b, int64_t i, int64_t count) {
  fill(b.out, a.dv * b.queries, 0);
  fill(b.m, b.queries, kInitialMax);
  fill(b.l, b.queries, 0);
  if (!a.continues) return;
  rows_to_lanes(b.out, a.dv, 0, a.out + i * a.ld_out, a.ld_out, count, a.dv, 1);
  memcpy(b.m, a.m + i, (size_t)count * 4);
  memcpy(b.l, a.l + i, (size_t)count * 4);
}

inline void end_sums(const AttentionArgs& a, const AttentionBlock& b, int64_t i, int64_t count) {
  for (int64_t j = 0; j < count; j++) {
    const float l = b.l[j], factor = a.unfinished ? 1 : l > 0 ? 1 / l : l;  // NaN stays NaN
    float* out = a.out + (i + j) * a.ld_out;
    const float* lane = b.out + j / kTileLanes * kTileLanes * a.dv + j % kTileLanes;
    for (int64_t c = 0; c < a.dv; c++) out[c] = lane[c * kTileLanes] * factor;
  }
  if (!a.unfinished) return;
  memcpy(a.m + i, b.m, (size_t)count * 4);
  memcpy(a.l + i, b.l, (size_t)count * 4);
}

// Queries [i, i + count), count <= b.queries.
inline void attention_block(const AttentionArgs& a, const AttentionBlock& b, int64_t i, int64_t count) {
  const float scale = a.scale * kLog2E;
  if (count % kTileLanes) fill(b.q, b.width * b.queries, 0);  // unused lanes
  rows_to_lanes(b.q, b.width, 0, a.q + i * a.ld_q, a.ld_q, count, a.d, scale);
  if (a.d2) rows_to_lanes(b.q, b.width, a.d, a.q2 + i * a.ld_q2, a.ld_q2, count, a.d2, scale);
  start_sums(a, b, i, count);
  const int64_t sees = a.first_visible + i + count;  // of the last query, when causal
  const int64_t keys = a.causal && sees < a.keys ? sees : a.keys;
  for (int64_t s0 = 0; s0 < keys; s0 += kKeyBlock) {
    const int64_t n = keys - s0 < kKeyBlock ? keys - s0 : kKeyBlock;
    for (int64_t s = 0; s < n; s++) {
      memcpy(b.k + s * b.ldk, a.k + (s0 + s) * a.ld_k, (size_t)a.d * 4);
      if (a.d2) memcpy(b.k + s * b.ldk + a.d, a.k2 + (s0 + s) * a.ld_k2, (size_t)a.d2 * 4);
      memcpy(b.v + s * b.ldv, a.v + (s0 + s) * a.ld_v, (size_t)a.dv * 4);
    }
    for (int64_t lane = 0; lane < count; lane += kTileLanes) {
      const int64_t last = (lane + kTileLanes < count ? lane + kTileLanes : count) - 1 + i;
      const int64_t seen = a.causal ? a.first_visible + last + 1 - s0 : n;
      if (seen > 0) attention_tile(a, b, i + lane, lane, s0, seen < n ? seen : n);
    }
  }
  end_sums(a, b, i, count);
}

void attention(const AttentionArgs& a, int64_t q0, int64_t q1) {
  AttentionBlock b;
  b.width = a.d + a.d2;
  b.ldk = odd_stride(b.width);
  b.ldv = odd_stride(a.dv);
  b.queries = b.width + a.dv <= 1024 ? 128 : 64;  // what attention_scratch allows beside a block of keys
  b.m = a.scratch;
  b.l = b.m + b.queries;
  b.s = b.l + b.queries;
  b.k = b.s + kKeyBlock * kTileLanes;
  b.v = b.k + kKeyBlock * b.ldk;
  b.q = b.v + kKeyBlock * b.ldv;
  b.out = b.q + b.width * b.queries;
  for (int64_t i = q0; i < q1; i += b.queries) attention_block(a, b, i, q1 - i < b.queries ? q1 - i : b.queries);
}

}  // namespace
}  // namespace ivlite
