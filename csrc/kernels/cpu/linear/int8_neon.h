// The integer linear layers of ARM: dot products of four columns, and panels unpacked to int8 for many tokens.
//
// A quad of a panel is four registers of 4 rows x 4 columns, and `sdot` takes four codes of a token from a lane of a register: no
// broadcast. It multiplies signed by signed, so codes below 128 need no offset to be operands; an offset that a format has is
// subtracted in the initial value of each sum.
#pragma once
#include "kernels/cpu/linear/float.h"
#include "kernels/cpu/vec/neon.h"
#include "kernels/cpu/vec/tile.h"

namespace ivlite {
namespace {

constexpr int64_t kPrefetch = 4096;
constexpr int64_t kBlockTokens = 60;  // their sums are on the stack

struct Rows16 {  // one float for each row of a panel
  float32x4_t v[4];
};
inline Rows16 floats_u8(const uint8_t* p) {
  const uint8x16_t x = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(x)), high = vmovl_high_u8(x);
  return {{vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))), vcvtq_f32_u32(vmovl_high_u16(low)), vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
           vcvtq_f32_u32(vmovl_high_u16(high))}};
}
inline Rows16 floats_i8(const uint8_t* p) {
  const int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_high_s8(x);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)), vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
           vcvtq_f32_s32(vmovl_high_s16(high))}};
}
inline Rows16 halves16(const uint8_t* p) {
  const uint16_t* h = (const uint16_t*)p;
  return {{vec::load_f16(h), vec::load_f16(h + 4), vec::load_f16(h + 8), vec::load_f16(h + 12)}};
}
inline Rows16 floats16(const float* p) { return {{vec::load(p), vec::load(p + 4), vec::load(p + 8), vec::load(p + 12)}}; }
inline Rows16 operator*(const Rows16& a, const Rows16& b) {
  return {{vec::mul(a.v[0], b.v[0]), vec::mul(a.v[1], b.v[1]), vec::mul(a.v[2], b.v[2]), vec::mul(a.v[3], b.v[3])}};
}

// Rows 4 v .. 4 v + 3 of quad j.
inline uint8x16_t nibbles(const uint8_t* w, int j, int v) {
  const uint8x16_t both = vld1q_u8(w + 64 * (j / 2) + 16 * v);
  return j % 2 ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
}
// x with bits `mask` of what is at p, shifted left by n, or right by -n.
inline int8x16_t with_bits(uint8x16_t x, const uint8_t* p, int n, int mask) {
  const uint8x16_t y = vld1q_u8(p);
  return vreinterpretq_s8_u8(vbslq_u8(vdupq_n_u8((uint8_t)mask), n >= 0 ? y << (uint8_t)n : y >> (uint8_t)-n, x));
}

// How a group at w is unpacked, its header at head. codes(w, j, v): of quad j, offset by kOffset. kHalves: 2 if the two halves of a
// group have scales of their own. scale and min: of 16 rows.
struct CodesQ8_0 {
  static constexpr Format kFormat = Format::q8_0;
  static constexpr int kOffset = 0, kHalves = 1, kBytes = (int)panel_layout(kFormat).group();
  static constexpr bool kMins = false, kStream = true;
  static int8x16_t codes(const uint8_t* w, int j, int v) { return vreinterpretq_s8_u8(vld1q_u8(w + 64 * j + 16 * v)); }
  static Rows16 scale(const uint8_t*, const uint8_t* w, int) { return halves16(w + 512); }
  static Rows16 min(const uint8_t*, const uint8_t*) { return {}; }
};
struct CodesQ4_0 : CodesQ8_0 {
  static constexpr Format kFormat = Format::q4_0;
  static constexpr int kOffset = 8, kBytes = (int)panel_layout(kFormat).group();
  static int8x16_t codes(const uint8_t* w, int j, int v) { return vreinterpretq_s8_u8(nibbles(w, j, v)); }
  static Rows16 scale(const uint8_t*, const uint8_t* w, int) { return halves16(w + 256); }
};
struct CodesQ4_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q4_k;
  static constexpr int kOffset = 0, kBytes = (int)panel_layout(kFormat).group();
  static constexpr bool kMins = true;
  static Rows16 scale(const uint8_t* head, const uint8_t* w, int) { return halves16(head) * floats_u8(w + 256); }
  static Rows16 min(const uint8_t* head, const uint8_t* w) { return halves16(head + 32) * floats_u8(w + 272); }
};
struct CodesQ5_K : CodesQ4_K {
  static constexpr Format kFormat = Format::q5_k;
  static constexpr int kBytes = (int)panel_layout(kFormat).group();
  static int8x16_t codes(const uint8_t* w, int j, int v) { return with_bits(nibbles(w, j, v), w + 256 + 16 * v, 4 - j, 16); }
  static Rows16 scale(const uint8_t* head, const uint8_t* w, int) { return halves16(head) * floats_u8(w + 320); }
  static Rows16 min(const uint8_t* head, const uint8_t* w) { return halves16(head + 32) * floats_u8(w + 336); }
};
struct CodesQ6_K : CodesQ4_0 {
  static constexpr Format kFormat = Format::q6_k;
  static constexpr int kOffset = 32, kHalves = 2, kBytes = (int)panel_layout(kFormat).group();
  static int8x16_t codes(const uint8_t* w, int j, int v) {
    return with_bits(nibbles(w, j, v), w + 256 + 64 * (j / 4) + 16 * v, 4 - 2 * (j % 4), 48);
  }
  static Rows16 scale(const uint8_t* head, const uint8_t* w, int half) { return halves16(head) * floats_i8(w + 384 + 16 * half); }
};

// T tokens x one panel, n groups from g on, added to acc (T, 16).
template <class Codes>
struct DotTile {
  static constexpr int kTokens = 3;  // 12 integer and 12 float sums, of 32 registers

  struct Tokens {  // of one group
    const int8_t* q;
    const float *scale, *shift;
    const int32_t* sum;
    int64_t ldq, lds;
    Tokens(const QuantRows& x, int64_t t, int64_t g) : ldq(x.cols), lds(x.cols / kGroup) {
      q = x.q + t * ldq + g * kGroup, scale = x.scale + t * lds + g, shift = x.shift + t * lds + g;
      sum = Codes::kHalves == 2 ? x.halves + 2 * (t * lds + g) : x.sum + t * lds + g;
    }
    void next() { q += kGroup, scale++, shift++, sum += Codes::kHalves; }
  };

  template <int T, int J>
  static void quad(int32x4_t (&s)[T][4], const uint8_t* w, const int8x16_t (&x)[T]) {
#pragma GCC unroll 2
    for (int v = 0; v < 4; v += 2) {  // neighbours are loaded by one instruction
      const int8x16_t a = Codes::codes(w, J, v), b = Codes::codes(w, J, v + 1);
#pragma GCC unroll 4
      for (int i = 0; i < T; i++) {
        s[i][v] = vdotq_laneq_s32(s[i][v], a, x[i], J % 4);
        s[i][v + 1] = vdotq_laneq_s32(s[i][v + 1], b, x[i], J % 4);
      }
    }
  }

  // Columns [16 C, 16 C + 16) of a group.
  template <int T, int C>
  static void columns(int32x4_t (&s)[T][4], const uint8_t* w, const Tokens& x) {
    int8x16_t q[T];
    for (int i = 0; i < T; i++) q[i] = vld1q_s8(x.q + i * x.ldq + 16 * C);
    quad<T, 4 * C>(s, w, q);
    quad<T, 4 * C + 1>(s, w, q);
    quad<T, 4 * C + 2>(s, w, q);
    quad<T, 4 * C + 3>(s, w, q);
  }

  template <int T>
  static void start(int32x4_t (&s)[T][4], const Tokens& x, int half) {
    for (int i = 0; i < T; i++) {
      const int32x4_t less = vdupq_n_s32(Codes::kOffset ? -Codes::kOffset * x.sum[i * x.lds * Codes::kHalves + half] : 0);
      for (int v = 0; v < 4; v++) s[i][v] = less;
    }
  }

  template <int T>
  static void block(Rows16 (&acc)[T], const int32x4_t (&s)[T][4], const Tokens& x, const Rows16& scale) {
    for (int i = 0; i < T; i++) {
      const vec::V xs = vec::set1(x.scale[i * x.lds]);
      for (int v = 0; v < 4; v++) acc[i].v[v] = vec::fma(vcvtq_f32_s32(s[i][v]), vec::mul(scale.v[v], xs), acc[i].v[v]);
    }
  }

  template <int T>
  static void group(Rows16 (&acc)[T], const uint8_t* head, const uint8_t* w, const Tokens& x) {
    int32x4_t s[T][4];
    start(s, x, 0);
    columns<T, 0>(s, w, x);
    if (Codes::kHalves == 2) {
      block(acc, s, x, Codes::scale(head, w, 0));
      start(s, x, 1);
    }
    columns<T, 1>(s, w, x);
    block(acc, s, x, Codes::scale(head, w, Codes::kHalves - 1));
    if (!Codes::kMins) return;
    const Rows16 min = Codes::min(head, w);
    for (int i = 0; i < T; i++) {
      const vec::V shift = vec::set1(x.shift[i * x.lds]);
      for (int v = 0; v < 4; v++) acc[i].v[v] = vec::fnma(min.v[v], shift, acc[i].v[v]);
    }
  }

  template <int T>
  static void run(float* to, const QuantRows& q, const uint8_t* head, const uint8_t* w, int64_t g, int64_t n, int64_t t) {
    Tokens x(q, t, g);
    Rows16 acc[T];
    for (int i = 0; i < T; i++) acc[i] = floats16(to + kPanel * i);
    for (; n > 0; n--, w += Codes::kBytes, x.next()) {
      for (int i = 0; Codes::kStream && i < Codes::kBytes; i += 64) __builtin_prefetch(w + kPrefetch + i);
      group<T>(acc, head, w, x);
    }
    for (int i = 0; i < T; i++)
      for (int v = 0; v < 4; v++) vec::store(to + kPanel * i + 4 * v, acc[i].v[v]);
  }

  // Tokens [t, t + tokens).
  static void run_all(float* acc, const QuantRows& q, const uint8_t* head, const uint8_t* w, int64_t g, int64_t n, int64_t t,
                      int64_t tokens) {
    for (; tokens >= 3; tokens -= 3, t += 3, acc += 3 * kPanel) run<3>(acc, q, head, w, g, n, t);
    if (tokens == 2) run<2>(acc, q, head, w, g, n, t);
    if (tokens == 1) run<1>(acc, q, head, w, g, n, t);
  }
};

// A panel unpacked once for many tokens: kSuper groups at a time become int8 codes without offset and float scales, on the stack
// and in L1. Order is the layout of codes and floats there.
template <class Codes, class Order>
struct Unpacked {
  static constexpr int kOffset = 0, kHalves = Codes::kHalves, kBytes = 512 + 4 * Order::kRow * (kHalves + Codes::kMins);
  static constexpr bool kMins = Codes::kMins, kStream = false;
  static int8x16_t codes(const uint8_t* w, int j, int v) { return CodesQ8_0::codes(w, j, v); }
  static const float* floats(const uint8_t* w, int i) { return (const float*)(w + 512) + Order::kRow * i; }
  static Rows16 scale(const uint8_t*, const uint8_t* w, int half) { return floats16(floats(w, half)); }
  static Rows16 min(const uint8_t*, const uint8_t* w) { return floats16(floats(w, kHalves)); }

  static void unpack(uint8_t* to, const uint8_t* head, const uint8_t* w, int64_t n) {
    for (; n > 0; n--, w += Codes::kBytes, to += kBytes) {
      for (int i = 0; i < Codes::kBytes; i += 64) __builtin_prefetch(w + kPrefetch + i);
#pragma GCC unroll 4
      for (int j = 0; j < 8; j += 2)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
          const int8x16_t less = vdupq_n_s8(Codes::kOffset);
          Order::put(to + 64 * j, v, vsubq_s8(Codes::codes(w, j, v), less), vsubq_s8(Codes::codes(w, j + 1, v), less));
        }
      float* floats = (float*)(to + 512);
      for (int h = 0; h < kHalves; h++) Order::put(floats + Order::kRow * h, Codes::scale(head, w, h));
      if (kMins) Order::put(floats + Order::kRow * kHalves, Codes::min(head, w));
    }
  }
};

// The layout of panels themselves: quads.
struct Dots {
  template <class Codes>
  using Tile = DotTile<Codes>;
  static constexpr int kRow = kPanel;
  static constexpr int64_t kFrom = 9;  // tokens from which unpacking pays, by instruction counts: from 4 (q6_k) to 15 (q8_0)
  static void put(uint8_t* to, int v, int8x16_t a, int8x16_t b) {
    vst1q_s8((int8_t*)to + 16 * v, a);
    vst1q_s8((int8_t*)to + 64 + 16 * v, b);
  }
  static void put(float* to, const Rows16& x) {
    for (int v = 0; v < 4; v++) vec::store(to + 4 * v, x.v[v]);
  }
  static void store(const LinearArgs& a, const float* acc, int64_t p, int64_t t, int64_t tokens) {
    for (int64_t i = 0; i < tokens; i++)
      for (int r = 0; r < kPanel; r += vec::kLanes) store_rows(a, t + i, p * kPanel + r, vec::load(acc + i * kPanel + r));
  }
};

template <class Codes>
struct Few : Dots {  // tokens: multiplied by the packed panels
  static void add(float* acc, const QuantRows& q, const uint8_t* head, int64_t g, int64_t n, int64_t t, int64_t tokens) {
    DotTile<Codes>::run_all(acc, q, head, head + panel_layout(Codes::kFormat).header, g, n, t, tokens);
  }
};
template <class Codes, class Order>
struct Many : Order {
  static void add(float* acc, const QuantRows& q, const uint8_t* head, int64_t g, int64_t n, int64_t t, int64_t tokens) {
    using Int8 = Unpacked<Codes, Order>;
    alignas(64) uint8_t unpacked[kSuper * Int8::kBytes];
    Int8::unpack(unpacked, head, head + panel_layout(Codes::kFormat).header, n);
    Order::template Tile<Int8>::run_all(acc, q, nullptr, unpacked, g, n, t, tokens);
  }
};

// Panels [p0, p1) x tokens [t, t + tokens).
template <class Codes, class Way>
void neon_panels(const LinearArgs& a, int64_t p0, int64_t p1, int64_t t, int64_t tokens) {
  constexpr PanelLayout kLayout = panel_layout(Codes::kFormat);
  const int64_t groups = a.xq.cols / kGroup, stride = layout_bytes(kLayout, groups);
  alignas(64) float acc[kBlockTokens * kPanel];
  for (int64_t p = p0; p < p1; p++) {
    const uint8_t* head = (const uint8_t*)a.panels + p * stride;
    fill(acc, (tokens + 1) / 2 * 2 * kPanel, 0);
    for (int64_t g = 0; g < groups; g += kSuper, head += kLayout.super())
      Way::add(acc, a.xq, head, g, groups - g < kSuper ? groups - g : kSuper, t, tokens);
    Way::store(a, acc, p, t, tokens);
  }
}

// Blocks of tokens whose activations stay in L2 while the panels stream past them.
template <class Codes, class Order>
void linear_neon(const LinearArgs& a, int64_t p0, int64_t p1) {
  const int64_t cached = token_block(a.xq.cols, DotTile<Codes>::kTokens), block = cached < kBlockTokens ? cached : kBlockTokens;
  for (int64_t t = 0; t < a.tokens; t += block) {
    const int64_t tokens = a.tokens - t < block ? a.tokens - t : block;
    if (tokens < Order::kFrom)
      neon_panels<Codes, Few<Codes>>(a, p0, p1, t, tokens);
    else
      neon_panels<Codes, Many<Codes, Order>>(a, p0, p1, t, tokens);
  }
}

template <class Order>
inline void init_int8_neon(KernelTable& t) {
  t.linear[(int)Format::q8_0] = linear_neon<CodesQ8_0, Order>;
  t.linear[(int)Format::q6_k] = linear_neon<CodesQ6_K, Order>;
  t.linear[(int)Format::q5_k] = linear_neon<CodesQ5_K, Order>;
  t.linear[(int)Format::q4_k] = linear_neon<CodesQ4_K, Order>;
  t.linear[(int)Format::q4_0] = linear_neon<CodesQ4_0, Order>;
}

}  // namespace
}  // namespace ivlite
