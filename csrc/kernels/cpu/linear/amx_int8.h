// Linear layers of many tokens on tiles of bytes: panels are opened and activations rounded as for 512-bit VNNI
// (unpack_avx512.h), and the sums are the same to the last bit. A product of bytes takes as long as one of half as many bf16.
#pragma once
#include "kernels/cpu/vec/amx_tile.h"

namespace ivlite {
namespace {

constexpr int64_t kFoldPanels = 16, kTileFolds = 4;   // opened together: 136 KB
constexpr int64_t kFoldTokens = 512;                  // sums of these and kFoldPanels stay in L2
constexpr int64_t kCodesBytes = kTileSide * kBlockK;  // of 16 tokens: two tiles
constexpr int64_t kSums = kTileSide * kTileSide;

// Codes of 16 tokens x kBlockK columns are two tiles: (t, k) goes to byte
// ((t / 16) folds + k / 128) 2048 + k % 128 / 64 1024 + (t % 16) 64 + k % 64. Behind them all, 16 scales for each two tiles.
void round_fold_tiles(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t folds = folds_of(cols), tiles = (tokens + kTileSide - 1) / kTileSide,
                whole = (p.t1 + kTileSide - 1) / kTileSide * kTileSide;
  uint8_t* codes = (uint8_t*)out;
  float* scales = (float*)(codes + tiles * folds * kCodesBytes);
  for (int64_t t = p.t0; t < whole; t++)
    for (int64_t f = p.c0 / kBlockK; f * kBlockK < p.c1; f++) {
      const int64_t at = t / kTileSide * folds + f, left = t < tokens ? p.c1 - f * kBlockK : 0;
      alignas(64) int8_t row[kBlockK];
      scales[at * kTileSide + t % kTileSide] = round_fold(row, p.x + t * p.ldx + f * kBlockK - p.c0, left < kBlockK ? left : kBlockK);
      uint8_t* to = codes + at * kCodesBytes + t % kTileSide * 64;
      _mm512_store_si512(to, _mm512_load_si512(row));
      _mm512_store_si512(to + 1024, _mm512_load_si512(row + 64));
    }
}

// What is multiplied: one fold of kA tiles of tokens and of kB panels.
struct TileFold {
  const uint8_t *a[2], *b[2];
  const float* scales[2];  // of the tokens
  float* sums[2][2];       // (16 tokens, 16 rows) of each pair

  void advance() {
    for (int i = 0; i < 2; i++) a[i] += kCodesBytes, scales[i] += kTileSide, b[i] += kFoldBytes;
  }
};

// Folds pass through it: tiles multiply one, keep it until the next needs them, and vectors add it to the sums while two more
// are multiplied. A tile that is stored right after its product, or read right after it is stored, is waited for.
template <int kA, int kB>
class FoldPipe {
 public:
  void push(const TileFold& x) {
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

  // Adds what has not been added.
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
  alignas(64) int32_t products_[2][4][kSums];  // of even and odd folds
  TileFold older_, last_;
  int64_t count_ = 0;

  int32_t* stored(int tile) { return products_[(count_ - 1) & 1][tile]; }

  // Of the fold before the last its second tile of tokens is left, or its only one.
  void add_older(int row) {
    if (count_ > 1) add(older_, count_, kA - 1, row, 4);
  }
  void add_last(int row) {
    if (kA > 1 && count_ > 0) add(last_, count_ - 1, 0, row, 4);
  }

  // Rows [row, row + n) of the products of tokens' tile i with all panels.
  void add(const TileFold& fold, int64_t parity, int i, int row, int n) {
#pragma GCC unroll 2
    for (int k = 0; k < kB; k++) {
      const int32_t* products = products_[parity & 1][2 * i + k];
      const __m512 ws = vec::load((const float*)(fold.b[k] + 64 * kFoldLines));
#pragma GCC unroll 16
      for (int r = row; r < row + n; r++) {
        const __m512 scale = vec::mul(ws, vec::set1(fold.scales[i][r]));
        float* sums = fold.sums[i][k] + 16 * r;
        vec::store(sums, _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(products + 16 * r)), scale, vec::load(sums)));
      }
    }
  }
};

// Where the operands of a block lie: `tiles` tiles of tokens, n folds.
struct FoldBlock {
  const uint8_t *codes, *opened;
  const float* scales;
  float* sums;  // (panels, tiles, 16 tokens, 16 rows)
  int64_t folds, tiles, n;

  TileFold at(int64_t t, int64_t p) const {
    TileFold x;
    for (int i = 0; i < 2; i++) {
      x.a[i] = codes + (t + i) * folds * kCodesBytes;
      x.scales[i] = scales + (t + i) * folds * kTileSide;
      x.b[i] = opened + (p + i) * n * kFoldBytes;
      for (int k = 0; k < 2; k++) x.sums[i][k] = sums + ((p + k) * tiles + t + i) * kSums;
    }
    return x;
  }
};

// kA tiles of tokens from t on x `panels` panels, kB at a time; returns those that were taken.
template <int kA, int kB>
inline int64_t multiply_panels(const FoldBlock& block, int64_t t, int64_t p, int64_t panels) {
  FoldPipe<kA, kB> pipe;
  for (; p + kB <= panels; p += kB) {
    TileFold x = block.at(t, p);
    for (int64_t f = 0; f < block.n; f++, x.advance()) pipe.push(x);
  }
  pipe.drain();
  return p;
}

template <int kA>
inline void multiply_tiles(const FoldBlock& block, int64_t t, int64_t panels) {
  const int64_t p = multiply_panels<kA, 2>(block, t, 0, panels);
  multiply_panels<kA, 1>(block, t, p, panels);
}

template <class Lines>
void linear_folds(const LinearArgs& a, int64_t p0, int64_t p1) {
  constexpr int64_t kOpened = kFoldPanels * kTileFolds * kFoldBytes;
  static_assert(kOpened + kFoldPanels * kFoldTokens * kTileSide * 4 <= kGemmScratch);
  const int64_t groups = a.xq.cols / kGroup, folds = folds_of(a.xq.cols), stride = layout_bytes(panel_layout(Lines::kFormat), groups);
  const uint8_t* codes = (const uint8_t*)a.gemm_x;
  const float* scales = (const float*)(codes + (a.tokens + kTileSide - 1) / kTileSide * folds * kCodesBytes);
  uint8_t* opened = (uint8_t*)a.scratch;
  float* sums = (float*)(opened + kOpened);
  UseTiles use;
  for (int64_t t = 0; t < a.tokens; t += kFoldTokens)
    for (int64_t p = p0; p < p1; p += kFoldPanels) {
      const int64_t tokens = a.tokens - t < kFoldTokens ? a.tokens - t : kFoldTokens, tiles = (tokens + kTileSide - 1) / kTileSide;
      const int64_t panels = p1 - p < kFoldPanels ? p1 - p : kFoldPanels;
      memset(sums, 0, (size_t)(panels * tiles * kSums) * 4);
      for (int64_t f = 0; f < folds; f += kTileFolds) {
        const int64_t n = folds - f < kTileFolds ? folds - f : kTileFolds;
        for (int64_t i = 0; i < panels * n; i++) {
          const int64_t g = (f + i % n) * kFoldGroups, left = groups - g < kFoldGroups ? groups - g : kFoldGroups;
          open_fold<Lines>(opened + i * kFoldBytes, (const uint8_t*)a.panels + (p + i / n) * stride, g, left);
        }
        const int64_t at = t / kTileSide * folds + f;
        const FoldBlock block{codes + at * kCodesBytes, opened, scales + at * kTileSide, sums, folds, tiles, n};
        for (int64_t i = 0; i + 2 <= tiles; i += 2) multiply_tiles<2>(block, i, panels);
        if (tiles % 2) multiply_tiles<1>(block, tiles - 1, panels);
      }
      for (int64_t i = 0; i < tokens; i++)
        for (int64_t k = 0; k < panels; k++)
          store_rows(a, t + i, (p + k) * kPanel, vec::load(sums + (k * tiles * kTileSide + i) * kTileSide));
    }
}

template <class Lines>
inline void set_folds(KernelTable& t) {
  t.linear_gemm[(int)Lines::kFormat] = linear_folds<Lines>;
  t.quantize_gemm[(int)Lines::kFormat] = round_fold_tiles;
}

inline void init_amx_folds(KernelTable& t) {
  set_folds<LinesQ6_K>(t);
  set_folds<LinesQ5_K>(t);
  set_folds<LinesQ4_K>(t);
  set_folds<LinesQ4_0>(t);
  t.gemm_from = 16, t.gemm_panels = kFoldPanels;
}

}  // namespace
}  // namespace ivlite
