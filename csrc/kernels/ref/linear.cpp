// Linear layers in plain C++: double sums for float weights, exact integer sums per group for quantised ones.
#include <math.h>
#include <string.h>

#include "formats/bf16.h"
#include "formats/f16.h"
#include "kernels/pack.h"
#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

void store(const LinearArgs& a, int64_t t, int64_t row, double value) {
  if (row >= a.rows) return;
  float* y = a.y + t * a.ldy + row;
  if (a.bias) value += a.bias[row];
  *y = (float)(a.accumulate ? *y + value : value);
}

float weight(const float* p) { return *p; }
struct Half {
  static float get(const uint16_t* p) { return f16_to_f32(*p); }
};
struct Brain {
  static float get(const uint16_t* p) { return bf16_to_f32(*p); }
};
struct Single {
  static float get(const float* p) { return weight(p); }
};

template <class T, class Read>
void linear_float(const LinearArgs& a, int64_t p0, int64_t p1) {
  for (int64_t p = p0; p < p1; p++) {
    const T* panel = (const T*)a.panels + p * a.cols * kPanel;
    for (int64_t t = 0; t < a.tokens; t++)
      for (int r = 0; r < kPanel; r++) {
        double sum = 0;
        for (int64_t k = 0; k < a.cols; k++) sum += (double)Read::get(panel + k * kPanel + r) * a.x[t * a.ldx + k];
        store(a, t, p * kPanel + r, sum);
      }
  }
}

// Unpacks codes and scales from a panel: weight = scale code - min. `in` is a half of a group, 16 columns.
int nibble(const uint8_t* vectors, int r, int k) {
  const uint8_t byte = vectors[64 * (k / 8) + 4 * r + k % 4];
  return k % 8 < 4 ? byte & 15 : byte >> 4;
}
float half_at(const uint8_t* p, int r) {
  uint16_t h;
  memcpy(&h, p + 2 * r, 2);
  return f16_to_f32(h);
}

struct ReadQ8_0 {
  static constexpr Format kFormat = Format::q8_0;
  static int code(const uint8_t* vectors, int r, int k) { return (int8_t)vectors[64 * (k / 4) + 4 * r + k % 4]; }
  static double scale(const uint8_t*, const uint8_t* scales, int r, int) { return half_at(scales, r); }
  static double min(const uint8_t*, const uint8_t*, int) { return 0; }
};
struct ReadQ4_0 : ReadQ8_0 {
  static constexpr Format kFormat = Format::q4_0;
  static int code(const uint8_t* vectors, int r, int k) { return nibble(vectors, r, k) - 8; }
};
struct ReadQ4_K {
  static constexpr Format kFormat = Format::q4_k;
  static int code(const uint8_t* vectors, int r, int k) { return nibble(vectors, r, k); }
  static double scale(const uint8_t* header, const uint8_t* scales, int r, int) { return half_at(header, r) * scales[r]; }
  static double min(const uint8_t* header, const uint8_t* scales, int r) { return half_at(header + 32, r) * scales[16 + r]; }
};
struct ReadQ5_K : ReadQ4_K {
  static constexpr Format kFormat = Format::q5_k;
  static int code(const uint8_t* vectors, int r, int k) { return nibble(vectors, r, k) | (vectors[256 + 4 * r + k % 4] >> k / 4 & 1) << 4; }
};
struct ReadQ6_K {
  static constexpr Format kFormat = Format::q6_k;
  static int code(const uint8_t* vectors, int r, int k) {
    return (nibble(vectors, r, k) | (vectors[256 + 64 * (k / 16) + 4 * r + k % 4] >> k / 4 % 4 * 2 & 3) << 4) - 32;
  }
  static double scale(const uint8_t* header, const uint8_t* scales, int r, int in) {
    return half_at(header, r) * (int8_t)scales[16 * in + r];
  }
  static double min(const uint8_t*, const uint8_t*, int) { return 0; }
};

// One group of one row times one token, without the token's scale.
template <class Read>
double group_dot(const uint8_t* panel, int64_t g, int r, const int8_t* x, int32_t sum) {
  constexpr PanelLayout layout = panel_layout(Read::kFormat);
  const uint8_t *header = panel + g / kSuper * layout.super(), *vectors = panel + group_at(layout, g),
                *scales = vectors + 64 * layout.vectors;
  int32_t dot[2] = {};
  for (int k = 0; k < kGroup; k++) dot[k / 16] += Read::code(vectors, r, k) * x[k];
  return dot[0] * Read::scale(header, scales, r, 0) + dot[1] * Read::scale(header, scales, r, 1) - sum * Read::min(header, scales, r);
}

template <class Read>
void linear_quant(const LinearArgs& a, int64_t p0, int64_t p1) {
  const int64_t groups = a.xq.cols / kGroup;
  for (int64_t p = p0; p < p1; p++) {
    const uint8_t* panel = (const uint8_t*)a.panels + p * layout_bytes(panel_layout(Read::kFormat), groups);
    for (int64_t t = 0; t < a.tokens; t++)
      for (int r = 0; r < kPanel; r++) {
        double sum = 0;
        for (int64_t g = 0; g < groups; g++) {
          const int64_t at = t * groups + g;
          sum += a.xq.scale[at] * group_dot<Read>(panel, g, r, a.xq.q + at * kGroup, a.xq.sum[at]);
        }
        store(a, t, p * kPanel + r, sum);
      }
  }
}

void quantize_rows(const QuantRows& out, const Part& p) {
  int64_t groups = out.cols / kGroup;
  for (int64_t t = p.t0; t < p.t1; t++)
    for (int64_t g = p.c0 / kGroup; g * kGroup < p.c1; g++) {
      const float* x = p.x + t * p.ldx - p.c0;
      float absmax = 0;
      for (int64_t k = g * kGroup; k < (g + 1) * kGroup && k < p.c1; k++) absmax = larger(absmax, x[k]);
      const QuantScale quant = quant_scale(absmax, 127);
      int32_t half[2] = {};
      for (int64_t k = g * kGroup; k < (g + 1) * kGroup; k++) {
        int8_t code = k < p.c1 && quant.inverse > 0 ? (int8_t)rintf(x[k] * quant.inverse) : 0;
        out.q[t * out.cols + k] = code;
        half[k % kGroup / 16] += code;
      }
      const int64_t at = t * groups + g;
      out.scale[at] = quant.scale;
      out.sum[at] = half[0] + half[1];
      out.halves[2 * at] = half[0], out.halves[2 * at + 1] = half[1];
      out.shift[at] = quant.scale * (float)out.sum[at];
    }
}

}  // namespace

void init_ref_linear(KernelTable& t) {
  t.linear[(int)Format::f32] = linear_float<float, Single>;
  t.linear[(int)Format::f16] = linear_float<uint16_t, Half>;
  t.linear[(int)Format::bf16] = linear_float<uint16_t, Brain>;
  t.linear[(int)Format::q8_0] = linear_quant<ReadQ8_0>;
  t.linear[(int)Format::q6_k] = linear_quant<ReadQ6_K>;
  t.linear[(int)Format::q5_k] = linear_quant<ReadQ5_K>;
  t.linear[(int)Format::q4_k] = linear_quant<ReadQ4_K>;
  t.linear[(int)Format::q4_0] = linear_quant<ReadQ4_0>;
  t.quantize_rows = quantize_rows;
}

}  // namespace ivlite
