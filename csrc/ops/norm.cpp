#include "ops/norm.h"

#include <algorithm>

#include "core/threads.h"
#include "kernels/dispatch.h"

namespace ivlite {

namespace {
void check_same(const OutRows& y, const InRows& x) {
  check_size("the rows of y", y.rows, x.rows);
  check_size("the columns of y", y.cols, x.cols);
  check(x.cols > 0, "a norm needs at least one column");
}

int64_t row_grain(int64_t cols) { return std::max<int64_t>(1, 16384 / cols); }
}  // namespace

void rms_norm(const OutRows& y, const InRows& x, const float* w, float eps) {
  check_same(y, x);
  parallel_for(x.rows, row_grain(x.cols),
               [&](int64_t t0, int64_t t1) { kernels().rms_norm(y.data, y.stride, x.data, x.stride, w, x.cols, eps, t0, t1); });
}

void layer_norm(const OutRows& y, const InRows& x, const float* w, const float* b, float eps) {
  check_same(y, x);
  parallel_for(x.rows, row_grain(x.cols),
               [&](int64_t t0, int64_t t1) { kernels().layer_norm(y.data, y.stride, x.data, x.stride, w, b, x.cols, eps, t0, t1); });
}

}  // namespace ivlite
