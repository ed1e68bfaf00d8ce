#pragma once
#include <stdint.h>

#include "ops/views.h"

namespace ivlite {

// Patches of one pair of frames: frames (temporal, h, w, 3) u8 contiguous -> out (h * w / patch^2, 3 * temporal * patch^2),
// rows in merge-block order; see PatchArgs. h and w are multiples of patch * merge.
void patchify(const OutRows& out, const uint8_t* frames, int64_t temporal, int64_t h, int64_t w, int64_t patch, int64_t merge,
              const float mean[3], const float std[3]);

}  // namespace ivlite
