// The driver of the integer linear layers over panels and tokens. Tile, of each instruction set, multiplies kPanels panels by
// kTokens tokens, or kStreams panels by one token. run<T, P, Stream> takes T tokens and P panels; Stream: prefetch the panels,
// they come from memory.
#pragma once
#include "kernels/cpu/linear/float.h"

namespace ivlite {
namespace {

// The rows of a tile's tokens from two base pointers: base, base + stride and base + 2 stride are addressing modes, so six rows
// need three registers.
template <class E>
struct TileRows {
  const E *low, *high;
  int64_t stride;
  TileRows(const E* p, int64_t stride) : low(p), high(p + 3 * stride), stride(stride) {}
  const E* row(int i) const { return (i < 3 ? low : high) + i % 3 * stride; }
  void advance(int64_t n) { low += n, high += n; }
};

// P panels from p on x n tokens from t on, n < N.
template <class Tile, int N, int P, bool Stream>
inline void int8_tokens(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t t, int64_t n) {
  if constexpr (N > 1) {
    if (n == N - 1) return Tile::template run<N - 1, P, Stream>(a, w, p, t);
    int8_tokens<Tile, N - 1, P, Stream>(a, w, p, t, n);
  }
}

// P panels x tokens [b, end): the first tile loads the panels from memory, the others from L2.
template <class Tile, int P>
inline void int8_panels(const LinearArgs& a, const uint8_t* w, int64_t p, int64_t b, int64_t end) {
  constexpr int T = Tile::kTokens;
  if (end - b < T) return int8_tokens<Tile, T, P, true>(a, w, p, b, end - b);
  Tile::template run<T, P, true>(a, w, p, b);
  for (b += T; b + T <= end; b += T) Tile::template run<T, P, false>(a, w, p, b);
  int8_tokens<Tile, T, P, false>(a, w, p, b, end - b);
}

// Blocks of tokens whose activations stay in L2 while the panels stream past them.
template <class Tile>
void linear_int8(const LinearArgs& a, int64_t p0, int64_t p1) {
  constexpr int P = Tile::kPanels, S = Tile::kStreams;
  const int64_t stride = layout_bytes(Tile::kLayout, a.xq.cols / kGroup);
  const int64_t block = token_block(a.xq.cols, Tile::kTokens);
  for (int64_t b = 0; b < a.tokens; b += block) {
    const int64_t end = a.tokens - b < block ? a.tokens : b + block;
    const uint8_t* w = (const uint8_t*)a.panels + p0 * stride;
    int64_t p = p0;
    for (; end - b > 1 && p + P <= p1; p += P, w += P * stride) int8_panels<Tile, P>(a, w, p, b, end);
    for (; end - b == 1 && p + S <= p1; p += S, w += S * stride) Tile::template run<1, S, true>(a, w, p, b);
    for (; p < p1; p++, w += stride) int8_panels<Tile, 1>(a, w, p, b, end);
  }
}

}  // namespace
}  // namespace ivlite
