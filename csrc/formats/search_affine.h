// The search of q4_k and q5_k: weight = scale q - low with low >= 0, for eight groups of 32 that make one block, and
// their scales and mins as 6-bit multiples of two numbers of the block.
#pragma once
#include "formats/search.h"

namespace ivlite {
namespace {

struct AffineFit {
  Lanes scale, low, gain;  // gain: the part of sum w x^2 that the fit explains
};

// The block's two numbers, and the multiples of each group.
struct AffineBlock {
  float d, dmin;
  Lanes scale, low;  // whole numbers 0..63
};

using Groups32 = Groups<32>;

// Least squares for given codes, with low >= 0.
inline AffineFit fit_codes(const Groups32& g, const CodeSums& s) {
  const Lanes det = g.sum_w * s.qq - s.q * s.q;
  AffineFit f;
  f.scale = ratio(g.sum_w * s.xq - g.sum_x * s.q, det);
  f.low = (f.scale * s.q - g.sum_x) / g.sum_w;
  f.scale = pick(f.low < 0, most(ratio(s.xq, s.qq), 0), f.scale);
  f.low = most(f.low, 0);
  f.gain = f.scale * (s.xq + s.xq - f.scale * s.qq) - f.low * (Lanes(2) * (g.sum_x - f.scale * s.q) + f.low * g.sum_w);
  return f;
}

inline void keep_better(AffineFit& best, const AffineFit& f) {
  const Mask better = best.gain < f.gain;
  best.scale = pick(better, f.scale, best.scale);
  best.low = pick(better, f.low, best.low);
  best.gain = most(best.gain, f.gain);
}

// Tries widths around the one that spans the weights, most of them wider, then lets codes and fit settle on each other.
inline AffineFit fit_affine(const Groups32& g, float top) {
  Lanes low, high = g.x[0];
  for (int i = 0; i < 32; i++) low = least(low, g.x[i]), high = most(high, g.x[i]);
  const Lanes unit = ratio(1, high - low);
  AffineFit best{(high - low) / top, Lanes() - low, -3e38f};
  for (int k = -5; k < 5; k++) {
    const Lanes inverse = unit * (top + 0.4f * (float)k);
    keep_better(best, fit_codes(g, code_sums(g, inverse, (Lanes() - low) * inverse, 0, top)));
  }
  for (int k = 0; k < 2; k++) {
    const Lanes inverse = ratio(1, best.scale);
    keep_better(best, fit_codes(g, code_sums(g, inverse, best.low * inverse, 0, top)));
  }
  return best;
}

// The multiples nearest to a fit, among them the ones next to `scale`: rounding it moves the best low and the codes.
inline Lanes settle(const Groups32& g, AffineBlock& b, float top, CodeSums& sums) {
  const Lanes start = b.scale, start_low = b.low;
  Lanes gain = -3e38f;
  for (float k = -1; k <= 1; k++) {
    const Lanes scale = between(start + k, 0, 63), width = scale * b.d, inverse = ratio(1, width);
    const CodeSums s = code_sums(g, inverse, start_low * b.dmin * inverse, 0, top);
    const Lanes best = (width * s.q - g.sum_x) / g.sum_w;
    const Lanes low = b.dmin > 0 ? between(whole(best * (1 / b.dmin)), 0, 63) : Lanes(), m = low * b.dmin;
    const Lanes now = width * (s.xq + s.xq - width * s.qq) - m * (Lanes(2) * (g.sum_x - width * s.q) + m * g.sum_w);
    const Mask better = gain < now;
    b.scale = pick(better, scale, b.scale);
    b.low = pick(better, low, b.low);
    sums = {pick(better, s.q, sums.q), pick(better, s.qq, sums.qq), pick(better, s.xq, sums.xq)};
    gain = most(gain, now);
  }
  return gain;
}

// The block's two numbers that fit best once codes and multiples are given.
inline void refit(AffineBlock& b, const Groups32& g, const CodeSums& s) {
  const float aa = total(b.scale * b.scale * s.qq), ab = total(b.scale * b.low * s.q), bb = total(b.low * b.low * g.sum_w);
  const float xa = total(b.scale * s.xq), xb = total(b.low * g.sum_x), det = aa * bb - ab * ab;
  if (aa > 0) b.d = half(det > 0 ? (xa * bb - ab * xb) / det : xa / aa);
  if (det > 0) b.dmin = half((ab * xa - aa * xb) / det);
  if (b.d < 0) b.d = 0;
  if (b.dmin < 0) b.dmin = 0;
}

// Reads and fits the 256 weights of a block, whose codes go up to top.
inline AffineBlock fit_block(Groups32& g, const float* x, const float* importance, float top) {
  float w[256];
  costs(w, importance, 256);
  load(g, x, w);
  const AffineFit fit = fit_affine(g, top);
  float scale = 0, low = 0;
  for (int k = 0; k < kFits; k++) scale = fmaxf(scale, fit.scale[k]), low = fmaxf(low, fit.low[k]);
  AffineBlock b{half(scale / 63), half(low / 63), {}, {}}, best{};
  float gain = -INFINITY;
  for (int r = 0; r < 3; r++) {
    if (r == 0) {
      b.scale = b.d > 0 ? between(whole(fit.scale * (1 / b.d)), 0, 63) : Lanes();
      b.low = b.dmin > 0 ? between(whole(fit.low * (1 / b.dmin)), 0, 63) : Lanes();
    }
    CodeSums sums;
    const float now = total(settle(g, b, top, sums));
    if (now > gain) best = b, gain = now;
    refit(b, g, sums);
  }
  return best;
}

// The codes of group k under a fitted block.
inline void affine_codes(uint8_t* codes, const Groups32& g, const AffineBlock& b, float top) {
  const Lanes inverse = ratio(1, b.scale * b.d), offset = b.low * b.dmin * inverse;
  for (int i = 0; i < 32; i++) {
    const Lanes q = between(whole(g.x[i] * inverse + offset), 0, top);
    for (int k = 0; k < kFits; k++) codes[32 * k + i] = (uint8_t)q[k];
  }
}

}  // namespace
}  // namespace ivlite
