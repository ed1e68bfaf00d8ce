// Linear layers of many tokens by 512-bit VNNI. Panels are opened once for all tokens to signed bytes under one scale per
// row and fold of 128 columns, and activations are rounded to bytes in the same folds: sums then become floats four times
// as rarely as with a scale per 32 columns, where that is a quarter of all the work.
#pragma once

namespace ivlite {
namespace {

constexpr int64_t kFold = 128, kFoldLines = kFold / 4, kFoldGroups = kFold / kGroup;
constexpr int64_t kFoldBytes = 64 * (kFoldLines + 2);  // lines as in q8_0's panels, 16 float scales, 16 int32 start values
constexpr int64_t kBlockFolds = 4;                     // two panels' opened folds stay in L1 while all tokens pass
constexpr int64_t kOpenedTokens = 1024;                // that one opening serves: their sums stay in L2

// A token's record of n folds: its codes + 128, then a scale per fold. Records of a block of folds lie together.
constexpr int64_t record_bytes(int64_t folds) { return folds * (kFold + 4); }
inline int64_t folds_of(int64_t cols) { return (cols + kFold - 1) / kFold; }

// n values as one fold of codes + 128, zeros behind them; returns the scale.
inline float round_fold(uint8_t* to, const float* x, int64_t n) {
  vec::V v[kFold / vec::kLanes], top = vec::zero();
  for (int i = 0; i < kFold / vec::kLanes; i++) {
    const int64_t left = n - i * vec::kLanes;
    v[i] = left > 0 ? vec::load_n(x + i * vec::kLanes, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    top = vec::max(vec::abs(v[i]), top);
  }
  const float peak = vec::max_lane(top);
  const vec::V inverse = vec::set1(peak > 0 ? 127 / peak : 0);
  for (int i = 0; i < kFold / vec::kLanes; i++, to += vec::kLanes) {
    vec::store_codes((int8_t*)to, vec::mul(v[i], inverse));
    _mm_storeu_si128((__m128i*)to, _mm_xor_si128(_mm_loadu_si128((const __m128i*)to), _mm_set1_epi8((char)0x80)));
  }
  return peak / 127;
}

// Rows [16 t0, 16 t1) of x; see record_bytes.
void round_records(uint16_t* out, const float* x, int64_t ldx, int64_t tokens, int64_t cols, int64_t t0, int64_t t1) {
  const int64_t folds = folds_of(cols), end = 16 * t1 < tokens ? 16 * t1 : tokens;
  for (int64_t f0 = 0; f0 < folds; f0 += kBlockFolds) {
    const int64_t n = folds - f0 < kBlockFolds ? folds - f0 : kBlockFolds;
    uint8_t* records = (uint8_t*)out + tokens * record_bytes(f0);
    for (int64_t t = 16 * t0; t < end; t++)
      for (int64_t f = 0; f < n; f++) {
        const int64_t first = (f0 + f) * kFold;
        uint8_t* record = records + t * record_bytes(n);
        const float scale = round_fold(record + f * kFold, x + t * ldx + first, cols - first);
        memcpy(record + n * kFold + 4 * f, &scale, 4);
      }
  }
}

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
  const uint8_t* head = panel + g0 / kSuper * kLayout.super();
  __m512 scale[kFoldGroups][kHalves], low[kFoldGroups], top = vec::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* w = panel + group_at(kLayout, g0 + g);
    for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + 4 * kLayout.super() + i);
    low[g] = Lines::low(head, w + 64 * kLayout.lines);
    for (int h = 0; h < kHalves; h++) {
      scale[g][h] = Lines::scale(head, w + 64 * kLayout.lines, h);
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

// What P opened panels are multiplied by: `folds` folds, of the last of which `lines` lines are not zero.
struct Folds {
  const uint8_t* w;
  int64_t stride;  // bytes from panel to panel
  int64_t folds, lines;
};

// sums (T, P, 16) += P opened panels x T records. first: sums begin at zero.
template <int T, int P>
inline void fold_tile(float* sums, bool first, const Folds& of, const uint8_t* records) {
  const int64_t folds = of.folds, stride = of.stride;
  const uint8_t* w = of.w;
  const int64_t record = record_bytes(folds);
  TileRows<uint8_t> x(records, record), scales(records + folds * kFold, record);
  __m512 acc[P][T];
  for (int i = 0; i < T; i++)
    for (int k = 0; k < P; k++) acc[k][i] = first ? vec::zero() : vec::load(sums + (i * P + k) * 16);
  for (int64_t f = 0; f < folds; f++, w += kFoldBytes, x.advance(kFold), scales.advance(4)) {
    __m512i s[P][T];
    for (int k = 0; k < P; k++)
      for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kFoldLines + 1));
    const int64_t lines = f + 1 < folds ? kFoldLines : of.lines;
#pragma GCC unroll 4
    for (int64_t j = 0; j < lines; j++) {
      __m512i line[P];
      for (int k = 0; k < P; k++) line[k] = load_line(w + k * stride + 64 * j);
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) {
        const __m512i codes = broadcast4((const int8_t*)x.row(i) + 4 * j);
        for (int k = 0; k < P; k++) s[k][i] = _mm512_dpbusd_epi32(s[k][i], codes, line[k]);
      }
    }
    __m512 ws[P];
    for (int k = 0; k < P; k++) ws[k] = vec::load((const float*)(w + k * stride + 64 * kFoldLines));
#pragma GCC unroll 8
    for (int i = 0; i < T; i++) {
      const __m512 xs = vec::set1(*(const float*)scales.row(i));
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[k][i]), vec::mul(ws[k], xs), acc[k][i]);
    }
  }
  for (int i = 0; i < T; i++)
    for (int k = 0; k < P; k++) vec::store(sums + (i * P + k) * 16, acc[k][i]);
}

// Any number of tokens.
template <int P, int T = 6>
inline void fold_tokens(float* sums, bool first, const Folds& of, const uint8_t* records, int64_t tokens) {
  if constexpr (T == 6)
    for (; tokens >= T; tokens -= T, sums += T * P * 16, records += T * record_bytes(of.folds)) fold_tile<T, P>(sums, first, of, records);
  if constexpr (T > 1) {
    if (tokens == T - 1) return fold_tile<T - 1, P>(sums, first, of, records);
    fold_tokens<P, T - 1>(sums, first, of, records, tokens);
  }
}

// P panels from p on x tokens [t, t + tokens).
template <class Lines, int P>
inline void opened_panels(const LinearArgs& a, int64_t p, int64_t t, int64_t tokens) {
  const int64_t groups = a.xq.cols / kGroup, folds = folds_of(a.xq.cols), stride = kBlockFolds * kFoldBytes;
  const int64_t panel = layout_bytes(panel_layout(Lines::kFormat), groups);
  uint8_t* opened = (uint8_t*)a.scratch;
  float* sums = (float*)(opened + 2 * stride);
  for (int64_t f0 = 0; f0 < folds; f0 += kBlockFolds) {
    const int64_t n = folds - f0 < kBlockFolds ? folds - f0 : kBlockFolds;
    for (int k = 0; k < P; k++)
      for (int64_t f = f0; f < f0 + n; f++) {
        const int64_t g = f * kFoldGroups, left = groups - g < kFoldGroups ? groups - g : kFoldGroups;
        open_fold<Lines>(opened + k * stride + (f - f0) * kFoldBytes, (const uint8_t*)a.panels + (p + k) * panel, g, left);
      }
    const uint8_t* records = (const uint8_t*)a.wide + a.tokens * record_bytes(f0) + t * record_bytes(n);
    fold_tokens<P>(sums, f0 == 0, {opened, stride, n, kFoldLines}, records, tokens);
  }
  for (int64_t i = 0; i < tokens; i++)
    for (int k = 0; k < P; k++) store_rows(a, t + i, (p + k) * kPanel, vec::load(sums + (i * P + k) * 16));
}

template <class Lines>
void linear_opened(const LinearArgs& a, int64_t p0, int64_t p1) {
  for (int64_t t = 0; t < a.tokens; t += kOpenedTokens) {
    const int64_t tokens = a.tokens - t < kOpenedTokens ? a.tokens - t : kOpenedTokens;
    int64_t p = p0;
    for (; p + 2 <= p1; p += 2) opened_panels<Lines, 2>(a, p, t, tokens);
    if (p < p1) opened_panels<Lines, 1>(a, p, t, tokens);
  }
}

inline void init_opened(KernelTable& t) {
  t.linear_wide[(int)Format::q6_k] = linear_opened<LinesQ6_K>;
  t.linear_wide[(int)Format::q5_k] = linear_opened<LinesQ5_K>;
  t.linear_wide[(int)Format::q4_k] = linear_opened<LinesQ4_K>;
  t.linear_wide[(int)Format::q4_0] = linear_opened<LinesQ4_0>;
  t.round_tiles = round_records;
  t.wide_from = 48;
}

}  // namespace
}  // namespace ivlite
