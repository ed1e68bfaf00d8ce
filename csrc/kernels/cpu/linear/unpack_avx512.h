// How AVX-512 VNNI unpacks panels (unpack.h): to int8 with one scale per row and k-block, for the tiles of kblock.h.
#pragma once
#include "kernels/cpu/linear/kblock.h"

namespace ivlite {
namespace {

// Requantizes half a group to its row's scale: code' = (code m + c) >> 8, m and c in 1/256 of the new code.
struct Requantize {
  __m512i m, c;  // of each row, twice in 32 bits
};

inline __m512i twice16(__m512i x) {
  x = _mm512_and_si512(x, _mm512_set1_epi32(0xffff));
  return _mm512_or_si512(x, _mm512_slli_epi32(x, 16));
}

// The largest weight that half a group can represent, of each row.
template <class Codes>
inline __m512 max_weight(__m512 scale, __m512 min) {
  constexpr int kMaxCode = (2 << Codes::kOffset) - 1;
  if (!Codes::kMins) return vec::mul(vec::abs(scale), vec::set1((float)(1 << Codes::kOffset)));
  return vec::absmax(vec::abs(min), _mm512_fmsub_ps(scale, vec::set1((float)kMaxCode), min));
}

template <class Codes>
inline Requantize requantize(__m512 scale, __m512 min, __m512 inverse) {
  const __m512 finer = vec::mul(inverse, vec::set1(256));
  const __m512i m = _mm512_cvtps_epi32(vec::mul(scale, finer));
  const __m512i zero = Codes::kMins ? _mm512_cvtps_epi32(vec::mul(min, finer)) : _mm512_slli_epi32(m, Codes::kOffset);
  return {twice16(m), twice16(_mm512_sub_epi32(_mm512_set1_epi32(128), zero))};
}

inline __m512i requantized(__m512i codes, const Requantize& o) {
  const __m512i even = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(255)), o.m), o.c);
  const __m512i odd = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(codes, 8), o.m), o.c);
  return _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 8), odd, _mm512_set1_epi16((short)0xff00), 0xf8);  // a | (b & c)
}

// Unpacks `groups` groups of a panel from g0 on, at most 4, as one k-block, padded with zeros.
template <class Codes>
inline void unpack_block(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
  constexpr PanelLayout kLayout = panel_layout(Codes::kFormat);
  constexpr int kHalves = Codes::kHalves, kQuads = 8 / kHalves;
  const Header head = Codes::header(panel + g0 / kSuper * kLayout.super());
  __m512 scale[kBlockGroups][kHalves], min[kBlockGroups], largest = vec::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
    for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + 4 * kLayout.super() + i);
    min[g] = Codes::min(head, w + 64 * kLayout.vectors);
    for (int h = 0; h < kHalves; h++) {
      scale[g][h] = Codes::scale(head, w + 64 * kLayout.vectors, h);
      largest = vec::absmax(largest, max_weight<Codes>(scale[g][h], min[g]));
    }
  }
  const __mmask16 nonzero = _mm512_cmp_ps_mask(largest, vec::zero(), _CMP_GT_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(nonzero, vec::set1(127), largest);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; h++) {
      const Requantize o = requantize<Codes>(scale[g][h], min[g], inverse);
#pragma GCC unroll 8
      for (int j = h * kQuads; j < (h + 1) * kQuads; j++) {
        const __m512i quad = requantized(Codes::quad(w, j), o);
        _mm512_storeu_si512(to + 64 * (8 * g + j), quad);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), quad);
      }
    }
  }
  for (int64_t i = 8 * groups; i < kBlockQuads; i++) _mm512_storeu_si512(to + 64 * i, _mm512_setzero_si512());
  vec::store((float*)(to + 64 * kBlockQuads), vec::mul(largest, vec::set1(1.0f / 127)));
  _mm512_storeu_si512(to + 64 * (kBlockQuads + 1), _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
}

// 8-bit codes are not requantized: an unpacked k-block keeps the scales of its four groups. After its aligned quads follow
// 4 x 16 float scales and 4 x 16 int32 initial sums.
constexpr int64_t kGroupsBytes = 64 * (kBlockQuads + 2 * kBlockGroups);

inline void unpack_groups(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
  constexpr PanelLayout kLayout = panel_layout(Format::q8_0);
  uint8_t *scales = to + 64 * kBlockQuads, *starts = scales + 64 * kBlockGroups;
  for (int64_t g = 0; g < kBlockGroups; g++, to += 512, scales += 64, starts += 64) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
    __m512i sum = _mm512_setzero_si512();
    for (int j = 0; j < 8; j++) {
      __builtin_prefetch(w + kPrefetch + 64 * j);
      const __m512i quad = g < groups ? load_quad(w + 64 * j) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + 64 * j, quad);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), quad);
    }
    vec::store((float*)scales, g < groups ? CodesQ8_0::scale(CodesQ8_0::header(nullptr), w + 512, 0) : vec::zero());
    _mm512_storeu_si512(starts, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
  }
}

// VnniTile for such k-blocks. The float sums of four groups take as many registers as the integer sums of one, so the sums of
// earlier k-blocks stay in memory.
struct VnniGroupsTile {
  using ActBlock = ActBlockU8;
  static constexpr int kTokens = 6;
  template <int T, int P>
  static void run(float* sums, bool first, const KBlocks& of, const uint8_t* acts) {
    const int64_t stride = of.stride, act = act_bytes<ActBlockU8>(of.blocks);
    const uint8_t* w = of.w;
    TileRows<uint8_t> x(acts, act), scales(acts + of.blocks * kBlockK, act);
    __mmask16 before = first ? 0 : 0xffff;
    for (int64_t kb = 0; kb < of.blocks; kb++, w += kGroupsBytes, x.advance(kBlockK), scales.advance(4), before = 0xffff) {
      __m512 block[P][T];
#pragma GCC unroll 4
      for (int g = 0; g < (int)kBlockGroups; g++) {
        prefetch_acts<ActBlock, T, 4>(acts, act, 4 * kb + g);
        __m512i s[P][T];
        for (int k = 0; k < P; k++)
          for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kBlockQuads + kBlockGroups + g));
#pragma GCC unroll 8
        for (int j = 8 * g; j < 8 * g + 8; j++) multiply_quad(s, w, stride, x, j);
        for (int k = 0; k < P; k++) {
          const __m512 ws = vec::load((const float*)(w + k * stride + 64 * (kBlockQuads + g)));
          for (int i = 0; i < T; i++) {
            const __m512 product = _mm512_cvtepi32_ps(s[k][i]);
            block[k][i] = g ? _mm512_fmadd_ps(product, ws, block[k][i]) : vec::mul(product, ws);
          }
        }
      }
      for (int i = 0; i < T; i++) {
        const __m512 xs = vec::set1(*(const float*)scales.row(i));
        for (int k = 0; k < P; k++) {
          float* at = sums + (i * P + k) * 16;
          vec::store(at, _mm512_fmadd_ps(block[k][i], xs, _mm512_maskz_loadu_ps(before, at)));
        }
      }
    }
  }
};

struct UnpackedGroups {
  using ActBlock = ActBlockU8;
  using Tile = VnniGroupsTile;
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int64_t kPanels = 2, kBytes = kGroupsBytes;
  static void unpack(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) { unpack_groups(to, panel, g0, groups); }
};
template <class Codes>
struct UnpackedBlocks {
  using ActBlock = ActBlockU8;
  using Tile = VnniTile<true>;
  static constexpr Format kFormat = Codes::kFormat;
  static constexpr int64_t kPanels = 2, kBytes = kUnpackedBytes;
  static void unpack(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) { unpack_block<Codes>(to, panel, g0, groups); }
};

template <class Unpacked>
inline void set_unpacked_u8(KernelTable& t) {
  set_unpacked<Unpacked>(t);
  t.codes_gemm[(int)Unpacked::kFormat] = take_act_codes<ActBlockU8>;
}

inline void init_unpack_avx512(KernelTable& t) {
  set_unpacked_u8<UnpackedBlocks<CodesQ6_K>>(t);
  set_unpacked_u8<UnpackedBlocks<CodesQ5_K>>(t);
  set_unpacked_u8<UnpackedBlocks<CodesQ4_K>>(t);
  set_unpacked_u8<UnpackedBlocks<CodesQ4_0>>(t);
  set_unpacked_u8<UnpackedGroups>(t);
  t.gemm_from = 48, t.gemm_panels = 2;
}

}  // namespace
}  // namespace ivlite
