// Packs blocks of a model file into the planes of a device weight, and reads rows back as floats.
#include "kernels/cuda/weight.cuh"

#include "formats/q4_0.h"
#include "formats/q4_k.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"
#include "kernels/cuda/half.cuh"
#include "kernels/cuda/linear.h"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 128;

// Rows [first, first + count) of a weight, as a file has them.
struct PackArgs {
  DeviceWeight w;
  bool bf16;  // the file's format, which is kept as f16
  int64_t first, count;
  const uint8_t* blocks;
  int64_t row_bytes;
};

IVLITE_DEVICE int k_scale_of(const uint8_t* six, int g) { return g < 4 ? six[g] & 63 : (six[g + 4] & 15) | (six[g - 4] >> 6) << 4; }
IVLITE_DEVICE int k_min_of(const uint8_t* six, int g) { return g < 4 ? six[g + 4] & 63 : six[g + 4] >> 4 | (six[g] >> 6) << 4; }

// A group as it is packed. `nibble` and `high` of a column: its low four bits and the others.
struct Group {
  uint8_t codes[32], high[8];
  uint16_t scale;
  uint32_t header;

  IVLITE_DEVICE void clear() {
    for (uint8_t& byte : codes) byte = 0;
    for (uint8_t& byte : high) byte = 0;
    scale = 0, header = 0;
  }
  IVLITE_DEVICE void put_nibble(int column, int nibble) { codes[column % 16] |= (uint8_t)(nibble << column / 16 * 4); }
  IVLITE_DEVICE void put_bit(int column, int bit) { high[column % 4] |= (uint8_t)(bit << column / 4); }
  IVLITE_DEVICE void put_two_bits(int column, int bits) { high[column / 16 * 4 + column % 4] |= (uint8_t)(bits << column / 4 % 4 * 2); }
};

template <Format F>
IVLITE_DEVICE void read_group(Group& to, const uint8_t* row, int64_t g) {
  const int in = (int)(g % 8);
  if constexpr (F == Format::q8_0) {
    const BlockQ8_0& b = ((const BlockQ8_0*)row)[g];
    for (int i = 0; i < 32; i++) to.codes[i] = (uint8_t)b.code[i];
    to.scale = b.d;
  } else if constexpr (F == Format::q4_0) {
    const BlockQ4_0& b = ((const BlockQ4_0*)row)[g];
    for (int i = 0; i < 16; i++) to.codes[i] = b.code[i];
    to.scale = b.d;
  } else if constexpr (F == Format::q6_k) {
    const BlockQ6_K& b = ((const BlockQ6_K*)row)[g / 8];
    const uint8_t *low = b.low + in / 4 * 64 + in % 2 * 32, *high = b.high + in / 4 * 32;
    for (int i = 0; i < 32; i++) {
      to.put_nibble(i, low[i] >> in % 4 / 2 * 4 & 15);
      to.put_two_bits(i, high[i] >> 2 * (in % 4) & 3);
    }
    to.scale = (uint16_t)((uint8_t)b.scale[2 * in] | (uint8_t)b.scale[2 * in + 1] << 8);
    to.header = b.d;
  } else {
    using Block = std::conditional_t<F == Format::q4_k, BlockQ4_K, BlockQ5_K>;
    const Block& b = ((const Block*)row)[g / 8];
    for (int i = 0; i < 32; i++) to.put_nibble(i, b.code[in / 2 * 32 + i] >> in % 2 * 4 & 15);
    if constexpr (F == Format::q5_k)
      for (int i = 0; i < 32; i++) to.put_bit(i, b.high[i] >> in & 1);
    to.scale = (uint16_t)(k_scale_of(b.six, in) | k_min_of(b.six, in) << 8);
    to.header = b.d | (uint32_t)b.dmin << 16;
  }
}

template <Format F>
IVLITE_DEVICE void store_group(const DeviceWeight& w, int64_t row, int64_t g, const Group& from) {
  Bytes16 bytes;
  for (int i = 0; i < code_bytes(F); i += 16) {
    memcpy(&bytes, from.codes + i, 16);
    store16((uint8_t*)code_at(w, row, g) + i, bytes);
  }
  const int64_t at = row * padded_groups(F, w.cols) + g, super = row * (padded_groups(F, w.cols) / 8) + g / 8;
  uint32_t word;
  for (int i = 0; i < high_bytes(F); i += 4) {
    memcpy(&word, from.high + i, 4);
    ((uint32_t*)w.high)[at * high_bytes(F) / 4 + i / 4] = word;
  }
  ((uint16_t*)w.scales)[at] = from.scale;
  if (g % 8 != 0) return;
  if constexpr (header_bytes(F) == 4) ((uint32_t*)w.headers)[super] = from.header;
  if constexpr (header_bytes(F) == 2) ((uint16_t*)w.headers)[super] = (uint16_t)from.header;
}

// 32 elements, zeros behind the last column.
template <class T, class Kept>
IVLITE_DEVICE void copy_elements(const DeviceWeight& w, int64_t row, int64_t g, const uint8_t* from, Kept kept) {
  T *to = (T*)code_at(w, row, g), some[32];
  for (int i = 0; i < 32; i++) some[i] = 32 * g + i < w.cols ? kept(((const T*)from)[32 * g + i]) : 0;
  for (int i = 0; i < 32; i += 16 / sizeof(T)) {
    Bytes16 bytes;
    memcpy(&bytes, some + i, 16);
    store16(to + i, bytes);
  }
}

// A thread packs one group of one row.
IVLITE_KERNEL void pack_kernel(PackArgs a) {
  const int64_t groups = (a.w.cols + 31) / 32, i = (int64_t)block_x() * kThreads + thread_x();
  if (i >= groups * a.count) return;
  const int64_t row = i / groups, g = i % groups;
  const uint8_t* from = a.blocks + row * a.row_bytes;
  visit_format(a.w.format, [&](auto is) {
    constexpr Format F = decltype(is)::value;
    if constexpr (F == Format::f32) {
      copy_elements<uint32_t>(a.w, a.first + row, g, from, [](uint32_t bits) { return bits; });
    } else if constexpr (F == Format::f16) {
      copy_elements<uint16_t>(a.w, a.first + row, g, from,
                              [&](uint16_t bits) { return a.bf16 ? to_finite_half(bf16_to_float(bits)) : bits; });
    } else {
      Group group;
      group.clear();
      read_group<F>(group, from, g);
      store_group<F>(a.w, a.first + row, g, group);
    }
  });
}

struct RowsArgs {
  float* y;  // (count, ldy)
  int64_t ldy;
  DeviceWeight w;
  const int32_t* ids;
  int64_t count;
};

// A thread writes 8 columns of one row.
IVLITE_KERNEL void embedding_kernel(RowsArgs a) {
  const int64_t octets = (a.w.cols + 7) / 8, i = (int64_t)block_x() * kThreads + thread_x();
  if (i >= octets * a.count) return;
  const int64_t t = i / octets, column = i % octets * 8, row = a.ids[t];
  float* y = a.y + t * a.ldy + column;
  float value[8];
  for (float& v : value) v = float_of(0x7fc00000);
  if (row >= 0 && row < a.w.heads * a.w.rows) dequantize8(a.w, row, column, value);
  for (int k = 0; k < 8 && column + k < a.w.cols; k++) y[k] = value[k];
}

}  // namespace

Status pack_weight(const DeviceWeight& w, Format format, int64_t first, int64_t count, const void* blocks, int64_t row_bytes,
                   Stream stream) {
  const int64_t threads = (w.cols + 31) / 32 * count;
  if (threads == 0) return 0;
  const PackArgs args{w, format == Format::bf16, first, count, (const uint8_t*)blocks, row_bytes};
  return launch(pack_kernel, {(unsigned)((threads + kThreads - 1) / kThreads), 1, 1}, kThreads, 0, stream, args);
}

Status embedding_rows(float* y, int64_t ldy, const DeviceWeight& w, const int32_t* ids, int64_t count, Stream stream) {
  const int64_t threads = (w.cols + 7) / 8 * count;
  if (threads == 0) return 0;
  const RowsArgs args{y, ldy, w, ids, count};
  return launch(embedding_kernel, {(unsigned)((threads + kThreads - 1) / kThreads), 1, 1}, kThreads, 0, stream, args);
}

}  // namespace ivlite::cuda
