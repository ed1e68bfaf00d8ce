// Products of panels opened to signed bytes and of rows rounded to bytes, by 512-bit VNNI. Both have a scale per fold of 128
// columns: sums become floats four times as rarely as with a scale per 32, where that is a quarter of all the work.
#pragma once

namespace ivlite {
namespace {

constexpr int64_t kFoldBytes = 64 * (kFoldLines + 2);  // lines as in q8_0's panels, 16 float scales, 16 int32 start values

// n values as one fold of codes, zeros behind them; returns the scale.
inline float round_fold(int8_t* to, const float* x, int64_t n) {
  vec::V v[kBlockK / vec::kLanes], top = vec::zero();
  for (int i = 0; i < kBlockK / vec::kLanes; i++) {
    const int64_t left = n - i * vec::kLanes;
    v[i] = left > 0 ? vec::load_n(x + i * vec::kLanes, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    top = vec::max(vec::abs(v[i]), top);
  }
  const float peak = vec::max_lane(top);
  const vec::V inverse = vec::set1(peak > 0 ? 127 / peak : 0);
  for (int i = 0; i < kBlockK / vec::kLanes; i++) vec::store_codes(to + i * vec::kLanes, vec::mul(v[i], inverse));
  return peak / 127;
}

// The same, codes + 128.
inline float round_offset_fold(uint8_t* to, const float* x, int64_t n) {
  const float scale = round_fold((int8_t*)to, x, n);
  for (int i = 0; i < kBlockK; i += 64)
    _mm512_storeu_si512(to + i, _mm512_xor_si512(_mm512_loadu_si512(to + i), _mm512_set1_epi8((char)0x80)));
  return scale;
}

// Codes + 128, and a scale.
struct OffsetRecord {
  static constexpr int64_t kCodes = kBlockK, kTail = 4, kBlockFolds = 48;  // two panels' opened folds stay in L2 while all tokens pass
  static void round(uint8_t* codes, uint8_t* tail, const float* x, int64_t n) {
    const float scale = round_offset_fold(codes, x, n);
    memcpy(tail, &scale, 4);
  }
};

// s += line j of P opened panels x the four bytes that meet it in T records.
template <int T, int P>
inline void multiply_line(__m512i (&s)[P][T], const uint8_t* w, int64_t stride, const TileRows<uint8_t>& x, int64_t j) {
  __m512i line[P];
  for (int k = 0; k < P; k++) line[k] = load_line(w + k * stride + 64 * j);
#pragma GCC unroll 8
  for (int i = 0; i < T; i++) {
    const __m512i codes = broadcast4((const int8_t*)x.row(i) + 4 * j);
    for (int k = 0; k < P; k++) s[k][i] = _mm512_dpbusd_epi32(s[k][i], codes, line[k]);
  }
}

// run: sums (T, P, 16) += P opened panels x T records. first: sums begin at zero. kWhole: the last fold, too, has all its lines.
template <bool kWhole>
struct FoldTile {
  using Record = OffsetRecord;
  static constexpr int kTokens = 6;
  template <int T, int P>
  static void run(float* sums, bool first, const Folds& of, const uint8_t* records) {
    const int64_t folds = of.folds, stride = of.stride;
    const uint8_t* w = of.w;
    const int64_t record = record_bytes<OffsetRecord>(folds);
    TileRows<uint8_t> x(records, record), scales(records + folds * kBlockK, record);
    __m512 acc[P][T];
    const __mmask16 before = first ? 0 : 0xffff;  // a choice of registers would make GCC fill them through memory
    for (int i = 0; i < T; i++)
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_maskz_loadu_ps(before, sums + (i * P + k) * 16);
    for (int64_t f = 0; f < folds; f++, w += kFoldBytes, x.advance(kBlockK), scales.advance(4)) {
      __m512i s[P][T];
      for (int k = 0; k < P; k++)
        for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kFoldLines + 1));
      if constexpr (!kWhole) {
        const int64_t lines = f + 1 < folds ? kFoldLines : of.lines;
        for (int64_t j = 0; j < lines; j++) multiply_line(s, w, stride, x, j);
      } else {
#pragma GCC unroll 32
        for (int j = 0; j < (int)kFoldLines; j++) {
          if (j % (kFoldLines / 4) == 0) ask_ahead<Record, T, 4>(records, record, 4 * f + j / (kFoldLines / 4));
          multiply_line(s, w, stride, x, j);
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
};

}  // namespace
}  // namespace ivlite
