// The kernels of AVX-512 with VNNI, and the integer linear layers of this instruction set.
#include "kernels/table.h"
#include "vec/avx512.h"

#include "shared.h"

#include "linear_int.h"

namespace ivlite {
namespace {

constexpr int64_t kQ4Bytes = 4 * 64 + 2 * kPanel;  // one group of a panel
constexpr int64_t kQ8Bytes = 8 * 64 + 2 * kPanel;
constexpr int64_t kPrefetch = 4096;

inline __m512i broadcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

// Token i of a tile, from two base pointers: three rows each are reached by base, base + stride and base + 2 stride, so
// six rows cost three registers.
template <class E>
struct TileRows {
  const E *low, *high;
  int64_t stride;
  TileRows(const E* p, int64_t stride) : low(p), high(p + 3 * stride), stride(stride) {}
  const E* row(int i) const { return (i < 3 ? low : high) + i % 3 * stride; }
  void advance(int64_t n) { low += n, high += n; }
};

// Line j (0..7) of a group: the codes of four columns, unsigned. dpbusd multiplies unsigned by signed, so codes carry an
// offset (8 as stored, 128 by flipping the sign bit) that the start value of each sum takes back.
template <Format F>
inline __m512i weight_line(const uint8_t* w, int j) {
  if (F == Format::q8_0) return _mm512_xor_si512(_mm512_loadu_si512((const void*)(w + 64 * j)), _mm512_set1_epi8((char)0x80));
  const __m512i both = _mm512_loadu_si512((const void*)(w + 64 * (j / 2)));
  return _mm512_and_si512(j % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
}

// P panels x T tokens, all groups. A broadcast serves P products and a line of weights T. Stream: the panels come from
// memory, so ask for them early.
template <Format F>
struct IntTile {
  static constexpr int kTokens = 6, kPanels = 2;  // 12 integer and 12 float sums, of 32 registers
  static constexpr int64_t kBytes = F == Format::q4_0 ? kQ4Bytes : kQ8Bytes;

  template <int T, int P, bool Stream>
  static void run(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t) {
    const int64_t cols = a.xq.cols, groups = cols / kGroup, stride = groups * kBytes;
    TileRows<int8_t> q(a.xq.q + t * cols, cols);
    TileRows<float> xs(a.xq.scale + t * groups, groups);
    TileRows<int32_t> xsum(a.xq.sum + t * groups, groups);
    __m512 acc[P][T];
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) acc[k][i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < groups; g++, w += kBytes, q.advance(kGroup), xs.advance(1), xsum.advance(1)) {
      if (Stream)
        for (int k = 0; k < P; k++)
          for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(w + k * stride + kPrefetch + i);
      __m512i s[P][T];
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m512i sum = _mm512_slli_epi32(_mm512_set1_epi32(*xsum.row(i)), F == Format::q4_0 ? 3 : 7);
        for (int k = 0; k < P; k++) s[k][i] = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) {
        __m512i line[P];
        for (int k = 0; k < P; k++) line[k] = weight_line<F>(w + k * stride, j);
#pragma GCC unroll 8
        for (int i = 0; i < T; i++) {
          const __m512i x = broadcast4(q.row(i) + 4 * j);
          for (int k = 0; k < P; k++) s[k][i] = _mm512_dpbusd_epi32(s[k][i], line[k], x);
        }
      }
      __m512 ws[P];
      for (int k = 0; k < P; k++) ws[k] = vec::load_f16((const uint16_t*)(w + k * stride + kBytes - 2 * kPanel));
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m512 x = _mm512_set1_ps(*xs.row(i));
        for (int k = 0; k < P; k++) acc[k][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[k][i]), _mm512_mul_ps(ws[k], x), acc[k][i]);
      }
    }
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) store_rows(a, t + i, (p + k) * kPanel, acc[k][i]);
  }
};

}  // namespace

void init_avx512vnni(KernelTable& t) {
  init_shared(t);
  t.linear[(int)Format::q8_0] = linear_int<IntTile<Format::q8_0>>;
  t.linear[(int)Format::q4_0] = linear_int<IntTile<Format::q4_0>>;
}

}  // namespace ivlite
