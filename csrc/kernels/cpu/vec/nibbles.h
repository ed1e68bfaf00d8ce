// 64 codes of 4 bits to int8 by tables of 16 levels, for the 256-bit vectors that both AVX2 and AVX-512 have. Included by the vocabularies.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace ivlite {
namespace {
namespace vec {

// 32 codes in bytes, 16 of each table.
inline __m256i look_up(const int8_t* first, const int8_t* second, __m256i codes) {
  const __m256i tables =
      _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128((const __m128i*)first)), _mm_load_si128((const __m128i*)second), 1);
  return _mm256_shuffle_epi8(tables, codes);
}

// Columns 0..31 are the low halves of 32 bytes, 32..63 the high ones; the nibbles of two bytes choose the tables of each 16.
inline void store_nibbles(int8_t* to, const uint8_t* codes, const int8_t (*table)[16], const uint8_t* which) {
  const __m256i bytes = _mm256_loadu_si256((const __m256i*)codes), low = _mm256_set1_epi8(15);
  _mm256_storeu_si256((__m256i*)to, look_up(table[which[0] & 15], table[which[0] >> 4], _mm256_and_si256(bytes, low)));
  _mm256_storeu_si256((__m256i*)(to + 32),
                      look_up(table[which[1] & 15], table[which[1] >> 4], _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low)));
}

}  // namespace vec
}  // namespace
}  // namespace ivlite
