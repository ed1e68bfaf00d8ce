#include "ops/resize.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "kernels/dispatch.h"
#include "ops/views.h"

namespace ivlite {
namespace {

constexpr int64_t kLongest = 1 << 24;  // pixels of a side; far more than any picture has
constexpr double kSharpness = -0.5, kSupport = 2;

// The cubic convolution kernel.
double cubic(double x) {
  x = fabs(x);
  if (x < 1) return ((kSharpness + 2) * x - (kSharpness + 3)) * x * x + 1;
  return x < kSupport ? (((x - 5) * x + 8) * x - 4) * kSharpness : 0;
}

// A weight in fixed point; halves are rounded away from zero.
int32_t fixed(double weight) { return (int32_t)((weight < 0 ? -0.5 : 0.5) + weight * (1 << kResizeBits)); }

int16_t high(int32_t weight) { return (int16_t)(weight >> kResizeLow); }
int16_t low(int32_t weight) { return (int16_t)(weight & ((1 << kResizeLow) - 1)); }
int32_t words(int16_t first, int16_t second) { return (int32_t)((uint32_t)(uint16_t)second << 16 | (uint16_t)first); }

}  // namespace

Resizer::Axis Resizer::axis(int64_t in, int64_t out) {
  Axis a;
  if (in == out) return a;
  const double scale = (double)in / (double)out, wider = std::max(scale, 1.0), reach = kSupport * wider;
  std::vector<double> weights((size_t)ceil(reach) * 2 + 1);
  std::vector<std::vector<int32_t>> rows((size_t)out);
  for (int64_t i = 0; i < out; i++) {
    const double centre = ((double)i + 0.5) * scale;
    const int64_t from = std::max<int64_t>(0, (int64_t)(centre - reach + 0.5));
    const int64_t count = std::min(in, (int64_t)(centre + reach + 0.5)) - from;
    double sum = 0;
    for (int64_t x = 0; x < count; x++) {
      weights[(size_t)x] = cubic(((double)(x + from) - centre + 0.5) * (1 / wider));
      sum += weights[(size_t)x];
    }
    for (int64_t x = 0; x < count; x++) rows[(size_t)i].push_back(fixed(sum != 0 ? weights[(size_t)x] / sum : weights[(size_t)x]));
    a.first.push_back(from);
    a.taps = std::max(a.taps, (count + 3) / 4 * 4);
  }
  a.weights.assign((size_t)(out * a.taps), 0);
  a.halves.resize((size_t)((out + 1) / 2 * a.taps * 16));
  for (int64_t i = 0; i < out; i++) {
    int64_t& first = a.first[(size_t)i];
    const int64_t moved = in < a.taps ? 0 : std::max<int64_t>(0, first + a.taps - in);  // no taps beyond the last input
    first -= moved;
    int32_t* at = a.weights.data() + i * a.taps;
    std::copy(rows[(size_t)i].begin(), rows[(size_t)i].end(), at + moved);
    for (int64_t t = 0; t < a.taps; t += 2) {
      const int32_t pair[2] = {words(high(at[t]), high(at[t + 1])), words(low(at[t]), low(at[t + 1]))};
      for (int half = 0; half < 2; half++) {
        a.pairs.push_back(pair[half]);
        int16_t* to = a.halves.data() + ((i / 2 * (a.taps / 4) + t / 4) * 4 + t % 4 + half) * 16 + i % 2 * 8;
        for (int copy = 0; copy < 4; copy++) memcpy(to + 2 * copy, &pair[half], 4);
      }
    }
  }
  return a;
}

Resizer::Resizer(int64_t in_h, int64_t in_w, int64_t out_h, int64_t out_w) : in_h_(in_h), in_w_(in_w), out_h_(out_h), out_w_(out_w) {
  for (const int64_t side : {in_h, in_w, out_h, out_w}) check(side > 0 && side <= kLongest, "a picture has no such size");
  across_ = axis(in_w, out_w);
  down_ = axis(in_h, out_h);
  down_first_ = out_h < in_h && in_w != out_w && in_h - out_h > 2 * (in_w - out_w);
}

// The rows of a picture in their new width, made when they are asked for, in order; the last ones are kept.
class Resizer::Narrow {
 public:
  Narrow(const ResizeAxis& axis, const InPixels& in, int64_t kept)
      : in_(in), axis_(axis), direct_(axis.outputs == 0), size_(kept + kResizeRows) {
    // Rows are copied first whose pixels are apart, or that are too short for the kernel's reads; so is the last one in memory.
    staged_ = in.pixel_step != 3 || (!direct_ && (in.w < axis_.taps || std::abs(in.row_step) < 3 * in.w));
    final_ = in.row_step < 0 ? 0 : in.h - 1;
    width_ = 3 * (direct_ ? in.w : axis.outputs) + kResizeMargin;
    if (!direct_ || staged_) rows_.resize((size_t)(size_ * width_));
    if (!direct_) stage_.assign((size_t)(kResizeRows * stage_width()), 0);
  }

  // Makes the rows before `end`.
  void until(int64_t end) {
    while (made_ < end) {
      if (direct_ && staged_)
        copy(slot(made_), made_);
      else if (!direct_)
        resize();
      made_ += direct_ ? 1 : kResizeRows;
    }
  }
  // The rows that output `y` of the other axis is made of.
  void column(std::vector<const uint8_t*>& rows, const ResizeAxis& down, int64_t y) {
    const int64_t first = down.first[y], last = std::min(first + down.taps, in_.h) - 1;
    until(last + 1);
    for (int64_t t = 0; t < down.taps; t++) rows[(size_t)t] = row(std::min(first + t, last));
  }
  const uint8_t* row(int64_t y) { return direct_ && !staged_ ? in_.data + y * in_.row_step : slot(y); }

 private:
  int64_t stage_width() const { return 3 * (in_.w + axis_.taps) + kResizeMargin; }
  uint8_t* slot(int64_t y) { return rows_.data() + y % size_ * width_; }

  void copy(uint8_t* to, int64_t y) const {
    const uint8_t* from = in_.data + y * in_.row_step;
    for (int64_t x = 0; x < in_.w; x++, to += 3, from += in_.pixel_step) memcpy(to, from, 3);
  }

  void resize() {
    const uint8_t* from[kResizeRows];
    uint8_t* to[kResizeRows];
    for (int64_t r = 0; r < kResizeRows; r++) {
      const int64_t y = std::min(made_ + r, in_.h - 1);  // after the last row: that row again
      from[r] = in_.data + y * in_.row_step;
      if (staged_ || y == final_) {
        copy(stage_.data() + r * stage_width(), y);
        from[r] = stage_.data() + r * stage_width();
      }
      to[r] = slot(made_ + r);
    }
    kernels().resize_rows(to, from, axis_);
  }

  const InPixels& in_;
  const ResizeAxis axis_;
  const bool direct_;  // the width stays
  const int64_t size_;
  bool staged_;
  int64_t final_, width_, made_ = 0;
  std::vector<uint8_t> rows_, stage_;
};

void Resizer::run(const OutPixels& out, const InPixels& in) const {
  check(in.h == in_h_ && in.w == in_w_, "the picture is not of the size that this resizes from");
  check(out.h == out_h_ && out.w == out_w_, "the result is not of the size that this resizes to");
  if (down_first_)
    down_first(out, in);
  else
    across_first(out, in);
}

void Resizer::across_first(const OutPixels& out, const InPixels& in) const {
  const ResizeAxis down = down_.view();
  Narrow narrow(across_.view(), in, std::max<int64_t>(1, down.taps));
  std::vector<const uint8_t*> rows((size_t)down.taps);
  for (int64_t y = 0; y < out_h_; y++) {
    uint8_t* to = out.data + y * out_w_ * 3;
    if (down.outputs == 0) {  // the height stays
      narrow.until(y + 1);
      memcpy(to, narrow.row(y), (size_t)(3 * out_w_));
    } else {
      narrow.column(rows, down, y);
      kernels().resize_columns(to, rows.data(), down, y, 3 * out_w_);
    }
  }
}

void Resizer::down_first(const OutPixels& out, const InPixels& in) const {
  const ResizeAxis down = down_.view(), across = across_.view();
  Narrow narrow({}, in, down.taps);
  const int64_t width = 3 * (in_w_ + across.taps) + kResizeMargin;
  std::vector<uint8_t> short_rows((size_t)(kResizeRows * width));
  std::vector<const uint8_t*> rows((size_t)down.taps);
  for (int64_t y = 0; y < out_h_; y += kResizeRows) {
    const uint8_t* from[kResizeRows];
    uint8_t* to[kResizeRows];
    for (int64_t r = 0; r < kResizeRows; r++) {
      const int64_t at = std::min(y + r, out_h_ - 1);  // after the last row: that row again
      uint8_t* made = short_rows.data() + (at - y) * width;
      if (at == y + r) {
        narrow.column(rows, down, at);
        kernels().resize_columns(made, rows.data(), down, at, 3 * in_w_);
      }
      from[r] = made;
      to[r] = out.data + at * out_w_ * 3;
    }
    kernels().resize_rows(to, from, across);
  }
}

}  // namespace ivlite
