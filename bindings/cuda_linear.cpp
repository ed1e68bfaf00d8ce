// Packed weights and products of few rows of _C.cuda.
#include "kernels/cuda/linear.h"

#include <optional>
#include <tuple>
#include <vector>

#include "cuda.h"

namespace ivlite {
namespace {

using namespace cuda;

DeviceWeight weight(int format, int64_t heads, int64_t rows, int64_t cols, uintptr_t memory) {
  return device_weight(pointer<void>(memory), (Format)format, heads, rows, cols);
}

int64_t py_weight_bytes(int format, int64_t heads, int64_t rows, int64_t cols) {
  return device_weight_bytes((Format)format, heads, rows, cols);
}

Status py_pack_weight(int format, int64_t heads, int64_t rows, int64_t cols, uintptr_t memory, int64_t first, int64_t count,
                      uintptr_t blocks, int64_t row_bytes, uintptr_t stream) {
  return pack_weight(weight(format, heads, rows, cols, memory), (Format)format, first, count, pointer<void>(blocks), row_bytes,
                     pointer<void>(stream));
}

Status py_embedding_rows(uintptr_t y, int64_t ldy, int format, int64_t heads, int64_t rows, int64_t cols, uintptr_t memory, uintptr_t ids,
                         int64_t count, uintptr_t stream) {
  return embedding_rows(pointer<float>(y), ldy, weight(format, heads, rows, cols, memory), pointer<int32_t>(ids), count,
                        pointer<void>(stream));
}

Status py_quantize(uintptr_t out, uintptr_t x, int64_t ldx, int64_t ldh, int64_t heads, int64_t tokens, int64_t cols, uintptr_t norm,
                   float eps, uintptr_t stream) {
  return quantize(
      {int8_rows(pointer<void>(out), heads, tokens, cols), pointer<float>(x), ldx, ldh, heads, tokens, cols, pointer<float>(norm), eps},
      pointer<void>(stream));
}

// format, heads, rows, columns, address of a weight; y, its elements from token to token and from head to head; bias or 0
using Part = std::tuple<int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, int64_t, int64_t, uintptr_t>;

// counters, codes, floats, norm, eps
using Next = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, float>;

NextRows next_of(const Next& x, const FewRows& a) {
  const auto [arrived, codes, floats, norm, eps] = x;
  const DeviceWeight& w = a.part[0].w;
  const int64_t outputs = a.activation == Activation::silu_mul ? w.rows / 2 : w.rows;
  if (a.parts != 1 || a.tokens > kNextRows || (norm ? w.heads > 1 : !codes || (w.heads > 1 && outputs % 32)))
    throw std::invalid_argument("these outputs cannot be rounded for the next product");
  NextRows next{pointer<int32_t>(arrived), {}, pointer<float>(floats), pointer<float>(norm), eps};
  if (codes) next.codes = int8_rows(pointer<void>(codes), 1, a.tokens, w.heads * outputs);
  return next;
}

Status py_few_rows(const std::vector<Part>& parts, uintptr_t codes, uintptr_t x, int64_t ldx, int64_t ldh, int64_t tokens, int activation,
                   bool accumulate, const std::optional<Next>& next, uintptr_t stream) {
  FewRows a{};
  for (const auto& [format, heads, rows, cols, memory, y, ldy, ld_head, bias] : parts) {
    if (a.parts == 2) throw std::invalid_argument("a launch takes one weight or two");
    a.part[a.parts++] = {weight(format, heads, rows, cols, memory), pointer<float>(y), ldy, ld_head, pointer<float>(bias)};
  }
  if (a.parts == 0 || tokens > kFewRows) throw std::invalid_argument("few_rows needs a weight and at most 16 tokens");
  const DeviceWeight& w = a.part[0].w;
  a.xq = int8_rows(pointer<void>(codes), w.heads, tokens, w.cols);
  a.x = pointer<float>(x), a.ldx = ldx, a.ldh = ldh, a.tokens = tokens;
  a.activation = (Activation)activation, a.accumulate = accumulate;
  if (next) a.next = next_of(*next, a);
  return few_rows(a, pointer<void>(stream));
}

}  // namespace

void bind_cuda_linear(py::module_& m) {
  release(m, "device_weight_bytes", py_weight_bytes, py::arg("format"), py::arg("heads"), py::arg("rows"), py::arg("cols"),
          "Bytes of a packed weight, which begin as zeros. format: an index into formats().");
  launcher(m, "pack_weight", py_pack_weight, py::arg("format"), py::arg("heads"), py::arg("rows"), py::arg("cols"), py::arg("memory"),
           py::arg("first"), py::arg("count"), py::arg("blocks"), py::arg("row_bytes"), py::arg("stream"),
           "Packs rows [first, first + count) of a weight, counted over all heads, from blocks as a file has them.");
  launcher(m, "embedding_rows", py_embedding_rows, py::arg("y"), py::arg("ldy"), py::arg("format"), py::arg("heads"), py::arg("rows"),
           py::arg("cols"), py::arg("memory"), py::arg("ids"), py::arg("count"), py::arg("stream"),
           "y (count, cols): rows ids (int32) of a weight, NaN where there is no such row.");
  release(m, "int8_bytes", int8_bytes, py::arg("heads"), py::arg("tokens"), py::arg("cols"), "Bytes of what quantize writes.");
  launcher(m, "quantize", py_quantize, py::arg("out"), py::arg("x"), py::arg("ldx"), py::arg("ldh"), py::arg("heads"), py::arg("tokens"),
           py::arg("cols"), py::arg("norm"), py::arg("eps"), py::arg("stream"),
           "Rounds x (tokens, heads, cols) to int8 per 32 columns for few_rows, behind an RMS norm where `norm` is not 0.");
  launcher(
      m, "few_rows", py_few_rows, py::arg("parts"), py::arg("codes"), py::arg("x"), py::arg("ldx"), py::arg("ldh"), py::arg("tokens"),
      py::arg("activation"), py::arg("accumulate"), py::arg("next"), py::arg("stream"),
      "Products of one weight or two with the same 1 to 16 tokens: parts are (format, heads, rows, cols, memory, y, ldy, ldh, bias or 0). "
      "next: None, or (counters, codes or 0, floats or 0, norm or 0, eps): what the outputs of one weight become for the next product.");
  m.attr("NEXT_ROWS") = kNextRows;
  release(m, "next_runs", next_runs, py::arg("outputs"), "Counters that `next` takes at most.");
}

}  // namespace ivlite
