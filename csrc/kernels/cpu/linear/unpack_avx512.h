// How 512-bit VNNI opens panels (unpack.h): to signed bytes, for the tiles of kblock.h.
#pragma once

namespace ivlite {
namespace {

// Opening one group half under a row's scale: byte = (code x m + c) >> 8, both in 1/256 of the new code.
struct Opening {
  __m512i m, c;  // of each row, twice in its 32 bits
};

inline __m512i twice16(__m512i x) {
  x = _mm512_and_si512(x, _mm512_set1_epi32(0xffff));
  return _mm512_or_si512(x, _mm512_slli_epi32(x, 16));
}

// Which weights a group half can stand for, as the largest magnitude of each row.
template <class Lines>
inline __m512 reach(__m512 scale, __m512 low) {
  constexpr int kTop = (2 << Lines::kOffset) - 1;
  if (!Lines::kLows) return vec::mul(vec::abs(scale), vec::set1((float)(1 << Lines::kOffset)));
  return vec::max(vec::abs(low), vec::abs(_mm512_fmsub_ps(scale, vec::set1((float)kTop), low)));
}

template <class Lines>
inline Opening opening(__m512 scale, __m512 low, __m512 inverse) {
  const __m512 finer = vec::mul(inverse, vec::set1(256));
  const __m512i m = _mm512_cvtps_epi32(vec::mul(scale, finer));
  const __m512i zero = Lines::kLows ? _mm512_cvtps_epi32(vec::mul(low, finer)) : _mm512_slli_epi32(m, Lines::kOffset);
  return {twice16(m), twice16(_mm512_sub_epi32(_mm512_set1_epi32(128), zero))};
}

inline __m512i opened_line(__m512i codes, const Opening& o) {
  const __m512i even = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(255)), o.m), o.c);
  const __m512i odd = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_srli_epi16(codes, 8), o.m), o.c);
  return _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 8), odd, _mm512_set1_epi16((short)0xff00), 0xf8);  // a | (b & c)
}

// `groups` groups of a panel from g0 on, 4 at most, as one fold; what is missing is zero.
template <class Lines>
inline void open_fold(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
  constexpr PanelLayout kLayout = panel_layout(Lines::kFormat);
  constexpr int kHalves = Lines::kHalves, kLines = 8 / kHalves;
  const Header head = Lines::header(panel + g0 / kSuper * kLayout.super());
  __m512 scale[kFoldGroups][kHalves], low[kFoldGroups], top = vec::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
    for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + 4 * kLayout.super() + i);
    low[g] = Lines::low(head, w + 64 * kLayout.vectors);
    for (int h = 0; h < kHalves; h++) {
      scale[g][h] = Lines::scale(head, w + 64 * kLayout.vectors, h);
      top = vec::max(reach<Lines>(scale[g][h], low[g]), top);
    }
  }
  const __mmask16 some = _mm512_cmp_ps_mask(top, vec::zero(), _CMP_GT_OQ);
  const __m512 inverse = _mm512_maskz_div_ps(some, vec::set1(127), top);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; h++) {
      const Opening o = opening<Lines>(scale[g][h], low[g], inverse);
#pragma GCC unroll 8
      for (int j = h * kLines; j < (h + 1) * kLines; j++) {
        const __m512i line = opened_line(Lines::line(w, j), o);
        _mm512_storeu_si512(to + 64 * (8 * g + j), line);
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), line);
      }
    }
  }
  for (int64_t i = 8 * groups; i < kFoldLines; i++) _mm512_storeu_si512(to + 64 * i, _mm512_setzero_si512());
  vec::store((float*)(to + 64 * kFoldLines), vec::mul(top, vec::set1(1.0f / 127)));
  _mm512_storeu_si512(to + 64 * (kFoldLines + 1), _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
}

// Codes of 8 bits are not rounded again: an opened fold keeps their four groups' scales. Its lines, aligned, are followed by
// 4 x 16 float scales and 4 x 16 int32 start values.
constexpr int64_t kGroupsBytes = 64 * (kFoldLines + 2 * kFoldGroups);

inline void open_groups(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
  constexpr PanelLayout kLayout = panel_layout(Format::q8_0);
  uint8_t *scales = to + 64 * kFoldLines, *starts = scales + 64 * kFoldGroups;
  for (int64_t g = 0; g < kFoldGroups; g++, to += 512, scales += 64, starts += 64) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
    __m512i sum = _mm512_setzero_si512();
    for (int j = 0; j < 8; j++) {
      __builtin_prefetch(w + kPrefetch + 64 * j);
      const __m512i line = g < groups ? load_line(w + 64 * j) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + 64 * j, line);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), line);
    }
    vec::store((float*)scales, g < groups ? LinesQ8_0::scale(LinesQ8_0::header(nullptr), w + 512, 0) : vec::zero());
    _mm512_storeu_si512(starts, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
  }
}

// FoldTile for such folds. Four groups' sums in float take as many registers as one group's in integers, so what came before
// stays in memory.
struct GroupsTile {
  using Record = OffsetRecord;
  static constexpr int kTokens = 6;
  template <int T, int P>
  static void run(float* sums, bool first, const Folds& of, const uint8_t* records) {
    const int64_t stride = of.stride, record = record_bytes<OffsetRecord>(of.folds);
    const uint8_t* w = of.w;
    TileRows<uint8_t> x(records, record), scales(records + of.folds * kBlockK, record);
    __mmask16 before = first ? 0 : 0xffff;
    for (int64_t f = 0; f < of.folds; f++, w += kGroupsBytes, x.advance(kBlockK), scales.advance(4), before = 0xffff) {
      __m512 fold[P][T];
#pragma GCC unroll 4
      for (int g = 0; g < (int)kFoldGroups; g++) {
        ask_ahead<Record, T, 4>(records, record, 4 * f + g);
        __m512i s[P][T];
        for (int k = 0; k < P; k++)
          for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kFoldLines + kFoldGroups + g));
#pragma GCC unroll 8
        for (int j = 8 * g; j < 8 * g + 8; j++) multiply_line(s, w, stride, x, j);
        for (int k = 0; k < P; k++) {
          const __m512 ws = vec::load((const float*)(w + k * stride + 64 * (kFoldLines + g)));
          for (int i = 0; i < T; i++) {
            const __m512 product = _mm512_cvtepi32_ps(s[k][i]);
            fold[k][i] = g ? _mm512_fmadd_ps(product, ws, fold[k][i]) : vec::mul(product, ws);
          }
        }
      }
      for (int i = 0; i < T; i++) {
        const __m512 xs = vec::set1(*(const float*)scales.row(i));
        for (int k = 0; k < P; k++) {
          float* at = sums + (i * P + k) * 16;
          vec::store(at, _mm512_fmadd_ps(fold[k][i], xs, _mm512_maskz_loadu_ps(before, at)));
        }
      }
    }
  }
};

struct OpenedGroups {
  using Record = OffsetRecord;
  using Tile = GroupsTile;
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int64_t kPanels = 2, kBytes = kGroupsBytes;
  static void open(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) { open_groups(to, panel, g0, groups); }
};
template <class Lines>
struct OpenedFolds {
  using Record = OffsetRecord;
  using Tile = FoldTile<true>;
  static constexpr Format kFormat = Lines::kFormat;
  static constexpr int64_t kPanels = 2, kBytes = kFoldBytes;
  static void open(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) { open_fold<Lines>(to, panel, g0, groups); }
};

inline void init_opened512(KernelTable& t) {
  set_opened<OpenedFolds<LinesQ6_K>>(t);
  set_opened<OpenedFolds<LinesQ5_K>>(t);
  set_opened<OpenedFolds<LinesQ4_K>>(t);
  set_opened<OpenedFolds<LinesQ4_0>>(t);
  set_opened<OpenedGroups>(t);
  t.gemm_from = 48, t.gemm_panels = 2;
}

}  // namespace
}  // namespace ivlite
