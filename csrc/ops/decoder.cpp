#include "ops/decoder.h"

#include <algorithm>

#include "core/threads.h"
#include "ops/attention.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace ivlite {
namespace {

constexpr int64_t kShort = 1024;  // cached tokens that absorbed attention does not split among threads
constexpr int64_t kHeads = 16;    // that a thread takes together at most: lanes of its kernels

InRows seen(const OutRows& x) { return {x.data, x.rows, x.cols, x.stride}; }
InHeads seen(const OutHeads& x) { return {x.data, x.tokens, x.heads, x.dim, x.token_stride, x.head_stride}; }
OutRows columns(const OutRows& x, int64_t first, int64_t count) { return {x.data + first, x.rows, count, x.stride}; }
OutRows joined(const OutHeads& x) { return {x.data, x.tokens, x.heads * x.dim, x.token_stride}; }

// The arrays between a layer's operations, of T tokens, one behind the other in the calling thread's scratch.
class Between {
 public:
  Between(int64_t tokens, int64_t columns)
      : tokens_(tokens), next_((float*)thread_scratch(Scratch::decoder, (size_t)product({tokens, columns, 4}))) {}
  OutRows rows(int64_t cols) { return {take(cols), tokens_, cols, cols}; }
  OutHeads heads(int64_t heads, int64_t dim) { return {take(heads * dim), tokens_, heads, dim, heads * dim, dim}; }

 private:
  float* take(int64_t cols) {
    float* at = next_;
    next_ += tokens_ * cols;
    return at;
  }
  int64_t tokens_;
  float* next_;
};

struct Sizes {
  int64_t hidden, heads, nope, rope, rank, v;

  explicit Sizes(const DecoderLayer& of)
      : hidden(of.o.w.rows()),
        heads(of.uk_t.heads()),
        nope(of.uk_t.cols()),
        rope(of.q.w.rows() / heads - nope),
        rank(of.uk_t.rows()),
        v(of.uv.rows()) {
    check(rope > 0, "q has no columns for rotated queries");
    check_size("the rows of q", of.q.w.rows(), heads * (nope + rope));
    check_size("the rows of kv_a", of.kv_a.w.rows(), rank + rope);
    check_size("the heads of uv", of.uv.heads(), heads);
  }
  int64_t between() const { return hidden + heads * (nope + 2 * rope + 2 * rank + v) + 2 * (rank + rope); }
};

// Rows [t, t + n).
template <class T>
Rows<T> some_rows(const Rows<T>& x, int64_t t, int64_t n) {
  return {x.data + t * x.stride, n, x.cols, x.stride};
}
template <class T>
Heads<T> some_rows(const Heads<T>& x, int64_t t, int64_t n) {
  return {x.data + t * x.token_stride, n, x.heads, x.dim, x.token_stride, x.head_stride};
}

// Heads [h0, h1) of one token, as a token of so many heads.
template <class T>
Heads<T> some_heads(const Heads<T>& x, int64_t h0, int64_t h1) {
  return {x.data + h0 * x.head_stride, x.tokens, h1 - h0, x.dim, (h1 - h0) * x.dim, x.head_stride};
}

// What a layer does per head: of q_nope and q_rope to values, through arrays for what lies between.
struct PerHead {
  const DecoderLayer& of;
  const std::vector<CacheRows>& parts;
  int64_t layer;
  InHeads q_nope, q_rope;
  OutHeads q_latent, mixed, values;

  void run() const {
    if (parts.size() == 1 && quick(parts[0])) return apart();
    linear_heads(q_latent, q_nope, of.uk_t, 0);
    attend();
    linear_heads(values, seen(mixed), of.uv, 0);
  }

 private:
  // One token over a short cache: so little that threads take heads of it, and do not share its tokens.
  static bool quick(const CacheRows& part) { return part.rows == 1 && part.cache->visible() <= kShort; }

  int64_t piece(int64_t tokens) const {
    return std::clamp<int64_t>((q_nope.heads * tokens + num_threads() - 1) / num_threads(), 1, std::min(kHeads, q_nope.heads));
  }

  // Heads [h0, h1) of token t, of arrays of such heads.
  void attend_heads(const OutHeads& mix, const InHeads& latent, const InHeads& rope, const LatentCache& cache, int64_t h0,
                    int64_t h1) const {
    absorbed_attention(some_heads(mix, h0, h1), some_heads(latent, h0, h1), some_heads(rope, h0, h1), cache, layer, of.scale);
  }

  // Attention alone: what is quick together in one region, the rest one by one.
  void attend() const {
    struct Token {
      int64_t row;
      const LatentCache* cache;
    };
    std::vector<Token> tokens;
    int64_t at = 0;
    for (const CacheRows& part : parts) {
      if (quick(part))
        tokens.push_back({at, part.cache});
      else
        absorbed_attention(some_rows(mixed, at, part.rows), seen(some_rows(q_latent, at, part.rows)), some_rows(q_rope, at, part.rows),
                           *part.cache, layer, of.scale);
      at += part.rows;
    }
    const int64_t heads = q_nope.heads, size = piece((int64_t)tokens.size()), pieces = (heads + size - 1) / size;
    parallel_for((int64_t)tokens.size() * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const auto [row, cache] = tokens[(size_t)(i / pieces)];
        const int64_t h0 = i % pieces * size, h1 = std::min(h0 + size, heads);
        attend_heads(some_rows(mixed, row, 1), seen(some_rows(q_latent, row, 1)), some_rows(q_rope, row, 1), *cache, h0, h1);
      }
    });
  }

  // All of one token, whose heads need not wait for one another.
  void apart() const {
    const int64_t heads = q_nope.heads, size = piece(1);
    parallel_for((heads + size - 1) / size, 1, [&](int64_t begin, int64_t end) {
      for (int64_t h0 = begin * size; h0 < std::min(end * size, heads); h0 += size) {
        const int64_t h1 = std::min(h0 + size, heads);
        linear_heads(some_heads(q_latent, h0, h1), some_heads(q_nope, h0, h1), of.uk_t, h0);
        attend_heads(mixed, seen(q_latent), q_rope, *parts[0].cache, h0, h1);
        linear_heads(some_heads(values, h0, h1), seen(some_heads(mixed, h0, h1)), of.uv, h0);
      }
    });
  }
};

void check_parts(const std::vector<CacheRows>& parts, int64_t rows) {
  int64_t all = 0;
  for (size_t i = 0; i < parts.size(); i++) {
    check(parts[i].cache != nullptr && parts[i].rows > 0, "a part has a cache and one row at least");
    for (size_t j = 0; j < i; j++) check(parts[i].cache != parts[j].cache, "a cache comes twice");
    check(!__builtin_add_overflow(all, parts[i].rows, &all), "there are too many rows");
  }
  check_size("the rows of all parts", all, rows);
}

}  // namespace

void decoder_layer(const OutRows& x, const DecoderLayer& of, const InRows& cos, const InRows& sin, const std::vector<CacheRows>& parts,
                   int64_t layer) {
  const Sizes n(of);
  check_size("the columns of x", x.cols, n.hidden);
  check_parts(parts, x.rows);
  Between between(x.rows, n.between());
  const OutRows normed = between.rows(n.hidden), a = between.rows(n.rank + n.rope), latent = between.rows(n.rank);
  const OutHeads q = between.heads(n.heads, n.nope + n.rope), q_rope = between.heads(n.heads, n.rope), k_rope = between.heads(1, n.rope);
  const OutHeads q_latent = between.heads(n.heads, n.rank), mixed = between.heads(n.heads, n.rank), values = between.heads(n.heads, n.v);
  const InHeads q_nope{q.data, x.rows, n.heads, n.nope, q.token_stride, q.head_stride};

  rms_norm(normed, seen(x), of.attn_norm, of.eps);
  linear(joined(q), seen(normed), of.q, false, Activation::none);
  linear(a, seen(normed), of.kv_a, false, Activation::none);
  rope(q_rope, {q.data + n.nope, x.rows, n.heads, n.rope, q.token_stride, q.head_stride}, cos, sin, of.interleaved);
  rope(k_rope, {a.data + n.rank, x.rows, 1, n.rope, a.stride, n.rope}, cos, sin, of.interleaved);
  InRows given = seen(columns(a, 0, n.rank));
  if (of.latent_norm) {
    rms_norm(latent, given, of.latent_norm, of.eps);
    given = seen(latent);
  }
  int64_t at = 0;
  for (const auto& [cache, rows] : parts) {
    cache->append(layer, some_rows(given, at, rows), some_rows(seen(joined(k_rope)), at, rows));
    at += rows;
  }
  PerHead{of, parts, layer, q_nope, seen(q_rope), q_latent, mixed, values}.run();
  linear(x, seen(joined(values)), of.o, true, Activation::none);
  rms_norm(normed, seen(x), of.ffn_norm, of.eps);
  mlp(x, seen(normed), of.up, Activation::silu_mul, of.down, true);
}

}  // namespace ivlite
