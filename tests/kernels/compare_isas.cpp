// Every kernel of every instruction set of this machine against the plain one, in one program: for machines that have no
// Python, or are emulated. Shapes and tolerances are those of the Python tests beside it.
#include <cmath>
#include <functional>

#include "compare_formats.h"
#include "compare_linear.h"
#include "core/threads.h"
#include "kernels/dispatch.h"
#include "ops/resize.h"

namespace ivlite {
namespace {

void test_norm(Report& r, const Tables& t, bool layer) {
  const auto run = [&](int64_t n, AtEdge<float>& x, int64_t ldx, int64_t rows, Close close) {
    Normal w(n), b(n);
    compare(r, t.plain, t.fast, rows, n, 2, close, text({{"columns", n}}), [&](const KernelTable& table, float* y, int64_t ldy) {
      if (layer)
        table.layer_norm(y, ldy, x.data(), ldx, w.data(), b.data(), n, 1e-6f, 0, rows);
      else
        table.rms_norm(y, ldy, x.data(), ldx, w.data(), n, 1e-6f, 0, rows);
    });
  };
  for (const int64_t n : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1152}) {
    Normal x(4 * (n + 3) + n, 4);
    for (int64_t i = 0; i < x.size(); i++) x[i] += 1;
    run(n, x, n + 3, 5, {2e-5, 2e-5});
  }
  Normal offset(2 * 1152);
  for (int64_t i = 0; i < offset.size(); i++) offset[i] += 1000;
  run(1152, offset, 1152, 2, {2e-5, 2e-3});
  AtEdge<float> constant(33, 2);
  run(33, constant, 33, 1, {2e-5, 2e-3});
}

void test_rope(Report& r, const Tables& t) {
  for (const int64_t d : {2, 4, 6, 8, 10, 14, 16, 18, 30, 32, 34, 64, 72, 128})
    for (const bool interleaved : {false, true}) {
      constexpr int64_t kTokens = 5, kHeads = 3;
      Normal x((kTokens * kHeads - 1) * (d + 5) + d);
      AtEdge<float> cos(kTokens * d / 2), sin(kTokens * d / 2);
      for (int64_t i = 0; i < cos.size(); i++) {
        const float angle = (float)(int)(rng()() % 18000) / 1000 - 9;
        cos[i] = cosf(angle), sin[i] = sinf(angle);
      }
      compare(r, t.plain, t.fast, kTokens, kHeads * d, 0, {1e-6, 1e-6}, text({{"dimensions", d}}),
              [&](const KernelTable& table, float* y, int64_t) {
                table.rope({y, x.data(), kHeads * (d + 5), d + 5, cos.data(), sin.data(), kHeads, d, interleaved}, 0, kTokens);
              });
    }
}

void test_silu_mul(Report& r, const Tables& t) {
  const auto run = [&](AtEdge<float>& x, int64_t rows, int64_t n) {
    compare(r, t.plain, t.fast, rows, n, 0, {3e-6, 2e-6}, text({{"columns", n}}),
            [&](const KernelTable& table, float* y, int64_t) { table.silu_mul(y, n, x.data(), x.data() + n, 2 * n, n, 0, rows); });
  };
  for (const int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 4304}) {
    Normal x(3 * 2 * n, 4);
    run(x, 3, n);
  }
  const float extremes[] = {0, -0.0f, 1e-30f, -1e-30f, 5, -5, 20, -20, 88, -88, 104, -104, 1000, -1000, 1e20f, -1e20f};
  AtEdge<float> x(32, 1);
  std::copy(std::begin(extremes), std::end(extremes), x.data());
  run(x, 1, 16);
}

void test_gelu(Report& r, const Tables& t, gelu_fn KernelTable::*form) {
  const auto run = [&](AtEdge<float>& x, Close close) {
    compare(r, t.plain, t.fast, 1, x.size(), 0, close, text({{"elements", x.size()}}),
            [&](const KernelTable& table, float* y, int64_t) { (table.*form)(y, x.data(), 0, x.size()); });
  };
  for (const int64_t n : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 4304}) {
    Normal x(n, 4);
    run(x, {3e-6, 2e-6});
  }
  const float extremes[] = {0, -0.0f, 1e-30f, -1e-30f, 0.5f, -0.5f, 5, -5, 20, -20, 88, -88, 104, -104, 1000, -1000, 1e20f, -1e20f};
  AtEdge<float> x(18), steps(20001);
  std::copy(std::begin(extremes), std::end(extremes), x.data());
  for (int64_t i = 0; i < steps.size(); i++) steps[i] = (float)(i - 10000) * 12e-4f;
  run(x, {3e-6, 1e-6});
  run(steps, {0, 2e-6});
}

struct Shape {
  int64_t queries, keys, d, d2, dv;
  float scale = 1;
  bool causal = false;
  Close close = {1e-4, 3e-5};
  bool broken = false;  // the last key is a NaN: only the last query, which sees it, may notice
};

// What rounding leads to, as in test_attention.py. Attention that may be reduced rounds q, k, v and the softmax weights to int8
// (VNNI) or bf16 (AMX); absorbed attention over 8-bit latents rounds queries and weights to int8 (AVX-512) or int16 (AVX2).
constexpr Rounding kInt8{0.03, 0.5}, kBf16{0.02, 0.2}, kInt16{0.001, 0.01};

bool is_avx512(const Report& r) { return r.isa == "avx512vnni" || r.isa == "amx"; }
Rounding reduced_rounding(const Report& r) { return r.isa == "amx" ? kBf16 : kInt8; }
Rounding latent_rounding(const Report& r, CacheKind kind) {
  if (kind < CacheKind::q8) return kExact;
  return is_avx512(r) ? kInt8 : r.isa.find("avx") == 0 ? kInt16 : kExact;
}

// Queries [q0, q1) over keys [s0, s1) of all, by the float kernel or over packed operands.
void attend(const KernelTable& table, AttentionArgs a, int64_t q0, int64_t q1, int64_t s0, int64_t s1, bool packed) {
  AtEdge<float> scratch((attention_scratch(a) + 15) / 16 * 16, NAN);
  a.scratch = scratch.data();
  a.continues = s0 > 0, a.unfinished = s1 < a.keys;
  a.k += s0 * a.ld_k, a.k2 += s0 * a.ld_k2, a.v += s0 * a.ld_v, a.first_visible -= s0, a.keys = s1 - s0;
  if (!packed) return table.attention(a, q0, q1);
  a.q += q0 * a.ld_q, a.q2 += q0 * a.ld_q2, a.out += q0 * a.ld_out, a.m += q0, a.l += q0, a.first_visible += q0;
  const PackedAttention& p = table.packed_attention;
  AtEdge<uint8_t> queries(p.query_bytes(a, q1 - q0), 0xff), keys(p.key_bytes(a, s1 - s0), 0xff);
  for (int64_t q = 0; q < q1 - q0; q += kPackedRows)
    p.pack_queries(queries.data() + p.query_bytes(a, q), a, q, std::min(q + kPackedRows, q1 - q0));
  for (int64_t k = 0; k < a.keys; k += kPackedRows) p.pack_keys(keys.data() + p.key_bytes(a, k), a, k, std::min(k + kPackedRows, a.keys));
  a.packed_q = queries.data(), a.packed_k = keys.data();
  p.attention(a, 0, q1 - q0);
}

void attention_case(Report& r, const Tables& t, const Shape& s, bool reduced = false) {
  Normal q(s.queries * s.d, s.scale), k(s.keys * s.d, s.scale), q2(s.queries * s.d2), k2(s.keys * s.d2), v(s.keys * s.dv, s.scale);
  if (s.broken) k[k.size() - 1] = NAN;
  const auto call = [&](const KernelTable& table, float* y, int64_t ldy) {
    AttentionArgs a{};
    a.out = y, a.ld_out = ldy, a.q = q.data(), a.ld_q = s.d, a.k = k.data(), a.ld_k = s.d, a.v = v.data(), a.ld_v = s.dv;
    if (s.d2) a.q2 = q2.data(), a.ld_q2 = s.d2, a.k2 = k2.data(), a.ld_k2 = s.d2;
    a.d = s.d, a.d2 = s.d2, a.dv = s.dv, a.keys = s.keys, a.causal = s.causal;
    a.first_visible = s.keys - s.queries, a.scale = 1 / sqrtf((float)s.d);
    std::vector<float> m((size_t)s.queries), l((size_t)s.queries);
    a.m = m.data(), a.l = l.data();
    const bool packed = reduced && table.packed_attention.attention;
    const int64_t first = s.keys / 3 / kPackedRows * kPackedRows, half = s.queries / 2;  // keys in one call, or in two
    for (const auto& [q0, q1] : {std::pair{(int64_t)0, half}, {half, s.queries}}) {
      if (first) attend(table, a, q0, q1, 0, first, packed);
      attend(table, a, q0, q1, first, s.keys, packed);
    }
    if (s.broken) std::fill_n(y + (s.queries - 1) * ldy, s.dv, 0.0f);
  };
  compare(r, t.plain, t.fast, s.queries, s.dv, 1, s.close, text({{"queries", s.queries}, {"keys", s.keys}, {"dimensions", s.d}}), call, NAN,
          reduced ? reduced_rounding(r) : kExact);
}

void test_attention_packed(Report& r, const Tables& t) {
  if (!t.fast.packed_attention.attention) return;
  for (const int64_t n : {1, 2, 5, 8, 15, 16, 17, 31, 64, 65, 144, 300})
    for (const int64_t d : {72, 8, 20}) attention_case(r, t, {n, n, d, 0, d, 2}, true);
  for (const int64_t n : {1, 7, 40, 130, 600}) attention_case(r, t, {n, n + 70, 20, 16, 24, 1, true}, true);
  attention_case(r, t, {300, 700, 128, 128, 128, 1, true}, true);
  attention_case(r, t, {30, 52, 20, 0, 24, 1, true, {1e-4, 3e-5}, true}, true);
}

void test_attention(Report& r, const Tables& t) {
  for (const int64_t n : {1, 2, 5, 8, 15, 16, 17, 31, 64, 65, 144, 300})
    for (const int64_t d : {72, 8, 20}) attention_case(r, t, {n, n, d, 0, d, 2});
  const int64_t shapes[][2] = {{1, 1}, {3, 7}, {7, 3}, {16, 33}, {33, 16}, {128, 128}};
  for (const auto& [d, dv] : shapes) attention_case(r, t, {21, 21, d, 0, dv});
  attention_case(r, t, {40, 40, 16, 0, 16, 30, false, {1e-3, 1e-2}});  // scores far beyond the range of exp
  for (const int64_t n : {1, 7, 40, 130}) attention_case(r, t, {n, n + 70, 20, 16, 24, 1, true});
  attention_case(r, t, {65, 65, 20, 16, 24, 1, true});
  attention_case(r, t, {30, 52, 20, 0, 24, 1, true, {1e-4, 3e-5}, true});
}

// A cache of `length` rows that a table writes.
struct Cache {
  AtEdge<uint8_t> latent, rope;
  AtEdge<float> scale;
  LatentRows rows;
  Cache(CacheKind kind, int64_t length, int64_t rank, int64_t rope_dim)
      : latent(length * row_bytes(kind, rank, rope_dim).latent),
        rope(length * row_bytes(kind, rank, rope_dim).rope),
        scale(length * row_bytes(kind, rank, rope_dim).scale / 4),
        rows{latent.data(), scale.data(), rope.data(), rank, rope_dim} {}
  bool operator==(Cache& other) {
    return !memcmp(latent.data(), other.latent.data(), (size_t)latent.size()) &&
           !memcmp(rope.data(), other.rope.data(), (size_t)rope.size()) &&
           !memcmp(scale.data(), other.scale.data(), (size_t)scale.size() * 4);
  }
};

void test_cache_write(Report& r, const Tables& t, CacheKind kind) {
  const int64_t shapes[][2] = {{1, 2}, {3, 2}, {7, 4}, {16, 8}, {33, 18}, {96, 32}, {896, 128}};
  for (const auto& [rank, rope] : shapes) {
    Normal latent(8 * (rank + 4) + rank), keys(8 * (rope + 4) + rope);
    std::fill_n(latent.data() + 4 * (rank + 4), rank, 0.0f);
    latent[0] = 1e-7f, keys[0] = 70000, keys[1] = 3e-6f;  // below and beyond the range of half precision
    Cache got(kind, 9, rank, rope), expected(kind, 9, rank, rope);
    for (const int64_t t0 : {0, 6}) {
      t.fast.cache_write[(int)kind](got.rows, 0, latent.data(), rank + 4, keys.data(), rope + 4, t0, t0 ? 9 : 6);
      t.plain.cache_write[(int)kind](expected.rows, 0, latent.data(), rank + 4, keys.data(), rope + 4, t0, t0 ? 9 : 6);
    }
    r.expect(got == expected, text({{"of latents", rank}, {"of keys", rope}}));
  }
}

void test_cache_read(Report& r, const Tables& t, CacheKind kind) {
  const int64_t shapes[][2] = {{1, 2}, {3, 2}, {7, 4}, {16, 8}, {33, 18}, {96, 32}, {896, 128}};
  for (const auto& [rank, rope] : shapes) {
    Normal latent(9 * rank), keys(9 * rope);
    Cache cache(kind, 9, rank, rope);
    t.plain.cache_write[(int)kind](cache.rows, 0, latent.data(), rank, keys.data(), rope, 0, 9);
    const auto what = text({{"of latents", rank}, {"of keys", rope}});
    compare(r, t.plain, t.fast, 7, rank, 0, {1e-6, 0}, what,
            [&](const KernelTable& table, float* y, int64_t) { table.cache_read[(int)kind](y, nullptr, cache.rows, 2, 9); });
    compare(r, t.plain, t.fast, 7, rope, 0, kEqual, what,
            [&](const KernelTable& table, float* y, int64_t) { table.cache_read[(int)kind](nullptr, y, cache.rows, 2, 9); });
  }
}

// Tokens [s0, length) of a cache that the last two queries of it see.
void latent_case(Report& r, const Tables& t, CacheKind kind, int64_t length, int64_t heads, int64_t rank, int64_t rope, int64_t s0 = 0) {
  const int64_t queries = length > 1 ? 2 : 1, lanes = queries * heads;
  Normal latent(length * rank), keys(length * rope), ql(lanes * rank), qr(lanes * rope);
  Cache cache(kind, length, rank, rope);
  t.plain.cache_write[(int)kind](cache.rows, 0, latent.data(), rank, keys.data(), rope, 0, length);
  std::vector<float> m[2], l[2];
  int run = 0;
  const auto call = [&](const KernelTable& table, float* y, int64_t) {
    m[run].resize((size_t)lanes), l[run].resize((size_t)lanes);
    LatentArgs a{y, m[run].data(), l[run].data(), ql.data(), qr.data(), cache.rows, queries, heads, length - queries, 0.2f, nullptr};
    AtEdge<float> scratch((latent_scratch(a) + 15) / 16 * 16, NAN);
    a.scratch = scratch.data();
    table.latent_attention[(int)kind](a, s0, length);
    for (int64_t i = 0; i < lanes * rank; i++) y[i] = l[run][i / rank] > 0 ? y[i] / l[run][i / rank] : 0;
    run++;
  };
  const auto what = text({{"tokens", length}, {"heads", heads}, {"of latents", rank}, {"of keys", rope}});
  const Rounding rounding = latent_rounding(r, kind);
  compare(r, t.plain, t.fast, lanes, rank, 0, {1e-4, 1e-4}, what, call, NAN, rounding);
  if (rounding.most == 0) {
    r.near(m[0].data(), m[1].data(), lanes, {1e-4, 1e-4}, what + ", maximum");
    r.near(l[0].data(), l[1].data(), lanes, {1e-3, 1e-6}, what + ", sum");
    return;
  }
  // Queries are rounded, so that a score may be off by half a step of theirs times a latent's sum of magnitudes: the logarithm of the
  // sum of exponentials, which is what parts of a cache are merged by, is off by no more than a score. Which maximum it is relative to
  // is the kernel's own, as long as the sum stays far from the ends of a float.
  double largest = 0, sum = 0;
  for (int64_t i = 0; i < ql.size(); i++) largest = std::max(largest, (double)fabsf(ql[i]));
  for (int64_t s = s0; s < length; s++) {
    std::vector<float> row((size_t)rank);
    t.plain.cache_read[(int)kind](row.data(), nullptr, cache.rows, s, s + 1);
    double total = 0;
    for (const float x : row) total += fabsf(x);
    sum = std::max(sum, total);
  }
  const double codes = is_avx512(r) ? 127 : std::min(32767.0, 2147483647.0 / (128 * (double)(rank + 1)) - 1);
  const Close close{1e-4, 1e-4 + 0.2 * sum * largest / codes / 2};
  for (int64_t j = 0; j < lanes; j++)
    r.expect(l[0][j] == 0 ? l[1][j] == 0 : l[0][j] > 1e-6f && l[0][j] < 1e15f, what + ", range of the sum");
  for (int i = 0; i < 2; i++)
    for (int64_t j = 0; j < lanes; j++) l[i][j] = l[i][j] > 0 ? m[i][j] + logf(l[i][j]) : 0;
  r.near(l[0].data(), l[1].data(), lanes, close, what + ", logarithm of the sum");
}

void test_latent_attention(Report& r, const Tables& t, CacheKind kind) {
  for (const int64_t length : {1, 2, 9, 16, 17, 64, 65, 200, 700}) latent_case(r, t, kind, length, 5, 56, 24);
  const int64_t shapes[][3] = {{1, 1, 2}, {3, 17, 6}, {4, 33, 14}, {7, 64, 32}, {32, 96, 18}, {33, 20, 6}, {16, 896, 128}};
  for (const auto& [heads, rank, rope] : shapes) latent_case(r, t, kind, 37, heads, rank, rope);
  latent_case(r, t, kind, 90, 6, 40, 12, 30);
  latent_case(r, t, kind, 20, 6, 40, 12, 20);  // nothing to see
}

void test_patchify(Report& r, const Tables& t) {
  const int64_t sizes[][2] = {{16, 2}, {14, 2}, {4, 1}, {5, 3}, {7, 2}}, blocks[][2] = {{1, 1}, {2, 3}, {5, 2}};
  for (const auto& [patch, merge] : sizes)
    for (const auto& [down, across] : blocks)
      for (const int64_t temporal : {1, 2}) {
        const int64_t h = down * patch * merge, w = across * patch * merge, columns = 3 * temporal * patch * patch;
        AtEdge<uint8_t> frames(temporal * h * w * 3);
        for (int64_t i = 0; i < frames.size(); i++) frames[i] = (uint8_t)rng()();
        compare(r, t.plain, t.fast, h * w / patch / patch, columns, 0, {1e-6, 2e-6},
                text({{"rows", h}, {"columns", w}, {"a patch", patch}}), [&](const KernelTable& table, float* y, int64_t) {
                  table.patchify({y, frames.data(), temporal, h, w, patch, merge, {0.5f, 0.4f, 0.3f}, {0.5f, 0.25f, 0.2f}}, 0, down);
                });
      }
}

// Pictures of random bytes, to the same bytes: from and to the edge of readable memory.
void test_resize(Report& r, const Tables&) {
  const int64_t shapes[][4] = {{64, 96, 32, 32}, {40, 50, 64, 96}, {7, 5, 32, 64}, {90, 20, 17, 19}, {33, 200, 33, 64}, {30, 64, 8, 64}};
  for (const auto& [h, w, to_h, to_w] : shapes) {
    AtEdge<uint8_t> in(h * w * 3), plain(to_h * to_w * 3), fast(to_h * to_w * 3);
    for (int64_t i = 0; i < in.size(); i++) in[i] = (uint8_t)rng()();
    const Resizer resizer(h, w, to_h, to_w);
    use_isa("ref");
    resizer.run({plain.data(), to_h, to_w}, {in.data(), h, w, 3 * w, 3});
    use_isa(r.isa);
    resizer.run({fast.data(), to_h, to_w}, {in.data(), h, w, 3 * w, 3});
    r.expect(memcmp(plain.data(), fast.data(), (size_t)plain.size()) == 0, text({{"rows", h}, {"columns", w}}));
  }
}

void test_probes(Report& r, const Tables& t) {
  r.expect(t.fast.int8_peak(10000) >= 10000, "fewer products than asked for");
  for (const int64_t bytes : {0, 7, 8, 100, 511, 4096, 100003}) {
    AtEdge<uint8_t> memory(bytes);
    for (int64_t i = 0; i < bytes; i++) memory[i] = (uint8_t)rng()();
    for (int way = 0; way < 2; way++)
      r.expect(t.fast.read_streams[way](memory.data(), bytes) == t.plain.read_streams[way](memory.data(), bytes),
               text({{"bytes read", bytes}}));
  }
}

// The thread pool, over the operation itself.
void test_threads(Report& r, const std::string& isa) {
  use_isa(isa);
  Normal matrix(700 * 64), x(9 * 64);
  std::vector<float> results[3];
  for (const Format f : {Format::f32, Format::q8_0}) {
    std::vector<uint8_t> blocks((size_t)(700 * row_bytes(f, 64)));
    FORMATS[(int)f].encode(blocks.data(), matrix.data(), nullptr, 700 * 64);
    Weight w(f, 1, 700, 64);
    w.fill(0, 700, blocks.data(), row_bytes(f, 64));
    for (const auto& [activation, rows] : {std::pair{Activation::none, 700}, {Activation::gelu_erf, 700}, {Activation::silu_mul, 350}}) {
      for (int i = 0; i < 3; i++) {
        set_num_threads(2 * i + 1);
        results[i].assign(9 * rows, NAN);
        linear({results[i].data(), 9, rows, rows}, {x.data(), 9, 64, 64}, {w, nullptr}, false, activation);
      }
      r.expect(results[0] == results[1] && results[0] == results[2], "threads change results");
    }
  }
}

using Test = std::function<void(Report&, const Tables&)>;

// By name; the names are those of the table. Entries that this program does not know are noticed by `covered`.
std::vector<std::pair<std::string, Test>> tests() {
  std::vector<std::pair<std::string, Test>> out;
  for (int f = 0; f < kFormatCount; f++)
    out.emplace_back(std::string("linear ") + FORMATS[f].name, [=](Report& r, const Tables& t) { test_linear(r, t, (Format)f); });
  for (int f = 0; f < kFormatCount; f++)
    if (FORMATS[f].quantized)
      out.emplace_back(std::string("linear_gemm ") + FORMATS[f].name, [=](Report& r, const Tables& t) { test_gemm(r, t, (Format)f); });
  out.emplace_back("quantize_rows", test_quantize_rows);
  out.emplace_back("rms_norm", [](Report& r, const Tables& t) { test_norm(r, t, false); });
  out.emplace_back("layer_norm", [](Report& r, const Tables& t) { test_norm(r, t, true); });
  out.emplace_back("rope", test_rope);
  out.emplace_back("silu_mul", test_silu_mul);
  out.emplace_back("gelu_tanh", [](Report& r, const Tables& t) { test_gelu(r, t, &KernelTable::gelu_tanh); });
  out.emplace_back("gelu_erf", [](Report& r, const Tables& t) { test_gelu(r, t, &KernelTable::gelu_erf); });
  out.emplace_back("attention", test_attention);
  out.emplace_back("packed_attention", test_attention_packed);
  const char* kinds[kCacheKinds] = {"f32", "bf16", "q8", "q4"};
  for (int k = 0; k < kCacheKinds; k++) {
    const std::string of = std::string(" ") + kinds[k];
    out.emplace_back("latent_attention" + of, [=](Report& r, const Tables& t) { test_latent_attention(r, t, (CacheKind)k); });
    out.emplace_back("cache_write" + of, [=](Report& r, const Tables& t) { test_cache_write(r, t, (CacheKind)k); });
    out.emplace_back("cache_read" + of, [=](Report& r, const Tables& t) { test_cache_read(r, t, (CacheKind)k); });
  }
  out.emplace_back("patchify", test_patchify);
  out.emplace_back("resize_rows, resize_columns", test_resize);
  out.emplace_back("int8_peak, read_streams", test_probes);
  return out;
}

// NaN and infinity reach the results: no quantization makes a number of them, and rows without them are unchanged.
void nonfinite_linear(Report& r, const Tables& t, Format f) {
  constexpr int64_t kRows = 37, kCols = 420;
  Normal matrix(kRows * kCols);
  Packed w = encoded(f, matrix.data(), kRows, kCols);
  for (const int64_t tokens : {1, 5, 64})
    for (const float bad : {NAN, INFINITY, -INFINITY})
      for (const int64_t at : {(int64_t)0, (int64_t)133, kCols - 1}) {
        Normal x(tokens * kCols);
        x[tokens / 2 * kCols + at] = bad;
        std::vector<float> y((size_t)(tokens * kRows));
        const bool gemm = t.fast.linear_gemm[(int)f] && tokens >= t.fast.gemm_from;
        if (gemm)
          run_gemm(t.fast, w, x.data(), tokens, y.data(), kRows);
        else
          run_quantized(t.fast, w, x.data(), tokens, y.data(), kRows);
        for (int64_t i = 0; i < tokens * kRows; i++)
          r.expect(i / kRows == tokens / 2 ? (std::isnan(bad) ? std::isnan(y[(size_t)i]) : !std::isfinite(y[(size_t)i]))
                                           : std::isfinite(y[(size_t)i]),
                   std::string(FORMATS[(int)f].name) + ", " + text({{"tokens", tokens}, {"column", at}}));
      }
}

void nonfinite_attention(Report& r, const Tables& t, bool packed) {
  if (packed && !t.fast.packed_attention.attention) return;
  constexpr int64_t kTokens = 70, kDim = 40;
  for (int which = 0; which < 3; which++) {
    Normal q(kTokens * kDim), k(kTokens * kDim), v(kTokens * kDim);
    (which == 0 ? q : which == 1 ? k : v)[41 * kDim + 5] = NAN;
    std::vector<float> y((size_t)(kTokens * kDim));
    AttentionArgs a{};
    a.out = y.data(), a.q = q.data(), a.k = k.data(), a.v = v.data(), a.ld_out = a.ld_q = a.ld_k = a.ld_v = kDim;
    a.d = a.dv = kDim, a.keys = kTokens, a.scale = 0.2f;
    attend(t.fast, a, 0, kTokens, 0, kTokens, packed);
    for (int64_t i = 0; i < kTokens; i++)
      r.expect(std::isnan(y[(size_t)(i * kDim + 5)]) == (which > 0 || i == 41), "a NaN in " + std::string(1, "qkv"[which]));
  }
}

void nonfinite_latents(Report& r, const Tables& t, CacheKind kind) {
  constexpr int64_t kTokens = 300, kRank = 56, kRope = 24, kHeads = 5;
  for (int which = 0; which < 4; which++) {
    Normal latent(kTokens * kRank), keys(kTokens * kRope), ql(kHeads * kRank), qr(kHeads * kRope);
    AtEdge<float>* all[] = {&latent, &keys, &ql, &qr};
    (*all[which])[which < 2 ? 211 * (which ? kRope : kRank) + 7 : 2 * (which == 3 ? kRope : kRank) + 7] = NAN;
    Cache cache(kind, kTokens, kRank, kRope);
    t.fast.cache_write[(int)kind](cache.rows, 0, latent.data(), kRank, keys.data(), kRope, 0, kTokens);
    std::vector<float> y((size_t)(kHeads * kRank)), m(kHeads), l(kHeads);
    LatentArgs a{y.data(), m.data(), l.data(), ql.data(), qr.data(), cache.rows, 1, kHeads, kTokens - 1, 0.2f, nullptr};
    AtEdge<float> scratch((latent_scratch(a) + 15) / 16 * 16, NAN);
    a.scratch = scratch.data();
    t.fast.latent_attention[(int)kind](a, 0, kTokens);
    for (int64_t h = 0; h < kHeads; h++)
      r.expect(std::isnan(y[(size_t)(h * kRank + 9)] / l[(size_t)h]) == (which < 2 || h == 2),
               text({{"a NaN in input", which}, {"head", h}}));
  }
}

std::vector<std::pair<std::string, Test>> nonfinite_tests() {
  return {{"not finite: linear",
           [](Report& r, const Tables& t) {
             for (int f = 0; f < kFormatCount; f++) nonfinite_linear(r, t, (Format)f);
           }},
          {"not finite: attention",
           [](Report& r, const Tables& t) {
             nonfinite_attention(r, t, false);
             nonfinite_attention(r, t, true);
           }},
          {"not finite: latents", [](Report& r, const Tables& t) {
             for (int k = 0; k < kCacheKinds; k++) nonfinite_latents(r, t, (CacheKind)k);
           }}};
}

// An instruction set does every entry that the plain table has, and there are as many as the tests above know.
void covered(Report& r, const Tables& t) {
  constexpr size_t kEntries = sizeof(KernelTable) / sizeof(void*), kKnown = kFormatCount + 8 + 3 * kCacheKinds + 6;
  void *plain[kEntries], *fast[kEntries];
  memcpy(plain, &t.plain, sizeof plain);
  memcpy(fast, &t.fast, sizeof fast);
  size_t entries = 0;
  for (size_t i = 0; i < kEntries; i++) {
    if (!plain[i]) continue;
    entries++;
    r.expect(fast[i] && fast[i] != plain[i], "entry " + std::to_string(i) + " of the table is the plain one");
  }
  r.expect(entries == kKnown, "the table has entries that this program does not test");
}

bool report(const Report& r) {
  printf("%-10s %-24s %6lld cases  %.2f of the tolerance  %s\n", r.isa.c_str(), r.kernel.c_str(), (long long)r.cases, r.worst,
         r.bad ? "FAILED" : "ok");
  fflush(stdout);
  return !r.bad;
}

int run(const std::string& only) {
  int failed = 0, kernels = 0, sets = 0;
  for (const std::string& isa : known_isas()) {
    if (isa == "ref" || !isa_supported(isa)) continue;
    sets++;
    const Tables t{isa_table("ref"), isa_table(isa)};
    const auto one = [&](const std::string& name, const Test& test) {
      if (name.find(only) == std::string::npos) return;
      Report r{isa, name};
      test(r, t);
      kernels++;
      failed += !report(r);
    };
    one("the whole table", covered);
    for (const auto& [name, test] : tests()) one(name, test);
    for (const auto& [name, test] : nonfinite_tests()) one(name, test);
    one("threads", [&](Report& r, const Tables&) { test_threads(r, isa); });
  }
  Report encoders{"any", "encoders"};
  if (encoders.kernel.find(only) != std::string::npos) {
    test_encoders(encoders);
    kernels++, failed += !report(encoders);
  }
  printf("%d instruction sets, %d lines, %d failed\n", sets, kernels, failed);
  return failed || !kernels;
}

}  // namespace
}  // namespace ivlite

// compare_isas [NAME]: all kernels, or those whose line has NAME in it.
int main(int argc, char** argv) { return ivlite::run(argc > 1 ? argv[1] : ""); }
