// Attention of many queries: latents are expanded to keys and values, a span of cached tokens at a time, so that memory does not grow with
// the cache and no piece of the work takes long.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "core/memory.h"
#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"
#include "ops/attention.h"

namespace ivlite {
namespace {

constexpr int64_t kSpan = 1024;       // cached tokens whose keys and values, of all heads, may exist at a time; of fewer heads, more
constexpr int64_t kHeads = 8;         // whose keys and values exist at a time, at least
constexpr int64_t kExpandRows = 512;  // of them expanded together: their latents stay in L2
constexpr int64_t kReadRows = 64;     // read together
constexpr int64_t kQueryBlock = 512;  // queries of one head that a thread takes together
constexpr int64_t kSampled = 512;     // queries that say what range their columns have

float* floats(Scratch use, std::initializer_list<int64_t> sizes) { return (float*)thread_scratch(use, (size_t)product(sizes) * 4); }

// How many visible tokens are seen as they are stored; those after them were just appended, and are seen as they were given.
int64_t stored_rows(const LatentCache& cache, int64_t layer) { return cache.fresh(layer).latent ? cache.length() : cache.visible(); }

// Tokens [s, s + n) as float, latents and rotated keys (either may be null).
void read_rows(float* latent, float* rope, const LatentCache& cache, int64_t layer, int64_t s, int64_t n) {
  const LatentRows& rows = cache.layer(layer);
  const LatentRows fresh = cache.fresh(layer);
  const int64_t stored = stored_rows(cache, layer), border = std::min(std::max(s, stored), s + n);
  if (border > s) kernels().cache_read[(int)cache.kind()](latent, rope, rows, s, border);
  if (border == s + n) return;
  const auto copy = [&](float* to, const void* given, int64_t width) {
    if (to) memcpy(to + (border - s) * width, (const float*)given + (border - stored) * width, (size_t)((s + n - border) * width) * 4);
  };
  copy(latent, fresh.latent, rows.rank);
  copy(rope, fresh.rope, rows.rope_dim);
}

// Sums over the rows of a layer's visible tokens.
struct Means {
  std::vector<float> latent, rope;  // the mean row; 0 where it is not finite, so that a NaN stays in its own row
  std::vector<float> square;        // the mean square of rope
};

Means mean_rows(const LatentCache& cache, int64_t layer, int64_t visible) {
  const int64_t rank = cache.layer(layer).rank, rope = cache.layer(layer).rope_dim, width = rank + 2 * rope;
  const int64_t blocks = (visible + kExpandRows - 1) / kExpandRows;  // their sums are added in order, whoever makes them
  std::vector<float> sums((size_t)product({blocks, width}), 0.0f);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    float* row = floats(Scratch::kernel, {kReadRows, rank + rope});
    for (int64_t s = begin * kExpandRows; s < std::min(end * kExpandRows, visible); s += kReadRows) {
      const int64_t n = std::min(kReadRows, visible - s);
      float *sum = sums.data() + s / kExpandRows * width, *k = row + n * rank;
      read_rows(row, k, cache, layer, s, n);
      for (int64_t t = 0; t < n; t++) {
        for (int64_t j = 0; j < rank; j++) sum[j] += row[t * rank + j];
        for (int64_t j = 0; j < rope; j++) sum[rank + j] += k[t * rope + j], sum[rank + rope + j] += k[t * rope + j] * k[t * rope + j];
      }
    }
  });
  std::vector<float> mean((size_t)width, 0.0f);
  for (int64_t b = 0; b < blocks; b++)
    for (int64_t j = 0; j < width; j++) mean[(size_t)j] += sums[(size_t)(b * width + j)] / (float)visible;
  for (float& x : mean) x = isfinite(x) ? x : 0;
  return {{mean.begin(), mean.begin() + rank}, {mean.begin() + rank, mean.end() - rope}, {mean.end() - rope, mean.end()}};
}

// Latents of a span of cached tokens as kv_b's kernels take them, made once for all heads, in blocks of kExpandRows. The codes of a q8
// cache are taken as they are where kernels can. Others are rounded, less the mean of all visible ones, which leaves them and what they
// expand to a smaller range.
struct Expansion {
  const LatentCache& cache;
  int64_t layer;
  const Weight& kv_b;
  int64_t rank, stored;
  bool gemm;  // blocks are what quantize_gemm makes; else int8 codes, or floats for float weights
  const float* mean;
  codes_gemm_fn take;  // the cache's codes, to what quantize_gemm makes; or null
  bool exact = false;  // that was done with the span
  std::unique_ptr<char, void (*)(void*)> blocks{nullptr, free};

  Expansion(const LatentCache& cache, int64_t layer, const Weight& kv_b, const float* mean)
      : cache(cache), layer(layer), kv_b(kv_b), rank(kv_b.cols()), stored(stored_rows(cache, layer)), mean(mean) {
    const bool many = uses_gemm(kv_b, cache.visible());
    gemm = many && kernels().gemm_is_finer[(int)kv_b.format()];  // keys and values are rounded once more, so latents stay fine
    take = many && cache.kind() == CacheKind::q8 ? kernels().codes_gemm[(int)kv_b.format()] : nullptr;
  }

  void begin(int64_t span) {
    if (!blocks) blocks.reset((char*)allocate((size_t)((span + kExpandRows - 1) / kExpandRows * block_bytes())));
  }

  int64_t block_bytes() const {
    if (!kv_b.quantized()) return product({kExpandRows, rank, 4});
    return round_up(gemm || take ? gemm_bytes(kExpandRows, rank) : quant_rows_bytes(kExpandRows, rank), 64);
  }
  char* block(int64_t at) const { return blocks.get() + at / kExpandRows * block_bytes(); }

  // Reads tokens [s, s + n), all of them stored or none.
  void read(int64_t s, int64_t n) {
    exact = take && s < stored;
    parallel_for((n + kReadRows - 1) / kReadRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin * kReadRows; t < std::min(end * kReadRows, n); t += kReadRows)
        read_part(s + t, t, std::min(n - t + t % kExpandRows, kExpandRows), std::min(kReadRows, n - t));
    });
  }

  // `count` tokens from s on to the block of `rows` tokens that has token t of the span, from it on.
  void read_part(int64_t s, int64_t t, int64_t rows, int64_t count) const {
    const int64_t at = t % kExpandRows;
    if (!kv_b.quantized()) return read_rows((float*)block(t) + at * rank, nullptr, cache, layer, s, count);
    if (exact) {
      const LatentRows& from = cache.layer(layer);
      return take((uint16_t*)block(t), rows, rank, (const int8_t*)from.latent + s * rank, from.scale + s, at, at + count);
    }
    float* latent = floats(Scratch::kernel, {kReadRows, rank});
    read_rows(latent, nullptr, cache, layer, s, count);
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < rank; j++) latent[i * rank + j] -= mean[j];
    const Part part{latent - at * rank, rank, at, at + count, 0, rank};
    if (gemm)
      kernels().quantize_gemm[(int)kv_b.format()]((uint16_t*)block(t), rows, rank, part);
    else
      kernels().quantize_rows(quant_rows(block(t), kExpandRows, rank), part);
  }

  // Keys and values (n, nope + v) of one head, of the n tokens of the block that begins at token `at` of the span.
  void head(float* kv, int64_t h, int64_t at, int64_t n) const {
    const int64_t width = kv_b.rows();
    const OutRows out{kv, n, width, width};
    const InRows in{(const float*)block(at), n, rank, rank};
    if (gemm || exact) return gemm_panels(out, in, (const uint16_t*)block(at), kv_b, h, nullptr, false, 0, kv_b.panels());
    linear_panels(out, in, kv_b.quantized() ? quant_rows(block(at), kExpandRows, rank) : QuantRows{}, kv_b, h, nullptr, false, 0,
                  kv_b.panels());
  }

  // What the mean expands to, (heads, nope + v): of its codes and of what they leave, since each of its errors would be one of all
  // tokens alike.
  std::vector<float> expanded_mean() const {
    const int64_t width = kv_b.rows();
    std::vector<char> memory((size_t)quant_rows_bytes(2, rank) + 64);
    std::vector<float> rows((size_t)(2 * rank)), out((size_t)product({kv_b.heads(), width}));
    const QuantRows x = quant_rows((char*)round_up((int64_t)memory.data(), 64), 2, rank);
    std::copy_n(mean, rank, rows.begin());
    kernels().quantize_rows(x, {rows.data(), rank, 0, 1, 0, rank});
    for (int64_t j = 0; j < rank; j++) rows[(size_t)(rank + j)] = mean[j] - x.scale[j / kGroup] * (float)x.q[j];
    kernels().quantize_rows(x, {rows.data(), rank, 1, 2, 0, rank});
    parallel_for(kv_b.heads(), 1, [&](int64_t h0, int64_t h1) {
      std::vector<float> two((size_t)(2 * width));
      for (int64_t h = h0; h < h1; h++) {
        linear_panels({two.data(), 2, width, width}, {rows.data(), 2, rank, rank}, x, kv_b, h, nullptr, false, 0, kv_b.panels());
        for (int64_t j = 0; j < width; j++) out[(size_t)(h * width + j)] = two[(size_t)j] + two[(size_t)(width + j)];
      }
    });
    return out;
  }
};

// What columns of the rotated keys are multiplied by, and those of the queries divided by, so that both have the same range in each: few
// columns of keys are much larger than others, and those of queries smaller. q: the first queries.
std::vector<float> balance_of(const InHeads& q, const Means& means) {
  const int64_t tokens = std::min(q.tokens, kSampled), blocks = (tokens + kReadRows - 1) / kReadRows;
  std::vector<float> sums((size_t)product({blocks, q.dim}), 0.0f), out((size_t)q.dim, 1.0f);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin * kReadRows; t < std::min(end * kReadRows, q.tokens); t++)
      for (int64_t h = 0; h < q.heads; h++) {
        const float* x = q.data + t * q.token_stride + h * q.head_stride;
        float* sum = sums.data() + t / kReadRows * q.dim;
        for (int64_t j = 0; j < q.dim; j++) sum[j] += x[j] * x[j];
      }
  });
  for (int64_t j = 0; j < q.dim; j++) {
    const float mean = means.rope[(size_t)j], keys = std::max(means.square[(size_t)j] - mean * mean, 1e-6f * means.square[(size_t)j]);
    float queries = 0;
    for (int64_t b = 0; b < blocks; b++) queries += sums[(size_t)(b * q.dim + j)];
    const float ratio = queries / (float)(tokens * q.heads) / keys;  // of squares
    if (ratio > 1e-20f && ratio < 1e20f) out[(size_t)j] = sqrtf(sqrtf(ratio));
  }
  return out;
}

// Sums and differences of two runs of `half` numbers.
void butterfly(float* __restrict a, float* __restrict b, int64_t half) {
  for (int64_t j = 0; j < half; j++) {
    const float x = a[j], y = b[j];
    a[j] = x + y, b[j] = x - y;
  }
}

// The first three steps of `spread`, of eight numbers: they stay in registers.
void spread_eight(float* x) {
  float a[8], b[8];
  for (int j = 0; j < 8; j += 2) a[j] = x[j] + x[j + 1], a[j + 1] = x[j] - x[j + 1];
  for (int j = 0; j < 8; j += 4)
    b[j] = a[j] + a[j + 2], b[j + 1] = a[j + 1] + a[j + 3], b[j + 2] = a[j] - a[j + 2], b[j + 3] = a[j + 1] - a[j + 3];
  for (int j = 0; j < 4; j++) x[j] = b[j] + b[j + 4], x[j + 4] = b[j] - b[j + 4];
}

// x times a Hadamard matrix of the largest power of two that divides n. Of queries and keys alike it leaves their products as they
// are, times its size, and what is large in one column no longer takes the range of all others.
void spread(float* x, int64_t n) {
  int64_t half = 1;
  for (int64_t i = 0; n % 8 == 0 && i < n; i += 8) spread_eight(x + i), half = 8;
  for (; n % (2 * half) == 0; half *= 2)
    for (int64_t i = 0; i < n; i += 2 * half) butterfly(x + i, x + i + half, half);
}

}  // namespace

// One call: operands of head 0, and where what is packed or expanded lies.
struct ExpandedAttention::Work {
  const LatentCache& cache;
  int64_t layer, tokens, heads, visible;
  const PackedAttention* packed;  // null: queries, keys and values stay float
  Means means;
  Expansion expansion;
  std::vector<float> mean, balance;  // what the values lack, (heads, nope + v); of rotated keys, if packed
  AttentionArgs args{};
  int64_t query_bytes = 0, key_bytes = 0, added = 0, done = 0, first_head = 0;  // done: tokens that were attended to
  int64_t group = 0, span = 0;  // heads, and cached tokens, whose keys and values exist at a time
  std::unique_ptr<char, void (*)(void*)> queries{nullptr, free};
  std::unique_ptr<float, void (*)(void*)> sums{nullptr, free};  // maxima and sums of all heads' queries; then rope
  char* keys = nullptr;
  float* rope = nullptr;

  Work(int64_t tokens, const LatentCache& cache, int64_t layer, const Weight& kv_b, float scale)
      : cache(cache),
        layer(layer),
        tokens(tokens),
        heads(kv_b.heads()),
        visible(cache.visible()),
        packed(kv_b.quantized() && kernels().packed_attention.attention ? &kernels().packed_attention : nullptr),
        means(kv_b.quantized() ? mean_rows(cache, layer, visible) : Means{}),
        expansion(cache, layer, kv_b, means.latent.data()) {
    args.ld_k = args.ld_v = kv_b.rows(), args.ld_k2 = args.d2 = cache.layer(layer).rope_dim;
    args.keys = visible, args.first_visible = visible - tokens, args.causal = true, args.scale = scale;
    if (kv_b.quantized()) mean = expansion.expanded_mean();
  }

  int64_t blocks(int64_t n) const { return (n + kQueryBlock - 1) / kQueryBlock; }

  AttentionArgs head(int64_t h) const {
    AttentionArgs a = args;
    a.packed_q = queries.get() + h * query_bytes, a.packed_k = keys + h % group * key_bytes;
    a.q = (const float*)queries.get() + h * (a.d + a.d2), a.q2 = a.q + a.d;
    a.m = sums.get() + 2 * h * tokens, a.l = a.m + tokens;
    a.k = (const float*)a.packed_k, a.v = a.k + a.d;
    return a;
  }

  // What the first queries decide.
  void begin(const InHeads& q_nope, const InHeads& q_rope) {
    args.d = q_nope.dim, args.dv = args.ld_k - q_nope.dim;
    args.ld_q = args.ld_q2 = heads * (args.d + args.d2);
    // Long spans: the sums of all queries are read and written once for each.
    group = std::min(heads, std::max(kHeads, 4 * num_threads() / blocks(tokens)));
    span = std::min(kSpan * heads / group / kExpandRows * kExpandRows, visible);
    query_bytes = packed ? packed->query_bytes(args, tokens) : 0;
    key_bytes = packed ? packed->key_bytes(args, span) : product({span, args.ld_k, 4});
    queries.reset((char*)allocate((size_t)(packed ? product({heads, query_bytes}) : product({tokens, args.ld_q, 4}))));
    if (packed) balance = balance_of(q_rope, means);
  }

  void add(const InHeads& q_nope, const InHeads& q_rope) {
    const int64_t n = q_nope.tokens, parts = blocks(n);
    parallel_for(heads * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        AttentionArgs a = head(i / parts);
        const int64_t q0 = i % parts * kQueryBlock, q1 = std::min(q0 + kQueryBlock, n);
        const float* from = q_nope.data + i / parts * q_nope.head_stride + q0 * q_nope.token_stride;
        const float* turned = q_rope.data + i / parts * q_rope.head_stride + q0 * q_rope.token_stride;
        if (packed)
          pack(a, q0, q1, {from, q1 - q0, a.d, q_nope.token_stride}, {turned, q1 - q0, a.d2, q_rope.token_stride});
        else
          for (int64_t t = 0; t < q1 - q0; t++) {
            float* to = (float*)a.q + (added + q0 + t) * a.ld_q;
            memcpy(to, from + t * q_nope.token_stride, (size_t)a.d * 4),
                memcpy(to + a.d, turned + t * q_rope.token_stride, (size_t)a.d2 * 4);
          }
      }
    });
    added += n;
  }

  // Packs queries of one head, the rows of both parts, as those from added + q0 on.
  void pack(AttentionArgs a, int64_t q0, int64_t q1, const InRows& nope, const InRows& turned) const {
    char* to = (char*)a.packed_q + packed->query_bytes(a, added + q0);
    a.scratch = floats(Scratch::kernel, {attention_scratch(a) + kQueryBlock * a.d2});
    float* rotated = a.scratch + attention_scratch(a);
    for (int64_t t = 0; t < q1 - q0; t++) {
      for (int64_t j = 0; j < a.d2; j++) rotated[t * a.d2 + j] = turned.data[t * turned.stride + j] / balance[(size_t)j];
      spread(rotated + t * a.d2, a.d2);
    }
    a.q = nope.data, a.ld_q = nope.stride, a.q2 = rotated, a.ld_q2 = a.d2;
    packed->pack_queries(to, a, 0, q1 - q0);
  }

  // The rotated keys of tokens [s, s + n).
  void read_rope(int64_t s, int64_t n) const {
    const int64_t width = args.d2;
    const float size = (float)(width & -width);  // of the Hadamard matrix
    parallel_for((n + kReadRows - 1) / kReadRows, 1, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kReadRows, last = std::min(end * kReadRows, n);
      read_rows(nullptr, rope + first * width, cache, layer, s + first, last - first);
      for (int64_t t = first; packed && t < last; t++) {
        float* row = rope + t * width;
        for (int64_t j = 0; j < width; j++) row[j] = (row[j] - means.rope[(size_t)j]) * (balance[(size_t)j] / size);
        spread(row, width);
      }
    });
  }

  // Keys and values of heads [h0, h1), of the n tokens of a span.
  void expand(int64_t h0, int64_t h1, int64_t n) const {
    const int64_t parts = (n + kExpandRows - 1) / kExpandRows, width = args.ld_k;
    parallel_for((h1 - h0) * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t h = h0 + i / parts, at = i % parts * kExpandRows, count = std::min(kExpandRows, n - at);
        AttentionArgs a = head(h);
        if (!packed) {
          expand_part((float*)a.packed_k + at * width, h, at, count);
          continue;
        }
        a.scratch = floats(Scratch::kernel, {attention_scratch(a) + kExpandRows * width});
        float* kv = a.scratch + attention_scratch(a);
        expand_part(kv, h, at, count);
        a.k = kv, a.v = kv + a.d, a.k2 = rope + at * a.d2;
        packed->pack_keys((char*)a.packed_k + packed->key_bytes(a, at), a, 0, count);
      }
    });
  }

  // Without what the mean of all latents expands to.
  void expand_part(float* kv, int64_t h, int64_t at, int64_t n) const {
    const int64_t width = args.ld_k;
    expansion.head(kv, h, at, n);
    for (int64_t t = 0; expansion.exact && t < n; t++)
      for (int64_t j = 0; j < width; j++) kv[t * width + j] -= mean[(size_t)(h * width + j)];
  }

  // All queries of heads [h0, h1) over the keys of the span that begins at token s.
  void attend(const OutHeads& out, int64_t h0, int64_t h1, int64_t s, int64_t n) const {
    const int64_t parts = blocks(tokens);
    parallel_for((h1 - h0) * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t h = h0 + i / parts, q0 = i % parts * kQueryBlock, q1 = std::min(q0 + kQueryBlock, tokens);
        AttentionArgs a = head(h);
        a.out = out.data + h * out.head_stride, a.ld_out = out.token_stride;
        a.keys = n, a.first_visible -= s, a.continues = s > 0, a.unfinished = s + n < visible;
        if (a.unfinished && a.first_visible + q1 <= 0) continue;  // sees none of them
        a.k2 = rope;
        a.scratch = floats(Scratch::kernel, {attention_scratch(a)});
        (packed ? packed->attention : kernels().attention)(a, q0, q1);
        for (int64_t t = q0; !a.unfinished && !mean.empty() && t < q1; t++)
          for (int64_t j = 0; j < a.dv; j++) a.out[t * a.ld_out + j] += mean[(size_t)(h * a.ld_k + a.d + j)];
      }
    });
  }

  // The next heads of a span. What stays between two calls is not in the scratch of the threads: they may do other work.
  bool step(const OutHeads& out) {
    const int64_t n = std::min(span, (done < expansion.stored ? expansion.stored : visible) - done);
    if (first_head == 0) {
      expansion.begin(span);
      if (!sums) sums.reset((float*)allocate((size_t)product({round_up(2 * heads * tokens, 16) + span * args.d2, 4})));
      rope = sums.get() + round_up(2 * heads * tokens, 16);
      expansion.read(done, n);
      read_rope(done, n);
    }
    keys = (char*)thread_scratch(Scratch::keys_values, (size_t)product({group, key_bytes}));
    const int64_t h1 = std::min(first_head + group, heads);
    expand(first_head, h1, n);
    attend(out, first_head, h1, done, n);
    first_head = h1 % heads;
    done += first_head == 0 ? n : 0;
    return done < visible;
  }
};

ExpandedAttention::ExpandedAttention(int64_t tokens, const LatentCache& cache, int64_t layer, const Weight& kv_b, float scale) {
  check(kv_b.cols() == cache.layer(layer).rank, "kv_b does not have the cache's shape");
  check(tokens >= 0 && tokens <= cache.visible(), "there are more queries than cached tokens");
  if (tokens > 0) work_ = std::make_unique<Work>(tokens, cache, layer, kv_b, scale);
}

ExpandedAttention::~ExpandedAttention() = default;

void ExpandedAttention::add(const InHeads& q_nope, const InHeads& q_rope) {
  const int64_t n = q_nope.tokens, left = work_ ? work_->tokens - work_->added : 0;
  check(q_rope.tokens == n && n <= left, "more queries are added than there are tokens");
  if (n == 0) return;
  const AttentionArgs& a = work_->args;
  check(q_nope.heads == work_->heads && q_nope.dim > 0 && q_nope.dim < a.ld_k && (a.d == 0 || q_nope.dim == a.d),
        "q_nope does not have the shape of kv_b");
  check(q_rope.heads == work_->heads && q_rope.dim == a.d2, "q_rope does not have the cache's shape");
  check(n == left || n % kPackedRows == 0, "queries are not added in parts of whole blocks");
  if (work_->added == 0) work_->begin(q_nope, q_rope);
  work_->add(q_nope, q_rope);
}

bool ExpandedAttention::step(const OutHeads& out) {
  check(out.tokens == (work_ ? work_->tokens : 0), "out does not have the shape of the queries");
  if (!work_) return false;
  check(work_->done < work_->visible, "all tokens have been attended to");
  check(work_->added == work_->tokens && work_->cache.visible() == work_->visible, "queries were not all added, or the cache has changed");
  check(out.heads == work_->heads && out.dim == work_->args.dv, "out does not have the shape of the queries");
  return work_->step(out);
}

void expanded_attention(const OutHeads& out, const InHeads& q_nope, const InHeads& q_rope, const LatentCache& cache, int64_t layer,
                        const Weight& kv_b, float scale) {
  check(kv_b.heads() == q_nope.heads && kv_b.rows() == q_nope.dim + out.dim, "kv_b does not have the cache's shape");
  ExpandedAttention work(q_nope.tokens, cache, layer, kv_b, scale);
  work.add(q_nope, q_rope);
  while (work.step(out)) {
  }
}

}  // namespace ivlite
