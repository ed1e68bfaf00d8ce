// How AVX2 unpacks panels (unpack.h), and the tiles that multiply them.
//
// Codes of up to 6 bits become int8. Their products with int8 activations are summed in int16, as many as fit. Scales become
// integers too, in a unit of each row and k-block, so that one instruction adds neighbours, widens and scales: with
// w = scale code - min, scale = unit m and min = unit n,
//   sum w x = unit x_scale (sum over parts of m (sum codes x) - n (sum x)),     exact in int32.
// Codes of 8 bits would overflow int16 at once: they become 14-bit weights in int16, scale included, and meet 12-bit activations.
#pragma once
#include "kernels/cpu/linear/int8_avx2.h"
#include "kernels/cpu/linear/unpack.h"
#include "kernels/quant_scale.h"

namespace ivlite {
namespace {

constexpr int64_t kPrefetch = 4096;

// Loads n values, padded with zeros to kBlockK; returns their absmax.
inline float load_block(float* values, const float* x, int64_t n) {
  vec::V largest = vec::zero();
  for (int64_t i = 0; i < kBlockK; i += vec::kLanes) {
    const int64_t left = n - i;
    const vec::V v = left > 0 ? vec::load_n(x + i, left < vec::kLanes ? (int)left : vec::kLanes) : vec::zero();
    vec::store(values + i, v);
    largest = vec::absmax(largest, v);
  }
  return vec::absmax_lane(largest);
}

// ------------------------------------------------------------------------------------------------ int8

// Signed codes; their scale, and int16 sums of the four groups and of the eight halves.
struct ActBlockS8 {
  static constexpr int64_t kCodes = kBlockK, kScales = 28, kTogether = 8;  // a panel's unpacked blocks stay in L1
  static void quantize(uint8_t* codes, uint8_t* scales, const float* x, int64_t n) {
    alignas(32) float values[kBlockK];
    const QuantScale quant = quant_scale(load_block(values, x, n), 127);
    const vec::V inverse = vec::set1(quant.inverse);
    int16_t sums[kBlockGroups], halves[2 * kBlockGroups];
    for (int h = 0; h < 2 * kBlockGroups; h++) {
      const int64_t i = 16 * h;
      const vec::V low = vec::store_int8((int8_t*)codes + i, vec::mul(vec::load(values + i), inverse));
      const vec::V high = vec::store_int8((int8_t*)codes + i + 8, vec::mul(vec::load(values + i + 8), inverse));
      halves[h] = (int16_t)vec::sum(vec::add(low, high));
    }
    for (int g = 0; g < kBlockGroups; g++) sums[g] = (int16_t)(halves[2 * g] + halves[2 * g + 1]);
    memcpy(scales, &quant.scale, 4), memcpy(scales + 4, sums, 8), memcpy(scales + 12, halves, 16);
  }
  // n codes with a scale, as they are.
  static void take(uint8_t* codes, uint8_t* scales, const int8_t* given, int64_t n, float scale) {
    memset(codes, 0, kBlockK), memcpy(codes, given, (size_t)n);
    int16_t sums[kBlockGroups] = {}, halves[2 * kBlockGroups] = {};
    for (int i = 0; i < kBlockK; i++) halves[i / 16] = (int16_t)(halves[i / 16] + ((const int8_t*)codes)[i]);
    for (int h = 0; h < 2 * kBlockGroups; h++) sums[h / 2] = (int16_t)(sums[h / 2] + halves[h]);
    memcpy(scales, &scale, 4), memcpy(scales + 4, sums, 8), memcpy(scales + 12, halves, 16);
  }
};

// An unpacked k-block: its quads; for each part (a group or half of one) 16 multipliers m, each twice in 32 bits; for each pair of
// parts 16 pairs of -n; 16 float units.
template <class Codes>
struct Int8Block {
  static constexpr int kParts = kBlockGroups * Codes::kHalves, kPartQuads = 8 / Codes::kHalves;
  static constexpr int64_t kScales = 64 * kBlockQuads, kMins = kScales + 64 * kParts, kUnits = kMins + 32 * kParts, kBytes = kUnits + 64;
};

template <class Codes>
struct Int8Tile {
  using ActBlock = ActBlockS8;
  using Layout = Int8Block<Codes>;
  static constexpr int kTokens = 4;

  // int_sums += m x the products of a part's quads.
  template <int T>
  static void part(__m256i (&int_sums)[T][2], const uint8_t* w, const uint8_t* scales, const TileRows<uint8_t>& x) {
    constexpr int kRun = Maddubs::run(Codes::kMax) < Layout::kPartQuads ? Maddubs::run(Codes::kMax) : Layout::kPartQuads;
#pragma GCC unroll 8
    for (int j0 = 0; j0 < Layout::kPartQuads; j0 += kRun) {
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
          int_sums[i][side] = _mm256_add_epi32(int_sums[i][side], _mm256_madd_epi16(s[i][side], load256(scales + 32 * side)));
    }
  }

  template <int T, int P>
  static void run(float* sums, bool first, const KBlocks& of, const uint8_t* acts) {
    const int64_t blocks = of.blocks, act = act_bytes<ActBlock>(blocks);
    constexpr int64_t kSums = Codes::kHalves == 2 ? 12 : 4;
    TileRows<uint8_t> x(acts, act), tails(acts + blocks * kBlockK, act);
    const uint8_t* w = of.w;
    for (int64_t kb = 0; kb < blocks; kb++, w += Layout::kBytes, tails.advance(ActBlock::kScales), first = false) {
      __m256i int_sums[T][2];
#pragma GCC unroll 8
      for (int i = 0; i < T; i++)
        for (int side = 0; side < 2; side++) {
          int_sums[i][side] = _mm256_setzero_si256();
#pragma GCC unroll 4
          for (int q = 0; q < Layout::kParts / 2; q++)
            int_sums[i][side] =
                _mm256_add_epi32(int_sums[i][side], _mm256_madd_epi16(load256(w + Layout::kMins + 64 * q + 32 * side),
                                                                      broadcast4((const int8_t*)tails.row(i) + kSums + 4 * q)));
        }
#pragma GCC unroll 1
      for (int p = 0; p < Layout::kParts; p++, x.advance(4 * Layout::kPartQuads)) {
        prefetch_acts<ActBlock, T, Layout::kParts>(acts, act, kb * Layout::kParts + p);
        part<T>(int_sums, w + 64 * Layout::kPartQuads * p, w + Layout::kScales + 64 * p, x);
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) add_block(sums + kPanel * i, first, int_sums[i], w + Layout::kUnits, tails.row(i));
    }
  }
};

template <class Codes>
struct UnpackedInt8 {
  using ActBlock = ActBlockS8;
  using Tile = Int8Tile<Codes>;
  using Layout = Int8Block<Codes>;
  static constexpr Format kFormat = Codes::kFormat;
  static constexpr int64_t kPanels = 1, kBytes = Layout::kBytes;
  // The largest multipliers and mins for which the sums of a block fit int16 and int32.
  static constexpr float kMaxScale = (1 << 17) / (Codes::kMax + 1) - 1, kMaxMin = 32736;

  // Scales and mins of 8 rows as multiples of a unit per row.
  static void unpack_scales(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups, int side) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    constexpr float kZero = (float)(1 << Codes::kOffset);
    const uint8_t* head = panel + g0 / kSuper * kLayout.super();
    __m256 scale[Layout::kParts], min[Layout::kParts], largest = vec::zero();
    for (int p = 0; p < Layout::kParts; p++) {
      const int64_t g = p / Codes::kHalves;
      scale[p] = min[p] = vec::zero();
      if (g >= groups) continue;
      const uint8_t* scales = panel + group_at(kLayout, g0 + g) + 64 * kLayout.vectors;
      scale[p] = Codes::scale(head, scales, side, p % Codes::kHalves);
      min[p] = Codes::kMins ? Codes::min(head, scales, side) : vec::mul(scale[p], vec::set1(kZero));
      largest = vec::absmax(largest, vec::mul(scale[p], vec::set1(1 / kMaxScale)));
      largest = vec::absmax(largest, vec::mul(min[p], vec::set1(1 / kMaxMin)));
    }
    const __m256 nonzero = _mm256_cmp_ps(largest, vec::zero(), _CMP_GT_OQ);
    const __m256 inverse = _mm256_and_ps(nonzero, vec::div(vec::set1(1), largest));
    __m256i neg_min[Layout::kParts];
    for (int p = 0; p < Layout::kParts; p++) {
      const __m256i m = _mm256_cvtps_epi32(vec::mul(scale[p], inverse)), low16 = _mm256_and_si256(m, _mm256_set1_epi32(0xffff));
      store256(to + Layout::kScales + 64 * p + 32 * side, _mm256_or_si256(low16, _mm256_slli_epi32(m, 16)));
      const __m256i n = Codes::kMins ? _mm256_cvtps_epi32(vec::mul(min[p], inverse)) : _mm256_slli_epi32(m, Codes::kOffset);
      neg_min[p] = _mm256_sub_epi32(_mm256_setzero_si256(), n);
    }
    for (int p = 0; p < Layout::kParts; p += 2) {
      const __m256i even = _mm256_and_si256(neg_min[p], _mm256_set1_epi32(0xffff));
      store256(to + Layout::kMins + 32 * p + 32 * side, _mm256_or_si256(even, _mm256_slli_epi32(neg_min[p + 1], 16)));
    }
    vec::store((float*)(to + Layout::kUnits) + 8 * side, largest);
  }

  static void unpack(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    for (int side = 0; side < 2; side++) unpack_scales(to, panel, g0, groups, side);
    for (int64_t g = 0; g < kBlockGroups; g++) {
      const uint8_t* w = panel + group_at(kLayout, g0 + g);
      for (int64_t i = 0; i < kLayout.group(); i += 64) __builtin_prefetch(w + kPrefetch + i);
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++)
        for (int side = 0; side < 2; side++)
          store256(to + 64 * (8 * g + j) + 32 * side, g < groups ? Codes::quad(w + 32 * side, j) : _mm256_setzero_si256());
    }
  }
};

// ------------------------------------------------------------------------------------------------ int16

constexpr float kMaxWeight16 = 8191, kMaxAct16 = 2047;  // 128 of their products fit int32

// Signed 12-bit codes in int16, and their scale.
struct ActBlockS16 {
  static constexpr int64_t kCodes = 2 * kBlockK, kScales = 4, kTogether = 8;
  static void quantize(uint8_t* codes, uint8_t* scales, const float* x, int64_t n) {
    alignas(32) float values[kBlockK];
    const QuantScale quant = quant_scale(load_block(values, x, n), kMaxAct16);
    const vec::V inverse = vec::set1(quant.inverse);
    for (int64_t i = 0; i < kBlockK; i += vec::kLanes) {
      const __m256i v = _mm256_cvtps_epi32(vec::mul(vec::load(values + i), inverse));
      _mm_storeu_si128((__m128i*)(codes + 2 * i), _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
    }
    memcpy(scales, &quant.scale, 4);
  }
  static void take(uint8_t* codes, uint8_t* scales, const int8_t* given, int64_t n, float scale) {
    int8_t block[kBlockK] = {};
    memcpy(block, given, (size_t)n);
    for (int i = 0; i < kBlockK; i += 16) store256(codes + 2 * i, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(block + i))));
    memcpy(scales, &scale, 4);
  }
};

// An unpacked k-block: 64 vectors of two columns x 16 rows in int16, and 16 float units.
constexpr int64_t kInt16Quads = kBlockK / 2, kInt16Bytes = 64 * (kInt16Quads + 1);

struct Int16Tile {
  using ActBlock = ActBlockS16;
  static constexpr int kTokens = 4, kStep = 8;

  template <int T, int P>
  static void run(float* sums, bool first, const KBlocks& of, const uint8_t* acts) {
    const int64_t blocks = of.blocks, act = act_bytes<ActBlock>(blocks);
    TileRows<uint8_t> x(acts, act), tails(acts + blocks * ActBlock::kCodes, act);
    const uint8_t* w = of.w;
    for (int64_t kb = 0; kb < blocks;
         kb++, w += kInt16Bytes, x.advance(ActBlock::kCodes), tails.advance(ActBlock::kScales), first = false) {
      __m256i s[T][2];
      for (int i = 0; i < T; i++) s[i][0] = s[i][1] = _mm256_setzero_si256();
      for (int64_t j = 0; j < kInt16Quads; j += kStep) {
        prefetch_acts<ActBlock, T, kInt16Quads / kStep>(acts, act, (kb * kInt16Quads + j) / kStep);
#pragma GCC unroll 8
        for (int64_t at = j; at < j + kStep; at++) multiply_int16<T>(s, w + 64 * at, x, 4 * at);
      }
#pragma GCC unroll 8
      for (int i = 0; i < T; i++) add_block(sums + kPanel * i, first, s[i], w + 64 * kInt16Quads, tails.row(i));
    }
  }
};

struct UnpackedInt16 {
  using ActBlock = ActBlockS16;
  using Tile = Int16Tile;
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int64_t kPanels = 1, kBytes = kInt16Bytes;

  static __m256i weight16(__m256i code, __m256 scale) { return _mm256_cvtps_epi32(vec::mul(_mm256_cvtepi32_ps(code), scale)); }
  static __m256i pair(__m256i a, __m256i b) {
    return _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(b, 16));
  }

  static void unpack(uint8_t* to, const uint8_t* panel, int64_t g0, int64_t groups) {
    constexpr PanelLayout kLayout = panel_layout(kFormat);
    for (int side = 0; side < 2; side++) {
      __m256 scale[kBlockGroups], largest = vec::zero();
      for (int64_t g = 0; g < groups; g++) {
        scale[g] = CodesQ8_0::scale(nullptr, panel + group_at(kLayout, g0 + g) + 64 * kLayout.vectors, side, 0);
        largest = vec::absmax(largest, scale[g]);
      }
      const __m256 unit = vec::mul(largest, vec::set1(128 / kMaxWeight16)), nonzero = _mm256_cmp_ps(unit, vec::zero(), _CMP_GT_OQ);
      const __m256 inverse = _mm256_and_ps(nonzero, vec::div(vec::set1(1), unit));
      for (int64_t g = 0; g < kBlockGroups; g++) {
        const uint8_t* w = panel + group_at(kLayout, g0 + g) + 32 * side;
        uint8_t* quad = to + 64 * 16 * g + 32 * side;
        for (int j = 0; j < 8; j++, quad += 128) {
          const __m256i x = g < groups ? load256(w + 64 * j) : _mm256_setzero_si256();
          const __m256 s = g < groups ? vec::mul(scale[g], inverse) : vec::zero();
          const __m256i a = weight16(_mm256_srai_epi32(_mm256_slli_epi32(x, 24), 24), s);
          const __m256i b = weight16(_mm256_srai_epi32(_mm256_slli_epi32(x, 16), 24), s);
          const __m256i c = weight16(_mm256_srai_epi32(_mm256_slli_epi32(x, 8), 24), s), d = weight16(_mm256_srai_epi32(x, 24), s);
          store256(quad, pair(a, b));
          store256(quad + 64, pair(c, d));
        }
      }
      vec::store((float*)(to + 64 * kInt16Quads) + 8 * side, unit);
    }
  }
};

template <class Unpacked>
inline void set_unpacked_codes(KernelTable& t) {
  set_unpacked<Unpacked>(t);
  t.codes_gemm[(int)Unpacked::kFormat] = take_act_codes<typename Unpacked::ActBlock>;
}

inline void init_unpack_avx2(KernelTable& t) {
  set_unpacked_codes<UnpackedInt8<CodesQ6_K>>(t);
  set_unpacked_codes<UnpackedInt8<CodesQ5_K>>(t);
  set_unpacked_codes<UnpackedInt8<CodesQ4_K>>(t);
  set_unpacked_codes<UnpackedInt8<CodesQ4_0>>(t);
  set_unpacked_codes<UnpackedInt16>(t);
  t.gemm_is_finer[(int)Format::q8_0] = true;  // 12 bits
  t.gemm_from = 32, t.gemm_panels = 2;
}

}  // namespace
}  // namespace ivlite
