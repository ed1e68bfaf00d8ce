#include "kernels/ref/ref.h"

namespace ivlite {
namespace {

void rope(const RopeArgs& a, int64_t t0, int64_t t1) {
  int64_t half = a.d / 2;
  for (int64_t t = t0; t < t1; t++)
    for (int64_t h = 0; h < a.heads; h++) {
      const float* x = a.x + t * a.ldx + h * a.ldh;
      float* y = a.y + (t * a.heads + h) * a.d;
      for (int64_t j = 0; j < half; j++) {
        double first = a.interleaved ? x[2 * j] : x[j], second = a.interleaved ? x[2 * j + 1] : x[j + half];
        double c = a.cos[t * half + j], s = a.sin[t * half + j];
        y[j] = (float)(first * c - second * s);
        y[j + half] = (float)(second * c + first * s);
      }
    }
}

}  // namespace

void init_ref_rope(KernelTable& t) { t.rope = rope; }

}  // namespace ivlite
