#include "kernels/pack.h"

#include <string.h>

#include "formats/q4_0.h"
#include "formats/q4_k.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace ivlite {
namespace {

constexpr int64_t kColumns = 64;  // of 16 rows, written to one stretch of a panel

template <class T>
void pack_floats(T* out, const uint8_t* blocks, int64_t row_bytes, int64_t r0, int64_t r1, int64_t cols) {
  for (int64_t k0 = 0; k0 < cols; k0 += kColumns) {
    const int64_t end = cols - k0 < kColumns ? cols : k0 + kColumns;
    for (int64_t r = r0; r < r1; r++) {
      const T* row = (const T*)(blocks + (r - r0) * row_bytes);
      for (int64_t k = k0; k < end; k++) out[k * kPanel + r] = row[k];
    }
  }
}

// Bytes are handled four and eight at a time; the first is the lowest, as on every machine that has kernels.
uint32_t load4(const uint8_t* p) {
  uint32_t x;
  memcpy(&x, p, 4);
  return x;
}
uint64_t load8(const uint8_t* p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x;
}
void store4(uint8_t* p, uint32_t x) { memcpy(p, &x, 4); }

// Vector j of four: codes of columns 8 j .. 8 j + 7 are the low (shift 0) or high (shift 4) nibbles of eight bytes.
void place_nibbles(uint8_t* vectors, int64_t r, int j, const uint8_t* eight, int shift) {
  const uint64_t codes = load8(eight) >> shift & 0x0f0f0f0f0f0f0f0f;
  store4(vectors + 64 * j + 4 * r, (uint32_t)codes | (uint32_t)(codes >> 32) << 4);
}

// Further bits of each code, n vectors of 8 / bits words: `bits` of them from `shift` on in each byte of `from`.
void place_bits(uint8_t* vectors, int64_t r, int n, const uint8_t* from, int bits, int shift) {
  const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
  for (int i = 0; i < n; i++, vectors += 64) {
    uint32_t word = 0;
    for (int j = 0; j < 8 / bits; j++, from += 4) word |= (load4(from) >> shift & mask) << j * bits;
    store4(vectors + 4 * r, word);
  }
}

// place: one group of one row, 32 codes into a panel.
struct PackQ8_0 {
  using Block = BlockQ8_0;
  static constexpr Format kFormat = Format::q8_0;
  static void place(uint8_t*, uint8_t* vectors, int64_t r, const Block* row, int64_t g) {
    for (int j = 0; j < 8; j++) memcpy(vectors + 64 * j + 4 * r, row[g].code + 4 * j, 4);
    memcpy(vectors + 512 + 2 * r, &row[g].d, 2);
  }
};

struct PackQ4_0 {
  using Block = BlockQ4_0;
  static constexpr Format kFormat = Format::q4_0;
  static void place(uint8_t*, uint8_t* vectors, int64_t r, const Block* row, int64_t g) {
    for (int j = 0; j < 4; j++) place_nibbles(vectors, r, j, row[g].code + j % 2 * 8, j / 2 * 4);
    memcpy(vectors + 256 + 2 * r, &row[g].d, 2);
  }
};

template <class B>
struct PackQ4_K {
  using Block = B;
  static constexpr Format kFormat = Format::q4_k;
  static void place(uint8_t* header, uint8_t* vectors, int64_t r, const Block* row, int64_t g) {
    place_at(header, vectors, vectors + 256, r, row[g / kSuper], (int)(g % kSuper));
  }
  static void place_at(uint8_t* header, uint8_t* vectors, uint8_t* scales, int64_t r, const Block& b, int in) {
    for (int j = 0; j < 4; j++) place_nibbles(vectors, r, j, b.code + in / 2 * 32 + 8 * j, in % 2 * 4);
    scales[r] = (uint8_t)k_scale(b.six, in);
    scales[16 + r] = (uint8_t)k_low(b.six, in);
    if (in > 0) return;
    memcpy(header + 2 * r, &b.d, 2);
    memcpy(header + 32 + 2 * r, &b.dmin, 2);
  }
};

struct PackQ5_K {
  using Block = BlockQ5_K;
  static constexpr Format kFormat = Format::q5_k;
  static void place(uint8_t* header, uint8_t* vectors, int64_t r, const Block* row, int64_t g) {
    const Block& b = row[g / kSuper];
    PackQ4_K<Block>::place_at(header, vectors, vectors + 320, r, b, (int)(g % kSuper));
    place_bits(vectors + 256, r, 1, b.high, 1, (int)(g % kSuper));
  }
};

struct PackQ6_K {
  using Block = BlockQ6_K;
  static constexpr Format kFormat = Format::q6_k;
  static void place(uint8_t* header, uint8_t* vectors, int64_t r, const Block* row, int64_t g) {
    const Block& b = row[g / kSuper];
    const int in = (int)(g % kSuper), half = in / 4, k = in % 4;
    for (int j = 0; j < 4; j++) place_nibbles(vectors, r, j, b.low + 64 * half + k % 2 * 32 + 8 * j, k / 2 * 4);
    place_bits(vectors + 256, r, 2, b.high + 32 * half, 2, 2 * k);
    for (int h = 0; h < 2; h++) vectors[384 + 16 * h + r] = (uint8_t)b.scale[2 * in + h];
    if (in == 0) memcpy(header + 2 * r, &b.d, 2);
  }
};

template <class Pack>
void pack_blocks(void* panel, const uint8_t* blocks, int64_t row_bytes, int64_t r0, int64_t r1, int64_t cols) {
  constexpr PanelLayout layout = panel_layout(Pack::kFormat);
  uint8_t* out = (uint8_t*)panel;
  const int64_t groups = round_up(cols, kGroup) / kGroup;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t r = r0; r < r1; r++) {
      const auto* row = (const typename Pack::Block*)(blocks + (r - r0) * row_bytes);
      Pack::place(out + g / kSuper * layout.super(), out + group_at(layout, g), r, row, g);
    }
}

}  // namespace

int64_t panel_bytes(Format format, int64_t cols) {
  const FormatInfo& info = FORMATS[(int)format];
  if (!info.quantized) return cols * kPanel * info.block_bytes;
  return layout_bytes(panel_layout(format), round_up(cols, kGroup) / kGroup);
}

void pack_rows(void* panel, Format format, const uint8_t* blocks, int64_t row_bytes, int64_t r0, int64_t r1, int64_t cols) {
  switch (format) {
    case Format::f32: return pack_floats((float*)panel, blocks, row_bytes, r0, r1, cols);
    case Format::f16:
    case Format::bf16: return pack_floats((uint16_t*)panel, blocks, row_bytes, r0, r1, cols);
    case Format::q8_0: return pack_blocks<PackQ8_0>(panel, blocks, row_bytes, r0, r1, cols);
    case Format::q6_k: return pack_blocks<PackQ6_K>(panel, blocks, row_bytes, r0, r1, cols);
    case Format::q5_k: return pack_blocks<PackQ5_K>(panel, blocks, row_bytes, r0, r1, cols);
    case Format::q4_k: return pack_blocks<PackQ4_K<BlockQ4_K>>(panel, blocks, row_bytes, r0, r1, cols);
    case Format::q4_0: return pack_blocks<PackQ4_0>(panel, blocks, row_bytes, r0, r1, cols);
  }
}

}  // namespace ivlite
