// Resampling of pictures: pairs of taps multiply in one instruction, the weights in two halves, so that all sums are exact.
#pragma once
#include <immintrin.h>
#include <string.h>

#include "kernels/table.h"

namespace ivlite {
namespace {

static_assert(kResizeRows == 4, "the rows that resize_rows_avx2 takes together");

// sum + the products of neighbouring words, added in pairs.
inline __m256i resize_add(__m256i sum, __m256i pairs, __m256i weights) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sum, pairs, weights);
#elif defined(__AVXVNNI__)
  return _mm256_dpwssd_avx_epi32(sum, pairs, weights);
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, weights));
#endif
}

inline __m256i resize_total(__m256i high, __m256i low) { return _mm256_add_epi32(_mm256_slli_epi32(high, kResizeLow), low); }

inline __m256i resize_rounded(__m256i sum) {
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (kResizeBits - 1))), kResizeBits);
}

// Two outputs at a time, one in each half of a register, so that no sum crosses halves.
void resize_rows_avx2(uint8_t* const* out, const uint8_t* const* rows, const ResizeAxis& a) {
  // Of 4 pixels: the reds of the first two side by side, their greens, their blues, nothing; and of the other two.
  const __m256i near = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i far = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const __m128i three = _mm_setr_epi8(0, 1, 2, 4, 5, 6, -1, -1, 8, 9, 10, 12, 13, 14, -1, -1);  // of each four bytes
  const __m256i* weights = (const __m256i*)a.halves;
  for (int64_t i = 0; i < a.outputs; i += 2) {
    __m256i high[4], low[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) high[r] = low[r] = _mm256_setzero_si256();
    int64_t at = 3 * a.first[i], next = 3 * a.first[i + (i + 1 < a.outputs)];
    for (int64_t t = 0; t < a.taps; t += 4, at += 12, next += 12, weights += 4) {
      const __m256i near_high = _mm256_loadu_si256(weights), near_low = _mm256_loadu_si256(weights + 1);
      const __m256i far_high = _mm256_loadu_si256(weights + 2), far_low = _mm256_loadu_si256(weights + 3);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        const __m128i one = _mm_loadu_si128((const __m128i*)(rows[r] + at)), other = _mm_loadu_si128((const __m128i*)(rows[r] + next));
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(one), other, 1);
        const __m256i pairs = _mm256_shuffle_epi8(both, near), more = _mm256_shuffle_epi8(both, far);
        high[r] = resize_add(resize_add(high[r], pairs, near_high), more, far_high);
        low[r] = resize_add(resize_add(low[r], pairs, near_low), more, far_low);
      }
    }
    __m256i value[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) value[r] = resize_rounded(resize_total(high[r], low[r]));
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(value[0], value[1]), _mm256_packs_epi32(value[2], value[3]));
    const __m128i one = _mm256_castsi256_si128(bytes), other = _mm256_extracti128_si256(bytes, 1);  // a pixel of each row
    const __m128i two[2] = {_mm_shuffle_epi8(_mm_unpacklo_epi32(one, other), three),
                            _mm_shuffle_epi8(_mm_unpackhi_epi32(one, other), three)};
    const int64_t pixels[4] = {_mm_cvtsi128_si64(two[0]), _mm_extract_epi64(two[0], 1), _mm_cvtsi128_si64(two[1]),
                               _mm_extract_epi64(two[1], 1)};
    if (i + 2 < a.outputs) {  // the last two bytes are the next pixel's
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) memcpy(out[r] + 3 * i, &pixels[r], 8);
    } else {
      for (int r = 0; r < 4; r++) memcpy(out[r] + 3 * i, &pixels[r], i + 1 < a.outputs ? 6 : 3);
    }
  }
}

void resize_columns_avx2(uint8_t* out, const uint8_t* const* rows, const ResizeAxis& a, int64_t output, int64_t bytes) {
  const int32_t* weights = a.weights + output * a.taps;
  int64_t begin = 0, end = a.taps;  // without the zeros at both ends
  while (begin + 2 < end && !(weights[begin] | weights[begin + 1])) begin += 2;
  while (begin + 2 < end && !(weights[end - 1] | weights[end - 2])) end -= 2;
  const int32_t* pairs = a.pairs + output * a.taps;
  int64_t i = 0;
  for (; i + 32 <= bytes; i += 32) {
    __m256i high[4], low[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) high[n] = low[n] = _mm256_setzero_si256();
    for (int64_t t = begin; t < end; t += 2) {
      const __m256i over = _mm256_set1_epi32(pairs[t]), under = _mm256_set1_epi32(pairs[t + 1]);
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) {
        const __m128i x = _mm_loadu_si128((const __m128i*)(rows[t] + i + 16 * n));
        const __m128i y = _mm_loadu_si128((const __m128i*)(rows[t + 1] + i + 16 * n));
        const __m256i first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y));
        high[2 * n] = resize_add(high[2 * n], first, over);
        low[2 * n] = resize_add(low[2 * n], first, under);
        high[2 * n + 1] = resize_add(high[2 * n + 1], second, over);
        low[2 * n + 1] = resize_add(low[2 * n + 1], second, under);
      }
    }
    __m256i value[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; n++) value[n] = resize_rounded(resize_total(high[n], low[n]));
    const __m256i made = _mm256_packus_epi16(_mm256_packs_epi32(value[0], value[1]), _mm256_packs_epi32(value[2], value[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing takes halves in turn
    _mm256_storeu_si256((__m256i*)(out + i), _mm256_permutevar8x32_epi32(made, order));
  }
  for (; i < bytes; i++) {
    int32_t sum = 1 << (kResizeBits - 1);
    for (int64_t t = begin; t < end; t++) sum += rows[t][i] * weights[t];
    sum >>= kResizeBits;
    out[i] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
  }
}

inline void init_resize_avx2(KernelTable& t) {
  t.resize_rows = resize_rows_avx2;
  t.resize_columns = resize_columns_avx2;
}

}  // namespace
}  // namespace ivlite
