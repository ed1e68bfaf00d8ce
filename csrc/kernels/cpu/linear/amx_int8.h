// The GEMM path of 4 to 6-bit weights on AMX: panels are unpacked and activations quantized as for AVX-512 VNNI
// (unpack_avx512.h), and the results are bit-identical. An int8 tile product takes as long as a bf16 one of half the columns.
#pragma once
#include "kernels/cpu/linear/unpack_avx512.h"
#include "kernels/cpu/vec/amx_tile.h"

namespace ivlite {
namespace {

constexpr int64_t kGemmPanels = 16, kGemmBlocks = 4;  // unpacked together: 136 KB
constexpr int64_t kGemmTokens = 512;                  // sums of these and kGemmPanels stay in L2
constexpr int64_t kCodesBytes = kTileSide * kBlockK;  // of 16 tokens: two tiles
constexpr int64_t kSums = kTileSide * kTileSide;

// Codes of 16 tokens x kBlockK columns are two tiles: (t, k) goes to byte
// ((t / 16) blocks + k / 128) 2048 + k % 128 / 64 1024 + (t % 16) 64 + k % 64. After all codes, 16 scales for each two tiles.
void quantize_tiles(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t blocks = k_blocks(cols), tiles = (tokens + kTileSide - 1) / kTileSide,
                padded = (p.t1 + kTileSide - 1) / kTileSide * kTileSide;
  uint8_t* codes = (uint8_t*)out;
  float* scales = (float*)(codes + tiles * blocks * kCodesBytes);
  for (int64_t t = p.t0; t < padded; t++)
    for (int64_t kb = p.c0 / kBlockK; kb * kBlockK < p.c1; kb++) {
      const int64_t at = t / kTileSide * blocks + kb, left = t < tokens ? p.c1 - kb * kBlockK : 0;
      alignas(64) int8_t row[kBlockK];
      scales[at * kTileSide + t % kTileSide] = quantize_block(row, p.x + t * p.ldx + kb * kBlockK - p.c0, left < kBlockK ? left : kBlockK);
      uint8_t* to = codes + at * kCodesBytes + t % kTileSide * 64;
      _mm512_store_si512(to, _mm512_load_si512(row));
      _mm512_store_si512(to + 1024, _mm512_load_si512(row + 64));
    }
}

// The operands of one k-block: kA tiles of tokens and kB panels.
struct TileOperands {
  const uint8_t *a[2], *b[2];
  const float* scales[2];  // of the tokens
  float* sums[2][2];       // (16 tokens, 16 rows) of each pair

  void advance() {
    for (int i = 0; i < 2; i++) a[i] += kCodesBytes, scales[i] += kTileSide, b[i] += kUnpackedBytes;
  }
};

// A software pipeline over k-blocks: the tiles multiply one block and keep it while vectors scale and add the block before.
// A tile that is stored right after its product, or read right after its store, would stall.
template <int kA, int kB>
class TilePipeline {
 public:
  void push(const TileOperands& x) {
    _tile_loadd(6, x.b[0], 64);
    _tile_loadd(4, x.a[0], 64);
    if (count_ > 0) _tile_stored(0, stored(0), 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    add_older(0);
    if constexpr (kB > 1) {
      _tile_loadd(7, x.b[1], 64);
      if (count_ > 0) _tile_stored(1, stored(1), 64);
      _tile_zero(1);
      _tile_dpbssd(1, 4, 7);
    }
    add_older(4);
    if constexpr (kA > 1) {
      _tile_loadd(5, x.a[1], 64);
      if (count_ > 0) _tile_stored(2, stored(2), 64);
      _tile_zero(2);
      _tile_dpbssd(2, 5, 6);
    }
    add_older(8);
    if constexpr (kA > 1 && kB > 1) {
      if (count_ > 0) _tile_stored(3, stored(3), 64);
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
    }
    add_older(12);
    _tile_loadd(6, x.b[0] + 1024, 64);
    _tile_loadd(4, x.a[0] + 1024, 64);
    _tile_dpbssd(0, 4, 6);
    add_last(0);
    if constexpr (kB > 1) {
      _tile_loadd(7, x.b[1] + 1024, 64);
      _tile_dpbssd(1, 4, 7);
    }
    add_last(4);
    if constexpr (kA > 1) {
      _tile_loadd(5, x.a[1] + 1024, 64);
      _tile_dpbssd(2, 5, 6);
    }
    add_last(8);
    if constexpr (kA > 1 && kB > 1) _tile_dpbssd(3, 5, 7);
    add_last(12);
    older_ = last_, last_ = x;
    count_++;
  }

  // Adds the blocks still in the pipeline.
  void drain() {
    if (count_ == 0) return;
    _tile_stored(0, stored(0), 64);
    if constexpr (kB > 1) _tile_stored(1, stored(1), 64);
    if constexpr (kA > 1) _tile_stored(2, stored(2), 64);
    if constexpr (kA > 1 && kB > 1) _tile_stored(3, stored(3), 64);
    if (count_ > 1) add(older_, count_, kA - 1, 0, 16);
    for (int i = 0; i < kA; i++) add(last_, count_ - 1, i, 0, 16);
    count_ = 0;
  }

 private:
  alignas(64) int32_t products_[2][4][kSums];  // of even and odd blocks
  TileOperands older_, last_;
  int64_t count_ = 0;

  int32_t* stored(int tile) { return products_[(count_ - 1) & 1][tile]; }

  // Of the block before the last, only the second tile of tokens (or the only one) is still to be added.
  void add_older(int row) {
    if (count_ > 1) add(older_, count_, kA - 1, row, 4);
  }
  void add_last(int row) {
    if (kA > 1 && count_ > 0) add(last_, count_ - 1, 0, row, 4);
  }

  // Rows [row, row + n) of the products of token tile i with all panels.
  void add(const TileOperands& block, int64_t parity, int i, int row, int n) {
#pragma GCC unroll 2
    for (int k = 0; k < kB; k++) {
      const int32_t* products = products_[parity & 1][2 * i + k];
      const __m512 ws = vec::load((const float*)(block.b[k] + 64 * kBlockQuads));
#pragma GCC unroll 16
      for (int r = row; r < row + n; r++) {
        const __m512 scale = vec::mul(ws, vec::set1(block.scales[i][r]));
        float* sums = block.sums[i][k] + 16 * r;
        vec::store(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products + 16 * r)), scale, vec::load(sums)));
      }
    }
  }
};

// The operands of a block of tokens and panels: `tiles` tiles of tokens, n k-blocks.
struct GemmBlock {
  const uint8_t *codes, *unpacked;
  const float* scales;
  float* sums;  // (panels, tiles, 16 tokens, 16 rows)
  int64_t blocks, tiles, n;

  TileOperands at(int64_t t, int64_t p) const {
    TileOperands x;
    for (int i = 0; i < 2; i++) {
      x.a[i] = codes + (t + i) * blocks * kCodesBytes;
      x.scales[i] = scales + (t + i) * blocks * kTileSide;
      x.b[i] = unpacked + (p + i) * n * kUnpackedBytes;
      for (int k = 0; k < 2; k++) x.sums[i][k] = sums + ((p + k) * tiles + t + i) * kSums;
    }
    return x;
  }
};

// kA tiles of tokens from t on x `panels` panels, kB at a time; returns how many panels were done.
template <int kA, int kB>
inline int64_t multiply_panels(const GemmBlock& block, int64_t t, int64_t p, int64_t panels) {
  TilePipeline<kA, kB> pipe;
  for (; p + kB <= panels; p += kB) {
    TileOperands x = block.at(t, p);
    for (int64_t kb = 0; kb < block.n; kb++, x.advance()) pipe.push(x);
  }
  pipe.drain();
  return p;
}

template <int kA>
inline void multiply_tiles(const GemmBlock& block, int64_t t, int64_t panels) {
  const int64_t p = multiply_panels<kA, 2>(block, t, 0, panels);
  multiply_panels<kA, 1>(block, t, p, panels);
}

template <class Codes>
void linear_int8_tiles(const LinearArgs& a, int64_t p0, int64_t p1) {
  constexpr int64_t kOpened = kGemmPanels * kGemmBlocks * kUnpackedBytes;
  static_assert(kOpened + kGemmPanels * kGemmTokens * kTileSide * 4 <= kGemmScratch);
  const int64_t groups = a.xq.cols / kGroup, blocks = k_blocks(a.xq.cols), stride = layout_bytes(panel_layout(Codes::kFormat), groups);
  const uint8_t* codes = (const uint8_t*)a.gemm_x;
  const float* scales = (const float*)(codes + (a.tokens + kTileSide - 1) / kTileSide * blocks * kCodesBytes);
  uint8_t* unpacked = (uint8_t*)a.scratch;
  float* sums = (float*)(unpacked + kOpened);
  UseTiles use;
  for (int64_t t = 0; t < a.tokens; t += kGemmTokens)
    for (int64_t p = p0; p < p1; p += kGemmPanels) {
      const int64_t tokens = a.tokens - t < kGemmTokens ? a.tokens - t : kGemmTokens, tiles = (tokens + kTileSide - 1) / kTileSide;
      const int64_t panels = p1 - p < kGemmPanels ? p1 - p : kGemmPanels;
      memset(sums, 0, (size_t)(panels * tiles * kSums) * 4);
      for (int64_t kb = 0; kb < blocks; kb += kGemmBlocks) {
        const int64_t n = blocks - kb < kGemmBlocks ? blocks - kb : kGemmBlocks;
        for (int64_t i = 0; i < panels * n; i++) {
          const int64_t g = (kb + i % n) * kBlockGroups, left = groups - g < kBlockGroups ? groups - g : kBlockGroups;
          unpack_block<Codes>(unpacked + i * kUnpackedBytes, (const uint8_t*)a.panels + (p + i / n) * stride, g, left);
        }
        const int64_t at = t / kTileSide * blocks + kb;
        const GemmBlock block{codes + at * kCodesBytes, unpacked, scales + at * kTileSide, sums, blocks, tiles, n};
        for (int64_t i = 0; i + 2 <= tiles; i += 2) multiply_tiles<2>(block, i, panels);
        if (tiles % 2) multiply_tiles<1>(block, tiles - 1, panels);
      }
      for (int64_t i = 0; i < tokens; i++)
        for (int64_t k = 0; k < panels; k++)
          store_rows(a, t + i, (p + k) * kPanel, vec::load(sums + (k * tiles * kTileSide + i) * kTileSide));
    }
}

template <class Codes>
inline void set_int8_tiles(KernelTable& t) {
  t.linear_gemm[(int)Codes::kFormat] = linear_int8_tiles<Codes>;
  t.quantize_gemm[(int)Codes::kFormat] = quantize_tiles;
}

inline void init_amx_int8(KernelTable& t) {
  set_int8_tiles<CodesQ6_K>(t);
  set_int8_tiles<CodesQ5_K>(t);
  set_int8_tiles<CodesQ4_K>(t);
  set_int8_tiles<CodesQ4_0>(t);
  t.gemm_from = 16, t.gemm_panels = kGemmPanels;
}

}  // namespace
}  // namespace ivlite
