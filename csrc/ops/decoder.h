// A decoder layer of few tokens as one operation.
#pragma once
#include <vector>

#include "ops/cache.h"
#include "ops/linear.h"
#include "ops/views.h"

namespace ivlite {

// One layer of M2LA and a SwiGLU MLP. With H heads: q (H (nope + rope), hidden), kv_a (rank + rope, hidden),
// uk_t = W_UK^T (H, rank, nope), uv = W_UV (H, v, rank), o (hidden, H v), up (2 inner, hidden), down (hidden, inner).
struct DecoderLayer {
  const float *attn_norm, *ffn_norm;  // (hidden,)
  const float* latent_norm;           // (rank,) or null
  Linear q, kv_a, o, up, down;
  const Weight &uk_t, &uv;
  bool interleaved;  // rotary pairs beside one another in q and kv_a
  float eps, scale;
};

// So many rows of x that follow one another, and the cache that they belong to.
struct CacheRows {
  LatentCache* cache;
  int64_t rows;
};

// Runs x (T, hidden), changed in place, through a layer with absorbed attention; bit-identical to its separate operations:
//   x += o(uv absorbed_attention(uk_t q_nope, rope(q_rope))),  x += mlp(rms_norm(x))
// and appends each part's rows to that layer of its cache. cos, sin (T, rope / 2). Between two products of one token, a caller's
// interpreter would take longer than the arithmetic does. Throws std::invalid_argument when shapes differ or a cache comes twice.
void decoder_layer(const OutRows& x, const DecoderLayer& of, const InRows& cos, const InRows& sin, const std::vector<CacheRows>& parts,
                   int64_t layer);

}  // namespace ivlite
