// Resampling of pictures: the three bytes of a pixel, or sixteen bytes of a row, in lanes of 32 bits.
#pragma once
#include <arm_neon.h>
#include <string.h>

#include "kernels/table.h"

namespace ivlite {
namespace {

void resize_rows_neon(uint8_t* const* out, const uint8_t* const* rows, const ResizeAxis& a) {
  for (int64_t i = 0; i < a.outputs; i++) {
    int32x4_t sum[kResizeRows];
    for (int r = 0; r < kResizeRows; r++) sum[r] = vdupq_n_s32(1 << (kResizeBits - 1));
    const int32_t* weights = a.weights + i * a.taps;
    for (int64_t t = 0, at = 3 * a.first[i]; t < a.taps; t++, at += 3)
      for (int r = 0; r < kResizeRows; r++) {
        uint32_t pixel;  // and a byte of the next one
        memcpy(&pixel, rows[r] + at, 4);
        const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(pixel)));
        sum[r] = vmlaq_n_s32(sum[r], vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide))), weights[t]);
      }
    for (int r = 0; r < kResizeRows; r++) {
      const uint16x4_t value = vqmovun_s32(vshrq_n_s32(sum[r], kResizeBits));
      const uint32_t pixel = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(value, value))), 0);
      memcpy(out[r] + 3 * i, &pixel, 3);
    }
  }
}

void resize_columns_neon(uint8_t* out, const uint8_t* const* rows, const ResizeAxis& a, int64_t output, int64_t bytes) {
  const int32_t* weights = a.weights + output * a.taps;
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) {
    int32x4_t sum[4];
    for (int n = 0; n < 4; n++) sum[n] = vdupq_n_s32(1 << (kResizeBits - 1));
    for (int64_t t = 0; t < a.taps; t++) {
      const uint8x16_t x = vld1q_u8(rows[t] + i);
      const uint16x8_t wide[2] = {vmovl_u8(vget_low_u8(x)), vmovl_u8(vget_high_u8(x))};
      for (int n = 0; n < 2; n++) {
        sum[2 * n] = vmlaq_n_s32(sum[2 * n], vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide[n]))), weights[t]);
        sum[2 * n + 1] = vmlaq_n_s32(sum[2 * n + 1], vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(wide[n]))), weights[t]);
      }
    }
    uint8x8_t half[2];
    for (int n = 0; n < 2; n++) {
      const uint16x4_t low = vqmovun_s32(vshrq_n_s32(sum[2 * n], kResizeBits));
      const uint16x4_t high = vqmovun_s32(vshrq_n_s32(sum[2 * n + 1], kResizeBits));
      half[n] = vqmovn_u16(vcombine_u16(low, high));
    }
    vst1q_u8(out + i, vcombine_u8(half[0], half[1]));
  }
  for (; i < bytes; i++) {
    int32_t sum = 1 << (kResizeBits - 1);
    for (int64_t t = 0; t < a.taps; t++) sum += rows[t][i] * weights[t];
    sum >>= kResizeBits;
    out[i] = (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
  }
}

inline void init_resize_neon(KernelTable& t) {
  t.resize_rows = resize_rows_neon;
  t.resize_columns = resize_columns_neon;
}

}  // namespace
}  // namespace ivlite
