// Quantized weights times 1 to 4 tokens by dot products of four bytes.
//
// A warp has 16 rows. Lane 4 r + q has rows r and r + 8 and group q of each step of 4 groups: 4 lanes read 64 bytes of a row
// side by side, and the next steps' loads are on their way while one is multiplied.
#pragma once
#include "kernels/cuda/linear_sum.cuh"

namespace ivlite::cuda {

// A group of one row, as stored.
template <Format F>
struct RawGroup {
  static constexpr int kCodes = code_bytes(F) / 16;
  Bytes16 codes[kCodes];
  uint32_t high[2], header;
  uint16_t scale;

  IVLITE_DEVICE void load(const RowPlanes<F>& row, int group) {
    // The two halves of a group of q8_0 come from one sector: the second finds it in L1.
    IVLITE_UNROLL
    for (int i = 0; i < kCodes; i++) {
      const uint8_t* at = row.codes(group) + 16 * i;
      codes[i] = kCodes == 1 ? load16_once(at) : load16(at);
    }
    if constexpr (F == Format::q5_k) high[0] = high[1] = load4(row.high(group));
    if constexpr (F == Format::q6_k) {
      const Bytes8 bits = load8(row.high(group));
      high[0] = bits.w[0], high[1] = bits.w[1];
    }
    scale = *row.scales(group);
    header = row.header(group);
  }

  // Codes in the order of an activation chunk's words.
  IVLITE_DEVICE void open(uint32_t words[8]) const {
    IVLITE_UNROLL
    for (int i = 0; i < 8; i++) {
      if constexpr (F == Format::q8_0)
        words[i] = codes[i % 2].w[i / 2];
      else
        words[i] = four_codes<F>(codes[0].w[i / 2], high[i % 2], i % 2, i / 2);
    }
  }
};

// Adds the products of one group of two rows.
template <Format F, int Tokens>
IVLITE_DEVICE void add_group(float sum[2][Tokens], const RawGroup<F> raw[2], const Int8Rows& x, int group) {
  uint32_t words[2][8];
  Affine by[2][2];
  IVLITE_UNROLL
  for (int r = 0; r < 2; r++) raw[r].open(words[r]), affines<F>(by[r], raw[r].scale, raw[r].header);
  IVLITE_UNROLL
  for (int t = 0; t < Tokens; t++) {
    const int chunk = t * x.token_step + group;
    const Bytes16 codes[2] = {load16(x.codes + 32 * chunk), load16(x.codes + 32 * chunk + 16)};
    const Bytes8 of = load8(x.chunks + chunk);
    const Starts<F> start = starts<F>(of.w[1]);
    IVLITE_UNROLL
    for (int r = 0; r < 2; r++) {
      int32_t dot[2] = {start.first, start.second};
      IVLITE_UNROLL
      for (int i = 0; i < 8; i++) {
        int32_t& to = dot[kHalves<F> ? i % 2 : 0];
        to = dot4((int32_t)words[r][i], (int32_t)codes[i / 4].w[i % 4], to);
      }
      sum[r][t] = fmaf(group_value<F>(by[r], dot[0], dot[1], start.sum), float_of(of.w[0]), sum[r][t]);
    }
  }
}

// The sums of a warp's rows to partial[20 t + row].
template <Format F, int Tokens>
IVLITE_DEVICE void dot_sums(float* partial, const DeviceWeight& w, const Int8Rows& x, const WarpPart& part) {
  constexpr int depth = Tokens <= 2 && (F == Format::q4_0 || F == Format::q4_k) ? 4 : 2;  // steps whose loads are under way together
  const int lane = thread_x() % kWarp, q = lane % 4, r = lane / 4;
  const RowPlanes<F> rows[2] = {{w, part.row(0, r)}, {w, part.row(1, r)}};
  float sum[2][Tokens] = {};
  for (int step = part.first; step < part.steps; step += depth * part.every) {
    RawGroup<F> raw[depth][2];
    IVLITE_UNROLL
    for (int d = 0; d < depth; d++)
      if (step + d * part.every < part.steps)
        for (int i = 0; i < 2; i++) raw[d][i].load(rows[i], kStepGroups * (step + d * part.every) + q);
    IVLITE_UNROLL
    for (int d = 0; d < depth; d++)
      if (step + d * part.every < part.steps) add_group<F, Tokens>(sum, raw[d], x, kStepGroups * (step + d * part.every) + q);
  }
  IVLITE_UNROLL
  for (int i = 0; i < 2; i++) {
    IVLITE_UNROLL
    for (int t = 0; t < Tokens; t++) {
      float s = sum[i][t];
      s += shuffle_xor(s, 1), s += shuffle_xor(s, 2);
      if (q == t) partial[kPartialRows * t + 8 * i + r] = s;
    }
  }
}

}  // namespace ivlite::cuda
