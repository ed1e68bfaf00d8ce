// Opens packed weights: codes and scales of groups, and dequantized columns. weight.h describes the planes.
//
// A row is counted over all heads: row r of head h is row h rows + r. Values are those of formats/*.h, bit for bit.
#pragma once
#include "intrinsics.h"
#include "kernels/cuda/weight.h"

namespace ivlite::cuda {

IVLITE_DEVICE int64_t padded_groups(const DeviceWeight& w) { return padded_groups(w.format, w.cols); }
IVLITE_DEVICE int64_t code_stride(const DeviceWeight& w) { return padded_groups(w) * code_bytes(w.format); }

// The codes of a group of one row: 16 bytes of two nibbles, 32 bytes of q8_0, elements.
IVLITE_DEVICE const uint8_t* code_at(const DeviceWeight& w, int64_t row, int64_t group) {
  return w.codes + (row * padded_groups(w) + group) * code_bytes(w.format);
}

// What a group has besides codes, as it is stored. high_bits: of q6_k those of 16 columns, of q5_k those of all 32.
IVLITE_DEVICE uint16_t scale_bits(const DeviceWeight& w, int64_t row, int64_t group) {
  return ((const uint16_t*)w.scales)[row * padded_groups(w) + group];
}
template <Format F>
IVLITE_DEVICE uint32_t header_bits(const DeviceWeight& w, int64_t row, int64_t group) {
  const int64_t at = row * (padded_groups(F, w.cols) / 8) + group / 8;
  if constexpr (F == Format::q4_k || F == Format::q5_k) return ((const uint32_t*)w.headers)[at];
  if constexpr (F == Format::q6_k) return ((const uint16_t*)w.headers)[at];
  return 0;
}
template <Format F>
IVLITE_DEVICE uint32_t high_bits(const DeviceWeight& w, int64_t row, int64_t group, int half) {
  const int64_t at = row * padded_groups(F, w.cols) + group;
  if constexpr (F == Format::q5_k) return ((const uint32_t*)w.high)[at];
  if constexpr (F == Format::q6_k) return ((const uint32_t*)w.high)[2 * at + half];
  return 0;
}

// Codes are unsigned bytes of four_codes less this.
template <Format F>
constexpr int kCodeOffset = F == Format::q8_0   ? 128
                            : F == Format::q4_0 ? 8
                            : F == Format::q6_k ? 32
                                                : 0;

// The codes of columns 16 half + 4 word + 0..3 in the bytes of the result. `code` is word `word` of the group's nibbles; of
// q8_0 word 4 half + word. `high` is what high_bits gives for that half.
template <Format F>
IVLITE_DEVICE uint32_t four_codes(uint32_t code, uint32_t high, int half, int word) {
  if constexpr (F == Format::q8_0) return code ^ 0x80808080u;
  const uint32_t low = code >> 4 * half & 0x0F0F0F0Fu;
  if constexpr (F == Format::q5_k) return low | (high >> (4 * half + word) & 0x01010101u) << 4;
  if constexpr (F == Format::q6_k) return low | (high >> 2 * word & 0x03030303u) << 4;
  return low;
}

// weight = scale (code - kCodeOffset) - min, of the 16 columns of a half.
struct Affine {
  float scale, min;
};
template <Format F>
IVLITE_DEVICE Affine affine(uint16_t scale, uint32_t header, int half) {
  if constexpr (F == Format::q4_0 || F == Format::q8_0) return {to_float(scale), 0};
  const float d = to_float((uint16_t)header);
  if constexpr (F == Format::q6_k) return {d * (float)(int8_t)(scale >> 8 * half), 0};
  return {d * (float)(scale & 0xFF), to_float((uint16_t)(header >> 16)) * (float)(scale >> 8)};
}

// The byte i of `codes` less `offset`, as a float: 2^23 + byte has the byte as its lowest bits. Exact.
IVLITE_DEVICE float byte_to_float(uint32_t codes, int i, int offset) {
  return float_of(0x4B000000u | (codes >> 8 * i & 0xFF)) - (float)(8388608 + offset);
}

// Columns col .. col + 7 of a row, col a multiple of 8. Not for the padding behind whole groups.
template <Format F>
IVLITE_DEVICE void dequantize8(const DeviceWeight& w, int64_t row, int64_t col, float out[8]) {
  const int64_t group = col / 32;
  const int half = (int)(col / 16 % 2), word = (int)(col / 4 % 4);
  const uint8_t* codes = code_at(w, row, group);
  if constexpr (F == Format::f32) {
    const Bytes16 low = load16(codes + col % 32 * 4), high = load16(codes + col % 32 * 4 + 16);
    memcpy(out, &low, 16), memcpy(out + 4, &high, 16);
  } else if constexpr (F == Format::f16) {
    const Bytes16 raw = load16(codes + col % 32 * 2);
    for (int i = 0; i < 8; i++) out[i] = to_float((uint16_t)(raw.w[i / 2] >> 16 * (i % 2)));
  } else {
    const Affine by = affine<F>(scale_bits(w, row, group), header_bits<F>(w, row, group), half);
    const uint32_t high = high_bits<F>(w, row, group, half);
    for (int j = word; j < word + 2; j++) {
      const uint32_t code = ((const uint32_t*)codes)[F == Format::q8_0 ? 4 * half + j : j], four = four_codes<F>(code, high, half, j);
      for (int i = 0; i < 4; i++) out[4 * (j - word) + i] = byte_to_float(four, i, kCodeOffset<F>) * by.scale - by.min;
    }
  }
}

// Calls f with the format as a type's value: visit_format(w.format, [&](auto f) { ... f.value ... }).
template <Format F>
struct FormatIs {
  static constexpr Format value = F;
};
template <class Visit>
IVLITE_DEVICE void visit_format(Format format, Visit visit) {
  switch (format) {
    case Format::f32: return visit(FormatIs<Format::f32>());
    case Format::f16: return visit(FormatIs<Format::f16>());
    case Format::bf16: return;  // it is kept as f16
    case Format::q8_0: return visit(FormatIs<Format::q8_0>());
    case Format::q6_k: return visit(FormatIs<Format::q6_k>());
    case Format::q5_k: return visit(FormatIs<Format::q5_k>());
    case Format::q4_k: return visit(FormatIs<Format::q4_k>());
    case Format::q4_0: return visit(FormatIs<Format::q4_0>());
  }
}

IVLITE_DEVICE void dequantize8(const DeviceWeight& w, int64_t row, int64_t col, float out[8]) {
  visit_format(w.format, [&](auto f) { dequantize8<decltype(f)::value>(w, row, col, out); });
}

}  // namespace ivlite::cuda
