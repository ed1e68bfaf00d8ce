#include "kernels/pack.h"

#include <string.h>

#include "formats/q4_0.h"
#include "formats/q4_k.h"
#include "formats/q5_k.h"
#include "formats/q6_k.h"
#include "formats/q8_0.h"

namespace ivlite {
namespace {

template <class T>
void pack_floats(T* out, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t p) {
  memset(out, 0, (size_t)(cols * kPanel) * sizeof(T));
  for (int r = 0; r < kPanel && p * kPanel + r < rows; r++) {
    const T* row = (const T*)(blocks + (p * kPanel + r) * row_bytes);
    for (int64_t k = 0; k < cols; k++) out[k * kPanel + r] = row[k];
  }
}

// One group of one row: 32 codes to the lines of a panel.
void place_nibbles(uint8_t* lines, int r, const uint8_t* codes) {
  for (int j = 0; j < 4; j++)
    for (int i = 0; i < 4; i++) lines[64 * j + 4 * r + i] = (uint8_t)((codes[8 * j + i] & 15) | (codes[8 * j + 4 + i] & 15) << 4);
}

struct PackQ8_0 {
  using Block = BlockQ8_0;
  static constexpr Format kFormat = Format::q8_0;
  static void place(uint8_t*, uint8_t* lines, int r, const Block* row, int64_t g) {
    for (int j = 0; j < 8; j++) memcpy(lines + 64 * j + 4 * r, row[g].code + 4 * j, 4);
    memcpy(lines + 512 + 2 * r, &row[g].d, 2);
  }
};

struct PackQ4_0 {
  using Block = BlockQ4_0;
  static constexpr Format kFormat = Format::q4_0;
  static void place(uint8_t*, uint8_t* lines, int r, const Block* row, int64_t g) {
    uint8_t codes[32];
    for (int i = 0; i < 32; i++) codes[i] = i < 16 ? row[g].code[i] & 15 : row[g].code[i - 16] >> 4;
    place_nibbles(lines, r, codes);
    memcpy(lines + 256 + 2 * r, &row[g].d, 2);
  }
};

template <class B, Format F, int (*code)(const B&, int)>
struct PackAffine {
  using Block = B;
  static constexpr Format kFormat = F;
  static void place(uint8_t* header, uint8_t* lines, int r, const Block* row, int64_t g) {
    const Block& b = row[g / kSuper];
    const int in = (int)(g % kSuper);
    uint8_t codes[32];
    for (int i = 0; i < 32; i++) codes[i] = (uint8_t)code(b, 32 * in + i);
    place_nibbles(lines, r, codes);
    uint8_t* scales = lines + 64 * panel_layout(F).lines;
    for (int i = 0; F == Format::q5_k && i < 32; i++) lines[256 + 4 * r + i % 4] |= (uint8_t)((codes[i] >> 4) << i / 4);
    scales[r] = (uint8_t)k_scale(b.six, in);
    scales[16 + r] = (uint8_t)k_low(b.six, in);
    memcpy(header + 2 * r, &b.d, 2);
    memcpy(header + 32 + 2 * r, &b.dmin, 2);
  }
};
using PackQ4_K = PackAffine<BlockQ4_K, Format::q4_k, code_q4_k>;
using PackQ5_K = PackAffine<BlockQ5_K, Format::q5_k, code_q5_k>;

struct PackQ6_K {
  using Block = BlockQ6_K;
  static constexpr Format kFormat = Format::q6_k;
  static void place(uint8_t* header, uint8_t* lines, int r, const Block* row, int64_t g) {
    const Block& b = row[g / kSuper];
    const int in = (int)(g % kSuper);
    uint8_t codes[32];
    for (int i = 0; i < 32; i++) codes[i] = (uint8_t)code_q6_k(b, 32 * in + i);
    place_nibbles(lines, r, codes);
    for (int i = 0; i < 32; i++) lines[256 + 64 * (i / 16) + 4 * r + i % 4] |= (uint8_t)((codes[i] >> 4) << i / 4 % 4 * 2);
    for (int h = 0; h < 2; h++) lines[384 + 16 * h + r] = (uint8_t)b.scale[2 * in + h];
    memcpy(header + 2 * r, &b.d, 2);
  }
};

template <class Pack>
void pack_blocks(void* panel, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t p) {
  constexpr PanelLayout layout = panel_layout(Pack::kFormat);
  uint8_t* out = (uint8_t*)panel;
  const int64_t groups = round_up(cols, kGroup) / kGroup;
  memset(out, 0, (size_t)layout_bytes(layout, groups));
  for (int r = 0; r < kPanel && p * kPanel + r < rows; r++) {
    const auto* row = (const typename Pack::Block*)(blocks + (p * kPanel + r) * row_bytes);
    for (int64_t g = 0; g < groups; g++) Pack::place(out + g / kSuper * layout.super(), out + group_at(layout, g), r, row, g);
  }
}

}  // namespace

int64_t panel_bytes(Format format, int64_t cols) {
  const FormatInfo& info = FORMATS[(int)format];
  if (!info.quantized) return cols * kPanel * info.block_bytes;
  return layout_bytes(panel_layout(format), round_up(cols, kGroup) / kGroup);
}

void pack_panel(void* panel, Format format, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols, int64_t p) {
  switch (format) {
    case Format::f32: return pack_floats((float*)panel, blocks, row_bytes, rows, cols, p);
    case Format::f16:
    case Format::bf16: return pack_floats((uint16_t*)panel, blocks, row_bytes, rows, cols, p);
    case Format::q8_0: return pack_blocks<PackQ8_0>(panel, blocks, row_bytes, rows, cols, p);
    case Format::q6_k: return pack_blocks<PackQ6_K>(panel, blocks, row_bytes, rows, cols, p);
    case Format::q5_k: return pack_blocks<PackQ5_K>(panel, blocks, row_bytes, rows, cols, p);
    case Format::q4_k: return pack_blocks<PackQ4_K>(panel, blocks, row_bytes, rows, cols, p);
    case Format::q4_0: return pack_blocks<PackQ4_0>(panel, blocks, row_bytes, rows, cols, p);
  }
}

}  // namespace ivlite
