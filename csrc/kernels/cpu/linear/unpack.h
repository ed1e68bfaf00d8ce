// The driver of the GEMM path: panels are unpacked to int8 or int16 once for all tokens, by k-blocks of kBlockK columns with one
// activation scale each. Unpacked, of each instruction set, is:
//   kFormat, kPanels, kBytes        the format, how many panels are multiplied together, bytes of an unpacked k-block of a panel
//   unpack(to, panel, g0, groups)   unpacks groups [g0, g0 + groups) of a panel, at most 4, as one k-block, padded with zeros
//   ActBlock                        a k-block of quantized activations: kCodes bytes of codes and kScales bytes of scale and sums,
//                                   written by quantize(codes, scales, x, n) from n values, padded with zeros; kTogether: how many
//                                   k-blocks of a token are stored together
//   Tile                            run<T, P>(sums, first, of, acts): sums (T, P, 16) += P unpacked panels x T <= kTokens tokens,
//                                   or = if `first`
#pragma once
#include "kernels/cpu/linear/float.h"

namespace ivlite {
namespace {

constexpr int64_t kBlockQuads = kBlockK / 4, kBlockGroups = kBlockK / kGroup;
constexpr int64_t kUnpackedTokens = 1024;  // per unpacking: their sums stay in L2

inline int64_t k_blocks(int64_t cols) { return (cols + kBlockK - 1) / kBlockK; }

// Bytes of a token's n k-blocks: all codes, then all scales.
template <class ActBlock>
constexpr int64_t act_bytes(int64_t blocks) {
  return blocks * (ActBlock::kCodes + ActBlock::kScales);
}

// Quantizes activations: kTogether k-blocks of all tokens, then the next kTogether.
template <class ActBlock>
void quantize_act_blocks(uint16_t* out, int64_t tokens, int64_t cols, const Part& p) {
  const int64_t blocks = k_blocks(cols), last = k_blocks(p.c1);
  for (int64_t kb = p.c0 / kBlockK, kb0 = kb / ActBlock::kTogether * ActBlock::kTogether; kb < last; kb0 += ActBlock::kTogether) {
    const int64_t n = blocks - kb0 < ActBlock::kTogether ? blocks - kb0 : ActBlock::kTogether, begin = kb,
                  end = kb0 + n < last ? kb0 + n : last;
    uint8_t* acts = (uint8_t*)out + tokens * act_bytes<ActBlock>(kb0);
    for (int64_t t = p.t0; t < p.t1; t++)
      for (kb = begin; kb < end; kb++) {
        uint8_t* act = acts + t * act_bytes<ActBlock>(n);
        const int64_t at = kb - kb0, left = p.c1 - kb * kBlockK;
        ActBlock::quantize(act + at * ActBlock::kCodes, act + n * ActBlock::kCodes + at * ActBlock::kScales,
                           p.x + t * p.ldx + kb * kBlockK - p.c0, left < kBlockK ? left : kBlockK);
      }
  }
}

// Takes int8 codes with one scale per token as k-blocks.
template <class ActBlock>
void take_act_codes(uint16_t* out, int64_t tokens, int64_t cols, const int8_t* codes, const float* scale, int64_t t0, int64_t t1) {
  const int64_t blocks = k_blocks(cols);
  for (int64_t kb0 = 0; kb0 < blocks; kb0 += ActBlock::kTogether) {
    const int64_t n = blocks - kb0 < ActBlock::kTogether ? blocks - kb0 : ActBlock::kTogether;
    for (int64_t t = t0; t < t1; t++) {
      uint8_t* act = (uint8_t*)out + tokens * act_bytes<ActBlock>(kb0) + t * act_bytes<ActBlock>(n);
      for (int64_t kb = 0; kb < n; kb++) {
        const int64_t at = (kb0 + kb) * kBlockK, left = cols - at;
        ActBlock::take(act + kb * ActBlock::kCodes, act + n * ActBlock::kCodes + kb * ActBlock::kScales, codes + (t - t0) * cols + at,
                       left < kBlockK ? left : kBlockK, scale[t - t0]);
      }
    }
  }
}

// P unpacked panels: `blocks` k-blocks, of the last of which `quads` quads are not zero.
struct KBlocks {
  const uint8_t* w;
  int64_t stride;  // bytes from panel to panel
  int64_t blocks, quads;
};

// Prefetches the activations of the next T tokens, one of kSteps parts per k-block: a tile's rows are short streams, which end as
// soon as the hardware prefetcher has found them.
template <class ActBlock, int T, int kSteps>
inline void prefetch_acts(const uint8_t* acts, int64_t act, int64_t step) {
  constexpr int kLinesEach = (T * act_bytes<ActBlock>(1) + 64 * kSteps - 1) / (64 * kSteps);
  const uint8_t* next = acts + T * act + 64 * kLinesEach * step;
  for (int i = 0; i < kLinesEach; i++) __builtin_prefetch(next + 64 * i);
}

// Any number of tokens.
template <class Tile, int P, int T = Tile::kTokens>
inline void multiply_tokens(float* sums, bool first, const KBlocks& of, const uint8_t* acts, int64_t tokens) {
  if constexpr (T == Tile::kTokens)
    for (; tokens >= T; tokens -= T, sums += T * P * 16, acts += T * act_bytes<typename Tile::ActBlock>(of.blocks))
      Tile::template run<T, P>(sums, first, of, acts);
  if constexpr (T > 1) {
    if (tokens == T - 1) return Tile::template run<T - 1, P>(sums, first, of, acts);
    multiply_tokens<Tile, P, T - 1>(sums, first, of, acts, tokens);
  }
}

// P panels from p on x tokens [t, t + tokens).
template <class Unpacked, int P>
inline void unpacked_panels(const LinearArgs& a, int64_t p, int64_t t, int64_t tokens) {
  using ActBlock = typename Unpacked::ActBlock;
  constexpr int64_t kBlock = ActBlock::kTogether, kStride = kBlock * Unpacked::kBytes;
  const int64_t groups = a.xq.cols / kGroup, blocks = k_blocks(a.xq.cols);
  const int64_t panel = layout_bytes(panel_layout(Unpacked::kFormat), groups);
  uint8_t* unpacked = (uint8_t*)a.scratch;
  float* sums = (float*)(unpacked + Unpacked::kPanels * kStride);
  for (int64_t kb0 = 0; kb0 < blocks; kb0 += kBlock) {
    const int64_t n = blocks - kb0 < kBlock ? blocks - kb0 : kBlock;
    for (int k = 0; k < P; k++)
      for (int64_t kb = kb0; kb < kb0 + n; kb++) {
        const int64_t g = kb * kBlockGroups, left = groups - g < kBlockGroups ? groups - g : kBlockGroups;
        Unpacked::unpack(unpacked + k * kStride + (kb - kb0) * Unpacked::kBytes, (const uint8_t*)a.panels + (p + k) * panel, g, left);
      }
    const uint8_t* acts = (const uint8_t*)a.gemm_x + a.tokens * act_bytes<ActBlock>(kb0) + t * act_bytes<ActBlock>(n);
    multiply_tokens<typename Unpacked::Tile, P>(sums, kb0 == 0, {unpacked, kStride, n, kBlockQuads}, acts, tokens);
  }
  for (int64_t i = 0; i < tokens; i++)
    for (int k = 0; k < P; k++)
      for (int j = 0; j < kPanel; j += vec::kLanes) store_rows(a, t + i, (p + k) * kPanel + j, vec::load(sums + (i * P + k) * kPanel + j));
}

template <class Unpacked>
void linear_unpacked(const LinearArgs& a, int64_t p0, int64_t p1) {
  static_assert(Unpacked::kPanels * (Unpacked::ActBlock::kTogether * Unpacked::kBytes + kUnpackedTokens * kPanel * 4) <= kGemmScratch);
  static_assert(Unpacked::ActBlock::kCodes + Unpacked::ActBlock::kScales <= 2 * kBlockK + kBlockScales);
  for (int64_t t = 0; t < a.tokens; t += kUnpackedTokens) {
    const int64_t tokens = a.tokens - t < kUnpackedTokens ? a.tokens - t : kUnpackedTokens;
    int64_t p = p0;
    for (; p + Unpacked::kPanels <= p1; p += Unpacked::kPanels) unpacked_panels<Unpacked, Unpacked::kPanels>(a, p, t, tokens);
    for (; p < p1; p++) unpacked_panels<Unpacked, 1>(a, p, t, tokens);
  }
}

template <class Unpacked>
inline void set_unpacked(KernelTable& t) {
  t.linear_gemm[(int)Unpacked::kFormat] = linear_unpacked<Unpacked>;
  t.quantize_gemm[(int)Unpacked::kFormat] = quantize_act_blocks<typename Unpacked::ActBlock>;
}

}  // namespace
}  // namespace ivlite
