// The kernels of ARM with int8 matrix products (i8mm): those of NEON, and `smmla` in linear layers of many tokens.
//
// It multiplies 2 rows x 8 columns by 2 tokens x 8 columns, twice the products of `sdot`. Panels have 4 columns side by side, so
// two quads must be zipped into one, which costs as much as it saves for a few tokens: it is done once, when panels are unpacked.
// Then a token takes 36 vector instructions per group of q4_0 where `sdot` takes 49.
#include "kernels/cpu/vec/neon.h"  // first: the vocabulary of this set

#include "kernels/cpu/elementwise/resize_neon.h"
#include "kernels/cpu/linear/int8_neon.h"
#include "kernels/cpu/shared.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

// Two tokens x one panel. A register of sums holds rows 2 v and 2 v + 1: (row, token), (row, next), (next row, token), ...
template <class Codes>
struct PairTile {
  static int8x16_t codes(const uint8_t* w, int c, int v) { return vld1q_s8((const int8_t*)w + 128 * c + 16 * v); }

  // Columns [8 c, 8 c + 8) of a group.
  static void columns(int32x4_t (&s)[8], const uint8_t* w, int c, int8x16_t x) {
#pragma GCC unroll 4
    for (int v = 0; v < 8; v += 2) {
      int8x16_t a = codes(w, c, v), b = codes(w, c, v + 1);
      asm("" : "+w"(a), "+w"(b));  // one instruction loads both
      s[v] = vmmlaq_s32(s[v], a, x);
      s[v + 1] = vmmlaq_s32(s[v + 1], b, x);
    }
  }

  static vec::V pair(const float* x, int64_t t, int64_t u) { return vzip1q_f32(vec::set1(x[t]), vec::set1(x[u])); }

  static void block(vec::V (&acc)[8], int32x4_t (&s)[8], const float* scale, vec::V xs) {
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) {
      acc[v] = vec::fma(vcvtq_f32_s32(s[v]), vec::mul(vec::load(scale + 4 * v), xs), acc[v]);
      s[v] = vdupq_n_s32(0);
    }
  }

  // One group of tokens whose codes are at a and b, and floats at positions t and u.
  static void group(vec::V (&acc)[8], const uint8_t* w, const QuantRows& q, const int8_t* a, const int8_t* b, int64_t t, int64_t u) {
    const int64x2_t a0 = vreinterpretq_s64_s8(vld1q_s8(a)), a1 = vreinterpretq_s64_s8(vld1q_s8(a + 16));
    const int64x2_t b0 = vreinterpretq_s64_s8(vld1q_s8(b)), b1 = vreinterpretq_s64_s8(vld1q_s8(b + 16));
    const vec::V xs = pair(q.scale, t, u);
    int32x4_t s[8] = {};
    columns(s, w, 0, vreinterpretq_s8_s64(vzip1q_s64(a0, b0)));
    columns(s, w, 1, vreinterpretq_s8_s64(vzip2q_s64(a0, b0)));
    if (Codes::kHalves == 2) block(acc, s, Codes::floats(w, 0), xs);
    columns(s, w, 2, vreinterpretq_s8_s64(vzip1q_s64(a1, b1)));
    columns(s, w, 3, vreinterpretq_s8_s64(vzip2q_s64(a1, b1)));
    block(acc, s, Codes::floats(w, Codes::kHalves - 1), xs);
    if (!Codes::kMins) return;
    const vec::V shift = pair(q.shift, t, u);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) acc[v] = vec::fnma(vec::load(Codes::floats(w, Codes::kHalves) + 4 * v), shift, acc[v]);
  }

  // n groups from g on of tokens t and u, added to sums at `to`.
  static void run(float* to, const QuantRows& q, const uint8_t* w, int64_t g, int64_t n, int64_t t, int64_t u) {
    const int64_t groups = q.cols / kGroup;
    const int8_t *a = q.q + t * q.cols + g * kGroup, *b = q.q + u * q.cols + g * kGroup;
    vec::V acc[8];
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) acc[v] = vec::load(to + 4 * v);
    for (int64_t i = 0; i < n; i++, w += Codes::kBytes)
      group(acc, w, q, a + i * kGroup, b + i * kGroup, t * groups + g + i, u * groups + g + i);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) vec::store(to + 4 * v, acc[v]);
  }

  // Tokens [t, t + tokens); the last of an odd number is paired with itself.
  static void run_all(float* acc, const QuantRows& q, const uint8_t*, const uint8_t* w, int64_t g, int64_t n, int64_t t, int64_t tokens) {
    for (int64_t i = 0; i < tokens; i += 2) run(acc + i * kPanel, q, w, g, n, t + i, i + 1 < tokens ? t + i + 1 : t + i);
  }
};

// Registers of 2 rows x 8 columns, 8 for 8 columns; floats in the order of the sums.
struct Pairs {
  template <class Codes>
  using Tile = PairTile<Codes>;
  static constexpr int kRow = 2 * kPanel;
  static constexpr int64_t kFrom = 6;  // tokens from which unpacking pays, by instruction counts: from 4 (q6_k) to 8 (q8_0)
  static void put(uint8_t* to, int v, int8x16_t a, int8x16_t b) {
    const int32x4_t x = vreinterpretq_s32_s8(a), y = vreinterpretq_s32_s8(b);
    vst1q_s8((int8_t*)to + 32 * v, vreinterpretq_s8_s32(vzip1q_s32(x, y)));
    vst1q_s8((int8_t*)to + 32 * v + 16, vreinterpretq_s8_s32(vzip2q_s32(x, y)));
  }
  static void put(float* to, const Rows16& x) {
    for (int v = 0; v < 4; v++) {
      vec::store(to + 8 * v, vzip1q_f32(x.v[v], x.v[v]));
      vec::store(to + 8 * v + 4, vzip2q_f32(x.v[v], x.v[v]));
    }
  }
  static void store(const LinearArgs& a, const float* acc, int64_t p, int64_t t, int64_t tokens) {
    for (int64_t i = 0; i < tokens; i++)
      for (int v = 0; v < 4; v++) {
        const float* sums = acc + i / 2 * kRow + 8 * v;
        const vec::V low = vec::load(sums), high = vec::load(sums + 4);
        store_rows(a, t + i, p * kPanel + 4 * v, i % 2 ? vuzp2q_f32(low, high) : vuzp1q_f32(low, high));
      }
  }
};

inline vec::I matrix_step(vec::I acc, vec::I a, vec::I b) { return vmmlaq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)); }

}  // namespace

void init_i8mm(KernelTable& t) {
  init_shared(t);
  init_resize_neon(t);
  init_int8_neon<Pairs>(t);
  t.int8_peak = steps_peak<32, matrix_step>;
}

}  // namespace ivlite
