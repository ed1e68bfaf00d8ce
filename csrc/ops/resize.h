// Resizing of 8-bit RGB pictures: bicubic with antialiasing, to the same bytes as Pillow 13: one axis after the other, with bytes in
// between; the height first where it shrinks by more than twice as many pixels as the width.
#pragma once
#include <stdint.h>

#include <vector>

#include "kernels/table.h"

namespace ivlite {

struct InPixels {  // (h, w, 3) bytes; steps in bytes, of any sign
  const uint8_t* data;
  int64_t h, w, row_step, pixel_step;
};
struct OutPixels {  // (h, w, 3) bytes, contiguous
  uint8_t* data;
  int64_t h, w;
};

// From one size to another. May be used by several threads at once.
class Resizer {
 public:
  // Throws std::invalid_argument for sizes that are not positive.
  Resizer(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w);
  // Throws std::invalid_argument for pictures of other sizes. Runs in the calling thread.
  void run(const OutPixels& out, const InPixels& in) const;
  int64_t in_h() const { return in_h_; }
  int64_t in_w() const { return in_w_; }

 private:
  struct Axis {
    std::vector<int64_t> first;
    std::vector<int32_t> weights, pairs;
    std::vector<int16_t> halves;
    int64_t taps = 0;
    ResizeAxis view() const { return {(int64_t)first.size(), taps, first.data(), weights.data(), halves.data(), pairs.data()}; }
  };
  static Axis axis(int64_t in, int64_t out);
  class Narrow;
  void across_first(const OutPixels& out, const InPixels& in) const;
  void down_first(const OutPixels& out, const InPixels& in) const;

  int64_t in_h_, in_w_, out_h_, out_w_;
  bool down_first_;
  Axis across_, down_;
};

}  // namespace ivlite
