#include "ops/attention.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "core/stop.h"
#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace ivlite {
namespace {

constexpr int64_t kQueryBlock = 512;   // queries of one head that a thread takes together
constexpr int64_t kSplitTokens = 512;  // stored tokens of a part of absorbed attention, at least
constexpr int64_t kHeadPiece = 16;     // heads of a query that a thread takes together when there are few parts

float* floats(Scratch use, std::initializer_list<int64_t> sizes) { return (float*)thread_scratch(use, (size_t)product(sizes) * 4); }

// The set's packed attention, or null where operands stay as they are.
const PackedAttention* packed_attention(bool exact) {
  return exact || !kernels().packed_attention.attention ? nullptr : &kernels().packed_attention;
}

void check_causal(const InHeads& q, const LatentCache& cache) {
  check(q.tokens <= cache.visible(), "there are more queries than cached tokens");
}

bool contiguous(int64_t token_stride, int64_t head_stride, int64_t heads, int64_t dim) {
  return head_stride == dim && token_stride == heads * dim;
}

// Sums over parts of the tokens, of rows (query, head): acc (parts, rows, rank) relative to each part's own maximum m, with sum l, both
// (parts, rows).
struct Parts {
  float *acc, *m, *l;
  int64_t rows, rank;

  static int64_t floats(int64_t parts, int64_t rows, int64_t rank) { return product({parts, rows, rank + 2}); }
  Parts(float* memory, int64_t parts, int64_t rows, int64_t rank)
      : acc(memory), m(acc + parts * rows * rank), l(m + parts * rows), rows(rows), rank(rank) {}

  // out = the first `parts` parts of a row together.
  void merge(float* out, int64_t row, int64_t parts) const {
    float m_max = -INFINITY, l_sum = 0;
    for (int64_t p = 0; p < parts; p++) m_max = fmaxf(m_max, m[p * rows + row]);
    for (int64_t p = 0; p < parts; p++)
      if (l[p * rows + row] != 0) l_sum += l[p * rows + row] * expf(m[p * rows + row] - m_max);
    bool first = true;
    for (int64_t p = 0; p < parts; p++) {
      if (l[p * rows + row] == 0) continue;  // sees no token; a NaN is a part of the sum
      const float weight = expf(m[p * rows + row] - m_max) / l_sum;
      const float* from = acc + (p * rows + row) * rank;
      for (int64_t j = 0; j < rank; j++) out[j] = weight * from[j] + (first ? 0 : out[j]);
      first = false;
    }
  }
};

// Absorbed attention. A query sees the tokens before its own as they are stored, in parts, and its own as it was given: what it sees, and
// where parts begin, is the same whether the tokens before it came with it or earlier.
struct Absorbed {
  LatentArgs args;  // of query 0 and head 0
  LatentRows rows, fresh;
  CacheKind kind;
  int64_t tokens, heads, visible, threads;

  bool own() const { return fresh.latent != nullptr; }
  int64_t stored(int64_t t) const { return visible - tokens + t + (own() ? 0 : 1); }
  int64_t splits(int64_t t) const { return std::max<int64_t>(1, std::min(2 * threads, stored(t) / kSplitTokens)); }
  int64_t parts(int64_t t) const { return splits(t) + (own() ? 1 : 0); }

  // Part p of heads [h0, h1) of query t, to rows `row` on of `to`.
  void run(const Parts& to, int64_t row, int64_t p, int64_t t, int64_t h0, int64_t h1) const {
    const bool newest = p == splits(t);
    const int64_t before = stored(t), length = round_up((before + splits(t) - 1) / splits(t), 16);
    const int64_t first = newest ? t : std::min(p * length, before), end = newest ? t + 1 : std::min(first + length, before);
    const int64_t at = p * to.rows + row, head = t * heads + h0;
    LatentArgs a = args;
    a.acc = to.acc + at * to.rank, a.m = to.m + at, a.l = to.l + at;
    a.q_latent += head * rows.rank, a.q_rope += head * rows.rope_dim;
    a.queries = 1, a.heads = h1 - h0;
    a.cache = newest ? fresh : rows;
    a.position = end - 1;
    a.scratch = floats(Scratch::kernel, {latent_scratch(a)});
    kernels().latent_attention[(int)(newest ? CacheKind::f32 : kind)](a, first, end);
  }

  // All parts of heads [h0, h1) of query t, merged to its rows of out.
  void run_all(float* out, int64_t t, int64_t h0, int64_t h1) const {
    const int64_t n = h1 - h0;
    const Parts some(floats(Scratch::parts, {Parts::floats(parts(t), n, rows.rank)}), parts(t), n, rows.rank);
    for (int64_t p = 0; p < parts(t); p++) run(some, 0, p, t, h0, h1);
    for (int64_t h = 0; h < n; h++) some.merge(out + (t * heads + h0 + h) * rows.rank, h, parts(t));
  }
};

// The mean of n rows; 0 where it is not finite, so that a NaN stays in its own row.
void mean_row(float* mean, const float* rows, int64_t stride, int64_t n, int64_t columns) {
  std::fill_n(mean, columns, 0.0f);
  for (int64_t t = 0; t < n; t++)
    for (int64_t j = 0; j < columns; j++) mean[j] += rows[t * stride + j];
  for (int64_t j = 0; j < columns; j++) mean[j] = isfinite(mean[j]) ? mean[j] / (float)n : 0;
}

// Queries [q0, q1) of one head, which see all keys.
void attend_segment(AttentionArgs& a, const PackedAttention* packed, int64_t q0, int64_t q1) {
  if (packed) {
    float* mean = floats(Scratch::keys_values, {a.d + 16 + packed->key_bytes(a, a.keys) / 4});
    mean_row(mean, a.k, a.ld_k, a.keys, a.d);
    void* keys = mean + round_up(a.d, 16);
    a.mean = mean, a.packed_k = keys;
    packed->pack_keys(keys, a, 0, a.keys);
  }
  for (int64_t i = q0; i < q1; i += kQueryBlock) {
    const int64_t end = std::min(i + kQueryBlock, q1);
    check_stop();
    if (!packed) {
      kernels().attention(a, i, end);
      continue;
    }
    void* queries = thread_scratch(Scratch::parts, (size_t)packed->query_bytes(a, end - i));
    packed->pack_queries(queries, a, i, end);
    AttentionArgs block = a;
    block.packed_q = queries, block.out += i * a.ld_out;
    packed->attention(block, 0, end - i);
  }
}

}  // namespace

void attention(const OutHeads& out, const InHeads& q, const InHeads& k, const InHeads& v, float scale, int64_t segment, bool exact) {
  check(q.tokens == k.tokens && q.tokens == v.tokens && q.tokens == out.tokens, "q, k, v and out need the same rows");
  check(q.heads == k.heads && q.heads == v.heads && q.heads == out.heads, "q, k, v and out need the same heads");
  check(q.dim == k.dim && v.dim == out.dim && q.dim > 0 && v.dim > 0, "q and k, v and out need the same head dimension");
  check(segment > 0 && q.tokens % segment == 0, "the rows must be whole segments");
  const PackedAttention* packed = packed_attention(exact);
  const int64_t pairs = product({q.tokens / segment, q.heads}), blocks = (segment + kQueryBlock - 1) / kQueryBlock;
  // Packing is repeated for every piece of the queries, so there are no more than threads need.
  const int64_t pieces = packed ? std::max<int64_t>(1, std::min(blocks, 4 * num_threads() / std::max<int64_t>(1, pairs))) : blocks;
  const int64_t piece = round_up((segment + pieces - 1) / pieces, kPackedRows);
  parallel_for(pairs * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i / pieces / q.heads * segment, h = i / pieces % q.heads, q0 = std::min(i % pieces * piece, segment);
      AttentionArgs a{};
      a.out = out.data + first * out.token_stride + h * out.head_stride, a.ld_out = out.token_stride;
      a.q = q.data + first * q.token_stride + h * q.head_stride, a.ld_q = q.token_stride;
      a.k = k.data + first * k.token_stride + h * k.head_stride, a.ld_k = k.token_stride;
      a.v = v.data + first * v.token_stride + h * v.head_stride, a.ld_v = v.token_stride;
      a.d = q.dim, a.dv = v.dim, a.keys = segment, a.scale = scale;
      a.scratch = floats(Scratch::kernel, {attention_scratch(a)});
      attend_segment(a, packed, q0, std::min(q0 + piece, segment));
    }
  });
}

void absorbed_attention(const OutHeads& out, const InHeads& q_latent, const InHeads& q_rope, const LatentCache& cache, int64_t layer,
                        float scale) {
  const LatentRows& rows = cache.layer(layer);
  int64_t tokens = q_latent.tokens, heads = q_latent.heads, rank = rows.rank;
  check(rank == q_latent.dim && rows.rope_dim == q_rope.dim, "the queries do not have the cache's dimensions");
  check(q_rope.tokens == tokens && q_rope.heads == heads && out.tokens == tokens && out.heads == heads && out.dim == rank, "shapes differ");
  check(contiguous(q_latent.token_stride, q_latent.head_stride, heads, rank) &&
            contiguous(out.token_stride, out.head_stride, heads, rank) &&
            contiguous(q_rope.token_stride, q_rope.head_stride, heads, q_rope.dim),
        "absorbed attention needs contiguous arrays");
  check_causal(q_latent, cache);
  if (tokens == 0) return;
  LatentArgs a{};
  a.q_latent = q_latent.data, a.q_rope = q_rope.data, a.scale = scale;
  const Absorbed work{a, rows, cache.fresh(layer), cache.kind(), tokens, heads, cache.visible(), num_threads()};
  // Many queries: each is a piece. Few: its heads are split among threads, and a long cache into its parts.
  const int64_t splits = work.splits(tokens - 1), threads = work.threads;
  const int64_t piece = tokens * splits >= 2 * threads ? heads : std::min(kHeadPiece, heads), pieces = (heads + piece - 1) / piece;
  if (splits == 1 || tokens >= 4 * threads)
    return parallel_for(product({tokens, pieces}), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++)
        work.run_all(out.data, i / pieces, i % pieces * piece, std::min((i % pieces + 1) * piece, heads));
    });
  const int64_t parts = work.parts(tokens - 1), all = tokens * heads;
  const Parts shared(floats(Scratch::parts, {Parts::floats(parts, all, rank)}), parts, all, rank);
  parallel_for(product({tokens, splits, pieces}), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t h0 = i % pieces * piece, h1 = std::min(h0 + piece, heads), t = i / pieces % tokens, p = i / pieces / tokens;
      if (p < work.splits(t)) work.run(shared, t * heads + h0, p, t, h0, h1);
      if (p == splits - 1 && work.own()) work.run(shared, t * heads + h0, work.splits(t), t, h0, h1);
    }
  });
  parallel_for(all, std::max<int64_t>(1, 8192 / rank), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) shared.merge(out.data + i * rank, i, work.parts(i / heads));
  });
}

}  // namespace ivlite
