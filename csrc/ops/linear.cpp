#include "ops/linear.h"

#include <algorithm>

#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace ivlite {

namespace {
int64_t packed_size(Format format, int64_t heads, int64_t rows, int64_t cols) {
  check(heads > 0 && rows > 0 && cols > 0, "a weight needs at least one row and one column");
  check(heads < 1 << 24 && rows < 1 << 28 && cols < 1 << 28, "a weight is too large");
  return heads * (round_up(rows, kPanel) / kPanel) * panel_bytes(format, cols);
}

// How many items a thread takes at least: less than this much memory is not worth waking anyone.
constexpr int64_t kGrainBytes = 32 << 10;

int64_t panel_grain(const Weight& w, int64_t tokens) {
  return std::max<int64_t>(1, kGrainBytes / (w.panel_stride() * std::min<int64_t>(tokens, 64)));
}
}  // namespace

Weight::Weight(Format format, const uint8_t* data, int64_t bytes, int64_t heads, int64_t rows, int64_t cols)
    : format_(format),
      heads_(heads),
      rows_(rows),
      cols_(cols),
      panels_(round_up(rows, kPanel) / kPanel),
      stride_(panel_bytes(format, cols)),
      memory_((size_t)packed_size(format, heads, rows, cols)) {
  const FormatInfo& info = FORMATS[(int)format];
  int64_t row_bytes = bytes / (heads * rows);
  int64_t needed = (cols + info.block - 1) / info.block * info.block_bytes;
  check(bytes == row_bytes * heads * rows && row_bytes % info.block_bytes == 0 && row_bytes >= needed,
        "the data of a weight is not rows of whole blocks of its shape");
  parallel_for(heads * panels_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const uint8_t* matrix = data + i / panels_ * rows * row_bytes;
      pack_panel((char*)memory_.data() + i * stride_, format, matrix, row_bytes, rows, cols, i % panels_);
    }
  });
}

int64_t quant_rows_bytes(int64_t tokens, int64_t cols) {
  int64_t padded = round_up(cols, kGroup);
  return tokens * (padded + padded / kGroup * 20) + 64;
}

QuantRows quant_rows(void* memory, int64_t tokens, int64_t cols) {
  int64_t padded = round_up(cols, kGroup), groups = padded / kGroup;
  int8_t* q = (int8_t*)memory;
  float* scale = (float*)(q + tokens * padded);  // padded is a multiple of 32, so scales are aligned
  float* shift = scale + tokens * groups;
  int32_t* sum = (int32_t*)(shift + tokens * groups);
  return {q, scale, sum, sum + tokens * groups, shift, padded};
}

bool is_wide(const Weight& w, int64_t tokens) { return kernels().linear_wide[(int)w.format()] && tokens >= kernels().wide_from; }

int64_t tiles_bytes(int64_t tokens, int64_t cols) { return round_up(tokens, 16) * round_up(cols, 128) * 2; }

void wide_panels(const OutRows& y, const InRows& x, const uint16_t* tiles, const Weight& w, int64_t head, const float* bias,
                 bool accumulate, int64_t p0, int64_t p1) {
  QuantRows xq{};
  xq.cols = round_up(w.cols(), kGroup);
  void* scratch = thread_scratch(4, kWideScratch);
  LinearArgs a{y.data, y.stride, x.data, x.stride, xq, w.head(head), w.rows(), w.cols(), bias, accumulate, x.rows, tiles, scratch};
  kernels().linear_wide[(int)w.format()](a, p0, p1);
}

namespace {
void linear_wide(const OutRows& y, const InRows& x, const Weight& w, const float* bias, bool accumulate) {
  uint16_t* tiles = (uint16_t*)thread_scratch(0, (size_t)tiles_bytes(x.rows, x.cols));
  parallel_for(round_up(x.rows, 16) / 16, 1,
               [&](int64_t t0, int64_t t1) { kernels().round_tiles(tiles, x.data, x.stride, x.rows, x.cols, t0, t1); });
  parallel_for(w.panels(), kernels().wide_panels,
               [&](int64_t p0, int64_t p1) { wide_panels(y, x, tiles, w, 0, bias, accumulate, p0, p1); });
}

}  // namespace

void linear_panels(const OutRows& y, const InRows& x, const QuantRows& xq, const Weight& w, int64_t head, const float* bias,
                   bool accumulate, int64_t p0, int64_t p1) {
  LinearArgs a{y.data, y.stride, x.data, x.stride, xq, w.head(head), w.rows(), w.cols(), bias, accumulate, x.rows, nullptr, nullptr};
  kernels().linear[(int)w.format()](a, p0, p1);
}

void linear(const OutRows& y, const InRows& x, const Weight& w, const float* bias, bool accumulate) {
  check_size("the number of heads of a linear weight", w.heads(), 1);
  check_size("the columns of x", x.cols, w.cols());
  check_size("the columns of y", y.cols, w.rows());
  check_size("the rows of y", y.rows, x.rows);
  if (x.rows == 0) return;
  if (is_wide(w, x.rows)) return linear_wide(y, x, w, bias, accumulate);
  QuantRows xq{};
  if (w.quantized()) {
    xq = quant_rows(thread_scratch(0, (size_t)quant_rows_bytes(x.rows, x.cols)), x.rows, x.cols);
    parallel_for(x.rows, std::max<int64_t>(1, 8192 / x.cols),
                 [&](int64_t t0, int64_t t1) { kernels().quantize_rows(xq, x.data, x.stride, x.cols, t0, t1); });
  }
  parallel_for(w.panels(), panel_grain(w, x.rows),
               [&](int64_t p0, int64_t p1) { linear_panels(y, x, xq, w, 0, bias, accumulate, p0, p1); });
}

void linear_heads(const OutHeads& y, const InHeads& x, const Weight& w) {
  check_size("the heads of x", x.heads, w.heads());
  check_size("the heads of y", y.heads, w.heads());
  check_size("the columns of x", x.dim, w.cols());
  check_size("the columns of y", y.dim, w.rows());
  check_size("the rows of y", y.tokens, x.tokens);
  if (x.tokens == 0) return;
  int64_t bytes = round_up(quant_rows_bytes(x.tokens, x.dim), 64);
  char* memory = w.quantized() ? (char*)thread_scratch(0, (size_t)(bytes * x.heads)) : nullptr;
  if (memory)
    parallel_for(x.heads, std::max<int64_t>(1, 8192 / (x.dim * x.tokens)), [&](int64_t h0, int64_t h1) {
      for (int64_t h = h0; h < h1; h++)
        kernels().quantize_rows(quant_rows(memory + h * bytes, x.tokens, x.dim), x.data + h * x.head_stride, x.token_stride, x.dim, 0,
                                x.tokens);
    });
  parallel_for(x.heads * w.panels(), panel_grain(w, x.tokens), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {  // panels [p0, p1) of head h
      int64_t h = i / w.panels(), p0 = i % w.panels(), p1 = std::min(w.panels(), p0 + end - i);
      OutRows out{y.data + h * y.head_stride, y.tokens, y.dim, y.token_stride};
      InRows in{x.data + h * x.head_stride, x.tokens, x.dim, x.token_stride};
      QuantRows xq = memory ? quant_rows(memory + h * bytes, x.tokens, x.dim) : QuantRows{};
      linear_panels(out, in, xq, w, h, nullptr, false, p0, p1);
      i += p1 - p0;
    }
  });
}

}  // namespace ivlite
