// Packed weights in device memory, as plain C++: what lies where, and how many bytes it takes.
//
// A weight is one matrix (rows, cols), or one per head, all rows one behind the other. It has up to four planes, each of whole
// rows one behind the other; the number of rows is padded to a multiple of 16, that of columns to whole groups of 32, of
// which quantized formats have a multiple of 4 (K formats 8): everything a step reads is one aligned load. Padding is zero.
//
//   plane    per row                    bytes
//   codes    q4_0 q4_k q5_k q6_k        16 per group: byte i has the low four bits of column i in its low nibble and of
//                                       column i + 16 in its high one
//            q8_0                       32 per group, signed
//            f16 f32                    elements; bf16 is kept as f16: exactly, but for numbers below 2^-14, which are then
//                                       up to 2^-25 away, and beyond 65504, where it ends. Tensor cores multiply halves with
//                                       activations of 11 bits, and bf16 with 8
//   high     q5_k                       4 per group, one word: bit j of byte i is the fifth bit of column 4 j + i
//            q6_k                       8 per group, one word per 16 columns: bits 2 j of byte i are the fifth and sixth bit
//                                       of column 4 j + i
//   scales   q4_0 q8_0                  2 per group: f16
//            q4_k q5_k                  2 per group: scale, then min, one byte each
//            q6_k                       2 per group: signed bytes, of columns 0..15 and 16..31
//   headers  q4_k q5_k                  4 per 8 groups: f16 d, then f16 dmin
//            q6_k                       2 per 8 groups: f16 d
//
// So bits j of four bytes are four codes beside one another: one shift and one mask make an operand of a dot product.
//
// Kernels call these functions too: nvcc needs --expt-relaxed-constexpr.
#pragma once
#include <stdint.h>

#include "formats/formats.h"

namespace ivlite::cuda {

struct DeviceWeight {
  Format format;
  int64_t rows, cols, heads;  // rows and columns of one head
  const uint8_t *codes, *high, *scales, *headers;
};

constexpr bool is_k_format(Format f) { return f == Format::q4_k || f == Format::q5_k || f == Format::q6_k; }
constexpr bool is_float_format(Format f) { return f == Format::f32 || f == Format::f16; }
constexpr Format kept_format(Format f) { return f == Format::bf16 ? Format::f16 : f; }

// Groups of 32 columns that a row has in its planes.
constexpr int64_t padded_groups(Format f, int64_t cols) {
  const int64_t groups = (cols + 31) / 32, multiple = is_k_format(f) ? 8 : is_float_format(f) ? 1 : 4;
  return (groups + multiple - 1) / multiple * multiple;
}

// Bytes of a group in the planes of codes and of high bits, and of 8 groups in that of headers.
constexpr int code_bytes(Format f) { return f == Format::f32 ? 128 : f == Format::f16 ? 64 : f == Format::q8_0 ? 32 : 16; }
constexpr int high_bytes(Format f) { return f == Format::q5_k ? 4 : f == Format::q6_k ? 8 : 0; }
constexpr int scale_bytes(Format f) { return is_float_format(f) ? 0 : 2; }
constexpr int header_bytes(Format f) { return f == Format::q6_k ? 2 : is_k_format(f) ? 4 : 0; }

// Where the planes of a weight begin in its memory, and where they end. Each begins at a multiple of 256.
struct WeightPlanes {
  int64_t high, scales, headers, end;
};
constexpr WeightPlanes weight_planes(Format f, int64_t heads, int64_t rows, int64_t cols) {
  const int64_t groups = padded_groups(f, cols), all = (heads * rows + 15) / 16 * 16;
  const int64_t each[4] = {groups * code_bytes(f), groups * high_bytes(f), groups * scale_bytes(f), groups / 8 * header_bytes(f)};
  int64_t at[5] = {};
  for (int i = 0; i < 4; i++) at[i + 1] = at[i] + (all * each[i] + 255) / 256 * 256;
  return {at[1], at[2], at[3], at[4]};
}

constexpr int64_t device_weight_bytes(Format f, int64_t heads, int64_t rows, int64_t cols) {
  return weight_planes(kept_format(f), heads, rows, cols).end;
}

// A weight in memory of device_weight_bytes, 256-byte aligned.
inline DeviceWeight device_weight(const void* memory, Format f, int64_t heads, int64_t rows, int64_t cols) {
  const WeightPlanes at = weight_planes(kept_format(f), heads, rows, cols);
  const uint8_t* base = (const uint8_t*)memory;
  return {kept_format(f), rows, cols, heads, base, base + at.high, base + at.scales, base + at.headers};
}

}  // namespace ivlite::cuda
