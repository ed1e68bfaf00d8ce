#include "ops/vision.h"

#include "core/threads.h"
#include "kernels/dispatch.h"

namespace ivlite {

void patchify(const OutRows& out, const uint8_t* frames, int64_t temporal, int64_t h, int64_t w, int64_t patch, int64_t merge,
              const float mean[3], const float std[3]) {
  check(patch > 0 && merge > 0 && temporal > 0, "patch, merge and temporal sizes must be positive");
  check(h > 0 && w > 0 && h % product({patch, merge}) == 0 && w % product({patch, merge}) == 0,
        "frames must be whole blocks of merged patches");
  check_size("the rows of the patches", out.rows, h / patch * (w / patch));
  check_size("the columns of the patches", out.cols, product({3, temporal, patch, patch}));
  check(out.stride == out.cols, "patches must be contiguous");
  PatchArgs a{out.data, frames, temporal, h, w, patch, merge, {mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}};
  parallel_for(h / patch / merge, 1, [&](int64_t b0, int64_t b1) { kernels().patchify(a, b0, b1); });
}

}  // namespace ivlite
