// The integer linear layers of 256-bit vectors, over a Product: how an instruction set multiplies unsigned by signed codes. A
// panel is read as two sides of 8 rows.
//   Product::kSignedQ8       8-bit weight codes stay signed; otherwise they are offset by 128
//   Product::run(max)        how many quads of codes up to max fit one partial sum
//   Product::add<kSigned>(sum, w, x)   Product::start()   Product::widen(sum): to eight int32
#pragma once
#include "kernels/cpu/linear/int8.h"
#include "kernels/cpu/vec/avx2.h"

namespace ivlite {
namespace {

inline __m256i load256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store256(void* p, __m256i x) { _mm256_storeu_si256((__m256i*)p, x); }
inline __m256i broadcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Keeps the compiler from reassociating integer sums: it would spill products for lack of registers.
inline void keep(__m256i& x) { asm("" : "+x"(x)); }

// maddubs: pairs of products in int16. A pair is at most 2 x 127 x the largest code, and as many pairs are added as fit.
// It wants one unsigned operand: for signed weights it takes |w|, and the activation gets w's sign.
struct Maddubs {
  static constexpr bool kSignedQ8 = true;
  static constexpr int run(int max) { return max == 255 ? 1 : 32767 / (2 * 127 * max); }
  static __m256i start() { return _mm256_setzero_si256(); }
  template <bool kSigned>
  static __m256i add(__m256i sum, __m256i w, __m256i x) {
    return _mm256_add_epi16(sum, kSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)) : _mm256_maddubs_epi16(w, x));
  }
  static __m256i widen(__m256i sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};

inline __m256i nibble_quad(const uint8_t* w, int j) {
  const __m256i both = load256(w + 64 * (j / 2));
  return _mm256_and_si256(j % 2 ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}
// Bits `mask` of x shifted left by n, or right by -n.
inline __m256i bits_quad(const uint8_t* p, int n, int mask) {
  const __m256i x = load256(p);
  return _mm256_and_si256(n >= 0 ? _mm256_slli_epi16(x, n) : _mm256_srli_epi16(x, -n), _mm256_set1_epi8((char)mask));
}
inline __m256 floats_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline __m256 floats_i8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline __m256 halves8(const uint8_t* p) { return vec::load_f16((const uint16_t*)p); }

// As in int8_avx512.h, of one side; kMax is the largest code, and w, header and scales point at the rows of that side.
struct CodesQ8_0 {
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int kOffset = 7, kHalves = 1, kMax = 255;
  static constexpr bool kMins = false;
  static __m256i quad(const uint8_t* w, int j) { return load256(w + 64 * j); }  // signed: the tile handles the offset
  static __m256 scale(const uint8_t*, const uint8_t* scales, int side, int) { return halves8(scales + 16 * side); }
  static __m256 min(const uint8_t*, const uint8_t*, int) { return _mm256_setzero_ps(); }
};
struct CodesQ4_0 : CodesQ8_0 {
  static constexpr Format kFormat = Format::q4_0;
  static constexpr int kOffset = 3, kMax = 15;
  static __m256i quad(const uint8_t* w, int j) { return nibble_quad(w, j); }
};
struct CodesQ4_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q4_k;
  static constexpr bool kMins = true;
  static __m256 scale(const uint8_t* header, const uint8_t* scales, int side, int) {
    return _mm256_mul_ps(halves8(header + 16 * side), floats_u8(scales + 8 * side));
  }
  static __m256 min(const uint8_t* header, const uint8_t* scales, int side) {
    return _mm256_mul_ps(halves8(header + 32 + 16 * side), floats_u8(scales + 16 + 8 * side));
  }
};
struct CodesQ5_K : CodesQ4_K {
  static constexpr Format kFormat = Format::q5_k;
  static constexpr int kMax = 31;
  static __m256i quad(const uint8_t* w, int j) { return _mm256_or_si256(nibble_quad(w, j), bits_quad(w + 256, 4 - j, 16)); }
};
struct CodesQ6_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q6_k;
  static constexpr int kOffset = 5, kHalves = 2, kMax = 63;
  static __m256i quad(const uint8_t* w, int j) {
    return _mm256_or_si256(nibble_quad(w, j), bits_quad(w + 256 + 64 * (j / 4), 4 - 2 * (j % 4), 48));
  }
  static __m256 scale(const uint8_t* header, const uint8_t* scales, int side, int half) {
    return _mm256_mul_ps(halves8(header + 16 * side), floats_i8(scales + 16 * half + 8 * side));
  }
};

template <class Codes, class Product>
struct Int8DotTile {
  static constexpr int kTokens = 4, kPanels = 1;  // 8 sums, weight registers, broadcast, product, constants: all 16 registers
  // One token is bound by memory, and a processor keeps more loads in flight over several streams; the hardware prefetcher misses
  // some, which are prefetched kAhead bytes ahead.
  static constexpr int kStreams = 4, kAhead = Codes::kFormat == Format::q8_0 ? 0 : 768;
  static constexpr PanelLayout kLayout = panel_layout(Codes::kFormat);
  static constexpr bool kSigned = Product::kSignedQ8 && Codes::kFormat == Format::q8_0;
  static constexpr bool kOffsets = !Codes::kMins && !kSigned;

  struct Token {  // of one token and group
    const int8_t* q;
    const float *scale, *shift;
    const int32_t* sum;
  };

  static __m256i quad(const uint8_t* w, int j) {
    const __m256i codes = Codes::quad(w, j);
    return Codes::kFormat == Format::q8_0 && !kSigned ? _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)) : codes;
  }

  // Exact sums of half h of a group, without offsets.
  template <int T>
  static void sums(__m256i (&s)[T][2], const uint8_t* w, const int8_t* q, int64_t ldq, int h) {
    constexpr int kQuads = 8 / Codes::kHalves, kRun = Product::run(Codes::kMax) < kQuads ? Product::run(Codes::kMax) : kQuads;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < kQuads; j0 += kRun) {
      __m256i part[T][2];
#pragma GCC unroll 8
      for (int j = h * kQuads + j0; j < h * kQuads + j0 + kRun; j++) {
        const __m256i w0 = quad(w, j), w1 = quad(w + 32, j);
#pragma GCC unroll 8
        for (int i = 0; i < T; i++) {
          const __m256i x = broadcast4(q + i * ldq + 4 * j);
          const bool first = j == h * kQuads + j0;
          part[i][0] = Product::template add<kSigned>(first ? Product::start() : part[i][0], w0, x);
          part[i][1] = Product::template add<kSigned>(first ? Product::start() : part[i][1], w1, x);
          keep(part[i][0]);
          keep(part[i][1]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++)
        for (int side = 0; side < 2; side++) {
          const __m256i wide = Product::widen(part[i][side]);
          s[i][side] = j0 ? _mm256_add_epi32(s[i][side], wide) : wide;
        }
    }
  }

  // One group x T tokens, added to acc (T, 16).
  template <int T>
  static void group(float* acc, const uint8_t* head, const uint8_t* w, const Token& x, int64_t ldq) {
    const uint8_t* scales = w + 64 * kLayout.vectors;
    const int64_t lds = ldq / kGroup;
#pragma GCC unroll 2
    for (int h = 0; h < Codes::kHalves; h++) {
      __m256i s[T][2];
      sums(s, w, x.q, ldq, h);
      const __m256 ws[2] = {Codes::scale(head, scales, 0, h), Codes::scale(head, scales, 1, h)};
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m256i offset = _mm256_slli_epi32(_mm256_set1_epi32(x.sum[i * lds * Codes::kHalves + h]), Codes::kOffset);
        const __m256 xs = _mm256_set1_ps(x.scale[i * lds]);
        for (int side = 0; side < 2; side++) {
          float* to = acc + 16 * i + 8 * side;
          const __m256 sum = _mm256_cvtepi32_ps(kOffsets ? _mm256_sub_epi32(s[i][side], offset) : s[i][side]);
          _mm256_store_ps(to, _mm256_fmadd_ps(sum, _mm256_mul_ps(ws[side], xs), _mm256_load_ps(to)));
        }
      }
    }
    for (int side = 0; Codes::kMins && side < 2; side++) {
      const __m256 min = Codes::min(head, scales, side);
      for (int i = 0; i < T; i++) {
        float* to = acc + 16 * i + 8 * side;
        _mm256_store_ps(to, _mm256_fnmadd_ps(min, _mm256_set1_ps(x.shift[i * lds]), _mm256_load_ps(to)));
      }
    }
  }

  template <int T, int P, bool Stream>
  static void run(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t) {
    const int64_t groups = a.xq.cols / kGroup, at = t * groups;
    const QuantRows& q = a.xq;
    Token x{q.q + t * q.cols, q.scale + at, q.shift + at, Codes::kHalves == 2 ? q.halves + 2 * at : q.sum + at};
    const int64_t stride = layout_bytes(kLayout, groups);
    alignas(32) float acc[P][T * kPanel] = {};
    const uint8_t* head = w;
    for (int64_t g = 0; g < groups; g++, w += kLayout.group()) {
      if (kLayout.header && g % kSuper == 0) head = w, w += kLayout.header;
      for (int k = 0; k < P; k++) {
        for (int64_t i = 0; Stream && kAhead > 0 && i < kLayout.group(); i += 64) __builtin_prefetch(w + k * stride + kAhead + i);
        group<T>(acc[k], head + k * stride, w + k * stride, x, q.cols);
      }
      x.q += kGroup, x.scale++, x.shift++, x.sum += Codes::kHalves;
    }
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++)
        for (int h = 0; h < 2; h++) store_rows(a, t + i, (p + k) * kPanel + 8 * h, _mm256_load_ps(acc[k] + 16 * i + 8 * h));
  }
};

// sums (2 x 8 floats) += int_sums x units (2 x 8) x a token's scale, or = if `first`.
inline void add_block(float* sums, bool first, const __m256i (&int_sums)[2], const uint8_t* units, const uint8_t* scale) {
  const __m256 xs = _mm256_broadcast_ss((const float*)scale);
  for (int side = 0; side < 2; side++) {
    const __m256 unit = vec::mul(vec::load((const float*)units + 8 * side), xs);
    const __m256 before = first ? vec::zero() : vec::load(sums + 8 * side);
    vec::store(sums + 8 * side, vec::fma(_mm256_cvtepi32_ps(int_sums[side]), unit, before));
  }
}

// s += 16 pairs of int16 x the pair at byte `at` of T rows.
template <int T>
inline void multiply_int16(__m256i (&s)[T][2], const uint8_t* quad, const TileRows<uint8_t>& x, int64_t at) {
  const __m256i w0 = load256(quad), w1 = load256(quad + 32);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m256i x2 = broadcast4((const int8_t*)x.row(i) + at);
    s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(w0, x2));
    s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(w1, x2));
    keep(s[i][0]);
    keep(s[i][1]);
  }
}

template <class Product>
inline void init_int8_avx2(KernelTable& t) {
  t.linear[(int)Format::q8_0] = linear_int8<Int8DotTile<CodesQ8_0, Product>>;
  t.linear[(int)Format::q6_k] = linear_int8<Int8DotTile<CodesQ6_K, Product>>;
  t.linear[(int)Format::q5_k] = linear_int8<Int8DotTile<CodesQ5_K, Product>>;
  t.linear[(int)Format::q4_k] = linear_int8<Int8DotTile<CodesQ4_K, Product>>;
  t.linear[(int)Format::q4_0] = linear_int8<Int8DotTile<CodesQ4_0, Product>>;
}

}  // namespace
}  // namespace ivlite
