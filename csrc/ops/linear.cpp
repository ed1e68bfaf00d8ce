#include "ops/linear.h"

#include <algorithm>
#include <iterator>
#include <memory>

#include "core/threads.h"
#include "kernels/dispatch.h"
#include "kernels/pack.h"

namespace ivlite {

namespace {
int64_t packed_size(Format format, int64_t heads, int64_t rows, int64_t cols) {
  check(heads > 0 && rows > 0 && cols > 0, "a weight needs at least one row and one column");
  check(heads < 1 << 24 && rows < 1 << 28 && cols < 1 << 28, "a weight is too large");
  return product({heads, round_up(rows, kPanel) / kPanel, panel_bytes(format, cols)});
}

// How many items a thread takes at least: less than this much memory is not worth waking anyone.
constexpr int64_t kGrainBytes = 32 << 10;
constexpr int64_t kTogether = 4;                // panels that a kernel may read side by side
constexpr int64_t kActivatedBytes = 256 << 10;  // of a product that is kept until its activation comes
constexpr int64_t kBlocksEach = 8;              // of an MLP's inner columns for a thread, at least, to be rounded where they are made

int64_t panel_grain(const Weight& w, int64_t tokens) {
  return std::max<int64_t>(tokens == 1 ? kTogether : 1, kGrainBytes / (w.panel_stride() * std::min<int64_t>(tokens, 64)));
}
}  // namespace

Weight::Weight(Format format, int64_t heads, int64_t rows, int64_t cols)
    : format_(format),
      heads_(heads),
      rows_(rows),
      cols_(cols),
      panels_(round_up(rows, kPanel) / kPanel),
      stride_(panel_bytes(format, cols)),
      memory_((size_t)packed_size(format, heads, rows, cols)) {}

void Weight::fill(int64_t first, int64_t count, const uint8_t* data, int64_t row_bytes) {
  const FormatInfo& info = FORMATS[(int)format_];
  const int64_t needed = (cols_ + info.block - 1) / info.block * info.block_bytes;
  check(row_bytes % info.block_bytes == 0 && row_bytes >= needed, "the data of a weight is not rows of whole blocks of its shape");
  check(first >= 0 && count >= 0 && first <= heads_ * rows_ - count, "more rows of a weight than there are");
  // Panels of all heads, the first and last of which may be begun or left within.
  const auto panel_of = [&](int64_t row) { return row / rows_ * panels_ + row % rows_ / kPanel; };
  if (count == 0) return;
  const int64_t begin = panel_of(first), end = panel_of(first + count - 1) + 1;
  parallel_for(end - begin, 1, [&](int64_t i0, int64_t i1) {
    for (int64_t i = begin + i0; i < begin + i1; i++) {
      const int64_t top = i / panels_ * rows_ + i % panels_ * kPanel;  // the panel's first row
      const int64_t last = std::min({top + kPanel, (i / panels_ + 1) * rows_, first + count}), from = std::max(top, first);
      pack_rows((char*)memory_.data() + i * stride_, format_, data + (from - first) * row_bytes, row_bytes, from - top, last - top, cols_);
    }
  });
}

int64_t quant_rows_bytes(int64_t tokens, int64_t cols) {
  int64_t padded = round_up(cols, kGroup);
  return product({tokens, padded + padded / kGroup * 20}) + 64;
}

QuantRows quant_rows(void* memory, int64_t tokens, int64_t cols) {
  int64_t padded = round_up(cols, kGroup), groups = padded / kGroup;
  int8_t* q = (int8_t*)memory;
  float* scale = (float*)(q + tokens * padded);  // padded is a multiple of 32, so scales are aligned
  float* shift = scale + tokens * groups;
  int32_t* sum = (int32_t*)(shift + tokens * groups);
  return {q, scale, sum, sum + tokens * groups, shift, padded};
}

bool uses_gemm(const Weight& w, int64_t tokens) { return kernels().linear_gemm[(int)w.format()] && tokens >= kernels().gemm_from; }

int64_t few_tokens() {
  const auto& paths = kernels().linear_gemm;
  return std::any_of(std::begin(paths), std::end(paths), [](linear_fn path) { return path; }) ? kernels().gemm_from - 1 : INT64_MAX;
}

int64_t gemm_bytes(int64_t tokens, int64_t cols) {
  return product({round_up(tokens, 16), round_up(cols, kBlockK) / kBlockK, 2 * kBlockK + kBlockScales});
}

void gemm_panels(const OutRows& y, const InRows& x, const uint16_t* gemm_x, const Weight& w, int64_t head, const float* bias,
                 bool accumulate, int64_t p0, int64_t p1) {
  QuantRows xq{};
  xq.cols = round_up(w.cols(), kGroup);
  void* scratch = thread_scratch(Scratch::gemm, kGemmScratch);
  LinearArgs a{y.data, y.stride, x.data, x.stride, xq, w.head(head), w.rows(), w.cols(), bias, accumulate, x.rows, gemm_x, scratch};
  kernels().linear_gemm[(int)w.format()](a, p0, p1);
}

void linear_panels(const OutRows& y, const InRows& x, const QuantRows& xq, const Weight& w, int64_t head, const float* bias,
                   bool accumulate, int64_t p0, int64_t p1) {
  LinearArgs a{y.data, y.stride, x.data, x.stride, xq, w.head(head), w.rows(), w.cols(), bias, accumulate, x.rows, nullptr, nullptr};
  kernels().linear[(int)w.format()](a, p0, p1);
}

namespace {

// One linear layer of x, of which float weights alone read the data. Once everything is rounded, any thread may ask for any
// panels.
struct Product {
  InRows x;
  const Weight& w;
  const float* bias;
  bool accumulate, gemm;
  QuantRows xq;
  uint16_t* gemm_x;

  // Quantized activations go to that part of the calling thread's scratch.
  Product(const InRows& x, const Linear& of, bool accumulate, Scratch use)
      : x(x), w(of.w), bias(of.bias), accumulate(accumulate), gemm(uses_gemm(w, x.rows)), xq{}, gemm_x(nullptr) {
    if (gemm)
      gemm_x = (uint16_t*)thread_scratch(use, (size_t)gemm_bytes(x.rows, x.cols));
    else if (w.quantized())
      xq = quant_rows(thread_scratch(use, (size_t)quant_rows_bytes(x.rows, x.cols)), x.rows, x.cols);
  }

  void round(const Part& part) const {
    if (gemm)
      kernels().quantize_gemm[(int)w.format()](gemm_x, x.rows, x.cols, part);
    else if (w.quantized())
      kernels().quantize_rows(xq, part);
  }

  void round_all() const {
    const int64_t grain = gemm ? 16 : std::max<int64_t>(1, 8192 / x.cols);
    if (w.quantized()) parallel_for(x.rows, grain, [&](int64_t t0, int64_t t1) { round({x.data, x.stride, t0, t1, 0, x.cols}); });
  }

  // Panels whose outputs, of all tokens, are still in the cache when the activation comes.
  int64_t at_once() const {
    if (gemm) return kernels().gemm_panels;
    return std::max<int64_t>(8, kActivatedBytes / (x.rows * 2 * kPanel * (int64_t)sizeof(float)));
  }

  int64_t grain() const { return gemm ? kernels().gemm_panels : panel_grain(w, x.rows); }

  int64_t outputs(Activation activation) const { return activation == Activation::silu_mul ? w.rows() / 2 : w.rows(); }

  // Panels [p0, p1) of the outputs, row r of them to column r of y.
  void activated_panels(const OutRows& y, Activation activation, int64_t p0, int64_t p1) const {
    if (activation == Activation::silu_mul)
      gated_panels(y, p0, p1);
    else if (activation == Activation::none)
      panels(y, p0, p1);
    else
      gelu_panels(y, activation == Activation::gelu_tanh ? kernels().gelu_tanh : kernels().gelu_erf, p0, p1);
  }

  void all_panels(const OutRows& y, Activation activation) const {
    parallel_for(round_up(outputs(activation), kPanel) / kPanel, grain(),
                 [&](int64_t p0, int64_t p1) { activated_panels(y, activation, p0, p1); });
  }

 private:
  // Panels [p0, p1) of w, row r to column r of y.
  void panels(const OutRows& y, int64_t p0, int64_t p1) const {
    if (gemm)
      gemm_panels(y, x, gemm_x, w, 0, bias, accumulate, p0, p1);
    else
      linear_panels(y, x, xq, w, 0, bias, accumulate, p0, p1);
  }

  // The same, and gelu of what they wrote while it is in the cache.
  void gelu_panels(const OutRows& y, gelu_fn gelu, int64_t p0, int64_t p1) const {
    for (int64_t p = p0; p < p1; p += at_once()) {
      const int64_t end = std::min(p + at_once(), p1), n = std::min(end * kPanel, w.rows()) - p * kPanel;
      panels(y, p, end);
      for (int64_t t = 0; t < x.rows; t++) {
        float* row = y.data + t * y.stride + p * kPanel;
        gelu(row, row, 0, n);
      }
    }
  }

  // Panels [p0, p1) of the first half, with what belongs to them of the second half, which may begin within a panel.
  void gated_panels(const OutRows& y, int64_t p0, int64_t p1) const {
    const int64_t half = w.rows() / 2, most = at_once(), stride = (2 * most + 1) * kPanel;
    float* scratch = (float*)thread_scratch(Scratch::gate, (size_t)product({x.rows, stride, 4}));
    for (int64_t p = p0; p < p1; p += most) {
      const int64_t end = std::min(p + most, p1), r = p * kPanel, n = std::min(end * kPanel, half) - r;
      const int64_t u = (half + r) / kPanel, u_end = (half + r + n + kPanel - 1) / kPanel;
      float *gate = scratch - r, *up = scratch + (most - u) * kPanel;  // row 0 of w
      panels({gate, x.rows, w.rows(), stride}, p, end);
      panels({up, x.rows, w.rows(), stride}, u, u_end);
      kernels().silu_mul(y.data + r, y.stride, gate + r, up + half + r, stride, n, 0, x.rows);
    }
  }
};

void check_linear(const InRows& x, const Weight& w, Activation activation) {
  check_size("the number of heads of a linear weight", w.heads(), 1);
  check(activation != Activation::silu_mul || w.rows() % 2 == 0, "a gated weight needs an even number of rows");
  check_size("the columns of x", x.cols, w.cols());
}

// What both products of an MLP share: k-blocks of columns are outputs of the first, quantized while they are in the cache, and inputs of
// the second.
void rounded_outputs(const Product& first, Activation activation, const Product& second) {
  const int64_t tokens = first.x.rows, cols = second.x.cols, blocks = round_up(cols, kBlockK) / kBlockK;
  const int64_t together = std::max<int64_t>(1, (first.gemm ? kernels().gemm_panels : 1) * kPanel / kBlockK);
  const int64_t at_once = std::max(together, kActivatedBytes / (tokens * kBlockK * (int64_t)sizeof(float)));
  parallel_for(blocks, together, [&](int64_t f0, int64_t f1) {
    const int64_t most = std::min(at_once, f1 - f0);
    float* scratch = (float*)thread_scratch(Scratch::activated, (size_t)product({tokens, most, kBlockK, 4}));
    for (int64_t f = f0; f < f1; f += most) {
      const int64_t c0 = f * kBlockK, c1 = std::min({(f + most) * kBlockK, f1 * kBlockK, cols}), stride = most * kBlockK;
      first.activated_panels({scratch - c0, tokens, cols, stride}, activation, c0 / kPanel, round_up(c1, kPanel) / kPanel);
      second.round({scratch, stride, 0, tokens, c0, c1});
    }
  });
}

}  // namespace

void linear(const OutRows& y, const InRows& x, const Linear& of, bool accumulate, Activation activation) {
  check_linear(x, of.w, activation);
  check(!accumulate || activation == Activation::none, "a product with an activation is not added to y");
  const Product whole(x, of, accumulate, Scratch::inputs);
  check_size("the columns of y", y.cols, whole.outputs(activation));
  check_size("the rows of y", y.rows, x.rows);
  if (x.rows == 0) return;
  whole.round_all();
  whole.all_panels(y, activation);
}

void mlp(const OutRows& y, const InRows& x, const Linear& up, Activation activation, const Linear& down, bool accumulate) {
  check_linear(x, up.w, activation);
  const Product first(x, up, false, Scratch::inputs);
  const int64_t tokens = x.rows, inner = first.outputs(activation);
  check_linear({nullptr, tokens, inner, inner}, down.w, Activation::none);
  check_size("the columns of y", y.cols, down.w.rows());
  check_size("the rows of y", y.rows, tokens);
  if (tokens == 0) return;
  // Threads that wait for the last blocks must not cost more than quantizing separately.
  if (!down.w.quantized() || inner < kBlockK * kBlocksEach * num_threads()) {
    const std::unique_ptr<float[]> between(new float[(size_t)product({tokens, inner})]);
    linear({between.get(), tokens, inner, inner}, x, up, false, activation);
    return linear(y, {between.get(), tokens, inner, inner}, down, accumulate, Activation::none);
  }
  const Product second({nullptr, tokens, inner, 0}, down, accumulate, Scratch::inner);
  first.round_all();
  rounded_outputs(first, activation, second);
  second.all_panels(y, Activation::none);
}

void linear_heads(const OutHeads& y, const InHeads& x, const Weight& w, int64_t first) {
  check(first >= 0 && x.heads <= w.heads() - first, "x has more heads than the weight");
  check_size("the heads of y", y.heads, x.heads);
  check_size("the columns of x", x.dim, w.cols());
  check_size("the columns of y", y.dim, w.rows());
  check_size("the rows of y", y.tokens, x.tokens);
  if (x.tokens == 0) return;
  int64_t bytes = round_up(quant_rows_bytes(x.tokens, x.dim), 64);
  char* memory = w.quantized() ? (char*)thread_scratch(Scratch::inputs, (size_t)product({bytes, x.heads})) : nullptr;
  if (memory)
    parallel_for(x.heads, std::max<int64_t>(1, 8192 / (x.dim * x.tokens)), [&](int64_t h0, int64_t h1) {
      for (int64_t h = h0; h < h1; h++)
        kernels().quantize_rows(quant_rows(memory + h * bytes, x.tokens, x.dim),
                                {x.data + h * x.head_stride, x.token_stride, 0, x.tokens, 0, x.dim});
    });
  parallel_for(product({x.heads, w.panels()}), panel_grain(w, x.tokens), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {  // panels [p0, p1) of head h
      int64_t h = i / w.panels(), p0 = i % w.panels(), p1 = std::min(w.panels(), p0 + end - i);
      OutRows out{y.data + h * y.head_stride, y.tokens, y.dim, y.token_stride};
      InRows in{x.data + h * x.head_stride, x.tokens, x.dim, x.token_stride};
      QuantRows xq = memory ? quant_rows(memory + h * bytes, x.tokens, x.dim) : QuantRows{};
      linear_panels(out, in, xq, w, first + h, nullptr, false, p0, p1);
      i += p1 - p0;
    }
  });
}

}  // namespace ivlite
