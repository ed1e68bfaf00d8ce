// The linear layers' part of the comparison: every format, and tails of rows, columns and tokens.
#pragma once
#include "compare.h"
#include "kernels/pack.h"
#include "ops/linear.h"

namespace ivlite {

constexpr Close kLinear{1e-4, 2e-4};

// A packed matrix of a format.
struct Packed {
  Format format;
  int64_t rows, cols, panels;
  AtEdge<uint8_t> memory;

  Packed(Format format, const uint8_t* blocks, int64_t row_bytes, int64_t rows, int64_t cols)
      : format(format), rows(rows), cols(cols), panels((rows + kPanel - 1) / kPanel), memory(panels * panel_bytes(format, cols)) {
    for (int64_t p = 0; p < panels; p++)
      pack_rows(memory.data() + p * panel_bytes(format, cols), format, blocks + p * kPanel * row_bytes, row_bytes, 0,
                std::min<int64_t>(kPanel, rows - p * kPanel), cols);
  }
};

inline int64_t row_bytes(Format f, int64_t cols) {
  const FormatInfo& info = FORMATS[(int)f];
  return (cols + info.block - 1) / info.block * info.block_bytes;
}

inline Packed encoded(Format f, const float* matrix, int64_t rows, int64_t cols) {
  const FormatInfo& info = FORMATS[(int)f];
  const int64_t bytes = row_bytes(f, cols);
  std::vector<uint8_t> blocks((size_t)(rows * bytes));
  for (int64_t r = 0; r < rows; r++) {
    std::vector<float> row((size_t)(bytes / info.block_bytes * info.block));
    std::copy_n(matrix + r * cols, cols, row.begin());
    info.encode(blocks.data() + r * bytes, row.data(), nullptr, (int64_t)row.size());
  }
  return Packed(f, blocks.data(), bytes, rows, cols);
}

// Random codes under a scale of one, or of two per group in K formats: nothing is rounded anywhere.
inline Packed whole_blocks(Format f, int64_t rows, int64_t cols) {
  const FormatInfo& info = FORMATS[(int)f];
  std::vector<uint8_t> blocks((size_t)(rows * row_bytes(f, cols)));
  for (uint8_t& byte : blocks) byte = (uint8_t)rng()();
  const uint16_t one = 0x3c00;
  for (uint8_t* b = blocks.data(); b < blocks.data() + blocks.size(); b += info.block_bytes) {
    if (f == Format::q6_k) {
      for (int i = 192; i < 208; i++) b[i] %= 5;
      memcpy(b + 208, &one, 2);
    } else {
      memcpy(b, &one, 2);
    }
    if (f != Format::q4_k && f != Format::q5_k) continue;
    memcpy(b + 2, &one, 2);
    for (int i = 4; i < 16; i++) b[i] &= 3;
  }
  return Packed(f, blocks.data(), row_bytes(f, cols), rows, cols);
}

// y (tokens, ldy) = w x by the kernel of any number of tokens, activations quantized by the same table.
inline void run_quantized(const KernelTable& table, Packed& w, const float* x, int64_t tokens, float* y, int64_t ldy) {
  std::vector<char> memory((size_t)quant_rows_bytes(tokens, w.cols));
  const QuantRows xq = quant_rows(memory.data(), tokens, w.cols);
  table.quantize_rows(xq, {x, w.cols, 0, tokens, 0, w.cols});
  table.linear[(int)w.format]({y, ldy, x, w.cols, xq, w.memory.data(), w.rows, w.cols, nullptr, false, tokens, nullptr, nullptr}, 0,
                              w.panels);
}

// The same by the GEMM path: activations quantized in parts, panels one by one and then the rest, as threads would take them.
inline void run_gemm(const KernelTable& table, Packed& w, const float* x, int64_t tokens, float* y, int64_t ldy) {
  AtEdge<uint8_t> acts(gemm_bytes(tokens, w.cols)), scratch(kGemmScratch);
  const int64_t half = std::min<int64_t>(kBlockK, w.cols), t0 = std::min<int64_t>(16, tokens);
  for (const auto& [first, last] : {std::pair{(int64_t)0, t0}, {t0, tokens}})
    for (const auto& [c0, c1] : {std::pair{(int64_t)0, half}, {half, w.cols}})
      if (first < last && c0 < c1)
        table.quantize_gemm[(int)w.format]((uint16_t*)acts.data(), tokens, w.cols, {x + c0, w.cols, first, last, c0, c1});
  QuantRows xq{};
  xq.cols = (w.cols + kGroup - 1) / kGroup * kGroup;
  const LinearArgs a{
      y, ldy, x, w.cols, xq, w.memory.data(), w.rows, w.cols, nullptr, false, tokens, (const uint16_t*)acts.data(), scratch.data()};
  table.linear_gemm[(int)w.format](a, 0, std::min<int64_t>(1, w.panels));
  table.linear_gemm[(int)w.format](a, std::min<int64_t>(1, w.panels), w.panels);
}

struct Layer {
  const float* bias = nullptr;
  bool accumulate = false;
  Close close = kLinear;
};

// w x for (tokens, cols) rows of x: panels one by one and then the rest, as threads would take them.
inline void run_linear(Report& r, const Tables& t, Packed& w, AtEdge<float>& x, int64_t tokens, Layer layer = {}) {
  std::vector<char> memory((size_t)quant_rows_bytes(tokens, w.cols));
  const QuantRows xq = quant_rows(memory.data(), tokens, w.cols);
  t.plain.quantize_rows(xq, {x.data(), w.cols, 0, tokens, 0, w.cols});
  const auto call = [&](const KernelTable& table, float* y, int64_t ldy) {
    LinearArgs a{y, ldy, x.data(), w.cols, xq, w.memory.data(), w.rows, w.cols, layer.bias, layer.accumulate, tokens, nullptr, nullptr};
    table.linear[(int)w.format](a, 0, std::min<int64_t>(1, w.panels));
    table.linear[(int)w.format](a, std::min<int64_t>(1, w.panels), w.panels);
  };
  compare(r, t.plain, t.fast, tokens, w.rows, 3, layer.close, text({{"rows", w.rows}, {"columns", w.cols}, {"tokens", tokens}}), call,
          layer.accumulate ? 7 : NAN);
}

inline void linear_case(Report& r, const Tables& t, Format f, int64_t rows, int64_t cols, int64_t tokens, bool bias = false,
                        bool accumulate = false) {
  Normal matrix(rows * cols), x(tokens * cols), b(rows);
  Packed w = encoded(f, matrix.data(), rows, cols);
  run_linear(r, t, w, x, tokens, {bias ? b.data() : nullptr, accumulate});
}

// Largest weights of either sign times largest activations.
inline void extreme_codes(Report& r, const Tables& t, Format f) {
  constexpr int64_t kCols = 256;
  AtEdge<float> matrix(20 * kCols), x(12 * kCols);
  const auto sign = [](int64_t kind, int64_t k) { return (kind < 2 ? 1.0f : k % 2 ? -1.0f : 1.0f) * (kind % 2 ? -1.0f : 1.0f); };
  for (int64_t i = 0; i < matrix.size(); i++) matrix[i] = sign(i / kCols / 5, i % kCols);
  for (int64_t i = 0; i < x.size(); i++) x[i] = sign(i / kCols % 4, i % kCols);
  Packed w = encoded(f, matrix.data(), 20, kCols);
  for (const int64_t tokens : {4, 12}) run_linear(r, t, w, x, tokens, {nullptr, false, {1e-6, 1e-4}});
}

// Rows of zeros, half of zeros, huge and tiny: the error is relative to each row's largest result.
inline void odd_activations(Report& r, const Tables& t, Format f) {
  Normal matrix(16 * 64), x(64);
  Packed w = encoded(f, matrix.data(), 16, 64);
  for (const float scale : {0.0f, 1.0f, 1e20f, 1e-30f}) {
    AtEdge<float> row(64);
    for (int i = 0; i < 64; i++) row[i] = scale == 1 && i < 32 ? 0 : scale * x[i];
    run_linear(r, t, w, row, 1, {nullptr, false, {1e-4, 1e-4 * scale}});
  }
}

inline void integer_sums(Report& r, const Tables& t, Format f) {
  Packed w = whole_blocks(f, 21, 544);
  for (const int64_t tokens : {1, 2, 3, 5, 6, 7, 9, 13, 61}) {
    AtEdge<float> x(tokens * 544);
    for (int64_t i = 0; i < x.size(); i++) x[i] = i % 32 ? (float)((int)(rng()() % 253) - 126) : 127;
    run_linear(r, t, w, x, tokens, {nullptr, false, kEqual});
  }
}

inline void test_linear(Report& r, const Tables& t, Format f) {
  for (const int64_t cols : {32, 1, 31, 33, 64, 70, 144, 896}) linear_case(r, t, f, 19, cols, 3);
  for (const int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 33, 64}) linear_case(r, t, f, rows, 96, 5, true);
  for (int64_t tokens = 1; tokens <= 26; tokens++) linear_case(r, t, f, 20, 80, tokens);
  for (const int64_t tokens : {60, 61, 63, 130}) linear_case(r, t, f, 20, 80, tokens);
  for (const int64_t tokens : {1, 2, 8, 13, 64}) linear_case(r, t, f, 18, 600, tokens);  // two blocks of 256 columns and a part
  linear_case(r, t, f, 24, 64, 6, true, true);
  linear_case(r, t, f, 24, 64, 23, true, true);
  odd_activations(r, t, f);
  if (!FORMATS[(int)f].quantized) return;
  extreme_codes(r, t, f);
  integer_sums(r, t, f);
}

// Unpacked panels: weights and activations are rounded once more, to a scale per k-block (to bf16 for q8_0 on AMX), so the
// products are compared with those of the plain kernel, whose activations are rounded per group, by their rms.
inline void test_gemm(Report& r, const Tables& t, Format f) {
  if (!t.fast.linear_gemm[(int)f]) return;
  const int64_t from = t.fast.gemm_from;
  for (const int64_t rows : {1, 35, 64})
    for (const int64_t cols : {32, 96, 128, 600, 1100})
      for (const int64_t tokens : {from, from + 1, from + 15, (int64_t)130}) {
        Normal matrix(rows * cols), x(tokens * cols);
        Packed w = encoded(f, matrix.data(), rows, cols);
        Guarded got(tokens, rows, 3, NAN);
        std::vector<float> expected((size_t)(tokens * rows));
        run_gemm(t.fast, w, x.data(), tokens, got.data(), got.stride);
        run_quantized(t.plain, w, x.data(), tokens, expected.data(), rows);
        const std::vector<float> y = got.take();
        const std::string what = text({{"rows", rows}, {"columns", cols}, {"tokens", tokens}});
        r.near_rms(y.data(), expected.data(), tokens * rows, {0.016, 0.08}, what);
        r.expect(got.intact(), what + ": wrote outside its output");
      }
}

inline void test_quantize_rows(Report& r, const Tables& t) {
  for (const int64_t n : {1, 5, 31, 32, 33, 100, 128}) {
    Normal x(7 * n, 3);
    std::fill_n(x.data() + n, n, 0.0f);
    x[2 * n] = 1e6;
    std::fill_n(x.data() + 3 * n, n, 0.5f);
    for (int64_t i = 0; i < n; i++) x[6 * n + i] = i % 32 ? (float)(i % 32) - 16.5f : 127;  // halfway between two codes
    std::vector<char> memory[2];
    for (int i = 0; i < 2; i++) {
      memory[i].resize((size_t)quant_rows_bytes(7, n));
      (i ? t.plain : t.fast).quantize_rows(quant_rows(memory[i].data(), 7, n), {x.data(), n, 0, 7, 0, n});
    }
    r.expect(memory[0] == memory[1], text({{"columns", n}}));
  }
}

}  // namespace ivlite
