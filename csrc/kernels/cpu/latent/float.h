// Absorbed attention over the latent cache in float. All heads share one row per token, so a block of tokens is converted to float
// once for all heads: lanes are heads in the scores, latent columns in the sums.
#pragma once
#include "kernels/cpu/attention/softmax.h"
#include "kernels/cpu/latent/cache.h"

namespace ivlite {
namespace {

constexpr int64_t kHeadBlock = 32;  // heads that share one pass over the cache

struct LatentBlock {
  float* q;              // (tiles, width, kTileLanes), scaled
  float* c;              // (tokens, ldc): latent and rope side by side
  float* s;              // (tokens, kHeadBlock): scores, then weights
  float *m, *l, *alpha;  // (kHeadBlock,)
  int64_t width, ldc, tokens;
};

// n tokens, already in b.c, against `heads` heads whose sums are rows of acc.
inline void latent_block(const LatentArgs& a, const LatentBlock& b, float* acc, int64_t heads, int64_t n) {
  if (heads <= vec::kLanes)
    product<true, 1>(n, b.s, kHeadBlock, vec::kLanes, FromZero{}, b.c, b.ldc, b.q, kTileLanes, b.width);
  else
    for (int64_t h = 0; h < heads; h += kTileLanes)
      product<true>(n, b.s + h, kHeadBlock, kTileLanes, FromZero{}, b.c, b.ldc, b.q + h * b.width, kTileLanes, b.width);
  for (int64_t h = 0; h < heads; h += vec::kLanes) {
    const vec::V m_old = vec::load(b.m + h);
    vec::V m = m_old;
    for (int64_t s = 0; s < n; s++) m = vec::max(m, vec::load(b.s + s * kHeadBlock + h));
    const vec::V factor = vec::exp_weight(vec::sub(m_old, m));
    vec::V sum = vec::mul(vec::load(b.l + h), factor);
    for (int64_t s = 0; s < n; s++) {
      float* p = b.s + s * kHeadBlock + h;
      const vec::V weight = vec::exp_weight(vec::sub(vec::load(p), m));
      vec::store(p, weight);
      sum = vec::add(sum, weight);
    }
    vec::store(b.alpha + h, factor);
    vec::store(b.m + h, m);
    vec::store(b.l + h, sum);
  }
  const int64_t rank = a.cache.rank;
  for (int64_t col = 0; col < rank; col += kTileLanes)
    product<false>(heads, acc + col, rank, rank - col, ScaledRows{acc + col, rank, b.alpha}, b.s, kHeadBlock, b.c + col, b.ldc, n);
}

// Dot product of n floats.
inline float dot(const float* a, const float* b, int64_t n) {
  constexpr int kSums = 4;
  vec::V sum[kSums];
  for (int j = 0; j < kSums; j++) sum[j] = vec::zero();
  int64_t k = 0;
  for (; k + kSums * vec::kLanes <= n; k += kSums * vec::kLanes)
#pragma GCC unroll 4
    for (int j = 0; j < kSums; j++) sum[j] = vec::fma(vec::load(a + k + j * vec::kLanes), vec::load(b + k + j * vec::kLanes), sum[j]);
  for (; k < n; k += vec::kLanes) {
    const int left = n - k < vec::kLanes ? (int)(n - k) : vec::kLanes;
    sum[0] = vec::fma(vec::load_n(a + k, left), vec::load_n(b + k, left), sum[0]);
  }
  return vec::sum(vec::add(vec::add(sum[0], sum[1]), vec::add(sum[2], sum[3])));
}

// Heads [h0, h0 + heads) of a query that sees one token: its weight is 1.
template <class Kind>
inline void latent_token(const LatentArgs& a, float* token, int64_t row, int64_t heads, int64_t s) {
  const LatentRows& c = a.cache;
  Kind::read_latent(token, c, s);
  Kind::read_rope(token + c.rank, c, s);
  for (int64_t h = row; h < row + heads; h++) {
    a.m[h] = a.scale * (dot(a.q_latent + h * c.rank, token, c.rank) + dot(a.q_rope + h * c.rope_dim, token + c.rank, c.rope_dim));
    a.l[h] = 1;
    memcpy(a.acc + h * c.rank, token, (size_t)c.rank * 4);
  }
}

// Heads [h0, h0 + heads) of query i.
template <class Kind>
inline void latent_heads(const LatentArgs& a, const LatentBlock& b, int64_t i, int64_t h0, int64_t heads, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const int64_t row = i * a.heads + h0;
  if (s1 - s0 == 1) return latent_token<Kind>(a, b.c, row, heads, s0);
  float* acc = a.acc + row * c.rank;
  fill(acc, heads * c.rank, 0);
  if (heads < kHeadBlock) fill(b.q, b.width * kHeadBlock, 0);  // unused lanes
  rows_to_lanes(b.q, b.width, 0, a.q_latent + row * c.rank, c.rank, heads, c.rank, a.scale);
  rows_to_lanes(b.q, b.width, c.rank, a.q_rope + row * c.rope_dim, c.rope_dim, heads, c.rope_dim, a.scale);
  fill(b.m, kHeadBlock, kInitialMax);
  fill(b.l, kHeadBlock, 0);
  for (int64_t s = s0; s < s1; s += b.tokens) {
    const int64_t n = s1 - s < b.tokens ? s1 - s : b.tokens;
    for (int64_t j = 0; j < n; j++) {
      Kind::read_latent(b.c + j * b.ldc, c, s + j);
      Kind::read_rope(b.c + j * b.ldc + c.rank, c, s + j);
    }
    latent_block(a, b, acc, heads, n);
  }
  for (int64_t h = 0; h < heads; h++) {
    a.m[row + h] = s1 > s0 ? b.m[h] : -INFINITY;
    a.l[row + h] = b.l[h];
  }
}

template <class Kind>
void latent_attention(const LatentArgs& a, int64_t s0, int64_t s1) {
  LatentBlock b;
  b.width = a.cache.rank + a.cache.rope_dim;
  b.ldc = odd_stride(b.width);
  b.m = a.scratch;
  b.l = b.m + kHeadBlock;
  b.alpha = b.l + kHeadBlock;
  b.q = b.alpha + kHeadBlock;
  // As many tokens as the rest of latent_block_scratch holds, at most 64: sums are loaded and stored once per block. Rows of c lie before s
  // because the last tile of columns may load, and ignore, a little past them.
  const int64_t rest = latent_block_scratch(a) - 3 * kHeadBlock - b.width * kHeadBlock;
  b.tokens = rest / (b.ldc + kHeadBlock);
  b.tokens = b.tokens > 64 ? 60 : b.tokens / kTileRows * kTileRows;
  b.c = b.q + b.width * kHeadBlock;
  b.s = b.c + b.tokens * b.ldc;
  for (int64_t i = 0; i < a.queries; i++) {
    const int64_t end = a.position + i + 1 < s1 ? a.position + i + 1 : s1;
    for (int64_t h = 0; h < a.heads; h += kHeadBlock)
      latent_heads<Kind>(a, b, i, h, a.heads - h < kHeadBlock ? a.heads - h : kHeadBlock, s0, end);
  }
}

// Attention over rotated latents by `attend`, which takes and gives rotated rows.
template <latent_attention_fn attend>
void latent_rotated(const LatentArgs& a, int64_t s0, int64_t s1) {
  const int64_t rows = a.queries * a.heads, rank = a.cache.rank;
  float* q = a.scratch + latent_block_scratch(a);
  memcpy(q, a.q_latent, (size_t)(rows * rank) * 4);
  for (int64_t i = 0; i < rows; i++) rotate_row(q + i * rank, rank);
  LatentArgs rotated = a;
  rotated.q_latent = q;
  attend(rotated, s0, s1);
  for (int64_t i = 0; i < rows; i++) rotate_row(a.acc + i * rank, rank);
}

}  // namespace
}  // namespace ivlite
