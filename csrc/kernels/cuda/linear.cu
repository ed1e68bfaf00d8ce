// Products of 1 to 16 tokens: the whole weight is read once, and little else.
//
// A block has 8 warps and tiles of 16 weight rows. Where rows are long, warps share the columns of a tile, step by step in turn;
// their sums meet in shared memory and are added in the order of the warps. How many share a tile depends on the columns alone.
#include "intrinsics.h"
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_dot.cuh"
#include "kernels/cuda/linear_float.cuh"
#include "kernels/cuda/linear_mma.cuh"
#include "kernels/cuda/quantize.cuh"

namespace ivlite::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kWarps * kWarp == kRowThreads, "round_next looks at whole rows");

// How a weight is dealt to warps.
struct Tiling {
  int steps, sharing;     // of columns; warps that share a tile
  int64_t tiles, blocks;  // of one head
};

constexpr Tiling tiling(const DeviceWeight& w, bool gated) {
  const int steps =
      (int)((w.cols + 31) / 32 + (is_float_format(w.format) ? 0 : kStepGroups - 1)) / (is_float_format(w.format) ? 1 : kStepGroups);
  int sharing = 1;
  while (sharing < kWarps && sharing * 4 <= steps) sharing *= 2;
  const int64_t tiles = gated ? (w.rows / 2 + 7) / 8 : (w.rows + 15) / 16, per_block = kWarps / sharing;
  return {steps, sharing, tiles, (tiles + per_block - 1) / per_block};
}

// The sums of this warp's tile over its part of the columns. `ring` is the warp's own. Floats: of float weights.
template <int Tokens, bool Floats>
IVLITE_DEVICE void warp_sums(float* partial, uint8_t* ring, const FewRows& a, const DeviceWeight& w, const WarpPart& part) {
  visit_format(w.format, [&](auto is) {
    constexpr Format F = decltype(is)::value;
    const int64_t head = block_y();
    if constexpr (is_float_format(F) != Floats) {
      return;
    } else if constexpr (Floats) {
      const float* x = a.x + head * a.ldh;
      const FloatRows rows{x, a.ldx, (int)a.tokens, (int)w.cols, ((uintptr_t)x | (uintptr_t)(4 * a.ldx)) % 16 == 0};
      float_sums<F, Tokens>(partial, w, rows, part);
    } else {
      Int8Rows rows = a.xq;
      rows.codes += 32 * head * rows.head_step, rows.chunks += head * rows.head_step;
      if constexpr (Tokens <= 4) {
        dot_sums<F, Tokens>(partial, w, rows, part);
      } else {
        MmaWarp<F, Tokens> warp(ring, w, rows, part, thread_x() % kWarp);
        warp.run();
        warp.store(partial);
      }
    }
  });
}

// What a block's threads do once all sums are there: one output each, in turn.
struct Outputs {
  const FewRows& a;
  const LinearPart& part;
  const float* partial;
  int sharing, padded_tokens;

  IVLITE_DEVICE float total(int tile, int token, int row) const {
    float sum = 0;
    for (int warp = 0; warp < sharing; warp++) sum += partial[((tile * sharing + warp) * padded_tokens + token) * kPartialRows + row];
    return sum;
  }
  IVLITE_DEVICE float bias(int64_t row) const { return part.bias ? part.bias[row] : 0; }

  // Row i of the tile-th of the block's tiles, whose outputs begin at `first`.
  IVLITE_DEVICE void store(int64_t head, int tile, int64_t first, int token, int i) const {
    const bool gated = a.activation == Activation::silu_mul;
    const int64_t rows = gated ? part.w.rows / 2 : part.w.rows, row = first + i;
    if (row >= rows || (gated && i >= 8)) return;
    float value = total(tile, token, i) + bias(row);
    if (gated) value = silu_mul(value, total(tile, token, 8 + i) + bias(rows + row));
    if (a.activation == Activation::gelu_tanh) value = gelu_tanh(value);
    if (a.activation == Activation::gelu_erf) value = gelu_erf(value);
    float* y = part.y + token * part.ldy + head * part.ldh + row;
    *y = a.accumulate ? *y + value : value;
  }
};

// A block's part of the launch.
struct BlockPart {
  LinearPart part;
  Tiling by;
  int64_t first;  // of its tiles

  IVLITE_DEVICE BlockPart(const FewRows& a) : part(a.part[0]), by(tiling(part.w, a.activation == Activation::silu_mul)), first(block_x()) {
    if (first >= by.blocks) {
      first -= by.blocks, part = a.part[1];
      by = tiling(part.w, a.activation == Activation::silu_mul);
    }
    first *= kWarps / by.sharing;
  }
};

template <int Tokens, bool Floats>
IVLITE_DEVICE void block_sums(float* partial, const FewRows& a) {
  const BlockPart of(a);
  const DeviceWeight& w = of.part.w;
  const int warp = thread_x() / kWarp, sharing = of.by.sharing;
  const int64_t tile = of.first + warp / sharing, top = block_y() * w.rows;
  if (tile >= of.by.tiles) return;
  const bool gated = a.activation == Activation::silu_mul;
  const int64_t low = (gated ? 8 : 16) * tile, high = gated ? w.rows / 2 + low : low + 8;
  const WarpPart part{{top + low, top + high}, w.heads * w.rows - 1, warp % sharing, sharing, of.by.steps};
  uint8_t* rings = (uint8_t*)(partial + kWarps * Tokens * kPartialRows);
  warp_sums<Tokens, Floats>(partial + warp * Tokens * kPartialRows, rings + warp * ring_bytes(w.format), a, w, part);
}

// Rounds what is a run of outputs once all of it is there, if this block is the last to come. each: outputs of one of its tiles.
IVLITE_DEVICE void round_next(const FewRows& a, const BlockPart& of, int each, float* shared) {
  const NextRows& next = a.next;
  const LinearPart& part = of.part;
  const int64_t outputs = a.activation == Activation::silu_mul ? part.w.rows / 2 : part.w.rows, head = block_y();
  const int64_t mine = each * (kWarps / of.by.sharing), width = next.norm_w ? outputs : mine < 32 ? 32 : mine;
  const int64_t sharing = (width + mine - 1) / mine, run = block_x() / sharing, runs = (outputs + width - 1) / width;
  const int64_t rest = of.by.blocks - run * sharing, count = rest < sharing ? rest : sharing;
  if (!last_block(next.arrived + head * runs + run, (int)count)) return;
  if (next.norm_w) {
    for (int64_t token = 0; token < a.tokens; token++) {
      const float* y = part.y + token * part.ldy;
      const auto value = [&](int64_t i) { return float_of(load4_new(y + i)); };
      if (next.codes.codes) {
        round_normed(next.codes, token, outputs, value, next.norm_w, next.eps, shared);
        continue;
      }
      const float scale = rms_scale(value, outputs, next.eps, shared);
      for (int64_t i = thread_x(); i < outputs; i += kRowThreads) next.floats[token * outputs + i] = value(i) * scale * next.norm_w[i];
    }
    return;
  }
  // Columns of the row of all heads; behind the last, those that fill it up.
  const int64_t all = outputs * part.w.heads, first = head * outputs + run * width;
  const int64_t end = run + 1 < runs ? first + width : head + 1 < part.w.heads ? (head + 1) * outputs : 32 * int8_groups(all);
  const int64_t words = (end - first) / 4, count_all = words * a.tokens;
  for (int64_t begin = thread_x() / kWarp * kWarp; begin < count_all; begin += kRowThreads) {
    const int64_t i = begin + thread_x() % kWarp, token = i / words, word = first / 4 + i % words;
    const float* y = part.y + token * part.ldy + head * (part.ldh - outputs);
    round_word(
        next.codes, 0, token, word, all, [&](int64_t column) { return float_of(load4_new(y + column)); }, i < count_all);
  }
}

template <int Tokens, bool Floats>
IVLITE_KERNEL void IVLITE_BOUNDS(256, Tokens > 8 ? 1 : 2) few_rows_kernel(FewRows a) {
  float* partial = shared_memory<float>();
  block_sums<Tokens, Floats>(partial, a);
  sync_block();
  const BlockPart of(a);
  const Outputs outputs{a, of.part, partial, of.by.sharing, Tokens};
  const int tiles = kWarps / of.by.sharing, each = a.activation == Activation::silu_mul ? 8 : 16;
  for (int i = thread_x(); i < tiles * Tokens * 16; i += kWarps * kWarp) {
    const int tile = i / (16 * Tokens), token = i / 16 % Tokens;
    if (of.first + tile < of.by.tiles && token < a.tokens) outputs.store(block_y(), tile, each * (of.first + tile), token, i % 16);
  }
  if constexpr (Tokens <= kNextRows)
    if (a.next.arrived) round_next(a, of, each, partial);
}

template <int Tokens, bool Floats>
Status start(const FewRows& a, Stream stream) {
  int64_t blocks = 0, ring = 0;
  for (int i = 0; i < a.parts; i++) {
    const DeviceWeight& w = a.part[i].w;
    blocks += tiling(w, a.activation == Activation::silu_mul).blocks;
    if (Tokens > 4 && !Floats && ring_bytes(w.format) > ring) ring = ring_bytes(w.format);
  }
  const size_t shared = (size_t)(kWarps * (Tokens * kPartialRows * 4 + ring));
  const Dim3 grid{(unsigned)blocks, (unsigned)a.part[0].w.heads, 1};
  return launch(few_rows_kernel<Tokens, Floats>, grid, kWarps * kWarp, shared, stream, a);
}

template <bool Floats>
Status start_for(const FewRows& a, Stream stream) {
  switch (a.tokens) {
    case 0: return 0;
    case 1: return start<1, Floats>(a, stream);
    case 2: return start<2, Floats>(a, stream);
    case 3: return start<3, Floats>(a, stream);
    case 4: return start<4, Floats>(a, stream);
    default: return a.tokens <= 8 ? start<8, Floats>(a, stream) : start<16, Floats>(a, stream);
  }
}

}  // namespace

Status few_rows(const FewRows& a, Stream stream) {
  const bool floats = is_float_format(a.part[0].w.format);
  if (a.parts == 2 && is_float_format(a.part[1].w.format) != floats) {  // other activations, so other kernels
    FewRows one = a;
    one.parts = 1;
    const Status status = few_rows(one, stream);
    one.part[0] = a.part[1];
    return status ? status : few_rows(one, stream);
  }
  return floats ? start_for<true>(a, stream) : start_for<false>(a, stream);
}

}  // namespace ivlite::cuda
