// Products of many rows on tensor cores: y[t, r] = sum_k w[r, k] x[t, k], w packed as in weight.cuh, x in bf16 or half.
//
// A block computes Rows weight rows x Tokens outputs and goes along K in steps of kGroups groups of 32 columns. Weights are
// the rows of the mma's first operand, tokens the columns of its second. Copies of x and of the packed codes run kStages - 1
// steps ahead into a ring in shared memory; scales, mins and high bits go through registers, one step ahead. Each step opens
// the next step's codes to bf16 in one of two buffers while the tensor cores work on the other: a weight exists opened for
// one step of one block. Float weights are not opened: their tiles come through the ring.
//
// Every tile adds along K in the same order, 16 columns at a time, so an output's bits do not depend on the tile.
//
// Tiles in shared memory are rows of chunks of 16 bytes. A chunk is stored at another place of its row (slot), so that 8 rows
// of one chunk, which is what ldmatrix and the opening threads access together, lie in different banks.
#pragma once
#include "intrinsics.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/gemm_tiles.h"
#include "kernels/cuda/weight.cuh"

namespace ivlite::cuda {

template <int Chunks>
IVLITE_DEVICE int slot(int row, int chunk) {
  constexpr int rows_per_line = Chunks < 8 ? 8 / Chunks : 1, mask = Chunks < 8 ? Chunks - 1 : 7;
  return row * Chunks + (chunk ^ (row / rows_per_line & mask));
}

template <Format F, int Rows, int Tokens>
struct Tile {
  static constexpr bool kOpened = F != Format::f16;
  static constexpr int kThreads = 256, kStages = 4;
  static constexpr int kDepth = gemm_depth(Tokens), kGroups = kDepth / 32;
  static constexpr int kWarpsDown = Rows == 256 || Tokens < 128 ? 4 : 2, kWarpsAcross = 8 / kWarpsDown;
  static constexpr int kWarpRows = Rows / kWarpsDown, kWarpTokens = Tokens / kWarpsAcross;
  static constexpr int kChunks = kDepth / 8;  // of a row of x, or of opened weights
  static constexpr int kCodeChunks = !kOpened ? kChunks : (F == Format::q8_0 ? 2 : 1) * kGroups;
  static constexpr int kTokenBytes = 16 * Tokens * kChunks, kCodeBytes = 16 * Rows * kCodeChunks;
  static constexpr int kStageBytes = kTokenBytes + kCodeBytes, kOpenBytes = kOpened ? 16 * Rows * kChunks : 0;
  static constexpr int kShared = kStages * kStageBytes + 2 * kOpenBytes;
};

// The output of row i of all tiles' rows, and the row of w that it needs, or -1.
IVLITE_DEVICE int64_t output_row(const GemmProduct& p, int64_t i) { return p.paired ? i / 16 * 8 + i % 8 : i; }
IVLITE_DEVICE int64_t weight_row(const GemmProduct& p, int64_t i) {
  const int64_t row = output_row(p, i);
  return row >= p.end.rows ? -1 : p.paired && i % 16 >= 8 ? p.end.rows + row : row;
}

template <Format F>
IVLITE_DEVICE void mma(float sum[4], const uint32_t a[4], const uint32_t b[2]) {
  if constexpr (F == Format::f16)
    mma_f16(sum, a, b);
  else
    mma_bf16(sum, a, b);
}

IVLITE_DEVICE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

// What a thread needs to open one row's groups of a step, or halves of them, besides codes.
template <int Groups, int Halves>
struct Side {
  uint32_t high[Groups][Halves], header;
  uint16_t scale[Groups];
};

// Opens 4 columns to bf16.
template <Format F>
IVLITE_DEVICE void open_four(uint32_t out[2], uint32_t codes, uint32_t high, Affine by, int half, int word) {
  constexpr bool has_mins = F == Format::q4_k || F == Format::q5_k;
  const uint32_t four = four_codes<F>(codes, high, half, word);
  float value[4];
  IVLITE_UNROLL
  for (int i = 0; i < 4; i++) {
    const float code = byte_to_float(four, i, kCodeOffset<F>);
    value[i] = has_mins ? fmaf(code, by.scale, -by.min) : code * by.scale;
  }
  out[0] = pack_bf16(value[0], value[1]);
  out[1] = pack_bf16(value[2], value[3]);
}

// The part of a product that one thread does: it copies, opens, multiplies and stores.
template <Format F, int Rows, int Tokens>
struct GemmThread {
  using T = Tile<F, Rows, Tokens>;
  static constexpr int kTokenCopies = Tokens * T::kChunks / T::kThreads;
  static constexpr int kCodeCopies = (Rows * T::kCodeChunks + T::kThreads - 1) / T::kThreads;
  static constexpr int kAcross = T::kWarpTokens / 8, kDown = T::kWarpRows / 16;
  static constexpr int kHalves = 2 * Rows / T::kThreads;  // of a group, which a thread opens
  static constexpr int kWords = T::kGroups * kHalves * 4;
  using Opening = Side<T::kGroups, kHalves>;

  const GemmProduct& p;
  char* shared;
  int thread, lane, first, last;                      // steps
  uint32_t x_at[kTokenCopies], code_at[kCodeCopies];  // in chunks of 16 bytes: few registers, and 64 GB
  bool code_valid[kCodeCopies];
  int side_row;        // the row that this thread opens, from half0 on, or -1
  Bytes16 codes, out;  // being opened
  Affine by;
  float sum[kDown][kAcross][4];

  IVLITE_DEVICE int64_t row0() const { return (int64_t)block_y() * Rows; }
  IVLITE_DEVICE int half0() const { return kHalves == 2 ? 0 : thread / Rows; }
  IVLITE_DEVICE char* stage(int step) { return shared + step % T::kStages * T::kStageBytes; }
  IVLITE_DEVICE char* opened(int step) {
    return T::kOpened ? shared + T::kStages * T::kStageBytes + (step & 1) * T::kOpenBytes : stage(step) + T::kTokenBytes;
  }

  IVLITE_DEVICE explicit GemmThread(const GemmProduct& product) : p(product), shared(shared_memory<char>()), thread(thread_x()) {
    lane = thread % kWarp;
    const int64_t token0 = (int64_t)block_x() * Tokens, head_at = p.head_x ? row0() / p.w.rows * (p.head_x / 8) : 0;
    first = block_z() * p.steps, last = (int)min_of(first + p.steps, (p.w.cols + T::kDepth - 1) / T::kDepth);
    IVLITE_UNROLL
    for (int i = 0; i < kTokenCopies; i++) {
      const int at = thread + i * T::kThreads;
      const int64_t token = min_of(token0 + at / T::kChunks, p.tokens - 1);  // what is beyond is not stored
      x_at[i] = (uint32_t)(token * (p.ldx / 8) + head_at) + at % T::kChunks;
    }
    IVLITE_UNROLL
    for (int i = 0; i < kCodeCopies; i++) {
      const int at = thread + i * T::kThreads, chunk = at % T::kCodeChunks;
      const int64_t row = at < Rows * T::kCodeChunks ? weight_row(p, row0() + at / T::kCodeChunks) : -1;
      code_valid[i] = row >= 0;
      code_at[i] = (uint32_t)((row < 0 ? 0 : row) * (code_stride(p.w) / 16)) + chunk;
    }
    side_row = (int)weight_row(p, row0() + thread % Rows);
    for (auto& down : sum)
      for (auto& tile : down)
        for (float& s : tile) s = 0;
  }

  // Starts the copies of a step; of one after the last, none.
  IVLITE_DEVICE void copy(int step) {
    if (step < last) {
      char* to = stage(step);
      IVLITE_UNROLL
      for (int i = 0; i < kTokenCopies; i++) {
        const int at = thread + i * T::kThreads;
        copy_async16(to + 16 * slot<T::kChunks>(at / T::kChunks, at % T::kChunks),
                     (const char*)p.x + 16 * (int64_t)(x_at[i] + step * T::kChunks));
      }
      to += T::kTokenBytes;
      constexpr int per_group = T::kCodeChunks / T::kGroups;
      const int64_t groups = (p.w.cols + 31) / 32;
      IVLITE_UNROLL
      for (int i = 0; i < kCodeCopies; i++) {
        const int at = thread + i * T::kThreads, row = at / T::kCodeChunks, chunk = at % T::kCodeChunks;
        if (row >= Rows) break;
        // Rows of float weights may end with half a step.
        const bool valid = code_valid[i] && (T::kOpened || (int64_t)step * T::kGroups + chunk / per_group < groups);
        const char* from = (const char*)p.w.codes + 16 * (int64_t)(valid ? code_at[i] + step * T::kCodeChunks : 0);
        copy_async16(to + 16 * slot<T::kCodeChunks>(row, chunk), from, valid);
      }
    }
    commit_copies();
  }

  // Loads what opening a step needs besides codes.
  IVLITE_DEVICE Opening load_side(int step) const {
    const int64_t group0 = (int64_t)step * T::kGroups;
    const bool valid = side_row >= 0 && step < last;
    Opening side;
    side.header = valid ? header_bits<F>(p.w, side_row, group0) : 0;
    IVLITE_UNROLL
    for (int g = 0; g < T::kGroups; g++) {
      side.scale[g] = valid ? scale_bits(p.w, side_row, group0 + g) : (uint16_t)0;
      IVLITE_UNROLL
      for (int h = 0; h < kHalves; h++) side.high[g][h] = valid ? high_bits<F>(p.w, side_row, group0 + g, half0() + h) : 0;
    }
    return side;
  }

  // Opens word i of kWords of what this thread opens of a step. Words come in their order.
  IVLITE_DEVICE void open(int step, const Opening& side, int i) {
    const int row = thread % Rows, g = i / (4 * kHalves), h = i / 4 % kHalves, word = i % 4, half = half0() + h;
    if (word == 0) {
      const int chunk = F == Format::q8_0 ? 2 * g + half : g;
      codes = load16(stage(step) + T::kTokenBytes + 16 * slot<T::kCodeChunks>(row, chunk));
      by = affine<F>(side.scale[g], side.header, half);
    }
    open_four<F>(out.w + word % 2 * 2, codes.w[word], side.high[g][h], by, half, word);
    if (word % 2 == 1) store16(opened(step) + 16 * slot<T::kChunks>(row, 4 * g + 2 * half + word / 2), out);
  }

  // Multiplies a step and opens the next one: a few words behind every few products, so that both units work.
  template <bool Open>
  IVLITE_DEVICE void multiply(int step, const Opening& side) {
    constexpr int kTurns = T::kDepth / 16 * (kAcross / 2);
    const int warp = thread / kWarp, w0 = warp / T::kWarpsAcross * T::kWarpRows, x0 = warp % T::kWarpsAcross * T::kWarpTokens;
    const char *w = opened(step), *x = stage(step);
    IVLITE_UNROLL
    for (int k = 0; k < T::kDepth / 16; k++) {
      uint32_t a[kDown][4];
      IVLITE_UNROLL
      for (int i = 0; i < kDown; i++) ldmatrix_x4(a[i], w + 16 * slot<T::kChunks>(w0 + 16 * i + lane % 16, 2 * k + lane / 16));
      IVLITE_UNROLL
      for (int j = 0; j < kAcross; j += 2) {
        uint32_t b[4];
        ldmatrix_x4(b, x + 16 * slot<T::kChunks>(x0 + 8 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        IVLITE_UNROLL
        for (int i = 0; i < kDown; i++) mma<F>(sum[i][j], a[i], b), mma<F>(sum[i][j + 1], a[i], b + 2);
        if constexpr (Open) {
          const int turn = k * (kAcross / 2) + j / 2;
          IVLITE_UNROLL
          for (int i = turn * kWords / kTurns; i < (turn + 1) * kWords / kTurns; i++) open(step + 1, side, i);
        }
      }
    }
  }

  // The first token of the two whose sums are in sum[i][j], of the first of its rows and, behind these, of the row 8 further.
  IVLITE_DEVICE void store() {
    const int warp = thread / kWarp;
    const int64_t at = row0() + warp / T::kWarpsAcross * T::kWarpRows + lane / 4;
    const int64_t token = (int64_t)block_x() * Tokens + warp % T::kWarpsAcross * T::kWarpTokens + lane % 4 * 2;
    IVLITE_UNROLL
    for (int i = 0; i < kDown; i++) {
      if (p.partial) {
        for (int b = 0; b < 2; b++) store_partial(weight_row(p, at + 16 * i + 8 * b), token, sum[i], 2 * b);
      } else if (p.paired) {
        const OutputRow out(p.end, output_row(p, at + 16 * i));
        if (!out.stored()) continue;
        IVLITE_UNROLL
        for (int j = 0; j < kAcross; j++)
          for (int e = 0; e < 2; e++)
            if (token + 8 * j + e < p.tokens) out.store_pair(token + 8 * j + e, sum[i][j][e], sum[i][j][2 + e]);
      } else {
        IVLITE_UNROLL
        for (int b = 0; b < 2; b++) {
          const OutputRow out(p.end, at + 16 * i + 8 * b);
          if (!out.stored()) continue;
          IVLITE_UNROLL
          for (int j = 0; j < kAcross; j++)
            for (int e = 0; e < 2; e++)
              if (token + 8 * j + e < p.tokens) out.store(token + 8 * j + e, sum[i][j][2 * b + e]);
        }
      }
    }
  }

  IVLITE_DEVICE void store_partial(int64_t row, int64_t token, const float (&sums)[kAcross][4], int first_sum) {
    if (row < 0) return;
    const int64_t rows = p.w.heads * p.w.rows;
    float* to = p.partial + ((int64_t)block_z() * p.tokens + token) * rows + row;
    IVLITE_UNROLL
    for (int j = 0; j < kAcross; j++)
      for (int e = 0; e < 2; e++)
        if (token + 8 * j + e < p.tokens) to[(8 * j + e) * rows] = sums[j][first_sum + e];
  }
};

template <Format F, int Rows, int Tokens>
IVLITE_KERNEL_OF(256)
gemm_kernel(GemmProduct p) {
  using T = Tile<F, Rows, Tokens>;
  // Copies that may be under way when a step begins: its own have landed, and where weights are opened the next one's.
  constexpr int kUnderWay = T::kOpened ? T::kStages - 3 : T::kStages - 2;
  GemmThread<F, Rows, Tokens> t(p);
  typename GemmThread<F, Rows, Tokens>::Opening side{};
  for (int step = t.first; step < t.first + T::kStages - 1; step++) t.copy(step);
  if constexpr (T::kOpened) {
    side = t.load_side(t.first);
    wait_copies<T::kStages - 2>();
    sync_block();
    IVLITE_UNROLL
    for (int i = 0; i < t.kWords; i++) t.open(t.first, side, i);
    side = t.load_side(t.first + 1);
  }
  int step = t.first;
  for (; step + 1 < t.last; step++) {
    wait_copies<kUnderWay>();
    sync_block();  // nobody reads any more what the step before read
    t.copy(step + T::kStages - 1);
    if constexpr (T::kOpened) {
      const auto next = t.load_side(step + 2);
      t.template multiply<true>(step, side);
      side = next;
    } else {
      t.template multiply<false>(step, side);
    }
  }
  wait_copies<0>();
  sync_block();
  t.template multiply<false>(step, side);
  t.store();
}

template <Format F, int Rows, int Tokens>
Status start_tile(const GemmProduct& p, Stream stream) {
  const int64_t rows = (p.paired ? 2 : 1) * stored_rows(p.end);
  const Dim3 grid{(unsigned)((p.tokens + Tokens - 1) / Tokens), (unsigned)((rows + Rows - 1) / Rows), (unsigned)p.splits};
  return launch(gemm_kernel<F, Rows, Tokens>, grid, 256, Tile<F, Rows, Tokens>::kShared, stream, p);
}

template <Format F>
Status start_gemm(const GemmProduct& p, int tile_rows, int tile_tokens, Stream stream) {
  if (tile_rows == 256) return tile_tokens == 128 ? start_tile<F, 256, 128>(p, stream) : kInvalidValue;
  if (tile_rows != 128) return kInvalidValue;
  switch (tile_tokens) {
    case 128: return start_tile<F, 128, 128>(p, stream);
    case 64: return start_tile<F, 128, 64>(p, stream);
    case 32: return start_tile<F, 128, 32>(p, stream);
    default: return kInvalidValue;
  }
}

}  // namespace ivlite::cuda
