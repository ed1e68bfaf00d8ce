// Products of unpacked int8 panels and int8 activations by AVX-512 VNNI. Both have one scale per k-block of 128 columns: integer
// sums are converted to float four times less often than with a scale per 32, where that is a quarter of all the work.
#pragma once
#include "kernels/cpu/linear/int8_avx512.h"
#include "kernels/cpu/linear/unpack.h"
#include "kernels/quant_scale.h"

namespace ivlite {
namespace {

constexpr int64_t kUnpackedBytes = 64 * (kBlockQuads + 2);  // quads as in q8_0's panels, 16 float scales, 16 int32 initial sums

// Quantizes n values as one k-block of int8 codes, padded with zeros; returns the scale.
inline float quantize_block(int8_t* to, const float* x, int64_t n) {
  vec::V v[kBlockK / vec::kLanes], largest = vec::zero();
  for (int i = 0; i < kBlockK / vec::kLanes; i++) {
    const int64_t left = n - i * vec::kLanes;
    v[i] = left > 0 ? vec::load_n(x + i * vec::kLanes, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    largest = vec::absmax(largest, v[i]);
  }
  const QuantScale quant = quant_scale(vec::absmax_lane(largest), 127);
  const vec::V inverse = vec::set1(quant.inverse);
  for (int i = 0; i < kBlockK / vec::kLanes; i++) vec::store_int8(to + i * vec::kLanes, vec::mul(v[i], inverse));
  return quant.scale;
}

// The same with unsigned codes: code + 128.
inline float quantize_block_u8(uint8_t* to, const float* x, int64_t n) {
  const float scale = quantize_block((int8_t*)to, x, n);
  for (int i = 0; i < kBlockK; i += 64)
    _mm512_storeu_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(to + i), _mm512_set1_epi8((char)0x80)));
  return scale;
}

// A k-block of activations as unsigned codes (code + 128) and a scale.
struct ActBlockU8 {
  static constexpr int64_t kCodes = kBlockK, kScales = 4, kTogether = 48;  // two panels' unpacked blocks stay in L2 for all tokens
  static void quantize(uint8_t* codes, uint8_t* scales, const float* x, int64_t n) {
    const float scale = quantize_block_u8(codes, x, n);
    memcpy(scales, &scale, 4);
  }
  // n codes with a scale, as they are.
  static void take(uint8_t* codes, uint8_t* scales, const int8_t* given, int64_t n, float scale) {
    for (int i = 0; i < kBlockK; i += 64) {
      const __mmask64 real = n - i >= 64 ? ~(__mmask64)0 : n > i ? ((__mmask64)1 << (n - i)) - 1 : 0;
      _mm512_storeu_si512(codes + i, _mm512_xor_si512(_mm512_maskz_loadu_epi8(real, given + i), _mm512_set1_epi8((char)0x80)));
    }
    memcpy(scales, &scale, 4);
  }
};

// s += quad j of P unpacked panels x the same four columns of T tokens.
template <int T, int P>
inline void multiply_quad(__m512i (&s)[P][T], const uint8_t* w, int64_t stride, const TileRows<uint8_t>& x, int64_t j) {
  __m512i quad[P];
  for (int k = 0; k < P; k++) quad[k] = load_quad(w + k * stride + 64 * j);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m512i codes = broadcast4((const int8_t*)x.row(i) + 4 * j);
    for (int k = 0; k < P; k++) s[k][i] = _mm512_dpbusd_epi32(s[k][i], codes, quad[k]);
  }
}

// run: sums (T, P, 16) += P unpacked panels x T tokens. first: sums start at zero. kWhole: the last block has all its quads too.
template <bool kWhole>
struct VnniTile {
  using ActBlock = ActBlockU8;
  static constexpr int kTokens = 6;
  template <int T, int P>
  static void run(float* sums, bool first, const KBlocks& of, const uint8_t* acts) {
    const int64_t blocks = of.blocks, stride = of.stride;
    const uint8_t* w = of.w;
    const int64_t act = act_bytes<ActBlockU8>(blocks);
    TileRows<uint8_t> x(acts, act), scales(acts + blocks * kBlockK, act);
    __m512 acc[P][T];
    const __mmask16 before = first ? 0 : 0xffff;  // a conditional would make GCC initialize the registers through memory
    for (int i = 0; i < T; i++)
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_maskz_loadu_ps(before, sums + (i * P + k) * 16);
    for (int64_t kb = 0; kb < blocks; kb++, w += kUnpackedBytes, x.advance(kBlockK), scales.advance(4)) {
      __m512i s[P][T];
      for (int k = 0; k < P; k++)
        for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kBlockQuads + 1));
      if constexpr (!kWhole) {
        const int64_t quads = kb + 1 < blocks ? kBlockQuads : of.quads;
        for (int64_t j = 0; j < quads; j++) multiply_quad(s, w, stride, x, j);
      } else {
#pragma GCC unroll 32
        for (int j = 0; j < (int)kBlockQuads; j++) {
          if (j % (kBlockQuads / 4) == 0) prefetch_acts<ActBlock, T, 4>(acts, act, 4 * kb + j / (kBlockQuads / 4));
          multiply_quad(s, w, stride, x, j);
        }
      }
      __m512 ws[P];
      for (int k = 0; k < P; k++) ws[k] = vec::load((const float*)(w + k * stride + 64 * kBlockQuads));
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m512 xs = vec::set1(*(const float*)scales.row(i));
        for (int k = 0; k < P; k++) acc[k][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[k][i]), vec::mul(ws[k], xs), acc[k][i]);
      }
    }
    for (int i = 0; i < T; i++)
      for (int k = 0; k < P; k++) vec::store(sums + (i * P + k) * 16, acc[k][i]);
  }
};

}  // namespace
}  // namespace ivlite
