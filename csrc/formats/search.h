// What the searching encoders share: eight groups of weights are fitted side by side, one per lane, so that no sum ever
// crosses lanes.
#pragma once
#include "formats/f16.h"
#include "formats/lanes.h"

namespace ivlite {
namespace {

constexpr int kFits = 8;  // groups fitted together

inline float total(const Lanes& x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }
inline float half(float x) { return f16_to_f32(f32_to_f16(x)); }

// N weights of each of the eight groups, and what errors in them cost.
template <int N>
struct Groups {
  Lanes x[N], w[N], wx[N];
  Lanes sum_w, sum_x;  // of w, of w x
};

// Sums over the codes q that some scale gives: of w q, w q^2 and w x q.
struct CodeSums {
  Lanes q, qq, xq;
};

// What a squared error costs in each of n weights: the importance of their column, 1 on average, and 1 without
// importance. A small floor keeps columns that calibration never saw.
inline void costs(float* w, const float* importance, int n) {
  double sum = 0;
  for (int i = 0; importance && i < n; i++) sum += importance[i];
  const float scale = sum > 0 ? (float)(n / sum) : 0;
  for (int i = 0; i < n; i++) w[i] = scale > 0 ? importance[i] * scale + 1e-4f : 1;
}

// Reads `count` groups of N consecutive weights, at most eight; lanes without one are zero.
template <int N>
inline void load(Groups<N>& g, const float* x, const float* w, int count = kFits) {
  g.sum_w = g.sum_x = 0;
  for (int i = 0; i < N; i++) {
    for (int k = 0; k < kFits; k++) {
      g.x[i].set(k, k < count ? x[N * k + i] : 0);
      g.w[i].set(k, k < count ? w[N * k + i] : 1);
    }
    g.wx[i] = g.w[i] * g.x[i];
    g.sum_w += g.w[i];
    g.sum_x += g.wx[i];
  }
}

// Codes of [low, high] nearest to x inverse + offset.
template <int N>
inline CodeSums code_sums(const Groups<N>& g, const Lanes& inverse, const Lanes& offset, float low, float high) {
  CodeSums s;
  for (int i = 0; i < N; i++) {
    const Lanes q = between(whole(g.x[i] * inverse + offset), low, high), wq = g.w[i] * q;
    s.q += wq;
    s.qq += wq * q;
    s.xq += g.wx[i] * q;
  }
  return s;
}

// weight = scale q, q in [low, high]. Tries scales around the one that gives the largest weight the code `low`, most of
// them wider, and keeps the one of least error after its own best fit. gain: the part of sum w x^2 that codes explain.
template <int N>
inline Lanes fit_scale(const Groups<N>& g, float low, float high, float step) {
  Lanes top, gain, scale;
  for (int i = 0; i < N; i++) top = pick(size(top) < size(g.x[i]), g.x[i], top);
  const Lanes unit = ratio(1, top);
  for (int k = -3; k <= 10; k++) {
    const CodeSums s = code_sums(g, unit * (low + step * (float)k), 0, low, high);
    const Lanes now = ratio(s.xq * s.xq, s.qq), better = ratio(s.xq, s.qq);
    scale = pick(gain < now, better, scale);
    gain = most(gain, now);
  }
  return scale;
}

}  // namespace
}  // namespace ivlite
