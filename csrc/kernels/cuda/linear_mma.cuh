// Quantized weights times 5 to 16 tokens on the matrix unit, to the same bits as by dot products.
//
// A warp has 16 rows, the rows of the first operand; tokens are the columns of the second. Codes are copied to a ring in shared
// memory of the warp's own, some steps of 4 groups ahead. A row of a step has chunks of 16 bytes, stored at other places of the
// row so that one chunk of 8 rows lies in different banks. So are high bits; scales go through registers, one step ahead. Each group is a
// product by itself, since it has its own scale; the sums of the 4 groups of a step are kept apart, as lanes keep them apart
// where dot products are used.
#pragma once
#include "kernels/cuda/linear_sum.cuh"

namespace ivlite::cuda {

constexpr int kRing = 4;  // steps in the ring
constexpr int stage_bytes(Format f) { return 16 * kStepGroups * (code_bytes(f) + high_bytes(f)); }
constexpr int ring_bytes(Format f) { return kRing * stage_bytes(f); }

// The scales of a thread's rows g and g + 8 in a step.
template <Format F>
struct StepScales {
  Bytes8 scales[2];
  uint32_t header[2];

  IVLITE_DEVICE void load(const RowPlanes<F> rows[2], int step) {
    IVLITE_UNROLL
    for (int i = 0; i < 2; i++) scales[i] = load8(rows[i].scales(kStepGroups * step)), header[i] = rows[i].header(kStepGroups * step);
  }
  IVLITE_DEVICE uint16_t scale(int i, int q) const { return (uint16_t)(scales[i].w[q / 2] >> q % 2 * 16); }
};

template <Format F, int Tokens>
struct MmaWarp {
  static constexpr int kChunks = kStepGroups * code_bytes(F) / 16, kOctets = Tokens / 8;

  uint8_t* ring;
  const Int8Rows& x;
  const WarpPart& part;
  int g, tig;  // lane / 4, lane % 4
  RowPlanes<F> rows[2];
  float sum[kStepGroups][kOctets][4];

  IVLITE_DEVICE MmaWarp(uint8_t* ring, const DeviceWeight& w, const Int8Rows& x, const WarpPart& part, int lane)
      : ring(ring), x(x), part(part), g(lane / 4), tig(lane % 4), rows{{w, part.row(0, g)}, {w, part.row(1, g)}}, sum{} {}

  // Where a chunk of a row's codes lies in place n of the ring, and where the row's high bits do.
  IVLITE_DEVICE uint8_t* slot(int n, int row, int chunk) const {
    const int turned = kChunks == 4 ? chunk ^ (row / 2 & 3) : chunk ^ (row & 7);
    return ring + n * stage_bytes(F) + 16 * (row * kChunks + turned);
  }
  IVLITE_DEVICE uint8_t* high_slot(int n, int row) const {
    return ring + n * stage_bytes(F) + 256 * kChunks + row * kStepGroups * high_bytes(F);
  }

  // Starts the copy of a step to place n; of one after the last, none.
  IVLITE_DEVICE void copy(int n, int step) const {
    if (step < part.steps) {
      IVLITE_UNROLL
      for (int i = 0; i < 2; i++) {
        IVLITE_UNROLL
        for (int k = 0; k < kChunks / 4; k++) {
          const int chunk = tig + (g + k) % (kChunks / 4) * 4;  // of two rows beside one another, not the same half: other banks
          copy_async16(slot(n, 8 * i + g, chunk), rows[i].codes(kStepGroups * step) + 16 * chunk);
        }
      }
      constexpr int pieces = high_bytes(F) / 4;  // of 16 bytes, of a row
      if (tig < 2 * pieces) {
        const int i = tig % 2, at = 16 * (tig / 2);
        copy_async16(high_slot(n, 8 * i + g) + at,
                     rows[0].w.high + (int64_t)((i ? rows[1].first : rows[0].first) + kStepGroups * step) * high_bytes(F) + at);
      }
    }
    commit_copies();
  }

  // The high bits of group q of this lane's i-th row, by halves.
  IVLITE_DEVICE Bytes8 high(int n, int i, int q) const {
    if constexpr (high_bytes(F) == 0) return {};
    const uint8_t* at = high_slot(n, 8 * i + g) + q * high_bytes(F);
    if constexpr (F == Format::q6_k) return load8(at);
    const uint32_t bits = load4(at);
    return {{bits, bits}};
  }

  // A group's codes of rows g and g + 8 as the first operand: of the first half of the columns, then of the second. `raw`: the
  // rows' words of nibbles.
  IVLITE_DEVICE void open(uint32_t a[4], const uint32_t raw[2], int n, int q) const {
    IVLITE_UNROLL
    for (int i = 0; i < 2; i++) {
      const Bytes8 bits = high(n, i, q);
      a[i] = four_codes<F>(raw[i], bits.w[0], 0, tig);
      a[2 + i] = four_codes<F>(raw[i], bits.w[1], 1, tig);
    }
    if constexpr (kHalves<F>)  // less their offset: no sums need to begin with it
      for (int i = 0; i < 4; i++) a[i] = ((a[i] | 0x80808080u) - 0x01010101u * kCodeOffset<F>)^0x80808080u;
  }

  // Adds group q of a step to its sums.
  IVLITE_DEVICE void add(const uint32_t a[4], int step, int q, const StepScales<F>& by_row) {
    Affine by[2][2];
    IVLITE_UNROLL
    for (int i = 0; i < 2; i++) affines<F>(by[i], by_row.scale(i, q), by_row.header[i]);
    IVLITE_UNROLL
    for (int o = 0; o < kOctets; o++) {
      if (kOctets == 1) sync_warp();  // or the compiler loads the next activations too, and runs out of registers
      const int chunk = (kStepGroups * step + q) * x.group_step + 8 * o;
      const Bytes8 b = load8(x.codes + 32 * (chunk + g) + 8 * tig);
      const Bytes16 of = load16(x.chunks + chunk + 2 * tig);  // of this lane's two tokens
      int32_t first[4] = {kSumStart, kSumStart, kSumStart, kSumStart}, second[4] = {kSumStart, kSumStart, kSumStart, kSumStart};
      float sums[2] = {};
      if constexpr (kHalves<F>) {
        const uint32_t low[2] = {b.w[0], 0}, high[2] = {0, b.w[1]};
        mma_s8(first, a, low), mma_s8(second, a, high);
      } else {
        IVLITE_UNROLL
        for (int j = 0; j < 2; j++) {
          const Starts<F> start = starts<F>(of.w[2 * j + 1]);
          first[j] = first[2 + j] = start.first, sums[j] = start.sum;
        }
        mma_s8(first, a, b.w);
      }
      IVLITE_UNROLL
      for (int j = 0; j < 4; j++) {
        const float value = group_value<F>(by[j / 2], first[j], second[j], sums[j % 2]);
        sum[q][o][j] = fmaf(value, float_of(of.w[j % 2 * 2]), sum[q][o][j]);
      }
    }
  }

  IVLITE_DEVICE void run() {
    StepScales<F> next;
    if (part.first < part.steps) next.load(rows, part.first);
    for (int n = 0; n < kRing - 1; n++) copy(n, part.first + n * part.every);
    int n = 0;
    for (int step = part.first; step < part.steps; step += part.every, n = (n + 1) % kRing) {
      wait_copies<kRing - 2>();
      sync_warp();  // all lanes' copies have landed, and all have read what is overwritten now
      copy((n + kRing - 1) % kRing, step + (kRing - 1) * part.every);
      const StepScales<F> now = next;
      if (step + part.every < part.steps) next.load(rows, step + part.every);
      IVLITE_UNROLL
      for (int q = 0; q < kStepGroups; q += 2) {
        uint32_t a[4], raw[4];
        if constexpr (F != Format::q8_0) ldmatrix_x4(raw, slot(n, (4 * g + tig) % 16, q + (4 * g + tig) / 16));  // of two groups
        IVLITE_UNROLL
        for (int k = 0; k < 2; k++) {
          if constexpr (F == Format::q8_0)
            ldmatrix_x4(a, slot(n, (4 * g + tig) % 16, 2 * (q + k) + (4 * g + tig) / 16));
          else
            open(a, raw + 2 * k, n, q + k);
          add(a, step, q + k, now);
        }
      }
    }
  }

  // The sums of the warp's rows to partial[kPartialRows t + row].
  IVLITE_DEVICE void store(float* partial) const {
    IVLITE_UNROLL
    for (int o = 0; o < kOctets; o++) {
      IVLITE_UNROLL
      for (int j = 0; j < 4; j++)
        partial[kPartialRows * (8 * o + 2 * tig + j % 2) + 8 * (j / 2) + g] = (sum[0][o][j] + sum[1][o][j]) + (sum[2][o][j] + sum[3][o][j]);
    }
  }
};

}  // namespace ivlite::cuda
