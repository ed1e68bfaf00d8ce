#include <algorithm>
#include <optional>

#include "bindings.h"
#include "core/threads.h"
#include "formats/formats.h"
#include "formats_by_name.h"

namespace ivlite {

Format format_named(const std::string& name) {
  for (int i = 0; i < kFormatCount; i++)
    if (name == FORMATS[i].name) return (Format)i;
  throw std::invalid_argument("unknown format '" + name + "'");
}

namespace {

py::list formats() {
  py::list out;
  for (const FormatInfo& f : FORMATS) {
    py::dict row;
    row["name"] = f.name;
    row["ggml_type"] = f.ggml_type;
    row["block"] = f.block;
    row["block_bytes"] = f.block_bytes;
    row["quantized"] = f.quantized;
    out.append(row);
  }
  return out;
}

constexpr int64_t kPiece = 1 << 14;  // weights a thread takes together; a multiple of every block

// Encodes weights [begin, end) of rows as long as the importance, which all rows share.
void encode_piece(const FormatInfo& f, uint8_t* to, const float* from, const float* importance, int64_t cols, int64_t begin, int64_t end) {
  while (begin < end) {
    int64_t column = importance ? begin % cols : 0, n = importance ? std::min(end - begin, cols - column) : end - begin;
    f.encode(to + begin / f.block * f.block_bytes, from + begin, importance ? importance + column : nullptr, n);
    begin += n;
  }
}

Bytes encode(const std::string& name, const Floats& x, const std::optional<Floats>& importance) {
  const FormatInfo& f = FORMATS[(int)format_named(name)];
  need_layout(x, 1);
  int64_t n = x.shape(0), cols = 0;
  need(n % f.block == 0, "the number of weights must be a multiple of the format's block");
  if (importance) {
    need_layout(*importance, 1);
    cols = importance->shape(0);
    need(cols > 0 && cols % f.block == 0 && n % cols == 0, "the importance must have one number per column, the weights whole rows");
  }
  Bytes out(n / f.block * f.block_bytes);
  const float *from = x.data(), *costs = importance ? importance->data() : nullptr;
  uint8_t* to = out.mutable_data();
  py::gil_scoped_release release;
  parallel_for(n, kPiece, [&](int64_t i, int64_t end) { encode_piece(f, to, from, costs, cols, i, end); });
  return out;
}

Floats decode(const std::string& name, const Bytes& data, int64_t count) {
  const FormatInfo& f = FORMATS[(int)format_named(name)];
  const uint8_t* from = in_bytes(data);
  need(count >= 0 && count % f.block == 0 && data.shape(0) == count / f.block * f.block_bytes,
       "the data is not `count` weights of that format");
  Floats out(count);
  float* to = out.mutable_data();
  py::gil_scoped_release release;
  parallel_for(count, kPiece, [&](int64_t i, int64_t end) { f.decode(to + i, from + i / f.block * f.block_bytes, end - i); });
  return out;
}

}  // namespace

void bind_formats(py::module_& m) {
  m.def("formats", formats, "The weight formats: dicts of name, ggml_type, block, block_bytes, quantized.");
  m.def("encode", encode, py::arg("format"), py::arg("x").noconvert(), py::arg("importance").noconvert() = py::none(),
        "float32 (n,) to uint8 blocks; n is a multiple of the block. importance, (columns,) of numbers >= 0, says what a squared error "
        "in each column of the rows costs.");
  m.def("decode", decode, py::arg("format"), py::arg("data").noconvert(), py::arg("count"), "uint8 blocks of `count` weights to float32.");
}

}  // namespace ivlite
