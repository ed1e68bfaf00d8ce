// Softmax attention: within segments for the vision tower, over the latent cache for the decoder.
#pragma once
#include <memory>

#include "ops/cache.h"
#include "ops/linear.h"
#include "ops/views.h"

namespace ivlite {

// Bidirectional attention within runs of `segment` tokens: q, k (T, H, d), v (T, H, dv) -> out (T, H, dv). Unless exact, a
// machine with a matrix unit computes in bf16.
void attention(const OutHeads& out, const InHeads& q, const InHeads& k, const InHeads& v, float scale, int64_t segment, bool exact);

// The T queries of both forms are the newest T visible rows of the cache: query t sees the rows up to its own.
// Absorbed: q_latent (T, H, rank) and q_rope (T, H, rope), contiguous -> out (T, H, rank), contiguous: sums of latents.
void absorbed_attention(const OutHeads& out, const InHeads& q_latent, const InHeads& q_rope, const LatentCache& cache, int64_t layer,
                        float scale);

// Expanded: keys and values of every head are rebuilt from the latents with kv_b (H, nope + v, rank).
// q_nope (T, H, nope), q_rope (T, H, rope) -> out (T, H, v).
class ExpandedAttention {
 public:
  // The cache and kv_b must live, and the cache stay as it is, until all is done.
  ExpandedAttention(int64_t tokens, const LatentCache& cache, int64_t layer, const Weight& kv_b, float scale);
  ~ExpandedAttention();
  // The next n queries, packed and not needed any more; n is a multiple of kPackedRows but for the last.
  void add(const InHeads& q_nope, const InHeads& q_rope);
  // Some heads of the queries attend to a span of cached tokens; whether more is to be done. All calls are given the same out.
  bool step(const OutHeads& out);

 private:
  struct Work;
  std::unique_ptr<Work> work_;  // null without queries
};

// All of it in one call.
void expanded_attention(const OutHeads& out, const InHeads& q_nope, const InHeads& q_rope, const LatentCache& cache, int64_t layer,
                        const Weight& kv_b, float scale);

}  // namespace ivlite
