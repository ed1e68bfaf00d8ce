// The operations of a warp, each done once for all lanes.
#include <math.h>
#include <string.h>

#include "check.h"
#include "emulator.h"
#include "formats/bf16.h"
#include "formats/f16.h"

namespace ivlite::cuda::emulator {

namespace {

constexpr uint32_t kAll = ~0u;

// f(lane, operand) for every lane that takes part.
template <class T, class F>
void each(void* const operands[kLanes], uint32_t lanes, F f) {
  for (int i = 0; i < kLanes; i++)
    if (lanes >> i & 1) f(i, *(T*)operands[i]);
}

void need_all(uint32_t lanes, const char* what) {
  if (lanes != kAll) fail(std::string(what) + " needs all lanes of a warp, and some have ended");
}

// Sums or maxima in the order of shuffle_xor.
template <class T, class F>
void butterfly(void* const operands[kLanes], uint32_t lanes, F f) {
  need_all(lanes, "a sum or a maximum of a warp");
  T v[kLanes], next[kLanes];
  for (int i = 0; i < kLanes; i++) v[i] = *(T*)operands[i];
  for (int mask = kLanes / 2; mask; mask /= 2) {
    for (int i = 0; i < kLanes; i++) next[i] = f(v[i], v[i ^ mask]);
    memcpy(v, next, sizeof(v));
  }
  for (int i = 0; i < kLanes; i++) *(T*)operands[i] = v[i];
}

}  // namespace

void nothing(void* const[kLanes], uint32_t) { pass_warp(); }

void shuffle(void* const operands[kLanes], uint32_t lanes) {
  uint32_t values[kLanes];
  each<Shuffled>(operands, lanes, [&](int i, Shuffled& s) { values[i] = s.value; });
  each<Shuffled>(operands, lanes, [&](int, Shuffled& s) {
    if (!(lanes >> s.from & 1)) fail("a shuffle takes the value of a lane that has ended");
    s.value = values[s.from];
  });
}

void any(void* const operands[kLanes], uint32_t lanes) {
  int found = 0;
  each<int>(operands, lanes, [&](int, int& v) { found |= v; });
  each<int>(operands, lanes, [&](int, int& v) { v = found; });
}

void float_sum(void* const operands[kLanes], uint32_t lanes) {
  butterfly<float>(operands, lanes, [](float a, float b) { return a + b; });
}
void float_max(void* const operands[kLanes], uint32_t lanes) {
  butterfly<float>(operands, lanes, [](float a, float b) { return fmaxf(a, b); });
}
void int_sum(void* const operands[kLanes], uint32_t lanes) {
  butterfly<int>(operands, lanes, [](int a, int b) { return (int)((unsigned)a + (unsigned)b); });
}

namespace {

template <int Count, bool Transposed>
void matrices(void* const operands[kLanes], uint32_t lanes) {
  need_all(lanes, "ldmatrix");
  uint16_t rows[8 * Count][8];
  for (int i = 0; i < 8 * Count; i++) {
    const void* row = ((const Matrices*)operands[i])->row;
    if ((uintptr_t)row % 16) fail("ldmatrix needs rows at multiples of 16 bytes");
    check_lane(i, row, 16, Access::read, warp_place());
    memcpy(rows[i], row, 16);
  }
  for (int lane = 0; lane < kLanes; lane++)
    for (int m = 0; m < Count; m++) {
      const int r = lane / 4, c = 2 * (lane % 4);
      const uint16_t lo = Transposed ? rows[8 * m + c][r] : rows[8 * m + r][c];
      const uint16_t hi = Transposed ? rows[8 * m + c + 1][r] : rows[8 * m + r][c + 1];
      ((const Matrices*)operands[lane])->r[m] = lo | (uint32_t)hi << 16;
    }
}

// Elements of the register of a fragment, widened.
struct Bf16 {
  static constexpr int kPer = 2;
  using Wide = float;
  static void open(Wide* out, uint32_t bits) { out[0] = bf16_to_f32((uint16_t)bits), out[1] = bf16_to_f32((uint16_t)(bits >> 16)); }
};
struct Half {
  static constexpr int kPer = 2;
  using Wide = float;
  static void open(Wide* out, uint32_t bits) { out[0] = f16_to_f32((uint16_t)bits), out[1] = f16_to_f32((uint16_t)(bits >> 16)); }
};
struct Int8 {
  static constexpr int kPer = 4;
  using Wide = int32_t;
  static void open(Wide* out, uint32_t bits) {
    for (int i = 0; i < 4; i++) out[i] = (int8_t)(bits >> 8 * i);
  }
};

// d += a b, along K in its order.
template <class E>
void multiply(void* const operands[kLanes], uint32_t lanes) {
  using Wide = typename E::Wide;
  constexpr int kPer = E::kPer, kDepth = 8 * kPer;
  need_all(lanes, "mma");
  Wide a[16][kDepth], b[8][kDepth], across[kDepth][8], d[16][8];
  for (int lane = 0; lane < kLanes; lane++) {
    const Fragments& f = *(const Fragments*)operands[lane];
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) E::open(&a[g + i % 2 * 8][(t + i / 2 * 4) * kPer], f.a[i]);
    for (int i = 0; i < 2; i++) E::open(&b[g][(t + i * 4) * kPer], f.b[i]);
    for (int i = 0; i < 4; i++) d[g + i / 2 * 8][2 * t + i % 2] = ((const Wide*)f.d)[i];
  }
  for (int k = 0; k < kDepth; k++)
    for (int n = 0; n < 8; n++) across[k][n] = b[n][k];
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < kDepth; k++)
      for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * across[k][n];
  for (int lane = 0; lane < kLanes; lane++) {
    const Fragments& f = *(const Fragments*)operands[lane];
    for (int i = 0; i < 4; i++) ((Wide*)f.d)[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

}  // namespace

void ldmatrix_x4(void* const operands[kLanes], uint32_t lanes) { matrices<4, false>(operands, lanes); }
void ldmatrix_x4_trans(void* const operands[kLanes], uint32_t lanes) { matrices<4, true>(operands, lanes); }
void ldmatrix_x2(void* const operands[kLanes], uint32_t lanes) { matrices<2, false>(operands, lanes); }
void mma_bf16(void* const operands[kLanes], uint32_t lanes) { multiply<Bf16>(operands, lanes); }
void mma_f16(void* const operands[kLanes], uint32_t lanes) { multiply<Half>(operands, lanes); }
void mma_s8(void* const operands[kLanes], uint32_t lanes) { multiply<Int8>(operands, lanes); }

}  // namespace ivlite::cuda::emulator
