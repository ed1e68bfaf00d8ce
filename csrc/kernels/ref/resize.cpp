#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

constexpr int32_t kHalf = 1 << (kResizeBits - 1);

uint8_t rounded(int32_t sum) {
  const int32_t value = sum >> kResizeBits;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

void resize_rows(uint8_t* const* out, const uint8_t* const* rows, const ResizeAxis& a) {
  for (int r = 0; r < kResizeRows; r++)
    for (int64_t i = 0; i < a.outputs; i++)
      for (int c = 0; c < 3; c++) {
        int32_t sum = kHalf;
        for (int64_t t = 0; t < a.taps; t++) sum += rows[r][3 * (a.first[i] + t) + c] * a.weights[i * a.taps + t];
        out[r][3 * i + c] = rounded(sum);
      }
}

void resize_columns(uint8_t* out, const uint8_t* const* rows, const ResizeAxis& a, int64_t output, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i++) {
    int32_t sum = kHalf;
    for (int64_t t = 0; t < a.taps; t++) sum += rows[t][i] * a.weights[output * a.taps + t];
    out[i] = rounded(sum);
  }
}

}  // namespace

void init_ref_resize(KernelTable& t) {
  t.resize_rows = resize_rows;
  t.resize_columns = resize_columns;
}

}  // namespace ivlite
