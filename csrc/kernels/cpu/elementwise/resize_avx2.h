// Resampling of pictures: pairs of taps multiply in one instruction, the weights in two halves, so that all sums are exact.
#pragma once
#include <immintrin.h>
#include <string.h>

#include "kernels/table.h"

namespace ivlite {
namespace {

// The bytes of 8 sums, each given as its halves.
inline __m256i resize_total(__m256i high, __m256i low) { return _mm256_add_epi32(_mm256_slli_epi32(high, kResizeLow), low); }

void resize_rows_avx2(uint8_t* const* out, const uint8_t* const* rows, const ResizeAxis& a) {
  // Of 4 pixels: the reds of the first two side by side, their greens, their blues, nothing; then those of the other two.
  const __m256i spread = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                          6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m128i half = _mm_set1_epi32(1 << (kResizeBits - 1));
  const int16_t* halves = a.halves;
  for (int64_t i = 0; i < a.outputs; i++) {
    __m256i high[kResizeRows], low[kResizeRows];
    for (int r = 0; r < kResizeRows; r++) high[r] = low[r] = _mm256_setzero_si256();
    int64_t at = 3 * a.first[i];
    for (int64_t t = 0; t < a.taps; t += 4, at += 12, halves += 32) {
      const __m256i over = _mm256_loadu_si256((const __m256i*)halves), under = _mm256_loadu_si256((const __m256i*)(halves + 16));
#pragma GCC unroll 4
      for (int r = 0; r < kResizeRows; r++) {
        const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(rows[r] + at)));
        const __m256i pairs = _mm256_shuffle_epi8(four, spread);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(pairs, over));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(pairs, under));
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kResizeRows; r++) {
      const __m256i both = resize_total(high[r], low[r]);
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
      sum = _mm_srai_epi32(_mm_add_epi32(sum, half), kResizeBits);
      sum = _mm_packs_epi32(sum, sum);
      const int pixel = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
      memcpy(out[r] + 3 * i, &pixel, 3);
    }
  }
}

void resize_columns_avx2(uint8_t* out, const uint8_t* const* rows, const ResizeAxis& a, int64_t output, int64_t bytes) {
  const int32_t* weights = a.weights + output * a.taps;
  const int16_t* halves = a.halves + output * a.taps * 8;
  const __m256i half = _mm256_set1_epi32(1 << (kResizeBits - 1));
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    __m256i high[2], low[2];
    for (int n = 0; n < 2; n++) high[n] = low[n] = _mm256_setzero_si256();
    for (int64_t t = 0; t < a.taps; t += 2) {
      int32_t pair[2];  // the halves of two taps, side by side
      memcpy(&pair[0], halves + t / 4 * 32 + t % 4 * 4, 4);
      memcpy(&pair[1], halves + t / 4 * 32 + t % 4 * 4 + 16, 4);
      const __m256i over = _mm256_set1_epi32(pair[0]), under = _mm256_set1_epi32(pair[1]);
      const __m128i x = _mm_loadu_si128((const __m128i*)(rows[t] + i)), y = _mm_loadu_si128((const __m128i*)(rows[t + 1] + i));
      const __m256i pairs[2] = {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y))};
      for (int n = 0; n < 2; n++) {
        high[n] = _mm256_add_epi32(high[n], _mm256_madd_epi16(pairs[n], over));
        low[n] = _mm256_add_epi32(low[n], _mm256_madd_epi16(pairs[n], under));
      }
    }
    __m256i value[2];
    for (int n = 0; n < 2; n++) value[n] = _mm256_srai_epi32(_mm256_add_epi32(resize_total(high[n], low[n]), half), kResizeBits);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(value[0], value[1]), 0xD8);
    const __m128i made = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i*)(out + i), made);
  }
  for (; i < bytes; i++) {
    int32_t sum = 1 << (kResizeBits - 1);
    for (int64_t t = 0; t < a.taps; t++) sum += rows[t][i] * weights[t];
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
