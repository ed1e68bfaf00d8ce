// How AVX2 opens panels (unpack.h), and the tiles that multiply them.
//
// Codes of up to 6 bits stay what they are, a byte each. Their products with signed bytes are added in 16 bits, as many as
// fit. Scales become whole numbers too, in units of the row's own for a fold, so that one instruction adds neighbours, widens
// and scales: of w = scale code - low, scale = unit m and low = unit n,
//   sum w x = unit x_scale (sum over parts of m (sum codes x) - n (sum x)),     exact in 32 bits.
// Codes of 8 bits would overflow 16 bits at once: they are opened to words of 14 bits that carry their scale, and meet
// activations of 12 bits.
#pragma once

namespace ivlite {
namespace {

constexpr int64_t kPrefetch = 4096;

// The largest magnitude of n values, which go to `values` with zeros behind them up to kBlockK.
inline float fold_peak(float* values, const float* x, int64_t n) {
  vec::V top = vec::zero();
  for (int64_t i = 0; i < kBlockK; i += vec::kLanes) {
    const int64_t left = n - i;
    const vec::V v = left > 0 ? vec::load_n(x + i, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    vec::store(values + i, v);
    top = vec::max(vec::abs(v), top);
  }
  return vec::max_lane(top);
}

// ------------------------------------------------------------------------------------------------ bytes

// Signed codes; their scale, and their sums: of 16 bits, of the four groups and then of the eight halves.
struct ByteRecord {
  static constexpr int64_t kCodes = kBlockK, kTail = 28, kBlockFolds = 8;  // a panel's opened folds stay in L1
  static void round(uint8_t* codes, uint8_t* tail, const float* x, int64_t n) {
    alignas(32) float values[kBlockK];
    const float peak = fold_peak(values, x, n), scale = peak / 127;
    const vec::V inverse = vec::set1(peak > 0 ? 127 / peak : 0);
    int16_t sums[kFoldGroups], halves[2 * kFoldGroups];
    for (int h = 0; h < 2 * kFoldGroups; h++) {
      const int64_t i = 16 * h;
      const vec::V low = vec::store_codes((int8_t*)codes + i, vec::mul(vec::load(values + i), inverse));
      const vec::V high = vec::store_codes((int8_t*)codes + i + 8, vec::mul(vec::load(values + i + 8), inverse));
      halves[h] = (int16_t)vec::sum(vec::add(low, high));
    }
    for (int g = 0; g < kFoldGroups; g++) sums[g] = (int16_t)(halves[2 * g] + halves[2 * g + 1]);
    memcpy(tail, &scale, 4), memcpy(tail + 4, sums, 8), memcpy(tail + 12, halves, 16);
  }
};

// An opened fold: its lines, of each part (a group or half of one) 16 multipliers m, twice in 32 bits, of each pair of parts
// 16 pairs of -n, and 16 float units.
template <class Lines>
struct ByteFold {
  static constexpr int kParts = kFoldGroups * Lines::kHalves, kPartLines = 8 / Lines::kHalves;
  static constexpr int64_t kScales = 64 * kFoldLines, kLows = kScales + 64 * kParts, kUnits = kLows + 32 * kParts, kBytes = kUnits + 64;
};

template <class Lines>
struct ByteTile {
  using Record = ByteRecord;
  using Fold = ByteFold<Lines>;
  static constexpr int kTokens = 4;

  // total += m times the products of a part's lines.
  template <int T>
  static void part(__m256i (&total)[T][2], const uint8_t* w, const uint8_t* scales, const TileRows<uint8_t>& x) {
    constexpr int kRun = Pairs::run(Lines::kMax) < Fold::kPartLines ? Pairs::run(Lines::kMax) : Fold::kPartLines;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < Fold::kPartLines; j0 += kRun) {
      __m256i s[T][2];
#pragma GCC unroll 8
      for (int j = j0; j < j0 + kRun; j++) {
        const __m256i w0 = load256(w + 64 * j), w1 = load256(w + 64 * j + 32);
#pragma GCC unroll 8
        for (int i = 0; i < T; i++) {
          const __m256i codes = broadcast4((const int8_t*)x.row(i) + 4 * j);
          const __m256i p0 = _mm256_maddubs_epi16(w0, codes), p1 = _mm256_maddubs_epi16(w1, codes);
          s[i][0] = j == j0 ? p0 : _mm256_add_epi16(s[i][0], p0);
          s[i][1] = j == j0 ? p1 : _mm256_add_epi16(s[i][1], p1);
          keep(s[i][0]);
          keep(s[i][1]);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++)
        for (int side = 0; side < 2; side++)
          total[i][side] = _mm256_add_epi32(total[i][side], _mm256_madd_epi16(s[i][side], load256(scales + 32 * side)));
    }
  }

  template <int T, int P>
  static void run(float* sums, bool first, const Folds& of, const uint8_t* records) {
    const int64_t folds = of.folds, record = record_bytes<Record>(folds);
    constexpr int64_t kSums = Lines::kHalves == 2 ? 12 : 4;
    TileRows<uint8_t> x(records, record), tails(records + folds * kBlockK, record);
    const uint8_t* w = of.w;
    for (int64_t f = 0; f < folds; f++, w += Fold::kBytes, tails.advance(Record::kTail), first = false) {
      __m256i total[T][2];
#pragma GCC unroll 8
      for (int i = 0; i < T; i++)
        for (int side = 0; side < 2; side++) {
          total[i][side] = _mm256_setzero_si256();
#pragma GCC unroll 4
          for (int q = 0; q < Fold::kParts / 2; q++)
            total[i][side] = _mm256_add_epi32(total[i][side], _mm256_madd_epi16(load256(w + Fold::kLows + 64 * q + 32 * side),
                                                                                broadcast4((const int8_t*)tails.row(i) + kSums + 4 * q)));
        }
#pragma GCC unroll 1
      for (int p = 0; p < Fold::kParts; p++, x.advance(4 * Fold::kPartLines)) {
        ask_ahead<Record, T, Fold::kParts>(records, record, f * Fold::kParts + p);
        part<T>(total, w + 64 * Fold::kPartLines * p, w + Fold::kScales + 64 * p, x);
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) add_fold(sums + kPanel * i, first, total[i], w + Fold::kUnits, tails.row(i));
    }
  }
};

template <class Lines>
struct OpenedBytes {
  using Record = ByteRecord;
  using Tile = ByteTile<Lines>;
  using Fold = ByteFold<Lines>;
  static constexpr Format kFormat = Lines::kFormat;
  static constexpr int64_t kPanels = 1, kBytes = Fold::kBytes;
  // Multipliers and lows that the sums of a fold have room for, in 16 and in 32 bits.
  static constexpr float kTopScale = (1 << 17) / (Lines::kMax + 1) - 1, kTopLow = 32736;

  // Scales and lows of 8 rows in units of their own.
  static void open_scales(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups, int side) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    constexpr float kZero = (float)(1 << Lines::kOffset);
    const uint8_t* head = panel + g0 / kSuper * kLayout.super();
    __m256 scale[Fold::kParts], low[Fold::kParts], top = vec::zero();
    for (int p = 0; p < Fold::kParts; p++) {
      const int64_t g = p / Lines::kHalves;
      scale[p] = low[p] = vec::zero();
      if (g >= groups) continue;
      const uint8_t* scales = panel + group_at(kLayout, g0 + g) + 64 * kLayout.vectors;
      scale[p] = Lines::scale(head, scales, side, p % Lines::kHalves);
      low[p] = Lines::kLows ? Lines::low(head, scales, side) : vec::mul(scale[p], vec::set1(kZero));
      top = vec::max(vec::mul(vec::abs(scale[p]), vec::set1(1 / kTopScale)), top);
      top = vec::max(vec::mul(vec::abs(low[p]), vec::set1(1 / kTopLow)), top);
    }
    const __m256 some = _mm256_cmp_ps(top, vec::zero(), _CMP_GT_OQ);
    const __m256 inverse = _mm256_and_ps(some, vec::div(vec::set1(1), top));
    __m256i minus[Fold::kParts];
    for (int p = 0; p < Fold::kParts; p++) {
      const __m256i m = _mm256_cvtps_epi32(vec::mul(scale[p], inverse)), low16 = _mm256_and_si256(m, _mm256_set1_epi32(0xffff));
      store256(to + Fold::kScales + 64 * p + 32 * side, _mm256_or_si256(low16, _mm256_slli_epi32(m, 16)));
      const __m256i n = Lines::kLows ? _mm256_cvtps_epi32(vec::mul(low[p], inverse)) : _mm256_slli_epi32(m, Lines::kOffset);
      minus[p] = _mm256_sub_epi32(_mm256_setzero_si256(), n);
    }
    for (int p = 0; p < Fold::kParts; p += 2) {
      const __m256i even = _mm256_and_si256(minus[p], _mm256_set1_epi32(0xffff));
      store256(to + Fold::kLows + 32 * p + 32 * side, _mm256_or_si256(even, _mm256_slli_epi32(minus[p + 1], 16)));
    }
    vec::store((float*)(to + Fold::kUnits) + 8 * side, top);
  }

  static void open(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    for (int side = 0; side < 2; side++) open_scales(to, panel, g0, groups, side);
    for (int64_t g = 0; g < kFoldGroups; g++) {
      const uint8_t* w = panel + group_at(kLayout, g0 + g);
      for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + kPrefetch + i);
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++)
        for (int side = 0; side < 2; side++)
          store256(to + 64 * (8 * g + j) + 32 * side, g < groups ? Lines::line(w + 32 * side, j) : _mm256_setzero_si256());
    }
  }
};

// ------------------------------------------------------------------------------------------------ words

constexpr float kTopWord = 8191, kTopActivation = 2047;  // 128 of their products fit 32 bits

// Signed words of 12 bits, and their scale.
struct WordRecord {
  static constexpr int64_t kCodes = 2 * kBlockK, kTail = 4, kBlockFolds = 8;
  static void round(uint8_t* codes, uint8_t* tail, const float* x, int64_t n) {
    alignas(32) float values[kBlockK];
    const float peak = fold_peak(values, x, n), scale = peak / kTopActivation;
    const vec::V inverse = vec::set1(peak > 0 ? kTopActivation / peak : 0);
    for (int64_t i = 0; i < kBlockK; i += vec::kLanes) {
      const __m256i v = _mm256_cvtps_epi32(vec::mul(vec::load(values + i), inverse));
      _mm_storeu_si128((__m128i*)(codes + 2 * i), _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
    }
    memcpy(tail, &scale, 4);
  }
};

// An opened fold: 64 lines, of two columns of 16 rows each, and 16 float units.
constexpr int64_t kWordLines = kBlockK / 2, kWordBytes = 64 * (kWordLines + 1);

struct WordTile {
  using Record = WordRecord;
  static constexpr int kTokens = 4, kStep = 8;

  template <int T, int P>
  static void run(float* sums, bool first, const Folds& of, const uint8_t* records) {
    const int64_t folds = of.folds, record = record_bytes<Record>(folds);
    TileRows<uint8_t> x(records, record), tails(records + folds * Record::kCodes, record);
    const uint8_t* w = of.w;
    for (int64_t f = 0; f < folds; f++, w += kWordBytes, x.advance(Record::kCodes), tails.advance(Record::kTail), first = false) {
      __m256i s[T][2];
      for (int i = 0; i < T; i++) s[i][0] = s[i][1] = _mm256_setzero_si256();
      for (int64_t j = 0; j < kWordLines; j += kStep) {
        ask_ahead<Record, T, kWordLines / kStep>(records, record, (f * kWordLines + j) / kStep);
#pragma GCC unroll 8
        for (int64_t at = j; at < j + kStep; at++) multiply_words<T>(s, w + 64 * at, x, 4 * at);
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) add_fold(sums + kPanel * i, first, s[i], w + 64 * kWordLines, tails.row(i));
    }
  }
};

struct OpenedWords {
  using Record = WordRecord;
  using Tile = WordTile;
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int64_t kPanels = 1, kBytes = kWordBytes;

  static __m256i word(__m256i code, __m256 scale) { return _mm256_cvtps_epi32(vec::mul(_mm256_cvtepi32_ps(code), scale)); }
  static __m256i pair(__m256i a, __m256i b) {
    return _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(b, 16));
  }

  static void open(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    for (int side = 0; side < 2; side++) {
      __m256 scale[kFoldGroups], top = vec::zero();
      for (int64_t g = 0; g < groups; g++) {
        scale[g] = LinesQ8_0::scale(nullptr, panel + group_at(kLayout, g0 + g) + 64 * kLayout.vectors, side, 0);
        top = vec::max(vec::abs(scale[g]), top);
      }
      const __m256 unit = vec::mul(top, vec::set1(128 / kTopWord)), some = _mm256_cmp_ps(unit, vec::zero(), _CMP_GT_OQ);
      const __m256 inverse = _mm256_and_ps(some, vec::div(vec::set1(1), unit));
      for (int64_t g = 0; g < kFoldGroups; g++) {
        const uint8_t* w = panel + group_at(kLayout, g0 + g) + 32 * side;
        uint8_t* line = to + 64 * 16 * g + 32 * side;
        for (int j = 0; j < 8; j++, line += 128) {
          const __m256i x = g < groups ? load256(w + 64 * j) : _mm256_setzero_si256();
          const __m256 s = g < groups ? vec::mul(scale[g], inverse) : vec::zero();
          const __m256i a = word(_mm256_srai_epi32(_mm256_slli_epi32(x, 24), 24), s);
          const __m256i b = word(_mm256_srai_epi32(_mm256_slli_epi32(x, 16), 24), s);
          const __m256i c = word(_mm256_srai_epi32(_mm256_slli_epi32(x, 8), 24), s), d = word(_mm256_srai_epi32(x, 24), s);
          store256(line, pair(a, b));
          store256(line + 64, pair(c, d));
        }
      }
      vec::store((float*)(to + 64 * kWordLines) + 8 * side, unit);
    }
  }
};

inline void init_opened256(KernelTable& t) {
  set_opened<OpenedBytes<LinesQ6_K>>(t);
  set_opened<OpenedBytes<LinesQ5_K>>(t);
  set_opened<OpenedBytes<LinesQ4_K>>(t);
  set_opened<OpenedBytes<LinesQ4_0>>(t);
  set_opened<OpenedWords>(t);
  t.gemm_from = 32, t.gemm_panels = 2;
}

}  // namespace
}  // namespace ivlite
