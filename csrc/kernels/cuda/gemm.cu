// Chooses a tile and how many blocks share K, and starts the kernels of gemm.cuh.
#include <algorithm>

#include "intrinsics.h"
#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/gemm_tiles.h"

namespace ivlite::cuda {
namespace {

// Blocks that a card runs side by side, about: what there is of a product is dealt to so many. Not asked of the card, since
// sums that are split in another way have other bits.
constexpr int64_t kBlocks = 128;
constexpr int64_t kSplitSteps = 16;  // at least in each part of K

// What an output of a tile costs, relative to the largest: smaller ones open weights and read operands for fewer products.
struct TileCost {
  int rows, tokens;
  double cost;
};
constexpr TileCost kTiles[] = {{256, 128, 1.0}, {128, 128, 1.1}, {128, 64, 1.3}, {128, 32, 1.7}};

// What storing and adding a partial sum costs, and starting the kernel that does, in multiplications of one block.
constexpr double kPartialCost = 4.5, kCombineCost = 4.5e6;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t steps_of(int64_t cols, int tile_tokens) { return divided_up(cols, gemm_depth(tile_tokens)); }

// Adds the sums of the parts of K in their order, and stores the outputs.
IVLITE_KERNEL_OF(256) gemm_combine(GemmProduct p) {
  const int64_t row = (int64_t)block_x() * 256 + thread_x(), token = block_y(), rows = p.w.heads * p.w.rows;
  const OutputRow out(p.end, row);
  if (!out.stored()) return;
  float sum = 0, up = 0;
  const float* at = p.partial + token * rows + row;
  for (int s = 0; s < p.splits && row < p.end.rows; s++, at += p.tokens * rows) {
    sum += *at;
    if (p.paired) up += at[p.end.rows];
  }
  if (p.paired)
    out.store_pair(token, sum, up);
  else
    out.store(token, sum);
}

using start_fn = Status (*)(const GemmProduct&, int, int, Stream);
constexpr start_fn kStart[kFormatCount] = {
    nullptr,
    start_gemm<Format::f16>,
    nullptr,
    start_gemm<Format::q8_0>,
    start_gemm<Format::q6_k>,
    start_gemm<Format::q5_k>,
    start_gemm<Format::q4_k>,
    start_gemm<Format::q4_0>,
};

}  // namespace

GemmPlan gemm_plan(Format format, int64_t rows, int64_t cols, int64_t tokens) {
  GemmPlan best{kGemmF32Side, kGemmF32Side, 1};
  if (format == Format::f32) return best;
  double least = 0;
  for (const TileCost& tile : kTiles) {
    const int64_t steps = steps_of(cols, tile.tokens), blocks = divided_up(rows, tile.rows) * divided_up(tokens, tile.tokens);
    const int64_t parts = std::min(kBlocks / std::max<int64_t>(blocks, 1), steps / kSplitSteps);
    const int64_t each = divided_up(steps, std::max<int64_t>(parts, 1)), splits = divided_up(steps, each);
    const double block = (double)each * gemm_depth(tile.tokens) * tile.rows * tile.tokens * tile.cost;
    const double partial = splits > 1 ? kPartialCost * splits * tokens * rows + kCombineCost : 0;
    const double time = divided_up(blocks * splits, kBlocks) * block + partial;
    if (least == 0 || time < least) best = {tile.rows, tile.tokens, (int)splits}, least = time;
  }
  return best;
}

Status gemm(const GemmArgs& a, const GemmPlan& by, Stream stream) {
  const int64_t rows = a.w.heads * a.w.rows;
  const bool paired = a.end.activation == Activation::silu_mul;
  if (a.tokens == 0 || rows == 0) return 0;
  GemmProduct p{a.w, a.x, a.ldx, a.tokens, paired, 0, 1, nullptr, a.end, a.head_x};
  p.end.rows = paired ? rows / 2 : rows, p.end.tokens = a.tokens;
  if (a.w.format == Format::f32) return by.splits == 1 && !a.head_x ? gemm_f32(p, stream) : kInvalidValue;
  if (by.splits < 1 || by.tile_tokens < 1) return kInvalidValue;
  if (a.head_x && (a.w.rows % by.tile_rows || a.end.x_scale || a.end.kind != Output::f32)) return kInvalidValue;
  p.steps = (int)divided_up(steps_of(a.w.cols, by.tile_tokens), by.splits);
  p.splits = (int)divided_up(steps_of(a.w.cols, by.tile_tokens), p.steps);  // no more than there are steps for
  p.partial = p.splits > 1 ? a.partial : nullptr;
  const Status status = kStart[(int)a.w.format](p, by.tile_rows, by.tile_tokens, stream);
  if (status || !p.partial) return status;
  const Dim3 grid{(unsigned)divided_up(stored_rows(p.end), 256), (unsigned)a.tokens, 1};
  return launch(gemm_combine, grid, 256, 0, stream, p);
}

}  // namespace ivlite::cuda
