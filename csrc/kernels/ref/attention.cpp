// Softmax attention in plain C++: one key at a time, sums in double, online softmax.
#include <math.h>
#include <string.h>

#include "formats/f16.h"
#include "kernels/q4.h"
#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
  return sum;
}

void attention(const AttentionArgs& a, int64_t q0, int64_t q1) {
  double* acc = (double*)a.scratch;
  for (int64_t i = q0; i < q1; i++) {
    int64_t visible = a.causal && a.first_visible + i + 1 < a.keys ? a.first_visible + i + 1 : a.keys;
    double m = a.continues ? a.m[i] : -INFINITY, l = a.continues ? a.l[i] : 0;
    for (int64_t j = 0; j < a.dv; j++) acc[j] = a.continues ? a.out[i * a.ld_out + j] : 0;
    for (int64_t s = 0; s < visible; s++) {
      double score = dot(a.q + i * a.ld_q, a.k + s * a.ld_k, a.d);
      if (a.d2) score += dot(a.q2 + i * a.ld_q2, a.k2 + s * a.ld_k2, a.d2);
      score *= a.scale;
      if (score > m) {
        double alpha = exp(m - score);
        for (int64_t j = 0; j < a.dv; j++) acc[j] *= alpha;
        l *= alpha;
        m = score;
      }
      double p = exp(score - m);
      l += p;
      for (int64_t j = 0; j < a.dv; j++) acc[j] += p * a.v[s * a.ld_v + j];
    }
    for (int64_t j = 0; j < a.dv; j++) a.out[i * a.ld_out + j] = (float)(a.unfinished ? acc[j] : l == 0 ? 0 : acc[j] / l);
    if (a.unfinished) a.m[i] = (float)m, a.l[i] = (float)l;
  }
}

struct RowsF32 {
  static double latent(const LatentRows& c, int64_t s, int64_t j) { return ((const float*)c.latent)[s * c.rank + j]; }
  static double rope(const LatentRows& c, int64_t s, int64_t j) { return ((const float*)c.rope)[s * c.rope_dim + j]; }
};
struct RowsF16 {
  static double latent(const LatentRows& c, int64_t s, int64_t j) { return f16_to_f32(((const uint16_t*)c.latent)[s * c.rank + j]); }
  static double rope(const LatentRows& c, int64_t s, int64_t j) { return f16_to_f32(((const uint16_t*)c.rope)[s * c.rope_dim + j]); }
};
struct RowsQ8 {
  static double latent(const LatentRows& c, int64_t s, int64_t j) { return (double)c.scale[s] * ((const int8_t*)c.latent)[s * c.rank + j]; }
  static double rope(const LatentRows& c, int64_t s, int64_t j) { return RowsF16::rope(c, s, j); }
};

// Rotated latents (kernels/q4.h).
struct RowsQ4 {
  static double latent(const LatentRows& c, int64_t s, int64_t j) {
    const RowBytes bytes = row_bytes(CacheKind::q4, c.rank, c.rope_dim);
    const Q4Run run = q4_run((const uint8_t*)c.latent + s * bytes.latent, c.rank, j / kQ4Run * kQ4Run);
    const int64_t half = (run.n + 1) / 2, i = j % kQ4Run, code = run.codes[i % half] >> (i < half ? 0 : 4) & 15;
    return (double)c.scale[s * bytes.scale / 4] * kQ4.level[q4_nibble(run.tables, i / kQ4Group)][code];
  }
  static double rope(const LatentRows& c, int64_t s, int64_t j) {
    const RowBytes bytes = row_bytes(CacheKind::q4, c.rank, c.rope_dim);
    return (double)c.scale[s * bytes.scale / 4 + 1 + j / kGroup] * ((const int8_t*)c.rope)[s * c.rope_dim + j];
  }
};

// One query and head over cached tokens [s0, s1): acc (rank) is float, so the running sums are rescaled in place.
template <class Rows>
void latent_one(const LatentArgs& a, const float* q, int64_t row, int64_t s0, int64_t s1) {
  const LatentRows& c = a.cache;
  const float* r = a.q_rope + row * c.rope_dim;
  float* acc = a.acc + row * c.rank;
  double m = -INFINITY, l = 0;
  for (int64_t j = 0; j < c.rank; j++) acc[j] = 0;
  for (int64_t s = s0; s < s1; s++) {
    double score = 0;
    for (int64_t j = 0; j < c.rank; j++) score += q[j] * Rows::latent(c, s, j);
    for (int64_t j = 0; j < c.rope_dim; j++) score += r[j] * Rows::rope(c, s, j);
    score *= a.scale;
    double alpha = score > m ? exp(m - score) : 1;
    m = score > m ? score : m;
    double p = exp(score - m);
    l = l * alpha + p;
    for (int64_t j = 0; j < c.rank; j++) acc[j] = (float)(acc[j] * alpha + p * Rows::latent(c, s, j));
  }
  a.m[row] = (float)m;
  a.l[row] = (float)l;
}

template <class Rows>
void latent_attention(const LatentArgs& a, int64_t s0, int64_t s1) {
  for (int64_t i = 0; i < a.queries; i++) {
    int64_t end = s1 < a.position + i + 1 ? s1 : a.position + i + 1;
    for (int64_t row = i * a.heads; row < (i + 1) * a.heads; row++) latent_one<Rows>(a, a.q_latent + row * a.cache.rank, row, s0, end);
  }
}

void rotate(float* row, int64_t rank) {
  for (int64_t at = 0; at < rank; at += kQ4Part) q4_rotate(row + at, rank - at < kQ4Part ? rank - at : kQ4Part);
}

void latent_attention_q4(const LatentArgs& a, int64_t s0, int64_t s1) {
  const int64_t rank = a.cache.rank;
  for (int64_t i = 0; i < a.queries; i++) {
    int64_t end = s1 < a.position + i + 1 ? s1 : a.position + i + 1;
    for (int64_t row = i * a.heads; row < (i + 1) * a.heads; row++) {
      memcpy(a.scratch, a.q_latent + row * rank, (size_t)rank * 4);
      rotate(a.scratch, rank);
      latent_one<RowsQ4>(a, a.scratch, row, s0, end);
      rotate(a.acc + row * rank, rank);
    }
  }
}

}  // namespace

void init_ref_attention(KernelTable& t) {
  t.attention = attention;
  t.latent_attention[(int)CacheKind::f32] = latent_attention<RowsF32>;
  t.latent_attention[(int)CacheKind::bf16] = latent_attention<RowsF16>;
  t.latent_attention[(int)CacheKind::q8] = latent_attention<RowsQ8>;
  t.latent_attention[(int)CacheKind::q4] = latent_attention_q4;
}

}  // namespace ivlite
