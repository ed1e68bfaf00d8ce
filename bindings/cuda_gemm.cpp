// Products of many rows, in _C.cuda.
#include "kernels/cuda/gemm.h"

#include <optional>
#include <tuple>

#include "cuda.h"

namespace ivlite {
namespace {

using namespace cuda;

// Rows and tokens of a tile, parts of its sums.
using PlanWords = std::tuple<int, int, int>;

Status start_round(uintptr_t out, int64_t ldo, uintptr_t scale, uintptr_t x, int64_t ldx, int64_t tokens, int64_t cols, int norm,
                   uintptr_t norm_w, uintptr_t norm_b, float eps, uintptr_t stream) {
  const RoundRows a{pointer<uint16_t>(out),
                    ldo,
                    pointer<float>(scale),
                    pointer<const float>(x),
                    ldx,
                    tokens,
                    cols,
                    (RoundNorm)norm,
                    pointer<const float>(norm_w),
                    pointer<const float>(norm_b),
                    eps};
  return round_rows(a, pointer<void>(stream));
}

Status start_gemm(int format, int64_t heads, int64_t rows, int64_t cols, uintptr_t memory, uintptr_t x, int64_t ldx, int64_t tokens,
                  int kind, int activation, bool accumulate, uintptr_t y, int64_t ldy, uintptr_t values, int64_t head_rows, int64_t nope,
                  uintptr_t bias, uintptr_t x_scale, uintptr_t partial, int64_t head_x, uintptr_t stream,
                  const std::optional<PlanWords>& plan) {
  GemmArgs a{};
  a.w = device_weight(pointer<const void>(memory), (Format)format, heads, rows, cols);
  a.x = pointer<const void>(x), a.ldx = ldx, a.tokens = tokens, a.partial = pointer<float>(partial);
  a.end.kind = (Output)kind, a.end.activation = (Activation)activation, a.end.accumulate = accumulate;
  a.end.y = pointer<void>(y), a.end.ldy = ldy, a.end.values = pointer<void>(values), a.end.head_rows = head_rows, a.end.nope = nope;
  a.end.bias = pointer<const float>(bias), a.end.x_scale = pointer<const float>(x_scale);
  a.head_x = head_x;
  GemmPlan by = head_x ? gemm_heads_plan(tokens) : gemm_plan(a.w.format, heads * rows, cols, tokens);
  if (plan) std::tie(by.tile_rows, by.tile_tokens, by.splits) = *plan;
  return gemm(a, by, pointer<void>(stream));
}

PlanWords plan_of(int format, int64_t rows, int64_t cols, int64_t tokens) {
  const GemmPlan by = gemm_plan((Format)format, rows, cols, tokens);
  return {by.tile_rows, by.tile_tokens, by.splits};
}

int64_t partial_bytes(int format, int64_t rows, int64_t cols, int64_t tokens) {
  return gemm_partial_bytes(gemm_plan((Format)format, rows, cols, tokens), rows, tokens);
}

}  // namespace

void bind_cuda_gemm(py::module_& m) {
  m.attr("ROUND_COLUMNS") = kRoundColumns;
  launcher(m, "round_rows", start_round, py::arg("out"), py::arg("ldo"), py::arg("scale"), py::arg("x"), py::arg("ldx"), py::arg("tokens"),
           py::arg("cols"), py::arg("norm"), py::arg("norm_w"), py::arg("norm_b"), py::arg("eps"), py::arg("stream"),
           "Rounds rows to bf16, or to half where there is a `scale`, for gemm. norm: 0 none, 1 RMS, 2 layer.");
  release(m, "gemm_plan", plan_of, py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("tokens"),
          "How gemm deals a product to blocks: rows and tokens of a tile, and of how many parts its sums are.");
  release(m, "gemm_partial_bytes", partial_bytes, py::arg("format"), py::arg("rows"), py::arg("cols"), py::arg("tokens"),
          "Bytes of memory that gemm needs for parts of sums.");
  launcher(m, "gemm", start_gemm, py::arg("format"), py::arg("heads"), py::arg("rows"), py::arg("cols"), py::arg("memory"), py::arg("x"),
           py::arg("ldx"), py::arg("tokens"), py::arg("kind"), py::arg("activation"), py::arg("accumulate"), py::arg("y"), py::arg("ldy"),
           py::arg("values"), py::arg("head_rows"), py::arg("nope"), py::arg("bias"), py::arg("x_scale"), py::arg("partial"),
           py::arg("head_x"), py::arg("stream"), py::arg("plan") = py::none(),
           "A product of many rows. x: as round_rows writes it, float for f32 weights. kind: 0 float, 1 bf16, 2 heads in float, 3 heads "
           "in half. head_x: 0, or elements from the x of a head to the next one's. plan: that of gemm_plan, or another one.");
}

}  // namespace ivlite
