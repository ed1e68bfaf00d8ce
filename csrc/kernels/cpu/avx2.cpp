// The kernels of AVX2 + FMA + F16C, and the integer linear layers of this instruction set.
#include "kernels/table.h"
#include "vec/avx2.h"

#include "shared.h"

#include "linear_int.h"

namespace ivlite {
namespace {

constexpr int64_t kQ4Bytes = 4 * 64 + 2 * kPanel;  // one group of a panel
constexpr int64_t kQ8Bytes = 8 * 64 + 2 * kPanel;
constexpr int64_t kPrefetch = 4096;

inline __m256i load256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i broadcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Keeps the compiler from regrouping a sum of integers: it would hold eight products in registers it does not have.
inline void keep(__m256i& x) { asm("" : "+x"(x)); }

// acc[token][half] += scale of the weights x scale of the token x sum, one group.
inline void fold(float* acc, __m256i sum, __m256 wscale, __m256 xscale) {
  const __m256 s = _mm256_mul_ps(wscale, xscale);
  _mm256_store_ps(acc, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), s, _mm256_load_ps(acc)));
}

// One group of 4-bit weights x T tokens. Products of unsigned 4-bit and signed 8-bit codes: a pair is at most
// 2 x 15 x 127 and eight of them fit int16, so one widening per group is enough.
template <int T>
inline void q4_group(const uint8_t* w, const int8_t* q, int64_t ldq, const float* xs, const int32_t* xsum, int64_t lds, float* acc) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i s[T][2];
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m256i w0 = load256(w + 64 * j), w1 = load256(w + 64 * j + 32);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const __m256i a0 = _mm256_and_si256(h ? _mm256_srli_epi16(w0, 4) : w0, low);
      const __m256i a1 = _mm256_and_si256(h ? _mm256_srli_epi16(w1, 4) : w1, low);
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m256i x = broadcast4(q + i * ldq + 8 * j + 4 * h);
        const __m256i m0 = _mm256_maddubs_epi16(a0, x), m1 = _mm256_maddubs_epi16(a1, x);
        s[i][0] = j + h ? _mm256_add_epi16(s[i][0], m0) : m0;
        s[i][1] = j + h ? _mm256_add_epi16(s[i][1], m1) : m1;
        keep(s[i][0]);
        keep(s[i][1]);
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256 ws0 = vec::load_f16((const uint16_t*)(w + 256)), ws1 = vec::load_f16((const uint16_t*)(w + 256) + 8);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m256i offset = _mm256_slli_epi32(_mm256_set1_epi32(xsum[i * lds]), 3);  // codes stand for code - 8
    const __m256 sx = _mm256_set1_ps(xs[i * lds]);
    fold(acc + 16 * i, _mm256_sub_epi32(_mm256_madd_epi16(s[i][0], ones), offset), ws0, sx);
    fold(acc + 16 * i + 8, _mm256_sub_epi32(_mm256_madd_epi16(s[i][1], ones), offset), ws1, sx);
  }
}

// One group of 8-bit weights x T tokens. maddubs wants one unsigned operand: |w| takes it and the token takes w's sign.
// A pair is at most 2 x 128 x 127, which fills int16, so each product is widened before it is added.
template <int T>
inline void q8_group(const uint8_t* w, const int8_t* q, int64_t ldq, const float* xs, const int32_t*, int64_t lds, float* acc) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i s[T][2];
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    const __m256i w0 = load256(w + 64 * j), w1 = load256(w + 64 * j + 32);
    const __m256i a0 = _mm256_abs_epi8(w0), a1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      const __m256i x = broadcast4(q + i * ldq + 4 * j);
      const __m256i m0 = _mm256_madd_epi16(_mm256_maddubs_epi16(a0, _mm256_sign_epi8(x, w0)), ones);
      const __m256i m1 = _mm256_madd_epi16(_mm256_maddubs_epi16(a1, _mm256_sign_epi8(x, w1)), ones);
      s[i][0] = j ? _mm256_add_epi32(s[i][0], m0) : m0;
      s[i][1] = j ? _mm256_add_epi32(s[i][1], m1) : m1;
      keep(s[i][0]);
      keep(s[i][1]);
    }
  }
  const __m256 ws0 = vec::load_f16((const uint16_t*)(w + 512)), ws1 = vec::load_f16((const uint16_t*)(w + 512) + 8);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m256 sx = _mm256_set1_ps(xs[i * lds]);
    fold(acc + 16 * i, s[i][0], ws0, sx);
    fold(acc + 16 * i + 8, s[i][1], ws1, sx);
  }
}

template <Format F>
struct IntTile {
  static constexpr int kTokens = 4, kPanels = 1;  // 8 sums, 4 weight registers, broadcast, product, constants: all 16 registers
  static constexpr int64_t kBytes = F == Format::q4_0 ? kQ4Bytes : kQ8Bytes;

  template <int T, int P, bool Stream>
  static void run(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t) {
    const int64_t groups = a.xq.cols / kGroup;
    const int8_t* q = a.xq.q + t * a.xq.cols;
    const float* xs = a.xq.scale + t * groups;
    const int32_t* xsum = a.xq.sum + t * groups;
    alignas(32) float acc[T * kPanel] = {};
    for (int64_t g = 0; g < groups; g++, w += kBytes) {
      if (Stream)
        for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(w + kPrefetch + i);
      if (F == Format::q4_0)
        q4_group<T>(w, q + g * kGroup, a.xq.cols, xs + g, xsum + g, groups, acc);
      else
        q8_group<T>(w, q + g * kGroup, a.xq.cols, xs + g, xsum + g, groups, acc);
    }
    for (int i = 0; i < T; i++)
      for (int h = 0; h < 2; h++) store_rows(a, t + i, p * kPanel + 8 * h, _mm256_load_ps(acc + 16 * i + 8 * h));
  }
};

}  // namespace

void init_avx2(KernelTable& t) {
  init_shared(t);
  t.linear[(int)Format::q8_0] = linear_int<IntTile<Format::q8_0>>;
  t.linear[(int)Format::q4_0] = linear_int<IntTile<Format::q4_0>>;
}

}  // namespace ivlite
