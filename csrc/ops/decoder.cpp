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

// Heads [h0, h1) of one token, as a token of so many heads.
template <class T>
Heads<T> some_heads(const Heads<T>& x, int64_t h0, int64_t h1) {
  return {x.data + h0 * x.head_stride, x.tokens, h1 - h0, x.dim, (h1 - h0) * x.dim, x.head_stride};
}

// What a layer does per head: of q_nope and q_rope to values, through arrays for what lies between.
struct PerHead {
  const DecoderLayer& of;
  const LatentCache& cache;
  int64_t layer;
  InHeads q_nope, q_rope;
  OutHeads q_latent, mixed, values;

  void all() const {
    linear_heads(q_latent, q_nope, of.uk_t, 0);
    absorbed_attention(mixed, seen(q_latent), q_rope, cache, layer, of.scale);
    linear_heads(values, seen(mixed), of.uv, 0);
  }

  // The same of one token, whose heads need not wait for one another.
  void apart(int64_t piece) const {
    const int64_t heads = q_nope.heads;
    parallel_for((heads + piece - 1) / piece, 1, [&](int64_t begin, int64_t end) {
      for (int64_t h0 = begin * piece; h0 < std::min(end * piece, heads); h0 += piece) {
        const int64_t h1 = std::min(h0 + piece, heads);
        const OutHeads latent = some_heads(q_latent, h0, h1), mix = some_heads(mixed, h0, h1);
        linear_heads(latent, some_heads(q_nope, h0, h1), of.uk_t, h0);
        absorbed_attention(mix, seen(latent), some_heads(q_rope, h0, h1), cache, layer, of.scale);
        linear_heads(some_heads(values, h0, h1), seen(mix), of.uv, h0);
      }
    });
  }
};

}  // namespace

void decoder_layer(const OutRows& x, const DecoderLayer& of, const InRows& cos, const InRows& sin, LatentCache& cache, int64_t layer) {
  const Sizes n(of);
  check_size("the columns of x", x.cols, n.hidden);
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
  cache.append(layer, given, seen(joined(k_rope)));
  const PerHead per_head{of, cache, layer, q_nope, seen(q_rope), q_latent, mixed, values};
  if (x.rows == 1 && cache.visible() <= kShort)
    per_head.apart(std::min<int64_t>(kHeads, (n.heads + num_threads() - 1) / num_threads()));
  else
    per_head.all();
  linear(x, seen(joined(values)), of.o, true, Activation::none);
  rms_norm(normed, seen(x), of.ffn_norm, of.eps);
  mlp(x, seen(normed), of.up, Activation::silu_mul, of.down, true);
}

}  // namespace ivlite
