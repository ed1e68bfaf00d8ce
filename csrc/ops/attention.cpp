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

constexpr int64_t kQueryBlock = 256;   // queries of one head that a thread takes together
constexpr int64_t kExpandRows = 512;   // cached tokens expanded together: their latents stay in L2
constexpr int64_t kSplitTokens = 512;  // stored tokens of a part of absorbed attention, at least
constexpr int64_t kHeadPiece = 16;     // heads of a query that a thread takes together when there are few parts

float* floats(Scratch use, std::initializer_list<int64_t> sizes) { return (float*)thread_scratch(use, (size_t)product(sizes) * 4); }

attention_fn attention_kernel(bool exact) {
  return exact || !kernels().attention_reduced ? kernels().attention : kernels().attention_reduced;
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
    float top = -INFINITY, total = 0;
    for (int64_t p = 0; p < parts; p++) top = fmaxf(top, m[p * rows + row]);
    for (int64_t p = 0; p < parts; p++)
      if (l[p * rows + row] != 0) total += l[p * rows + row] * expf(m[p * rows + row] - top);
    memset(out, 0, (size_t)rank * 4);
    for (int64_t p = 0; p < parts; p++) {
      if (l[p * rows + row] == 0) continue;  // sees no token; a NaN is a part of the sum
      float weight = expf(m[p * rows + row] - top) / total;
      const float* from = acc + (p * rows + row) * rank;
      for (int64_t j = 0; j < rank; j++) out[j] += weight * from[j];
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

}  // namespace

void attention(const OutHeads& out, const InHeads& q, const InHeads& k, const InHeads& v, float scale, int64_t segment, bool exact) {
  check(q.tokens == k.tokens && q.tokens == v.tokens && q.tokens == out.tokens, "q, k, v and out need the same rows");
  check(q.heads == k.heads && q.heads == v.heads && q.heads == out.heads, "q, k, v and out need the same heads");
  check(q.dim == k.dim && v.dim == out.dim && q.dim > 0 && v.dim > 0, "q and k, v and out need the same head dimension");
  check(segment > 0 && q.tokens % segment == 0, "the rows must be whole segments");
  int64_t blocks = (segment + kQueryBlock - 1) / kQueryBlock, per_segment = q.heads * blocks;
  parallel_for(product({q.tokens / segment, q.heads, blocks}), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t first = i / per_segment * segment, h = i % per_segment / blocks, q0 = i % blocks * kQueryBlock;
      AttentionArgs a{};
      a.out = out.data + first * out.token_stride + h * out.head_stride, a.ld_out = out.token_stride;
      a.q = q.data + first * q.token_stride + h * q.head_stride, a.ld_q = q.token_stride;
      a.k = k.data + first * k.token_stride + h * k.head_stride, a.ld_k = k.token_stride;
      a.v = v.data + first * v.token_stride + h * v.head_stride, a.ld_v = v.token_stride;
      a.d = q.dim, a.dv = v.dim, a.keys = segment, a.scale = scale, a.stop = stop_asked;
      a.scratch = floats(Scratch::kernel, {attention_scratch(a)});
      attention_kernel(exact)(a, q0, std::min(q0 + kQueryBlock, segment));
      check_stop();
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

namespace {

// Latents of tokens [s, s + n) as float: stored rows as they are read, rows just appended as they were given.
void read_latents(float* out, const LatentCache& cache, int64_t layer, int64_t s, int64_t n) {
  const LatentRows& rows = cache.layer(layer);
  LatentRows fresh = cache.fresh(layer);
  int64_t stored = fresh.latent ? cache.length() : cache.visible(), border = std::min(std::max(s, stored), s + n);
  if (border > s) kernels().cache_read[(int)cache.kind()](out, nullptr, rows, s, border);
  if (border == s + n) return;
  const float* given = (const float*)fresh.latent + (border - stored) * rows.rank;
  memcpy(out + (border - s) * rows.rank, given, (size_t)((s + n - border) * rows.rank) * 4);
}

// Latents of all cached tokens as kv_b's kernels take them, made once for all heads, in blocks of kExpandRows.
struct Expansion {
  const LatentCache& cache;
  int64_t layer;
  const Weight& kv_b;
  int64_t visible, rank;
  bool gemm;     // blocks are what quantize_gemm makes; else int8 codes
  char* blocks;  // null for float weights, which read latents as they are

  Expansion(const LatentCache& cache, int64_t layer, const Weight& kv_b)
      : cache(cache), layer(layer), kv_b(kv_b), visible(cache.visible()), rank(kv_b.cols()), blocks(nullptr) {
    gemm = uses_gemm(kv_b, visible) &&
           kernels().gemm_is_finer[(int)kv_b.format()];  // keys and values are rounded once more, so latents stay fine
    if (!kv_b.quantized()) return;
    blocks = (char*)thread_scratch(Scratch::inputs, (size_t)product({(visible + kExpandRows - 1) / kExpandRows, block_bytes()}));
    parallel_for((visible + kExpandRows - 1) / kExpandRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin * kExpandRows; s < std::min(end * kExpandRows, visible); s += kExpandRows) prepare(s);
    });
  }

  int64_t block_bytes() const { return round_up(gemm ? gemm_bytes(kExpandRows, rank) : quant_rows_bytes(kExpandRows, rank), 64); }
  char* block(int64_t s) const { return blocks + s / kExpandRows * block_bytes(); }

  void prepare(int64_t s) const {
    int64_t n = std::min(kExpandRows, visible - s);
    float* latent = floats(Scratch::kernel, {kExpandRows, rank});
    read_latents(latent, cache, layer, s, n);
    const Part all{latent, rank, 0, n, 0, rank};
    if (gemm)
      kernels().quantize_gemm[(int)kv_b.format()]((uint16_t*)block(s), n, rank, all);
    else
      kernels().quantize_rows(quant_rows(block(s), kExpandRows, rank), all);
  }

  // Keys and values of one head: kv (visible, nope + v).
  void head(float* kv, int64_t h) const {
    int64_t width = kv_b.rows();
    float* latent = blocks ? nullptr : floats(Scratch::kernel, {kExpandRows, rank});
    for (int64_t s = 0; s < visible; s += kExpandRows) {
      check_stop();
      int64_t n = std::min(kExpandRows, visible - s);
      if (latent) read_latents(latent, cache, layer, s, n);
      OutRows out{kv + s * width, n, width, width};
      InRows in{latent, n, rank, rank};
      if (gemm)
        gemm_panels(out, in, (const uint16_t*)block(s), kv_b, h, nullptr, false, 0, kv_b.panels());
      else
        linear_panels(out, in, blocks ? quant_rows(block(s), kExpandRows, rank) : QuantRows{}, kv_b, h, nullptr, false, 0, kv_b.panels());
    }
  }
};

// The rotated keys of tokens [0, visible), float (visible, rope_dim), in the calling thread's scratch.
float* read_keys(const LatentCache& cache, int64_t layer, int64_t visible) {
  const LatentRows& rows = cache.layer(layer);
  LatentRows fresh = cache.fresh(layer);
  int64_t stored = fresh.latent ? cache.length() : visible;
  float* keys = floats(Scratch::parts, {visible, rows.rope_dim});
  parallel_for(stored, 256,
               [&](int64_t s0, int64_t s1) { kernels().cache_read[(int)cache.kind()](nullptr, keys + s0 * rows.rope_dim, rows, s0, s1); });
  if (fresh.latent) memcpy(keys + stored * rows.rope_dim, fresh.rope, (size_t)((visible - stored) * rows.rope_dim) * 4);
  return keys;
}

}  // namespace

void expanded_attention(const OutHeads& out, const InHeads& q_nope, const InHeads& q_rope, const LatentCache& cache, int64_t layer,
                        const Weight& kv_b, float scale) {
  const LatentRows& rows = cache.layer(layer);
  int64_t tokens = q_nope.tokens, heads = q_nope.heads, nope = q_nope.dim, width = kv_b.rows(), visible = cache.visible();
  check(kv_b.heads() == heads && kv_b.cols() == rows.rank && width == nope + out.dim && out.dim > 0 && nope > 0,
        "kv_b does not have the cache's shape");
  check(q_rope.tokens == tokens && q_rope.heads == heads && q_rope.dim == rows.rope_dim, "q_rope does not have the cache's shape");
  check(out.tokens == tokens && out.heads == heads, "out does not have the shape of the queries");
  check_causal(q_nope, cache);
  if (tokens == 0) return;
  float* k_rope = read_keys(cache, layer, visible);
  const Expansion expansion(cache, layer, kv_b);
  parallel_for(heads, 1, [&](int64_t h0, int64_t h1) {
    for (int64_t h = h0; h < h1; h++) {
      float* kv = floats(Scratch::keys_values, {visible, width});
      expansion.head(kv, h);
      AttentionArgs a{};
      a.out = out.data + h * out.head_stride, a.ld_out = out.token_stride;
      a.q = q_nope.data + h * q_nope.head_stride, a.ld_q = q_nope.token_stride;
      a.q2 = q_rope.data + h * q_rope.head_stride, a.ld_q2 = q_rope.token_stride;
      a.k = kv, a.ld_k = width, a.k2 = k_rope, a.ld_k2 = rows.rope_dim, a.v = kv + nope, a.ld_v = width;
      a.d = nope, a.d2 = rows.rope_dim, a.dv = out.dim, a.keys = visible;
      a.first_visible = visible - tokens, a.causal = true, a.scale = scale, a.stop = stop_asked;
      a.scratch = floats(Scratch::kernel, {attention_scratch(a)});
      attention_kernel(!kv_b.quantized())(a, 0, tokens);
      check_stop();
    }
  });
}

}  // namespace ivlite
