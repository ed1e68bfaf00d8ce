#include <algorithm>
#include <optional>
#include <vector>

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

constexpr int64_t kPiece = 1 << 14;  // weights of a chunk, at least; a multiple of every block

// Encodes weights [begin, end) of rows as long as the importance, which all rows share.
void encode_piece(const FormatInfo& f, uint8_t* to, const float* from, const float* importance, int64_t cols, int64_t begin, int64_t end) {
  while (begin < end) {
    int64_t column = importance ? begin % cols : 0, n = importance ? std::min(end - begin, cols - column) : end - begin;
    f.encode(to + begin / f.block * f.block_bytes, from + begin, importance ? importance + column : nullptr, n);
    begin += n;
  }
}

Made<uint8_t> encode(const std::string& name, const InVector& x, const std::optional<InVector>& importance) {
  const FormatInfo& f = FORMATS[(int)format_named(name)];
  check(x.size % f.block == 0, "the number of weights must be a multiple of the format's block");
  const int64_t cols = importance ? importance->size : 0;
  check(!importance || (cols > 0 && cols % f.block == 0 && x.size % cols == 0),
        "the importance must have one number per column, the weights whole rows");
  const float* costs = importance ? importance->data : nullptr;
  Made<uint8_t> out({x.size / f.block * f.block_bytes});
  parallel_for(x.size, kPiece, [&](int64_t i, int64_t end) { encode_piece(f, out.data.get(), x.data, costs, cols, i, end); });
  return out;
}

Made<float> decode(const std::string& name, const InBytes& data, int64_t count) {
  const FormatInfo& f = FORMATS[(int)format_named(name)];
  check(count >= 0 && count % f.block == 0 && data.size == product({count / f.block, f.block_bytes}),
        "the data is not `count` weights of that format");
  Made<float> out({count});
  parallel_for(count, kPiece,
               [&](int64_t i, int64_t end) { f.decode(out.data.get() + i, data.data + i / f.block * f.block_bytes, end - i); });
  return out;
}

constexpr int64_t kRows = 16;  // of a transposed matrix, gathered and encoded together

// The first `count` rows of one matrix, row_bytes apart, as columns: `cols` rows of blocks of `to`, padded with zeros.
void transpose(uint8_t* out, const FormatInfo& to, const FormatInfo& f, const uint8_t* data, int64_t row_bytes, int64_t cols,
               int64_t count) {
  const int64_t padded = row_bytes / f.block_bytes * f.block, width = (count + to.block - 1) / to.block * to.block;
  std::vector<float> from((size_t)(count * padded)), rows((size_t)(kRows * width));
  f.decode(from.data(), data, count * padded);
  for (int64_t c0 = 0; c0 < cols; c0 += kRows) {
    const int64_t n = std::min(kRows, cols - c0);
    for (int64_t r = 0; r < count; r++)
      for (int64_t c = 0; c < n; c++) rows[(size_t)(c * width + r)] = from[(size_t)(r * padded + c0 + c)];
    to.encode(out + c0 * width / to.block * to.block_bytes, rows.data(), nullptr, n * width);
  }
}

Made<uint8_t> transposed(const std::string& name, const InBytes& data, int64_t heads, int64_t rows, int64_t cols, int64_t count,
                         const std::string& into) {
  const FormatInfo &f = FORMATS[(int)format_named(name)], &to = FORMATS[(int)format_named(into)];
  const int64_t most = 1 << 24;
  check(heads > 0 && rows > 0 && cols > 0 && heads < most && rows < most && cols < most && count > 0 && count <= rows,
        "matrices have rows and columns, and no more rows can be transposed");
  const int64_t row_bytes = (cols + f.block - 1) / f.block * f.block_bytes, blocks = (count + to.block - 1) / to.block;
  check(data.size % row_bytes == 0 && data.size / row_bytes == heads * rows, "the data is not matrices of that shape and format");
  const int64_t matrix = product({cols, blocks, to.block_bytes});
  Made<uint8_t> out({product({heads, matrix})});
  parallel_for(heads, 1, [&](int64_t h, int64_t end) {
    for (; h < end; h++) transpose(out.data.get() + h * matrix, to, f, data.data + h * rows * row_bytes, row_bytes, cols, count);
  });
  return out;
}

}  // namespace

void bind_formats(py::module_& m) {
  hold(m, "formats", formats, "The weight formats: dicts of name, ggml_type, block, block_bytes, quantized.");
  compute(m, "encode", encode, py::arg("format"), py::arg("x"), py::arg("importance") = py::none(),
          "float32 (n,) to uint8 blocks; n is a multiple of the block. importance, (columns,) of numbers >= 0, says what a squared "
          "error in each column of the rows costs.");
  compute(m, "decode", decode, py::arg("format"), py::arg("data"), py::arg("count"), "uint8 blocks of `count` weights to float32.");
  compute(m, "transposed", transposed, py::arg("format"), py::arg("data"), py::arg("heads"), py::arg("rows"), py::arg("cols"),
          py::arg("count"), py::arg("into"),
          "The first `count` rows of each of uint8 matrices (heads, rows, cols), whose rows are whole blocks, as columns: "
          "(heads, cols, count) in the format `into`, rows padded with zeros to whole blocks.");
}

}  // namespace ivlite
