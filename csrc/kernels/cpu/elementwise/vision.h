// Patches of frames.
#pragma once
#include "kernels/cpu/vec/vec.h"
#include "kernels/table.h"

namespace ivlite {
namespace {

// The 256 values of a channel are normalized once and looked up: the same divisions as in the plain kernel, so the same floats.
inline void pixel_table(float* table, float mean, float std) {
  for (int i = 0; i < 256; i += vec::kLanes) {
    float value[vec::kLanes];
    for (int j = 0; j < vec::kLanes; j++) value[j] = (float)(i + j);
    const vec::V unit = vec::div(vec::load(value), vec::set1(255.0f));
    vec::store(table + i, vec::div(vec::sub(unit, vec::set1(mean)), vec::set1(std)));
  }
}

// One row of a patch: n pixels of three bytes, to three planes.
inline void pixel_row(float* out, int64_t plane, const uint8_t* pixels, const float (*table)[256], int64_t n) {
  for (int64_t j = 0; j < n; j++, pixels += 3)
    for (int c = 0; c < 3; c++) out[c * plane + j] = table[c][pixels[c]];
}

void patchify(const PatchArgs& a, int64_t b0, int64_t b1) {
  float table[3][256];
  for (int c = 0; c < 3; c++) pixel_table(table[c], a.mean[c], a.std[c]);
  const int64_t p = a.patch, plane = a.temporal * p * p, across = a.w / p / a.merge, side = a.merge * p;
  float* out = a.out + b0 * across * a.merge * a.merge * 3 * plane;
  for (int64_t by = b0; by < b1; by++)
    for (int64_t bx = 0; bx < across; bx++)
      for (int64_t m = 0; m < a.merge * a.merge; m++, out += 3 * plane) {
        const int64_t y = by * side + m / a.merge * p, x = bx * side + m % a.merge * p;
        for (int64_t t = 0; t < a.temporal; t++)
          for (int64_t i = 0; i < p; i++) pixel_row(out + (t * p + i) * p, plane, a.frames + ((t * a.h + y + i) * a.w + x) * 3, table, p);
      }
}

}  // namespace
}  // namespace ivlite
