// The integer linear layers of 256-bit vectors, over a Product: how an instruction set multiplies unsigned by signed
// codes. A panel is read in two sides of 8 rows.
//   Product::kSignedQ8       8-bit weight codes stay signed; otherwise they are offset by 128
//   Product::run(max)        lines of codes up to max that one partial sum holds
//   Product::add<kSigned>(sum, w, x)   Product::start()   Product::widen(sum): to eight int32
#pragma once

namespace ivlite {
namespace {

inline __m256i load256(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline void store256(void* p, __m256i x) { _mm256_storeu_si256((__m256i*)p, x); }
inline __m256i broadcast4(const int8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}

// Keeps the compiler from regrouping a sum of integers: it would hold eight products in registers it does not have.
inline void keep(__m256i& x) { asm("" : "+x"(x)); }

inline __m256i nibble_line(const uint8_t* w, int j) {
  const __m256i both = load256(w + 64 * (j / 2));
  return _mm256_and_si256(j % 2 ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}
// Bits `mask` of x shifted left by n, or right by -n.
inline __m256i bits_line(const uint8_t* p, int n, int mask) {
  const __m256i x = load256(p);
  return _mm256_and_si256(n >= 0 ? _mm256_slli_epi16(x, n) : _mm256_srli_epi16(x, -n), _mm256_set1_epi8((char)mask));
}
inline __m256 floats_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline __m256 floats_i8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline __m256 halves8(const uint8_t* p) { return vec::load_f16((const uint16_t*)p); }

// As in int8_avx512.h, for one side; kMax is the largest code, and w, header and scales point at the side's rows.
struct LinesQ8_0 {
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int kOffset = 7, kHalves = 1, kMax = 255;
  static constexpr bool kLows = false;
  static __m256i line(const uint8_t* w, int j) { return load256(w + 64 * j); }  // signed: the tile sees to the offset
  static __m256 scale(const uint8_t*, const uint8_t* scales, int side, int) { return halves8(scales + 16 * side); }
  static __m256 low(const uint8_t*, const uint8_t*, int) { return _mm256_setzero_ps(); }
};
struct LinesQ4_0 : LinesQ8_0 {
  static constexpr Format kFormat = Format::q4_0;
  static constexpr int kOffset = 3, kMax = 15;
  static __m256i line(const uint8_t* w, int j) { return nibble_line(w, j); }
};
struct LinesQ4_K : LinesQ4_0 {
  static constexpr Format kFormat = Format::q4_k;
  static constexpr bool kLows = true;
  static __m256 scale(const uint8_t* header, const uint8_t* scales, int side, int) {
    return _mm256_mul_ps(halves8(header + 16 * side), floats_u8(scales + 8 * side));
  }
  static __m256 low(const uint8_t* header, const uint8_t* scales, int side) {
    return _mm256_mul_ps(halves8(header + 32 + 16 * side), floats_u8(scales + 16 + 8 * side));
  }
};
struct LinesQ5_K : LinesQ4_K {
  static constexpr Format kFormat = Format::q5_k;
  static constexpr int kMax = 31;
  static __m256i line(const uint8_t* w, int j) { return _mm256_or_si256(nibble_line(w, j), bits_line(w + 256, 4 - j, 16)); }
};
struct LinesQ6_K : LinesQ4_0 {
  static constexpr Format kFormat = Format::q6_k;
  static constexpr int kOffset = 5, kHalves = 2, kMax = 63;
  static __m256i line(const uint8_t* w, int j) {
    return _mm256_or_si256(nibble_line(w, j), bits_line(w + 256 + 64 * (j / 4), 4 - 2 * (j % 4), 48));
  }
  static __m256 scale(const uint8_t* header, const uint8_t* scales, int side, int half) {
    return _mm256_mul_ps(halves8(header + 16 * side), floats_i8(scales + 16 * half + 8 * side));
  }
};

template <class Lines, class Product>
struct IntTile {
  static constexpr int kTokens = 4, kPanels = 1;  // 8 sums, weight registers, broadcast, product, constants: all 16 registers
  // One token waits for memory, and a processor asks for more of it when several streams are read in turn; what it does not
  // see coming by itself is asked for that much ahead.
  static constexpr int kStreams = 4, kAhead = Lines::kFormat == Format::q8_0 ? 0 : 768;
  static constexpr PanelLayout kLayout = panel_layout(Lines::kFormat);
  static constexpr bool kSigned = Product::kSignedQ8 && Lines::kFormat == Format::q8_0;
  static constexpr bool kOffsets = !Lines::kLows && !kSigned;

  struct Token {  // of one token and group
    const int8_t* q;
    const float *scale, *shift;
    const int32_t* sum;
  };

  static __m256i line(const uint8_t* w, int j) {
    const __m256i codes = Lines::line(w, j);
    return Lines::kFormat == Format::q8_0 && !kSigned ? _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)) : codes;
  }

  // Exact sums of half h of a group, without offsets.
  template <int T>
  static void sums(__m256i (&s)[T][2], const uint8_t* w, const int8_t* q, int64_t ldq, int h) {
    constexpr int kLines = 8 / Lines::kHalves, kRun = Product::run(Lines::kMax) < kLines ? Product::run(Lines::kMax) : kLines;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < kLines; j0 += kRun) {
      __m256i part[T][2];
#pragma GCC unroll 8
      for (int j = h * kLines + j0; j < h * kLines + j0 + kRun; j++) {
        const __m256i w0 = line(w, j), w1 = line(w + 32, j);
#pragma GCC unroll 8
        for (int i = 0; i < T; i++) {
          const __m256i x = broadcast4(q + i * ldq + 4 * j);
          const bool first = j == h * kLines + j0;
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
    for (int h = 0; h < Lines::kHalves; h++) {
      __m256i s[T][2];
      sums(s, w, x.q, ldq, h);
      const __m256 ws[2] = {Lines::scale(head, scales, 0, h), Lines::scale(head, scales, 1, h)};
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m256i offset = _mm256_slli_epi32(_mm256_set1_epi32(x.sum[i * lds * Lines::kHalves + h]), Lines::kOffset);
        const __m256 xs = _mm256_set1_ps(x.scale[i * lds]);
        for (int side = 0; side < 2; side++) {
          float* to = acc + 16 * i + 8 * side;
          const __m256 sum = _mm256_cvtepi32_ps(kOffsets ? _mm256_sub_epi32(s[i][side], offset) : s[i][side]);
          _mm256_store_ps(to, _mm256_fmadd_ps(sum, _mm256_mul_ps(ws[side], xs), _mm256_load_ps(to)));
        }
      }
    }
    for (int side = 0; Lines::kLows && side < 2; side++) {
      const __m256 low = Lines::low(head, scales, side);
      for (int i = 0; i < T; i++) {
        float* to = acc + 16 * i + 8 * side;
        _mm256_store_ps(to, _mm256_fnmadd_ps(low, _mm256_set1_ps(x.shift[i * lds]), _mm256_load_ps(to)));
      }
    }
  }

  template <int T, int P, bool Stream>
  static void run(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t) {
    const int64_t groups = a.xq.cols / kGroup, at = t * groups;
    const QuantRows& q = a.xq;
    Token x{q.q + t * q.cols, q.scale + at, q.shift + at, Lines::kHalves == 2 ? q.halves + 2 * at : q.sum + at};
    const int64_t stride = layout_bytes(kLayout, groups);
    alignas(32) float acc[P][T * kPanel] = {};
    const uint8_t* head = w;
    for (int64_t g = 0; g < groups; g++, w += kLayout.group()) {
      if (kLayout.header && g % kSuper == 0) head = w, w += kLayout.header;
      for (int k = 0; k < P; k++) {
        for (int64_t i = 0; Stream && kAhead > 0 && i < kLayout.group(); i += 64) __builtin_prefetch(w + k * stride + kAhead + i);
        group<T>(acc[k], head + k * stride, w + k * stride, x, q.cols);
      }
      x.q += kGroup, x.scale++, x.shift++, x.sum += Lines::kHalves;
    }
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++)
        for (int h = 0; h < 2; h++) store_rows(a, t + i, (p + k) * kPanel + 8 * h, _mm256_load_ps(acc[k] + 16 * i + 8 * h));
  }
};

// sums (2 x 8 floats) += total x units (2 x 8) x a token's scale, or = where `first`.
inline void add_fold(float* sums, bool first, const __m256i (&total)[2], const uint8_t* units, const uint8_t* scale) {
  const __m256 xs = _mm256_broadcast_ss((const float*)scale);
  for (int side = 0; side < 2; side++) {
    const __m256 unit = vec::mul(vec::load((const float*)units + 8 * side), xs);
    const __m256 before = first ? vec::zero() : vec::load(sums + 8 * side);
    vec::store(sums + 8 * side, vec::fma(_mm256_cvtepi32_ps(total[side]), unit, before));
  }
}

// s += a line of 16 pairs of words x the pair at byte `at` of T rows.
template <int T>
inline void multiply_words(__m256i (&s)[T][2], const uint8_t* line, const TileRows<uint8_t>& x, int64_t at) {
  const __m256i w0 = load256(line), w1 = load256(line + 32);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m256i words = broadcast4((const int8_t*)x.row(i) + at);
    s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(w0, words));
    s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(w1, words));
    keep(s[i][0]);
    keep(s[i][1]);
  }
}

template <class Product>
inline void init_int256(KernelTable& t) {
  t.linear[(int)Format::q8_0] = linear_int<IntTile<LinesQ8_0, Product>>;
  t.linear[(int)Format::q6_k] = linear_int<IntTile<LinesQ6_K, Product>>;
  t.linear[(int)Format::q5_k] = linear_int<IntTile<LinesQ5_K, Product>>;
  t.linear[(int)Format::q4_k] = linear_int<IntTile<LinesQ4_K, Product>>;
  t.linear[(int)Format::q4_0] = linear_int<IntTile<LinesQ4_0, Product>>;
}

}  // namespace
}  // namespace ivlite
