// Products of panels opened to signed bytes and of rows rounded to bytes, by 512-bit VNNI. Both have a scale per fold of 128
// columns: sums become floats four times as rarely as with a scale per 32, where that is a quarter of all the work.
#pragma once

namespace ivlite {
namespace {

constexpr int64_t kFoldLines = kFold / 4, kFoldGroups = kFold / kGroup;
constexpr int64_t kFoldBytes = 64 * (kFoldLines + 2);  // lines as in q8_0's panels, 16 float scales, 16 int32 start values
constexpr int64_t kBlockFolds = 48;                    // two panels' opened folds stay in L2 while all tokens pass

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

// See record_bytes.
void round_records(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t folds = folds_of(cols), last = folds_of(p.c1);
  for (int64_t f = p.c0 / kFold, f0 = f / kBlockFolds * kBlockFolds; f < last; f0 += kBlockFolds) {
    const int64_t n = folds - f0 < kBlockFolds ? folds - f0 : kBlockFolds, begin = f, end = f0 + n < last ? f0 + n : last;
    uint8_t* records = (uint8_t*)out + tokens * record_bytes(f0);
    for (int64_t t = p.t0; t < p.t1; t++)
      for (f = begin; f < end; f++) {
        const int64_t first = f * kFold;
        uint8_t* record = records + t * record_bytes(n);
        const float scale = round_fold(record + (f - f0) * kFold, p.x + t * p.ldx + first - p.c0, p.c1 - first);
        memcpy(record + n * kFold + 4 * (f - f0), &scale, 4);
      }
  }
}

// What P opened panels are multiplied by: `folds` folds, of the last of which `lines` lines are not zero.
struct Folds {
  const uint8_t* w;
  int64_t stride;  // bytes from panel to panel
  int64_t folds, lines;
};

// Asks for a quarter of what of the next tile's records lies beside fold f of this one's: to the processor's own prefetcher
// a tile's rows are streams that end where it has just found them.
template <int T>
inline void ask_ahead(const uint8_t* records, int64_t record, int64_t f, int quarter) {
  constexpr int kLinesEach = (T * (kFold + 4) + 255) / 256;
  const uint8_t* next = records + T * record + 64 * kLinesEach * (4 * f + quarter);
  for (int i = 0; i < kLinesEach; i++) __builtin_prefetch(next + 64 * i);
}

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
  template <int T, int P>
  static void run(float* sums, bool first, const Folds& of, const uint8_t* records) {
    const int64_t folds = of.folds, stride = of.stride;
    const uint8_t* w = of.w;
    const int64_t record = record_bytes(folds);
    TileRows<uint8_t> x(records, record), scales(records + folds * kFold, record);
    __m512 acc[P][T];
    const __mmask16 before = first ? 0 : 0xffff;  // a choice of registers would make GCC fill them through memory
    for (int i = 0; i < T; i++)
      for (int k = 0; k < P; k++) acc[k][i] = _mm512_maskz_loadu_ps(before, sums + (i * P + k) * 16);
    for (int64_t f = 0; f < folds; f++, w += kFoldBytes, x.advance(kFold), scales.advance(4)) {
      __m512i s[P][T];
      for (int k = 0; k < P; k++)
        for (int i = 0; i < T; i++) s[k][i] = _mm512_loadu_si512(w + k * stride + 64 * (kFoldLines + 1));
      if constexpr (!kWhole) {
        const int64_t lines = f + 1 < folds ? kFoldLines : of.lines;
        for (int64_t j = 0; j < lines; j++) multiply_line(s, w, stride, x, j);
      } else {
#pragma GCC unroll 32
        for (int j = 0; j < (int)kFoldLines; j++) {
          if (j % (kFoldLines / 4) == 0) ask_ahead<T>(records, record, f, j / (kFoldLines / 4));
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

// Any number of tokens.
template <class Tile, int P, int T = 6>
inline void fold_tokens(float* sums, bool first, const Folds& of, const uint8_t* records, int64_t tokens) {
  if constexpr (T == 6)
    for (; tokens >= T; tokens -= T, sums += T * P * 16, records += T * record_bytes(of.folds))
      Tile::template run<T, P>(sums, first, of, records);
  if constexpr (T > 1) {
    if (tokens == T - 1) return Tile::template run<T - 1, P>(sums, first, of, records);
    fold_tokens<Tile, P, T - 1>(sums, first, of, records, tokens);
  }
}

}  // namespace
}  // namespace ivlite
