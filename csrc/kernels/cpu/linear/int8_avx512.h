// The integer linear layers of AVX-512 VNNI: a tile of panels x tokens for every quantised format.
#pragma once
#include "kernels/cpu/linear/int8.h"
#include "kernels/cpu/vec/avx512.h"

namespace ivlite {
namespace {

constexpr int64_t kPrefetch = 4096;          // prefetch distance in bytes, of one stream
constexpr int64_t kNear = 640, kFar = 2560;  // of each of several streams: into L1 and L2

inline __m512i broadcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

inline __m512i load_quad(const uint8_t* w) { return _mm512_loadu_si512((const void*)w); }
inline __m512i low_nibbles(__m512i x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline __m512i nibble_quad(const uint8_t* w, int j) {
  const __m512i both = load_quad(w + 64 * (j / 2));
  return low_nibbles(j % 2 ? _mm512_srli_epi16(both, 4) : both);
}
// a | (b & c)
inline __m512i with_bits(__m512i a, __m512i b, int c) { return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8((char)c), 0xf8); }
// Shifts every 16 bits left by n, or right by -n; bits that cross into the neighbouring byte are masked by the caller.
inline __m512i shifted(__m512i x, int n) { return n >= 0 ? _mm512_slli_epi16(x, (unsigned)n) : _mm512_srli_epi16(x, (unsigned)-n); }

// 16 bytes as floats.
inline __m512 floats_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))); }
inline __m512 floats_i8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
inline __m512 halves16(const uint8_t* p) { return vec::load_f16((const uint16_t*)p); }

struct Header {  // of a block of 256 columns, as floats
  __m512 d, min;
};

// How the codes of a group are unpacked. quad(w, j): the codes of four columns, unsigned. dpbusd multiplies unsigned by signed, so
// the 2 << kOffset codes carry an offset of 2^kOffset, which the initial value of each sum subtracts in formats without mins.
// kHalves: 2 if the two halves of a group have scales of their own. header, scale and min: of 16 rows.
struct CodesQ8_0 {
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int kOffset = 7, kHalves = 1;
  static constexpr bool kMins = false;
  static __m512i quad(const uint8_t* w, int j) { return _mm512_xor_si512(load_quad(w + 64 * j), _mm512_set1_epi8((char)0x80)); }
  static Header header(const uint8_t*) { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }
  static __m512 scale(const Header&, const uint8_t* scales, int) { return halves16(scales); }
  static __m512 min(const Header&, const uint8_t*) { return _mm512_setzero_ps(); }
};
struct CodesQ4_0 : CodesQ8_0 {
  static constexpr Format kFormat = Format::q4_0;
  static constexpr int kOffset = 3;
  static __m512i quad(const uint8_t* w, int j) { return nibble_quad(w, j); }
};
struct CodesQ4_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q4_k;
  static constexpr bool kMins = true;
  static Header header(const uint8_t* head) { return {halves16(head), halves16(head + 32)}; }
  static __m512 scale(const Header& h, const uint8_t* scales, int) { return _mm512_mul_ps(h.d, floats_u8(scales)); }
  static __m512 min(const Header& h, const uint8_t* scales) { return _mm512_mul_ps(h.min, floats_u8(scales + 16)); }
};
struct CodesQ5_K : CodesQ4_K {
  static constexpr Format kFormat = Format::q5_k;
  static constexpr int kOffset = 4;  // codes up to 31
  static __m512i quad(const uint8_t* w, int j) { return with_bits(nibble_quad(w, j), shifted(load_quad(w + 256), 4 - j), 16); }
};
struct CodesQ6_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q6_k;
  static constexpr int kOffset = 5, kHalves = 2;
  static __m512i quad(const uint8_t* w, int j) {
    return with_bits(nibble_quad(w, j), shifted(load_quad(w + 256 + 64 * (j / 4)), 4 - 2 * (j % 4)), 48);
  }
  static Header header(const uint8_t* head) { return {halves16(head), _mm512_setzero_ps()}; }
  static __m512 scale(const Header& h, const uint8_t* scales, int half) { return _mm512_mul_ps(h.d, floats_i8(scales + 16 * half)); }
};

// P panels x T tokens, all groups. A broadcast is used P times, a quad of weights T times. Stream: prefetch the panels, they come
// from memory.
template <class Codes>
struct Int8DotTile {
  static constexpr int kTokens = 6, kPanels = 2;  // 12 integer and 12 float sums, of 32 registers
  // One token is bound by memory, and a processor keeps more loads in flight over several streams.
  static constexpr int kStreams = 4;
  static constexpr PanelLayout kLayout = panel_layout(Codes::kFormat);

  template <int T, int P>
  struct Rows {
    TileRows<int8_t> q;
    TileRows<float> scale, shift;
    TileRows<int32_t> sum;
    Rows(const QuantRows& x, int64_t t, int64_t groups)
        : q(x.q + t * x.cols, x.cols),
          scale(x.scale + t * groups, groups),
          shift(x.shift + t * groups, groups),
          sum(Codes::kHalves == 2 ? x.halves + 2 * t * groups : x.sum + t * groups, Codes::kHalves * groups) {}
    void advance() { q.advance(kGroup), scale.advance(1), shift.advance(1), sum.advance(Codes::kHalves); }
  };

  // Half h of the columns of a group (all if kHalves is 1): exact integer sums, scaled and added to acc.
  template <int T, int P>
  static void half(__m512 (&acc)[P][T], const Rows<T, P>& x, const Header (&head)[P], const uint8_t* w, int64_t stride, int h) {
    constexpr int kQuads = 8 / Codes::kHalves;
    __m512i s[P][T];
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      __m512i start = _mm512_setzero_si512();
      if (!Codes::kMins) start = _mm512_sub_epi32(start, _mm512_slli_epi32(_mm512_set1_epi32(x.sum.row(i)[h]), Codes::kOffset));
      for (int k = 0; k < P; k++) s[k][i] = start;
    }
#pragma GCC unroll 8
    for (int j = h * kQuads; j < (h + 1) * kQuads; j++) {
      __m512i quad[P];
      for (int k = 0; k < P; k++) quad[k] = Codes::quad(w + k * stride, j);
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m512i codes = broadcast4(x.q.row(i) + 4 * j);
        for (int k = 0; k < P; k++) s[k][i] = _mm512_dpbusd_epi32(s[k][i], quad[k], codes);
      }
    }
    __m512 ws[P];
    for (int k = 0; k < P; k++) ws[k] = Codes::scale(head[k], w + k * stride + 64 * kLayout.vectors, h);
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      const __m512 xs = _mm512_set1_ps(*x.scale.row(i));
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[k][i]), _mm512_mul_ps(ws[k], xs), acc[k][i]);
    }
  }

  template <int T, int P>
  static void subtract_mins(__m512 (&acc)[P][T], const Rows<T, P>& x, const Header (&head)[P], const uint8_t* w, int64_t stride) {
    __m512 min[P];
    for (int k = 0; k < P; k++) min[k] = Codes::min(head[k], w + k * stride + 64 * kLayout.vectors);
#pragma GCC unroll 8
    for (int i = 0; i < T; i++)
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_fnmadd_ps(min[k], _mm512_set1_ps(*x.shift.row(i)), acc[k][i]);
  }

  template <int T, int P, bool Stream>
  static void run(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t) {
    const int64_t groups = a.xq.cols / kGroup, stride = layout_bytes(kLayout, groups);
    Rows<T, P> x(a.xq, t, groups);
    __m512 acc[P][T];
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) acc[k][i] = _mm512_setzero_ps();
    Header head[P];
    for (int64_t g = 0; g < groups; g++, w += kLayout.group(), x.advance()) {
      if (g % kSuper == 0) {
#pragma GCC unroll 4
        for (int k = 0; k < P; k++) head[k] = Codes::header(w + k * stride);
        w += kLayout.header;
      }
      for (int k = 0; Stream && k < P; k++)
        for (int64_t i = 0; i < kLayout.group(); i += 64) {
          const uint8_t* line = w + k * stride + i;
          __builtin_prefetch(line + (P == kStreams ? kNear : kPrefetch));
          if (P == kStreams) __builtin_prefetch(line + kFar, 0, 2);
        }
#pragma GCC unroll 2
      for (int h = 0; h < Codes::kHalves; h++) half(acc, x, head, w, stride, h);
      if (Codes::kMins) subtract_mins(acc, x, head, w, stride);
    }
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) store_rows(a, t + i, (p + k) * kPanel, acc[k][i]);
  }
};

inline void init_int8_avx512(KernelTable& t) {
  t.linear[(int)Format::q8_0] = linear_int8<Int8DotTile<CodesQ8_0>>;
  t.linear[(int)Format::q6_k] = linear_int8<Int8DotTile<CodesQ6_K>>;
  t.linear[(int)Format::q5_k] = linear_int8<Int8DotTile<CodesQ5_K>>;
  t.linear[(int)Format::q4_k] = linear_int8<Int8DotTile<CodesQ4_K>>;
  t.linear[(int)Format::q4_0] = linear_int8<Int8DotTile<CodesQ4_0>>;
}

}  // namespace
}  // namespace ivlite
