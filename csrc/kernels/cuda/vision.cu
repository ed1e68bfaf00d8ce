// Patches of frame pairs: a block per patch.
#include "intrinsics.h"
#include "kernels/cuda/elementwise.h"

namespace ivlite::cuda {
namespace {

constexpr int kThreads = 256;

IVLITE_KERNEL void patchify_one(PatchArgs a) {
  const int p = (int)a.patch, merge = (int)a.merge, area = p * p, frame = (int)a.temporal * area;
  const int across = (int)(a.w / p / merge), patch = block_x(), block = patch / (merge * merge), in = patch % (merge * merge);
  const int64_t y0 = (block / across * merge + in / merge) * (int64_t)p, x0 = (block % across * merge + in % merge) * (int64_t)p;
  float* out = a.out + (int64_t)patch * 3 * frame;
  for (int e = thread_x(); e < 3 * frame; e += kThreads) {
    const int c = e / frame, t = e % frame / area, i = e % area / p, j = e % p;
    const uint8_t value = a.frames[((t * a.h + y0 + i) * a.w + x0 + j) * 3 + c];
    const float mean = c == 0 ? a.mean[0] : c == 1 ? a.mean[1] : a.mean[2], std = c == 0 ? a.std[0] : c == 1 ? a.std[1] : a.std[2];
    out[e] = ((float)value / 255.0f - mean) / std;
  }
}

}  // namespace

Status patchify(const PatchArgs& a, Stream stream) {
  return launch(patchify_one, {(unsigned)(a.h / a.patch * (a.w / a.patch))}, kThreads, 0, stream, a);
}

}  // namespace ivlite::cuda
