#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

// One patch: (3, temporal, p, p) from the frames' pixels at (y, x).
void one_patch(const PatchArgs& a, float* out, int64_t y, int64_t x) {
  for (int c = 0; c < 3; c++)
    for (int64_t t = 0; t < a.temporal; t++)
      for (int64_t i = 0; i < a.patch; i++)
        for (int64_t j = 0; j < a.patch; j++) {
          uint8_t value = a.frames[((t * a.h + y + i) * a.w + x + j) * 3 + c];
          *out++ = (value / 255.0f - a.mean[c]) / a.std[c];
        }
}

void patchify(const PatchArgs& a, int64_t b0, int64_t b1) {
  int64_t size = 3 * a.temporal * a.patch * a.patch, across = a.w / a.patch / a.merge, side = a.merge * a.patch;
  float* out = a.out + b0 * across * a.merge * a.merge * size;
  for (int64_t by = b0; by < b1; by++)
    for (int64_t bx = 0; bx < across; bx++)
      for (int64_t my = 0; my < a.merge; my++)
        for (int64_t mx = 0; mx < a.merge; mx++, out += size) one_patch(a, out, by * side + my * a.patch, bx * side + mx * a.patch);
}

}  // namespace

void init_ref_vision(KernelTable& t) { t.patchify = patchify; }

}  // namespace ivlite
